"""Takes in evidence from elsewhere: windows with recorded activations become features without a model.

A model's evidence comes in one piece, with a vocabulary of its own made of the token strings, and the revision that
the files name; a model of that name which was harvested here is never mixed with it, and neither is other evidence.
Windows are split by document as a harvest's are (splits.py), each one its own document where none is named. What no
file records counts as zero: of the features that a window is not recorded for, and so in the pool, which is what the
files drew without regard to any feature or, where they say nothing of that, all windows.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...subject.address import SourceId
from ...subject.errors import NeuronautError
from ..codec import array_digest, content_digest, unpack_activations, unpack_ids, window_digest
from ..corpus import Corpus
from ..harvest import histogram
from ..harvest.state import POOL, QUANTILE, TOP
from ..padding import pad_ids
from ..recorded import CONVENTION, RecordedSource, RecordedSubject, Windows, remember
from ..records import SPLITS, ExampleList, HarvestResult, Kind, SourceResult, TokenCounts
from ..splits import assign, chance
from .evidence_files import Naming, Recorded, read_evidence
from .store import Store

KIND = "evidence"
"""The kind of a source whose activations were recorded elsewhere."""
_SILENT = 0.1
"""Fraction of a feature's peak below which a window is silent."""


class Imported(NamedTuple):
    """What became of the evidence of one source."""

    source: str
    features: int
    windows: int
    tokens: int
    documents: int
    train: int
    select: int
    holdout: int
    """Windows in each split; half of `select` is what explainers check their work on."""


@dataclass(slots=True)
class _Gathered:
    """The distinct windows of one model, and which feature was recorded on which."""

    vocabulary: dict[str, int] = field(default_factory=dict)
    numbers: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Number of every window, by its token ids."""
    documents: list[str] = field(default_factory=list)
    drawn: set[int] = field(default_factory=set)
    """Windows that were drawn without regard to any feature."""
    features: dict[SourceId, dict[int, dict[int, NDArray[np.float16]]]] = field(default_factory=dict)
    """By source and index: the activations on windows, by their number."""
    revisions: set[str] = field(default_factory=set)

    def add(self, recorded: Recorded) -> None:
        ids = tuple(self.vocabulary.setdefault(token, len(self.vocabulary)) for token in recorded.tokens)
        number = self.numbers.setdefault(ids, len(self.numbers))
        if number == len(self.documents):
            self.documents.append(recorded.document or f"window-{window_digest(np.array(ids))}")
        of_source = self.features.setdefault(recorded.source, {})
        if recorded.feature_index is None:
            self.drawn.add(number)
        else:
            of_source.setdefault(recorded.feature_index, {}).setdefault(number, recorded.activations.astype(np.float16))
        if recorded.revision is not None:
            self.revisions.add(recorded.revision)


def import_evidence(store: Store, paths: Sequence[Path], naming: Naming) -> list[Imported]:
    """Store the evidence of files as features without a model; the same files again change nothing.

    Raises NeuronautError, and stores nothing, where a line cannot be read, where the files are of several models or
    revisions, or where the model is here already, harvested or of other evidence.
    """
    gathered = _Gathered()
    for path in paths:
        for recorded in read_evidence(path, naming):
            gathered.add(recorded)
    models = {source.model for source in gathered.features}
    if len(models) != 1 or len(gathered.revisions) > 1:
        found = " and ".join(sorted(models if len(models) != 1 else gathered.revisions)) or "nothing"
        raise NeuronautError(f"the files hold evidence of {found}; give those of one model and one revision at a time")
    result = _build(gathered, models.pop(), paths)
    _check_clash(store, result)
    with store.transaction():
        store.write_harvest(result)
        for source in gathered.features:
            _leave_out_absent(store, source, gathered.features[source])
    return [_report(result, source, gathered.features[source]) for source in gathered.features]


def _check_clash(store: Store, result: HarvestResult) -> None:
    for row in store.sources():
        if row["model"] == result.model and row["kind"] != KIND:
            raise NeuronautError(
                f"{result.model} was harvested here ({row['source']}), and evidence from elsewhere is not mixed with "
                "that; import it into another database, or under another model's name with --source"
            )
        if row["model"] == result.model and row["model_revision"] != result.revision:
            raise NeuronautError(
                f"{result.model} here is other evidence ({row['source']}); give all files of a model at once, or "
                "another database"
            )


def _leave_out_absent(store: Store, source: SourceId, present: Iterable[int]) -> None:
    """A feature that no file names is not dead, it is not here."""
    store.db.conn.execute(
        "DELETE FROM features WHERE source_id = (SELECT id FROM sources WHERE name = ?)"
        f" AND idx NOT IN ({', '.join(str(int(index)) for index in present)})",
        [str(source)],
    )


def _build(gathered: _Gathered, model: str, paths: Sequence[Path]) -> HarvestResult:
    rows = [np.array(ids, np.int64) for ids in gathered.numbers]
    windows = pad_ids(rows, width=max(map(len, rows))).astype(np.int32)
    splits = _split(gathered)
    pool = np.zeros(len(rows), bool)
    candidates = np.array(sorted(gathered.drawn) or range(len(rows)))
    pool[candidates[chance(candidates, seed=0).argsort()[:POOL]]] = True
    sources = tuple(
        _build_source(source, features, windows, splits, pool) for source, features in gathered.features.items()
    )
    vocabulary, tokens = tuple(gathered.vocabulary), int((windows >= 0).sum())
    content = array_digest([windows, splits, *(p.activations for s in sources for p in s.lists.values())])
    revision = "".join(gathered.revisions)
    return HarvestResult(
        model=model,
        revision=":".join(filter(None, (KIND, revision, content_digest(content, vocabulary, gathered.documents)[:16]))),
        corpus=f"{KIND} of {', '.join(path.name for path in paths[:3])}{', …' if len(paths) > 3 else ''}",
        tokens=tokens,
        counts=TokenCounts(tokens, 0, 0),
        window=windows.shape[1],
        windows=windows,
        splits=splits,
        documents=tuple(gathered.documents),
        pool=pool,
        vocabulary=vocabulary,
        sources=sources,
        provenance={
            "evidence": [path.name for path in paths],
            "revision_named": revision or None,
            "unrecorded": "counted as zero",
            "convention": asdict(CONVENTION),
        },
    )


def _split(gathered: _Gathered) -> NDArray[np.int8]:
    """The split of every window, by its document."""
    strings = list(gathered.vocabulary)
    texts: dict[str, list[str]] = defaultdict(list)
    for ids, document in zip(gathered.numbers, gathered.documents, strict=True):
        texts[document].append("".join(strings[id] for id in ids))
    names = list(texts)
    # A document without a word is told from others by its name.
    whole = [text if (text := "\n".join(texts[name])).strip() else name for name in names]
    drawn = assign(Corpus.of(KIND, whole), fewest=1)
    ordinals = {name: ordinal for ordinal, name in enumerate(names)}
    return np.array([drawn.split(ordinals[document]) for document in gathered.documents], np.int8)


def _build_source(
    source: SourceId,
    features: Mapping[int, Mapping[int, NDArray[np.float16]]],
    windows: NDArray[np.int32],
    splits: NDArray[np.int8],
    pool: NDArray[np.bool_],
) -> SourceResult:
    width = max(features, default=-1) + 1
    tokens = int((windows >= 0).sum())
    zeros = np.zeros(width)
    count, mean, peak, trough = zeros.astype(np.int64), zeros, zeros.astype(np.float32), zeros.astype(np.float32)
    histograms = np.zeros((width, histogram.BINS), np.int64)
    entries: dict[Kind, list[tuple[int, int]]] = {"top": [], "quantile": [], "silent": [], "random": []}
    for index in sorted(features):
        recorded = features[index]
        values = np.concatenate(list(recorded.values())).astype(np.float32)
        count[index], mean[index] = (values > 0).sum(), values.sum() / tokens
        peak[index], trough[index] = max(values.max(), 0.0), min(values.min(), 0.0)
        histograms[index] = np.bincount(histogram.bins(values[values > 0]), minlength=histogram.BINS)
        for kind, numbers in _choose(recorded, float(peak[index]), splits, pool).items():
            entries[kind] += [(index, number) for number in numbers]
    lists: dict[Kind, ExampleList] = {
        kind: _make_list(pairs, features, windows.shape[1]) for kind, pairs in entries.items() if pairs
    }
    return SourceResult(
        source=str(source),
        kind=KIND,
        width=width,
        signed=bool((trough < 0).any()),
        revision="",
        tokens=tokens,
        count=count,
        mean=mean,
        peak=peak,
        trough=trough,
        histogram=histograms,
        lists=lists,
    )


def _choose(
    recorded: Mapping[int, NDArray[np.float16]], peak: float, splits: NDArray[np.int8], pool: NDArray[np.bool_]
) -> dict[Kind, list[int]]:
    """The windows of one feature by kind, split after split, the strongest first.

    All those of the pool on which it is not zero are kept as random ones, so that what is read as zero there is.
    """
    numbers = np.array(list(recorded))
    peaks = np.array([float(values.max()) for values in recorded.values()])
    order = np.lexsort((numbers, -peaks))
    numbers, peaks = numbers[order], peaks[order]
    drawn = chance(numbers, seed=1)
    chosen: dict[Kind, list[int]] = {"top": [], "quantile": [], "silent": [], "random": []}
    for split in range(len(SPLITS)):
        here = splits[numbers] == split
        active = np.flatnonzero(here & (peaks > 0))
        sample = np.sort(active[drawn[active].argsort()[: QUANTILE[split]]])
        chosen["top"] += numbers[active[: TOP[split]]].tolist()
        chosen["quantile"] += numbers[sample].tolist()
        chosen["silent"] += numbers[here & (peaks < _SILENT * peak)][: TOP[split]].tolist()
        chosen["random"] += [n for n in numbers[here & pool[numbers]].tolist() if recorded[n].any()]
    return chosen


def _make_list(
    pairs: Sequence[tuple[int, int]], features: Mapping[int, Mapping[int, NDArray[np.float16]]], width: int
) -> ExampleList:
    activations = np.zeros((len(pairs), width), np.float16)
    for row, (index, number) in zip(activations, pairs, strict=True):
        values = features[index][number]
        row[: len(values)] = values
    indices, numbers = np.array(pairs, np.int32).T
    return ExampleList(indices, numbers, activations)


def _report(result: HarvestResult, source: SourceId, features: Mapping[int, Mapping[int, object]]) -> Imported:
    numbers = np.array(sorted({number for recorded in features.values() for number in recorded}))
    train, select, holdout = np.bincount(result.splits[numbers], minlength=len(SPLITS)).tolist()
    documents = len({result.documents[number] for number in numbers})
    tokens = int((result.windows[numbers] >= 0).sum())
    return Imported(
        str(source), len(features), len(numbers), tokens, documents, train=train, select=select, holdout=holdout
    )


def recorded_subject(store: Store, model: str) -> RecordedSubject | None:
    """The stand-in for a model whose features are evidence from elsewhere; None for any other."""
    revisions = [row["model_revision"] for row in store.sources() if row["model"] == model and row["kind"] == KIND]
    return RecordedSubject(model, store.vocabulary(model), revisions[0]) if revisions else None


def recorded_source(store: Store, source: SourceId) -> RecordedSource | None:
    """The stand-in for a source that is evidence from elsewhere; None for any other."""
    row = next((row for row in store.sources() if row["source"] == str(source)), None)
    if row is None or row["kind"] != KIND:
        return None
    return RecordedSource(source, int(row["width"]), remember(lambda index: _read_windows(store, source, index)))


def _read_windows(store: Store, source: SourceId, index: int) -> Windows:
    connection = store.db.conn
    sql = """SELECT examples.windows, activations FROM examples JOIN features ON features.id = feature_id
        JOIN sources ON sources.id = source_id WHERE name = ? AND idx = ?"""
    found: dict[int, NDArray[np.float32]] = {}
    for numbers, packed in connection.execute(sql, [str(source), index]):
        found |= dict(zip(unpack_ids(numbers).tolist(), unpack_activations(packed).astype(np.float32), strict=True))
    marks = ", ".join(map(str, found))
    rows = connection.execute(f"SELECT id, hash, tokens FROM windows WHERE id IN ({marks})")
    return {row["hash"]: found[row["id"]][: len(unpack_ids(row["tokens"]))] for row in rows}
