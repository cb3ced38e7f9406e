"""Functions of text with unit tests, after the kinds of FIND (Schwettmann et al. 2023): as black boxes for explainers.

world = build_world("0", level=1)                      a subject of five functions, text, and the truth about each
judge = FunctionGrader.of(world, store, seed="0")      grades, among them the share of unit tests that a rule passes
FunctionPlan()                                         what `neuronaut bench functions` runs (investigations.py)
"""

from .grade import FunctionGrader
from .plan import FunctionPlan
from .world import build_world

__all__ = ["FunctionGrader", "FunctionPlan", "build_world"]
