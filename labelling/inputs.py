"""Loads the evidence of features of one source, for explainers and for scorers.

Windows that features share are read once. The two sides never meet: `train` gives what explainers may see,
`holdouts` what scorers are given, from the holdout or, for choosing between explanations, from `select`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..data.harvest.activations import read_columns
from ..data.padding import pad_ids
from ..data.recorded import RecordedSource
from ..data.records import PARTS, Evidence, Explanation, Split
from ..data.store.reading import PoolWindow
from ..data.store.store import Store
from ..explainers.explainer import Background, TrainBatch, TrainEvidence
from ..rules.language import parse_rule
from ..scorers.holdout import Baselines, Holdout, build_holdouts, token_baselines
from ..scorers.scorer import Case
from ..subject.address import Feature
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source

BACKGROUND = 2048
"""Pool windows of the training split that explainers see at most."""
TUNE = 512
"""Pool windows of the tune split that explainers check their work on at most."""
RANDOM_WINDOWS = 256
"""Random windows of a judged split that scorers draw windows and substitute tokens from."""


def _background(windows: Sequence[PoolWindow], width: int, *, most: int) -> Background:
    """The first windows by digest, since the first of the corpus all come from its first few documents."""
    chosen = sorted(windows, key=lambda window: window.window)[:most]
    ids = pad_ids([window.ids for window in chosen], width=width)
    return Background(ids, [window.document for window in chosen], [window.window for window in chosen])


class EvidenceLoader:
    """Loads the evidence of features of one source for explainers and scorers."""

    def __init__(self, store: Store, subject: Subject, source: Source, *, seed: int = 0) -> None:
        self.store, self.subject, self.source, self._seed = store, subject, source, seed
        model = source.id.model
        pool = {split: store.pool_windows(model, split) for split in PARTS}
        if not pool["train"]:
            raise NeuronautError(f"no pool of {model} in the database; run: neuronaut harvest {model} {source.id.site}")
        width = max(len(window.ids) for windows in pool.values() for window in windows)
        self.background = _background(pool["train"], width, most=BACKGROUND)
        self.tune = _background(pool["tune"], width, most=TUNE)
        self._random: dict[Split, tuple[NDArray[np.int64], list[str]]] = {}

    def train(self, evidence: Sequence[Evidence]) -> TrainBatch:
        """Load the training side of some features."""
        features = [part.feature for part in evidence]
        width = self.background.ids.shape[1]
        if any(len(example.ids) > width for part in evidence for example in part.examples):
            raise NeuronautError(
                f"{self.source.id} was harvested in other windows than the pool of {self.source.id.model}, which has "
                f"windows of {width} tokens; harvest it again with --window {width}"
            )
        columns = [f.index for f in features]
        rows = np.concatenate([self.background.ids, self.tune.ids])
        activations = read_columns(self.subject, self.source, rows, columns)
        activations *= np.where([f.negative for f in features], -1, 1).astype(np.float32)
        train, tune = np.split(activations, [len(self.background.ids)])
        padding = int((self.background.ids < 0).sum())
        parts = [
            TrainEvidence(
                e.feature,
                e.statistics,
                e.train,
                train[:, :, i],
                padding=padding,
                tune=e.tune,
                tune_background=tune[:, :, i],
            )
            for i, e in enumerate(evidence)
        ]
        return TrainBatch(self.source, self.subject.vocabulary, self.background, parts, self.tune)

    def holdouts(self, evidence: Sequence[Evidence], *, split: Split = "holdout") -> dict[Feature, Holdout]:
        """Load what scorers are given of the same features: the holdout, or `select`."""
        examples = {e.feature: [example for example in e.examples if example.split == split] for e in evidence}
        peaks = {e.feature: e.statistics.peak for e in evidence}
        holdouts = build_holdouts(
            self.subject, self.source, examples, peaks, self._random_windows(split), seed=self._seed
        )
        return {holdout.feature: holdout for holdout in holdouts}

    def cases(
        self,
        batch: TrainBatch,
        explanations: Mapping[Feature, Explanation],
        holdouts: Mapping[Feature, Holdout],
        *,
        fall_back_to_store: bool = False,
    ) -> list[Case]:
        """Make the case of every explanation that has a text: the windows that it is judged on, and its baselines.

        The other explanation, for controls, is that of the next explained feature of the batch; where there is none
        and `fall_back_to_store`, one from the database: not reproducible while another process is labelling.
        """
        texts = [f for f, explanation in explanations.items() if explanation.text is not None]
        ruled = [f for f in texts if explanations[f].rule is not None]
        parts = {part.feature: part for part in batch.features}
        cases = []
        for feature in texts:
            other_rule = self._other(
                feature, ruled, explanations, with_rule=True, fall_back_to_store=fall_back_to_store
            )
            rule = parse_rule(other_rule.rule) if other_rule is not None and other_rule.rule else None
            baselines = Baselines(*token_baselines(parts[feature], batch), rule)
            other = self._other(feature, texts, explanations, with_rule=False, fall_back_to_store=fall_back_to_store)
            cases.append(Case(explanations[feature], holdouts[feature], baselines, other))
        return cases

    def _other(
        self,
        feature: Feature,
        explained: Sequence[Feature],
        explanations: Mapping[Feature, Explanation],
        *,
        with_rule: bool,
        fall_back_to_store: bool,
    ) -> Explanation | None:
        if feature in explained and len(explained) > 1:
            return explanations[explained[(explained.index(feature) + 1) % len(explained)]]
        return self.store.another_explanation(feature, with_rule=with_rule) if fall_back_to_store else None

    def _random_windows(self, split: Split) -> tuple[NDArray[np.int64], list[str]]:
        """Random windows of a split that no explainer was shown, with their digests."""
        if split not in self._random:
            model, background = self.source.id.model, set(self.background.digests)
            windows = sorted(self.store.pool_windows(model, split), key=lambda w: w.window)
            windows = [w for w in windows if w.window not in background][:RANDOM_WINDOWS]
            if not windows and not isinstance(self.source, RecordedSource):
                raise NeuronautError(f"the pool of {model} has no {split} window; harvest it on a larger corpus")
            ids = pad_ids([w.ids for w in windows], width=self.background.ids.shape[1])
            self._random[split] = ids, [w.window for w in windows]
        return self._random[split]
