"""What is known of a circuit, as text and as data."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from statistics import median
from typing import Any

from pydantic import BaseModel

from .circuit_evaluation import Evaluation
from .circuit_scores import NodeScore
from .circuit_search import Backup, Step
from .grading import Agreement
from .measures import Direction, Effect
from .nodes import Node, listed
from .records import Provenance, Trial
from .tasks import Baseline


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward and backward passes, by what they were for."""

    baseline: int
    scores: int
    search: int
    backups: int
    evaluation: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitReport:
    """A circuit with all that was measured of it."""

    task: str
    circuit: tuple[Node, ...]
    """The strongest first, or as it was given."""
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
    agreement: Mapping[Direction, Agreement]
    """Where gradients chose these, how far their predictions agree with patching."""
    steps: tuple[Step, ...]
    """How the pruning went, from all nodes on; none for a circuit that was given."""
    backups: tuple[Backup, ...]
    evaluation: Evaluation
    passes: Passes
    seed: int
    trial: Trial
    """The circuit alone, as a record that `records.run` takes."""
    provenance: Provenance

    def score(self, node: Node) -> NodeScore | None:
        """A node's own score; None where it was not patched by itself."""
        return next((score for score in self.scores if score.node == node), None)

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, strings, lists and objects."""
        data = _plain(self)
        for score, written in zip(self.scores, data["scores"], strict=True):
            written["role"] = score.role
        data["evaluation"]["mean_gap"] = self.evaluation.mean_gap
        return data

    def table(self) -> str:
        """The circuit node by node, and the verdicts on it, as text."""
        backed = {backup.node: listed(backup.nodes) for backup in self.backups}
        rows = [["node", "noise", "denoise", "by itself", "adds", "backed up by"]]
        for added in self.evaluation.minimality:
            score = self.score(added.node)
            alone = ["-", "-", "-"]
            if score is not None:
                alone = [_number(score.noise.recovered), _number(score.denoise.recovered), score.role]
            rows.append([str(added.node), *alone, _number(added.value), backed.get(added.node, "")])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(node.kind for node in self.circuit).items())
        head = f"circuit of {self.task} in {self.provenance.model}: {len(self.circuit)} of {len(self.nodes)} nodes"
        return "\n".join([f"{head} ({kinds}), cut: {self.ablation}", *lines, *self._verdicts()])

    def _verdicts(self) -> list[str]:
        found, passes = self.evaluation, self.passes
        worst, least = found.gaps[0], min(found.minimality, key=lambda one: abs(one.value))
        seen = "pairs that the search did not see" if self.held_out else "pairs, the search's own"
        control = "no other circuit of this make-up"
        if found.control is not None:
            values = found.control.faithfulness
            control = (
                f"{len(values)} random circuits of this make-up: median {median(values):.2f}, highest "
                f"{max(values):.2f}; percentile {found.control.percentile:.0f}, p = {found.control.p:.2g}"
            )
        ranks = ", ".join(f"{_number(one.spearman)} {direction}" for direction, one in self.agreement.items())
        by = ", ".join(f"{getattr(passes, field.name)} {field.name}" for field in fields(passes))
        return [
            f"faithfulness  {_fraction(found.faithfulness)} on {self.pairs[1]} {seen}",
            f"completeness  model without the circuit {_fraction(found.ablated)}; parts cut in both: mean gap "
            f"{found.mean_gap:.2f}, largest {worst.size:.2f} ({listed(worst.cut)})",
            f"minimality    least {least.value:.2f} ({least.node})",
            f"control       {control}",
            *([f"attribution   chose {len(self.scores)} nodes to patch; rank agreement {ranks}"] if ranks else []),
            f"passes        {passes.total}: {by}",
        ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _fraction(effect: Effect) -> str:
    spread = "" if effect.interval is None else f" [{effect.interval.low:.2f}, {effect.interval.high:.2f}]"
    return _number(effect.recovered) + spread


def _plain(value: Any) -> Any:
    if isinstance(value, Node):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value
