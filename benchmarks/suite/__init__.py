"""The planted suite: subjects whose units are known, and grades for explanations of them.

    world = World.build(4, seed=0, units=18)        level 1 to 6; a number or any string as the seed
    world.subject, world.source, world.texts        the model, the source of its units, one string a document
    world.units                                     the truth about each unit (`Unit`); world.features() are addresses
    unit.truth(tokens)                              its activation at every token of a window of at most LONGEST
    unit.causes, unit.exceptions, unit.second       as data (`Cause`): `holds(words, at)`, `write(tokens, at, rng)`
    unit.promotes, unit.suppresses, unit.inert      its effects on logits
    unit.upstream, unit.abstain                     heads and MLPs it needs; whether there is nothing to explain
    worlds(4, seed=0, units=100)                    as many units as wanted, world by world

    world.harvest(store)                            the evidence, as for any subject
    judge = grader(world, store)                    grades by windows of the holdout; or Grader(vocabulary, windows)
    judge.grade(unit, rule, promoted=..., upstream=...)   a `Grade`; rule: a Rule, its JSON, or None to abstain
    judge.pairs(unit)                               the counterfactual pairs behind the headline
    summary(grades), table(grades)                  means with bootstrap intervals over units, by level
    oneshot(world, store)                           the rule explainer's labels of a world, graded

    python -m neuronaut.benchmarks.suite            the same for some levels, as a table

Level by level: kinds.py. Activations equal the truth within 2e-6 of the unit's scale, at level 6 in sign (graft.py).
Units are named in reports only; explainers see the address and the subject.
"""

from .grade import Grade, Grader, Summary, summary, table
from .oneshot import Labelled, grader, oneshot
from .pairs import Pair, Target, counterfactuals
from .truth import LONGEST, Cause, Predicate, Sum, Unit
from .world import World, worlds

__all__ = [
    "LONGEST",
    "Cause",
    "Grade",
    "Grader",
    "Labelled",
    "Pair",
    "Predicate",
    "Sum",
    "Summary",
    "Target",
    "Unit",
    "World",
    "counterfactuals",
    "grader",
    "oneshot",
    "summary",
    "table",
    "worlds",
]
