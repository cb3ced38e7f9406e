"""Pairs that only differ in their context: half of them change the feature's level at the pivot, half do not.

Random edits rarely touch what an exception or a second condition hangs on, and natural text shows it even more rarely.
So the subject is asked: in a few holdout windows, places where the feature fires and places where the same token
leaves it silent, every token of the vocabulary (the commonest and others, of a large one) is put right before the
pivot, and some further back. Of what comes out, all edits that flip the level are kept, of every token put in at
most a few, and as many that do not. An explanation that misses what they flip by is at chance here, however good it
is on text. The generator knows the feature, and neither an explanation nor a transcript.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...data.harvest.activations import read_last
from ...data.padding import pad_ids
from ...data.records import Example
from ...scorers.holdout import ScoredWindows
from ...subject.address import Feature
from ...subject.model import Subject
from ...subject.sources import Source

CARRIERS = 4
"""Windows of each sort that are edited."""
NEAREST, FURTHER = 200, 32
"""Tokens that are put right before the pivot, and at each of the other offsets."""
BACK = (2, 3, 4)
PAIRS = 32
"""Flips at most, and as many others."""
SAME = 3
"""Flips by the same token at the same offset, at most."""

Ids = NDArray[np.int64]


class _Place(NamedTuple):
    example: Example
    pivot: int
    active: bool


class _Edit(NamedTuple):
    place: _Place
    ids: Ids
    token: int
    back: int


def context_pairs(
    subject: Subject,
    source: Source,
    feature: Feature,
    examples: Sequence[Example],
    *,
    peak: float,
    corpus: NDArray[np.integer],
    seed: int,
) -> ScoredWindows:
    """Pairs for one feature; a unit is the pivot of the original and of the edited window. Empty where no edit flips.

    `examples` are holdout windows with activations; `corpus` are token ids to put in, of any shape, padding below 0.
    """
    rng = np.random.default_rng(seed)
    edits = _edits(_places(examples, peak), corpus[corpus >= 0].astype(np.int64), rng)
    if not edits:
        return _scored([], np.empty(0, np.float32), examples)
    read = _at_pivots(subject, source, feature, edits)
    flipped = (read > peak / 2) != np.array([edit.place.active for edit in edits])
    order = rng.permutation(len(edits)).tolist()
    flips = _limit_repeats([i for i in order if flipped[i]], edits)[:PAIRS]
    others = [i for i in order if not flipped[i]][: len(flips)]
    chosen = [*flips, *others]
    return _scored([edits[i] for i in chosen], read[chosen], examples)


def _at_pivots(subject: Subject, source: Source, feature: Feature, edits: Sequence[_Edit]) -> NDArray[np.float32]:
    """The activation that each edit gives, (edit,). What stands after a causal model's pivot is not run."""
    rows = [tuple(edit.ids[: edit.place.pivot + 1].tolist()) for edit in edits]
    values = read_last(subject, source, rows, [feature.index])[:, 0]
    return -values if feature.negative else values


def _places(examples: Sequence[Example], peak: float) -> list[_Place]:
    """Places where the feature fires, on different tokens as far as there are, and silent places of these tokens."""
    strong = [e for e in examples if e.peak > peak / 2]
    firing = [_Place(e, int(e.activations.argmax()), True) for e in strong]
    tokens = {int(place.example.ids[place.pivot]) for place in firing}
    silent = [
        _Place(e, int(i), False)
        for e in examples
        for i in np.flatnonzero(np.isin(e.ids, list(tokens)) & (e.activations < peak / 4))[:1]
    ]
    return [*_prefer_new_tokens(firing), *_prefer_new_tokens(silent)]


def _prefer_new_tokens(places: Sequence[_Place]) -> list[_Place]:
    """Some places, those on a token that was not had before first; none too near the start."""
    places = [place for place in places if place.pivot > max(BACK)]
    tokens: set[int] = set()
    first, rest = [], []
    for place in places:
        token = int(place.example.ids[place.pivot])
        (rest if token in tokens else first).append(place)
        tokens.add(token)
    return [*first, *rest][:CARRIERS]


def _edits(places: Sequence[_Place], corpus: Ids, rng: np.random.Generator) -> list[_Edit]:
    kinds, counts = np.unique(corpus, return_counts=True)
    common = kinds[np.argsort(-counts, kind="stable")]
    rest = rng.permutation(common[NEAREST // 2 :])
    nearest = np.concatenate([common[: NEAREST // 2], rest])[:NEAREST]
    edits = []
    for place in places:
        for back in (1, *BACK):
            tokens = nearest if back == 1 else rng.permutation(common)[:FURTHER]
            for token in tokens.tolist():
                ids = place.example.ids.copy()
                if ids[place.pivot - back] != token:
                    ids[place.pivot - back] = token
                    edits.append(_Edit(place, ids, token, back))
    return edits


def _limit_repeats(chosen: Sequence[int], edits: Sequence[_Edit]) -> list[int]:
    """The chosen edits, of each token at each offset only a few."""
    counts: dict[tuple[int, int, bool], int] = {}
    varied = []
    for i in chosen:
        key = (edits[i].token, edits[i].back, edits[i].place.active)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= SAME:
            varied.append(i)
    return varied


def _scored(edits: Sequence[_Edit], read: NDArray[np.float32], examples: Sequence[Example]) -> ScoredWindows:
    n, width = len(edits), max((len(example.ids) for example in examples), default=0)
    originals = [edit.place for edit in edits]
    ids = pad_ids([*(p.example.ids for p in originals), *(e.ids for e in edits)], width=width)
    was = [place.example.activations[place.pivot] for place in originals]
    pivots = np.array([place.pivot for place in originals], np.int64)
    true = np.stack([np.array(was, np.float32), read.astype(np.float32)], axis=1).reshape(n, 2)
    rows = np.stack([np.arange(n), np.arange(n) + n], axis=1)
    digests = tuple(dict.fromkeys(place.example.window for place in originals))
    return ScoredWindows(ids, true, rows, np.stack([pivots, pivots], axis=1).reshape(n, 2), digests)
