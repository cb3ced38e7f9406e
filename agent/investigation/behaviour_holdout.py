"""The examination of a circuit on pairs that nothing has seen, once, at the end. It alone reads a lab's holdout.

    natural          the holdout's pairs
    counterfactual   pairs the other way round, the corrupted prompt asking for its own answer and the clean one being
                     its corruption: drawn anew by the task's generator, or made of the holdout's where it has none. No
                     tool corrupts in this direction; a circuit that leaves a backup out fails here

Of both it wants faithfulness (the circuit alone: near 1) and completeness (what the model still does without it: near
0), each with its interval; faithfulness also stands among that of random circuits of the same make-up.

A sham is what the same experiments give where each node is taken for another of its kind: it ought to support nothing.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from ...causal.circuit_evaluation import Evaluation, evaluate
from ...causal.measures import Effect
from ...causal.nodes import Node
from ...causal.prompts import Pairs
from ...causal.tasks import Task, baseline
from ...data.journal_values import Experiment
from ...data.records import Score
from ...subject.errors import NeuronautError
from ..tools.circuit_common import effects
from .behaviour import BehaviourLab
from .hypotheses import Hypothesis

SCORER = "circuit"
CONTROLS = 100
"""Random circuits that the examined one stands among, at most."""
_SEED = 999_999_937
"""Away from all seeds that tools draw with."""


def examine(lab: BehaviourLab, hypothesis: Hypothesis) -> list[Score]:
    """Score a hypothesis's nodes on both halves: a Score of faithfulness and one of completeness each.

    `baselines` has the median of the random circuits; `provenance` the percentile among them, its p, the nodes and
    what the pairs are. Where nothing can be measured, the value is None and the reason says why.
    """
    nodes = lab.circuit(hypothesis)
    halves: dict[str, Callable[[], Task]] = {
        "natural": lambda: lab._parts["holdout"],
        "counterfactual": lambda: _reversed(_unseen(lab)),
    }
    return [score for half, rows in halves.items() for score in _scores(lab, nodes, half, rows)]


def _unseen(lab: BehaviourLab) -> Task:
    """As many pairs as in the holdout, drawn anew; the holdout's own where the task has no generator."""
    own = lab._parts["holdout"]
    return lab.drawn(len(own), seed=lab.seed + _SEED) if lab.has_generator else own


def _reversed(task: Task) -> Task:
    pairs = task.pairs
    return Task(f"{task.name} reversed", Pairs(pairs.corrupted, pairs.clean, pairs.wrong, pairs.answers))


def _scores(lab: BehaviourLab, nodes: tuple[Node, ...], half: str, rows: Callable[[], Task]) -> list[Score]:
    try:
        if not nodes:
            raise NeuronautError("the hypothesis names no nodes")
        task = rows()
        baseline(lab.subject, task, metric_name=lab.metric, seed=lab.seed)
        found = evaluate(lab.runs_of(task), nodes, subsets=0, controls=CONTROLS, seed=lab.seed)
    except NeuronautError as error:
        return [Score(SCORER, half, metric, None, str(error)) for metric in ("faithfulness", "completeness")]
    said = {"nodes": [str(node) for node in nodes], "pairs": task.name, "seed": lab.seed, "metric": lab.metric}
    return [
        _score(half, "faithfulness", found.faithfulness, said, found),
        _score(half, "completeness", found.ablated, said, None),
    ]


def _score(half: str, metric: str, effect: Effect, said: dict[str, object], found: Evaluation | None) -> Score:
    low, high = effect.interval or (None, None)
    control = None if found is None else found.control
    among: dict[str, object] = {} if control is None else {"percentile": control.percentile, "p": control.p}
    reason = effect.reason if effect.recovered is None else None
    return Score(
        SCORER, half, metric, effect.recovered, reason, low, high, effect.n,
        baselines={} if control is None else {"random_circuits": median(control.faithfulness)},
        provenance={**said, **among, "formula": effect.formula},
    )  # fmt: skip


def sham(lab: BehaviourLab, experiments: Sequence[Experiment], number: int) -> dict[str, list[float]]:
    """By experiment, what its items would have given where each node is taken for another of its kind."""
    taken_for, found = _taken_for(lab, number), dict[str, list[float]]()
    for experiment in experiments:
        abouts = [_renamed(item["about"], taken_for) for item in experiment.design["items"]]
        draw = experiment.design["plan"].get("prompts")
        runs = lab.runs("select") if draw is None else lab.fresh(int(draw))
        found[experiment.name] = [round(one.recovered or 0.0, 5) for one in effects(lab, runs, abouts)]
    return found


def _taken_for(lab: BehaviourLab, number: int) -> dict[str, str]:
    """By node, the next one of its kind in a random cycle, so that none stays what it is where it has company."""
    kinds: dict[str, list[str]] = {}
    for node in lab.nodes:
        kinds.setdefault(node.kind, []).append(str(node))
    rng, found = random.Random(f"sham:{lab.seed}:{number}"), dict[str, str]()
    for members in kinds.values():
        cycle = rng.sample(members, len(members))
        found |= dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    return found


def _renamed(about: Mapping[str, Any], taken_for: Mapping[str, str]) -> dict[str, Any]:
    return {
        what: taken_for[named] if isinstance(named, str) else [taken_for[one] for one in named]
        for what, named in about.items()
    }
