"""The bases of all experiments: a tool on features is run in a FeatureLab, one on behaviours in a BehaviourLab."""

from typing import Generic, Literal

from ..loop.behaviour_lab import BehaviourLab
from ..loop.experiments import A, Tool
from ..loop.feature_lab import FeatureLab

Expect = Literal["any", "silence", "activity"]
"""What the leading hypothesis expects of the inputs that are asked for."""


class FeatureTool(Tool[A, FeatureLab], Generic[A]):
    """An experiment on a feature."""

    target = "feature"


class InsideTool(FeatureTool[A], Generic[A]):
    """An experiment on a feature that looks into the model."""

    inside = True


class BehaviourTool(Tool[A, BehaviourLab], Generic[A]):
    """An experiment on a behaviour."""

    target = "behaviour"
