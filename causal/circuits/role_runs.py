"""Runs in which heads are given other outputs, many beside each other, with what the later heads then attend to.

An edge is cut by taking what it carries out of its head's output, z[query] - A[query, key] V[key], and carries another
word where V is that of another prompt; everything else in the head stays. So an intervention on edges is a patch of
`head.L` whose value is computed beforehand, from the patterns A and the values V of a layer: `attention.prove` has
shown that A @ V is its output. All runs use the model's eager attention, the unedited ones too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ...subject.attention import eager, watch_patterns
from ...subject.model import Subject
from ..batched import observe
from ..prompts import Batch
from ..runs import EDITED, in_parts, join, logits_at, resumable, resume
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


class Prompts(NamedTuple):
    """Other prompts than the clean ones, as long as they are, and what they are called."""

    name: str
    batch: Batch


@dataclass(frozen=True, eq=False)
class _Plain:
    """An unedited run."""

    tokens: Tensor
    patterns: Tensor
    """(layer, head, row, query, key), float32 on the CPU."""
    sites: Mapping[str, Tensor]
    """By `resid_pre.L`, `head.L` and `mlp_out.L`: (row, position, width)."""
    logits: Tensor
    """(row, token): at each row's last position."""

    @classmethod
    @torch.inference_mode()
    def of(cls, subject: Subject, batch: Batch) -> "_Plain":
        parts = in_parts(subject, batch, lambda rows: cls._of_rows(subject, rows))
        patterns, logits = torch.cat([part.patterns for part in parts], 2), torch.cat([part.logits for part in parts])
        return cls(batch.tokens, patterns, join([part.sites for part in parts]), logits)

    @classmethod
    def _of_rows(cls, subject: Subject, batch: Batch) -> "_Plain":
        layers = range(subject.n_layers)
        seen: dict[int, Tensor] = {}
        sites = [f"{kind}.{layer}" for layer in layers for kind in ("resid_pre", "head", "mlp_out")]
        with watch_patterns(subject, {layer: _recorder(seen, layer) for layer in layers}):
            logits, tensors = observe(subject, batch, sites)
        return cls(batch.tokens, torch.stack([seen[layer] for layer in layers]).transpose(1, 2), tensors, logits)


@dataclass(eq=False)
class RoleRuns:
    """A task's clean prompts, run with patches. The patterns of all layers must have been proven."""

    subject: Subject
    landmarks: Landmarks
    at_once: int

    def __post_init__(self) -> None:
        self.width = self.subject.width("head.0") // self.subject.n_heads
        self._resumes = resumable(self.subject) is None
        self._plain: dict[str, _Plain] = {}
        self._values: dict[tuple[str, int], Tensor] = {}

    def plain(self, prompts: str | Prompts = "clean") -> "_Plain":
        """An unedited run of the clean prompts, or of others; each is run once."""
        name, batch = prompts if isinstance(prompts, Prompts) else (prompts, self.landmarks.pairs.clean)
        if name not in self._plain:
            self._plain[name] = _Plain.of(self.subject, batch)
        return self._plain[name]

    def pattern_of(self, head: Node, prompts: str | Prompts = "clean") -> Tensor:
        """(row, query, key)."""
        return self.plain(prompts).patterns[layer_of(head), head.unit or 0]

    def output(self, node: Node, prompts: str | Prompts = "clean") -> Tensor:
        """What a node puts out: (row, position, width)."""
        return self._part(self.plain(prompts).sites[node.site], node)

    @torch.inference_mode()
    def values(self, head: Node, prompts: str | Prompts = "clean") -> Tensor:
        """What a head's layer offers its keys: (row, key, d_head)."""
        layer, subject, plain = layer_of(head), self.subject, self.plain(prompts)
        key = (prompts.name if isinstance(prompts, Prompts) else prompts, layer)
        if key not in self._values:
            begun = self._begin(layer if self._resumes else 0, plain.sites, len(plain.tokens))
            with begun, watch_patterns(subject, {layer: _identity}):
                self._values[key] = subject.read(plain.tokens, [head.site])[head.site]
        return self._part(self._values[key], head)

    def _begin(
        self, layer: int, sites: Mapping[str, Tensor], count: int, copies: int = 1
    ) -> AbstractContextManager[None]:
        """Runs of the first `count` rows that begin at a layer, from the residual stream of a plain run."""
        if not layer:
            return nullcontext()
        return resume(self.subject, layer, sites[f"resid_pre.{layer}"][:count].repeat(copies, 1, 1))

    def cut(self, head: Node, edges: Tensor) -> Patch:
        """The head's output without what the edges carry."""
        return Patch(head, self.output(head) - self._carried(head, edges, "clean"))

    def swap(self, head: Node, edges: Tensor, prompts: Prompts) -> Patch:
        """The head's output where the edges carry the values of other prompts."""
        return Patch(head, self.cut(head, edges).value + self._carried(head, edges, prompts))

    def _carried(self, head: Node, edges: Tensor, prompts: str | Prompts) -> Tensor:
        values = self.values(head, prompts)
        return (self.pattern_of(head) * edges).to(values) @ values

    @torch.inference_mode()
    def measure(
        self, runs: Sequence[Sequence[Patch]], readout: Readout, *, count: int, keep: Sequence[Node] = ()
    ) -> tuple[Tensor, list[list[Patch]]]:
        """The readout of each run on the first `count` pairs, (run, row), and what the kept nodes put out in it."""
        first = [min(patch.layer for patch in run) if self._resumes else 0 for run in runs]
        room = max(1, self.at_once // count)
        values, kept = dict[int, Tensor](), dict[int, list[Patch]]()
        for layer, group in groupby(sorted(range(len(runs)), key=first.__getitem__), first.__getitem__):
            its = list(group)

            def run(part: slice, its: list[int] = its, layer: int = layer) -> None:
                seen, outputs = self._run([runs[at] for at in its[part]], layer, readout, count=count, keep=keep)
                values.update(zip(its[part], seen, strict=True))
                kept.update(zip(its[part], outputs, strict=True))

            for _ in self.subject.batching.batches(len(its), room * count, run, work=EDITED, per=count):
                pass
        return torch.stack([values[at] for at in range(len(runs))]), [kept[at] for at in range(len(runs))]

    def unedited(self, readout: Readout) -> Tensor:
        """The readout of the clean prompts as they are: (row,)."""
        plain, layers = self.plain(), readout.layers
        return self._read(readout, plain.logits, {layer: plain.patterns[layer].transpose(0, 1) for layer in layers})

    def _run(
        self, runs: Sequence[Sequence[Patch]], layer: int, readout: Readout, *, count: int, keep: Sequence[Node]
    ) -> tuple[Tensor, list[list[Patch]]]:
        """Runs in one forward that begins at a layer."""
        rows = torch.arange(count).repeat(len(runs))
        copies = self.landmarks.pairs.clean.take(rows)
        seen: dict[int, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        sites = {patch.node.site for run in runs for patch in run} | {node.site for node in keep}
        changes = {site: self._change(site, runs, outputs, count) for site in sites}
        watches = {at: _recorder(seen, at) for at in readout.layers}
        known = self._begin(layer, self.plain().sites, count, len(runs))
        with eager(self.subject), known, self.subject.editing(changes), watch_patterns(self.subject, watches):
            logits = logits_at(self.subject, copies.tokens, copies.last)
        parts = [
            [Patch(node, self._part(outputs[node.site], node)[at * count :][:count]) for node in keep]
            for at in range(len(runs))
        ]
        return self._read(readout, logits, seen, rows).view(len(runs), count), parts

    def _part(self, tensor: Tensor, node: Node) -> Tensor:
        if node.unit is None:
            return tensor
        return tensor[..., node.unit * self.width : (node.unit + 1) * self.width]

    def _change(
        self, site: str, runs: Sequence[Sequence[Patch]], outputs: dict[str, Tensor], count: int
    ) -> Callable[[Tensor], Tensor]:
        def change(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            for at, run in enumerate(runs):
                for patch in run:
                    if patch.node.site == site:
                        self._part(changed[at * count : (at + 1) * count], patch.node).copy_(patch.value[:count])
            outputs[site] = changed
            return changed

        return change

    def lead(self, logits: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The answer's logit less the wrong one's, of these pairs: (row, token) -> (row,)."""
        pairs, scores = self.landmarks.pairs, logits.float().cpu()
        answer, wrong = (scores.gather(1, ids[rows][:, None])[:, 0] for ids in (pairs.answers, pairs.wrong))
        return answer - wrong

    def _read(
        self, readout: Readout, logits: Tensor, seen: Mapping[int, Tensor], rows: Tensor | slice = slice(None)
    ) -> Tensor:
        """From the logits and patterns of these pairs: (row,)."""
        if not readout.heads:
            return self.lead(logits, rows)
        shares = [
            share_onto(pattern, readout.towards[rows]) - share_onto(pattern, readout.away[rows])
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
    whole = (node for node in nodes if node.site.startswith("head.") and node.positions == "all")
    return [node for node in whole if node.unit is not None]
