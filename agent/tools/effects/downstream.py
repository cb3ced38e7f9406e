"""Downstream readers of a feature: later neurons and heads that change when it is taken away.

The feature is set to zero at one active place of a whole window, and all later heads and neurons are read there and at
every later position. A unit's change is the largest of these, in units of its own spread,

    change = max over positions of |plain - ablated| / (standard deviation over the positions of the plain windows)

(for a head the lengths of its vectors and of their spread). The control is a change of the same norm in a random
direction; the strongest change of any unit is compared with the strongest change of any unit under each control.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ....causal.controls import random_directions
from ....causal.intervene import RowEdit, apply
from ....causal.measures import mean
from ....explainers.battery.places import Place
from ....subject.errors import NeuronautError
from ...loop.experiments import Design, Measured
from ...loop.feature_lab import FeatureLab
from ..base import InsideTool
from ..places import ActiveArgs, find_places
from .effects import among, build_result
from .inputs import batch_of, edit_of, from_json, materials, to_json

RANDOM_CONTROLS = 12
STILL = 0.01
"""Of the largest spread at a site: the least that a unit's own is taken to be, so that dead ones stay small."""


class DownstreamArgs(ActiveArgs, frozen=True):
    """Arguments of `downstream`."""

    top: int = Field(8, ge=1, le=50, description="how many neurons and how many heads to list")


class Downstream(InsideTool[DownstreamArgs]):
    """Finds which later neurons and heads read what the feature writes: it is taken away at its strongest places, and
    they are ranked by how much they change, in units of their own spread. Positive means that the feature raises a
    neuron. The headline is the change of the one that changes most; random changes of the same size are the control.
    The output's own tokens are the business of `promoted_tokens` and `ablate`.
    """

    name = "downstream"
    survey = True

    def design(self, args: DownstreamArgs, lab: FeatureLab) -> Design:
        """Chooses the active places and the later sites."""
        active = find_places(lab, "active", args.count, windows=args.windows, seed=args.seed)
        question = f"Which later neurons and heads read what {lab.target} writes?"
        return Design(question, "effect", (), {"active": to_json(active), "sites": _later_sites(lab), "top": args.top})

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """Ranks the later units by how much they change."""
        changes = [_changes(lab, from_json(design.plan["active"]), site) for site in design.plan["sites"]]
        names = [name for site in changes for name in site.names]
        real = torch.cat([site.real for site in changes], dim=-1)
        signed = torch.cat([site.signed for site in changes], dim=-1)
        random_control = torch.cat([site.random_control for site in changes], dim=-1).mean(0)
        order = real.mean(0).argsort(descending=True, stable=True).tolist()
        headline = mean(real[:, order[0]], seed=lab.seed)
        what = f"the strongest change of any unit under {RANDOM_CONTROLS} random changes of the same norm"
        control, rank = among(headline.value, random_control.amax(-1).tolist(), what)

        def unit_rows(kind: str) -> list[dict[str, Any]]:
            chosen = [unit for unit in order if names[unit].startswith(kind)][: design.plan["top"]]
            return [
                {
                    "unit": names[unit],
                    "deviations": round(float(real[:, unit].mean()), 4),
                    "raised_by": round(float(signed[:, unit].mean()), 4),
                    "sham": round(float(random_control[:, unit].mean()), 4),
                }
                for unit in chosen
            ]

        heads = [{name: value for name, value in row.items() if name != "raised_by"} for row in unit_rows("head")]
        return build_result(
            headline,
            units="standard deviations of the unit",
            normalised_by="each unit's own standard deviation over the windows' positions",
            control=control,
            found={"first": names[order[0]], "neurons": unit_rows("mlp"), "heads": heads, **rank},
        )


def _later_sites(lab: FeatureLab) -> list[str]:
    first = min(lab.source.writes, key=lab.subject.sites.index)
    after = lab.subject.sites[lab.subject.sites.index(first) + 1 :]
    sites = [site for site in after if site.startswith(("head.", "mlp."))]
    if not sites:
        raise NeuronautError(
            f"no head or MLP of {lab.subject.name} comes after {first}, so only the output reads "
            f"{lab.target}; use promoted_tokens or ablate"
        )
    return sites


class _Changes(NamedTuple):
    """Of the units of a site, in units of their spread."""

    names: tuple[str, ...]
    real: Tensor
    """(place, unit)."""
    signed: Tensor
    """(place, unit): what the feature adds to a neuron; of a head the same as `real`."""
    random_control: Tensor
    """(place, control, unit)."""


@torch.inference_mode()
def _changes(lab: FeatureLab, active: Sequence[Place], site: str) -> _Changes:
    """The changes of one site's units, so that no more than its vectors are in memory at once."""
    plain = list[Tensor]()
    moved = list[Tensor]()
    for place in active:
        vectors = _run(lab, place, site)
        plain.append(vectors[0])
        moved.append((vectors[:1] - vectors[1:])[:, place.pivot + _opening(lab) :])
    heads = lab.subject.n_heads if site.startswith("head.") else None
    spread = _sizes(torch.cat(plain).std(0, correction=0), heads)
    unit = spread.clamp_min(STILL * float(spread.max()) or 1.0)
    changes = torch.stack([_largest(vectors, heads) / unit for vectors in moved])
    names = tuple(f"{site}:{index}" for index in range(changes.shape[-1]))
    return _Changes(names, changes[:, 0].abs(), changes[:, 0], changes[:, 1:].abs())


def _run(lab: FeatureLab, place: Place, site: str) -> Tensor:
    """The site's vectors plainly, ablated and under every control: (1 + 1 + control, position, width), float64 on the
    CPU.
    """
    edit = edit_of(lab, "zero", positions=str(place.pivot + _opening(lab)))
    edits = [edit, *random_directions(edit, count=RANDOM_CONTROLS, seed=lab.seed)]
    batch = batch_of(lab, [place] * (1 + len(edits)), whole=True)
    placed = [RowEdit(each, (row,)) for row, each in enumerate(edits, start=1)]
    with apply(lab.subject, batch, placed, materials=materials(lab)):
        return lab.subject.read(batch.tokens, [site])[site].double().cpu()


def _opening(lab: FeatureLab) -> int:
    return int(lab.subject.bos is not None)


def _sizes(vectors: Tensor, heads: int | None) -> Tensor:
    """(..., width) -> (..., unit): neurons as they are, heads as their lengths."""
    return vectors if heads is None else vectors.unflatten(-1, (heads, -1)).norm(dim=-1)


def _largest(moved: Tensor, heads: int | None) -> Tensor:
    """The change of the largest size over positions, with its sign: (variant, position, width) -> (variant, unit)."""
    sizes = _sizes(moved, heads)
    return sizes.gather(1, sizes.abs().argmax(1, keepdim=True))[:, 0]
