"""One pass over a corpus that collects the evidence for every feature of every requested source.

Per batch of windows: one forward of the subject, stopped after the last site; each source encodes
in tiles that stay in cache, and each tile is scanned once (`scan.py`) into statistics and bounded
lists. The state is a function of the set of windows alone: two states merge by `absorb`,
associatively and commutatively, so shards of a corpus may be harvested anywhere and a checkpoint is
a state like any other. What follows when the text is read stands in ending.py.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...subject.convention import Convention
from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.sources import Source
from ..corpus import Corpus
from ..interrupts import Interrupts
from ..records import HarvestResult
from ..splits import Splits, assign
from .activations import TILE_ROWS, neurons, tiles
from .ending import conclude
from .massive import norm_limits, sample_windows
from .scan import Rows, Scanner, window_hash
from .state import POOL, QUANTILE, TOP, HarvestState, find_stopped, load_state, save_state
from .watch import Watch
from .windows import Given, WindowBatch, check_window, expected_tokens, windows

if TYPE_CHECKING:
    from ..store.store import Store

CHECKPOINT_SECONDS = 60.0
"""Between checkpoints, for each second that writing one takes, so that a large one costs no larger part of the time."""

Progress = Callable[[int], None]
"""Called with the number of corpus tokens done so far."""


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
