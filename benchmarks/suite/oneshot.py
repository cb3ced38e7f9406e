"""The rule explainer alone on planted units: the figure that an investigation has to beat.

A world is harvested, its units are labelled once from text and random edits, and the rules are graded.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ...data.records import Explanation
from ...data.store.store import Store
from ...explainers.rule import RuleExplainer
from ...labelling.label import label
from .grade import Grade, Grader
from .truth import Unit
from .world import World


@dataclass(frozen=True, slots=True)
class Labelled:
    """A unit, its explanation, and the grade of that."""

    unit: Unit
    explanation: Explanation
    grade: Grade


def holdout_windows(world: World, store: Store) -> list[tuple[str, ...]]:
    """Whole windows of the holdout of a world that was harvested into the store."""
    pool = [window.ids for window in store.pool_windows(world.subject.name, "holdout")]
    return [world.subject.decode_tokens(ids.tolist()) for ids in pool if len(ids) == max(map(len, pool))]


def grader(world: World, store: Store, *, each: int = 50, seed: int = 0) -> Grader:
    """Grades by whole windows of the holdout of a world that was harvested into the store."""
    return Grader(world.subject.vocabulary, holdout_windows(world, store), each=each, seed=seed)


def oneshot(world: World, store: Store, *, each: int = 50, seed: int = 0) -> Iterator[Labelled]:
    """Harvest a world into a store, label its units with the rule explainer, and grade the rules."""
    world.harvest(store)
    judge = grader(world, store, each=each, seed=seed)
    explainer = RuleExplainer(world.subject, seed=seed)
    results = label(
        world.features(), store, world.subject, explainer=explainer, scorers=[], sources={world.source.id: world.source}
    )
    units = {unit.address: unit for unit in world.units}
    for result in results:
        unit = units[str(result.feature)]
        yield Labelled(unit, result.explanation, judge.grade(unit, result.explanation.rule))
