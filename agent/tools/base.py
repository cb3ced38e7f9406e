"""The bases of all experiments: a tool on features is run in a FeatureLab, one on behaviours in a BehaviourLab."""

from typing import Generic

from ..loop.behaviour_lab import BehaviourLab
from ..loop.experiments import A, Tool
from ..loop.feature_lab import FeatureLab


class FeatureTool(Tool[A, FeatureLab], Generic[A]):
    """An experiment on a feature."""

    target = "feature"


class BehaviourTool(Tool[A, BehaviourLab], Generic[A]):
    """An experiment on a behaviour."""

    target = "behaviour"
