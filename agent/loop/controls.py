"""Negative controls, which judge again on observations that ought to support nothing; and verdicts on single claims.

    permuted   all observed values in a random order: the pattern is gone, the levels are all there
    dead       nothing ever happened
    sham       of a feature the same inputs with another unit's activations (feature_examiner.py); of a behaviour the
               same experiments with each node taken for another (behaviour_examiner.py)

Claims about what a feature writes and reads are held against what experiments on effects saw.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...data.store.journal_values import Experiment, Observation
from .hypotheses import Hypothesis
from .judging import counts_for_odds, observed_values, outcome_of, rank_rivals
from .levels import EDGES

Values = Mapping[str, Sequence[float]]
"""Observed values by experiment."""
Supported = Callable[[Values], bool]
"""Whether observations with these values would have supported the leader, or what says the same."""


@dataclass(frozen=True, slots=True)
class ControlResult:
    """A control, and whether it came out as it must."""

    name: str
    what: str
    passed: bool
    value: float | None
    """What was measured, as `what` says."""


def evidence_for_odds(
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
) -> Supported:
    """Builds the function that judges other values of these experiments."""

    def supported(values: Values) -> bool:
        false = {name: replace(observations[name], result={"values": list(row)}) for name, row in values.items()}
        rivals = rank_rivals(hypotheses, experiments, false, kind=kind)
        outcome = outcome_of(rivals, experiments, false)
        return outcome.answer == "supported" and leader in (outcome.leader, *outcome.alike)

    return supported


def permuted_and_dead(values: Values, supported: Supported, *, seed: int) -> list[ControlResult]:
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
    """Every claim about what a feature writes or reads, with what experiments saw of it.

    A row has `hypothesis` (the first that makes it), `claim`, `item`, `expected`, `values` (by experiment name) and
    `verdict`: supported where every measurement agrees in level or is stronger in its direction, refuted where none
    does, mixed else, untested where there is none. What experiments saw of a claim has nothing to do with who makes it,
    nor with when the feature fires.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, hypothesis in hypotheses.items():
        for claim, key, expected, items in (
            ("promotes", "token", 1.0, hypothesis.promotes),
            ("suppresses", "token", -1.0, hypothesis.suppresses),
            ("reads", "node", 1.0, hypothesis.reads),
        ):
            for item in items:
                if (claim, item) not in rows:
                    values = _values_of(key, item, experiments, observations)
                    rows[claim, item] = {
                        "hypothesis": name,
                        "claim": claim,
                        "item": item,
                        "expected": expected,
                        "values": values,
                        "verdict": _claim_verdict([value * expected >= EDGES[1] for value in values.values()]),
                    }
    return list(rows.values())


def _claim_verdict(agreed: Sequence[bool]) -> str:
    return "untested" if not agreed else "supported" if all(agreed) else "mixed" if any(agreed) else "refuted"


def _values_of(
    key: str, name: str, experiments: Sequence[Experiment], observations: Mapping[str, Observation]
) -> dict[str, float]:
    """The measured values of a claimed token or node, by the experiment on effects that measured it."""
    by_experiment: dict[str, float] = {}
    for experiment in experiments:
        values = observed_values(experiment, observations)
        if values is None or experiment.survey or experiment.design["readout"] != "effect":
            continue
        for item, value in zip(experiment.design["items"], values, strict=True):
            if item.get("about", {}).get(key) == name:
                by_experiment[experiment.name] = value
    return by_experiment
