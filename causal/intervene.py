"""Edits put to work: compiled for a batch, run as hooks on the unmodified model, and reported on.

An edit touches its positions in its rows and nothing else; the rows of one forward may carry different edits, which is
what makes a sweep one forward instead of many. Edits of one site work in the order in which they are given, each on
what the one before it left. Each is counted as it fires and its largest change is kept on the device, so that a
forward waits for nothing; the counts are checked when the block ends, and whatever did not happen is an error.

An edit of a transcoder's features looks at its own site, whose vectors they are read from, and changes the site that
the transcoder writes.
"""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..subject.attention import prove, watch_patterns
from ..subject.dictionary import Dictionary
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .attention import PATTERNS, Weights
from .edits import Edit
from .prompts import Batch, where
from .units import Change, Supply, compile_change, units_of, written_site


class RowEdit(NamedTuple):
    """An edit for some rows of a batch only."""

    edit: Edit
    rows: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Materials:
    """What edits refer to and do not hold themselves.

    >>> batch = Batch.of(subject, ["x = [1, 2"])
    >>> Materials(source_runs=subject.read(batch.tokens, ["resid_post.1"])).source_runs["resid_post.1"].shape[-1]
    128
    """

    sources: Mapping[str, Source] = field(default_factory=dict)
    """Dictionaries by `SITE@NAME`."""
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    """By name: (width of the site,)."""
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    """By site: vectors of reference text, (vector, width)."""
    source_runs: Mapping[str, Tensor] = field(default_factory=dict)
    """By site: another run, row by row: (row, position, width); `pattern.L` and `score.L`: (row, head, query, key)."""


NOTHING = Materials()


def edited_dictionaries(edits: Iterable[Edit], materials: Materials) -> dict[str, Dictionary]:
    """The dictionaries whose features these edits change, by `SITE@NAME` in order."""
    names = sorted({f"{edit.site}@{edit.dictionary}" for edit in edits if edit.dictionary})
    sources = {name: materials.sources[name] for name in names if name in materials.sources}
    return {name: source for name, source in sources.items() if isinstance(source, Dictionary)}


@dataclass(frozen=True, slots=True)
class Report:
    """What an edit did in the forwards of a block."""

    edit: Edit
    fired: int
    """How many times it ran: once in each forward."""
    places: Mapping[int, tuple[int, ...]]
    """By touched row, the touched positions; of a pattern the queries."""
    max_change: float
    """The largest absolute change of a coordinate at the site (of a weight or a score) over all forwards."""


class Ledger:
    """The reports of the edits of a block, in the order in which these were given."""

    def __init__(self, running: Sequence["_Running"]) -> None:
        self._running, self.forwards = running, 0

    @property
    def reports(self) -> tuple[Report, ...]:
        """So far, or of the whole block after its end; waits for the device."""
        changes = torch.stack([edit.change for edit in self._running]).tolist()
        return tuple(
            Report(edit.edit, edit.fired, edit.places, change)
            for edit, change in zip(self._running, changes, strict=True)
        )

    def count(self, *_: object) -> None:
        """Called before each forward."""
        self.forwards += 1

    def check_applied(self, *, may_idle: bool) -> None:
        """Raise NeuronautError for an edit that did not happen."""
        for report in self.reports:
            if report.fired != self.forwards or not self.forwards:
                raise NeuronautError(
                    f"edit {report.edit} fired {report.fired} times in {self.forwards} forward passes, wanted once in "
                    "each; the pass ended before its site, skipped it, or never ran"
                )
            if not math.isfinite(report.max_change):
                raise NeuronautError(
                    f"edit {report.edit} made values that are no finite numbers; choose a smaller strength"
                )
            if report.max_change == 0 and not may_idle:
                raise NeuronautError(
                    f"edit {report.edit} changed nothing at {report.edit.site} in rows {sorted(report.places)}: the "
                    "unit already had these values; choose another value, position or unit"
                )


@contextmanager
def apply(
    subject: Subject,
    batch: Batch,
    edits: Sequence[Edit | RowEdit],
    *,
    materials: Materials = NOTHING,
    may_idle: bool = False,
) -> Generator[Ledger]:
    """Within the block, runs of the subject over `batch.tokens` are edited; yields what keeps the reports.

    A bare edit is for every row. Raises NeuronautError at once for what does not fit together, and at the end of the
    block where an edit did not fire once in every forward or, unless it `may_idle`, left every vector as it was.
    Pattern edits run the model's eager attention; run the plain model within `attention.eager` to compare.

    >>> batch = Batch.of(subject, ["def __init__(self, name): self.name ="])
    >>> with apply(subject, batch, [Edit.parse("head.3=0")]) as ledger:
    ...     logits = subject.logits(batch.tokens)
    >>> ledger.reports[0].fired
    1
    """
    if not edits:
        raise NeuronautError("no edit was given; run the subject without apply(), or name an edit such as mlp.2:17=0")
    running = [_compile(subject, batch, item, materials) for item in edits]
    ledger = Ledger(running)
    vectors = hooks_by_site([edit for edit in running if not edit.edit.on_pattern])
    patterns = hooks_by_site([edit for edit in running if edit.edit.on_pattern])
    weights, scores = (
        {int(site.removeprefix(kind)): hook for site, hook in patterns.items() if site.startswith(kind)}
        for kind in ("pattern.", "score.")
    )
    with subject.model.base_model.register_forward_pre_hook(ledger.count), subject.editing(vectors):
        if weights or scores:
            with watch_patterns(subject, weights, scores=scores):
                yield ledger
        else:
            yield ledger
    ledger.check_applied(may_idle=may_idle)


class Hook(Protocol):
    """An edit at work: it changes one site, and looks at its own where that is another."""

    @property
    def edit(self) -> Edit:
        """What it does."""
        ...

    @property
    def writes(self) -> str:
        """The site that it changes."""
        ...

    @property
    def touches(self) -> Set[tuple[int, int]]:
        """The (row, position) that it changes, as far as that can be told beforehand."""
        ...

    def look(self, tensor: Tensor) -> Tensor:
        """Keep what its own site's tensor holds for the change to come, and leave it as it is."""
        ...

    def __call__(self, tensor: Tensor, *masks: Tensor) -> Tensor:
        """The tensor of `writes`, changed."""
        ...


def hooks_by_site(edits: Iterable[Hook]) -> dict[str, Callable[..., Tensor]]:
    """Hooks by site. Edits of one site work one after the other, in the order in which they are given."""
    groups: dict[str, list[Callable[..., Tensor]]] = {}
    looking: dict[object, set[tuple[int, int]]] = {}
    for edit in edits:
        if edit.writes != edit.edit.site:
            _check_apart(edit, looking)
            groups.setdefault(edit.edit.site, []).append(edit.look)
        groups.setdefault(edit.writes, []).append(edit)
    return {site: _chain(group) for site, group in groups.items()}


def _check_apart(edit: Hook, before: dict[object, set[tuple[int, int]]]) -> None:
    """Refuse an edit of a transcoder's feature where another one has changed it: it would not see what that one did."""
    for unit in edit.edit.units or ():
        places = before.setdefault((edit.edit.site, edit.edit.dictionary, unit), set())
        if not places.isdisjoint(edit.touches):
            raise NeuronautError(
                f"edit {edit.edit} is of a transcoder's feature that another edit has changed at the same place; the "
                "feature is read before either, so give one edit for both"
            )
        places |= edit.touches


def _chain(group: Sequence[Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """One hook for several edits of a site, each on what the one before it left."""

    def chained(tensor: Tensor, *masks: Tensor) -> Tensor:
        for edit in group:
            tensor = edit(tensor, *masks)
        return tensor

    return chained


@dataclass(slots=True, eq=False)
class _Running:
    """An edit compiled for a batch, and what it has done so far."""

    edit: Edit
    writes: str
    """The site that it changes."""
    shape: tuple[int, int]
    """(row, position) of the batch it was compiled for."""
    places: Mapping[int, tuple[int, ...]]
    index: tuple[Tensor, ...]
    """What it takes out of the site's tensor and puts back."""
    work: Callable[..., Tensor]
    change: Tensor
    """The largest so far, a scalar on the subject's device."""
    fired: int = 0
    inputs: tuple[Tensor, ...] = ()
    """What its own site held in this forward, where it changes another."""

    @property
    def touches(self) -> Set[tuple[int, int]]:
        """The (row, position) that it changes."""
        return {(row, position) for row, positions in self.places.items() for position in positions}

    def look(self, tensor: Tensor) -> Tensor:
        """Keep the vectors that it reads."""
        self.inputs = (tensor[self.index],)
        return tensor

    def __call__(self, tensor: Tensor, *masks: Tensor) -> Tensor:
        shape = (tensor.shape[0], tensor.shape[2] if masks else tensor.shape[1])
        if shape != self.shape:
            raise NeuronautError(
                f"edit {self.edit} was made for a batch of shape {self.shape} and met {shape}; run its batch's tokens"
            )
        before = tensor[self.index]
        after = self.work(before, *self.inputs, *(mask[self.index] for mask in masks)).to(before.dtype)
        self.fired += 1
        # Masked scores may be infinite, before and after.
        moved = torch.where(after == before, 0, after - before)
        self.change = torch.maximum(self.change, moved.detach().float().abs().amax())
        return tensor.index_put(self.index, after)


def _compile(subject: Subject, batch: Batch, item: Edit | RowEdit, materials: Materials) -> _Running:
    edit, rows = (item.edit, list(item.rows)) if isinstance(item, RowEdit) else (item, list(range(len(batch))))
    if not rows or len(set(rows)) != len(rows) or not 0 <= min(rows) <= max(rows) < len(batch):
        raise NeuronautError(f"edit {edit} is for rows {rows}; wanted different ones from 0 to {len(batch) - 1}")
    mask = where(subject, batch.take(rows), edit.positions)
    places = {
        row: tuple(row_mask.nonzero().flatten().tolist())
        for row, row_mask in zip(rows, mask, strict=True)
        if row_mask.any()
    }
    if not places:
        raise NeuronautError(f"edit {edit} touches no position; its rows have nothing but BOS")
    build = _compile_pattern if edit.on_pattern else _compile_vectors
    index, work = build(subject, batch, edit, rows=rows, mask=mask, materials=materials)
    shape = (len(batch), batch.tokens.shape[1])
    return _Running(
        edit=edit,
        writes=written_site(edit, materials.sources),
        shape=shape,
        places=places,
        index=index,
        work=work,
        change=torch.zeros((), device=subject.device),
    )


def _compile_vectors(
    subject: Subject, batch: Batch, edit: Edit, rows: list[int], mask: Tensor, materials: Materials
) -> tuple[tuple[Tensor, ...], Change]:
    """The touched (row, position) and what becomes of the vectors there, (touched, width)."""
    units = units_of(subject, edit, sources=materials.sources, directions=materials.directions)
    row_of, positions = (part.to(subject.device) for part in mask.nonzero(as_tuple=True))
    index = (torch.tensor(rows, device=subject.device)[row_of], positions)
    width = subject.width(edit.site)
    reference = source_run = None
    if edit.needs_reference:
        reference = units.get(_require_tensor(edit, "reference", materials.reference, (None, width)).to(subject.device))
    if edit.needs_source_run:
        shape = (*batch.tokens.shape, width)
        source_run = units.get(
            _require_tensor(edit, "source run", materials.source_runs, shape).to(subject.device)[index]
        )
    return index, compile_change(edit, units, Supply(reference, source_run))


def _require_tensor(edit: Edit, kind: str, tensors: Mapping[str, Tensor], shape: Sequence[int | None]) -> Tensor:
    """The tensor that an edit needs, or an error that says what is missing."""
    if edit.site not in tensors:
        raise NeuronautError(
            f"edit {edit} needs a {kind} at {edit.site}; pass one in (there are: {', '.join(tensors) or 'none'})"
        )
    tensor = tensors[edit.site]
    fits = tensor.ndim == len(shape) and all(
        wanted is None or wanted == size for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not tensor.numel():
        raise NeuronautError(
            f"edit {edit}: the {kind} at {edit.site} has shape {tuple(tensor.shape)}; wanted {tuple(shape)}"
        )
    return tensor


def _compile_pattern(
    subject: Subject, batch: Batch, edit: Edit, rows: list[int], mask: Tensor, materials: Materials
) -> tuple[tuple[Tensor, ...], Callable[[Tensor, Tensor], Tensor]]:
    """The touched (row, head) and what becomes of their patterns, (row, head, query, key)."""
    assert edit.layer is not None, "a pattern has a layer"
    prove(subject, edit.layer)
    heads = range(subject.n_heads) if edit.units is None else edit.units
    if max(heads) >= subject.n_heads:
        raise NeuronautError(
            f"edit {edit}: there is no head {max(heads)}; {subject.name} has 0 to {subject.n_heads - 1}"
        )
    keys = where(subject, batch.take(rows), edit.keys or "every")
    edges = (mask[:, :, None] & keys[:, None, :])[:, None].to(subject.device)
    index = (torch.tensor(rows, device=subject.device)[:, None], torch.tensor(heads, device=subject.device)[None])
    source_run = None
    if edit.needs_source_run:
        shape = (len(batch), subject.n_heads, batch.tokens.shape[1], batch.tokens.shape[1])
        source_run = _require_tensor(edit, "source run", materials.source_runs, shape).to(subject.device)[index]
    work = PATTERNS[edit.operation]
    return index, lambda pattern, allowed: work(pattern, edges & allowed, Weights(edit.value, source_run))
