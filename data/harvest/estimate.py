"""What a harvest will need: memory, disk and time, told before it begins by a short timed run that writes nothing.

What the arrays of the lists and statistics hold is known from their shapes; one batch is run to see the memory that it
takes. The first batches of the harvest itself are then run twice: at first every window enters the lists, at the second
time none does, which is how nearly all later ones fare. Of n windows a list of k takes about k (1 + ln(n / k)), the
expected number of records among values in random order (Rényi 1962), so both times tell the time of a long harvest.
How full the lists become follows from how full these few windows made them; a few features of each source, written into
a database in memory, tell the bytes of an example.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...subject.directions import TopTokens, find_top_tokens
from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.sources import Source
from ..codec import pack_activations
from ..corpus import Corpus
from ..records import SPLITS, ExampleList, HarvestResult, Kind, SourceResult
from ..splits import FRACTIONS, Splits, assign
from ..store.store import Store
from .activations import TILE_ROWS, tiles
from .ending import finish
from .harvest import find_convention, scan_batch
from .mining import CAPACITY, count_mined
from .scan import Scanner, SourceState
from .state import POOL, QUANTILE, TOP, HarvestState
from .top_tokens import has_top_tokens
from .windows import WindowBatch, check_window, documents_to_read, expected_tokens, windows

BATCHES = 4
"""How many batches are timed."""
WRITTEN = 256
"""Features of each source that are written, to see how large they become."""
_PAGE = 4096
"""Bytes that a system gives out at once: memory of an array that was never touched costs nothing."""
_CAPACITIES: Mapping[Kind, tuple[int, int, int]] = {"top": TOP, "bottom": TOP, "quantile": QUANTILE, **CAPACITY}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a harvest will need. All sizes are bytes."""

    tokens: int
    """About so many corpus tokens are read."""
    memory: Mapping[str, int]
    """Of the process at its peak, by part: `model` (with the program), `batch` (with the splits), `lists`,
    `statistics`, `mined` and `windows`."""
    sources: Mapping[str, int]
    """The lists, statistics and mined examples among these, by source."""
    database: int
    """By how much the database grows; as much again lies beside it until the harvest is written whole."""
    checkpoint: int
    """The checkpoint beside the database, from the first minute on; twice that while it is replaced."""
    seconds: Mapping[str, float]
    """By part: `splits` (a first pass over the corpus), `text` (to tokens), `model` (with the lists), `mining`,
    `ranking` (of the tokens that features raise) and `writing`."""
    overlap: bool
    """Whether a core is free to turn text into tokens while the model runs."""
    spread: tuple[float, float]
    """The time of the fastest and of the slowest timed batch, in multiples of the mean."""

    @property
    def peak(self) -> int:
        """The most memory at once."""
        return sum(self.memory.values())

    @property
    def disk(self) -> int:
        """The most disk at once."""
        return max(2 * self.checkpoint, self.checkpoint + 2 * self.database)

    def total_seconds(self, speed: float = 1.0) -> float:
        """How long the harvest takes where a batch takes `speed` times the mean."""
        parts = {
            name: seconds * (speed if name in ("model", "mining") else 1) for name, seconds in self.seconds.items()
        }
        hidden = min(parts["text"], parts["model"]) if self.overlap else 0
        return sum(parts.values()) - hidden


class _Beginning(NamedTuple):
    """The first windows of a harvest."""

    subject: Subject
    splits: Splits
    splits_seconds: float
    batches: list[WindowBatch]
    memory: "_Peak"

    @property
    def read(self) -> int:
        """Tokens in the batches."""
        return sum(int((batch.tokens >= 0).sum()) for batch in self.batches)


def estimate(
    subject: Subject,
    sources: Sequence[Source],
    corpus: Corpus,
    *,
    window: int = 64,
    tokens: int | None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Estimate:
    """Say what `harvest` with the same arguments will need. Raises NeuronautError where there is not memory for it.

    `progress` is told what is run, how much of it is done, and of how much.
    """
    check_window(subject, window)
    first = _begin(subject, sources, corpus, window=window, tokens=tokens, seed=seed)
    subject, splits = first.subject, first.splits
    whole = len(first.batches) < BATCHES
    expected = first.read if whole else max(first.read, expected_tokens(subject, splits, tokens))
    documents = documents_to_read(subject, splits, tokens)
    checkpoint = sum(source.width * _bytes_of_feature(window, signed=source.signed) for source in sources)
    _require_memory(checkpoint + first.memory.above)
    empty = HarvestState.empty(sources, window=window)
    filling, later, state = _time_batches(subject, sources, first.batches, empty, progress)
    result = finish(subject, sources, corpus, state, mining=partial(progress, "silent windows"))
    progress("tokens that features raise", 0, 0)
    windows_read = sum(len(batch.uid) for batch in first.batches)
    growth = _Growth(windows_read, expected / first.read, _count_clusters(splits, documents))
    entries = {source.source: growth.entries(source, result.splits) for source in result.sources}
    sizes = {source.source: _size_of(source, entries[source.source], window) for source in result.sources}
    taken = {source: float(sum(counts.sum() for counts in own.values())) for source, own in entries.items()}
    kept = min(growth.after, POOL + growth.after * -math.expm1(-sum(taken.values()) / growth.after))
    table = round(kept * (4 * window + 9))
    thin, ranking = _rank_some(subject, sources, result)
    written, mean = _write(result, thin, taken, kept), float(np.mean(later))
    parts = {name: sum(getattr(size, name) for size in sizes.values()) for name in _Size._fields}
    return Estimate(
        tokens=expected,
        # The table of windows is added to and pruned by copying it.
        memory={
            "model": first.memory.start,
            "batch": max(first.memory.above, ranking.above),
            **parts,
            "windows": 3 * table,
        },
        sources={name: sum(size) for name, size in sizes.items()},
        database=written.size,
        checkpoint=checkpoint + table,
        seconds={
            "splits": first.splits_seconds,
            "text": _time_text(subject, splits) * int(splits.characters[documents].sum()),
            "model": growth.seconds(filling, later),
            "mining": growth.mined / TILE_ROWS * mean,
            "ranking": ranking.seconds,
            "writing": written.seconds,
        },
        overlap=subject.device.type != "cpu" or torch.get_num_threads() < (os.cpu_count() or 1),
        spread=(min(later) / mean, max(later) / mean),
    )


def _begin(
    subject: Subject, sources: Sequence[Source], corpus: Corpus, *, window: int, tokens: int | None, seed: int
) -> _Beginning:
    """Do what comes before the first batch, and run that once, looking at the memory."""
    with _watching() as memory:
        began = time.perf_counter()
        splits = assign(corpus, seed=seed)
        seconds = time.perf_counter() - began
        subject = subject.with_convention(find_convention(subject, sources, splits, window=window))
        batches = list(islice(windows(corpus, subject, splits, window=window, tokens=tokens), BATCHES))
        if not batches:
            raise NeuronautError(f"the budget takes no window of the corpus {corpus.name!r}; give a larger --tokens")
        for _ in tiles(subject, sources, batches[0].tokens):
            pass
    return _Beginning(subject, splits, seconds, batches, memory)


def _bytes_of_feature(window: int, *, signed: bool) -> int:
    """Bytes of one feature's lists and statistics, all lists full."""
    one = SourceState.empty(1, window, signed=signed, top=TOP, quantile=QUANTILE)
    return sum(array.nbytes for array in one.arrays().values())


def _time_batches(
    subject: Subject,
    sources: Sequence[Source],
    batches: Sequence[WindowBatch],
    state: HarvestState,
    progress: Callable[[str, int, int], None],
) -> tuple[list[float], list[float], HarvestState]:
    """The seconds of every batch, at the first time and at the second, and the state after the first."""
    scanner, times = Scanner(), []
    state.convention = subject.convention
    for number, batch in enumerate((*batches, *batches)):
        progress("batches of windows", number, 2 * len(batches))
        began = time.perf_counter()
        scan_batch(subject, sources, batch, scanner, state)
        times.append(time.perf_counter() - began)
    state.tokens //= 2
    return times[: len(batches)], times[len(batches) :], state


@dataclass(frozen=True, slots=True)
class _Growth:
    """From the windows that were run to those of the whole harvest."""

    before: int
    """Windows that were run."""
    times: float
    """How many times as many the harvest reads."""
    clusters: NDArray[np.int64]
    """Of documents, by split: lists of the highest and lowest peaks keep one window of each."""

    @property
    def after(self) -> int:
        """Windows of the harvest."""
        return round(self.before * self.times)

    @property
    def mined(self) -> int:
        """Windows that the harvest mines."""
        return count_mined(self.after, min(self.after, POOL))

    def entries(self, source: SourceResult, splits: NDArray[np.int8]) -> dict[Kind, NDArray[np.float64]]:
        """Examples that each feature will have, (feature, split), by kind.

        Where a list is not full, it grows with the windows; an example that just was not among them counts half.
        """
        grown: dict[Kind, NDArray[np.float64]] = {}
        for kind, examples in source.lists.items():
            places = examples.features.astype(np.int64) * len(SPLITS) + splits[examples.windows]
            counts = np.bincount(places, minlength=source.width * len(SPLITS)).reshape(source.width, len(SPLITS))
            times, most = self.times, np.array(_CAPACITIES[kind])
            if kind in CAPACITY:
                times = self.mined / count_mined(self.before, self.before)
            elif kind != "quantile":
                most = np.minimum(most, self.clusters)
            grown[kind] = np.minimum(most, counts * times + (times - 1) / 2)
        return grown

    def seconds(self, first: Sequence[float], second: Sequence[float]) -> float:
        """All batches, from the times of some that fill the lists, and of the same that change nothing."""
        filling = max(0.0, sum(first) - sum(second)) / _records(self.before)
        return sum(second) * self.times + filling * _records(self.after)


def _records(count: int) -> float:
    """How many of so many windows enter a feature's lists, each of which counts."""
    shares = [FRACTIONS[split] * count for split in SPLITS]
    sizes = [(share, size) for kind in (TOP, QUANTILE) for share, size in zip(shares, kind, strict=True)]
    return sum(size * (1 + math.log(share / size)) if share > size else share for share, size in sizes)


class _Size(NamedTuple):
    """Bytes of memory that a source takes."""

    lists: int
    statistics: int
    mined: int


def _size_of(source: SourceResult, entries: Mapping[Kind, NDArray[np.float64]], window: int) -> _Size:
    row, lists, mined = 2 * window, 0.0, 0.0
    for kind, counts in entries.items():
        if kind in CAPACITY:
            mined += row * counts.sum()
            continue
        capacity = sum(_CAPACITIES[kind])
        touched = np.minimum(capacity * row, (counts * row + _PAGE * (counts > 0)).sum(1)).sum()
        lists += source.width * (20 * capacity + 12) + touched
    statistics = sum(array.nbytes for array in (source.count, source.mean, source.peak, source.trough))
    return _Size(round(lists), statistics + source.histogram.nbytes, round(mined))


class _Written(NamedTuple):
    """What writing will take."""

    size: int
    seconds: float


class _Ranking(NamedTuple):
    """What finding the tokens that features raise will take."""

    seconds: float
    above: int
    """Bytes of memory."""


def _rank_some(
    subject: Subject, sources: Sequence[Source], result: HarvestResult
) -> tuple[list[SourceResult], _Ranking]:
    """Some features of every source, as sources of their own, with the tokens that these raise."""
    some, seconds = [], 0.0
    with _watching() as memory:
        for source, whole in zip(sources, result.sources, strict=True):
            chosen = np.unique(np.linspace(0, source.width - 1, WRITTEN).astype(np.int64))
            tokens = None
            if has_top_tokens(subject, source):
                began = time.perf_counter()
                found = find_top_tokens(subject, source, chosen)
                tokens = TopTokens(found.ids[chosen], found.effects[chosen], found.spread[chosen])
                seconds += (time.perf_counter() - began) * source.width / len(chosen)
            some.append(replace(_thin(whole, chosen), top_tokens=tokens))
    return some, _Ranking(seconds, memory.above)


def _write(result: HarvestResult, some: Sequence[SourceResult], taken: Mapping[str, float], kept: float) -> _Written:
    """Write some features into a database in memory, part by part, and scale each part up.

    `taken` are the examples that each source will have, `kept` the windows.
    """
    bare = tuple(replace(source, lists={}) for source in some)
    none = replace(
        result, windows=result.windows[:0], splits=result.splits[:0], documents=(), pool=result.pool[:0], sources=()
    )
    sizes, began = [0], time.perf_counter()
    with Store(":memory:") as store:
        for step in [none, replace(none, sources=bare), replace(result, sources=bare)]:
            store.write_harvest(step)
            sizes.append(store.size)
        store.write_harvest(replace(result, sources=tuple(some)))
        sizes.append(store.size)
    seconds = time.perf_counter() - began
    vocabulary, features, tokens, examples = np.diff(sizes)
    packed = [_pack(source) for source in some]
    wider = [source.width / len(thin.count) for source, thin in zip(result.sources, some, strict=True)]
    more = [taken[source.source] / max(1, own.examples) for source, own in zip(some, packed, strict=True)]
    all_features = sum(source.width for source in result.sources)
    row = (examples - sum(own.size for own in packed)) / max(1, sum(own.rows for own in packed))
    size = (
        vocabulary
        + features * all_features / sum(len(thin.count) for thin in some)
        + tokens * kept / len(result.windows)
    )
    for own, wide, longer in zip(packed, wider, more, strict=True):
        size += row * own.rows * wide + own.size * longer
    return _Written(round(size), seconds * sum(taken.values()) / max(1, sum(own.examples for own in packed)))


class _Packed(NamedTuple):
    """The examples of a source as the store has them."""

    examples: int
    rows: int
    """One for each feature and kind."""
    size: int
    """Bytes of activations and of the windows' numbers."""


def _pack(source: SourceResult) -> _Packed:
    groups = [
        group
        for part in source.lists.values()
        for group in np.split(part.activations, np.flatnonzero(np.diff(part.features)) + 1)
    ]
    examples = sum(map(len, groups))
    return _Packed(examples, len(groups), 4 * examples + sum(len(pack_activations(group)) for group in groups))


def _thin(source: SourceResult, chosen: NDArray[np.int64]) -> SourceResult:
    """The chosen features of a source with their examples, as a source of their own."""
    place = np.full(source.width, -1, np.int32)
    place[chosen] = np.arange(len(chosen))
    lists = {kind: _choose(examples, place) for kind, examples in source.lists.items()}
    return replace(
        source,
        width=len(chosen),
        count=source.count[chosen],
        mean=source.mean[chosen],
        peak=source.peak[chosen],
        trough=source.trough[chosen],
        histogram=source.histogram[chosen],
        lists={kind: part for kind, part in lists.items() if len(part.features)},
    )


def _choose(examples: ExampleList, place: NDArray[np.int32]) -> ExampleList:
    """The examples of features that have a place, with it as their feature."""
    (own,) = np.nonzero(place[examples.features] >= 0)
    attended = examples.attended and (examples.attended[0][own], examples.attended[1][own])
    return ExampleList(place[examples.features[own]], examples.windows[own], examples.activations[own], attended)


def _time_text(subject: Subject, splits: Splits) -> float:
    """Seconds that turning a character into tokens takes, from those of the corpus's sample."""
    began = time.perf_counter()
    subject.encode_all(splits.sample)
    return (time.perf_counter() - began) / sum(map(len, splits.sample))


def _count_clusters(splits: Splits, documents: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many clusters the documents of each split are of, (split,)."""
    return np.bincount(splits.splits[np.unique(splits.clusters[documents])], minlength=len(SPLITS))


def _require_memory(needed: int) -> None:
    """Raise NeuronautError where the system has not so much memory left; where it does not say, go on."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
    if free is not None and needed > free:
        raise NeuronautError(
            f"lists, statistics and one batch take {needed / 1e9:.1f} GB of memory beside the model, and "
            f"{free / 1e9:.1f} GB are free; harvest fewer sites at once, or shorter windows (--window)"
        )


def _memory_in_use() -> int:
    """Bytes of memory that this process holds; where the system does not say, the most that it held so far."""
    path = Path("/proc/self/statm")
    if path.exists():
        return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@dataclass(slots=True)
class _Peak:
    """The most memory of this process within a block, above what it began with."""

    start: int = field(default_factory=_memory_in_use)
    above: int = 0

    def look(self) -> None:
        """Look at it now."""
        self.above = max(self.above, _memory_in_use() - self.start)


@contextmanager
def _watching() -> Generator[_Peak]:
    """Look at the memory every few milliseconds while the block runs."""
    peak, done = _Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak.look()
        done.set()
        thread.join()
