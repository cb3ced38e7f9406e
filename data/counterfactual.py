"""Minimal pairs: windows with one small edit each, to be run through the subject.

The edits know the evidence and nothing of any explanation. For a window with a pivot (the token of
its peak, or of a near miss) one thing is changed: the pivot token itself; one of the tokens before it;
the order of two of them; the run of tokens right before the pivot, which is replaced by the run before
the same token in a window where the feature behaved otherwise (a transplant: what an exception or a
missing cause answers to); or tokens are put in before the pivot, and everything before them moves
back. Where tokens read both sides, every other edit is made behind the pivot in the same way, to the window read
backwards. Every other token stays, and so does the window's length. Substitutes are drawn half as often as
they occur in the corpus and half evenly from its tokens, so that rare ones get their turn.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .records import Example

REACH = 8
"""How many tokens before the pivot are candidates for an edit."""

Ids = NDArray[np.int64]


class Pair(NamedTuple):
    """An edited window; the original is `examples[example]`."""

    example: int
    tokens: Ids
    """Shape (position,)."""
    pivot: int
    """Position at which both windows are compared."""


class _Pivot(NamedTuple):
    example: int
    position: int
    active: bool


def minimal_pairs(
    examples: Sequence[Example], *, peak: float, corpus: NDArray[np.integer], count: int, seed: int, causal: bool = True
) -> list[Pair]:
    """Up to `count` edits of the examples, cycling through pivots and kinds of edit; no two edited windows are equal.

    With `causal` nothing is edited behind a pivot, where it could not matter. `peak` is the feature's highest
    activation: a pivot is active above half of it. `corpus` are token ids
    of any shape to draw substitutes from, padding below 0.
    """
    pivots = _pivots(examples, peak)
    if not pivots:
        return []
    windows, drawn, rng = [e.ids for e in examples], corpus[corpus >= 0].astype(np.int64), np.random.default_rng(seed)
    editors = [_Editor(windows, pivots, drawn, rng)]
    if not causal:
        editors.append(_Editor([ids[::-1] for ids in windows], [_mirror(p, windows) for p in pivots], drawn, rng))
    pairs: list[Pair] = []
    taken = {example.ids.tobytes() for example in examples}
    for attempt in range(4 * count):
        pivot, side = pivots[attempt % len(pivots)], attempt % len(editors)
        edits = editors[side].edits
        edit = edits[(attempt // len(pivots) + attempt) % len(edits)]
        tokens = edit(_mirror(pivot, windows) if side else pivot)
        tokens = tokens[::-1].copy() if tokens is not None and side else tokens
        if tokens is not None and tokens.tobytes() not in taken:
            taken.add(tokens.tobytes())
            pairs.append(Pair(pivot.example, tokens, pivot.position))
            if len(pairs) == count:
                break
    return pairs


def _pivots(examples: Sequence[Example], peak: float) -> list[_Pivot]:
    """The peak token of every active example, and the tokens of silent ones on which others peak, in turn."""
    active = [
        _Pivot(i, int(example.activations.argmax()), True)
        for i, example in enumerate(examples)
        if example.peak > peak / 2
    ]
    tokens = list({int(examples[pivot.example].ids[pivot.position]) for pivot in active})
    silent = [
        _Pivot(i, int(position), False)
        for i, example in enumerate(examples)
        for position in np.flatnonzero(np.isin(example.ids, tokens) & (example.activations < peak / 4))[:2]
    ]
    ordered: list[_Pivot] = []
    for i in range(max(len(active), len(silent))):
        ordered += active[i : i + 1] + silent[i : i + 1]
    return ordered


def _mirror(pivot: _Pivot, windows: Sequence[Ids]) -> _Pivot:
    """The same pivot in its window read backwards."""
    return pivot._replace(position=len(windows[pivot.example]) - 1 - pivot.position)


class _Editor:
    """The kinds of edit. Each returns an edited copy of the pivot's window, or None where it does not apply."""

    def __init__(self, windows: Sequence[Ids], pivots: list[_Pivot], corpus: Ids, rng: np.random.Generator) -> None:
        self._windows, self._pivots, self._corpus = windows, pivots, corpus
        self._types, self._rng = np.unique(corpus), rng

    @property
    def edits(self) -> tuple[Callable[[_Pivot], Ids | None], ...]:
        """The kinds of edit in their turn."""
        return (
            self.transplant,
            self.substitute_pivot,
            self.substitute_before,
            self.transplant,
            self.substitute_pivot,
            self.insert_before,
            self.swap_before,
        )

    def substitute_pivot(self, pivot: _Pivot) -> Ids | None:
        """Another token at the pivot: one time in three one on which the feature peaks elsewhere."""
        tokens = self._copy(pivot)
        peaks = [p for p in self._pivots if p.active]
        if peaks and self._rng.random() < 1 / 3:
            tokens[pivot.position] = self._token(peaks[self._rng.integers(len(peaks))])
        else:
            tokens[pivot.position] = self._substitute()
        return tokens

    def substitute_before(self, pivot: _Pivot) -> Ids | None:
        """Another token at one of the positions before the pivot, the nearest ones most often."""
        if pivot.position == 0:
            return None
        tokens = self._copy(pivot)
        tokens[pivot.position - self._draw_distance(pivot)] = self._substitute()
        return tokens

    def insert_before(self, pivot: _Pivot) -> Ids | None:
        """One to four tokens put in before the pivot; the window's first tokens make room."""
        n = int(self._rng.choice((1, 1, 2, 4)))
        if pivot.position < n:
            return None
        tokens = self._copy(pivot)
        end = pivot.position - min(self._draw_distance(pivot) - 1, pivot.position - n)
        tokens[: end - n] = tokens[n:end].copy()
        tokens[end - n : end] = [self._substitute() for _ in range(n)]
        return tokens

    def swap_before(self, pivot: _Pivot) -> Ids | None:
        """Two of the tokens before the pivot change places."""
        if pivot.position < 2:
            return None
        tokens = self._copy(pivot)
        places = pivot.position - 1 - self._rng.choice(min(pivot.position, REACH), size=2, replace=False)
        tokens[places] = tokens[places[::-1]]
        return tokens

    def transplant(self, pivot: _Pivot) -> Ids | None:
        """The tokens before the pivot, taken from before the same (or another) pivot that behaved otherwise."""
        tokens = self._copy(pivot)
        others = [p for p in self._pivots if p.active != pivot.active and p.position > 0]
        sources = [p for p in others if self._token(p) == tokens[pivot.position]] or others
        if not sources or pivot.position == 0:
            return None
        source = sources[self._rng.integers(len(sources))]
        run = min(int(self._rng.choice((1, 1, 2, 3, REACH))), pivot.position, source.position)
        source_ids = self._windows[source.example]
        tokens[pivot.position - run : pivot.position] = source_ids[source.position - run : source.position]
        return tokens

    def _copy(self, pivot: _Pivot) -> Ids:
        return self._windows[pivot.example].copy()

    def _token(self, pivot: _Pivot) -> int:
        return int(self._windows[pivot.example][pivot.position])

    def _draw_distance(self, pivot: _Pivot) -> int:
        """How far before the pivot to edit, the nearest positions most often."""
        return min(int(self._rng.geometric(0.3)), pivot.position, REACH)

    def _substitute(self) -> int:
        return int(self._rng.choice(self._corpus if self._rng.random() < 0.5 else self._types))
