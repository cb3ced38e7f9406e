"""Paths into a feature: how much of its activation comes through each head and MLP before it.

A component is cut at all positions, by its values in a silent run or by its mean over text; its share is

    share = 1 - (activation with it cut) / (activation)          at an active place, mean over its silent runs

A silent run is another training window, as long up to a position at which the feature is silent. Half of a place's
silent runs are near misses, if there are any: what silences the feature on its own tokens is cut in with them, so
components that carry an exception have a share too. Shares need not add up to 1: of two causes that are both needed
each has all of it. To first order, share = (values - those in the silent run) . d activation / d values, over the
activation, for all components from one backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ....causal.circuits.nodes import Node, edits_of
from ....causal.controls import random_directions
from ....causal.edits import Edit
from ....causal.gradients import Ends, score_patches
from ....causal.intervene import Materials, apply
from ....causal.prompts import Batch
from ....causal.readouts import activation
from ....causal.runs import gather, read_source_run
from ....causal.saliency import Activation
from ....explainers.battery.places import SILENT, Place, generator
from ....subject.errors import NeuronautError
from ...loop.feature_lab import FeatureLab
from .inputs import batch_of, materials, silent_places, windows


class Pairing(NamedTuple):
    """Active places, each with silent runs."""

    active: tuple[Place, ...]
    silent: tuple[tuple[Place, ...], ...]
    """By active place: places at its position."""


def pair(lab: FeatureLab, active: Sequence[Place], *, each: int, seed: int) -> Pairing:
    """Draws silent runs for active places; those for which there is none are an error."""
    silent = tuple(tuple(_silent_runs(lab, place, each, seed)) for place in active)
    if missing := [place.pivot for place, runs in zip(active, silent, strict=True) if not runs]:
        raise NeuronautError(
            f"{lab.target} is active at position {missing[0]} of every training window, so there is no silent run to "
            "patch from; cut by the mean"
        )
    return Pairing(tuple(active), silent)


def _silent_runs(lab: FeatureLab, place: Place, count: int, seed: int) -> list[Place]:
    near = _near_misses(lab, place, (count + 1) // 2, seed)
    return near + silent_places(lab, count - len(near), seed=seed, at=place.pivot)


def _near_misses(lab: FeatureLab, place: Place, count: int, seed: int) -> list[Place]:
    """Silent places of tokens on which it fires, the place's own first.

    Of each window there is as much before as the place has.
    """
    ids, values = lab.windows
    missed = (values < SILENT) & np.isin(ids, list(lab.fires_on))
    missed[:, : place.pivot] = False
    rows, positions = np.nonzero(missed)
    order = generator(lab, seed, f"near misses of {place.token} at {place.pivot}").permutation(len(rows))
    own = ids[rows[order], positions[order]] == place.token
    chosen = order[np.argsort(~own, kind="stable")][:count]
    return [
        Place(tuple(ids[row, at - place.pivot :].tolist()), place.pivot, float(values[row, at]))
        for row, at in zip(rows[chosen].tolist(), positions[chosen].tolist(), strict=True)
    ]


def first_order_shares(lab: FeatureLab, pairing: Pairing, nodes: Sequence[Node]) -> Tensor:
    """Shares to first order: (node, active place)."""
    edits, shares = edits_each(nodes, "patch"), list[Tensor]()
    sites = list(dict.fromkeys(edit.site for edit in edits))
    for place, runs in zip(pairing.active, pairing.silent, strict=True):
        base = batch_of(lab, [place])
        values, gradients, metric = _gradients(lab, base, sites)
        for run in runs:
            ends = Ends(values, read_source_run(lab.subject, batch_of(lab, [run]), sites))
            worth, _ = score_patches(lab.subject, base, edits, ends, gradients, materials=materials(lab))
            shares.append(-worth[:, 0] / metric)
    counts = [len(runs) for runs in pairing.silent]
    return torch.stack([torch.stack(part, dim=1).mean(1) for part in _split(shares, counts)], dim=1)


def _split(shares: list[Tensor], counts: Sequence[int]) -> list[list[Tensor]]:
    ends = torch.tensor(counts).cumsum(0).tolist()
    return [shares[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _gradients(
    lab: FeatureLab, base: Batch, sites: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """One row's vectors at sites, the activation's gradients by them, (1, position, width), and the activation."""
    values: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}

    def look(site: str, tensor: Tensor) -> Tensor:
        values[site], leaves[site] = tensor.detach(), torch.zeros_like(tensor, requires_grad=True)
        return tensor + leaves[site]

    target = Activation(lab.source, lab.feature)
    with torch.inference_mode(False), torch.enable_grad():
        with lab.subject.editing({site: lambda tensor, site=site: look(site, tensor) for site in sites}):
            value = target.measure(lab.subject, base.tokens)
        gradients = torch.autograd.grad(value.sum(), [leaves[site] for site in sites])
    return values, dict(zip(sites, gradients, strict=True)), float(value.detach())


def edits_each(nodes: Sequence[Node], operation: str) -> tuple[Edit, ...]:
    """One edit for each node."""
    return tuple(edit for node in nodes for edit in edits_of([node], "mean" if operation == "mean" else "patch"))


@dataclass(frozen=True, eq=False, slots=True)
class Cuts:
    """Active places, ready for components to be cut there."""

    lab: FeatureLab
    rows: Batch
    """Each active place once for each of its silent runs."""
    counts: tuple[int, ...]
    """By active place."""
    patch_values: Materials
    plain: Tensor
    """(active place,): the activation, in the source's units, float64."""

    @classmethod
    @torch.inference_mode()
    def of(
        cls, lab: FeatureLab, pairing: Pairing, edits: Sequence[Edit], *, reference: Sequence[Sequence[int]] = ()
    ) -> Self:
        """Prepares these edits: patches from the silent runs, or means over `reference` windows."""
        if reference:
            counts = (1,) * len(pairing.active)
            patch_values = gather(lab.subject, edits, reference=windows(lab, reference))
        else:
            counts = tuple(len(runs) for runs in pairing.silent)
            patch_values = gather(
                lab.subject, edits, source_run=batch_of(lab, [run for runs in pairing.silent for run in runs])
            )
        rows = batch_of(lab, [place for place, n in zip(pairing.active, counts, strict=True) for _ in range(n)])
        plain = _read(lab, rows, counts)
        if float(plain.min()) <= 0:
            raise NeuronautError(f"{lab.target} is not active at all of the places; name windows in which it is")
        return cls(lab, rows, counts, patch_values, plain)

    @torch.inference_mode()
    def share(self, edit: Edit) -> Tensor:
        """The share that goes with this edit: (active place,), float64."""
        with apply(self.lab.subject, self.rows, [edit], materials=self.patch_values, may_idle=True):
            return 1 - _read(self.lab, self.rows, self.counts) / self.plain

    def shares(self, edits: Sequence[Edit]) -> Tensor:
        """The shares that go with each of these edits: (edit, active place)."""
        return torch.stack([self.share(edit) for edit in edits])

    def random_controls(self, edit: Edit, *, count: int) -> Tensor:
        """Shares of changes of the edit's norm in random directions: (control, active place)."""
        return self.shares(random_directions(edit, count=count, seed=self.lab.seed))


def _read(lab: FeatureLab, rows: Batch, counts: Sequence[int]) -> Tensor:
    """The activation at the last positions, the mean over each place's rows."""
    readout = activation(lab.source, lab.feature)
    outputs = readout.run(lab.subject, rows)
    return torch.stack([part.mean() for part in readout.read(outputs, outputs).double().cpu().split(list(counts))])
