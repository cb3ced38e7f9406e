"""What experiments on features have in common, and those on behaviours: the lab that they are run in."""

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
