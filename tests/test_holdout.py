"""Holdout sets: only holdout windows, their true values, and minimal pairs measured on the subject itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from neuronaut.data.codec import window_digest
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.activations import neurons, with_bos
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.records import Evidence, Explanation
from neuronaut.data.splits import assign
from neuronaut.data.store.store import Store
from neuronaut.labelling.inputs import EvidenceLoader
from neuronaut.rules.language import Clause, Rule
from neuronaut.scorers.detection import Detection
from neuronaut.scorers.holdout import PAIRS, Baselines, Holdout, build_holdouts
from neuronaut.scorers.scorer import Case
from neuronaut.scorers.simulation import RuleSimulator
from neuronaut.subject.address import Feature
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Source
from tests.planted import LAYER
from tests.planted import build as planted

WINDOW = 32


@dataclass(frozen=True)
class Made:
    subject: Subject
    source: Source
    store: Store
    loader: EvidenceLoader
    corpus: Corpus
    evidence: dict[Feature, Evidence]
    holdouts: dict[Feature, Holdout]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    model = planted(documents=40)
    subject = Subject(model.model, model.tokenizer, name="planted")
    corpus = Corpus.of("planted", model.corpus)
    (source,) = neurons(subject, [f"mlp.{LAYER}"])
    with Store(":memory:") as store:
        harvest(subject, [source, f"mlp_out.{LAYER}"], corpus, store, window=WINDOW)
        loader = EvidenceLoader(store, subject, source)
        features = store.features(f"planted:mlp.{LAYER}:0,2,3,6")
        evidence = {feature: store.evidence(feature) for feature in features}
        yield Made(subject, source, store, loader, corpus, evidence, loader.holdouts(list(evidence.values())))


def forward(made: Made, ids: np.ndarray, source: Source, index: int) -> np.ndarray:
    """(row, position), one window at a time."""
    rows = [made.subject.read(with_bos(made.subject, row[None]), [source.id.site])[source.id.site] for row in ids]
    return np.concatenate([row[:, 1:, index].numpy() for row in rows])


def test_true_values_are_the_subjects_own(made: Made) -> None:
    for feature, holdout in made.holdouts.items():
        assert set(holdout.sets) == {"top_random", "quantile", "counterfactual"}
        for windows in holdout.sets.values():
            assert len(windows.ids)
            actual = windows.at(forward(made, windows.ids, made.source, feature.index))
            padding = windows.at(windows.ids) < 0
            assert (np.isnan(windows.true) == padding).all()
            assert np.allclose(windows.true[~padding], actual[~padding], rtol=2e-3, atol=1e-3)
    assert any((w.ids < 0).any() for holdout in made.holdouts.values() for w in holdout.sets.values())


def test_only_holdout_windows_are_scored(made: Made) -> None:
    splits = assign(made.corpus)
    ordinals = {document.name: ordinal for ordinal, document in made.corpus}
    held = {w.window: w for w in made.store.pool_windows("planted", "holdout")}
    for feature, holdout in made.holdouts.items():
        own = {e.window: e for e in made.evidence[feature].holdout}
        seen = {e.window for e in made.evidence[feature].train} | set(made.loader.background.digests)
        for windows in holdout.sets.values():
            assert set(windows.digests) <= own.keys() | held.keys()
            assert not seen & set(windows.digests)
            for digest in windows.digests:
                document = own[digest].document if digest in own else held[digest].document
                assert splits.split(ordinals[document]) == 2


def test_each_window_is_scored_once_and_named_by_its_digest(made: Made) -> None:
    for holdout in made.holdouts.values():
        for name in ("top_random", "quantile"):
            windows = holdout.sets[name]
            assert tuple(window_digest(ids[ids >= 0].astype(np.int32)) for ids in windows.ids) == windows.digests
            assert len(set(windows.digests)) == len(windows.digests)
            assert windows.true.shape == windows.ids.shape


def test_the_top_and_as_many_random_windows(made: Made) -> None:
    for feature, holdout in made.holdouts.items():
        top = [e for e in made.evidence[feature].holdout if e.kind == "top"]
        windows = holdout.sets["top_random"]
        assert windows.digests[: len(top)] == tuple(e.window for e in top)
        assert len(top) < len(windows.digests) <= 2 * len(top)
        assert np.nanmax(windows.true[: len(top)]) == top[0].peak


def test_a_top_window_that_the_uniform_sample_holds_too_stays_a_top_one(made: Made) -> None:
    both = 0
    for feature, holdout in made.holdouts.items():
        kinds = {
            kind: {e.window for e in made.evidence[feature].holdout if e.kind == kind} for kind in ("top", "quantile")
        }
        assert {e.window for e in holdout.examples if e.kind == "top"} == kinds["top"]
        assert len({e.window for e in holdout.examples}) == len(holdout.examples)
        both += len(kinds["top"] & kinds["quantile"])
    assert both > 0


def test_random_windows_come_from_many_documents(made: Made) -> None:
    """The first windows of the pool all lie in its first documents."""
    documents = {w.window: w.document for w in made.store.pool_windows("planted", "holdout")}
    _, digests = made.loader._random_windows("holdout")
    assert len({documents[digest] for digest in digests}) >= 8


def test_a_pair_is_an_original_and_its_edit_at_one_pivot(made: Made) -> None:
    for feature, holdout in made.holdouts.items():
        windows = holdout.sets["counterfactual"]
        n = len(windows.true)
        assert n > PAIRS / 2
        assert windows.true.shape == (n, 2)
        originals, edited = windows.ids[:n], windows.ids[n:]
        assert (windows.rows == np.stack([np.arange(n), np.arange(n) + n], axis=1)).all()
        assert (windows.positions[:, 0] == windows.positions[:, 1]).all()
        assert (originals != edited).any(axis=1).all()
        own = {e.ids.tobytes(): e for e in made.evidence[feature].holdout}
        for ids, pivot, true in zip(originals, windows.positions[:, 0], windows.true[:, 0], strict=True):
            assert own[ids[ids >= 0].tobytes()].activations[pivot] == true
        assert not {ids.tobytes() for ids in edited} & own.keys()
        # An edit matters for some pairs and not for others: both are needed to tell rules apart.
        flipped = (windows.true > holdout.peak / 2).sum(axis=1) == 1
        assert 0 < flipped.sum() < n


def test_the_negative_tail_is_turned_round(made: Made) -> None:
    (source,) = neurons(made.subject, [f"mlp_out.{LAYER}"])
    troughs = [made.store.evidence(Feature(source.id, i)).statistics.trough for i in range(source.width)]
    index = int(np.argmin(troughs))
    feature = Feature(source.id, index, negative=True)
    evidence = made.store.evidence(feature)
    holdout = EvidenceLoader(made.store, made.subject, source).holdouts([evidence])[feature]
    assert holdout.peak == evidence.statistics.peak > 0
    for name in ("top_random", "counterfactual"):
        windows = holdout.sets[name]
        actual = -windows.at(forward(made, windows.ids, source, index))
        assert np.allclose(windows.true, actual, rtol=2e-3, atol=holdout.peak / 500)
    assert holdout.sets["top_random"].true.max() > holdout.peak / 2


def test_without_examples_the_sets_are_empty(made: Made) -> None:
    feature = next(iter(made.evidence))
    ids = np.stack([w.ids for w in made.store.pool_windows("planted", "holdout")[:4]]).astype(np.int64)
    digests = [window_digest(row.astype(np.int32)) for row in ids]
    drawn = {feature: np.zeros(ids.shape, np.float32)}
    (holdout,) = build_holdouts(
        made.subject, made.source, {feature: ()}, {feature: 1.0}, (ids, digests), drawn=drawn, seed=0
    )
    assert [len(windows.ids) for windows in holdout.sets.values()] == [0, 0, 0]


def test_minimal_pairs_are_run_when_a_scorer_reads_them_and_once_for_all_features(made: Made) -> None:
    rows: list[int] = []
    read = made.subject.read

    def counting(ids: torch.Tensor, *args: Any, **options: Any) -> Any:
        rows.append(len(ids))
        return read(ids, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.subject, "read", counting)
        holdouts = made.loader.holdouts(list(made.evidence.values()))
        natural = sum(rows)
        for holdout in holdouts.values():
            assert Detection().quiz(holdout).questions and len(holdout.sets) == 3
            rule = Explanation(holdout.feature, "x", "rule", rule=Rule(any=(Clause(value=1.0),)).to_json())
            case = Case(rule, holdout, Baselines(*(np.zeros(len(holdout.vocabulary), np.float32),) * 2, None))
            assert {part.examples for part in RuleSimulator(pairs=False).judge(case)} == {"top_random", "quantile"}
        assert sum(rows) == natural
        assert len(next(iter(holdouts.values())).sets["counterfactual"].true)
        measured = sum(rows)
        assert measured > natural
        assert all(len(holdout.sets["counterfactual"].ids) for holdout in holdouts.values())
        assert sum(rows) == measured
