"""Several runs on one feature, with other seeds and orders, made one answer with its dissent.

Every run's rule is asked about every window that any run measured, so a rule is judged on windows that it was not made
from. The answer is the rule that is right most often about whether they fire, the shortest among those within a
standard error of it. It is supported where more than half of all runs ended supported with a rule that agrees with it;
so no pool is supported for which one run alone was not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ..data.padding import pad_ids
from ..data.store.journal import Journal
from ..explainers.battery.places import ACTIVE
from ..rules.evaluate import TokenGrid, predict
from ..rules.language import Rule
from .loop.levels import balanced
from .report.report import Report

AGREE = 0.9
"""Share of the windows, balanced over those that fire and those that do not, from which on two rules say the same."""


@dataclass(frozen=True, slots=True)
class Dissent:
    """A run that came to something else."""

    id: str
    status: str
    text: str | None
    reason: str
    agreement: float | None
    """With the answer, on all windows; None where the run has no rule."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """What several runs say together."""

    target: str
    runs: int
    status: str
    """supported, open or no_explanation."""
    ends: Mapping[str, int]
    """Runs by status."""
    id: str | None
    """The run whose rule is the answer; None where no run has one."""
    text: str | None
    hits: float | None
    """Of the answer: share of the windows on which it is right about whether they fire, balanced."""
    agreement: float | None
    """Mean of all pairs of runs with rules; None of fewer than two."""
    windows: int
    dissent: tuple[Dissent, ...]


@dataclass(frozen=True, slots=True)
class _Measured:
    """The windows that runs measured: ids (window, position), pivots and whether they fired (window,)."""

    ids: NDArray[np.int64]
    pivots: NDArray[np.int64]
    fired: NDArray[np.bool_]


def pool(journal: Journal, reports: Sequence[Report], vocabulary: Sequence[str], scale: float) -> Pooled:
    """Make one answer of the runs on one feature; `scale` is what 1 is in the values that were measured."""
    measured = _read(journal, reports)
    rules = {r.id: Rule.model_validate(r.rule) for r in reports if r.rule is not None and r.text is not None}
    fires = {id: _predict(rule, measured, vocabulary, scale) for id, rule in rules.items()}
    right = {id: balanced(f, measured.fired) for id, f in fires.items() if len(f)}
    ends, answer = Counter(r.status for r in reports), None
    if right:
        best = max(right.values())
        error = (best * (1 - best) / len(measured.fired)) ** 0.5
        near = [id for id, value in right.items() if value >= best - error]
        answer = min(near, key=lambda id: (rules[id].length(), -right[id]))
    with_answer = {} if answer is None else {id: balanced(f, fires[answer]) for id, f in fires.items()}
    agreeing = [r for r in reports if r.status == "supported" and with_answer.get(r.id, 0.0) >= AGREE]
    pairs = [balanced(first, second) for first, second in combinations(fires.values(), 2)]
    status = "supported" if 2 * len(agreeing) > len(reports) else "open"
    if 2 * ends["no_explanation"] > len(reports):
        status = "no_explanation"
    return Pooled(
        target=reports[0].target,
        runs=len(reports),
        status=status,
        ends=dict(ends),
        id=answer,
        text=next((r.text for r in reports if r.id == answer), None),
        hits=None if answer is None else right[answer],
        agreement=float(np.mean(pairs)) if pairs else None,
        windows=len(measured.fired),
        dissent=tuple(
            Dissent(r.id, r.status, r.text, r.reason or "", with_answer.get(r.id))
            for r in reports
            if r not in agreeing and r.id != answer
        ),
    )


def _read(journal: Journal, reports: Sequence[Report]) -> _Measured:
    """Every window that was measured, up to its pivot, once."""
    values: dict[tuple[int, ...], float] = {}
    for report in reports:
        observations = journal.observations(report.id)
        for experiment in journal.experiments(report.id):
            observation = observations.get(experiment.name)
            responses = not experiment.survey and experiment.design["readout"] == "response"
            if responses and observation is not None and observation.status == "ok":
                for item, value in zip(experiment.design["items"], observation.result["values"], strict=True):
                    values.setdefault(tuple(item["ids"][: item["pivot"] + 1]), value)
    width = max(map(len, values), default=1)
    ids = pad_ids([np.array(row, np.int64) for row in values], width=width)
    pivots = np.array([len(row) - 1 for row in values], np.int64)
    return _Measured(ids, pivots, np.array([value >= ACTIVE for value in values.values()], np.bool_))


def _predict(rule: Rule, measured: _Measured, vocabulary: Sequence[str], scale: float) -> NDArray[np.bool_]:
    predicted = predict(rule, TokenGrid(vocabulary, measured.ids))
    return predicted[np.arange(len(measured.pivots)), measured.pivots] >= rule.fires_from(ACTIVE * scale)
