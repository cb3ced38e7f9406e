"""Edits put to work: compiled for a batch, run as hooks on the unmodified model, and reported on.

An edit touches its positions in its rows and nothing else; the rows of one forward may carry different edits, which is
what makes a sweep one forward instead of many. Edits of one site work in the order in which they are given, each on
what the one before it left. Each is counted as it fires and its largest change is kept on the device, so that a
forward waits for nothing; the counts are checked when the block ends, and whatever did not happen is an error.

An edit of a transcoder's features looks at its own site, whose vectors they are read from, and changes the sites that
the transcoder writes. A crosscoder's features are known only when the last of its sites is, and the first is changed
before: such an edit takes the vectors of a plain run of the batch, and puts them, with the features changed, at all
places of all sites that it touches.
"""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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
from .units import Change, Sites, Supply, compile_changes, sites_of, units_of


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
    plain = _read_plain(subject, batch, edits, materials)
    running = [_compile(subject, batch, item, materials, plain) for item in edits]
    _check_alone(running)
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


def _check_alone(running: "Sequence[_Running]") -> None:
    """Refuse an edit that puts vectors of a plain run where another edit of the same prompt would change these."""
    for edit in (edit for edit in running if edit.plain):
        if other := next((o for o in running if o is not edit and not o.places.keys().isdisjoint(edit.places)), None):
            raise NeuronautError(
                f"edit {edit.edit} is of a feature that is read from {', '.join(edit.sites.reads)} of the prompt as it "
                f"is, and {other.edit} changes the same prompt; give it alone, or one edit for several of its features"
            )


class Hook(Protocol):
    """An edit at work: it changes one site or several, and looks at those that it reads where these are others."""

    @property
    def edit(self) -> Edit:
        """What it does."""
        ...

    @property
    def looks(self) -> tuple[str, ...]:
        """The sites that it looks at; none where it reads what it changes, or knows it beforehand."""
        ...

    @property
    def writes(self) -> tuple[str, ...]:
        """The sites that it changes."""
        ...

    @property
    def touches(self) -> Set[tuple[int, int]]:
        """The (row, position) that it changes, as far as that can be told beforehand."""
        ...

    def look(self, site: str, tensor: Tensor) -> Tensor:
        """Keep what a site's tensor holds for the change to come, and leave it as it is."""
        ...

    def change_at(self, site: str, tensor: Tensor, *masks: Tensor) -> Tensor:
        """The tensor of one of `writes`, changed."""
        ...


def hooks_by_site(edits: Iterable[Hook]) -> dict[str, Callable[..., Tensor]]:
    """Hooks by site. Edits of one site work one after the other, in the order in which they are given."""
    groups: dict[str, list[Callable[..., Tensor]]] = {}
    looking: dict[object, set[tuple[int, int]]] = {}
    for edit in edits:
        if edit.writes != (edit.edit.site,):
            _check_apart(edit, looking)
        for site in edit.looks:
            groups.setdefault(site, []).append(partial(edit.look, site))
        for site in edit.writes:
            groups.setdefault(site, []).append(partial(edit.change_at, site))
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
    sites: Sites
    shape: tuple[int, int]
    """(row, position) of the batch it was compiled for."""
    places: Mapping[int, tuple[int, ...]]
    index: tuple[Tensor, ...]
    """What it takes out of a site's tensor and puts back."""
    works: Mapping[str, Callable[..., Tensor]]
    """By site that it changes."""
    change: Tensor
    """The largest so far, a scalar on the subject's device."""
    plain: Mapping[str, Tensor]
    """By site, what a plain run holds, where one forward cannot both read and change; else empty."""
    times: dict[str, int]
    """How many times it has changed each site."""
    seen: dict[str, Tensor] = field(default_factory=dict)
    """What the sites that it looks at held in this forward."""

    @property
    def writes(self) -> tuple[str, ...]:
        """The sites that it changes."""
        return self.sites.writes

    @property
    def looks(self) -> tuple[str, ...]:
        """The sites that it looks at."""
        return self.sites.reads if self.sites.apart and not self.plain else ()

    @property
    def fired(self) -> int:
        """How many times it changed all of its sites."""
        return min(self.times.values())

    @property
    def touches(self) -> Set[tuple[int, int]]:
        """The (row, position) that it changes."""
        return {(row, position) for row, positions in self.places.items() for position in positions}

    def look(self, site: str, tensor: Tensor) -> Tensor:
        """Keep the vectors that it reads."""
        self.seen[site] = tensor
        return tensor

    def _inputs(self) -> list[Tensor]:
        """The vectors (touched, width) that it reads, where these are others than it changes."""
        known = self.plain or self.seen
        if not self.sites.looks_back:
            return [self.sites.join({site: known[site][self.index] for site in self.sites.reads})] if known else []
        # Only its own rows: a batch may hold many edits, each with its own.
        row, position = self.index
        rows, place = row.unique(return_inverse=True)
        return [self.sites.join({site: known[site][rows] for site in self.sites.reads})[place, position]]

    def change_at(self, site: str, tensor: Tensor, *masks: Tensor) -> Tensor:
        """The site's tensor with the touched vectors edited."""
        shape = (tensor.shape[0], tensor.shape[2] if masks else tensor.shape[1])
        if shape != self.shape:
            raise NeuronautError(
                f"edit {self.edit} was made for a batch of shape {self.shape} and met {shape}; run its batch's tokens"
            )
        before = tensor[self.index]
        given = self.plain[site][self.index] if self.plain else before
        after = self.works[site](given, *self._inputs(), *(mask[self.index] for mask in masks)).to(before.dtype)
        self.times[site] += 1
        # Masked scores may be infinite, before and after.
        moved = torch.where(after == before, 0, after - before)
        self.change = torch.maximum(self.change, moved.detach().float().abs().amax())
        return tensor.index_put(self.index, after)


def _read_plain(
    subject: Subject, batch: Batch, edits: Sequence[Edit | RowEdit], materials: Materials
) -> Mapping[str, Tensor]:
    """By site, (row, position, width) of one plain run for all edits that change a site before what they read."""
    of = (sites_of(item.edit if isinstance(item, RowEdit) else item, materials.sources) for item in edits)
    sites = dict.fromkeys(site for one in of if one.is_ahead(subject) for site in (*one.reads, *one.writes))
    return subject.read(batch.tokens, [*sites]) if sites else {}


def _compile(
    subject: Subject, batch: Batch, item: Edit | RowEdit, materials: Materials, plain: Mapping[str, Tensor]
) -> _Running:
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
    sites = sites_of(edit, materials.sources)
    build = _compile_pattern if edit.on_pattern else _compile_vectors
    index, works = build(subject, batch, edit, rows=rows, mask=mask, materials=materials)
    return _Running(
        edit=edit,
        sites=sites,
        shape=(len(batch), batch.tokens.shape[1]),
        places=places,
        index=index,
        works=works,
        change=torch.zeros((), device=subject.device),
        plain=plain if sites.is_ahead(subject) else {},
        times=dict.fromkeys(sites.writes, 0),
    )


def _compile_vectors(
    subject: Subject, batch: Batch, edit: Edit, rows: list[int], mask: Tensor, materials: Materials
) -> tuple[tuple[Tensor, ...], dict[str, Change]]:
    """The touched (row, position) and what becomes of the vectors there, (touched, width), by site."""
    units = units_of(subject, edit, sources=materials.sources, directions=materials.directions)
    row_of, positions = (part.to(subject.device) for part in mask.nonzero(as_tuple=True))
    index = (torch.tensor(rows, device=subject.device)[row_of], positions)
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
    return index, compile_changes(edit, units, Supply(reference, source_run), sites)


def require_vectors(
    subject: Subject, edit: Edit, kind: str, tensors: Mapping[str, Tensor], *, sites: Sites, shape: Sequence[int | None]
) -> Tensor:
    """What an edit's units are read from at sites, or an error that says which vectors are missing."""
    return sites.join(
        {
            site: _require_tensor(edit, kind, tensors, (*shape, subject.width(site)), site=site).to(subject.device)
            for site in sites.reads
        }
    )


def _require_tensor(
    edit: Edit, kind: str, tensors: Mapping[str, Tensor], shape: Sequence[int | None], *, site: str
) -> Tensor:
    """The tensor that an edit needs, or an error that says what is missing."""
    if site not in tensors:
        raise NeuronautError(
            f"edit {edit} needs a {kind} at {site}; pass one in (there are: {', '.join(tensors) or 'none'})"
        )
    tensor = tensors[site]
    fits = tensor.ndim == len(shape) and all(
        wanted is None or wanted == size for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not tensor.numel():
        raise NeuronautError(
            f"edit {edit}: the {kind} at {site} has shape {tuple(tensor.shape)}; wanted {tuple(shape)}"
        )
    return tensor


def _compile_pattern(
    subject: Subject, batch: Batch, edit: Edit, rows: list[int], mask: Tensor, materials: Materials
) -> tuple[tuple[Tensor, ...], dict[str, Callable[..., Tensor]]]:
    """The touched (row, head) and what becomes of their patterns, (row, head, query, key), at their site."""
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
        source_run = _require_tensor(edit, "source run", materials.source_runs, shape, site=edit.site)
        source_run = source_run.to(subject.device)[index]
    work = PATTERNS[edit.operation]
    return index, {edit.site: lambda pattern, allowed: work(pattern, edges & allowed, Weights(edit.value, source_run))}
