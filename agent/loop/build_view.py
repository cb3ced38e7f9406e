"""Makes the view of a policy from the journal and the lab."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.records import Example
from ...data.store.journal_values import Experiment, Observation
from .experiments import Control, Measured, design_from_json
from .target import Lab
from .view import Done, Phase, Refused, Rival, View

STRONG, WEAKER, NEAR, SILENT = 10, 5, 6, 3
"""Training examples that a view holds: the strongest, others that are active, near misses, and other silent ones."""


def view_of(
    lab: Lab,
    rivals: Sequence[Rival],
    experiments: Sequence[Experiment],
    observations: Mapping[str, Observation],
    *,
    phase: Phase,
    round: int,
    name: str,
    baseline: Mapping[str, Any] | None,
    spent: Mapping[str, float],
    left: Mapping[str, float],
    rejected: str | None,
    step: int = 0,
    refused: Sequence[Refused] = (),
) -> View:
    """Makes a step's view. A challenger is shown the leader without its odds, and challengers' experiments only."""
    challenging = phase == "challenge"
    visible = [e for e in experiments if e.role == "challenger"] if challenging else list(experiments)
    visible_rivals = [_without_odds(rivals[0])] if challenging and rivals else list(rivals)
    return View(
        phase=phase,
        kind=lab.kind,
        target=name,
        round=round,
        seed=lab.seed,
        statistics=lab.statistics,
        scale=lab.scale,
        examples=_sample_strengths(lab.examples),
        about={**lab.about(), "baseline": baseline},
        rivals=tuple(visible_rivals),
        done=tuple(_done(e, observations.get(e.name)) for e in visible if e.name in observations),
        spent=spent,
        left=left,
        rejected=rejected,
        step=step,
        refused=tuple(refused),
    )


def measured_from_json(result: Mapping[str, Any]) -> Measured:
    """A result from the journal."""
    control = None if result["control"] is None else Control(**result["control"])
    return Measured(**{**result, "values": tuple(result["values"]), "control": control})


def _sample_strengths(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Examples of every strength, in their order, which is the strongest first."""
    active = [e for e in examples if e.kind not in ("near_miss", "silent")]
    near, silent = ([e for e in examples if e.kind == kind] for kind in ("near_miss", "silent"))
    weaker = active[STRONG:]
    places = np.linspace(0, len(weaker) - 1, min(WEAKER, len(weaker))).round().astype(int)
    chosen = {e.window for e in (*active[:STRONG], *(weaker[i] for i in places), *near[:NEAR], *silent[:SILENT])}
    return tuple(e for e in examples if e.window in chosen)


def _without_odds(leader: Rival) -> Rival:
    """The leader as a challenger sees it."""
    return Rival(
        name=leader.name,
        hypothesis=leader.hypothesis,
        status="live",
        log_odds=0.0,
        share=1.0,
        resolved=0,
        silences=0,
        hits=None,
        brier=None,
    )


def _done(experiment: Experiment, observation: Observation | None) -> Done:
    ok = observation is not None and observation.status == "ok"
    return Done(
        name=experiment.name,
        tool=experiment.tool,
        args=experiment.args,
        purpose=experiment.purpose,
        survey=experiment.survey,
        design=design_from_json(experiment.design),
        measured=measured_from_json(observation.result) if ok and observation is not None else None,
        reason=None if observation is None else observation.reason,
        expected={prediction.hypothesis: prediction.expected for prediction in experiment.predictions},
        role=experiment.role,
        round=experiment.round,
    )
