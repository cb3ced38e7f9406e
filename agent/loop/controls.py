"""Negative controls: what was judged is judged again, on observations that ought to support nothing.

permuted   all observed values in a random order: the pattern is gone, the levels are all there
dead       nothing ever happened
sham       of a feature the same inputs with another unit's activations (feature_examiner.py); of a behaviour the same
           experiments with each node taken for another (behaviour_examiner.py)

Single causal claims of features: what they write and read, against what experiments on effects saw.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...data.store.journal_values import Experiment, Observation
from .hypotheses import Hypothesis
from .judging import counts_for_odds, outcome_of, rank_rivals, seen_of
from .levels import EDGES

Values = Mapping[str, Sequence[float]]
"""Observed values by experiment."""


@dataclass(frozen=True, slots=True)
class ControlResult:
    """A control, and whether it came out as it must."""

    name: str
    what: str
    passed: bool
    value: float | None
    """What was measured, as `what` says."""


def judged(
    experiments: Sequence[Experiment], observations: Mapping[str, Observation], kind: str
) -> tuple[list[Experiment], dict[str, list[float]]]:
    """The experiments that bear on the odds, and what was observed in each."""
    used = [e for e in experiments if counts_for_odds(e, kind) and e.name in observations]
    used = [e for e in used if observations[e.name].status == "ok"]
    return used, {e.name: list(observations[e.name].result["values"]) for e in used}


def supporter(
    hypotheses: Mapping[str, Hypothesis],
    experiments: Sequence[Experiment],
    observations: Mapping[str, Observation],
    leader: str,
    kind: str,
) -> Callable[[Values], bool]:
    """Whether other values of the same experiments would have supported the leader, or what says the same."""

    def supported(values: Values) -> bool:
        false = {name: replace(observations[name], result={"values": list(row)}) for name, row in values.items()}
        rivals = rank_rivals(hypotheses, experiments, false, kind=kind)
        found = outcome_of(rivals, experiments, false)
        return found.answer == "supported" and leader in (found.leader, *found.alike)

    return supported


def permuted_and_dead(values: Values, supported: Callable[[Values], bool], *, seed: int) -> list[ControlResult]:
    """The two controls that need no measurement."""
    mixed = np.concatenate([np.asarray(row, np.float64) for row in values.values()])
    mixed = np.random.default_rng(seed).permutation(mixed)
    ends = np.cumsum([len(row) for row in values.values()])[:-1]
    permuted = {name: part.tolist() for name, part in zip(values, np.split(mixed, ends), strict=True)}
    dead = {name: [0.0] * len(row) for name, row in values.items()}
    return [
        ControlResult("permuted", "all observed values in a random order", not supported(permuted), None),
        ControlResult("dead", "every observed value zero", not supported(dead), None),
    ]


def claims(
    hypotheses: Mapping[str, Hypothesis], experiments: Sequence[Experiment], observations: Mapping[str, Observation]
) -> list[dict[str, Any]]:
    """Every claim about what a feature writes or reads, with what experiments saw: `hypothesis` (the first that makes
    it), `claim`, `item`, `expected`, `values` (by experiment name) and `verdict`: supported where every measurement
    agrees in level or is stronger in its direction, refuted where none does, mixed else, untested where there is none.
    What experiments saw of a claim has nothing to do with who makes it, nor with when the feature fires."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, hypothesis in hypotheses.items():
        for claim, sort, expected, named in (
            ("promotes", "token", 1.0, hypothesis.promotes),
            ("suppresses", "token", -1.0, hypothesis.suppresses),
            ("reads", "node", 1.0, hypothesis.reads),
        ):
            for what in named:
                if (claim, what) not in found:
                    values = _values_of(sort, what, experiments, observations)
                    found[claim, what] = {
                        "hypothesis": name,
                        "claim": claim,
                        "item": what,
                        "expected": expected,
                        "values": values,
                        "verdict": _borne_out([value * expected >= EDGES[1] for value in values.values()]),
                    }
    return list(found.values())


def _borne_out(agreed: Sequence[bool]) -> str:
    return "untested" if not agreed else "supported" if all(agreed) else "mixed" if any(agreed) else "refuted"


def _values_of(
    sort: str, what: str, experiments: Sequence[Experiment], observations: Mapping[str, Observation]
) -> dict[str, float]:
    """The value of an item in every experiment on effects that measured it."""
    values: dict[str, float] = {}
    for experiment in experiments:
        seen = seen_of(experiment, observations)
        if seen is None or experiment.survey or experiment.design["readout"] != "effect":
            continue
        for item, value in zip(experiment.design["items"], seen, strict=True):
            if item.get("about", {}).get(sort) == what:
                values[experiment.name] = value
    return values
