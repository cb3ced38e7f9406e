"""Doses of steering and their responses: the values, the trend over strength, and the range that is usable.

The trend is monotone where no step between neighbouring strengths goes back by more than TOLERANCE of the response's
range. The usable range reaches from the gentlest strength to where the KL on unrelated text crosses a bound, placed
between the tested strengths by the square root of the KL, which grows about linearly while it is small.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .controls import ControlRank
from .measures import Fidelity, Interval, Mean
from .pictures import lines
from .records import Provenance

TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Dose:
    """One strength and what it does."""

    strength: float
    response: Mean
    """The readout under the edit."""
    effect: Mean
    """Its change from the plain run, prompt by prompt."""
    rank: ControlRank | None
    """None without controls, and where this strength changed nothing."""
    kl: Mean
    """On unrelated text, nats per token, over rows."""
    loss: Mean
    """Change of the loss on unrelated text, nats per token, over rows."""
    max_change: float
    """Of a coordinate at the site, on the prompts; 0 where this strength is none."""


@dataclass(frozen=True, slots=True)
class Trend:
    """Whether the response goes one way."""

    sense: Literal["rising", "falling"] | None
    """None where it turns, or never moves."""
    turns: tuple[float, ...]
    """The strengths after which it goes the other way."""


@dataclass(frozen=True, slots=True)
class Usable:
    """The strengths around the gentlest at which the KL on unrelated text stays within the bound."""

    low: float
    high: float
    reached: tuple[bool, bool]
    """Whether the bound is crossed at the low end, and at the high; if not, the range ends with what was tested."""


@dataclass(frozen=True, slots=True)
class DoseResponse:
    """The doses of one edit."""

    edit: str
    """Its value is replaced by the strengths."""
    readout: str
    formula: str
    unit: tuple[float, ...] | None
    """What one of strength is in activations, by unit of the edit; None where strengths are not in quantiles."""
    plain: Mean
    """The readout without the edit."""
    doses: tuple[Dose, ...]
    """By strength, rising."""
    trend: Trend
    bound: float
    usable: Usable | None
    """None where the KL is above the bound at every strength."""
    dictionaries: dict[str, Fidelity]
    """By `SITE@NAME`, how far the dictionary that is edited can be trusted on the unrelated text."""
    provenance: Provenance
    seed: int

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, strings, lists and objects."""
        return asdict(self) | {"provenance": self.provenance.model_dump()}

    def describe(self) -> str:
        """Say the trend and the usable range in words."""
        going = self.trend.sense or "not going one way"
        sizes = [] if self.unit is None else [f"{size:.3g}" for size in self.unit]
        unit = f"; a strength of 1 is {', '.join(sizes)} in activations" if sizes else ""
        if self.usable is None:
            return f"the response is {going}; no strength keeps the KL elsewhere below {self.bound:g} nats{unit}"
        low, high = (f"{end:.2g}" for end in (self.usable.low, self.usable.high))
        between = f"from {low} to about {high}, between what was measured,"
        return f"the response is {going}; {between} the KL elsewhere is below {self.bound:g} nats{unit}"

    def picture(self, path: str | Path, *, title: str = "") -> None:
        """Draw effect, controls and side effects over strength, with their intervals."""
        effect = f"effect on {self.readout}"
        measured: dict[str, list[Mean]] = {
            effect: [dose.effect for dose in self.doses],
            "KL on unrelated text": [dose.kl for dose in self.doses],
            "loss on unrelated text": [dose.loss for dose in self.doses],
        }
        curves = {name: [mean.value for mean in means] for name, means in measured.items()}
        bands = {name: [mean.interval for mean in means] for name, means in measured.items()}
        # Where the edit changes nothing, so does a change of its norm.
        drawn = [dose.rank.controls if dose.rank else (0.0,) for dose in self.doses]
        if any(dose.rank for dose in self.doses):
            name = f"{max(map(len, drawn))} random directions (mean, range)"
            curves[name] = [sum(effects) / len(effects) for effects in drawn]
            bands[name] = [Interval(min(effects), max(effects)) for effects in drawn]
        lines(
            [dose.strength for dose in self.doses],
            curves,
            intervals=bands,
            title=title or self.edit,
            path=path,
            x_label="strength" + ("" if self.unit is None else f" (1 is {', '.join(f'{u:.3g}' for u in self.unit)})"),
            y_label="change of the readout; nats per token",
        )


def trend(strengths: Sequence[float], effects: Sequence[float]) -> Trend:
    """The trend of effects by rising strength."""
    least = TOLERANCE * (max(effects) - min(effects))
    sense, turns = 0, []
    for index in range(len(effects) - 1):
        step = effects[index + 1] - effects[index]
        sign = 0 if abs(step) <= least else 1 if step > 0 else -1
        if sign and sense and sign != sense:
            turns.append(strengths[index])
        sense = sign or sense
    senses: dict[int, Literal["rising", "falling"]] = {1: "rising", -1: "falling"}
    return Trend(None if turns else senses.get(sense), tuple(turns))


def usable(strengths: Sequence[float], divergences: Sequence[float], *, bound: float) -> Usable | None:
    """The usable range, from KLs in nats by rising strength; None where every one is above the bound."""
    gentlest = min(range(len(divergences)), key=divergences.__getitem__)
    if divergences[gentlest] > bound:
        return None
    low, low_reached = _find_crossing(strengths, divergences, bound, range(gentlest, -1, -1))
    high, high_reached = _find_crossing(strengths, divergences, bound, range(gentlest, len(strengths)))
    return Usable(low, high, (low_reached, high_reached))


def _find_crossing(
    strengths: Sequence[float], divergences: Sequence[float], bound: float, order: Sequence[int]
) -> tuple[float, bool]:
    """Where the KL first crosses the bound on the way through `order`, or where the way ends, and whether it does."""
    for near, far in zip(order, order[1:], strict=False):
        if divergences[far] > bound:
            # Rounding may leave a KL of nothing a little below 0.
            inner, limit, outer = (math.sqrt(max(0.0, kl)) for kl in (divergences[near], bound, divergences[far]))
            share = (limit - inner) / (outer - inner)
            return strengths[near] + share * (strengths[far] - strengths[near]), True
    return strengths[order[-1]], False
