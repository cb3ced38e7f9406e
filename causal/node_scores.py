"""What each node of a grid is worth to first order: the change that a patch makes there, times a gradient.

At a site the change is donor - base; a head or neuron is worth its coordinates' share of (donor - base) . gradient. A
feature is worth (its activation in the donor - in the base) . (gradient . what a unit of it adds), which is what its
error-preserving patch does; what all features of a dictionary leave of the vector's worth is that of its error.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..subject.dictionary import NORMS, Dictionary
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .applying import Materials
from .edits import Edit
from .gradients import Ends
from .prompts import Batch, where
from .units import Along, Coded, units_of

_Kind = tuple[str, str | None, str | tuple[float, ...] | None]


def check(subject: Subject, edits: Sequence[Edit], materials: Materials) -> None:
    """Raise NeuronautError for an edit that is no patch of a vector's units."""
    for edit in edits:
        if edit.operation != "patch" or edit.on_pattern or edit.control is not None:
            raise NeuronautError(
                f"edit {edit} is not predicted by gradients; wanted patches of vectors, such as head.1:3=patch"
            )
        units_of(subject, edit, sources=materials.sources, directions=materials.directions)


def worths(
    subject: Subject,
    batch: Batch,
    edits: Sequence[Edit],
    ends: Ends,
    gradients: Mapping[str, Tensor],
    *,
    materials: Materials,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each patch's worth, (edit, row), and by name that of what each dictionary leaves out at its features' positions,
    (row,). Of a feature's negative tail it is the same: a patch puts the same vector there."""
    found = torch.zeros(len(edits), len(batch), dtype=torch.float64)
    errors: dict[str, Tensor] = {}
    kinds: dict[_Kind, list[int]] = {}
    for index, edit in enumerate(edits):
        kinds.setdefault((edit.site, edit.dictionary, edit.direction), []).append(index)
    for (site, dictionary, _), members in kinds.items():
        table = _table(subject, edits[members[0]], ends.base[site], ends.donor[site], gradients[site], materials)
        summed: dict[str, Tensor] = {}
        for index in members:
            edit = edits[index]
            if edit.positions not in summed:
                summed[edit.positions] = _at(subject, batch, edit.positions, table)
            chosen = summed[edit.positions]
            if edit.units is not None:
                chosen = chosen[:, list(edit.units)]
            found[index] = chosen.sum(-1)
        if dictionary is not None:
            whole = ((ends.donor[site] - ends.base[site]) * gradients[site]).sum(-1, keepdim=True)
            for rule, features in summed.items():
                left = _at(subject, batch, rule, whole)[:, 0] - features.sum(-1)
                errors[f"{site}@{dictionary} error" + ("" if rule == "all" else f"@{rule}")] = left
    return found, errors


def _at(subject: Subject, batch: Batch, rule: str, table: Tensor) -> Tensor:
    """Summed over the positions of a rule: (row, position, unit) -> (row, unit), float64 on the CPU."""
    mask = where(subject, batch, rule).to(table.device)
    return torch.where(mask[..., None], table, 0).double().sum(1).cpu()


def _table(subject: Subject, edit: Edit, base: Tensor, donor: Tensor, gradient: Tensor, materials: Materials) -> Tensor:
    """(row, position, unit): of heads, coordinates, features, or of the one direction."""
    units = units_of(subject, edit, sources=materials.sources, directions=materials.directions)
    if isinstance(units, Along):
        flat, other = base.flatten(0, 1), donor.flatten(0, 1)
        moved = (units.put(flat, units.get(other)) - flat).view_as(base)
        return (moved * gradient).sum(-1, keepdim=True)
    if isinstance(units, Coded):
        return _features(units, base, donor, gradient)
    product = (donor - base) * gradient
    if edit.site.startswith("head."):
        return product.unflatten(-1, (subject.n_heads, -1)).sum(-1)
    return product


def _features(units: Coded, base: Tensor, donor: Tensor, gradient: Tensor) -> Tensor:
    """Of all features of the source."""
    source, flat = units.source, base.flatten(0, 1)
    change = source.encode(donor.flatten(0, 1)) - source.encode(flat)
    written = gradient.flatten(0, 1).float() @ source.directions(torch.arange(source.width, device=base.device)).T
    scale = NORMS[source.norm](flat.float()).scale if isinstance(source, Dictionary) else 1.0
    return (change * written * scale).unflatten(0, base.shape[:2])
