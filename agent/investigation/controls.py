"""Negative controls: what was judged is judged again, on observations that ought to support nothing.

permuted   all observed values in a random order: the pattern is gone, the levels are all there
dead       nothing ever happened
sham       the same inputs, another unit's activations (of features, examining.py); the same experiments, each node
           taken for another (of behaviours, behaviour_examining.py)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...data.journal_values import Experiment, Observation
from .hypotheses import Hypothesis
from .judging import counts_for_odds, judge, verdict

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
    hypotheses: Mapping[str, Hypothesis], experiments: Sequence[Experiment], observations: Mapping[str, Observation],
    leader: str, kind: str,
) -> Callable[[Values], bool]:  # fmt: skip
    """Whether other values of the same experiments would have supported the leader, or what says the same."""

    def supported(values: Values) -> bool:
        false = {name: replace(observations[name], result={"values": list(row)}) for name, row in values.items()}
        rivals = judge(hypotheses, experiments, false, kind=kind)
        found = verdict(rivals, experiments, false)
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
