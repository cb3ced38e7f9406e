"""Reading evidence back: a feature's examples with their tokens, in splits that cannot leak.

The splits that a harvest drew are checked once more when evidence is read: an example of a later
split whose document, or more than half of whose distinct 8-token grams, is found in an example of
an earlier one is left out. Windows never change, so those read lately are kept decoded.
"""

import glob
import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...subject.address import Feature, SourceId, harvest_command
from ...subject.errors import NeuronautError
from ..codec import grams, unpack_activations, unpack_ids
from ..harvest.histogram import BINS
from ..records import PARTS, Attended, Evidence, Example, Kind, Split, Statistics
from ..splits import part

_CACHED_WINDOWS = 10_000
_LOW_BITS = np.uint64(2**18 - 1)

_NEGATIVE_KINDS: dict[str, Kind] = {"top": "bottom", "bottom": "top", "random": "random", "silent": "random"}
"""What an example is to the negative tail. The quantile sample and near misses are chosen by positive
activations, and a window without those may be far below zero: they say nothing of this tail."""


class PoolWindow(NamedTuple):
    """A window of the pool."""

    ids: NDArray[np.int32]
    window: str
    """Its digest."""
    document: str


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    tokens: tuple[str, ...]
    ids: NDArray[np.int64]
    split: Split
    document: str
    digest: str
    grams: NDArray[np.uint64]


class Windows:
    """The decoded windows of a database, by row id."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[int, _Window] = {}
        self._vocabularies: dict[str, tuple[str, ...]] = {}

    def vocabulary(self, model: str) -> tuple[str, ...]:
        """Token string of every token id of a model."""
        if model not in self._vocabularies:
            sql = "SELECT tokens FROM vocabularies WHERE model = ?"
            row = self._connection.execute(sql, [model]).fetchone()
            if row is None:
                raise NeuronautError(f"nothing of {model} is in the database; run: {harvest_command(model)}")
            self._vocabularies[model] = tuple(json.loads(row[0]))
        return self._vocabularies[model]

    def load(self, ids: Iterable[int], model: str) -> dict[int, _Window]:
        """The windows of these row ids."""
        wanted = set(ids)
        if len(self._known) > _CACHED_WINDOWS:
            self._known.clear()
        if missing := wanted - self._known.keys():
            sql = "SELECT id, hash, tokens, split, document FROM windows WHERE id IN (SELECT value FROM json_each(?))"
            self._decode(self._connection.execute(sql, [json.dumps(sorted(missing))]).fetchall(), model)
        return self._known

    def forget(self) -> None:
        """Forget the vocabularies and windows, where a harvest may have changed them."""
        self._known.clear()
        self._vocabularies.clear()

    def _decode(self, rows: Sequence[sqlite3.Row], model: str) -> None:
        vocabulary = self.vocabulary(model)
        by_length: dict[int, list[sqlite3.Row]] = {}
        for row in rows:
            by_length.setdefault(len(row["tokens"]), []).append(row)
        for group in by_length.values():
            ids = np.stack([unpack_ids(row["tokens"]) for row in group]).astype(np.int64)
            for row, window, row_grams in zip(group, ids, grams(ids), strict=True):
                tokens = itemgetter(*window.tolist(), 0)(vocabulary)[:-1]
                self._known[row["id"]] = _Window(
                    tokens=tokens,
                    ids=window,
                    split=part(row["split"], row["document"]),
                    document=row["document"],
                    digest=row["hash"],
                    grams=row_grams,
                )


class _Entry(NamedTuple):
    """A window as an example of a feature."""

    window: _Window
    kind: Kind
    activations: NDArray[np.float32]
    attended: Attended | None


def read_evidence(connection: sqlite3.Connection, windows: Windows, feature: Feature) -> Evidence:
    """The statistics and examples of a feature."""
    row = connection.execute(
        "SELECT features.* FROM features JOIN sources ON sources.id = source_id WHERE name = ? AND idx = ?",
        [str(feature.source), feature.index],
    ).fetchone()
    if row is None:
        raise missing_source(connection, feature.source)
    lists = connection.execute(
        "SELECT kind, windows, activations, keys, weights FROM examples WHERE feature_id = ? ORDER BY rowid",
        [row["id"]],
    ).fetchall()
    decoded: list[tuple[Kind, list[int], NDArray[np.float16], list[Attended | None]]] = [
        (kind, (numbers := unpack_ids(ids).tolist()), unpack_activations(blob), _read_attended(len(numbers), *attended))
        for kind, ids, blob, *attended in lists
    ]
    by_id = windows.load((window for _, ids, _, _ in decoded for window in ids), feature.source.model)
    entries = [
        _Entry(by_id[window], kind, values[: len(by_id[window].ids)], attended)
        for kind, ids, rows, seen in decoded
        for window, values, attended in zip(ids, rows.astype(np.float32), seen, strict=True)
    ]
    if feature.negative:
        entries = [
            entry._replace(kind=kind, activations=-entry.activations)
            for entry in entries
            if (kind := _NEGATIVE_KINDS.get(entry.kind)) is not None
        ]
        entries.sort(key=lambda entry: entry.kind != "top")
    return Evidence(feature, _statistics(row, negative=feature.negative), *_splits(entries))


def _read_attended(count: int, keys: bytes | None, weights: bytes | None) -> list[Attended | None]:
    if keys is None or weights is None:
        return [None] * count
    pairs = zip(unpack_ids(keys).tolist(), unpack_activations(weights)[:, 0].tolist(), strict=True)
    return [Attended(*pair) for pair in pairs]


def _splits(entries: Sequence[_Entry]) -> list[tuple[Example, ...]]:
    """The examples of each of PARTS, without those that would leak from an earlier split."""
    earlier: dict[int, _Window] = {}
    splits = []
    for split in PARTS:
        in_split = [entry for entry in entries if entry.window.split == split]
        leaking = _leaking({id(entry.window): entry.window for entry in in_split}, earlier.values())
        clean = [entry for entry in in_split if id(entry.window) not in leaking]
        earlier |= {id(entry.window): entry.window for entry in clean}
        splits.append(
            tuple(
                Example(
                    tokens=window.tokens,
                    ids=window.ids,
                    activations=values,
                    kind=kind,
                    split=window.split,
                    document=window.document,
                    window=window.digest,
                    attended=attended,
                )
                for window, kind, values, attended in clean
            )
        )
    return splits


def _leaking(windows: dict[int, _Window], earlier: Iterable[_Window]) -> set[int]:
    """Keys of the windows that share their document, or most of their text, with an earlier split's window."""
    earlier = tuple(earlier)
    if not windows or not earlier:
        return set()
    documents = {window.document for window in earlier}
    candidates = list(windows.items())
    # A gram is looked up by its low bits, so that shares may come out too large, never too small.
    present = np.zeros(int(_LOW_BITS) + 1, bool)
    present[np.concatenate([window.grams for window in earlier]) & _LOW_BITS] = True
    shared = present[np.concatenate([window.grams for _, window in candidates]) & _LOW_BITS]
    lengths = np.array([len(window.grams) for _, window in candidates])
    shares = np.add.reduceat(shared, np.append(0, lengths.cumsum()[:-1]), dtype=np.int64)
    # Only a window that shares most of its grams with all the earlier ones together can do so with one.
    return {
        key
        for (key, window), share, length in zip(candidates, shares, lengths, strict=True)
        if window.document in documents
        or (2 * share > length and any(_near_duplicate(window, other) for other in earlier))
    }


def _near_duplicate(window: _Window, other: _Window) -> bool:
    return 2 * len(np.intersect1d(window.grams, other.grams, assume_unique=True)) > len(window.grams)


def _statistics(row: sqlite3.Row, *, negative: bool) -> Statistics:
    """A feature's statistics; the negative tail has no histogram, and its density counts what is not above zero."""
    if negative:
        return Statistics(
            tokens=row["tokens"],
            density=1 - row["density"],
            mean=-row["mean"],
            peak=-row["trough"],
            trough=-row["peak"],
            histogram=(),
        )
    histogram = tuple(np.frombuffer(row["histogram"], "<i8").tolist())
    return Statistics(
        tokens=row["tokens"],
        density=row["density"],
        mean=row["mean"],
        peak=row["peak"],
        trough=row["trough"],
        histogram=histogram,
    )


class SourceStatistics(NamedTuple):
    """What a harvest counted of every feature of a source; F is its width."""

    tokens: int
    peak: NDArray[np.float32]
    """(F,): the highest activation; NaN where the feature is not here."""
    trough: NDArray[np.float32]
    """(F,): the lowest."""
    histogram: NDArray[np.int64]
    """(F, bins): tokens by positive activation."""


def read_statistics(connection: sqlite3.Connection, source: SourceId) -> SourceStatistics | None:
    """The statistics of a source; None where nothing of it was harvested."""
    row = connection.execute("SELECT id, width FROM sources WHERE name = ?", [str(source)]).fetchone()
    if row is None:
        return None
    sql = "SELECT idx, tokens, peak, trough, histogram FROM features WHERE source_id = ?"
    rows = connection.execute(sql, [row["id"]]).fetchall()
    peak, trough = (np.full(row["width"], np.nan, np.float32) for _ in range(2))
    histograms = np.zeros((row["width"], BINS), np.int64)
    for index, _, highest, lowest, counts in rows:
        peak[index], trough[index], histograms[index] = highest, lowest, np.frombuffer(counts, "<i8")
    return SourceStatistics(max((tokens for _, tokens, *_ in rows), default=0), peak, trough, histograms)


def missing_source(connection: sqlite3.Connection, source: SourceId) -> NeuronautError:
    """The error for a source, or an index of it, that is not in the database."""
    row = connection.execute("SELECT width FROM sources WHERE name = ?", [str(source)]).fetchone()
    if row is not None:
        return NeuronautError(f"{source} has {row[0]} features; wanted an index from 0 to {row[0] - 1}")
    names = [name for (name,) in connection.execute("SELECT name FROM sources ORDER BY name")]
    held = f"{source} is not in the database, which holds {', '.join(names) or 'no source'}; "
    (file,) = connection.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()
    if file and any(Path(file).parent.glob(f"{glob.escape(Path(file).name)}.harvest-*.npz")):
        return NeuronautError(f"{held}a harvest that was stopped lies beside it, see: neuronaut db status")
    known = {SourceId.parse(name).model for name in names}
    if source.model not in known and (close := get_close_matches(str(source), names, n=1, cutoff=0.75)):
        return NeuronautError(f"{held}did you mean {close[0]}?")
    return NeuronautError(f"{held}run: {harvest_command(source.model, source.site)}")


def read_pool(connection: sqlite3.Connection, model: str) -> dict[Split, list[PoolWindow]]:
    """The windows of the pool of a model, in each split."""
    pool: dict[Split, list[PoolWindow]] = {split: [] for split in PARTS}
    sql = (
        "SELECT tokens, hash, document, split FROM pool JOIN windows ON windows.id = window_id"
        " WHERE pool.model = ? ORDER BY window_id"
    )
    for tokens, digest, document, split in connection.execute(sql, [model]):
        pool[part(split, document)].append(PoolWindow(unpack_ids(tokens), digest, document))
    return pool
