"""One pass over a corpus that collects the evidence for every feature of every requested source.

Per batch of windows: one forward of the subject, stopped after the last site; each source encodes
in tiles that stay in cache, and each tile is scanned once (`scan.py`) into statistics and bounded
lists. Everything kept is a function of the set of windows alone: two states merge by `absorb`,
associatively and commutatively, so shards of a corpus may be harvested anywhere and a checkpoint is
a state like any other. `finish` then mines silent windows and near misses from the pool, a uniform
sample of the corpus that the state carries along, by running it through the subject once more.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..subject.address import SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Neurons, Source
from .checkpoint import load_state, save_state
from .corpus import Corpus
from .lists import Lists
from .mining import mine
from .records import ExampleList, HarvestResult, Kind, SourceResult
from .scan import SUM_UNIT, Rows, Scanner, SourceState, window_hash
from .splits import Splits, assign
from .windows import WindowBatch, windows

if TYPE_CHECKING:
    from .store import Store

TOP = (20, 8, 12)
"""Examples kept per feature in (train, select, holdout) for the top and the bottom lists."""
QUANTILE = (16, 8, 12)
"""Examples kept per feature in (train, select, holdout) for the uniform sample of active windows."""
POOL = 4096
"""Windows in the pool."""
ROWS = 32
"""Windows per forward, always: matrix products round by the number of rows, so that a short batch is filled up and
a window's activations have the same bits whatever batch it came in. (On a CPU with several threads PyTorch's
attention keeps this only for windows of 32 tokens and more.)"""
CHECKPOINT_SECONDS = 60.0

Progress = Callable[[int], None]
"""Called with the number of corpus tokens done so far."""


@dataclass(slots=True)
class WindowTable:
    """Token ids of the windows that a state still refers to."""

    uid: NDArray[np.int64]
    tokens: NDArray[np.int32]
    """Shape (window, position)."""
    split: NDArray[np.int8]

    @classmethod
    def empty(cls, positions: int) -> "WindowTable":
        return cls(np.empty(0, np.int64), np.empty((0, positions), np.int32), np.empty(0, np.int8))

    def add(self, uid: NDArray[np.int64], tokens: NDArray[np.int32], split: NDArray[np.int8]) -> None:
        merged, first = np.unique(np.concatenate([self.uid, uid]), return_index=True)
        self.uid = merged
        self.tokens = np.concatenate([self.tokens, tokens])[first]
        self.split = np.concatenate([self.split, split])[first]

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        self.uid, self.tokens, self.split = self.uid[chosen], self.tokens[chosen], self.split[chosen]

    def pool(self, size: int) -> NDArray[np.bool_]:
        """Which rows are the `size` windows of lowest hash: a uniform sample that no order can change."""
        chance = window_hash(~self.uid)
        chosen = np.zeros(len(self.uid), bool)
        chosen[np.lexsort((self.uid, chance))[:size]] = True
        return chosen


@dataclass(slots=True)
class HarvestState:
    """A harvest under way, or a shard of one."""

    sources: dict[str, SourceState]
    table: WindowTable
    tokens: int = 0
    """Corpus tokens counted so far."""
    batches: int = 0
    """Batches of this shard that are done: where to go on after a checkpoint."""
    unsaved: list[WindowBatch] = field(default_factory=list)
    """Batches whose windows are not in the table yet."""

    @classmethod
    def empty(cls, sources: Sequence[Source], *, window: int) -> "HarvestState":
        states = {
            str(source.id): SourceState.empty(source.width, window, signed=source.signed, top=TOP, quantile=QUANTILE)
            for source in sources
        }
        return cls(states, WindowTable.empty(window))

    def absorb(self, other: "HarvestState") -> None:
        """Merge another shard into this one; the result does not depend on the order of merges."""
        if self.sources.keys() != other.sources.keys():
            raise NeuronautError(
                f"shards of different sources: {', '.join(self.sources)} and {', '.join(other.sources)}; "
                "harvest every shard with the same sites"
            )
        self.settle()
        other.settle()
        for name, state in self.sources.items():
            state.absorb(other.sources[name])
        self.table.add(other.table.uid, other.table.tokens, other.table.split)
        self.tokens += other.tokens
        self.prune()

    def settle(self) -> None:
        """Move the latest batches' windows into the table."""
        if self.unsaved:
            uid, tokens, split = (np.concatenate([getattr(b, key) for b in self.unsaved]) for key in ("uid", "tokens", "split"))
            self.table.add(uid, tokens.astype(np.int32), split)
            self.unsaved.clear()

    def prune(self) -> None:
        """Drop windows that no list and not the pool refers to."""
        self.settle()
        used = self.table.pool(POOL)
        for state in self.sources.values():
            for lists in (state.top, state.quantile, state.bottom):
                if lists is not None:
                    used |= np.isin(self.table.uid, lists.uid)
        self.table.keep(used)


def neurons(subject: Subject, sites: Iterable[str]) -> list[Source]:
    """The neurons (coordinates) of each site as sources."""
    return [Neurons(SourceId(subject.name, site), subject.width(site)) for site in sites]


def collect(
    subject: Subject,
    sources: Sequence[Source],
    corpus: Corpus,
    splits: Splits,
    *,
    window: int = 64,
    tokens: int | None = None,
    shard: tuple[int, int] = (0, 1),
    rows: int = ROWS,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    compiled: bool | None = None,
) -> HarvestState:
    """Harvest one shard, going on from `checkpoint` where that file exists. See `harvest`."""
    scanner = Scanner(compiled=compiled)
    state = HarvestState.empty(sources, window=window)
    if checkpoint is not None and checkpoint.exists():
        state = load_state(checkpoint, state)
    saved, pruned = time.monotonic(), max(len(state.table.uid), 64 * rows)
    for number, batch in enumerate(windows(corpus, subject, splits, window=window, tokens=tokens, shard=shard, rows=rows)):
        if number < state.batches:
            continue
        _scan_batch(subject, sources, batch, scanner, state)
        state.batches = number + 1
        if len(state.table.uid) + len(state.unsaved) * rows > 2 * pruned:
            state.prune()
            pruned = max(len(state.table.uid), 64 * rows)
        if progress is not None:
            progress(state.tokens)
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            state.settle()
            save_state(checkpoint, state)
            saved = time.monotonic()
    state.prune()
    return state


def _scan_batch(
    subject: Subject, sources: Sequence[Source], batch: WindowBatch, scanner: Scanner, state: HarvestState
) -> None:
    rows = Rows(batch.uid, batch.cluster, batch.split, window_hash(batch.uid))
    for source, window_span, first_feature, tile in tiles(subject, sources, batch.tokens):
        part = Rows(
            rows.uid[window_span], rows.group[window_span], rows.split[window_span], rows.hash[window_span]
        )  # fmt: skip
        scanner.scan(tile, part, state.sources[str(source.id)], first_feature=first_feature)
    state.tokens += batch.tokens.size
    state.unsaved.append(batch)


def tiles(
    subject: Subject, sources: Sequence[Source], tokens: NDArray[np.integer], *, whole: bool = False
) -> Iterable[tuple[Source, slice, int, Tensor]]:
    """Run windows (row, position) through the subject and yield activations tile by tile.

    Each tile is (source, which windows, first feature, activations (window, position, feature)) with
    BOS left out; it is overwritten by the next one. `whole` gives all features in one tile.
    """
    for start in range(0, len(tokens), ROWS):
        part = tokens[start : start + ROWS]
        filled = np.concatenate([part, np.repeat(part[:1], ROWS - len(part), axis=0)])
        for source, span, first, tile in _full_tiles(subject, sources, filled, whole=whole):
            if span.start < len(part):
                stop = min(span.stop, len(part))
                yield source, slice(start + span.start, start + stop), first, tile[: stop - span.start]


def _full_tiles(
    subject: Subject, sources: Sequence[Source], tokens: NDArray[np.integer], *, whole: bool
) -> Iterable[tuple[Source, slice, int, Tensor]]:
    """The tiles of exactly ROWS windows."""
    read = subject.read(with_bos(subject, tokens), list(dict.fromkeys(source.id.site for source in sources)))
    for source in sources:
        vectors = read[source.id.site]
        positions, skip = vectors.shape[1], int(subject.bos is not None)
        if isinstance(source, Neurons):
            yield source, slice(0, len(vectors)), 0, vectors[:, skip:].float()
            continue
        rows, width = _tile_shape(vectors, source, whole=whole)
        buffer = torch.empty(rows * positions * width, dtype=torch.float32, device=vectors.device)
        for start in range(0, len(vectors), rows):
            part = vectors[start : start + rows]
            flat = part.reshape(-1, part.shape[2]).float()
            for first in range(0, source.width, width):
                features = slice(first, min(first + width, source.width))
                n = features.stop - first
                out = buffer[: len(flat) * n].view(len(flat), n)
                source.encode(flat, None if n == source.width else features, out=out)
                yield source, slice(start, start + len(part)), first, out.view(len(part), positions, n)[:, skip:]


def _tile_shape(vectors: Tensor, source: Source, *, whole: bool) -> tuple[int, int]:
    """Windows (a power of two, so that all tiles are alike) and features per tile.

    About 256 tokens x 2048 features on a CPU, where that stays in the L2 cache.
    """
    rows, width = (256, 2048) if vectors.device.type == "cpu" else (16384, 16384)
    width = source.width if whole or not source.separable else min(width, source.width)
    return 1 << min(ROWS, max(1, round(rows / vectors.shape[1]))).bit_length() - 1, width


def with_bos(subject: Subject, tokens: NDArray[np.integer]) -> Tensor:
    """Windows as a tensor on the subject's device, BOS in front where the subject has one. (row, position [+ 1])."""
    rows = torch.from_numpy(tokens.astype(np.int64)).to(subject.device)
    if subject.bos is None:
        return rows
    return torch.cat([rows.new_full((len(rows), 1), subject.bos), rows], dim=1)


def finish(subject: Subject, sources: Sequence[Source], corpus: Corpus, state: HarvestState, *, seed: int = 0) -> HarvestResult:
    """Mine silent examples and near misses, order everything, and name the documents."""
    state.prune()
    if state.tokens == 0:
        raise NeuronautError(f"the corpus {corpus.name!r} gave no full window; give a larger one, or a smaller --window")
    table = state.table
    pool = table.pool(POOL)
    mined = mine(subject, sources, state, pool)
    results = [_source_result(source, state, mined[str(source.id)]) for source in sources]
    names = {ordinal: document.name for ordinal, document in corpus}
    return HarvestResult(
        model=subject.name, revision=subject.revision, corpus=corpus.name, tokens=state.tokens,
        window=table.tokens.shape[1], windows=table.tokens, splits=table.split,
        documents=tuple(names[int(ordinal)] for ordinal in table.uid >> 20), pool=pool,
        vocabulary=subject.vocabulary, sources=tuple(results),
        provenance={
            "seed": seed, "rows": ROWS, "device": str(subject.device), "torch": torch.__version__,
            "dtype": str(subject.model.dtype).removeprefix("torch."),
        },
    )  # fmt: skip


def _source_result(source: Source, state: HarvestState, mined: dict[Kind, ExampleList]) -> SourceResult:
    kept = state.sources[str(source.id)]
    lists: dict[Kind, ExampleList] = {}
    kinds: dict[Kind, Lists | None] = {"top": kept.top, "quantile": kept.quantile, "bottom": kept.bottom}
    for kind, part in kinds.items():
        if part is not None:
            feature, slot = part.ordered()
            window = np.searchsorted(state.table.uid, part.uid[feature, slot])
            lists[kind] = ExampleList(feature.astype(np.int32), window.astype(np.int32), part.activations[feature, slot])
    return SourceResult(
        source=str(source.id), kind="neurons" if isinstance(source, Neurons) else "dictionary", width=source.width,
        signed=source.signed, revision=getattr(source, "revision", ""), count=kept.count,
        mean=kept.sum / SUM_UNIT / state.tokens, peak=kept.peak, trough=kept.trough, histogram=kept.histogram,
        lists={kind: part for kind, part in (lists | mined).items() if len(part.features)},
    )  # fmt: skip


def harvest(
    subject: Subject,
    sites: Sequence[str | Source],
    corpus: Corpus,
    store: "Store",
    *,
    tokens: int | None = None,
    window: int = 64,
    seed: int = 0,
    paths: Mapping[str, str] | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> HarvestResult:
    """Collect the evidence for every feature of `sites` over the corpus and write it to the store.

    `sites` are site names (their neurons) or sources (dictionaries). `tokens` bounds the corpus tokens
    read (None: all), `window` is the number of tokens in a window. `paths` says where the model (by its
    name) and the dictionaries (by their id) lie, for who opens them later. A killed harvest goes on
    from its checkpoint file when it is called again with the same arguments.
    """
    named = [site for site in sites if isinstance(site, str)]
    sources = [*neurons(subject, named), *(site for site in sites if not isinstance(site, str))]
    for source in sources:
        store.check_source(
            source.id, revision=getattr(source, "revision", ""), model_revision=subject.revision, width=source.width
        )
    splits = assign(corpus, seed=seed)
    if checkpoint is not None:
        checkpoint = checkpoint.with_name(f"{checkpoint.name}-{_key(subject, sources, splits.digest, tokens, window, seed)}.npz")
    state = collect(subject, sources, corpus, splits, window=window, tokens=tokens, checkpoint=checkpoint, progress=progress)
    result = finish(subject, sources, corpus, state, seed=seed)
    result = replace(result, provenance={**result.provenance, "corpus": splits.digest, "paths": dict(paths or {})})
    store.write_harvest(result)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return result


def _key(subject: Subject, sources: Sequence[Source], *rest: object) -> str:
    """What a checkpoint belongs to: anything that would change its content changes its name."""
    named = [f"{source.id}{getattr(source, 'revision', '')}" for source in sources]
    parts = [subject.revision, *named, TOP, QUANTILE, POOL, ROWS, *rest]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
