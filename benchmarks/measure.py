"""Explains and scores features as `label` does, stores nothing, and keeps the cost.

`Bigrams` shows for orientation what two tokens of context are worth, however long the table: the mean activation of
every (previous token, token) that the training side holds, drawn towards the token table where it occurs rarely. It
is as long as the corpus is wide, so it is no explanation.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data.padding import pad_activations, pad_ids
from ..data.records import Explanation
from ..data.store.store import Store
from ..explainers.explainer import TrainBatch, TrainEvidence
from ..explainers.rule import RuleExplainer
from ..labelling.agenda import Agenda, Item, Judge
from ..labelling.inputs import EvidenceLoader
from ..labelling.label import LabelJob, run_tasks
from ..rules.english import count_words
from ..rules.language import Rule
from ..scorers.holdout import Holdout, ScoredWindows
from ..scorers.metrics import correlation
from ..scorers.simulation import RuleSimulator
from ..subject.address import Feature, Selection, SourceId, harvest_command
from ..subject.errors import NeuronautError
from ..subject.model import Subject


@dataclass(frozen=True, slots=True)
class Labelled:
    """One feature's label and its scores."""

    feature: str
    group: str
    """The source without the model, for example "mlp.2" or "resid_post.2@sae"."""
    status: str
    text: str | None
    words: int | None
    length: int | None
    """Rule.length(): conditions, token strings and gains."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """By "set metric", and the baselines' correlations by "set baseline"."""


@dataclass(slots=True)
class Costs:
    """Seconds by stage, and the part of them in the subject's forwards."""

    stages: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    forwards: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _stage: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        self._stage, start = name, time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] += time.perf_counter() - start

    @contextmanager
    def watching(self, subject: Subject) -> Iterator[None]:
        """Time every forward of the subject."""
        with (
            patch.object(subject, "read", self._timing(subject.read)),
            patch.object(subject, "read_endings", self._timing(subject.read_endings)),
        ):
            yield

    def _timing(self, forward: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        def timed(*args: object, **options: object) -> dict[str, Tensor]:
            start = time.perf_counter()
            vectors = forward(*args, **options)
            self.forwards[self._stage] += time.perf_counter() - start
            return vectors

        return timed


def choose(store: Store, model: str, *, neurons: int, latents: int, seed: int = 0) -> list[Feature]:
    """Random alive features: neurons from every `mlp` site alike, latents from every dictionary alike."""
    sources = [SourceId.parse(row["source"]) for row in store.sources() if row["model"] == model]
    layers = [source for source in sources if source.dictionary is None and source.site.startswith("mlp.")]
    dictionaries = [source for source in sources if source.dictionary is not None]
    if not layers and not dictionaries:
        raise NeuronautError(
            f"no neurons and no dictionary of {model} in the database; run: {harvest_command(model, 'mlp.0')}"
        )
    chosen: list[Feature] = []
    for group, count in ((layers, neurons), (dictionaries, latents)):
        for rank, source in enumerate(group):
            share = count // len(group) + (rank < count % len(group))
            chosen += store.resolve(Selection(source, "random", count=share), seed=seed) if share else []
    return chosen


def measure(features: Sequence[Feature], store: Store, subject: Subject, costs: Costs) -> Iterator[Labelled]:
    """Explain and score features, sources in turn, as `label` does, but store nothing."""
    explainer, scorer = RuleExplainer(subject), RuleSimulator()
    job = LabelJob(store, subject, [scorer], None, {}, explainer=explainer)
    agenda = Agenda(features, set(), job.explained_before, job.open_loader, lambda *_: None)
    items = agenda.items()
    with costs.watching(subject):
        while (item := _next_item(items, costs)) is not None:
            if isinstance(item, Judge):
                yield _labelled(
                    item.explanation, _score(item, job.open_loader(item.work.feature.source), scorer, costs)
                )
                continue
            with costs.stage("explain"):
                (explanation,) = next(run_tasks([job.explain([item])], None))
            agenda.add_explanation(explanation)
            if explanation.text is None:
                yield _labelled(explanation, {})


def _next_item(items: Iterator[Item | None], costs: Costs) -> Item | None:
    with costs.stage("shared windows"):
        return next(items, None)


def _score(item: Judge, loader: EvidenceLoader, scorer: RuleSimulator, costs: Costs) -> dict[str, float | None]:
    feature, evidence = item.work.feature, item.work.evidence
    columns = {feature: item.work.columns}
    with costs.stage("holdout"):
        holdouts = loader.holdouts([evidence], columns)
    with costs.stage("baselines"):
        batch = loader.train([evidence], columns)
        (case,) = loader.cases(batch, {feature: item.explanation}, holdouts, {feature: item.control})
    values: dict[str, float | None] = {}
    with costs.stage("score"):
        scores = scorer.score(item.explanation, case.holdout, case.baselines)
    for score in scores:
        values[f"{score.examples} {score.metric}"] = score.value
        if score.metric == "correlation":
            values |= {f"{score.examples} {name}": value for name, value in score.baselines.items()}
    assert case.baselines is not None, "the background was read"
    return values | _bigram_scores(batch.features[0], batch, case.holdout, case.baselines.token_table)


def _labelled(explanation: Explanation, scores: Mapping[str, float | None]) -> Labelled:
    rule = Rule.parse(explanation.rule) if explanation.rule else None
    group = str(explanation.feature.source).partition(":")[2]
    return Labelled(
        feature=str(explanation.feature),
        group=group,
        status=explanation.status,
        text=explanation.text or explanation.reason,
        words=count_words(explanation.text or "") if rule else None,
        length=rule.length() if rule else None,
        scores=scores,
    )


def _bigram_scores(
    evidence: TrainEvidence, batch: TrainBatch, holdout: Holdout, table: NDArray[np.float32]
) -> dict[str, float | None]:
    bigrams = Bigrams.of(evidence, batch, table)
    return {
        f"{name} bigram_table": correlation(
            np.nan_to_num(windows.true), bigrams.predict(windows), ~np.isnan(windows.true)
        ).value
        if len(windows.ids)
        else None
        for name, windows in holdout.sets.items()
    }


BACK_OFF = 2.0
"""Occurrences with which a bigram's mean is drawn towards its token's."""


class Bigrams(NamedTuple):
    """Mean activation by (previous token, token), backing off to the token alone; V is the vocabulary's size."""

    keys: NDArray[np.int64]
    """Sorted, previous * (V + 1) + token; V as the previous token is the start of a window."""
    values: NDArray[np.float64]
    """Mean of the bigram less its token's, shape of the keys."""
    table: NDArray[np.float32]
    """By token, (V,)."""

    @classmethod
    def of(cls, evidence: TrainEvidence, batch: TrainBatch, table: NDArray[np.float32]) -> "Bigrams":
        """From the background and the training examples, each window once: the token table's own data."""
        natural = [e for e in {e.window: e for e in evidence.examples}.values() if e.kind != "bottom"]
        width = batch.background.ids.shape[1]
        ids = np.concatenate([batch.background.ids, pad_ids([e.ids for e in natural], width=width)])
        own = pad_activations([e.activations for e in natural], width=width)
        real = ids >= 0
        activations = np.concatenate([evidence.background, own])[real]
        keys, at = np.unique(_bigram_keys(ids, len(table))[real], return_inverse=True)
        residual = np.bincount(at.ravel(), activations - table[ids[real]])
        return cls(keys, residual / (np.bincount(at.ravel()) + BACK_OFF), table)

    def predict(self, windows: ScoredWindows) -> NDArray[np.float32]:
        """Predictions at the scored tokens, (unit, token)."""
        keys = _bigram_keys(windows.ids, len(self.table))
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        residual = np.where(self.keys[at] == keys, self.values[at], 0.0)
        return windows.at((self.table[windows.ids] + residual).astype(np.float32))


def _bigram_keys(ids: NDArray[np.integer], size: int) -> NDArray[np.int64]:
    before = np.full(ids.shape, size, np.int64)
    before[:, 1:] = ids[:, :-1]
    return before * (size + 1) + ids
