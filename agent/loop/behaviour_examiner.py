"""Examining a behaviour's explanation: the baseline to beat, the holdout, which is read once, and the controls.

A circuit is examined at the end on pairs that nothing has seen:

    natural          the holdout's pairs
    counterfactual   pairs the other way round, the corrupted prompt asking for its own answer and the clean one being
                     its corruption: drawn anew by the task's generator, or made of the holdout's where it has none. No
                     tool corrupts in this direction; a circuit that leaves a backup out fails here

On both it is scored for faithfulness (the circuit alone: near 1) and completeness (what the model still does without
it: near 0), each with its interval; faithfulness also stands among that of random circuits of the same make-up.

A random control is what the same experiments give where each node is taken for another of its kind: it ought to support
nothing.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from ...causal.circuits.evaluate import Evaluation, evaluate
from ...causal.circuits.nodes import Node
from ...causal.circuits.roles import find_roles
from ...causal.circuits.tasks import Task, baseline
from ...causal.measures import Effect
from ...causal.prompts import Pairs
from ...data.records import Score
from ...data.store.journal_values import Experiment
from ...subject.errors import NeuronautError
from .behaviour_lab import BehaviourLab, effects
from .controls import ControlResult, Supported
from .hypotheses import Hypothesis
from .target import Examined, Finalist, Question, Shortfall

LEAST_FAITHFUL = 0.75
"""Share of the behaviour that a circuit must bring about by itself, on both halves of the holdout."""
CHANCE = 0.05
"""A circuit's faithfulness must be among this share of the best of random circuits of its make-up, on one half."""
ROLE_PAIRS = 16
"""Pairs that roles are measured on, where they can be drawn."""
RANDOM_CONTROLS = 3
"""Times that each node is taken for another."""


class BehaviourExaminer:
    """Examines circuits of one behaviour."""

    def __init__(self, lab: BehaviourLab) -> None:
        self._lab = lab

    def refusal(self) -> None:
        """Nothing is refused here: a task that the subject does not do is refused when its lab is made."""

    def baseline(self) -> dict[str, Any]:
        """All nodes together, which is what a circuit has to be as good as with fewer."""
        return {
            "text": "all nodes together",
            "rule": None,
            "scores": [],
            "nodes": len(self._lab.nodes),
            "metric": asdict(self._lab.baseline),
        }

    def compare(self, finalists: Mapping[str, Hypothesis]) -> list[Finalist]:
        """None: a behaviour has no text beside the holdout that decides nothing else."""
        del finalists
        return []

    def holdout(self, text: str, hypothesis: Hypothesis) -> Examined:
        """Faithfulness and completeness on both halves; to be called once."""
        del text
        return Examined(examine(self._lab, hypothesis) if hypothesis.nodes else [])

    def roles(self, hypothesis: Hypothesis) -> dict[str, Any] | None:
        """What its nodes do, on pairs that no survey saw: drawn anew, or those that experiments measured on."""
        lab, nodes = self._lab, self._lab.circuit(hypothesis)
        if not nodes:
            return None
        task = lab.drawn(ROLE_PAIRS, seed=lab.seed + 2 * _SEED) if lab.has_generator else lab.part("select")
        try:
            return find_roles(lab.subject, task, nodes, seed=lab.seed).to_json()
        except NeuronautError as error:
            return {"reason": str(error)}

    def indescribable(self, hypothesis: Hypothesis, grading: str | None) -> None:
        """Nothing is indescribable here: a circuit is always a list of nodes."""

    @staticmethod
    def shortfall(scores: Sequence[Score]) -> Shortfall | None:
        """Why a circuit with these holdout scores is not supported; None where it may be."""
        for score in (score for score in scores if score.metric == "faithfulness" and score.value is not None):
            if score.value is not None and score.value < LEAST_FAITHFUL:
                question: Question = "counterfactual" if score.examples == "counterfactual" else "natural"
                why = f"faithfulness of {score.value:.3f} on the {score.examples} holdout, wanted {LEAST_FAITHFUL}"
                return Shortfall(question, why)
        # Of one half only: where nodes back each other up, one without the other is as faithful in one direction.
        among = [p for score in scores if isinstance(p := score.provenance.get("percentile"), float)]
        if among and max(among) < 100 * (1 - CHANCE):
            why = f"random circuits of its make-up are as faithful on both halves (percentile {max(among):.0f})"
            return Shortfall("controls", why)
        return None

    def random_control(self, experiments: Sequence[Experiment], supported: Supported) -> ControlResult:
        """Whether the same experiments with each node taken for another leave the leader unsupported."""
        supports = [supported(random_control(self._lab, experiments, number)) for number in range(RANDOM_CONTROLS)]
        what = (
            f"the same experiments, each node taken for another, {RANDOM_CONTROLS} times: how many support the leader"
        )
        # One of them may put equals in each other's places.
        return ControlResult("sham", what, sum(supports) <= 1, float(sum(supports)))

    def explanation(self, text: str, hypothesis: Hypothesis) -> None:
        """No explanation for the store: a behaviour is none of its features, so the journal alone has it."""


SCORER = "circuit"
CONTROLS = 100
"""Random circuits that the examined one stands among, at most."""
_SEED = 999_999_937
"""Away from all seeds that tools draw with."""


def examine(lab: BehaviourLab, hypothesis: Hypothesis) -> list[Score]:
    """Scores a hypothesis's nodes on both halves: a Score of faithfulness and one of completeness each.

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
    """The task with clean and corrupted prompts in each other's place."""
    pairs = task.pairs
    return Task(f"{task.name} reversed", Pairs(pairs.corrupted, pairs.clean, pairs.wrong, pairs.answers))


def _scores(lab: BehaviourLab, nodes: tuple[Node, ...], half: str, rows: Callable[[], Task]) -> list[Score]:
    try:
        if not nodes:
            raise NeuronautError("the hypothesis names no nodes")
        task = rows()
        baseline(lab.subject, task, metric_name=lab.metric, seed=lab.seed)
        evaluation = evaluate(lab.runs_of(task), nodes, subsets=0, controls=CONTROLS, seed=lab.seed)
    except NeuronautError as error:
        return [Score(SCORER, half, metric, None, str(error)) for metric in ("faithfulness", "completeness")]
    provenance = {"nodes": [str(node) for node in nodes], "pairs": task.name, "seed": lab.seed, "metric": lab.metric}
    return [
        _score(half, "faithfulness", evaluation.faithfulness, provenance, evaluation),
        _score(half, "completeness", evaluation.ablated, provenance, None),
    ]


def _score(
    half: str, metric: str, effect: Effect, provenance: dict[str, object], evaluation: Evaluation | None
) -> Score:
    low, high = effect.interval or (None, None)
    control = None if evaluation is None else evaluation.control
    among: dict[str, object] = {} if control is None else {"percentile": control.percentile, "p": control.p}
    reason = effect.reason if effect.recovered is None else None
    return Score(
        scorer=SCORER,
        examples=half,
        metric=metric,
        value=effect.recovered,
        reason=reason,
        ci_low=low,
        ci_high=high,
        n=effect.n,
        baselines={} if control is None else {"random_circuits": median(control.faithfulness)},
        provenance={**provenance, **among, "formula": effect.formula},
    )


def random_control(lab: BehaviourLab, experiments: Sequence[Experiment], number: int) -> dict[str, list[float]]:
    """What each experiment's items would have given where each node is taken for another of its kind, by name."""
    successors, values = _successors(lab, number), dict[str, list[float]]()
    for experiment in experiments:
        abouts = [_exchange_nodes(item["about"], successors) for item in experiment.design["items"]]
        draw = experiment.design["plan"].get("prompts")
        runs = lab.runs("select") if draw is None else lab.fresh(int(draw))
        values[experiment.name] = [round(effect.recovered or 0.0, 5) for effect in effects(lab, runs, abouts)]
    return values


def _successors(lab: BehaviourLab, number: int) -> dict[str, str]:
    """The next node of its kind in a random cycle, by node, so that none stays what it is where it has company."""
    kinds: dict[str, list[str]] = {}
    for node in lab.nodes:
        kinds.setdefault(node.kind, []).append(str(node))
    rng, successors = random.Random(f"sham:{lab.seed}:{number}"), dict[str, str]()
    for members in kinds.values():
        cycle = rng.sample(members, len(members))
        successors |= dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    return successors


def _exchange_nodes(about: Mapping[str, Any], successors: Mapping[str, str]) -> dict[str, Any]:
    """An item's `about` with each node's successor in its place."""
    return {
        what: successors[nodes] if isinstance(nodes, str) else [successors[node] for node in nodes]
        for what, nodes in about.items()
    }
