"""Measurements by experiments: windows of token ids, and the activation at some of their tokens.

An investigation chooses the windows (scans of the vocabulary, swaps, near misses) and measures them; a rule is
learned from them together with the training side of a feature (`rule.RuleExplainer.learn`). `disagreements` lists
the tokens at which a rule and the measurements differ, which is where to experiment next.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..subject.errors import NeuronautError
from .evaluate import TokenGrid, predict
from .language import Rule
from .sample import OFFSETS


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Measured windows of one feature, all as long as the background's.

    Positions that were not measured are context only. For a feature's negative tail activations are sign-flipped.
    """

    ids: NDArray[np.int64]
    """(row, position)"""
    activations: NDArray[np.float32]
    """(row, position), in the source's own units; not read where nothing was measured."""
    measured: NDArray[np.bool_]
    """(row, position)"""

    def __post_init__(self) -> None:
        shapes = {part.shape for part in (self.ids, self.activations, self.measured)}
        if len(shapes) > 1 or self.ids.ndim != 2:
            raise ValueError(f"ids, activations and measured of shapes {sorted(shapes)}; wanted one (row, position)")
        if not np.isfinite(self.activations[self.measured]).all():
            raise NeuronautError("an observed activation is not a finite number; leave failed measurements out")

    @classmethod
    def none(cls, width: int) -> Self:
        """No rows, of windows of `width` tokens."""
        return cls(np.empty((0, width), np.int64), np.empty((0, width), np.float32), np.empty((0, width), np.bool_))

    @classmethod
    def at(cls, ids: NDArray[np.integer], pivots: Sequence[int], activations: Sequence[float]) -> Self:
        """One measured pivot a row; the activation is the pivot's."""
        measured, values = np.zeros(ids.shape, np.bool_), np.zeros(ids.shape, np.float32)
        rows = np.arange(len(ids))
        measured[rows, pivots], values[rows, pivots] = True, activations
        return cls(ids.astype(np.int64), values, measured)

    def __add__(self, other: Self) -> Self:
        return type(self)(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.activations, other.activations]),
            np.concatenate([self.measured, other.measured]),
        )

    def __len__(self) -> int:
        """How many tokens were measured."""
        return int(self.measured.sum())


class Held(NamedTuple):
    """What a rule says of every measured token, beside what was measured; each (measured,)."""

    error: NDArray[np.float32]
    """Measured less predicted activation."""
    said: NDArray[np.bool_]
    """Whether the rule says that the feature fires (`Rule.fires_from`)."""
    fired: NDArray[np.bool_]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Where it says otherwise."""
        return self.said != self.fired


def hold(rule: Rule, observed: Observed, *, vocabulary: Sequence[str], half: float) -> Held:
    """Hold a rule to what was measured; a token above `half`, in the source's units, fires."""
    true = observed.activations[observed.measured]
    predicted = predict(rule, TokenGrid(vocabulary, observed.ids))[observed.measured]
    return Held(true - predicted, predicted > rule.fires_from(half), true > half)


class Disagreement(NamedTuple):
    """A token at an offset from measured pivots at which rule and measurements differ."""

    token: str
    offset: int
    """0 for the pivot itself, -1 for the token before it."""
    error: float
    """Mean of measured less predicted activation over the wrong pivots with this token there."""
    wrong: int
    measured: int
    """Pivots with this token there, right or wrong."""
    rows: tuple[int, ...]
    """The observed rows with a wrong pivot."""


def disagreements(rule: Rule, observed: Observed, *, vocabulary: Sequence[str], half: float) -> list[Disagreement]:
    """Where the rule is on the other side of `half` than the measurement, by token and offset, largest first.

    A token's size is the sum of errors of its wrong pivots times the share of its pivots that are wrong: a token
    that stands in every wrong window and in as many right ones explains nothing.
    """
    rows, positions = np.nonzero(observed.measured)
    of_rule = hold(rule, observed, vocabulary=vocabulary, half=half)
    wrong = of_rule.wrong
    pivots: dict[tuple[int, int], list[int]] = defaultdict(list)
    for offset in OFFSETS:
        inside = np.flatnonzero(positions + offset >= 0)
        tokens = observed.ids[rows[inside], positions[inside] + offset]
        suspects = np.unique(tokens[wrong[inside]])
        for i, token in zip(inside.tolist(), tokens.tolist(), strict=True):
            if token in suspects:
                pivots[token, offset].append(i)
    result = []
    for (token, offset), at in pivots.items():
        bad = [i for i in at if wrong[i]]
        error = float(np.mean(of_rule.error[bad]))
        involved = tuple(dict.fromkeys(rows[bad].tolist()))
        result.append(
            Disagreement(
                token=vocabulary[token], offset=offset, error=error, wrong=len(bad), measured=len(at), rows=involved
            )
        )
    return sorted(result, key=lambda d: (-abs(d.error) * d.wrong**2 / d.measured, -d.offset, d.token))
