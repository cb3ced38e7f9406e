"""The lab of a behaviour: a task of clean and corrupted pairs, the nodes that may bring it about, and their shares.

A hypothesis says of nodes, or of nodes that are cut together (`head.0:0 + head.0:1`, where one backs the other up),
what share of the behaviour goes; a set of nodes that is cut costs the sum over all that it contains, at most the whole:

    cut(S)  = min(1, sum of the shares of what lies within S)        keep(S) = max(0, 1 - cut(all other nodes))

The pairs are dealt into three parts, by prompt: a prompt that occurs in several pairs is in one part only. Surveys,
where hypotheses come from, look at `explore`; experiments, which choose among them, measure on `select`; `holdout`
is for the examination at the end (behaviour_examiner.py) and is refused to everybody else.
"""

import json
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch

from ...causal.attribution_patching import Attribution, attribution_patching
from ...causal.circuits.nodes import Node, edits_of, nodes_of, parse_nodes
from ...causal.circuits.runs import CircuitRuns
from ...causal.circuits.tasks import GENERATORS, Task, baseline, generate
from ...causal.grids import Grid
from ...causal.intervene import Materials, apply
from ...causal.measures import METRICS, Direction, Effect, Question, effect, metric
from ...causal.runs import gather, logits_at
from ...data.records import Example
from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.sources import Source
from .experiments import Design, Item
from .hypotheses import Hypothesis
from .target import Meter

Part = Literal["explore", "select", "holdout"]
PARTS: Mapping[Part, float] = {"explore": 0.5, "select": 0.25, "holdout": 0.25}
"""The share of the pairs in each."""
LEAST = 2
"""Pairs in each part."""
FRESH = 3
"""Draws of fresh prompts that experiments may ask for."""
_FRESH_SEED = 1_000_003
"""Between the seeds of a task and of its fresh prompts."""
JOIN = " + "
"""Between nodes that are cut together."""
_SHOWN = 2

Shares = Mapping[frozenset[Node], float]


class BehaviourLab:
    """One behaviour, ready for experiments."""

    kind: Literal["behaviour"] = "behaviour"
    examples: tuple[Example, ...] = ()
    statistics: None = None

    def __init__(
        self,
        subject: Subject,
        task: Task,
        *,
        nodes: Sequence[Node] | None = None,
        metric: str = "logit_difference",
        sources: Mapping[str, Source] | None = None,
        seed: int = 0,
    ) -> None:
        """`nodes` are by default all heads and MLPs. Refuses a task that the subject does not do, one with too few
        different prompts, and nodes that overlap or of which the answer does not come.
        """
        self.subject, self.seed, self.metric = subject, seed, metric
        self.nodes: tuple[Node, ...] = nodes_of(subject) if nodes is None else tuple(nodes)
        self.sources: Mapping[str, Source] = sources or {}
        self._parts = split(task, seed=seed)
        self._runs: dict[Part | int, CircuitRuns] = {}
        self.task = self._parts["explore"]
        """The pairs that surveys look at."""
        self.baseline = baseline(subject, self.task, metric_name=metric, seed=seed)
        runs = self.runs("explore")
        self.scale = float((runs.clean - runs.floor).double().mean())
        """How far the metric falls where every node is cut: 1 in experiments' values."""
        self.rivals: Mapping[str, Hypothesis] = {}
        """The live hypotheses by name, the leader first; set before a tool designs an experiment."""
        self.meter = Meter()
        self._measured: set[str] = set()

    @property
    def target(self) -> str:
        """The subject's name and the task's."""
        return f"{self.subject.name} {self.task.name}"

    @property
    def normalised_by(self) -> str:
        """What 1 is in values."""
        return f"fall of {self.metric} from the clean prompts to those with every node cut: {self.scale:.3g}"

    @property
    def has_generator(self) -> bool:
        """Whether fresh prompts can be drawn."""
        return self.task.name in GENERATORS

    def about(self) -> dict[str, Any]:
        """The task, its metric and its nodes as plain JSON, for policies."""
        baseline, pairs = self.baseline, self.task.pairs
        clean, corrupted = (side.ids()[:_SHOWN] for side in (pairs.clean, pairs.corrupted))
        text = self.subject.decode_tokens
        samples = [
            {
                "clean": "".join(text(clean_ids)),
                "corrupted": "".join(text(corrupted_ids)),
                "answer": text([answer])[0],
                "wrong": text([wrong])[0],
            }
            for clean_ids, corrupted_ids, answer, wrong in zip(
                clean, corrupted, pairs.answers.tolist()[:_SHOWN], pairs.wrong.tolist()[:_SHOWN], strict=True
            )
        ]
        return {
            "task": self.task.name,
            "metric": self.metric,
            "formula": METRICS[self.metric].formula,
            "clean": baseline.clean.value,
            "corrupted": baseline.corrupted.value,
            "accuracy": baseline.accuracy,
            "corrupted_accuracy": baseline.corrupted_accuracy,
            "pairs": {"explore": len(self._parts["explore"]), "select": len(self._parts["select"])},
            "fresh": self.has_generator,
            "prompts": samples,
            "nodes": [str(node) for node in self.nodes],
        }

    def nulls(self) -> list[Hypothesis]:
        """The two rivals that are always there."""
        return [
            Hypothesis(
                text="Only the last token matters: nothing is carried to it from what stands before it.",
                kind="token_identity",
            ),
            Hypothesis(text="No pattern: nothing predicts what a cut costs.", kind="no_pattern"),
        ]

    def fault(self, hypothesis: Hypothesis) -> str | None:
        """Why a hypothesis cannot be put up here, in one line; None where it can."""
        if hypothesis.rule is not None or hypothesis.kind == "rule":
            return "a behaviour has no rule; say with kind=circuit which nodes bring it about, and with what shares"
        if hypothesis.kind == "circuit" and not hypothesis.nodes:
            return "the circuit has no nodes; say which, such as head.1:0, and what share goes when each is cut"
        try:
            self.circuit(hypothesis)
        except NeuronautError as error:
            return str(error)
        return None

    def part(self, name: Part) -> Task:
        """The pairs of a part; the holdout is refused."""
        if name == "holdout":
            raise NeuronautError("the holdout is read once, at the end, and by no tool; measure on select instead")
        return self._parts[name]

    def runs(self, name: Part) -> CircuitRuns:
        """Runs of a part's pairs with nodes cut; every set of nodes is run once. The holdout is refused."""
        if name not in self._runs:
            self._runs[name] = self.runs_of(self.part(name))
        return self._runs[name]

    def fresh(self, draw: int) -> CircuitRuns:
        """Runs of as many pairs as in `select`, drawn anew by the task's generator; refuses a task without one."""
        if draw not in self._runs:
            rows = len(self._parts["select"])
            self._runs[draw] = self.runs_of(self.drawn(rows, seed=self.seed + _FRESH_SEED * draw))
        return self._runs[draw]

    def drawn(self, rows: int, *, seed: int) -> Task:
        """Pairs from the task's generator, none of whose prompts is among the task's own; refuses a task without."""
        if not self.has_generator:
            raise NeuronautError(
                f"{self.task.name} has no generator, so there are no fresh prompts; use select, or one of "
                f"{', '.join(GENERATORS)}"
            )
        own = {prompt for part in self._parts.values() for prompts in prompts_of(part) for prompt in prompts}
        task = generate(self.subject, self.task.name, rows=2 * rows, seed=seed)
        new = [row for row, prompts in enumerate(prompts_of(task)) if not own & {*prompts}]
        if len(new) < LEAST:
            raise NeuronautError(f"the generator of {self.task.name} has no prompts but the task's; take fewer rows")
        return task.take(new[:rows])

    def runs_of(self, task: Task) -> CircuitRuns:
        """Runs of any pairs with this lab's nodes cut to their corrupted values."""
        return CircuitRuns(self.subject, task, self.nodes, metric_name=self.metric, sources=self.sources)

    def parse_nodes(self, texts: Sequence[str]) -> tuple[Node, ...]:
        """Nodes by their texts; refuses those that this lab does not cut."""
        nodes = [node for text in texts for node in parse_nodes(text)]
        if unknown := [str(node) for node in nodes if node not in self._known]:
            raise NeuronautError(
                f"{', '.join(unknown)} is none of the {len(self.nodes)} nodes of {self.target}, such as "
                f"{self.nodes[0]} and {self.nodes[-1]}"
            )
        return tuple(dict.fromkeys(nodes))

    def shares(self, hypothesis: Hypothesis) -> Shares:
        """The share that goes where all nodes of a set are cut, beyond what goes with its parts, as a circuit says."""
        return {frozenset(self.parse_nodes(text.split(JOIN))): share for text, share in hypothesis.nodes.items()}

    def circuit(self, hypothesis: Hypothesis) -> tuple[Node, ...]:
        """All nodes that a hypothesis names, in forward order."""
        inside = frozenset[Node]().union(*self.shares(hypothesis))
        return tuple(node for node in self.nodes if node in inside)

    def expect(self, hypothesis: Hypothesis, design: Design) -> tuple[float | None, ...]:
        """What a hypothesis expects of each item, as a share of the behaviour; None: no opinion.

        A circuit: {"node": n} and {"cut": [...]} cost what the module's docstring says, {"keep": [...]} leaves the
        rest; {"restore": [...]} brings back what all its nodes cost together where these are among them, nothing where
        none is, and otherwise it has no opinion. `token_identity`: the last token
        alone decides, which pairs have in common, so corrupting what stands before it changes nothing, and no cut
        costs anything; of pairs that differ in their last tokens it has no opinion. `no_pattern` has none at all.
        """
        if hypothesis.kind == "token_identity" and self._same_last:
            return tuple(1.0 if "keep" in item.about else 0.0 for item in design.items)
        if hypothesis.kind != "circuit":
            return (None,) * len(design.items)
        shares = self.shares(hypothesis)
        return tuple(self._expected(shares, item.about) for item in design.items)

    def take(self, design: Design, values: Sequence[float]) -> None:
        """Notes what an experiment measured."""
        for item, _ in zip(design.items, values, strict=True):
            self._measured.add(_key(item.about, design.plan.get("prompts")))

    def is_new(self, item: Item, *, prompts: int | None = None) -> bool:
        """Whether an item was not measured before, on `select` or on a draw of fresh prompts."""
        return _key(item.about, prompts) not in self._measured

    @cached_property
    def attribution(self) -> dict[Direction, Attribution]:
        """The worth of every node to first order, on `explore`, in both directions."""
        grid = Grid.of_edits(edit for node in self.nodes for edit in edits_of([node], "patch"))
        directions: tuple[Direction, ...] = ("noise", "denoise")
        return {
            direction: attribution_patching(
                self.subject,
                self.task.pairs,
                grid,
                direction=direction,
                metric=self.metric,
                materials=Materials(sources=self.sources),
                sample=10,
                top=5,
                seed=self.seed,
            )
            for direction in directions
        }

    @property
    def worth(self) -> dict[Node, float]:
        """The larger of the two directions' attributions, as a share of the behaviour, by node."""
        count = len(self.nodes)
        shares = [[cell.score / way.difference for cell in way.nodes[:count]] for way in self.attribution.values()]
        return {node: max(pair, key=abs) for node, *pair in zip(self.nodes, *shares, strict=True)}

    @cached_property
    def _known(self) -> frozenset[Node]:
        return frozenset(self.nodes)

    @cached_property
    def _same_last(self) -> bool:
        clean, corrupted = (side.ids() for side in (self.task.pairs.clean, self.task.pairs.corrupted))
        return all(one[-1] == other[-1] for one, other in zip(clean, corrupted, strict=True))

    def _expected(self, shares: Shares, about: Mapping[str, Any]) -> float | None:
        if (restored := about.get("restore")) is not None:
            named = frozenset[Node]().union(*shares)
            back = named & {*self.parse_nodes(restored)}
            return (round(_share_lost(shares, named), 4) if back == named else None) if back else 0.0
        if (inside := about.get("keep")) is not None:
            return round(max(0.0, 1 - _share_lost(shares, self._known.difference(self.parse_nodes(inside)))), 4)
        cut = about["cut"] if "cut" in about else [about["node"]]
        return round(_share_lost(shares, frozenset(self.parse_nodes(cut))), 4)


def _key(about: Mapping[str, Any], prompts: int | None) -> str:
    return json.dumps([prompts, dict(about)], sort_keys=True)


def _share_lost(shares: Shares, cut: frozenset[Node]) -> float:
    return min(1.0, sum(share for nodes, share in shares.items() if nodes <= cut))


def split(task: Task, *, seed: int) -> dict[Part, Task]:
    """Deals a task's pairs into parts so that no prompt is in two; refuses a task with too few prompts for that."""
    rows = prompts_of(task)
    group = list(range(len(rows)))
    first: dict[tuple[int, ...], int] = {}
    for row, prompts in enumerate(rows):
        for prompt in prompts:
            joined, absorbed = group[first.setdefault(prompt, row)], group[row]
            group = [joined if number == absorbed else number for number in group]
    groups = [[row for row in range(len(rows)) if group[row] == number] for number in dict.fromkeys(group)]
    random.Random(f"parts of {task.name}: {seed}").shuffle(groups)
    dealt: dict[Part, list[int]] = {part: [] for part in PARTS}
    for members in groups:
        neediest = max(PARTS, key=lambda part: PARTS[part] * len(rows) - len(dealt[part]))
        dealt[neediest] += members
    if min(map(len, dealt.values())) < LEAST:
        raise NeuronautError(
            f"{task.name} has {len(rows)} pairs in {len(groups)} groups without a prompt in common, too few for three "
            f"parts of {LEAST} or more; give more pairs with other prompts"
        )
    return {part: task.take(sorted(chosen)) for part, chosen in dealt.items()}


def prompts_of(task: Task) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The token ids of each pair's two prompts."""
    clean, corrupted = (map(tuple, side.ids()) for side in (task.pairs.clean, task.pairs.corrupted))
    return list(zip(clean, corrupted, strict=True))


def effects(lab: BehaviourLab, runs: CircuitRuns, abouts: Sequence[Mapping[str, Any]]) -> list[Effect]:
    """Measures the effect of each item on the runs' pairs; `abouts` are the items' `about`."""
    cuts = [
        frozenset(lab.parse_nodes(_cut(about))) for about in abouts if "restore" not in about and "keep" not in about
    ]
    keeps = [frozenset(lab.parse_nodes(about["keep"])) for about in abouts if "keep" in about]
    restores = [lab.parse_nodes(about["restore"]) for about in abouts if "restore" in about]
    gone = iter(runs.cut(cuts) if cuts else ())
    alone = iter(runs.alone(keeps) if keeps else ())
    back = iter(_restore_effects(lab, runs, restores))
    results: list[Effect] = []
    for about in abouts:
        if "restore" in about:
            results.append(next(back))
        elif "keep" in about:
            results.append(_effect(lab, runs, next(alone), "denoise"))
        else:
            results.append(_effect(lab, runs, next(gone), "noise"))
    return results


def _cut(about: Mapping[str, Any]) -> list[str]:
    return about["cut"] if "cut" in about else [about["node"]]


def _effect(lab: BehaviourLab, runs: CircuitRuns, patched: torch.Tensor, direction: Direction) -> Effect:
    return effect(
        runs.metric, clean=runs.clean, corrupted=runs.floor, patched=patched, direction=direction, seed=lab.seed
    )


def _restore_effects(lab: BehaviourLab, runs: CircuitRuns, sets: Sequence[Sequence[Node]]) -> list[Effect]:
    """The effects of putting each set's clean values into the corrupted run: one forward each."""
    if not sets:
        return []
    pairs = runs.task.pairs
    plain, corrupted = runs.task.logits(lab.subject)
    question = Question(pairs.answers, pairs.wrong, plain)
    clean, base = (metric(runs.metric)(logits, question).cpu() for logits in (plain, corrupted))
    results: list[Effect] = []
    for nodes in sets:
        edits = edits_of(nodes, "patch")
        patch_values = gather(lab.subject, edits, materials=Materials(sources=lab.sources), source_run=pairs.clean)
        with torch.inference_mode(), apply(lab.subject, pairs.corrupted, edits, materials=patch_values, may_idle=True):
            logits = logits_at(lab.subject, pairs.corrupted.tokens, pairs.corrupted.last)
        patched = metric(runs.metric)(logits, question).cpu()
        results.append(
            effect(runs.metric, clean=clean, corrupted=base, patched=patched, direction="denoise", seed=lab.seed)
        )
    return results
