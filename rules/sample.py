"""The sample that a rule is learned from: windows, the feature's activation at every token, and weights.

Two parts are joined: the background (a random sample of the corpus, the same for every feature, so
that whatever depends on its tokens alone is computed once) and the feature's own rows (its examples,
and the edited windows that were run through the subject). Flat arrays have one entry per token, the
background's first. N tokens, V vocabulary entries; V itself stands for "before the window", and for padding.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .evaluate import TokenGrid, matches
from .language import CLASSES, Class, Condition, Induction, Inside, Repeat, Token

OFFSETS = (0, -1, -2, -3, -4)
"""Offsets at which sets of tokens are tried, nearest first."""
BOTH_SIDES = (0, -1, 1, -2, 2, -3, 3, -4, 4)
"""The same for a model whose tokens read both sides."""


INSIDE = ("quotes", "double", "single", "triple", "parentheses", "brackets", "braces", "comment")
BOOLEAN: tuple[Condition, ...] = (
    *(Class(name=name, at=at) for at in (0, -1) for name in CLASSES),
    *(Inside(what=what) for what in INSIDE),
    Repeat(),
    Induction(n=1),
    Induction(n=2),
)
"""Conditions without a parameter to fit."""
_BOOLEAN_AHEAD = (*BOOLEAN, *(Class(name=name, at=1) for name in CLASSES))


class Windows:
    """Windows of token ids (row, position), padding negative, and what can be computed from them alone."""

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        ids: NDArray[np.integer],
        *,
        offsets: tuple[int, ...] = OFFSETS,
        parts: Sequence["Windows"] = (),
    ) -> None:
        """`offsets` are those at which tokens may matter.

        With `parts`, whose rows these are one after another, what they know already is joined.
        """
        self.ids, self.offsets = ids.astype(np.int32), offsets
        self.conditions = _BOOLEAN_AHEAD if max(offsets) > 0 else BOOLEAN
        self._vocabulary, self._size, self._parts = vocabulary, len(vocabulary), parts

    def __add__(self, other: "Windows") -> "Windows":
        """The rows of both."""
        ids = np.concatenate([self.ids, other.ids])
        return Windows(self._vocabulary, ids, offsets=self.offsets, parts=(self, other))

    @cached_property
    def grid(self) -> TokenGrid:
        """The windows as codes of the distinct strings in them."""
        return TokenGrid(self._vocabulary, self.ids)

    @cached_property
    def ids_of(self) -> dict[str, list[int]]:
        """The token ids that spell each string."""
        ids: dict[str, list[int]] = {}
        for i, token in enumerate(self._vocabulary):
            ids.setdefault(token, []).append(i)
        return ids

    @cached_property
    def shifted(self) -> dict[int, NDArray[np.int32]]:
        """Token ids at each offset, V outside of the window and on padding. Each (row * position,)."""
        by_offset, known, width = {}, np.where(self.ids < 0, self._size, self.ids), self.ids.shape[1]
        for offset in self.offsets:
            column = np.full(self.ids.shape, self._size, np.int32)
            column[:, max(-offset, 0) : width - max(offset, 0)] = known[:, max(offset, 0) : width + min(offset, 0)]
            by_offset[offset] = column.ravel()
        return by_offset

    @cached_property
    def boolean(self) -> NDArray[np.float32]:
        """Where each of `conditions` holds, as 0 and 1, (condition, row * position)."""
        if self._parts:
            return np.concatenate([part.boolean for part in self._parts], axis=1)
        return np.stack([matches(condition, self.grid).ravel() for condition in self.conditions]).astype(np.float32)

    @cached_property
    def first(self) -> NDArray[np.bool_]:
        """Where a token stands in its window for the first time, (row * position,)."""
        if self._parts:
            return np.concatenate([part.first for part in self._parts])
        return (self.grid.present & (self.grid.since_first(0) == 0)).ravel()

    @cached_property
    def last(self) -> NDArray[np.bool_]:
        """Where a token stands in its window for the last time, (row * position,)."""
        codes = self.grid.codes
        keys = np.where(self.grid.present, codes + np.arange(len(codes))[:, None] * len(self.grid.strings), -1).ravel()
        where = np.zeros(keys.size, np.bool_)
        where[keys.size - 1 - np.unique(keys[::-1], return_index=True)[1]] = True
        return where & (keys >= 0)

    def mask(self, condition: Condition) -> NDArray[np.bool_]:
        """Where a condition holds, (row * position,)."""
        if condition in self.conditions:
            return self.boolean[self.conditions.index(condition)] > 0
        if self._parts:
            return np.concatenate([part.mask(condition) for part in self._parts])
        return matches(condition, self.grid).ravel()

    def boolean_sums(self, at: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sums of values (token, column) over the tokens at `at` where each condition holds, (condition, column)."""
        if 2 * len(at) < self.ids.size:
            return self.boolean[:, at] @ values
        whole = np.zeros((self.ids.size, values.shape[1]), np.float32)
        whole[at] = values
        return self.boolean @ whole


@dataclass(frozen=True)
class Sample:
    """Windows with one feature's activations."""

    background: Windows
    own: Windows
    activation: NDArray[np.float32]
    """(N,)"""
    weight: NDArray[np.float32]
    """A token's weight when values are fitted; 0 for padding. (N,)"""
    check: NDArray[np.float32]
    """A token's weight when a split is checked, above 0 for tokens of documents kept from fitting. (N,)"""
    vocabulary: tuple[str, ...]
    exact: NDArray[np.bool_] | None = None
    """Which tokens an experiment was made for: one of them is reason enough for a split. None for no token. (N,)"""

    @property
    def offsets(self) -> tuple[int, ...]:
        """At which tokens may matter, nearest first."""
        return self.background.offsets

    @property
    def both_sides(self) -> bool:
        """Whether these are also behind a token."""
        return max(self.offsets) > 0

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Those without a parameter to fit."""
        return self.background.conditions

    @cached_property
    def tokens(self) -> dict[int, NDArray[np.int32]]:
        """Token ids by offset, V outside of the window; each (N,)."""
        return {o: np.concatenate([self.background.shifted[o], self.own.shifted[o]]) for o in self.offsets}

    @cached_property
    def used(self) -> NDArray[np.int64]:
        """The token ids that occur, ascending, (U,)."""
        occurs = np.zeros(len(self.vocabulary) + 1, np.bool_)
        occurs[self.tokens[0]] = True
        return np.flatnonzero(occurs[:-1])

    @cached_property
    def codes(self) -> dict[int, NDArray[np.int32]]:
        """Tokens by offset as places in `used`, U outside of the window; each (N,)."""
        places = np.full(len(self.vocabulary) + 1, len(self.used), np.int32)
        places[self.used] = np.arange(len(self.used))
        return {offset: places[tokens] for offset, tokens in self.tokens.items()}

    @cached_property
    def firsts(self) -> NDArray[np.bool_]:
        """Which tokens stand in their window for the first time, (N,)."""
        return np.concatenate([self.background.first, self.own.first])

    @cached_property
    def lasts(self) -> NDArray[np.bool_]:
        """Which tokens stand in their window for the last time, (N,)."""
        return np.concatenate([self.background.last, self.own.last])

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Each token's window, (N,)."""
        return np.arange(len(self.activation)) // self.own.ids.shape[1]

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Each token's position in its window, (N,)."""
        return np.arange(len(self.activation)) % self.own.ids.shape[1]

    def reweighted(self, weight: NDArray[np.float32], check: NDArray[np.float32]) -> "Sample":
        """The same tokens with other weights; what was computed of the tokens is kept."""
        other = copy(self)
        vars(other).update(weight=weight, check=check)
        return other

    def mask(self, condition: Condition) -> NDArray[np.bool_]:
        """Where a condition holds, (N,)."""
        return np.concatenate([self.background.mask(condition), self.own.mask(condition)])

    @cached_property
    def _spelled(self) -> dict[str, list[int]]:
        """The places in `used` of the tokens that spell each string."""
        places: dict[str, list[int]] = {}
        for place, token in enumerate(self.used.tolist()):
            places.setdefault(self.vocabulary[token], []).append(place)
        return places

    def holds(self, condition: Condition, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where a condition holds of the tokens with these ascending indices, (token,)."""
        if isinstance(condition, Token) and not condition.within and not condition.after:
            return self._named(condition)[self.codes[condition.at][at]]
        if isinstance(condition, Token) and "any" not in (condition.within, condition.after):
            named, near = self._named(condition), np.zeros(len(at), np.bool_)
            for distance in range(1, max(condition.reach, condition.ahead) + 1):
                near |= named[self.neighbours(at, distance if condition.after else -distance)]
            return near
        if condition in self.conditions:
            number, split = self.conditions.index(condition), self.background.ids.size
            before = int(np.searchsorted(at, split))
            parts = self.background.boolean[number][at[:before]], self.own.boolean[number][at[before:] - split]
            return np.concatenate(parts) > 0
        return self.mask(condition)[at]

    def neighbours(self, at: NDArray[np.int64], offset: int) -> NDArray[np.int32]:
        """The tokens at an offset from those with these indices, as places in `used`, U outside of the window."""
        codes = self.codes[0][np.clip(at + offset, 0, len(self.activation) - 1)]
        there = self.positions[at] + offset
        codes[(there < 0) | (there >= self.own.ids.shape[1])] = len(self.used)
        return codes

    def _named(self, condition: Token) -> NDArray[np.bool_]:
        """Which of `used` the condition names, False for what is outside of a window, (U + 1,)."""
        named = np.zeros(len(self.used) + 1, np.bool_)
        named[[place for string in condition.any for place in self._spelled.get(string, ())]] = True
        return named

    def boolean_sums(self, at: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sums of values (token, column) over the tokens at `at`, ascending, where each of `conditions` holds.

        -> (condition, column).
        """
        split = self.background.ids.size
        before = int(np.searchsorted(at, split))
        return self.background.boolean_sums(at[:before], values[:before]) + self.own.boolean_sums(
            at[before:] - split, values[before:]
        )
