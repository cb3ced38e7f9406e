"""Edits of rows that grow as they are written: which positions each one touches, and what it has done to them.

The counterpart of `intervene` for text of which only the beginning is known. A position is decided once, when it is
first run, and stays decided (see `generation`); rows are filled up on the left, so a row's position p stands in column
p + offset[row].
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import join_vectors, require_vectorwise
from .edits import Edit, read_quoted
from .intervene import Materials, Report, RowEdit, require_vectors
from .prompts import Batch, where
from .units import Change, Sites, Supply, compile_changes, sites_of, units_of

Scope = Literal["every", "prefill", "decode"]

_PLACED = frozenset({"patch", "resample", "noise"})
"""Operations whose values belong to places that must be known before anything is written."""


@dataclass(slots=True, eq=False)
class GrowingEdit:
    """An edit of growing rows."""

    edit: Edit
    sites: Sites
    rows: Tensor
    """(row,), bool: the rows that it is for."""
    works: Mapping[str, Change]
    """By site that it changes."""
    meant: Tensor
    """(token,), bool: the written tokens that its rule means."""
    touched: Tensor
    """(row, column), bool: as far as it is decided."""
    change: Tensor
    """The largest so far, a scalar on the subject's device."""
    index: tuple[Tensor, ...] = field(default=())
    """(row, column) that it takes out of a site's tensor in the coming forward pass, and puts back."""
    calls: int = 0
    """How many times it was given a tensor of one of its sites."""
    changes: int = 0
    """How many times it changed one of them."""
    seen: dict[str, Tensor] = field(default_factory=dict)
    """What the sites that it looks at hold there in this forward pass."""

    @property
    def writes(self) -> tuple[str, ...]:
        """The sites that it changes."""
        return self.sites.writes

    @property
    def looks(self) -> tuple[str, ...]:
        """The sites that it looks at, where these are others than it changes."""
        return self.sites.reads if self.sites.apart else ()

    def decide(self, column: int, chosen: Tensor, alive: Tensor) -> None:
        """Whether the tokens (row,) that come to stand in a column are touched."""
        self.touched[:, column] = self.rows & alive & self.meant[chosen]

    def aim(self, columns: slice) -> None:
        """Before a forward pass over these columns."""
        index = self.touched[:, columns].nonzero(as_tuple=True)
        self.index = tuple(part.to(self.change.device) for part in index)

    @property
    def touches(self) -> Set[tuple[int, int]]:
        """The (row, column) of prompts that it changes, and (row, -1) where it may change what is written."""
        prompts = {(row, column) for row, column in self.touched.nonzero().tolist()}
        return prompts | ({(row, -1) for row in self.rows.nonzero().flatten().tolist()} if self.meant.any() else set())

    def look(self, site: str, tensor: Tensor) -> Tensor:
        """Keep the vectors that it reads."""
        self.seen[site] = tensor[self.index]
        return tensor

    def change_at(self, site: str, tensor: Tensor, *masks: Tensor) -> Tensor:
        """The site's tensor with the touched positions of this forward pass edited."""
        assert not masks, "patterns are not edited while rows grow"
        self.calls += 1
        if not len(self.index[0]):
            return tensor
        self.changes += 1
        before = tensor[self.index]
        inputs = [join_vectors(self.seen, self.sites.reads)] if self.seen else []
        after = self.works[site](before, *inputs).to(before.dtype)
        self.change = torch.maximum(self.change, (after - before).float().abs().amax())
        return tensor.index_put(self.index, after)

    def report(self, offset: Tensor) -> Report:
        """So far; waits for the device."""
        places = {
            row: tuple((here.nonzero().flatten() - offset[row]).tolist())
            for row, here in enumerate(self.touched)
            if here.any()
        }
        return Report(self.edit, self.changes // len(self.writes), places, float(self.change))


def compile_growing(
    subject: Subject,
    batch: Batch,
    item: Edit | RowEdit,
    *,
    scope: Scope,
    materials: Materials,
    offset: Tensor,
    columns: int,
) -> GrowingEdit:
    """An edit for rows that will have `columns` columns, with the prompts' positions decided."""
    edit, numbers = (item.edit, item.rows) if isinstance(item, RowEdit) else (item, tuple(range(len(batch))))
    _check(edit, numbers, scope, len(batch))
    sites = sites_of(edit, materials.sources)
    if sites.source is not None:
        # Only the newest vectors of a row are at hand.
        require_vectorwise(sites.source, "an edit of text that is being written")
    if sites.is_ahead(subject):
        raise NeuronautError(
            f"edit {edit} changes {sites.writes[0]}, which comes before {sites.reads[-1]}, the last site that the "
            "feature is read from, so no text can be written under it; run, patch or ablate it on given text"
        )
    rows = torch.zeros(len(batch), dtype=torch.bool)
    rows[list(numbers)] = True
    meant = _mark_written(subject, edit, scope)
    prompt_mask = torch.zeros_like(batch.real)
    if scope != "decode":
        prompt_mask[rows] = _mark_prompt(subject, batch.take(rows.nonzero().flatten()), edit.positions)
    if not prompt_mask.any() and not meant.any():
        raise NeuronautError(
            f"edit {edit} touches no position in scope {scope}; choose a scope or positions that are in it"
        )
    row_of, positions = prompt_mask.nonzero(as_tuple=True)
    touched = torch.zeros((len(batch), columns), dtype=torch.bool)
    touched[row_of, positions + offset[row_of]] = True
    works = _compile_changes(subject, batch, edit, (row_of, positions), materials)
    return GrowingEdit(
        edit=edit,
        sites=sites,
        rows=rows,
        works=works,
        meant=meant,
        touched=touched,
        change=torch.zeros((), device=subject.device),
    )


def _check(edit: Edit, rows: Sequence[int], scope: Scope, count: int) -> None:
    if scope not in get_args(Scope):
        raise NeuronautError(f"there is no scope {scope!r}; there are {', '.join(get_args(Scope))}")
    if not rows or len(set(rows)) != len(rows) or not 0 <= min(rows) <= max(rows) < count:
        raise NeuronautError(f"edit {edit} is for rows {list(rows)}; wanted different ones from 0 to {count - 1}")
    if edit.on_pattern:
        raise NeuronautError(
            f"edit {edit} is of attention weights, which grow with the row; edit head.{edit.layer} instead"
        )
    if edit.operation in _PLACED and scope != "prefill":
        raise NeuronautError(
            f"edit {edit} has values for the prompt's positions only, not for what is written; "
            "pass scope='prefill', or use =, *= or +="
        )


def _match_tokens(subject: Subject, rule: str) -> Tensor:
    """(token,), bool: the tokens that read as a rule in quotes says."""
    wanted = read_quoted(rule)
    matches = torch.tensor([string == wanted for string in subject.vocabulary])
    if not matches.any():
        raise NeuronautError(f"{subject.name} has no token {wanted!r}; write one as its tokenizer does, space included")
    return matches


def _mark_written(subject: Subject, edit: Edit, scope: Scope) -> Tensor:
    """(token,), bool: the written tokens that the edit means."""
    rule, count = edit.positions, len(subject.vocabulary)
    if scope == "prefill":
        return torch.zeros(count, dtype=torch.bool)
    if rule.startswith('"'):
        return _match_tokens(subject, rule)
    return torch.full((count,), rule in ("all", "every", "last"))


def _mark_prompt(subject: Subject, batch: Batch, rule: str) -> Tensor:
    """(row, position), bool. A token need not be in a prompt: it may be written later."""
    if rule.startswith('"'):
        return _match_tokens(subject, rule)[batch.tokens] & batch.real
    return where(subject, batch, rule)


def _compile_changes(
    subject: Subject, batch: Batch, edit: Edit, index: tuple[Tensor, ...], materials: Materials
) -> dict[str, Change]:
    """What becomes of touched vectors, by site; source runs are those of the prompts' touched positions."""
    units = units_of(subject, edit, sources=materials.sources, directions=materials.directions)
    sites = sites_of(edit, materials.sources)
    reference = source_run = None
    if edit.needs_reference:
        reference = units.get(
            require_vectors(subject, edit, "reference", materials.reference, sites=sites, shape=(None,))
        )
    if edit.needs_source_run:
        runs = require_vectors(
            subject, edit, "source run", materials.source_runs, sites=sites, shape=batch.tokens.shape
        )
        source_run = units.get(runs[index])
    return compile_changes(edit, units, Supply(reference, source_run), sites)


def check_applied(edits: Sequence[GrowingEdit], reports: Sequence[Report], *, forwards: int, may_idle: bool) -> None:
    """Raise NeuronautError for an edit that did not happen."""
    for growing, report in zip(edits, reports, strict=True):
        if growing.calls != forwards * len(growing.writes):
            raise NeuronautError(
                f"edit {report.edit} was passed {growing.calls} times in {forwards} forward passes, wanted once in "
                "each at each of its sites; a fused kernel or a wrapper bypasses its site"
            )
        if not math.isfinite(report.max_change):
            raise NeuronautError(
                f"edit {report.edit} made values that are no finite numbers; choose a smaller strength"
            )
        if report.max_change == 0 and not may_idle:
            reason = "the unit already had these values" if report.fired else "no position that it means came up"
            raise NeuronautError(
                f"edit {report.edit} changed nothing at {report.edit.site} in {forwards} forward passes: {reason}; "
                "choose another value, position or unit"
            )
