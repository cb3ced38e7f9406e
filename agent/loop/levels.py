"""What is predicted and what is observed: four levels of a value, and the odds that a predicted value gives them.

Values are in units of the target's scale: 0 is silent, 1 is as strong as its strongest natural examples (a
response), or as much as the whole difference or effect that is asked about (an effect). A hypothesis expects a
value, or has no opinion; its forecast is a distribution over levels. An expected value v is a normal
distribution around v with the standard deviation SPREAD + SLOPE |v|, mixed with a little of everything (SLIP), so
that no observation is impossible. No opinion is the base rate: the levels that were seen so far.
"""

from collections.abc import Iterable, Sequence
from math import erf, sqrt
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...explainers.battery.places import ACTIVE, SILENT
from .experiments import Readout

Level = Literal["reversed", "silent", "weak", "strong"]
LEVELS: tuple[Level, ...] = get_args(Level)
EDGES = (-SILENT, SILENT, ACTIVE)
"""Between the levels, in units of the scale."""
MIDDLE: dict[Level, float] = {"reversed": -0.5, "silent": 0.0, "weak": 0.3, "strong": 1.0}
"""The value that stands for a level where someone names only the level."""

SPREAD, SLOPE, SLIP = 0.05, 0.15, 0.08
FIRES, STILL_FIRES = 0.85, 0.1
"""The probability of firing where a hypothesis expects it, and where it does not."""

Forecast = NDArray[np.float64]
"""(item, level); rows sum to 1."""


def levels_of(values: Sequence[float], readout: Readout = "effect") -> NDArray[np.int64]:
    """Index into LEVELS of each observed value. A value at an edge belongs to the level above it.

    A response below zero is of the feature's other tail: here it is silent.
    """
    lowest = 0.0 if readout == "response" else -np.inf
    return np.searchsorted(EDGES, np.maximum(np.asarray(values, np.float64), lowest), side="right")


def fires(expected: Sequence[float], highest: float) -> NDArray[np.bool_]:
    """Which items are expected to fire, by what a hypothesis expects of them, in units of the scale.

    They fire from half of the highest that it expects of any item on, at most half of the scale: a rule that holds
    means says rightly what makes a unit fire, though its mean is below what the unit can do.
    """
    return np.asarray(expected, np.float64) >= (min(ACTIVE, highest / 2) if highest > 0 else ACTIVE)


def balanced(said: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Mean of the shares that are said rightly of those that are true and of those that are not."""
    return float(np.mean([(said[part] == true[part]).mean() for part in (true, ~true) if part.any()]))


def fire_odds(expected: Sequence[float | None], highest: float, base: Sequence[float]) -> NDArray[np.float64]:
    """The probability of firing that a hypothesis gives each item, (item,); the base rate where it says nothing."""
    known = [value for value in expected if value is not None]
    odds = np.full(len(expected), base[LEVELS.index("strong")])
    odds[[value is not None for value in expected]] = np.where(fires(known, highest), FIRES, STILL_FIRES)
    return odds


def expects_silence(expected: Sequence[float | None]) -> bool:
    """Whether silence is expected of at least half of the items."""
    silent = sum(value is not None and EDGES[0] <= value < EDGES[1] for value in expected)
    return 2 * silent >= len(expected) > 0


def asks_for_silence(predicted: Iterable[Sequence[float | None]]) -> bool:
    """Whether the likeliest rival that says anything expects silence; `predicted` by rival, the likeliest first.

    No pattern, when it leads, predicts nothing, silence neither.
    """
    return expects_silence(
        next((expected for expected in predicted if any(value is not None for value in expected)), ())
    )


def forecast(expected: Sequence[float | None], base: Sequence[float]) -> Forecast:
    """The distribution over levels of each item. `base` (level,) is for items without an opinion."""
    # Rules say few different things of many items.
    distributions = {value: base if value is None else _around(value) for value in set(expected)}
    return np.array([distributions[value] for value in expected], np.float64).reshape(-1, 4)


def base_rate(counts: Sequence[float]) -> tuple[float, ...]:
    """The share of each level among those seen so far, as if each had been seen once before."""
    total = sum(counts) + len(LEVELS)
    return tuple((count + 1) / total for count in counts)


def brier(forecasts: Forecast, observed: NDArray[np.int64]) -> float:
    """Mean over items of the squared distance between forecast and what was seen: 0 is perfect, 2 is wholly wrong."""
    return float(((forecasts - np.eye(len(LEVELS))[observed]) ** 2).sum(axis=1).mean())


def _around(value: float) -> list[float]:
    width = (SPREAD + SLOPE * abs(value)) * sqrt(2)
    below = [0.0, *(0.5 * (1 + erf((edge - value) / width)) for edge in EDGES), 1.0]
    return [SLIP / len(LEVELS) + (1 - SLIP) * (b - a) for a, b in zip(below, below[1:], strict=False)]
