"""What was measured of a circuit, as data and as text; also of a search that was stopped before its end."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..agreement import Agreement
from ..measures import Direction, Effect
from ..records import Provenance, Trial
from .evaluate import Evaluation
from .nodes import Node, join_nodes
from .plain import to_plain
from .role_values import Roles
from .search import SHARE, Backup, NodeScore, Sample, Step
from .tasks import Baseline


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward and backward passes, by what they were for."""

    baseline: int
    scores: int = 0
    search: int = 0
    backups: int = 0
    evaluation: int = 0
    roles: int = 0

    @property
    def total(self) -> int:
        """All passes."""
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitReport:
    """A circuit with all that was measured of it."""

    task: str
    circuit: tuple[Node, ...]
    """The strongest first, or as it was given; of a search that was stopped what it had come to, maybe nothing yet."""
    nodes: tuple[Node, ...]
    """All there were to choose from."""
    threshold: float
    """The faithfulness that the search kept to."""
    ablation: str
    pairs: tuple[int, int]
    """How many pairs it was looked for on, and how many it is evaluated on."""
    held_out: bool
    """Whether these are different pairs."""
    baseline: Baseline
    scores: tuple[NodeScore, ...]
    """Of the nodes that were patched by themselves, on the search's pairs."""
    exact: bool
    """Whether every node was patched and cut by itself; if not, gradients chose, and backups are not named."""
    agreement: Mapping[Direction, Agreement]
    """Where gradients chose these, how far their predictions agree with patching."""
    sample: Sample | None
    """What they missed, by a random sample; None where all were patched."""
    steps: tuple[Step, ...]
    """How the pruning went, from all nodes on; none for a circuit that was given."""
    backups: tuple[Backup, ...]
    evaluation: Evaluation | None
    """None where the search was stopped before; its parts may be missing where `unfinished` says so."""
    roles: Roles | None
    """What its nodes do, on the evaluation's pairs; None where that was not asked for, or not come to."""
    unfinished: tuple[str, ...]
    """The parts of the work that were not done to their end, as in `passes`; none of a whole report."""
    passes: Passes
    controls: int
    """How many random circuits were wanted."""
    seed: int
    trial: Trial
    """The circuit alone, as a record that `records.run` takes."""
    provenance: Provenance

    def score(self, node: Node) -> NodeScore | None:
        """A node's own score; None where it was not patched by itself."""
        return next((score for score in self.scores if score.node == node), None)

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, strings, lists and objects."""
        data = to_plain(self)
        for score, written in zip(self.scores, data["scores"], strict=True):
            written["role"] = score.role
        if self.evaluation is not None:
            data["evaluation"]["mean_gap"] = self.evaluation.mean_gap
        return data | {"roles": None if self.roles is None else self.roles.to_json()}

    def table(self) -> str:
        """The circuit node by node, and the verdicts on it, as text."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(node.kind for node in self.circuit).items())
        head = f"circuit of {self.task} in {self.provenance.model}: {len(self.circuit)} of {len(self.nodes)} nodes"
        lines = [f"{head} ({kinds}), cut: {self.ablation}" if kinds else f"{head} so far; those that were patched:"]
        if self.unfinished:
            lines.insert(0, f"PARTIAL: stopped before the end of {', '.join(self.unfinished)}")
        roles = [] if self.roles is None else [self.roles.table()]
        return "\n".join([*lines, *self._list_nodes(), *self._summarise(), *roles])

    def _list_nodes(self) -> list[str]:
        added = {each.node: each.value for each in self.evaluation.minimality} if self.evaluation else {}
        backed = {backup.node: join_nodes(backup.nodes) for backup in self.backups}
        rows = [["node", "noise", "denoise", "by itself", "adds", *(["backed up by"] if self.exact else [])]]
        for node in self.circuit or [score.node for score in sorted(self.scores, key=lambda score: -score.rank)]:
            score, alone = self.score(node), ["-", "-", "-"]
            if score is not None:
                alone = [_format_number(score.noise.recovered), _format_number(score.denoise.recovered), score.role]
            backups = [backed.get(node, "")] if self.exact else []
            rows.append([str(node), *alone, _format_number(added.get(node)), *backups])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    def _summarise(self) -> list[str]:
        by = ", ".join(f"{count} {purpose}" for purpose, count in asdict(self.passes).items() if count or self.exact)
        return [*self._summarise_evaluation(), *self._summarise_ranking(), f"passes        {self.passes.total}: {by}"]

    def _summarise_evaluation(self) -> list[str]:
        pairs = "pairs that the search did not see" if self.held_out else "pairs, the search's own"
        if self.evaluation is None:
            steps = [
                f"faithfulness  {step.faithfulness:.2f} on the search's {self.pairs[0]} pairs" for step in self.steps
            ]
            return steps[-1:]
        evaluation = self.evaluation
        lines = [
            f"faithfulness  {_format_fraction(evaluation.faithfulness)} on {self.pairs[1]} {pairs}",
            f"completeness  model without the circuit {_format_fraction(evaluation.ablated)}",
        ]
        if evaluation.gaps:
            worst = evaluation.gaps[0]
            lines[1] += (
                f"; parts cut in both: mean gap {_format_number(evaluation.mean_gap)}, largest {worst.size:.2f} "
                f"({join_nodes(worst.cut)})"
            )
        if evaluation.minimality:
            least = min(evaluation.minimality, key=lambda added: abs(added.value))
            lines.append(f"minimality    least {least.value:.2f} ({least.node})")
        if evaluation.control is not None:
            values = evaluation.control.faithfulness
            lines.append(
                f"control       {len(values)} random circuits of this make-up: median {median(values):.2f}, highest "
                f"{max(values):.2f}; percentile {evaluation.control.percentile:.0f}, p = {evaluation.control.p:.2g}"
            )
        elif self.controls and not self.unfinished:
            lines.append("control       no other circuit of this make-up")
        return lines

    def _summarise_ranking(self) -> list[str]:
        """What the ranking by gradients is worth."""
        if self.sample is None:
            return []
        sample = self.sample
        ranks = ", ".join(f"{_format_number(each.spearman)} {direction}" for direction, each in self.agreement.items())
        return [
            f"attribution   chose {len(self.scores)} nodes to patch; rank agreement {ranks}",
            f"missed        of the {sample.others} nodes ranked low {sample.drawn} were drawn: {sample.strong} have an "
            f"effect of {SHARE:.2f} by themselves, of all at most {sample.bound:.0%} (95%)",
        ]


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _format_fraction(effect: Effect) -> str:
    spread = "" if effect.interval is None else f" [{effect.interval.low:.2f}, {effect.interval.high:.2f}]"
    return _format_number(effect.recovered) + spread
