"""What `neuronaut bench functions` runs: the functions of a seed, explained by the columns of the planted suite."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...data.store.store import Store
from ..investigations import Place, Plan
from ..suite.grade import Grader
from ..suite.world import World
from .grade import FunctionGrader
from .kinds import draw_kinds
from .world import build_world

LEVELS = (1, 2, 3, 4)
DEFAULT = ("scripted", "one-shot", "token-only")
"""Columns that ask no language model."""


@dataclass(frozen=True, slots=True)
class FunctionPlan(Plan):
    """The levels and columns of a run; each level is a world of five functions."""

    levels: tuple[int, ...] = LEVELS
    units: int = 5
    columns: tuple[str, ...] = DEFAULT
    documents: int = 160
    known: ClassVar[Sequence[int]] = LEVELS
    suite: ClassVar[str] = "functions"

    def places(self) -> list[Place]:
        """A world for each level."""
        kinds = draw_kinds(str(self.seed))
        return [
            Place(level, str(self.seed), sum(kind.level == level for kind in kinds), self.documents, self.suite)
            for level in self.levels
        ]

    def open(self, place: Place) -> tuple[World, Grader]:
        """The functions of a level, and their grader."""
        world = build_world(place.seed, level=place.level, count=place.documents)
        with Store(":memory:") as store:
            world.harvest(store)
            return world, FunctionGrader.of(world, store, seed=place.seed)
