"""The guided explainer: what it measures, shows and checks, and which draft is kept; the truth is planted."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.activations import neurons
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.records import Explanation, Judgements
from neuronaut.data.store.store import Store
from neuronaut.explainers.battery.battery import run_battery
from neuronaut.explainers.battery.measurements import nearest_tokens
from neuronaut.explainers.explainer import TrainBatch
from neuronaut.explainers.guided import COUNTEREXAMPLES, Drafts, Guided, find_errors
from neuronaut.labelling import inputs
from neuronaut.labelling.estimate import estimate
from neuronaut.labelling.factory import make_explainer, remake_explainer
from neuronaut.labelling.guided import choose
from neuronaut.labelling.inputs import EvidenceLoader
from neuronaut.labelling.label import Result, label
from neuronaut.labelling.reproduce import reproduce
from neuronaut.labelling.selection import SelectScore
from neuronaut.llm.client import LLMClient
from neuronaut.llm.types import Chat, Reply
from neuronaut.rules.language import Rule
from neuronaut.scorers.simulation import RuleSimulator
from neuronaut.subject.address import Feature
from tests import golden
from tests.planted import LAYER
from tests.test_label_llm import features, open_chat, planted, served, subject

WRONG = '{"any": [{"when": [{"token": [" small"]}, {"class": "word"}], "value": 9}]}'
RIGHT = '{"any": [{"when": [{"token": [" river"]}], "value": 10}]}'


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    before = torch.get_num_threads(), inputs.BACKGROUND, inputs.RANDOM_WINDOWS
    torch.set_num_threads(1)
    inputs.BACKGROUND, inputs.RANDOM_WINDOWS = 96, 48
    yield
    torch.set_num_threads(before[0])
    inputs.BACKGROUND, inputs.RANDOM_WINDOWS = before[1:]


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guided") / "harvested.db"
    with Store(path) as made:
        harvest(subject(), [f"mlp.{LAYER}"], Corpus.of("planted", planted().corpus), made, window=32)
    return path


@pytest.fixture
def store(harvested: Path, tmp_path: Path) -> Iterator[Store]:
    with Store(Path(shutil.copy(harvested, tmp_path / "one.db"))) as opened:
        yield opened


def batch_of(store: Store, *names: str) -> TrainBatch:
    (source,) = neurons(subject(), [f"mlp.{LAYER}"])
    return EvidenceLoader(store, subject(), source).train([store.evidence(feature) for feature in features(*names)])


def test_the_battery_finds_the_planted_context(store: Store) -> None:
    batch = batch_of(store, "river", "day")
    found = run_battery(subject(), batch, batch.features)
    river, day = (found[part.feature] for part in batch.features)
    assert {pruned.needed for pruned in river.pruned} == {1}
    assert all(scanned.keeps and not scanned.breaks for scanned in river.scanned), "any token may stand before it"
    assert all(len(scanned.keeps) + len(scanned.breaks) <= 40 for scanned in day.scanned)
    needing = run_battery(subject(), (context := batch_of(store, "price")), context.features)[
        context.features[0].feature
    ]
    assert min(pruned.needed for pruned in needing.pruned) >= 2
    assert any(scanned.breaks for scanned in needing.scanned)


def asked(guided: Guided, batch: TrainBatch, *replies: str) -> tuple[list[list[Chat]], list[Drafts]]:
    """The questions of each round, and the drafts, where the same is answered to every question of a round."""
    task, rounds = guided.drafts(batch), []
    requests = next(task)
    for number, text in enumerate(replies):
        rounds.append([request for request in requests if isinstance(request, Chat)])
        try:
            requests = task.send([Reply("ok", text, key=f"call {number}")] * len(requests))
        except StopIteration as stop:
            return rounds, stop.value
    raise AssertionError("there are more rounds")


def answer(words: str, rule: str) -> str:
    return f"[HEADLINE]: the word `{words}`\n[EXPLANATION]: the word `{words}`; nothing else.\n[RULE]: {rule}"


def test_code_checks_the_rule_and_shows_where_it_is_wrong(store: Store) -> None:
    batch = batch_of(store, "river")
    rounds, (drafts,) = asked(Guided(subject()), batch, answer(" small", WRONG), answer(" river", RIGHT))
    golden.check("guided", rounds[0][0].messages)
    golden.check("guided_check", rounds[1][0].messages[2:])
    assert rounds[1][0].messages[:2] == rounds[0][0].messages
    told = rounds[1][0].messages[-1].content
    assert re.search(r"is (9|10), the rule says 0: .*« river»", told), "what is missed"
    assert re.search(r"is 0, the rule says 9: .*‹ small›", told), "what is wrongly named"
    assert drafts.second is not None and drafts.second.headline == "the word ` river`"
    assert drafts.second.provenance["calls"] == ["call 0", "call 1"]
    assert set(drafts.second.seen) >= set(drafts.first.seen) and drafts.learned.explainer == "rule"
    held_out = {e.window for part in batch.features for e in store.evidence(part.feature).holdout}
    assert not held_out & set(drafts.second.seen)


def test_a_right_rule_has_no_counterexample_and_none_says_so(store: Store) -> None:
    batch = batch_of(store, "river")
    (evidence,) = batch.features
    highest = max(e.peak for e in evidence.examples)
    right = Rule.parse(json.dumps({"any": [{"when": [{"token": [" river"]}], "value": highest}]}))
    assert find_errors(right, evidence, batch, highest) == []
    missed = find_errors(None, evidence, batch, highest)
    assert 0 < len(missed) <= COUNTEREXAMPLES and {error.named for error in missed} == {" river"}
    rounds, _ = asked(Guided(subject()), batch, "[EXPLANATION]: the word ` river`", answer(" river", RIGHT))
    assert "Without a rule everything is predicted 0 (there is none)" in rounds[1][0].messages[-1].content


def test_at_most_three_calls_and_six_thousand_tokens(store: Store) -> None:
    batch = batch_of(store)
    rounds, drafts = asked(Guided(subject()), batch, *[answer("x", WRONG) + " " + "word " * 120] * 2)
    assert len(rounds) <= 3 and len(drafts) == len(batch.features)
    for chats in zip(*rounds, strict=True):
        # A token of English and code has about four characters; three are safe.
        sent = sum(len(message.content) for chat in chats for message in chat.messages)
        assert sent / 3 + sum(chat.sampling.max_tokens for chat in chats) / 2 < 6000


def test_a_first_answer_that_failed_is_asked_no_more(store: Store) -> None:
    rounds, (drafts,) = asked(Guided(subject()), batch_of(store, "river"), "I cannot tell.")
    assert len(rounds) == 1 and drafts.second is None and drafts.first.status == "failed"


def run(store: Store, first: str, second: str) -> Result:
    def reader(messages: Sequence[dict[str, Any]]) -> str:
        return second if len(messages) > 2 else first

    with served(answer=reader) as server:
        llm = open_chat(server)
        client = LLMClient(llm, store.calls)
        explainer = make_explainer("guided", subject())
        (result,) = label(
            features("river"), store, subject(), explainer=explainer, scorers=[RuleSimulator()], client=client
        )
        llm.close()
    return result


@pytest.mark.parametrize(("first", "second"), [(WRONG, RIGHT), (RIGHT, WRONG)])
def test_the_better_answer_on_select_is_kept(store: Store, first: str, second: str) -> None:
    result = run(store, answer("one", first), answer("two", second))
    kept = "two" if second == RIGHT else "one"
    assert result.explanation.text == f"the word `{kept}`; nothing else."
    assert result.explanation.headline == f"the word `{kept}`" and result.explanation.explainer == "guided"
    drafts = result.explanation.provenance["drafts"]
    assert isinstance(drafts, list) and [row["by"] for row in drafts] == ["rule", "first answer", "second answer"]
    assert result.score is not None and result.score.value is not None and result.score.value > 0.9
    (source,) = neurons(subject(), [f"mlp.{LAYER}"])
    stored = store.best(result.feature)
    assert stored is not None
    remade = remake_explainer(stored.explanation, store, subject(), {source.id: source})
    assert reproduce(store, subject(), source, stored, remade).same


def test_a_dry_run_counts_both_calls(store: Store) -> None:
    with served() as server:
        llm = open_chat(server)
        client = LLMClient(llm, store.calls, mode="rehearsal")
        explainer = make_explainer("guided", subject())
        plan = estimate(features("river"), store, subject(), explainer=explainer, scorers=[], client=client)
        llm.close()
        assert not server.seen
    assert plan.calls == 2 and 1000 < plan.input_tokens < 6000


@pytest.mark.parametrize("name", ["best-of-3:guided", "refine:guided"])
def test_it_composes(name: str) -> None:
    explainer = make_explainer(name, subject())
    assert explainer.name == name
    assert {"guided", "guided_check", "rule_language"} <= {prompt.name for prompt in explainer.prompts}


FEATURE = Feature.parse("m:mlp.0:0")


def scored(noise: float) -> SelectScore:
    """A score whose predictions are the truth with so much noise."""
    true = np.random.default_rng(0).exponential(size=(12, 32)).astype(np.float32)
    own = np.random.default_rng(round(1000 * noise)).normal(size=true.shape)
    predicted = (true + noise * own).astype(np.float32)
    judged = Judgements("simulation", "top_random", "explanation", "activation", true, predicted, 0.5, ())
    return SelectScore(judged, float(np.corrcoef(true.ravel(), predicted.ravel())[0, 1]), "correlation")


@pytest.mark.parametrize(
    ("noises", "kept"),
    [((0.5, 3.0, 2.9), "learned"), ((0.5, 0.51, 3.0), "first"), ((0.5, 3.0, 0.49), "second"), ((9, 1, 1), "second")],
)
def test_the_learned_rule_is_kept_only_if_it_is_better_beyond_noise(
    noises: tuple[float, float, float], kept: str
) -> None:
    drafts = Drafts(*(Explanation(FEATURE, text, "x", rule=RIGHT) for text in ("learned", "first", "second")))
    assert choose(drafts, [scored(noise) for noise in noises], name="guided").text == kept


def test_a_failed_call_is_a_failed_explanation_and_no_pattern_leaves_the_rule() -> None:
    learned = Explanation(FEATURE, "learned", "rule", rule=RIGHT)
    nothing = [scored(1.0), SelectScore(None, None, ""), SelectScore(None, None, "")]
    failed = Explanation(FEATURE, None, "guided", reason="refused", status="failed")
    assert choose(Drafts(learned, failed, None), nothing, name="guided").status == "failed"
    declined = replace(failed, status="no_pattern", reason="the reader answered: no pattern")
    assert choose(Drafts(learned, declined, None), nothing, name="guided").text == "learned"
    neither = replace(learned, text=None, rule=None, status="no_pattern")
    assert choose(Drafts(neither, declined, None), nothing, name="guided").status == "no_pattern"


def test_where_every_active_place_begins_its_window_no_token_is_near() -> None:
    windows = SimpleNamespace(values=np.array([[1.0, 0.0, 0.0]]), ids=np.array([[5, 6, 7]]))
    side = cast(Any, SimpleNamespace(windows=windows, subject=subject()))
    assert nearest_tokens(side, 1, {5, 6, 7}) == [] and set(nearest_tokens(side, 0, {5, 6, 7})) == {5, 6, 7}
