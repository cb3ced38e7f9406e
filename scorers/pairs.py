"""Chooses the excerpts that judges are asked about: pairs of one where the feature fires and one where it does not.

All excerpts have the same number of tokens, and the two of a pair stand at the same place of their windows (and,
where tokens are marked, have the same tokens marked), so that neither length nor position tells them apart: any guess
from these alone is right on exactly one of the two. No window is used twice. The choice depends on the seed and the
feature, and on nothing else. All excerpts of a feature share one prompt, in an order that tells nothing of the pairs.
So a reader can see what several excerpts have in common: the control without an explanation says how far that leads.

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
from ..data.padding import pad_activations, pad_ids
from ..llm.render import Excerpt
from .holdout import Holdout

LENGTH = 24
"""Tokens of an excerpt."""
SHORT = 0.25
"""At most this share of the windows is left out for being shorter than an excerpt."""
LEAD = 6
"""Tokens of an excerpt that stand before the peak, where the window has them: what fires depends on them."""
FIRES = 0.2
"""From this fraction of the feature's peak an excerpt is active: twice `SILENCE`, so that no case is doubtful."""
MARKED = 0.3
"""From this fraction of its excerpt's peak a token is marked, as in Paulo et al. 2024."""
FEWEST = 3
"""With fewer pairs or groups than this nothing is asked."""

Mask = NDArray[np.bool_]
Fits = Callable[[int, Mask], Mask]
"""From the start and the marks of an active excerpt to the windows that may be its partner, (w,)."""
Preference = Callable[[int], Mask]
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


class ExcerptPool:
    """The windows of one feature, and where in them it fires and is silent.

    Shapes are in w windows of t tokens, and s starts of excerpts.
    """

    def __init__(self, holdout: Holdout, *, seed: int) -> None:
        self.rng = np.random.default_rng(_hash_to_int(f"{seed} {holdout.feature}"))
        lengths = [len(example.ids) for example in holdout.examples] or [LENGTH]
        # Where many windows are short, excerpts are, too; a window that is shorter still is none.
        self._length = min(LENGTH, int(np.quantile(lengths, SHORT)))
        self.examples = sorted(
            (example for example in holdout.examples if len(example.ids) >= self._length), key=lambda e: e.window
        )
        width, unit = max(lengths), holdout.peak if holdout.peak > 0 else np.inf
        self._ids = pad_ids([example.ids for example in self.examples], width=width)
        activations = pad_activations([example.activations for example in self.examples], width=width)
        # A span that reaches into padding is neither silent nor active: no comparison with NaN holds.
        self._shares = np.where(self._ids >= 0, activations / unit, np.float32(np.nan))
        self._spans = sliding_window_view(self._shares, self._length, axis=1)
        self._peaks = self._spans.max(axis=2)
        tops = [example.peak / unit for example in self.examples]
        firing = [i for i, example in enumerate(self.examples) if example.kind != "random" and tops[i] >= FIRES]
        self.firing = sorted(firing, key=lambda i: -tops[i])
        """Windows in which it fires, but for those that were drawn at random; the highest peak first."""
        self._repeated = self._holding({int(self.examples[i].ids[self._pivot(i)]) for i in self.firing})

    def _pivot(self, window: int) -> int:
        return int(self.examples[window].activations.argmax())

    def excerpt(self, window: int, start: int) -> Excerpt:
        """The excerpt of a window that begins at the token `start`."""
        return Excerpt(self.examples[window], start, start + self._length)

    def starts(self, window: int) -> list[int]:
        """Starts of excerpts that hold the window's peak, in random order; those with a lead where there are."""
        peak, last = self._pivot(window), len(self.examples[window].ids) - self._length
        low, high = max(0, peak - self._length + 1), min(max(0, peak - LEAD), last)
        return [int(start) for start in self.rng.permutation(np.arange(min(low, high), high + 1))]

    def marks(self, window: int, start: int) -> Mask:
        """Which tokens of an excerpt are truly active, at `MARKED` of its peak and not silent, (token,)."""
        shares = self._spans[window, start]
        return shares >= max(MARKED * shares.max(), SILENCE)

    def silent(self, start: int) -> Mask:
        """Windows whose excerpt is silent throughout, (w,)."""
        return self._peaks[:, start] < SILENCE

    def unfit(self, start: int, marks: Mask) -> Mask:
        """Windows whose excerpt is silent at the marks, (w,)."""
        return (self._spans[:, start, marks].max(axis=1) < SILENCE) & ~np.isnan(self._peaks[:, start])

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
        """Which excerpts hold one of the token ids after the first tokens, (w, s)."""
        held = sliding_window_view(np.isin(self._ids, list(tokens)), self._length, axis=1)
        return np.asarray(held[:, :, min(LEAD, self._length - 1) :].any(axis=2), np.bool_)


def choose_pairs(pool: ExcerptPool, *, count: int, fits: Fits, preferences: Sequence[Preference]) -> list[Pair]:
    """Choose up to `count` pairs whose active windows are spread over the peaks; the preferences take turns."""
    order = [pool.firing[i] for i in spread_evenly(len(pool.firing), count)]
    unused = np.ones(len(pool.examples), bool)
    unused[order[:count]] = False
    pairs: list[Pair] = []
    for place, window in enumerate(order):
        if len(pairs) == count or (place >= count and not unused[window]):
            continue
        unused[window] = False
        partner = find_partner(
            pool, window, unused=unused, fits=fits, preference=preferences[len(pairs) % len(preferences)]
        )
        if partner is not None:
            start, other = partner
            unused[other] = False
            marks = pool.marks(window, start)
            pairs.append(Pair(pool.excerpt(window, start), pool.excerpt(other, start), marks))
    return pairs


def find_partner(
    pool: ExcerptPool, window: int, *, unused: Mask, fits: Fits, preference: Preference
) -> tuple[int, int] | None:
    """Find (start, window): where the excerpt of an active window begins, and an unused window that fits there.

    One that is preferred is taken before any that only fits; None where none fits.
    """
    fallback = None
    for start in pool.starts(window):
        fit = unused & fits(start, pool.marks(window, start))
        if (preferred := fit & preference(start)).any():
            return start, int(pool.rng.choice(np.flatnonzero(preferred)))
        if fallback is None and fit.any():
            fallback = start, int(pool.rng.choice(np.flatnonzero(fit)))
    return fallback


def spread_evenly(total: int, count: int) -> list[int]:
    """Order all indices below `total` so that the first `count` are evenly spaced."""
    first = [int(i) for i in np.unique(np.linspace(0, total - 1, min(count, total)).round())]
    return [*first, *(i for i in range(total) if i not in set(first))]


def shuffle_items(windows: Sequence[str], holdout: Holdout, *, seed: int) -> tuple[int, ...]:
    """Order items at random by the digests of their windows alone, so that neither truth nor pairs play a part."""
    drawn = [_hash_to_int(f"{seed} {holdout.feature} {window}") for window in windows]
    return tuple(sorted(range(len(windows)), key=drawn.__getitem__))


def _hash_to_int(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
