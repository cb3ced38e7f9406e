"""Runs of the subject over prompts: plain and edited, patched from one another, and begun in the middle.

Only the logits that are asked for are computed. A run of which only the later layers differ from a known one begins at
the first of these (`resume`): the blocks before it are left out of the model while it runs, and the block before the
first puts out the known residual stream. That this gives the whole run's logits is proven on each model, once.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..subject.attention import eager, patterns, scores
from ..subject.claims import ROUNDING
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .edits import Edit
from .intervene import NOTHING, Materials, Report, RowEdit, apply
from .measures import Direction, Effect, Question, effect, metric
from .prompts import Batch, Pairs, where
from .units import sites_of

T = TypeVar("T")
AT_ONCE = 64
"""Rows of a forward in which edits are run beside each other, at most."""
EDITED = "edited rows"
"""What a subject's batching calls them."""


def logits_at(subject: Subject, tokens: Tensor, positions: Tensor) -> Tensor:
    """Logits at one position of each row, in the caller's grad mode. (row, position) ids, (row,) -> (row, token)."""
    chosen = positions.unique().tolist()
    if len(chosen) == 1:
        return subject.run(tokens, positions=chosen)[:, 0]
    return logits_of(subject, tokens, torch.stack([torch.arange(len(tokens)), positions.cpu()], dim=1))


def logits_of(subject: Subject, tokens: Tensor, places: Tensor) -> Tensor:
    """Logits at places alone, in the caller's grad mode. (row, position) ids, (place, 2) -> (place, token)."""

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        rows, positions = places.to(hidden.device).T
        return hidden[rows, positions][:, None], *rest

    # The model itself keeps the same positions of all rows only, which rows of many lengths would make most of them.
    with subject.unembedding.register_forward_pre_hook(pick):
        logits = subject.run(tokens)
    assert logits.shape[:2] == (len(places), 1), "the unembedding runs once"
    return logits[:, 0]


def alike(subject: Subject, edits: Iterable[Edit]) -> AbstractContextManager[None]:
    """Within it, plain runs use the attention implementation that these edits make their own runs use."""
    return eager(subject) if any(edit.on_pattern for edit in edits) else nullcontext()


@torch.inference_mode()
def gather(
    subject: Subject,
    edits: Sequence[Edit],
    *,
    materials: Materials = NOTHING,
    reference: Batch | None = None,
    source_run: Batch | None = None,
) -> Materials:
    """The materials with what the edits need: vectors of the reference's tokens (all but BOS), the source run.

    Vectors of the reference that the materials have already are not read again.
    """
    gathered = materials

    def read_by(wanting: Iterable[Edit]) -> list[str]:
        return sorted({site for edit in wanting for site in sites_of(edit, materials.sources).reads})

    needing = read_by(edit for edit in edits if edit.needs_reference)
    wanted = [site for site in needing if site not in materials.reference]
    if reference is not None and wanted:
        vectors = join(in_parts(subject, reference, lambda rows: _read_words(subject, rows, wanted)))
        gathered = replace(gathered, reference={**gathered.reference, **vectors})
    if source_run is not None and (sites := read_by(edit for edit in edits if edit.needs_source_run)):
        with alike(subject, edits):
            gathered = replace(
                gathered, source_runs={**gathered.source_runs, **read_source_run(subject, source_run, sites)}
            )
    return gathered


def _read_words(subject: Subject, batch: Batch, sites: Sequence[str]) -> dict[str, Tensor]:
    """By site, the vectors of all tokens but BOS: (token, width)."""
    mask = where(subject, batch, "all").to(subject.device)
    return {site: vectors[mask] for site, vectors in subject.read(batch.tokens, sites).items()}


def in_parts(subject: Subject, batch: Batch, run: Callable[[Batch], T]) -> list[T]:
    """What a plain run gives for all the rows at once, or for parts of them that fit into memory."""

    def run_part(part: slice) -> T:
        return run(batch.take(torch.arange(part.start, part.stop)))

    return [*subject.batching.batches(len(batch), len(batch), run_part, work="plain rows")]


def join(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by site, row after row."""
    return {site: torch.cat([part[site] for part in parts]) if len(parts) > 1 else parts[0][site] for site in parts[0]}


def read_source_run(subject: Subject, batch: Batch, sites: Sequence[str]) -> dict[str, Tensor]:
    """A run's tensors at sites: (row, position, width), `pattern.L` and `score.L`: (row, head, query, key)."""
    return join(in_parts(subject, batch, lambda rows: _read_sites(subject, rows, sites)))


def _read_sites(subject: Subject, batch: Batch, sites: Sequence[str]) -> dict[str, Tensor]:
    plain = [site for site in sites if not site.startswith(("pattern.", "score."))]
    tensors = dict(subject.read(batch.tokens, plain)) if plain else {}
    for kind, read in (("pattern", patterns), ("score", scores)):
        if layers := [int(site.partition(".")[2]) for site in sites if site.startswith(f"{kind}.")]:
            tensors |= {f"{kind}.{layer}": found for layer, found in read(subject, batch.tokens, layers).items()}
    return tensors


@dataclass(frozen=True, eq=False, slots=True)
class Comparison:
    """The same prompts without and with edits."""

    before: Tensor
    """(row, token): logits at each row's last position."""
    after: Tensor
    reports: tuple[Report, ...]


@torch.inference_mode()
def compare(
    subject: Subject, batch: Batch, edits: Sequence[Edit | RowEdit], *, materials: Materials = NOTHING
) -> Comparison:
    """Run the prompts plainly and under all the edits together; two forwards."""
    with alike(subject, (item.edit if isinstance(item, RowEdit) else item for item in edits)):
        before = logits_at(subject, batch.tokens, batch.last)
        with apply(subject, batch, edits, materials=materials) as ledger:
            after = logits_at(subject, batch.tokens, batch.last)
    return Comparison(before, after, ledger.reports)


@dataclass(frozen=True, slots=True)
class Patching:
    """One direction of a patching experiment."""

    effects: Mapping[str, Effect]
    """By metric."""
    reports: tuple[Report, ...]


@torch.inference_mode()
def patching(
    subject: Subject,
    pairs: Pairs,
    edits: Sequence[Edit],
    *,
    metrics: Sequence[str] = ("logit_difference", "log_probability", "kl"),
    materials: Materials = NOTHING,
    seed: int = 0,
    may_idle: bool = False,
) -> dict[Direction, Patching]:
    """Run the edits on the corrupted prompts with clean source runs (denoising), and the other way round (noising).

    KL is taken to the clean run. Edits that change nothing are errors unless they `may_idle`. What only one of the two
    shows is no contradiction: denoising finds what suffices (a part of an AND is missed), noising what is needed (a
    part of an OR is missed).
    """
    runs: dict[Direction, tuple[Batch, Batch]] = {
        "denoise": (pairs.corrupted, pairs.clean),
        "noise": (pairs.clean, pairs.corrupted),
    }
    results: dict[Direction, Patching] = {}
    with alike(subject, edits):
        clean, corrupted = (logits_at(subject, b.tokens, b.last) for b in (pairs.clean, pairs.corrupted))
        question = Question(pairs.answers, pairs.wrong, clean)
        for direction, (base, source_run) in runs.items():
            gathered = gather(subject, edits, materials=materials, source_run=source_run)
            with apply(subject, base, edits, materials=gathered, may_idle=may_idle) as ledger:
                patched = logits_at(subject, base.tokens, base.last)
            measured = {
                name: [metric(name)(logits, question) for logits in (clean, corrupted, patched)] for name in metrics
            }
            effects = {
                name: effect(name, clean=a, corrupted=b, patched=c, direction=direction, seed=seed)
                for name, (a, b, c) in measured.items()
            }
            results[direction] = Patching(effects, ledger.reports)
    return results


@torch.inference_mode()
def separately(
    subject: Subject,
    batch: Batch,
    edits: Sequence[Edit],
    readout: Callable[[Tensor], Tensor],
    *,
    materials: Materials = NOTHING,
    at_once: int = AT_ONCE,
    run: Callable[[Batch], Tensor] | None = None,
) -> tuple[Tensor, tuple[Report, ...]]:
    """Each edit by itself on all the rows, as many edits in one forward as `at_once` rows have room for.

    `readout` maps the logits at the rows' last positions, (row of the batch, token), to what is kept of them, such as a
    metric's (row,). Where `run` is given, its output for the rows takes the place of these logits. Gives (edit, ...)
    and each edit's report; an edit may leave everything as it was, and then reports a change of 0.
    """
    if not edits:
        raise NeuronautError("there are no edits to run; give at least one")

    def run_part(part: slice) -> tuple[Tensor, tuple[Report, ...]]:
        return together(subject, batch, edits[part], readout, materials=materials, run=run)

    most = max(1, at_once // len(batch)) * len(batch)
    parts = [*subject.batching.batches(len(edits), most, run_part, work=EDITED, per=len(batch))]
    return torch.cat([readings for readings, _ in parts]), tuple(report for _, reports in parts for report in reports)


@torch.inference_mode()
def together(
    subject: Subject,
    batch: Batch,
    edits: Sequence[Edit],
    readout: Callable[[Tensor], Tensor],
    *,
    materials: Materials = NOTHING,
    run: Callable[[Batch], Tensor] | None = None,
) -> tuple[Tensor, tuple[Report, ...]]:
    """As `separately`, all of the edits in one forward."""
    copies = batch.take(torch.arange(len(batch)).repeat(len(edits)))
    row_edits = [
        RowEdit(edit, tuple(range(slot * len(batch), (slot + 1) * len(batch)))) for slot, edit in enumerate(edits)
    ]
    copied = replace(
        materials,
        source_runs={site: _repeat_rows(tensors, len(edits)) for site, tensors in materials.source_runs.items()},
    )
    with apply(subject, copies, row_edits, materials=copied, may_idle=True) as ledger:
        output = run(copies) if run else logits_at(subject, copies.tokens, copies.last)
    readings = torch.stack([readout(rows) for rows in output.split(len(batch))])
    return readings, tuple(_renumber_rows(report, len(batch)) for report in ledger.reports)


def _renumber_rows(report: Report, rows: int) -> Report:
    """The report with the batch's own row numbers."""
    return replace(report, places={row % rows: places for row, places in report.places.items()})


def _repeat_rows(source_run: Tensor, count: int) -> Tensor:
    return source_run.repeat(count, *[1] * (source_run.ndim - 1))


class _SkippedBlock(nn.Module):
    """Stands where a block is that need not run."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return hidden_states


class _KnownBlock(nn.Module):
    """Stands where the last block is that need not run, and puts out what it would have."""

    def __init__(self, residual: Tensor) -> None:
        super().__init__()
        self._residual = residual

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        if hidden_states.shape != self._residual.shape:
            raise NeuronautError(
                f"the residual stream to resume from has shape {tuple(self._residual.shape)}; the tokens need "
                f"{tuple(hidden_states.shape)}; read it from a run of as many rows and positions"
            )
        return self._residual


@contextmanager
def resume(subject: Subject, layer: int, residual: Tensor) -> Generator[None]:
    """Within the block, runs begin at `layer`, from `residual` (row, position, d_model), its `resid_pre`.

    The tokens that are run must have as many rows and positions. Sites before the layer do not exist within the block,
    and edits of them are errors. Raises NeuronautError where the model's blocks cannot be left out: ask `resumable`
    before edits are in force, because the runs of its proof, once for each subject, would count as theirs.
    """
    if reason := resumable(subject):
        raise NeuronautError(f"{subject.name} cannot be resumed: {reason}; run the whole model")
    if not 1 <= layer <= subject.n_layers:
        raise NeuronautError(f"there is nothing to leave out before layer {layer}; resume at 1 to {subject.n_layers}")
    with _without(subject, layer, residual):
        yield


def blocks_of(subject: Subject) -> nn.ModuleList:
    """The model's blocks, in forward order."""
    owner, name = _place_of_blocks(subject)
    return getattr(owner, name)


def _place_of_blocks(subject: Subject) -> tuple[nn.Module, str]:
    parent, _, name = subject.architecture.layers.rpartition(".")
    return subject.model.base_model.get_submodule(parent), name


@contextmanager
def _without(subject: Subject, layer: int, residual: Tensor) -> Generator[None]:
    owner, name = _place_of_blocks(subject)
    blocks = blocks_of(subject)
    # The places stay, because some families look up a block's kind of attention by its place.
    stand_ins = [*(_SkippedBlock() for _ in range(layer - 1)), _KnownBlock(residual)]
    setattr(owner, name, nn.ModuleList([*stand_ins, *blocks[layer:]]))
    try:
        yield
    finally:
        setattr(owner, name, blocks)


_resumable: WeakSet[Subject] = WeakSet()
"""The proven ones. A failure is not kept: it may be due to edits that are in force meanwhile."""


def resumable(subject: Subject) -> str | None:
    """Why runs cannot begin in the middle of this model; None where it is proven that they can, by three short runs."""
    if subject in _resumable:
        return None
    if (failure := _find_failure(subject)) is None:
        _resumable.add(subject)
    return failure


@torch.inference_mode()
def _find_failure(subject: Subject) -> str | None:
    tokens = torch.randint(subject.model.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0))
    layer = max(1, subject.n_layers - 1)
    site = f"resid_post.{layer - 1}"
    whole, residual = subject.logits(tokens), subject.read(tokens, [site])[site]
    try:
        with _without(subject, layer, residual):
            resumed = subject.logits(tokens)
    except (AttributeError, IndexError, KeyError, TypeError, RuntimeError) as error:
        return f"its blocks cannot be left out ({type(error).__name__}: {error})"
    difference = float((resumed - whole).abs().max() / whole.abs().max())
    allowed = ROUNDING * torch.finfo(whole.dtype).eps
    # Written so that a NaN fails.
    return None if difference <= allowed else f"its logits are off by {difference:.2g} (allowed {allowed:.2g})"
