"""Examining a behaviour's explanation: the baseline to beat, the holdout, which is read once, and the controls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...data.journal_values import Experiment, Observation
from ...data.records import Score
from .behaviour import BehaviourLab
from .behaviour_holdout import examine
from .controls import ControlResult, judged, permuted_and_dead, supporter
from .hypotheses import Hypothesis

LEAST_FAITHFUL = 0.75
"""Share of the behaviour that a circuit must bring about by itself, on both halves of the holdout."""
CHANCE = 0.05
"""A circuit's faithfulness must be among this share of the best of random circuits of its make-up."""


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

    def shortfall(self, scores: Sequence[Score]) -> str | None:
        """Why a circuit with these holdout scores is not supported; None where it may be."""
        for score in (score for score in scores if score.metric == "faithfulness" and score.value is not None):
            if score.value is not None and score.value < LEAST_FAITHFUL:
                return f"faithfulness of {score.value:.2f} on the {score.examples} holdout, wanted {LEAST_FAITHFUL}"
            p = score.provenance.get("p")
            if isinstance(p, float) and p > CHANCE:
                return f"random circuits of its make-up are as faithful on the {score.examples} holdout (p = {p:.2f})"
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
        return permuted_and_dead(real, supported, seed=self._lab.seed)

    def explanation(self, text: str, hypothesis: Hypothesis) -> None:
        """A behaviour is no feature of the store: its explanation is in the journal."""
