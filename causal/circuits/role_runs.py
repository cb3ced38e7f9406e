"""Runs in which heads are given other outputs, many beside each other, with what the later heads then attend to.

An edge is cut by taking what it carries out of its head's output, z[query] - A[query, key] V[key], and carries another
word where V is that of another prompt; everything else in the head stays. So an intervention on edges is a patch of
`head.L` whose value is computed beforehand, from the patterns A and the values V of a layer: `attention.prove` has
shown that A @ V is its output. All runs use the model's eager attention, the unedited ones too.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ...subject.model import Subject
from ..attention import eager, patterns, prove, watch_patterns
from ..prompts import Batch
from ..runs import logits_at, resumable, resume
from .landmarks import Landmarks
from .nodes import Node


class Patch(NamedTuple):
    """Another output of a node."""

    node: Node
    value: Tensor
    """(row, position, width of the node)."""

    @property
    def layer(self) -> int:
        """The node's layer."""
        return layer_of(self.node)


class Readout(NamedTuple):
    """What a run shows, one number a row: the answer, or the attention of heads."""

    name: str
    heads: tuple[Node, ...]
    """Whose mean it is; none: the logit difference."""
    towards: Tensor
    """(row, query, key), of the mean over queries: counted in full, and `away` taken off."""
    away: Tensor

    @property
    def layers(self) -> list[int]:
        """The layers whose patterns it needs."""
        return sorted({layer_of(head) for head in self.heads})


def layer_of(node: Node) -> int:
    """The layer in which a node lies."""
    return int(node.site.partition(".")[2])


def share_onto(pattern: Tensor, edges: Tensor) -> Tensor:
    """Mean weight that queries give to their edges, all together: (..., row, query, key) twice -> (..., row)."""
    return (pattern * edges).sum((-2, -1)) / edges.any(-1).sum(-1).clamp_min(1)


@dataclass(eq=False)
class RoleRuns:
    """A task's clean prompts, run with patches."""

    subject: Subject
    landmarks: Landmarks
    at_once: int

    def __post_init__(self) -> None:
        subject, clean = self.subject, self.landmarks.pairs.clean
        self.patterns: Tensor = self._read_patterns(clean)
        """(layer, head, row, query, key) of the clean prompts, float32 on the CPU."""
        self._patterns = {"clean": self.patterns}
        self._values: dict[tuple[str, int], Tensor] = {}
        self._outputs: dict[tuple[str, str], Tensor] = {}
        self._residuals: dict[int, Tensor] = {}
        self.width = subject.width("head.0") // subject.n_heads

    def _read_patterns(self, batch: Batch) -> Tensor:
        by_layer = patterns(self.subject, batch.tokens, range(self.subject.n_layers))
        return torch.stack([by_layer[layer].float().cpu() for layer in range(self.subject.n_layers)]).transpose(1, 2)

    def pattern_of(self, head: Node, prompts: Batch | None = None, name: str = "clean") -> Tensor:
        """On the clean prompts, or on those that go by this name: (row, query, key)."""
        if name not in self._patterns and prompts is not None:
            self._patterns[name] = self._read_patterns(prompts)
        return self._patterns[name][layer_of(head), head.unit or 0]

    @torch.inference_mode()
    def output(self, node: Node, prompts: Batch, name: str) -> Tensor:
        """What a node puts out on prompts that go by this name: (row, position, width)."""
        if (name, node.site) not in self._outputs:
            with eager(self.subject):
                self._outputs[name, node.site] = self.subject.read(prompts.tokens, [node.site])[node.site]
        whole = self._outputs[name, node.site]
        return whole if node.unit is None else whole[..., self._columns(node)]

    @torch.inference_mode()
    def values(self, head: Node, prompts: Batch, name: str) -> Tensor:
        """What a head's layer offers its keys on prompts that go by this name: (row, key, d_head)."""
        layer, subject = layer_of(head), self.subject
        if (name, layer) not in self._values:
            prove(subject, layer)
            with watch_patterns(subject, {layer: _identity}):
                self._values[name, layer] = subject.read(prompts.tokens, [head.site])[head.site]
        return self._values[name, layer][..., self._columns(head)]

    def cut(self, head: Node, edges: Tensor) -> Patch:
        """The head's output without what the edges carry."""
        clean = self.landmarks.pairs.clean
        return Patch(head, self.output(head, clean, "clean") - self._carried(head, edges, clean, "clean"))

    def swap(self, head: Node, edges: Tensor, prompts: Batch, name: str) -> Patch:
        """The head's output where the edges carry the values of other prompts."""
        return Patch(head, self.cut(head, edges).value + self._carried(head, edges, prompts, name))

    def _carried(self, head: Node, edges: Tensor, prompts: Batch, name: str) -> Tensor:
        values = self.values(head, prompts, name)
        weights = (self.pattern_of(head) * edges).to(values)
        return weights @ values

    def _columns(self, node: Node) -> slice:
        unit = node.unit or 0
        return slice(unit * self.width, (unit + 1) * self.width)

    @torch.inference_mode()
    def measure(
        self, runs: Sequence[Sequence[Patch]], readout: Readout, keep: Sequence[Node] = ()
    ) -> tuple[Tensor, list[list[Patch]]]:
        """The readout of each run, (run, row), and what the kept nodes put out in it."""
        whole = resumable(self.subject) is not None
        first = [0 if whole else min((patch.layer for patch in run), default=0) for run in runs]
        room = max(1, self.at_once // len(self.landmarks.pairs))
        values, kept = dict[int, Tensor](), dict[int, list[Patch]]()
        for layer, group in groupby(sorted(range(len(runs)), key=first.__getitem__), first.__getitem__):
            its = list(group)
            for start in range(0, len(its), room):
                part = its[start : start + room]
                seen, outputs = self._run([runs[at] for at in part], layer, readout, keep)
                values |= zip(part, seen, strict=True)
                kept |= zip(part, outputs, strict=True)
        return torch.stack([values[at] for at in range(len(runs))]), [kept[at] for at in range(len(runs))]

    def _run(
        self, runs: Sequence[Sequence[Patch]], layer: int, readout: Readout, keep: Sequence[Node]
    ) -> tuple[Tensor, list[list[Patch]]]:
        """Runs in one forward that begins at a layer."""
        clean, count = self.landmarks.pairs.clean, len(self.landmarks.pairs)
        copies = clean.take(torch.arange(count).repeat(len(runs)))
        seen: dict[int, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        sites = {patch.node.site for run in runs for patch in run} | {node.site for node in keep}
        changes = {site: self._change(site, runs, outputs) for site in sites}
        watches = {at: _recorder(seen, at) for at in readout.layers}
        known = resume(self.subject, layer, self._residual(layer).repeat(len(runs), 1, 1)) if layer else nullcontext()
        with eager(self.subject), known, self.subject.editing(changes), watch_patterns(self.subject, watches):
            logits = logits_at(self.subject, copies.tokens, copies.last).float().cpu()
        parts = [
            [Patch(node, self._part(outputs[node.site], node)[at * count :][:count]) for node in keep]
            for at in range(len(runs))
        ]
        return self._read(readout, logits, seen).view(len(runs), count), parts

    def _part(self, tensor: Tensor, node: Node) -> Tensor:
        return tensor if node.unit is None else tensor[..., self._columns(node)]

    def _change(
        self, site: str, runs: Sequence[Sequence[Patch]], outputs: dict[str, Tensor]
    ) -> Callable[[Tensor], Tensor]:
        count = len(self.landmarks.pairs)

        def change(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            for at, run in enumerate(runs):
                for patch in run:
                    if patch.node.site == site:
                        self._part(changed[at * count : (at + 1) * count], patch.node).copy_(patch.value)
            outputs[site] = changed
            return changed

        return change

    def _residual(self, layer: int) -> Tensor:
        """The clean run's residual stream before a layer: (row, position, d_model)."""
        if layer not in self._residuals:
            site = f"resid_pre.{layer}"
            with eager(self.subject):
                self._residuals[layer] = self.subject.read(self.landmarks.pairs.clean.tokens, [site])[site]
        return self._residuals[layer]

    def _read(self, readout: Readout, logits: Tensor, seen: dict[int, Tensor]) -> Tensor:
        """From the logits and patterns of one forward: (row of the forward,)."""
        pairs = self.landmarks.pairs
        repeats = len(logits) // len(pairs)
        if not readout.heads:
            answer, wrong = (ids.repeat(repeats)[:, None] for ids in (pairs.answers, pairs.wrong))
            return (logits.gather(1, answer) - logits.gather(1, wrong))[:, 0]
        shares = [
            share_onto(pattern, readout.towards.repeat(repeats, 1, 1))
            - share_onto(pattern, readout.away.repeat(repeats, 1, 1))
            for pattern in (seen[layer_of(head)][:, head.unit or 0] for head in readout.heads)
        ]
        return torch.stack(shares).mean(0)


def _identity(pattern: Tensor, allowed: Tensor) -> Tensor:
    del allowed
    return torch.eye(pattern.shape[-1], device=pattern.device, dtype=pattern.dtype).expand_as(pattern)


def _recorder(seen: dict[int, Tensor], layer: int) -> Callable[[Tensor, Tensor], Tensor]:
    def record(pattern: Tensor, allowed: Tensor) -> Tensor:
        del allowed
        seen[layer] = pattern.float().cpu()
        return pattern

    return record


def heads_of(nodes: Iterable[Node]) -> list[Node]:
    """Those of the nodes that are whole heads."""
    return [node for node in nodes if node.site.startswith("head.") and node.unit is not None and node.positions == "all"]
