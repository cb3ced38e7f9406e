"""Loads the evidence of features of one source, for explainers and for scorers.

Windows that all features share are run through the subject once for many features (`columns`); what is read later is
of one feature alone. The two sides never meet: `train` gives what explainers may see, `holdouts` what scorers are
given, from the holdout or, for choosing between explanations, from `select`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.harvest.activations import read_columns, rows_of
from ..data.padding import pad_ids
from ..data.recorded import RecordedSource
from ..data.records import PARTS, Evidence, Explanation, Split
from ..data.store.reading import PoolWindow
from ..data.store.store import Store
from ..explainers.explainer import Background, TrainBatch, TrainEvidence
from ..rules.language import parse_rule
from ..scorers.holdout import DRAWN, Baselines, Holdout, build_holdouts, token_baselines
from ..scorers.scorer import Case
from ..subject.address import Feature, harvest_command
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source

BACKGROUND = 2048
"""Pool windows of the training split that explainers see at most."""
TUNE = 512
"""Pool windows of the tune split that explainers check their work on at most."""
RANDOM_WINDOWS = 256
"""Random windows of a judged split that scorers draw windows and substitute tokens from."""
JUDGED: tuple[Split, ...] = ("holdout", "select")
"""The splits that explanations are judged on."""

OnProgress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it, and of how much."""


class Columns(NamedTuple):
    """One feature's activations on the windows that all features share, sign-flipped for a negative tail.

    Each (row, position), 0 on padding.
    """

    train: NDArray[np.float32]
    """On `EvidenceLoader.background`."""
    tune: NDArray[np.float32]
    """On `EvidenceLoader.tune`."""
    random: Mapping[Split, NDArray[np.float32]]
    """On the first random windows of each judged split, which only scorers are given; empty for a split without any."""


class Control(NamedTuple):
    """The other explanation, for controls: of another feature of the source."""

    explanation: Explanation | None = None
    """One with a text; None where there is none."""
    rule: str | None = None
    """A rule as JSON; None where there is none."""


NO_CONTROL = Control()


def _shift(on_progress: OnProgress, before: int, total: int, rows: int) -> None:
    on_progress("background windows", before + rows, total)


def _background(windows: Sequence[PoolWindow], width: int, *, most: int) -> Background:
    """The first windows by digest, since the first of the corpus all come from its first few documents."""
    chosen = sorted(windows, key=lambda window: window.window)[:most]
    ids = pad_ids([window.ids for window in chosen], width=width)
    return Background(ids, [window.document for window in chosen], [window.window for window in chosen])


class EvidenceLoader:
    """Loads the evidence of features of one source for explainers and scorers."""

    def __init__(
        self, store: Store, subject: Subject, source: Source, *, seed: int = 0, background: bool = True
    ) -> None:
        """Without a `background` nothing can be explained, and cases have no baselines: these are learned from it."""
        self.store, self.subject, self.source, self._seed = store, subject, source, seed
        model = source.id.model
        pool = {split: store.pool_windows(model, split) for split in PARTS}
        if not pool["train"]:
            raise NeuronautError(f"no pool of {model} in the database; run: {harvest_command(model, source.id.site)}")
        width = max(len(window.ids) for windows in pool.values() for window in windows)
        self.background = _background(pool["train"], width, most=BACKGROUND if background else 0)
        self.tune = _background(pool["tune"], width, most=TUNE if background else 0)
        self._random: dict[Split, tuple[NDArray[np.int64], list[str]]] = {}

    def evidence(self, feature: Feature) -> Evidence:
        """Read a feature's evidence; NeuronautError where its windows are longer than those of the pool."""
        evidence, width = self.store.evidence(feature), self.background.ids.shape[1]
        if any(len(example.ids) > width for example in evidence.examples):
            raise NeuronautError(
                f"{self.source.id} was harvested in other windows than the pool of {self.source.id.model}, which has "
                f"windows of {width} tokens; harvest it again with --window {width}"
            )
        return evidence

    def columns(self, features: Sequence[Feature], *, on_progress: OnProgress | None = None) -> dict[Feature, Columns]:
        """Run the windows that all features share through the subject, once for all of these features.

        What `on_progress` raises ends it.
        """
        shared = {"train": self.background.ids, "tune": self.tune.ids}
        shared |= {split: self._random_windows(split)[0][:DRAWN] for split in JUDGED}
        total, read = sum(map(len, shared.values())), dict[str, NDArray[np.float32]]()
        for name, ids in shared.items():
            before = sum(part.shape[1] for part in read.values())
            read[name] = self._read(ids, features, on_progress and partial(_shift, on_progress, before, total))
        return {
            feature: Columns(read["train"][i], read["tune"][i], {split: read[split][i] for split in JUDGED})
            for i, feature in enumerate(features)
        }

    def _read(
        self, ids: NDArray[np.int64], features: Sequence[Feature], on_rows: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Activations on windows, (feature, row, position): a feature's own lie together in memory."""
        indices = [feature.index for feature in features]
        signs = np.where([feature.negative for feature in features], -1, 1).astype(np.float32)
        read = np.empty((len(features), *ids.shape), np.float32)
        rows = rows_of(self.subject, ids)
        for start in range(0, len(ids), rows):
            if on_rows is not None:
                on_rows(start)
            part = read_columns(self.subject, self.source, ids[start : start + rows], indices) * signs
            read[:, start : start + len(part)] = part.transpose(2, 0, 1)
        return read

    def train(self, evidence: Sequence[Evidence], columns: Mapping[Feature, Columns] | None = None) -> TrainBatch:
        """Load the training side of some features; `columns` are theirs where they are read already."""
        if columns is None:
            features = [part.feature for part in evidence]
            both = zip(self._read(self.background.ids, features), self._read(self.tune.ids, features), strict=True)
            columns = {feature: Columns(*read, {}) for feature, read in zip(features, both, strict=True)}
        padding = int((self.background.ids < 0).sum())
        parts = [
            TrainEvidence(
                e.feature,
                e.statistics,
                e.train,
                columns[e.feature].train,
                padding=padding,
                tune=e.tune,
                tune_background=columns[e.feature].tune,
            )
            for e in evidence
        ]
        return TrainBatch(self.source, self.subject.vocabulary, self.background, parts, self.tune)

    def holdouts(
        self,
        evidence: Sequence[Evidence],
        columns: Mapping[Feature, Columns] | None = None,
        *,
        split: Split = "holdout",
        peaks: Mapping[Feature, float] | None = None,
    ) -> dict[Feature, Holdout]:
        """Load what scorers are given of the same features: the holdout, or `select`.

        A feature fires from half of its peak on, or of what stands for it in `peaks`.
        """
        random = self._require_random(split)
        if columns is None:
            features = [part.feature for part in evidence]
            drawn = dict(zip(features, self._read(random[0][:DRAWN], features), strict=True))
        else:
            drawn = {part.feature: columns[part.feature].random[split] for part in evidence}
        holdouts = build_holdouts(
            self.subject,
            self.source,
            {e.feature: [example for example in e.examples if example.split == split] for e in evidence},
            peaks or {e.feature: e.statistics.peak for e in evidence},
            random,
            drawn=drawn,
            seed=self._seed,
        )
        return {holdout.feature: holdout for holdout in holdouts}

    def cases(
        self,
        batch: TrainBatch,
        explanations: Mapping[Feature, Explanation],
        holdouts: Mapping[Feature, Holdout],
        controls: Mapping[Feature, Control] | None = None,
    ) -> list[Case]:
        """Make the case of every explanation that has a text: the windows that it is judged on, and its baselines.

        Without `controls` no other feature's explanation is judged beside it.
        """
        cases = []
        for part in batch.features:
            explanation = explanations.get(part.feature)
            if explanation is None or explanation.text is None:
                continue
            control = (controls or {}).get(part.feature, NO_CONTROL)
            rule = parse_rule(control.rule) if control.rule else None
            baselines = Baselines(*token_baselines(part, batch), rule) if len(batch.background.ids) else None
            cases.append(Case(explanation, holdouts[part.feature], baselines, control.explanation))
        return cases

    def stored_control(self, feature: Feature) -> Control:
        """Another feature's explanation from the database: not reproducible while another process is labelling."""
        explanation = self.store.another_explanation(feature, with_rule=False)
        ruled = self.store.another_explanation(feature, with_rule=True)
        return Control(explanation, ruled and ruled.rule)

    def _require_random(self, split: Split) -> tuple[NDArray[np.int64], list[str]]:
        ids, digests = self._random_windows(split)
        if not digests and not isinstance(self.source, RecordedSource):
            raise NeuronautError(
                f"the pool of {self.source.id.model} has no {split} window; harvest it on a larger corpus"
            )
        return ids, digests

    def _random_windows(self, split: Split) -> tuple[NDArray[np.int64], list[str]]:
        """Random windows of a split that no explainer was shown, with their digests."""
        if split not in self._random:
            background = set(self.background.digests)
            windows = sorted(self.store.pool_windows(self.source.id.model, split), key=lambda w: w.window)
            windows = [w for w in windows if w.window not in background][:RANDOM_WINDOWS]
            ids = pad_ids([w.ids for w in windows], width=self.background.ids.shape[1])
            self._random[split] = ids, [w.window for w in windows]
        return self._random[split]
