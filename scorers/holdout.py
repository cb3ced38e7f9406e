"""Builds the windows that explanations are scored on, and the baselines that they are compared with.

The windows are of the holdout, with the subject's own activations, in three sets. top_random: the feature's
highest-peaking holdout windows and as many random ones. quantile: a uniform sample of the holdout windows in which it
is active. counterfactual: minimal pairs made from holdout windows (data/counterfactual.py) and run through the
subject; only the pivot tokens of the original and of the edited window count. The sets are kept apart: each answers
another question. What has to be run through the subject for it, the minimal pairs, is run when a scorer first
reads the set, for all features of the batch at once: judges of natural text do not pay for it.

The baselines are learned from the same training side as the explanation itself. token_rule: the best rule that names
one token and its mean activation. token_table: the mean activation of every token of the vocabulary, the ceiling of
what can be said without context. other_rule: another feature's rule, whose score any rule would get.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from ..data.counterfactual import Pair, minimal_pairs
from ..data.harvest.activations import read_pivots
from ..data.padding import pad_activations, pad_ids
from ..data.recorded import RecordedSource
from ..data.records import Example
from ..explainers.explainer import TrainBatch, TrainEvidence
from ..rules.language import Rule
from ..subject.address import Feature
from ..subject.model import Subject
from ..subject.sources import Source

PAIRS = 64
"""Minimal pairs per feature."""
DRAWN = 32
"""Random windows whose activations are read; as many of them are scored as there are top windows."""


@dataclass(frozen=True, slots=True)
class ScoredWindows:
    """Windows to predict, and their tokens that are scored. A unit is what the bootstrap resamples."""

    ids: NDArray[np.int64]
    """Token ids, (row, position)."""
    true: NDArray[np.float32]
    """The subject's activations at the scored tokens, (unit, token); NaN where a shorter unit has none."""
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    """Where each scored token stands in `ids`, both (unit, token)."""
    digests: tuple[str, ...]
    """Digests of the corpus windows involved."""

    def at(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pick the scored tokens out of values, (row, position) -> (unit, token)."""
        return values[self.rows, self.positions]


class LazySets(Mapping[str, ScoredWindows]):
    """Sets by name, each made when it is first read."""

    def __init__(self, makers: Mapping[str, Callable[[], ScoredWindows]]) -> None:
        self._makers = {name: cache(make) for name, make in makers.items()}

    def __getitem__(self, name: str) -> ScoredWindows:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True, slots=True)
class Holdout:
    """One feature's holdout sets, by name."""

    feature: Feature
    peak: float
    vocabulary: tuple[str, ...]
    sets: Mapping[str, ScoredWindows]
    examples: tuple[Example, ...] = ()
    """All its windows with activations, each once, for judges that choose their own: those of the sets that are
    natural text, random ones (kind "random"), silent ones and near misses."""


def build_holdouts(
    subject: Subject,
    source: Source,
    examples: Mapping[Feature, Sequence[Example]],
    peaks: Mapping[Feature, float],
    random: tuple[NDArray[np.int64], Sequence[str]],
    *,
    drawn: Mapping[Feature, NDArray[np.float32]],
    seed: int,
) -> list[Holdout]:
    """Build the holdout sets of several features of one source, in shared forwards.

    `examples` are the store's holdout examples; `random` are random holdout windows, ids (row, position)
    and digests, that no explainer was shown; substitutes for minimal pairs come from them, too. `drawn` are each
    feature's activations on the first DRAWN of them, (row, position), sign-flipped for a negative tail.
    """
    features = list(examples)
    signs = {feature: -1.0 if feature.negative else 1.0 for feature in features}
    ids, digests = random
    pair_sets = cache(partial(_measure_pairs, subject, source, examples, peaks, signs, ids=ids, seed=seed))
    holdouts = []
    for feature in features:
        kinds = {kind: [e for e in examples[feature] if e.kind == kind] for kind in ("top", "quantile")}
        n = len(kinds["top"])
        top = {e.window for e in kinds["top"]}
        values = drawn[feature]
        real = [row[row >= 0] for row in ids[:DRAWN]]
        random_windows = [
            (row, values[i, : len(row)], digests[i]) for i, row in enumerate(real) if digests[i] not in top
        ]
        random_windows = random_windows[:n]
        tops, quantiles = ([(e.ids, e.activations, e.window) for e in kinds[kind]] for kind in ("top", "quantile"))
        sets = LazySets(
            {
                "top_random": partial(_score_whole_windows, [*tops, *random_windows], ids.shape[1]),
                "quantile": partial(_score_whole_windows, quantiles, ids.shape[1]),
                "counterfactual": lambda feature=feature: pair_sets()[feature],
            }
        )
        # A window of several kinds is a top one first, then a random one: each of these sets must be whole.
        order = (*examples[feature], *_as_examples(random_windows, subject.vocabulary), *kinds["top"])
        windows = {e.window: e for e in order}
        holdouts.append(Holdout(feature, peaks[feature], subject.vocabulary, sets, tuple(windows.values())))
    return holdouts


def _as_examples(random_windows: Sequence[tuple[NDArray, NDArray, str]], vocabulary: tuple[str, ...]) -> list[Example]:
    """Make examples of random windows, each (token ids, activations, digest)."""
    return [
        Example(
            tokens=tuple(vocabulary[i] for i in ids),
            ids=ids,
            activations=values,
            kind="random",
            split="holdout",
            document="",
            window=digest,
        )
        for ids, values, digest in random_windows
    ]


def _measure_pairs(
    subject: Subject,
    source: Source,
    examples: Mapping[Feature, Sequence[Example]],
    peaks: Mapping[Feature, float],
    signs: Mapping[Feature, float],
    *,
    ids: NDArray[np.int64],
    seed: int,
) -> dict[Feature, ScoredWindows]:
    """Make the minimal pairs of every feature and run them through the subject; recorded evidence has none."""
    if isinstance(source, RecordedSource):
        examples = dict.fromkeys(examples, ())
    pairs = {
        feature: minimal_pairs(own, peak=peaks[feature], corpus=ids, count=PAIRS, seed=seed + 1, causal=subject.causal)
        for feature, own in examples.items()
    }
    width = ids.shape[1]
    edited = _measure(subject, source, pairs, signs, width=width)
    return {feature: _score_pivots(examples[feature], pairs[feature], edited[feature], width) for feature in examples}


def _measure(
    subject: Subject,
    source: Source,
    pairs: Mapping[Feature, Sequence[Pair]],
    signs: Mapping[Feature, float],
    *,
    width: int,
) -> dict[Feature, NDArray[np.float32]]:
    """Measure each feature at the pivots of its own edited windows, (pair,)."""
    rows = [(feature, pair) for feature, feature_pairs in pairs.items() for pair in feature_pairs]
    activations = read_pivots(
        subject,
        source,
        pad_ids([pair.tokens for _, pair in rows], width=width),
        np.array([pair.pivot for _, pair in rows], np.int64),
        np.array([feature.index for feature, _ in rows], np.int64),
    )
    activations *= np.array([signs[feature] for feature, _ in rows], np.float32)
    counts = np.cumsum([len(feature_pairs) for feature_pairs in pairs.values()])[:-1]
    return dict(zip(pairs, np.split(activations, counts), strict=True))


def _score_whole_windows(windows: list[tuple[NDArray, NDArray, str]], width: int) -> ScoredWindows:
    """Score every token of every window; a window is a unit."""
    ids = pad_ids([w[0] for w in windows], width=width)
    true = np.where(ids >= 0, pad_activations([w[1] for w in windows], width=width), np.float32(np.nan))
    places = np.indices(ids.shape)
    return ScoredWindows(ids, true, places[0], places[1], tuple(w[2] for w in windows))


def _score_pivots(
    examples: Sequence[Example], pairs: Sequence[Pair], edited: NDArray[np.float32], width: int
) -> ScoredWindows:
    """Score the pivots of the original and of the edited window; a pair is a unit."""
    n = len(pairs)
    if not n:
        return _score_whole_windows([], width)
    pivots = np.array([pair.pivot for pair in pairs])
    originals = [examples[pair.example] for pair in pairs]
    true = np.array(
        [[e.activations[p], value] for e, value, p in zip(originals, edited, pivots, strict=True)], np.float32
    )
    ids = pad_ids([*(e.ids for e in originals), *(pair.tokens for pair in pairs)], width=width)
    rows = np.stack([np.arange(n), np.arange(n) + n], axis=1)
    return ScoredWindows(
        ids, true, rows, np.stack([pivots, pivots], axis=1), tuple(dict.fromkeys(e.window for e in originals))
    )


@dataclass(frozen=True, slots=True)
class Baselines:
    """The predictions of the baselines for one feature."""

    token_rule: NDArray[np.float32]
    token_table: NDArray[np.float32]
    """Predicted activation by token id, both (vocabulary,)."""
    other_rule: Rule | None
    """None where no other feature of the batch was explained."""


def token_baselines(evidence: TrainEvidence, batch: TrainBatch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Learn (token_rule, token_table), both (vocabulary,), from the background and the training examples."""
    size = len(batch.vocabulary)
    natural = [e for e in {e.window: e for e in evidence.examples}.values() if e.kind != "bottom"]
    real = batch.background.ids >= 0
    ids = np.concatenate([batch.background.ids[real], *(e.ids for e in natural)])
    activations = np.concatenate([evidence.background[real], *(e.activations for e in natural)]).astype(np.float64)
    mean = float(activations.mean())
    counts = np.bincount(ids, minlength=size)
    sums = np.bincount(ids, activations - mean, minlength=size)
    table = mean + sums / np.maximum(counts, 1)
    best = int(np.argmax(np.where(sums > 0, sums**2 / np.maximum(counts, 1), -1)))
    rest = (activations.sum() - counts[best] * table[best]) / max(len(ids) - counts[best], 1)
    rule = np.full(size, rest)
    rule[best] = table[best]
    return rule.astype(np.float32), table.astype(np.float32)
