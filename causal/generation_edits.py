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
from .edits import Edit, read_quoted
from .intervene import Materials, Report, RowEdit
from .prompts import Batch, where
from .units import Change, Supply, compile_change, units_of, written_site

Scope = Literal["every", "prefill", "decode"]

_PLACED = frozenset({"patch", "resample", "noise"})
"""Operations whose values belong to places that must be known before anything is written."""


@dataclass(slots=True, eq=False)
class GrowingEdit:
    """An edit of growing rows."""

    edit: Edit
    writes: str
    """The site that it changes."""
    rows: Tensor
    """(row,), bool: the rows that it is for."""
    work: Change
    meant: Tensor
    """(token,), bool: the written tokens that its rule means."""
    touched: Tensor
    """(row, column), bool: as far as it is decided."""
    change: Tensor
    """The largest so far, a scalar on the subject's device."""
    index: tuple[Tensor, ...] = field(default=())
    """(row, column) that it takes out of the site's tensor in the coming forward pass, and puts back."""
    called: int = 0
    fired: int = 0
    inputs: tuple[Tensor, ...] = ()
    """What its own site holds there in this forward pass, where it changes another."""

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

    def look(self, tensor: Tensor) -> Tensor:
        """Keep the vectors that it reads."""
        self.inputs = (tensor[self.index],)
        return tensor

    def __call__(self, tensor: Tensor, *masks: Tensor) -> Tensor:
        """The site's tensor with the touched positions of this forward pass edited."""
        assert not masks, "patterns are not edited while rows grow"
        self.called += 1
        if not len(self.index[0]):
            return tensor
        self.fired += 1
        before = tensor[self.index]
        after = self.work(before, *self.inputs).to(before.dtype)
        self.change = torch.maximum(self.change, (after - before).float().abs().amax())
        return tensor.index_put(self.index, after)

    def report(self, offset: Tensor) -> Report:
        """So far; waits for the device."""
        places = {
            row: tuple((here.nonzero().flatten() - offset[row]).tolist())
            for row, here in enumerate(self.touched)
            if here.any()
        }
        return Report(self.edit, self.fired, places, float(self.change))


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
    work = _compile_change(subject, batch, edit, (row_of, positions), materials)
    return GrowingEdit(
        edit=edit,
        writes=written_site(edit, materials.sources),
        rows=rows,
        work=work,
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


def _compile_change(
    subject: Subject, batch: Batch, edit: Edit, index: tuple[Tensor, ...], materials: Materials
) -> Change:
    """What becomes of touched vectors; source runs are those of the prompts' touched positions."""
    units = units_of(subject, edit, sources=materials.sources, directions=materials.directions)
    width = subject.width(edit.site)
    reference = source_run = None
    if edit.needs_reference:
        reference = units.get(_require_tensor(edit, "reference", materials.reference, width).to(subject.device))
    if edit.needs_source_run:
        run = _require_tensor(edit, "source run", materials.source_runs, width)
        if run.shape[:-1] != batch.tokens.shape:
            raise NeuronautError(
                f"edit {edit}: the source run is of {tuple(run.shape[:-1])} tokens; wanted the prompts'"
            )
        source_run = units.get(run[index].to(subject.device))
    return compile_change(edit, units, Supply(reference, source_run))


def _require_tensor(edit: Edit, kind: str, tensors: Mapping[str, Tensor], width: int) -> Tensor:
    tensor = tensors.get(edit.site)
    if tensor is None or not tensor.numel() or tensor.shape[-1] != width:
        shape = "none" if tensor is None else f"one of shape {tuple(tensor.shape)}"
        raise NeuronautError(
            f"edit {edit} needs a {kind} at {edit.site}, (..., {width}); there is {shape}; pass one in"
        )
    return tensor


def check_applied(edits: Sequence[GrowingEdit], reports: Sequence[Report], *, forwards: int, may_idle: bool) -> None:
    """Raise NeuronautError for an edit that did not happen."""
    for growing, report in zip(edits, reports, strict=True):
        if growing.called != forwards:
            raise NeuronautError(
                f"edit {report.edit} was passed {growing.called} times in {forwards} forward passes, wanted once in "
                "each; a fused kernel or a wrapper bypasses its site"
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
