"""Grids of edits: one edit, repeated over sites, units and positions, each of which is an axis with labels.

The cells stand in row-major order: the last axis changes fastest. Whatever an axis does not vary stays as the edit
says it. A grid holds edits and nothing else, so whatever takes a list of edits takes a grid's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, Self

from ..subject.errors import NeuronautError
from ..subject.model import Subject, join_sites
from .edits import Edit
from .prompts import Batch, where


@dataclass(frozen=True, slots=True)
class Axis:
    """What changes from cell to cell."""

    name: str
    """`site`, `unit`, `position`, or `edit` for edits that are listed one by one."""
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """Edits in rows and columns. Raises NeuronautError where there is none, or not one for each cell.

    >>> grid = Grid.of(Edit.parse("resid_post.0=patch"), sites=["resid_post.0", "resid_post.1"], positions=[1, 2])
    >>> [str(edit) for edit in grid.edits][:2]
    ['resid_post.0=patch@1', 'resid_post.0=patch@2']
    """

    axes: tuple[Axis, ...]
    edits: tuple[Edit, ...]

    def __post_init__(self) -> None:
        shape = tuple(len(axis.labels) for axis in self.axes)
        if not self.edits or math.prod(shape) != len(self.edits):
            raise NeuronautError(f"{len(self.edits)} edits do not fill a grid of shape {shape}; give one for each cell")

    @classmethod
    def of(
        cls,
        edit: Edit,
        *,
        sites: Sequence[str] | None = None,
        units: Iterable[int] | None = None,
        positions: Sequence[str | int] | None = None,
        labels: Sequence[str] | None = None,
    ) -> Self:
        """`edit` at each of `sites`, of each of `units`, at each of `positions` (rules as in edits), as given.

        `labels` are those of `positions`, where these should not speak for themselves.
        """
        axes: list[tuple[Axis, list[dict[str, object]]]] = []
        if sites is not None:
            axes.append((Axis("site", tuple(sites)), [{"site": site} for site in sites]))
        if units is not None:
            numbers = list(units)
            axes.append((Axis("unit", tuple(map(str, numbers))), [{"units": (number,)} for number in numbers]))
        if positions is not None:
            rules = [str(rule) for rule in positions]
            axes.append((Axis("position", tuple(labels or rules)), [{"positions": rule} for rule in rules]))
        base = edit.model_dump()
        cells = product(*(changes for _, changes in axes))
        edits = tuple(
            Edit.load(base | {name: value for change in cell for name, value in change.items()}) for cell in cells
        )
        return cls(tuple(axis for axis, _ in axes), edits)

    @classmethod
    def of_edits(cls, edits: Iterable[Edit]) -> Self:
        """One axis, of any edits, each labelled with its text."""
        chosen = tuple(edits)
        return cls((Axis("edit", tuple(map(str, chosen))),), chosen)

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """Each cell's label on each axis."""
        return list(product(*(axis.labels for axis in self.axes)))


def sites_of(subject: Subject, kind: str) -> tuple[str, ...]:
    """The sites of a kind, such as `head` or `resid_pre`, or the patterns or scores of all layers, in forward order."""
    if kind in ("pattern", "score"):
        return tuple(f"{kind}.{layer}" for layer in range(subject.n_layers))
    sites = tuple(site for site in subject.sites if site.partition(".")[0] == kind)
    if not sites:
        raise NeuronautError(f"{subject.name} has no site of kind {kind!r}; it has {join_sites(subject.sites)}")
    return sites


class Places(NamedTuple):
    """An axis of positions."""

    positions: tuple[int, ...]
    labels: tuple[str, ...]


def each_position(subject: Subject, batch: Batch) -> Places:
    """Every position that an edit of `all` touches (BOS is left out), labelled with the token that all rows have there.

    Raises NeuronautError where rows are not equally long, because a position is then not the same thing in each.
    """
    lengths = set(batch.lengths.tolist())
    if len(lengths) != 1:
        raise NeuronautError(f"rows have {sorted(lengths)} tokens; name positions such as -1, or a token, instead")
    touched = where(subject, batch, "all").any(0).nonzero().flatten().tolist()
    strings = [{*subject.decode_tokens(batch.tokens[:, place].tolist())} for place in touched]
    labels = (
        f"{place} {min(tokens)!r}" if len(tokens) == 1 else f"{place}"
        for place, tokens in zip(touched, strings, strict=True)
    )
    return Places(tuple(touched), tuple(labels))
