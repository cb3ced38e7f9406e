"""Rules learned from experiments: scans of a planted model make the rule right, also where text hides the cause."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pytest

from neuronaut.benchmarks.suite.pairs import at_pivots, pair_accuracy
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.records import Explanation
from neuronaut.data.store.store import Store
from neuronaut.explainers.explainer import TrainBatch
from neuronaut.explainers.rule import RuleExplainer
from neuronaut.labelling.harvested import open_harvested
from neuronaut.labelling.inputs import Columns, EvidenceLoader
from neuronaut.rules.english import count_words
from neuronaut.rules.induce import induce
from neuronaut.rules.language import Clause, Rule, Token
from neuronaut.rules.observed import Observed, disagreements
from neuronaut.rules.revise import revise
from neuronaut.rules.sample import Sample, Windows
from neuronaut.rules.telling import HEADLINE, WORDS, can_be_told
from neuronaut.rules.tree import Growth, grow
from neuronaut.subject.address import Feature
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.planted import LAYER, LONGEST, PlantedNeuron, build, corpus
from tests.planted_pairs import VOCABULARY, counterfactuals

PLANTED = build(documents=160)
NEURONS = {neuron.name: neuron for neuron in PLANTED.neurons}
ANSWERED = [n.name for n in PLANTED.neurons if n.kind not in ("always_on", "dead", "noise")]
OFFSETS = (0, -1, -2, -3, -4)


def cut(documents: Sequence[str]) -> list[list[str]]:
    words = [re.findall(" [^ ]+", text) for text in documents]
    return [row[at : at + LONGEST] for row in words for at in range(0, len(row) - LONGEST + 1, LONGEST)]


WINDOWS = cut(corpus(documents=40, seed=99))
"""Windows of the whole grammar, which no explainer here is shown."""


class World:
    """The planted neurons, harvested on some documents."""

    def __init__(self, documents: Sequence[str]) -> None:
        self.subject = Subject(PLANTED.model, PLANTED.tokenizer, name="planted")
        self.store = Store(":memory:")
        self.windows = cut(documents)
        harvest(self.subject, [f"mlp.{LAYER}"], Corpus.of("planted", documents), self.store)
        self.features = self.store.features(f"planted:mlp.{LAYER}:0-{len(PLANTED.neurons) - 1}")
        self.explainer = RuleExplainer(self.subject)
        self._loader = EvidenceLoader(
            self.store, self.subject, open_harvested(self.store, self.subject, self.features[0].source, None)
        )

    @cached_property
    def columns(self) -> Mapping[Feature, Columns]:
        """What all neurons do on the background, from one pass."""
        return self._loader.columns(self.features)

    def batch(self, name: str) -> TrainBatch:
        return self._loader.train([self.store.evidence(self.features[NEURONS[name].index])], self.columns)

    def learned(self, name: str, observed: Observed) -> Explanation:
        batch = self.batch(name)
        return self.explainer.learn(batch.features[0], batch, observed, half=batch.features[0].statistics.peak / 2)

    def observed(self, name: str, rows: Sequence[Sequence[str]], pivots: Sequence[int]) -> Observed:
        index = {token: i for i, token in enumerate(self.subject.vocabulary)}
        ids = np.array([[index[word] for word in words] for words in rows])
        truths = [NEURONS[name].truth(words[: at + 1])[-1] for words, at in zip(rows, pivots, strict=True)]
        return Observed.at(ids, pivots, truths)

    def scan(self, name: str, *, carriers: int, offsets: Sequence[int] = OFFSETS, silent: bool = True) -> Observed:
        """The vocabulary at each offset, in windows where the neuron is active, nearly so, and silent."""
        rng, rows, pivots = random.Random(0), [], []
        for pool in pools(NEURONS[name], self.windows)[: 3 if silent else 1]:
            for row, at in rng.sample(pool, min(carriers, len(pool))):
                for offset in offsets:
                    for word in VOCABULARY:
                        rows.append([*self.windows[row][: at + offset], word, *self.windows[row][at + offset + 1 :]])
                        pivots.append(at)
        return self.observed(name, rows, pivots)


def pools(neuron: PlantedNeuron, windows: Sequence[Sequence[str]]) -> list[list[tuple[int, int]]]:
    """Pivots that are active; silent though other pivots of the same token are active; silent."""
    places = [(r, i, v > 0.3) for r, words in enumerate(windows) for i, v in enumerate(neuron.truth(words)) if i > 4]
    named = {windows[r][i] for r, i, active in places if active}
    active = [(r, i) for r, i, on in places if on]
    silent = [(r, i) for r, i, on in places if not on]
    return [active, [(r, i) for r, i in silent if windows[r][i] in named], silent]


def right(name: str, explanation: Explanation) -> float:
    """Agreement with the truth on edited windows of the whole grammar."""
    assert explanation.rule is not None, explanation.reason
    neuron = NEURONS[name]
    pairs = counterfactuals(neuron, WINDOWS, each=12)
    half = max(max(neuron.truth(words)) for words in WINDOWS) / 2
    return pair_accuracy(pairs, at_pivots(Rule.parse(explanation.rule), pairs), half=half)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World(PLANTED.corpus)
    yield made
    made.store.close()


@pytest.mark.parametrize("name", ANSWERED)
def test_scans_make_the_rule_right(world: World, name: str) -> None:
    observed = world.scan(name, carriers=2)
    explanation = world.learned(name, observed)
    assert right(name, explanation) >= 0.99, explanation.rule
    assert Rule.parse(explanation.rule or "").length() <= 12


def without(pattern: str, *, documents: int) -> list[str]:
    """Documents of the grammar in which a pattern does not occur."""
    return [text for text in corpus(documents=documents, seed=1) if not re.search(pattern, text)][:60]


RARE = [("river_not_dry", " dry river", -1), ("three_causes", " 7", 0), ("price", " €", -1)]


@pytest.mark.parametrize(("name", "pattern", "offset"), RARE)
def test_what_text_does_not_show_is_learned_from_scans(name: str, pattern: str, offset: int) -> None:
    """From scans at all offsets, and from one at the right offset in one window: one word of the vocabulary tells."""
    made = World(without(pattern, documents=500))
    assert right(name, made.learned(name, Observed.none(LONGEST))) < 0.95
    for observed in (made.scan(name, carriers=3), made.scan(name, carriers=1, offsets=(offset,), silent=offset == 0)):
        explanation = made.learned(name, observed)
        assert right(name, explanation) >= 0.99, explanation.rule
    made.store.close()


def test_without_experiments_it_is_what_explain_says(world: World) -> None:
    for name in ("three_causes", "never"):
        (explained,) = world.explainer.explain(world.batch(name))
        assert world.learned(name, Observed.none(LONGEST)) == explained


SPELLED = (" New", " Haven", " river", " a", " the", " cat")


def test_a_name_that_only_accompanies_the_cause_goes_once_it_is_measured_alone() -> None:
    """The cause is New before the token, whatever that is; in the text Haven stands after New and nowhere else."""
    text = np.random.default_rng(0).integers(2, len(SPELLED), size=(200, 12))
    text[::2, 5], text[::2, 6] = 0, 1
    scan = np.full((10, 12), 3)
    scan[:5, 6], scan[5:, 6] = 1, range(1, 6)
    scan[:5, 5], scan[5:, 5] = range(1, 6), 0
    activation = np.pad(text == 0, ((0, 0), (1, 0)))[:, :-1].astype(np.float32).ravel()
    held = np.repeat(np.arange(200) % 4 == 0, 12)
    sample = Sample(
        Windows(SPELLED, text[:150]),
        Windows(SPELLED, text[150:]),
        activation,
        np.where(held, 0, 1).astype(np.float32),
        held.astype(np.float32),
        SPELLED,
    )
    observed = Observed.at(scan, [6] * 10, [0.0] * 5 + [1.0] * 5)
    before = induce(sample, grow(sample, Growth()))
    assert before is not None and before.any[0].when == (Token(any=(" Haven",)),)
    windows = Windows(SPELLED, observed.ids)
    after = revise(sample, Growth(), observed, windows=windows, start=before, pivot_weight=1.0, half=0.5)
    assert after is not None
    assert [(clause.when, clause.unless) for clause in after.any] == [((Token(any=(" New",), at=-1),), ())]


def test_learning_again_does_not_run_the_subject(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    batch, observed = world.batch("price"), world.scan("price", carriers=1)
    first = world.explainer.learn(batch.features[0], batch, observed, half=batch.features[0].statistics.peak / 2)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the subject was run again")

    monkeypatch.setattr(world.subject, "read", refuse)
    assert (
        world.explainer.learn(batch.features[0], batch, observed, half=batch.features[0].statistics.peak / 2) == first
    )


def test_what_has_no_short_rule_is_told_as_far_as_it_can_be(world: World) -> None:
    learned = world.learned("noise", world.scan("noise", carriers=1))
    assert learned.rule is not None and can_be_told(Rule.parse(learned.rule))
    assert learned.predictor is not None and Rule.parse(learned.predictor).length() > 100
    assert count_words(learned.text or "") <= WORDS and count_words(learned.headline or "") <= HEADLINE


def test_disagreements_name_the_token_and_its_offset(world: World) -> None:
    observed = world.scan("river_not_dry", carriers=3)
    rule = Rule(any=(Clause(when=(Token(any=(" river",)),), value=1.0),))
    first, *_ = disagreements(rule, observed, vocabulary=world.subject.vocabulary, half=0.5)
    assert (first.token, first.offset, first.error) == (" dry", -1, pytest.approx(-1.0))
    assert first.wrong <= first.measured and len(first.rows) == first.wrong
    right = Rule(any=(Clause(when=(Token(any=(" river",)),), unless=(Token(any=(" dry",), at=-1),), value=1.0),))
    assert disagreements(right, observed, vocabulary=world.subject.vocabulary, half=0.5) == []


def test_what_cannot_be_learned_from_is_refused(world: World) -> None:
    with pytest.raises(NeuronautError, match="windows of 8 tokens .* measure in windows of 64"):
        world.learned("day", Observed.none(8))
    with pytest.raises(NeuronautError, match="not a finite number"):
        Observed.at(np.zeros((1, 4), np.int64), [2], [float("nan")])
    with pytest.raises(ValueError, match="wanted one"):
        Observed(np.zeros((1, 4), np.int64), np.zeros((1, 3), np.float32), np.zeros((1, 4), np.bool_))
