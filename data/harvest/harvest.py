"""One pass over a corpus that collects the evidence for every feature of every requested source.

Per batch of windows: one forward of the subject, stopped after the last site; each source encodes
in tiles that stay in cache, and each tile is scanned once (`scan.py`) into statistics and bounded
lists. The state is a function of the set of windows alone: two states merge by `absorb`,
associatively and commutatively, so shards of a corpus may be harvested anywhere and a checkpoint is
a state like any other. Silent windows and near misses are then mined from the pool, a uniform sample
of the corpus that the state carries along, by running it through the subject once more; what is known
by then is written to the store meanwhile (`conclude`).
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import numpy as np
import torch

from ...subject.address import SourceId
from ...subject.convention import Convention
from ...subject.dictionary import Dictionary
from ...subject.direction_matrix import Directions
from ...subject.errors import NeuronautError
from ...subject.head_norms import HeadNorms
from ...subject.head_writes import HeadWrites
from ...subject.model import Subject
from ...subject.sources import Neurons, Source
from ..corpus import Corpus
from ..interrupts import Interrupts
from ..records import ExampleList, HarvestResult, Kind, Mined, SourceResult, TokenCounts
from ..splits import Splits, assign
from .activations import TILE_ROWS, WINDOWS, neurons, tiles
from .attended import find_attended, find_refusal
from .lists import Lists
from .massive import norm_limits, sample_windows
from .mining import Mining
from .scan import SUM_UNIT, Rows, Scanner, window_hash
from .state import POOL, QUANTILE, TOP, HarvestState, find_stopped, load_state, save_state
from .top_tokens import rank_tokens
from .watch import Watch
from .windows import Given, WindowBatch, check_window, expected_tokens, windows

if TYPE_CHECKING:
    from ..store.store import Store

WRITING_SECONDS = 1e-4
"""What writing a feature's row and lists takes, but for the lists that are mined, on a slow machine."""
CHECKPOINT_SECONDS = 60.0
"""Between checkpoints, for each second that writing one takes, so that a large one costs no larger part of the time."""

Progress = Callable[[int], None]
"""Called with the number of corpus tokens done so far."""
Told = Callable[[int, int], None]
"""Is told how much is done, and of how much."""
T = TypeVar("T")


def collect(
    subject: Subject,
    sources: Sequence[Source],
    corpus: Corpus,
    splits: Splits,
    *,
    window: int = 64,
    tokens: int | None = None,
    shard: tuple[int, int] = (0, 1),
    rows: int = TILE_ROWS,
    checkpoint: Path | None = None,
    about: Mapping[str, object] | None = None,
    stop_at: int | None = None,
    progress: Progress | None = None,
    compiled: bool | None = None,
) -> HarvestState:
    """Harvest one shard, going on from `checkpoint` where that file exists. See `harvest`.

    What the checkpoint says of itself is `about`, beside what `describe` tells. With `stop_at` no further window is
    read once the state has so many tokens. SIGINT and SIGTERM wait until the batch under way is in the checkpoint.
    """
    check_window(subject, window)
    scanner = Scanner(compiled=compiled)
    state = HarvestState.empty(sources, window=window)
    if checkpoint is not None and checkpoint.exists():
        state = load_state(checkpoint, state)
    state.convention = find_convention(subject, sources, splits, window=window)
    subject = subject.with_convention(state.convention)
    if stop_at is not None and state.tokens >= stop_at:
        return state
    given, pruned = Given(), max(len(state.table.uid), 64 * rows)
    keeper = _Keeper(checkpoint, describe(sources, corpus, tokens) | dict(about or {}), kept=state.batches)
    if progress is not None:
        progress(state.tokens)
    with Interrupts() as interrupts:
        for number, batch in enumerate(
            windows(corpus, subject, splits, window=window, tokens=tokens, shard=shard, rows=rows, given=given)
        ):
            if interrupts.came:
                break
            if number < state.batches:
                continue
            scan_batch(subject, sources, batch, scanner, state)
            state.batches = number + 1
            if len(state.table.uid) + len(state.unsaved) * rows > 2 * pruned:
                state.prune()
                pruned = max(len(state.table.uid), 64 * rows)
            keeper.keep(state, given)
            if progress is not None:
                progress(state.tokens)
            if stop_at is not None and state.tokens >= stop_at:
                break
        if interrupts.came:
            keeper.keep(state, given, at_once=True)
    if interrupts.came:
        raise KeyboardInterrupt  # its handler went on, but this state is not whole
    state.given = given
    state.prune()
    return state


class _Keeper:
    """Writes checkpoints where it is time to."""

    def __init__(self, path: Path | None, about: Mapping[str, object], *, kept: int) -> None:
        """`kept` batches are in the checkpoint that there is."""
        self._path, self._about, self._kept = path, about, kept
        self._due = time.monotonic() + CHECKPOINT_SECONDS

    def keep(self, state: HarvestState, given: Given, *, at_once: bool = False) -> None:
        """Write one if the last one is old, or `at_once` if it lacks a batch."""
        began = time.monotonic()
        if self._path is None or self._kept == state.batches or not (at_once or began > self._due):
            return
        state.settle()
        state.given = replace(given)
        save_state(self._path, state, about=self._about)
        self._kept, ended = state.batches, time.monotonic()
        self._due = ended + CHECKPOINT_SECONDS * max(1.0, ended - began)


def find_convention(subject: Subject, sources: Sequence[Source], splits: Splits, *, window: int) -> Convention:
    """How the subject reads the corpus, with the norms above which a position is massive."""
    sample = sample_windows(subject, splits.sample, window=window)
    limits = norm_limits(subject, [site for source in sources for site in source.reads], sample)
    return replace(subject.convention, norm_limits=limits)


def describe(sources: Sequence[Source], corpus: Corpus, budget: int | None) -> dict[str, object]:
    """What a checkpoint says of itself; see `Stopped`."""
    return {"sources": [str(source.id) for source in sources], "corpus": corpus.name, "budget": budget}


def scan_batch(
    subject: Subject, sources: Sequence[Source], batch: WindowBatch, scanner: Scanner, state: HarvestState
) -> None:
    """Run a batch of windows through the subject, and add what every source makes of it to the state."""
    hashes = window_hash(batch.uid)
    for tile in tiles(subject, sources, batch.tokens):
        own, span = state.sources[str(tile.source.id)], tile.rows
        rows = Rows(batch.uid[span], batch.cluster[span], batch.split[span], hashes[span], tile.counted)
        scanner.scan(tile.activations, rows, own, first_feature=tile.first_feature)
        if tile.first_feature == 0:
            own.uncounted += int((batch.tokens[span] >= 0).sum()) - int(tile.counted.sum())
    state.tokens += int((batch.tokens >= 0).sum())
    if subject.convention.special_tokens:
        state.special += int(np.isin(batch.tokens, list(subject.special_ids)).sum())
    state.unsaved.append(batch)


def finish(
    subject: Subject,
    sources: Sequence[Source],
    corpus: Corpus,
    state: HarvestState,
    *,
    seed: int = 0,
    mining: Told = lambda *_: None,
) -> HarvestResult:
    """Mine silent examples and near misses, order everything, and name the documents.

    The result takes over the memory of the state's lists, which are empty afterwards.
    `mining` is told of how many windows the silent ones were looked for so far, and of how many there are.
    """
    ending = _Ending(subject, sources, corpus, state, seed=seed)
    mining(0, ending.mined)
    return _add_mined(ending.result(), ending.mine(mining))


class _Ending:
    """What is left to do when the text is read: to mine, which runs the subject, and what may be done beside it."""

    def __init__(
        self, subject: Subject, sources: Sequence[Source], corpus: Corpus, state: HarvestState, *, seed: int
    ) -> None:
        """Take over the memory of the lists, which are empty afterwards, and do all else that runs the subject."""
        state.prune()
        if state.tokens == 0:
            raise NeuronautError(
                f"the budget took no window of the corpus {corpus.name!r}; give a larger --tokens, or a larger corpus"
            )
        self._subject = subject.with_convention(state.convention or subject.convention)
        self._corpus, self._state, self._counts = corpus, state, _count_tokens(state)
        self._pool = state.table.pool(POOL)
        self._mining = Mining(sources, state, self._pool)
        self._results = tuple(_source_result(self._subject, source, state) for source in sources)
        self._provenance = _describe_run(self._subject, sources, self._counts, seed=seed)

    @property
    def mined(self) -> int:
        """How many windows are mined."""
        return self._mining.windows

    def mine(self, progress: Told) -> Mined:
        """Look for silent examples and near misses."""
        return self._mining.run(self._subject, progress=progress)

    def result(self) -> HarvestResult:
        """All but what is mined, with the names of the documents, for which the corpus is read once more."""
        names = {ordinal: document.name for ordinal, document in self._corpus}
        subject, table = self._subject, self._state.table
        return HarvestResult(
            model=subject.name,
            revision=subject.revision,
            corpus=self._corpus.name,
            tokens=self._state.tokens,
            counts=self._counts,
            window=table.tokens.shape[1],
            windows=table.tokens,
            splits=table.split,
            documents=tuple(map(names.__getitem__, (table.uid >> 20).tolist())),
            pool=self._pool,
            vocabulary=subject.vocabulary,
            sources=self._results,
            provenance=self._provenance,
        )


def _add_mined(result: HarvestResult, mined: Mined) -> HarvestResult:
    sources = (replace(source, lists={**source.lists, **mined[source.source]}) for source in result.sources)
    return replace(result, sources=tuple(sources))


def _describe_run(subject: Subject, sources: Sequence[Source], counts: TokenCounts, *, seed: int) -> dict[str, object]:
    """What the numbers of a harvest depend on."""
    return {
        "seed": seed,
        "rows": subject.batching.most(WINDOWS, TILE_ROWS),
        "device": str(subject.device),
        "torch": torch.__version__,
        "dtype": subject.dtype,
        "convention": asdict(subject.convention),
        "counts": asdict(counts),
        **_describe_heads(subject, sources),
        **_describe_directions(sources),
    }


def _describe_heads(subject: Subject, sources: Sequence[Source]) -> dict[str, object]:
    """Why the examples of heads have no source tokens; nothing where they have them, or there are no heads."""
    heads = (str(source.id) for source in sources if isinstance(source, HeadNorms | HeadWrites))
    reasons = {name: find_refusal(subject, SourceId.parse(name).site) for name in heads}
    refused = {name: reason for name, reason in reasons.items() if reason}
    return {"no_source_tokens": refused} if refused else {}


def _describe_directions(sources: Sequence[Source]) -> dict[str, object]:
    """The names of directions and how these were found, by source; nothing where there are none."""
    matrices = [source for source in sources if isinstance(source, Directions)]
    told = {str(source.id): {"names": list(source.names), "found": list(source.provenance)} for source in matrices}
    return {"directions": told} if told else {}


def _count_tokens(state: HarvestState) -> TokenCounts:
    given = state.given
    beyond = given.tokens - state.tokens
    return TokenCounts(given.tokens, beyond, state.special, own_bos=given.own_bos, spelled=given.spelled)


def _source_result(subject: Subject, source: Source, state: HarvestState) -> SourceResult:
    own, several = state.sources[str(source.id)], len(source.writes) > 1
    tokens = state.tokens - int(own.uncounted[0])
    lists: dict[Kind, ExampleList] = {}
    kinds: dict[Kind, Lists | None] = {"top": own.top, "quantile": own.quantile, "bottom": own.bottom}
    for kind, part in kinds.items():
        if part is not None:
            feature, uid, activations = part.drain()
            window = np.searchsorted(state.table.uid, uid)
            lists[kind] = ExampleList(feature.astype(np.int32), window.astype(np.int32), activations)
    if isinstance(source, HeadNorms | HeadWrites) and find_refusal(subject, source.id.site) is None:
        lists = {kind: find_attended(subject, source, part, state.table.tokens) for kind, part in lists.items()}
    return SourceResult(
        source=str(source.id),
        kind=subject.unit_kind if isinstance(source, Neurons) else _kind_of(source),
        width=source.width,
        signed=source.signed,
        revision=source.revision,
        tokens=tokens,
        count=own.count,
        mean=own.sum / SUM_UNIT / max(tokens, 1),
        peak=own.peak,
        trough=own.trough,
        histogram=own.histogram,
        lists={kind: part for kind, part in lists.items() if len(part.features)},
        norms=source.written_norms().cpu().numpy() if isinstance(source, Dictionary) and several else None,
    )


def _kind_of(source: Source) -> str:
    if isinstance(source, Directions):
        return "directions"
    if len(source.reads) > 1:
        return "crosscoder"
    return "dictionary" if source.writes == source.reads else "transcoder"


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
    close: bool = False,
    watch: Watch | None = None,
) -> HarvestResult:
    """Collect the evidence for every feature of `sites` over the corpus and write it to the store.

    `sites` are site names (their neurons) or sources (dictionaries, directions). `tokens` bounds the corpus tokens
    read (None: all), `window` is the number of tokens in a window. `paths` are the folders of the model (by
    its name) and of the dictionaries (by their id), for later commands. A killed harvest goes on
    from its checkpoint file when it is called again with the same arguments; called with fewer `tokens` it is ended as
    soon as it has these, and with `close` at once: the provenance then has `stopped_at`, for its text is the
    beginning of the corpus. `watch` is told how far it is.

    >>> memory = Store(":memory:")
    >>> result = harvest(subject, ["mlp.2"], Corpus.load("stdlib"), memory, tokens=20_000)
    >>> [row["source"] for row in memory.sources()]
    ['demo:mlp.2']
    """
    named = [site for site in sites if isinstance(site, str)]
    sources = [*neurons(subject, named), *(site for site in sites if not isinstance(site, str))]
    check_sources(store, subject, sources)
    splits, watch = assign(corpus, seed=seed), watch or Watch()
    plan = _plan(checkpoint, harvest_key(subject, sources, splits, window=window), tokens, close=close)
    watch.begins(plan.done, max(plan.done, expected_tokens(subject, splits, tokens)))
    state = collect(
        subject,
        sources,
        corpus,
        splits,
        window=window,
        tokens=plan.budget,
        checkpoint=plan.checkpoint,
        stop_at=plan.stop_at,
        progress=watch.read,
    )
    if plan.checkpoint is not None and plan.checkpoint.exists() and state.tokens > plan.done:
        # Mining may take minutes, and what is interrupted there goes on from here.
        save_state(plan.checkpoint, state, about=describe(sources, corpus, plan.budget))
    stopped = {} if plan.stop_at is None else {"stopped_at": {"tokens": state.tokens, "budget": plan.budget}}
    own = {"corpus": splits.digest, "paths": dict(paths or {}), **stopped}
    result = conclude(subject, sources, corpus, state, store, seed=seed, provenance=own, watch=watch)
    if plan.checkpoint is not None:
        plan.checkpoint.unlink(missing_ok=True)
    return result


def check_sources(store: "Store", subject: Subject, sources: Sequence[Source]) -> None:
    """Raise NeuronautError where the store holds one of the sources with other weights, or as it read other text."""
    for source in sources:
        store.check_source(
            source.id,
            revision=source.revision,
            model_revision=subject.revision,
            width=source.width,
            convention=subject.convention,
        )


def conclude(
    subject: Subject,
    sources: Sequence[Source],
    corpus: Corpus,
    state: HarvestState,
    store: "Store",
    *,
    seed: int,
    provenance: Mapping[str, object],
    watch: Watch,
) -> HarvestResult:
    """Finish a state that has read all it should, and write it to the store with its `provenance`.

    Another thread mines while this one writes all else, and then finds the tokens that features raise.
    Other writers wait for a database that is being written, so the writing begins when what is left of mining takes
    about as long as what can be written meanwhile.
    """
    ending = _Ending(subject, sources, corpus, state, seed=seed)
    watch.mined(0, ending.mined)
    soon, began = Event(), time.monotonic()
    ahead = WRITING_SECONDS * sum(source.width for source in sources)

    def tell(done: int, of: int) -> None:
        if (time.monotonic() - began) / done * (of - done) <= ahead:
            soon.set()
        if not soon.is_set():
            watch.mined(done, of)

    with _Beside() as beside:
        mined = beside.submit(ending.mine, tell)
        mined.add_done_callback(lambda _: soon.set())
        result = ending.result()
        result = replace(result, provenance={**result.provenance, **provenance, **_describe_sites(sources)})
        soon.wait()
        watch.writes()
        ranked = beside.submit(partial(rank_tokens, subject, sources, result.sources), watch.ranked)
        store.write_harvest(result, mined)
        # Others may write while the rest of the tokens is sought.
        tokens = ranked.result()
    result = _add_mined(result, mined.result())
    found = zip(result.sources, tokens, strict=True)
    result = replace(result, sources=tuple(replace(source, top_tokens=own) for source, own in found))
    store.write_tokens(result.sources)
    return result


class _Beside:
    """Another thread, which does work in turn, and ends it when the block is left and it next tells of its progress."""

    def __init__(self) -> None:
        self._thread, self._given_up = ThreadPoolExecutor(1, thread_name_prefix="harvest"), Event()

    def submit(self, work: Callable[[Told], T], told: Told) -> Future[T]:
        """Let it do work, which tells of its progress."""

        def tell(done: int, of: int) -> None:
            if self._given_up.is_set():
                raise CancelledError
            told(done, of)

        return self._thread.submit(work, tell)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._thread.shutdown(cancel_futures=True)


def _describe_sites(sources: Sequence[Source]) -> dict[str, object]:
    """The sites that are written, by source, and those that are read where they are several; nothing of neurons."""
    writes = {str(source.id): ", ".join(source.writes) for source in sources if source.writes != (source.id.site,)}
    reads = {str(source.id): ", ".join(source.reads) for source in sources if len(source.reads) > 1}
    return {name: sites for name, sites in (("writes", writes), ("reads", reads)) if sites}


class _Plan(NamedTuple):
    """Which checkpoint a harvest goes on from, and when it ends."""

    checkpoint: Path | None
    budget: int | None
    """The token budget of that checkpoint, by which its windows are drawn."""
    stop_at: int | None = None
    done: int = 0
    """Tokens that the checkpoint has."""


def _plan(checkpoint: Path | None, key: str, tokens: int | None, *, close: bool) -> _Plan:
    """Go on from the checkpoint of the same budget, else end one of a larger budget early."""
    if checkpoint is None:
        if close:
            raise NeuronautError("there is no checkpoint to close; name the one of the stopped harvest")
        return _Plan(None, tokens)
    own = checkpoint.with_name(f"{checkpoint.name}-{key}-{tokens or 'all'}.npz")
    alike = {stopped.path: stopped for stopped in find_stopped(checkpoint) if f"-{key}-" in stopped.path.name}
    if close:
        if not alike:
            raise NeuronautError(
                f"no stopped harvest of these sites, this corpus, window and seed lies beside {checkpoint.stem}; "
                "see: neuronaut db status"
            )
        chosen = alike.get(own) or max(alike.values(), key=lambda stopped: stopped.tokens)
        return _Plan(chosen.path, chosen.budget, stop_at=0, done=chosen.tokens)
    if own not in alike and tokens is not None:
        larger = [stopped for stopped in alike.values() if stopped.budget is None or stopped.budget > tokens]
        if larger:
            chosen = max(larger, key=lambda stopped: stopped.tokens)
            return _Plan(chosen.path, chosen.budget, stop_at=tokens, done=chosen.tokens)
    return _Plan(own, tokens, done=alike[own].tokens if own in alike else 0)


def harvest_key(subject: Subject, sources: Sequence[Source], splits: Splits, *, window: int) -> str:
    """Hash of all that determines the content of a harvest's state but its budget, for the names of files."""
    named = [f"{source.id}{getattr(source, 'revision', '')}" for source in sources]
    rest = [splits.digest, window, splits.seed]
    parts = [subject.revision, subject.convention, *named, TOP, QUANTILE, POOL, TILE_ROWS, *rest]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
