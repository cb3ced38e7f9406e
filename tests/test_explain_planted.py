"""The explainer finds the planted truth: on edits it never saw, in words, and by abstaining where there is none."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from neuronaut.benchmarks.suite.pairs import Pair, at_pivots, pair_accuracy
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.store.store import Store
from neuronaut.explainers.rule import RuleExplainer
from neuronaut.labelling.label import Result, label
from neuronaut.rules.language import Rule
from neuronaut.scorers.simulation import RuleSimulator
from neuronaut.subject.model import Subject
from tests.planted import LAYER, PlantedNeuron, build
from tests.planted_pairs import counterfactuals

ANSWERED = (
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
    "conjunction",
    "twin",
)
"""Kinds of planted neurons that have an answer; every other kind is always on, dead or noise."""


class Labels:
    """The planted neurons, their labels, and windows of the holdout."""

    def __init__(self) -> None:
        planted = build(documents=160)
        self.subject = Subject(planted.model, planted.tokenizer, name="planted")
        self.store = Store(":memory:")
        harvest(self.subject, [f"mlp.{LAYER}"], Corpus.of("planted", planted.corpus), self.store)
        features = self.store.features(f"planted:mlp.{LAYER}:0-{len(planted.neurons) - 1}")
        results = label(
            features, self.store, self.subject, explainer=RuleExplainer(self.subject), scorers=[RuleSimulator()]
        )
        self.found: list[tuple[PlantedNeuron, Result]] = [(planted.neurons[r.feature.index], r) for r in results]
        pool = [window.ids for window in self.store.pool_windows("planted", "holdout")]
        whole = [ids for ids in pool if len(ids) == max(map(len, pool))]
        self.windows = [self.subject.decode_tokens(ids.tolist()) for ids in whole]

    def of_kind(self, kind: str) -> list[tuple[PlantedNeuron, Result]]:
        return [(neuron, result) for neuron, result in self.found if neuron.kind == kind]

    def text(self, name: str) -> str:
        return next(result.explanation.text or "" for neuron, result in self.found if neuron.name == name)


@pytest.fixture(scope="module")
def labels() -> Iterator[Labels]:
    made = Labels()
    yield made
    made.store.close()


def test_every_kind_is_expected_to_be_answered_or_not(labels: Labels) -> None:
    assert {neuron.kind for neuron, _ in labels.found} == {*ANSWERED, "always_on", "dead", "noise"}


@pytest.mark.parametrize("kind", ANSWERED)
def test_the_rule_agrees_with_the_truth_on_edited_windows(labels: Labels, kind: str) -> None:
    for neuron, result in labels.of_kind(kind):
        assert result.explanation.rule is not None, (neuron.name, result.explanation.reason)
        pairs = counterfactuals(neuron, labels.windows, each=25)
        said = at_pivots(Rule.parse(result.explanation.rule), pairs)
        assert pair_accuracy(pairs, said, half=0.5) >= 0.95, (neuron.name, result.explanation.text)


@pytest.mark.parametrize("kind", ANSWERED)
def test_half_of_the_edits_flip_the_truth(labels: Labels, kind: str) -> None:
    for neuron, _ in labels.of_kind(kind):
        pairs = counterfactuals(neuron, labels.windows, each=25)
        transitions = [(pair.was > 0.5, pair.now > 0.5) for pair in pairs]
        counts = {transition: transitions.count(transition) for transition in transitions}
        assert len(counts) == 4 and len(set(counts.values())) == 1 and len(pairs) >= 20, (neuron.name, counts)


def test_the_pairs_truth_is_the_models(labels: Labels) -> None:
    for neuron, _ in labels.of_kind("conjunction") + labels.of_kind("repeated"):
        pairs = counterfactuals(neuron, labels.windows, each=5)
        np.testing.assert_allclose(activations(labels, neuron, pairs), [pair.now for pair in pairs], atol=0.02)


def activations(labels: Labels, neuron: PlantedNeuron, pairs: list[Pair]) -> list[float]:
    rows = [[labels.subject.bos, *labels.subject.encode("".join(pair.edited))] for pair in pairs]
    read = labels.subject.read(torch.tensor(rows), [f"mlp.{LAYER}"])[f"mlp.{LAYER}"]
    return [float(read[row, pair.pivot + 1, neuron.index]) for row, pair in enumerate(pairs)]


@pytest.mark.parametrize(("kind", "status", "reason"), [("always_on", "dense", "100%"), ("dead", "dead", "never")])
def test_what_has_no_answer_is_abstained_on(labels: Labels, kind: str, status: str, reason: str) -> None:
    ((_, result),) = labels.of_kind(kind)
    assert (result.explanation.status, result.explanation.text, result.explanation.rule) == (status, None, None)
    assert reason in (result.explanation.reason or "")
    assert not result.scores


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("day", ["ending in `day`"]),  # as do Monday, Friday and Sunday, and no other word there is
        ("new_haven", ["` Haven`", "directly after ` New`"]),
        ("river_not_dry", ["` river`", "except directly after ` dry`"]),
        ("bell_after_storm", ["` bell`", "after ` storm`"]),
        ("quoted_city", ["` Oslo`", "inside quotes"]),
        ("seen_before", ["has occurred before"]),
    ],
)
def test_the_english_names_the_cause(labels: Labels, name: str, parts: list[str]) -> None:
    assert [part for part in parts if part not in labels.text(name)] == []


@pytest.mark.parametrize("kind", ANSWERED)
def test_the_stored_headline_score_is_high_and_beats_every_baseline_that_is_not_the_answer(
    labels: Labels, kind: str
) -> None:
    for neuron, result in labels.of_kind(kind):
        assert result.score is not None and result.score.value is not None
        assert result.score.value >= 0.95, neuron.name
        rivals = [value for value in result.score.baselines.values() if value is not None]
        assert len(rivals) == 3
        assert result.score.value >= max(rivals) - 0.01, (neuron.name, result.score.baselines)


def test_explanations_did_not_see_what_scores_are_taken_on(labels: Labels) -> None:
    for neuron, result in labels.found:
        seen = set(result.explanation.seen)
        assert not any(seen & set(score.windows) for score in result.scores), neuron.name
