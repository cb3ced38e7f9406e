"""The output side on the planted subject, whose neurons promote known tokens: what is shown, asked and read."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.data.harvest.activations import read_columns
from neuronaut.data.records import Example, Explanation, Judgements, Split, Statistics
from neuronaut.explainers.combined import Combined
from neuronaut.explainers.explainer import Background, TrainBatch, TrainEvidence
from neuronaut.explainers.output import BEGINNINGS, LENGTH, Output, quoted
from neuronaut.llm.types import Chat, Reply, request_key
from neuronaut.scorers.controls import ALL, NONE, Controls
from neuronaut.scorers.holdout import Baselines, Holdout
from neuronaut.scorers.output import OutputScorer
from neuronaut.scorers.scorer import Case, measure
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons
from tests import golden
from tests import planted as world

WINDOW = 24
PLANTED = {neuron.name: neuron for neuron in world.build(documents=1).neurons}
SOURCE = SourceId("planted", f"mlp.{world.LAYER}")
WRITERS = [neuron for neuron in PLANTED.values() if neuron.promotes]


@cache
def subject() -> Subject:
    """The planted subject, which writes a fixed token after each token where no neuron promotes another."""
    model, tokenizer, *_ = world.build(documents=1)
    words = len(world.WORDS)
    with torch.no_grad():
        for word in range(2, words):
            model.lm_head.weight[2 + (7 * word + 3) % (words - 2), word] += 1.0
    return Subject(model, tokenizer, name="planted")


def source() -> Neurons:
    return Neurons(SOURCE, subject().width(SOURCE.site))


def feature(name: str) -> Feature:
    return Feature(SOURCE, PLANTED[name].index)


@cache
def windows() -> np.ndarray:
    """Token ids of one window of each of 160 documents."""
    texts = world.corpus(documents=160, seed=3)
    return np.array([subject().encode(text)[:WINDOW] for text in texts], np.int64)


def examples(name: str, rows: Sequence[int], split: Split) -> list[Example]:
    """Windows with a neuron's activations, those in which it fires as "top"."""
    read = read_columns(subject(), source(), windows()[list(rows)], [PLANTED[name].index])[:, :, 0]
    return [
        Example(
            subject().decode_tokens(windows()[row]),
            windows()[row],
            values,
            "top" if values.max() > 0.2 else "random",
            split,
            f"doc{row}",
            f"{split}{row:03d}",
        )
        for row, values in zip(rows, read, strict=True)
    ]


@cache
def batch(*names: str) -> TrainBatch:
    """Training evidence of some planted neurons, on the first windows."""
    back = range(60, 100)
    ids = windows()[list(back)]
    background = Background(ids.astype(np.int32), [f"doc{i // 2}" for i in back], [f"train{i:03d}" for i in back])
    parts = []
    for name in names:
        shown = [example for example in examples(name, range(60), "train") if example.kind == "top"]
        peak = max((example.peak for example in shown), default=0.0)
        own = read_columns(subject(), source(), ids, [PLANTED[name].index])[:, :, 0]
        parts.append(TrainEvidence(feature(name), Statistics(10_000, 0.01, 0.0, peak, 0.0, ()), shown, own))
    return TrainBatch(source(), subject().vocabulary, background, parts)


def asked(explainer: Output | Combined, of: TrainBatch) -> list[Chat]:
    return [chat for chat in next(explainer.explain(of)) if isinstance(chat, Chat)]


def answered(explainer: Output | Combined, of: TrainBatch, text: str) -> list[Explanation]:
    asking = explainer.explain(of)
    requests = next(asking)
    with pytest.raises(StopIteration) as stop:
        asking.send([Reply("ok", text, key=f"k{i}") for i in range(len(requests))])
    return stop.value.value


# --- explainers ------------------------------------------------------------------------------------


def test_golden_rendering_of_explainers() -> None:
    for explainer in (Output(subject()), Combined(subject(), rules=False)):
        golden.check(explainer.name, asked(explainer, batch("day"))[0].messages)


def test_a_rule_is_invited_for_what_a_feature_responds_to() -> None:
    said = [asked(explainer(subject()), batch("day"))[0].messages[0].content for explainer in (Output, Combined)]
    assert ["[RULE]" in text for text in said] == [False, True]


@pytest.mark.parametrize("explainer", [Output, Combined])
def test_the_promoted_token_is_shown_first_and_written_only_with_the_neuron(explainer: type[Output | Combined]) -> None:
    names = ("day", "colour", "river", "seen_before", "quoted")
    for name, chat in zip(names, asked(explainer(subject()), batch(*names)), strict=True):
        shown = chat.messages[-1].content
        token = f"{PLANTED[name].promotes}"
        assert re.search(r"Raised tokens:\n~~~\n«([^»]*)»", shown)[1].strip() == token  # pyright: ignore
        steered, plain = (re.findall(rf"{mark}: «([^»]*)»", shown) for mark in ("with", "without"))
        assert len(steered) == len(plain) == BEGINNINGS
        assert all(set(text.split()) == {token} for text in steered)
        assert not any(set(text.split()) == {token} for text in plain)


def test_what_was_seen_is_training_text() -> None:
    for explainer, shown in ((Output(subject()), 0), (Combined(subject()), 7)):
        made = answered(explainer, batch("day"), "[EXPLANATION]: the digit 4")[0]
        assert (made.text, made.status, made.explainer) == ("the digit 4", "explained", explainer.name)
        assert len(made.seen) == BEGINNINGS + shown and all(digest.startswith("train") for digest in made.seen)
        beginning = quoted("".join(batch("day").vocabulary[i] for i in batch("day").background.ids[0, :LENGTH]))
        assert beginning in asked(explainer, batch("day"))[0].messages[-1].content


def test_a_neuron_that_writes_nothing_is_not_asked_about_by_its_output() -> None:
    of = batch("day", "never", "noise", "colour")
    made = answered(Output(subject()), of, "[EXPLANATION]: a token")
    assert [explanation.feature for explanation in made] == [evidence.feature for evidence in of.features]
    assert [explanation.status for explanation in made] == ["explained", "dead", "no_pattern", "explained"]
    assert made[2].reason == "it writes nothing: its direction in the residual stream is zero"
    both = answered(Combined(subject()), of, "[EXPLANATION]: a token")
    assert [explanation.status for explanation in both] == ["explained", "dead", "explained", "explained"]
    assert "(nothing: what it writes is zero)" in asked(Combined(subject()), of)[1].messages[-1].content


@pytest.mark.parametrize("explainer", [Output, Combined])
def test_a_question_does_not_depend_on_what_is_explained_beside_it(explainer: type[Output | Combined]) -> None:
    names = ("day", "colour", "noise", "river", "price")
    among = asked(explainer(subject()), batch(*names))
    for name in ("day", "price"):
        alone = asked(explainer(subject()), batch(name))[0]
        assert request_key(alone, model="m", endpoint="e") in {request_key(c, model="m", endpoint="e") for c in among}


@given(st.text())
def test_text_between_the_marks_cannot_leave_them(text: str) -> None:
    shown = quoted(text)
    assert (shown[0], shown[-1]) == ("«", "»") and not set("«»\n\t") & set(shown[1:-1])
    assert len(shown.splitlines()) == 1


# --- the scorer ------------------------------------------------------------------------------------


@cache
def holdout(name: str) -> Holdout:
    own = examples(name, range(100, 160), "holdout")
    peak = max((example.peak for example in own), default=0.0)
    return Holdout(feature(name), peak, subject().vocabulary, {}, tuple(own))


def case(name: str, *, other: str | None = "colour") -> Case:
    def said(of: str) -> Explanation:
        return Explanation(feature(of), f"promotes {PLANTED[of].promotes}", "output")

    nothing = Baselines(np.zeros(1, np.float32), np.zeros(1, np.float32), None)
    return Case(said(name), holdout(name), nothing, said(other) if other else None)


def scorer(*, rivals: int = 2, seed: int = 0, controls: Controls = ALL) -> OutputScorer:
    return OutputScorer(subject(), {SOURCE: source()}, rivals=rivals, seed=seed, controls=controls)


Side = tuple[str, str]
Decide = Callable[[str, Side], str]
"""From the description and the lines A and B to an answer."""


def judged(found: OutputScorer, of: Case, decide: Decide) -> list[Judgements]:
    """Judgements by a reader who decides each question by its lines."""

    def reply(chat: Chat) -> Reply:
        content = chat.messages[-1].content
        description = re.match("Description: (.*)", content)[1]  # pyright: ignore
        sides = zip(re.findall(r"A: (.*)", content), re.findall(r"B: (.*)", content), strict=True)
        answers = {str(number): decide(description, side) for number, side in enumerate(sides, start=1)}
        assert len(answers) == len(json.loads(chat.sample)) == int(re.search(r"1 to (\d+)\.$", content)[1])  # pyright: ignore
        return Reply("ok", json.dumps(answers), key="k")

    asking = found.judge(of)
    requests = next(asking)
    with pytest.raises(StopIteration) as stop:
        asking.send([reply(chat) for chat in requests if isinstance(chat, Chat)])
    return stop.value.value


def by_promise(description: str, sides: Side) -> str:
    """Picks the side with more of the token that the description promises; A where neither has it."""
    token = description.removeprefix("promotes ")
    counts = [sum(word.strip() == token for word in re.findall(r"[^«»\s]+", side)) for side in sides]
    return "A" if counts[0] >= counts[1] else "B"


@cache
def sheet_chats(name: str, seed: int) -> list[Chat]:
    return [chat for chat in next(scorer(seed=seed).judge(case(name))) if isinstance(chat, Chat)]


def test_golden_rendering_of_the_scorer() -> None:
    chats = sheet_chats("day", 0)
    for name in ("output_tokens", "output_text"):
        golden.check(name, next(chat for chat in chats if chat.prompt == name).messages)


def test_a_true_description_wins_and_anothers_does_not() -> None:
    found = judged(scorer(rivals=4), case("day"), by_promise)
    assert {(part.examples, part.role) for part in found} == {
        (examples, role) for examples in ("tokens", "continuations") for role in ("explanation", "empty", "shuffled")
    }
    scores = {score.examples: score for score in measure(found) if score.metric == "balanced_accuracy"}
    assert scores["continuations"].value == 1.0 and scores["tokens"].value > 0.7  # pyright: ignore
    for score in scores.values():
        assert score.baselines["empty"] == 0.5 and score.baselines["shuffled"] <= 0.5  # pyright: ignore
        assert score.coverage == 1.0 and score.n == 4


@settings(max_examples=6, deadline=None)
@given(name=st.sampled_from([n.name for n in WRITERS]), seed=st.integers(0, 50), side=st.sampled_from("AB"))
def test_a_guess_from_the_place_alone_is_right_half_of_the_time(name: str, seed: int, side: str) -> None:
    for part in judged(scorer(seed=seed, controls=NONE), case(name), lambda *_: side):
        assert part.true.mean(axis=1).tolist() == [0.5] * 2
        assert (part.true == part.predicted).mean(axis=1).tolist() == [0.5] * 2


def test_each_prompt_is_about_one_rival_and_the_feature_is_in_every_question() -> None:
    token = PLANTED["day"].promotes
    for chat in sheet_chats("day", 0):
        if chat.prompt == "output_text" and "(none is given)" in chat.messages[-1].content:
            blocks = re.findall(r"A: (.*)\n   B: (.*)", chat.messages[-1].content)
            assert len(blocks) == 4
            own = [sum(set(re.findall(r"[^«»\s]+", side)) == {token} for side in block) for block in blocks]
            assert own == [1] * 4


def test_continuations_begin_like_holdout_windows_and_lists_show_none() -> None:
    parts = judged(scorer(), case("day"), by_promise)
    for part in parts:
        assert len(part.windows) == (4 if part.examples == "continuations" else 0)
        assert all(digest.startswith("holdout") for digest in part.windows)
        assert part.provenance["calls"] == ["k"] * 2
    begun = {example.window: "".join(example.tokens[:LENGTH]) for example in holdout("day").examples}
    text = next(chat for chat in sheet_chats("day", 0) if chat.prompt == "output_text").messages[-1].content
    assert all(quoted(begun[digest]) in text for digest in parts[-1].windows)


@pytest.mark.parametrize(
    ("reply", "missing"),
    [
        (Reply("refused", "no"), "refused"),
        (Reply("truncated", '{"1": "A", "2": "A"'), "truncated"),
        (Reply("empty"), "empty"),
        (Reply("ok", "Both look plausible: A."), "unparsed"),
        (Reply("ok", '{"1": "C", "2": 1, "3": null, "4": "AB"}'), "unparsed"),
    ],
)
def test_what_is_no_answer_is_missing(reply: Reply, missing: str) -> None:
    asking = scorer(rivals=1, controls=NONE).judge(case("day"))
    requests = next(asking)
    with pytest.raises(StopIteration) as stop:
        asking.send([reply] * len(requests))
    for part in stop.value.value:
        assert np.isnan(part.predicted).all() and part.missing == {missing: part.true.size}
    for score in measure(stop.value.value):
        assert score.value is None and score.coverage == 0.0 and missing in (score.reason or "")


def test_half_an_answer_is_half_missing() -> None:
    asking = scorer(controls=NONE).judge(case("day"))
    requests = next(asking)
    with pytest.raises(StopIteration) as stop:
        asking.send([Reply("ok", '```json\n{"1": "a", "2": "b"}\n```')] * len(requests))
    tokens, continuations = stop.value.value
    assert tokens.predicted.tolist() == [[1, 0]] * 2 and not tokens.missing
    assert np.isnan(continuations.predicted[:, 2:]).all() and continuations.missing == {"unparsed": 4}
    assert {score.coverage for score in measure([continuations])} == {0.5}


def test_without_controls_or_another_explanation_less_is_asked() -> None:
    assert {part.role for part in judged(scorer(controls=NONE), case("day"), by_promise)} == {"explanation"}
    assert {part.role for part in judged(scorer(), case("day", other=None), by_promise)} == {"explanation", "empty"}
    silent = replace(case("day"), explanation=Explanation(feature("day"), None, "output", status="failed"))
    with pytest.raises(StopIteration) as stop:
        next(scorer().judge(silent))
    assert stop.value.value == []


def test_a_feature_that_writes_nothing_has_no_score_but_a_reason() -> None:
    with pytest.raises(StopIteration) as stop:
        next(scorer().judge(case("noise")))
    scores = measure(stop.value.value)
    assert [(score.examples, score.value, score.reason) for score in scores] == [
        (examples, None, "the feature writes nothing") for examples in ("continuations", "tokens")
    ]


def test_without_holdout_windows_only_tokens_are_asked_about() -> None:
    bare = replace(case("day"), holdout=replace(holdout("day"), examples=holdout("day").examples[:1]))
    found = {part.examples: part for part in judged(scorer(controls=NONE), bare, by_promise)}
    assert found["tokens"].true.shape == (2, 2) and found["continuations"].true.size == 0
    reasons = {score.examples: score.reason for score in measure(list(found.values())) if score.value is None}
    assert reasons == {"continuations": "holdout windows (2 are wanted)"}


def test_a_source_that_was_not_given_is_an_error() -> None:
    with pytest.raises(NeuronautError, match=r"lacks planted:mlp\.2, the source of planted:mlp\.2:\d+; .* none"):
        next(OutputScorer(subject(), {}).judge(case("day")))


def test_the_same_questions_are_asked_again_and_other_seeds_ask_others() -> None:
    again = next(scorer(seed=0).judge(case("day")))
    assert [c.messages for c in again if isinstance(c, Chat)] == [c.messages for c in sheet_chats("day", 0)]
    assert [c.messages for c in sheet_chats("day", 1)] != [c.messages for c in sheet_chats("day", 0)]
