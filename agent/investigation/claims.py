"""Single causal claims of features: what they write and read, against what experiments on effects saw."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...data.journal_values import Experiment, Observation
from .hypotheses import Hypothesis
from .judging import seen_of
from .levels import EDGES


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
                        "hypothesis": name, "claim": claim, "item": what, "expected": expected, "values": values,
                        "verdict": _borne_out([value * expected >= EDGES[1] for value in values.values()]),
                    }  # fmt: skip
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
