"""The scripted policy finds what is planted, abstains where nothing is, decides the same twice, and heeds refusals."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from neuronaut.agent.loop.rejections import RejectedError, Rejection
from neuronaut.agent.loop.view import Refused, View
from neuronaut.agent.policies.progress import PolicyState
from neuronaut.agent.policies.scripted import FIRST, MISSES, ScriptedPolicy, at_positions, rivals
from neuronaut.agent.session import InvestigationConfig, Session, investigate_all
from neuronaut.agent.tools.table import tools_for
from neuronaut.benchmarks.suite.pairs import at_pivots, pair_accuracy
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.store.store import Store
from neuronaut.rules.language import Position, Rule
from neuronaut.subject.address import Feature
from neuronaut.subject.model import Subject
from tests.planted import LAYER, LONGEST, PlantedNeuron, build
from tests.planted_pairs import counterfactuals

KINDS = (
    "token_set",
    "graded",
    "bigram",
    "exception",
    "within",
    "digit_after_currency",
    "in_quotes",
    "position",
    "repeated",
    "polysemantic",
)
SILENT = ("dead", "noise")
WINDOW = 32
"""Half of what the model can take, since what is longer costs as much more."""


class Investigated:
    """One neuron of every kind, investigated."""

    def __init__(self) -> None:
        planted = build(documents=120)
        self.subject = Subject(planted.model, planted.tokenizer, name="planted")
        self.neurons = {neuron.kind: neuron for neuron in reversed(planted.neurons) if neuron.kind in (*KINDS, *SILENT)}
        self.corpus = Corpus.of("planted", planted.corpus)
        self.store = self.harvested()
        self.sessions = dict(zip(self.neurons, self.run(self.store, *self.neurons), strict=True))
        fresh = [self.subject.decode_tokens(self.subject.encode(text)) for text in build(documents=40, seed=1).corpus]
        self.windows = [text[at : at + LONGEST] for text in fresh for at in range(0, len(text) - LONGEST, LONGEST)]

    def harvested(self) -> Store:
        store = Store(":memory:")
        harvest(self.subject, [f"mlp.{LAYER}"], self.corpus, store, window=WINDOW)
        return store

    def run(self, store: Store, *kinds: str) -> list[Session]:
        features = [Feature.parse(f"planted:mlp.{LAYER}:{self.neurons[kind].index}") for kind in kinds]
        return list(investigate_all(features, self.subject, store, InvestigationConfig(ScriptedPolicy())))

    def frozen(self, kind: str) -> dict[str, Any]:
        found = self.store.journal.event_of(self.sessions[kind].id, "frozen")
        assert found is not None
        return found

    def agreement(self, neuron: PlantedNeuron, rule: Rule) -> float:
        pairs = counterfactuals(neuron, self.windows)
        half = max(max(neuron.truth(words)) for words in self.windows) / 2
        return pair_accuracy(pairs, at_pivots(rule, pairs), half=half)


@pytest.fixture(scope="module")
def investigated() -> Iterator[Investigated]:
    made = Investigated()
    yield made
    made.store.close()


def test_it_finds_what_is_planted(investigated: Investigated) -> None:
    right, supported = [], []
    for kind in KINDS:
        rule = investigated.frozen(kind)["rule"]
        if rule is not None and investigated.agreement(investigated.neurons[kind], Rule.parse(rule)) >= 0.95:
            right.append(kind)
        if investigated.sessions[kind].status == "supported":
            supported.append(kind)
    assert len(right) >= 8, f"not found: {set(KINDS) - set(right)}"
    assert len(supported) >= 8, f"not supported: {set(KINDS) - set(supported)}"
    assert set(supported) <= set(right), "what is supported is right"


def test_it_abstains_where_nothing_is_to_be_found(investigated: Investigated) -> None:
    assert {kind: investigated.sessions[kind].status for kind in SILENT} == dict.fromkeys(SILENT, "no_explanation")


def test_headlines_are_the_beginning_of_texts(investigated: Investigated) -> None:
    rows = [*investigated.store.db.query("SELECT text, headline, predictor FROM explanations")]
    assert all((row["text"] or "").startswith(row["headline"]) for row in rows if row["headline"] is not None)
    assert any(row["headline"] for row in rows)
    assert {(row["headline"], row["predictor"]) for row in rows if row["text"] is None} == {(None, None)}


def test_at_least_two_of_five_experiments_ask_for_silence(investigated: Investigated) -> None:
    for kind in KINDS:
        rows = [row for row in investigated.store.journal.experiments(investigated.sessions[kind].id) if not row.survey]
        silent = [
            np.mean([value < 0.1 for value in said if value is not None]) >= 0.5
            for row in rows
            if (said := next((p.expected for p in row.predictions if set(p.expected) != {None}), None))
        ]
        assert sum(silent) >= 0.4 * len(rows), kind


def test_what_a_feature_writes_and_reads_is_claimed_and_tested(investigated: Investigated) -> None:
    neuron, id = investigated.neurons["bigram"], investigated.sessions["bigram"].id
    concluded = investigated.store.journal.event_of(id, "concluded")
    assert concluded is not None
    claims = {(claim["claim"], claim["item"]): claim["verdict"] for claim in concluded["claims"]}
    assert claims == {("promotes", f" {neuron.promotes}"): "supported", ("reads", "head.0:0"): "supported"}


def test_the_same_again_decides_the_same(investigated: Investigated) -> None:
    with investigated.harvested() as store:
        (again,) = investigated.run(store, "bigram")
        id = investigated.sessions["bigram"].id
        assert again.id == id
        assert store.journal.decisions(id) == investigated.store.journal.decisions(id)


def test_weaker_rivals_say_less_and_none_fires_everywhere() -> None:
    rule = Rule.parse(
        '{"any": [{"when": [{"token": [" a"]}, {"token": [" b"], "at": -1}], "unless": [{"inside": "quotes"}],'
        ' "value": 1}, {"when": [{"position": [3, null]}], "value": 2}]}'
    )
    found = [one.rule for one in rivals(rule, "a text") if one.rule is not None]
    assert found[0] == rule and len({one.to_json() for one in found}) == len(found) == 4
    assert all(clause.when for one in found for clause in one.any)
    bare = Rule.parse('{"any": [{"when": [], "unless": [{"position": [0, 9]}], "value": 1}]}')
    assert [one.rule for one in rivals(bare, "a text")] == [bare]
    places = at_positions(rule, Position(span=(1, None), every=3))
    assert [len(one.rule.any) for one in places if one.rule is not None] == [1, 2]


def _view(*refused: Refused, step: int = 1) -> View:
    return View(
        "plan",
        "feature",
        "the feature",
        0,
        0,
        None,
        1.0,
        (),
        {"baseline": None},
        (),
        (),
        {},
        {},
        refused[-1].rejection.reason,
        step,
        refused,
    )


def test_a_refused_plan_is_not_made_again() -> None:
    calls = [call.model_dump(mode="json") for call in FIRST]
    tools = frozenset(tools_for("feature"))
    plan = {"action": "use_tools", "calls": calls}
    near = Refused(1, plan, Rejection("no such place", "no_place", tool="scan_vocabulary", where="near_miss"))
    use = PolicyState(_view(near, step=2), tools).use(FIRST)
    assert use is not None and [c.args.get("carriers") for c in use.calls].count("near_miss") == 0
    assert len(use.calls) == 6, "the others are asked for together"
    alike = Refused(1, plan, Rejection("all predict the same", "uninformative", tool="scan_vocabulary"))
    use = PolicyState(_view(alike, step=2), tools).use(FIRST)
    assert use is not None and len(use.calls) == 1, "nobody knows which of them it was"
    alone = Refused(2, {"action": "use_tools", "calls": calls[:1]}, alike.rejection)
    again = PolicyState(_view(alike, alone, step=3), tools).use(FIRST)
    assert again is not None and again.calls[0] != use.calls[0]


def test_a_plan_with_too_little_silence_is_put_off() -> None:
    plan, tools = {"action": "use_tools", "calls": [FIRST[0].model_dump(mode="json")]}, frozenset(["scan_vocabulary"])
    quota = PolicyState(_view(Refused(1, plan, Rejection("too few", "silence_quota")), step=2), tools)
    assert not quota.settled(FIRST[0]) and quota.postponed(FIRST[0])
    edit = ScriptedPolicy().decide(quota.view, ("use_tools",), list(tools_for("feature").values()))
    assert edit.action == "use_tools" and edit.calls[0].args["expect"] == "silence"


def test_a_rejection_comes_back_from_the_journal_and_one_without_a_code_is_unspecified() -> None:
    error = RejectedError("inseparable", "they predict the same", rivals=("H3", "H4")).of_call("edit_at_random")
    stored = {"seq": 7, "kind": "rejected", "step": 2, **json.loads(json.dumps(error.rejection.to_json()))}
    assert Rejection.from_json(stored) == error.rejection
    assert (str(error), error.rejection.tool) == ("edit_at_random: they predict the same", "edit_at_random")
    plan = {"action": "use_tools", "calls": [FIRST[0].model_dump(mode="json")]}
    before = Refused(1, plan, Rejection.from_json({"step": 1, "reason": "f has no silent place with 1 tokens"}))
    state = PolicyState(_view(before, step=2), frozenset(["scan_vocabulary"]))
    assert before.rejection.code == "unspecified" and state.settled(FIRST[0]) and not state.hopeless(FIRST[0])


def test_before_too_many_refusals_it_makes_a_plain_edit() -> None:
    refused = [Refused(step, {"action": "use_tools", "calls": []}, Rejection("no")) for step in range(1, MISSES)]
    action = ScriptedPolicy().decide(_view(*refused, step=MISSES), ("use_tools",), list(tools_for("feature").values()))
    assert action.action == "use_tools" and action.calls[0].tool == "edit_at_random"
