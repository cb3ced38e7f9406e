"""Which excerpts judges are asked about: pairs of one where the feature fires and one where it does not.

All excerpts have the same number of tokens, and the two of a pair stand at the same place of their windows (and,
where tokens are marked, have the same tokens marked), so that neither length nor position tells them apart: any guess
from these alone is right on exactly one of the two. No window is used twice. The choice depends on the seed and the
feature, and on nothing else.

Whether a feature fires is decided within the excerpt: it fires from `FIRES` of its peak on, and is silent below
`SILENCE` of it. So a window that is nowhere quiet for long enough yields no silent excerpt, one that is quiet for
a stretch does, and frequently firing features can be judged, too.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..data.harvest.mining import SILENCE
from ..llm.render import Excerpt
from .holdout import Holdout

LENGTH = 24
"""Tokens of an excerpt."""
LEAD = 6
"""Tokens of an excerpt that stand before the peak, where the window has them: what fires depends on them."""
FIRES = 0.2
"""From this fraction of the feature's peak an excerpt is active: twice `SILENCE`, so that no case is doubtful."""
MARKED = 0.3
"""From this fraction of its excerpt's peak a token is marked, as in Paulo et al. 2024."""
FEWEST = 3
"""Below this many pairs or groups nothing is asked."""

Mask = NDArray[np.bool_]
Fits = Callable[[int, Mask], Mask]
"""From the start of an excerpt and the marks of the active one to the windows that may stand beside it, (w,)."""
Wish = Callable[[int], Mask]
"""From the start of an excerpt to the windows that are preferred, (w,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two excerpts from the same place of two windows."""

    active: Excerpt
    silent: Excerpt
    marks: Mask
    """Which tokens are truly active in the first, (token,)."""

    @property
    def excerpts(self) -> tuple[Excerpt, Excerpt]:
        """The active one, then the silent one."""
        return self.active, self.silent


class Ground:
    """One feature's windows, and where in them it fires and is silent; w windows of t tokens, s starts of excerpts."""

    def __init__(self, holdout: Holdout, *, seed: int) -> None:
        self.rng = np.random.default_rng(_number(f"{seed} {holdout.feature}"))
        self.examples = sorted(holdout.examples, key=lambda example: example.window)
        width = len(self.examples[0].ids) if self.examples else LENGTH
        self._length = min(LENGTH, width)
        activations = np.array([example.activations for example in self.examples], np.float32).reshape(-1, width)
        self._shares = activations / (holdout.peak if holdout.peak > 0 else np.inf)
        self._spans = sliding_window_view(self._shares, self._length, axis=1)
        self._peaks = self._spans.max(axis=2)
        firing = [
            i for i, example in enumerate(self.examples) if example.kind != "random" and self._shares[i].max() >= FIRES
        ]
        self.firing = sorted(firing, key=lambda i: -self._shares[i].max())
        """Windows in which it fires, but for those that were drawn at random; the highest peak first."""
        self._repeated = self._holding({int(self.examples[i].ids[self._shares[i].argmax()]) for i in self.firing})

    def excerpt(self, window: int, start: int) -> Excerpt:
        """The excerpt of a window that begins at a token."""
        return Excerpt(self.examples[window], start, start + self._length)

    def starts(self, window: int) -> list[int]:
        """Where excerpts that hold the window's peak can begin, in random order; those with a lead where there are."""
        peak, last = int(self._shares[window].argmax()), self._shares.shape[1] - self._length
        low, high = max(0, peak - self._length + 1), min(max(0, peak - LEAD), last)
        return [int(start) for start in self.rng.permutation(np.arange(min(low, high), high + 1))]

    def marks(self, window: int, start: int) -> Mask:
        """Which tokens of an excerpt are truly active: `MARKED` of its peak, and not silent; (token,)."""
        shares = self._spans[window, start]
        return shares >= max(MARKED * shares.max(), SILENCE)

    def silent(self, start: int) -> Mask:
        """Windows whose excerpt is silent throughout, (w,)."""
        return self._peaks[:, start] < SILENCE

    def unfit(self, start: int, marks: Mask) -> Mask:
        """Windows whose excerpt is silent at the marks, (w,)."""
        return self._spans[:, start, marks].max(axis=1) < SILENCE

    def fires(self, start: int) -> Mask:
        """Windows whose excerpt is active somewhere, (w,)."""
        return self._peaks[:, start] >= FIRES

    def random(self, start: int) -> Mask:  # noqa: ARG002
        """Windows that were drawn at random, (w,)."""
        return np.array([example.kind == "random" for example in self.examples], np.bool_)

    def tempting(self, start: int) -> Mask:
        """Windows whose excerpt holds a token on which the feature peaks elsewhere, (w,)."""
        return self._repeated[:, start]

    def _holding(self, tokens: set[int]) -> Mask:
        """Excerpts that hold one of the token ids, not among the first tokens, (w, s)."""
        ids = np.array([example.ids for example in self.examples], np.int64).reshape(self._shares.shape)
        held = sliding_window_view(np.isin(ids, list(tokens)), self._length, axis=1)
        return np.asarray(held[:, :, min(LEAD, self._length - 1) :].any(axis=2), np.bool_)


def pairs(ground: Ground, *, count: int, fits: Fits, wishes: Sequence[Wish]) -> list[Pair]:
    """Up to `count` pairs whose active windows are spread over the range of peaks; the wishes take turns."""
    order = [ground.firing[i] for i in spread(len(ground.firing), count)]
    free = np.ones(len(ground.examples), bool)
    free[order[:count]] = False
    found: list[Pair] = []
    for place, window in enumerate(order):
        if len(found) == count or (place >= count and not free[window]):
            continue
        free[window] = False
        beside = partner(ground, window, free=free, fits=fits, wish=wishes[len(found) % len(wishes)])
        if beside is not None:
            start, other = beside
            free[other] = False
            marks = ground.marks(window, start)
            found.append(Pair(ground.excerpt(window, start), ground.excerpt(other, start), marks))
    return found


def partner(ground: Ground, window: int, *, free: Mask, fits: Fits, wish: Wish) -> tuple[int, int] | None:
    """Where the excerpt of an active window begins, and a free window whose excerpt there fits; None without one.

    One that is wished for is taken before any that only fits.
    """
    fallback = None
    for start in ground.starts(window):
        fit = free & fits(start, ground.marks(window, start))
        if (wished := fit & wish(start)).any():
            return start, int(ground.rng.choice(np.flatnonzero(wished)))
        if fallback is None and fit.any():
            fallback = start, int(ground.rng.choice(np.flatnonzero(fit)))
    return fallback


def spread(total: int, count: int) -> list[int]:
    """All indices below `total`; the first `count` are evenly spaced."""
    first = [int(i) for i in np.unique(np.linspace(0, total - 1, min(count, total)).round())]
    return [*first, *(i for i in range(total) if i not in set(first))]


def decks(count: int, *, size: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Prompts of at most `size` items in random order, such that the two of a pair never share one.

    Items are numbered pair by pair: 2i and 2i + 1 are pair i. Otherwise one of the two would tell of the other.
    """
    first = rng.integers(2, size=count)
    sides = [rng.permutation(2 * np.arange(count) + side) for side in (first, 1 - first)]
    return [
        tuple(int(item) for item in side[start : start + size]) for side in sides for start in range(0, count, size)
    ]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
