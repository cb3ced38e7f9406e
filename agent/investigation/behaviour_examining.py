"""Examining a behaviour's explanation: the baseline to beat, the holdout, which is read once, and the controls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...data.journal_values import Experiment, Observation
from ...data.records import Score
from .behaviour import BehaviourLab
from .behaviour_holdout import examine, sham
from .controls import ControlResult, judged, permuted_and_dead, supporter
from .hypotheses import Hypothesis

LEAST_FAITHFUL = 0.75
"""Share of the behaviour that a circuit must bring about by itself, on both halves of the holdout."""
CHANCE = 0.05
"""A circuit's faithfulness must be among this share of the best of random circuits of its make-up, on one half."""
SHAMS = 3
"""Times that each node is taken for another."""


class BehaviourExaminer:
    """Examines circuits of one behaviour."""

    def __init__(self, lab: BehaviourLab) -> None:
        self._lab = lab

    def refusal(self) -> None:
        """A task that the subject does not do is refused when its lab is made."""

    def baseline(self) -> dict[str, Any]:
        """All nodes together, which is what a circuit has to be as good as with fewer."""
        return {"text": "all nodes together", "rule": None, "scores": [], "nodes": len(self._lab.nodes),
                "metric": asdict(self._lab.baseline)}  # fmt: skip

    def holdout(self, text: str, hypothesis: Hypothesis) -> list[Score]:
        """Faithfulness and completeness on both halves; to be called once."""
        del text
        return examine(self._lab, hypothesis) if hypothesis.nodes else []

    def indescribable(self, hypothesis: Hypothesis) -> None:
        """A circuit is always a list of nodes."""

    def shortfall(self, scores: Sequence[Score]) -> str | None:
        """Why a circuit with these holdout scores is not supported; None where it may be."""
        for score in (score for score in scores if score.metric == "faithfulness" and score.value is not None):
            if score.value is not None and score.value < LEAST_FAITHFUL:
                return f"faithfulness of {score.value:.3f} on the {score.examples} holdout, wanted {LEAST_FAITHFUL}"
        # Of one half only: where nodes back each other up, one without the other is as faithful in one direction.
        among = [p for score in scores if isinstance(p := score.provenance.get("percentile"), float)]
        if among and max(among) < 100 * (1 - CHANCE):
            return f"random circuits of its make-up are as faithful on both halves (percentile {max(among):.0f})"
        return None

    def controls(
        self, hypotheses: Mapping[str, Hypothesis], experiments: Sequence[Experiment],
        observations: Mapping[str, Observation], leader: str,
    ) -> list[ControlResult]:  # fmt: skip
        """Whether false observations leave the leader unsupported."""
        used, real = judged(experiments, observations, "behaviour")
        if not used:
            return []
        supported = supporter(hypotheses, used, observations, leader, "behaviour")
        shams = [supported(sham(self._lab, used, number)) for number in range(SHAMS)]
        what = f"the same experiments, each node taken for another, {SHAMS} times: how many support the leader"
        # One of them may put equals in each other's places.
        told = ControlResult("sham", what, sum(shams) <= 1, float(sum(shams)))
        return [*permuted_and_dead(real, supported, seed=self._lab.seed), told]

    def explanation(self, text: str, hypothesis: Hypothesis) -> None:
        """A behaviour is no feature of the store: its explanation is in the journal."""
