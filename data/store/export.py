"""Exports: the rows of `Store.list_rows` as JSON lines or CSV, and Neuronpedia's two formats.

Neuronpedia knows a feature by (modelId, layer, index). The modelId is here the model's name without
its organisation (`gemma-2-2b` for `google/gemma-2-2b`), unless another is given; the layer is the
site's layer number and a name, as in `20-gemmascope-res-16k`: the dictionary's, or the site's kind
where there is none, as in `5-mlp`. The negative tail has no name there and is left out.

The bulk format (`write_neuronpedia`) is what Neuronpedia itself imports. Its import takes the columns of a
file from the first line, so every line has the same keys, and skips an id that it has, so ids are made from
the content and importing twice adds nothing. An explanation that was imported from Neuronpedia
(store/importing.py) goes back under the id, author and type that it had there.

Uploads (`write_uploads`) are bodies for POST /api/feature/upload-batch, by which users bring features to sources
of their own. A body obeys the limits that hold there: at most 128 features, texts of 512 characters (as
JavaScript counts, in UTF-16 units), windows of 1024 tokens, 20 promoted and 20 suppressed tokens, and at least
one window that activates the feature. Windows come in sections: the strongest ones, which are no quantile, and
four even parts, by peak, of the uniform sample of active windows, so that a part's share of the sample estimates
its share of all active windows. The explainer's model is left null, since there is no column for it.
"""

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol, TextIO, Unpack

from ...subject.address import Feature, SourceId, check_name
from ...subject.directions import Promoted, TokenEffect
from ...subject.errors import NeuronautError
from ..records import Evidence, Example, Score, Statistics
from .database import Row
from .files import open_whole
from .lines import guard_cell
from .listing import ROW_KEYS, Conditions
from .rows import StoredExplanation
from .store import Store

AUTHOR = "clkht01d40000jv08hvalcvly"
"""The user that Neuronpedia's own batch labels belong to; an import needs one that exists there."""
_BATCH = 1024
ID_LENGTH = 25
"""Characters of an id, at most, as Neuronpedia's columns take it."""
_OPTIONAL = ("typeName", "explanationModelName", "notes", "triggeredByUserId")
"""Columns of an explanation that may be null there."""


class Writable(Protocol):
    """What text can be written to."""

    def write(self, text: str, /) -> object:
        """Write some."""
        ...


def write_jsonl(rows: Iterable[Row], stream: Writable) -> None:
    """Write one JSON object a line."""
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_csv(rows: Iterable[Row], stream: TextIO) -> None:
    """Write a header and one line per row; null is the empty field, and texts are guarded (lines.py)."""
    # A field is quoted if it holds a character of the line's end, and one that holds a mere "\r" must be.
    line = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(line, ROW_KEYS, lineterminator="\r\n")
    for row in chain([{key: key for key in ROW_KEYS}], rows):
        writer.writerow({key: guard_cell(value) for key, value in row.items()})
        stream.write(line.getvalue().removesuffix("\r\n") + "\n")
        line.seek(0)
        line.truncate()


WRITERS: Mapping[str, Callable[[Iterable[Row], TextIO], None]] = {"jsonl": write_jsonl, "csv": write_csv}


class Place(NamedTuple):
    """Where Neuronpedia keeps a source."""

    model: str
    layer: str

    @classmethod
    def of(cls, source: SourceId, *, model: str | None = None) -> "Place":
        """The place of a source; `model` replaces its modelId, as `gpt2-small` for gpt2."""
        kind, _, layer = source.site.partition(".")
        name = source.dictionary or kind.replace("_", "-")
        return cls(model or source.model.rpartition("/")[2], f"{layer}-{name}" if layer else name)

    def __str__(self) -> str:
        return f"{self.model}/{self.layer}"


def places(store: Store, sources: Sequence[SourceId] | None, *, model: str | None = None) -> dict[SourceId, Place]:
    """The place of each source, of all in the store where none are given.

    An error where two have one place, and where a place is no name of a folder.
    """
    chosen = sources or [SourceId.parse(str(row["source"])) for row in store.sources()]
    by_source = {source: Place.of(source, model=model) for source in chosen}
    if len(set(by_source.values())) < len(by_source):
        raise NeuronautError(
            "two sources have one place at Neuronpedia; export them one at a time, each with its model"
        )
    for source, place in by_source.items():
        try:
            check_name(place.model, what="model")
            check_name(place.layer, what="layer")
        except NeuronautError as error:
            raise NeuronautError(f"{source} has no place at Neuronpedia: {error}") from None
    return by_source


class Lines(NamedTuple):
    """A line for Neuronpedia's table Explanation, and those for its table ExplanationScore."""

    explanation: Row
    scores: list[Row]


def neuronpedia_lines(
    store: Store, source: SourceId, *, model: str | None = None, author: str = AUTHOR, **conditions: Unpack[Conditions]
) -> Iterator[Lines]:
    """The line of the best explanation of each feature of a source, with the lines of its reported scores."""
    place = Place.of(source, model=model)
    for stored in store.iterate_best(source, **conditions):
        line = explanation_line(stored, place, author)
        scores = [s for s in store.scores(stored.id) if s.value is not None and s.examples != "select"]
        yield Lines(line, [_score_line(score, str(line["id"]), author) for score in scores])


def write_neuronpedia(
    store: Store,
    folder: str | Path,
    *,
    sources: Sequence[SourceId] | None = None,
    model: str | None = None,
    author: str = AUTHOR,
    compress: bool = True,
    **conditions: Unpack[Conditions],
) -> list[Path]:
    """Write `v1/MODEL/LAYER/{explanations,explanation_scores}/batch-N.jsonl[.gz]` and return the paths.

    Without `sources`, all are written. At most a batch of lines is in memory.
    """
    paths: list[Path] = []
    for source, place in places(store, sources, model=model).items():
        root = Path(folder) / "v1" / place.model / place.layer
        explanations = _Batches(root / "explanations", compress=compress)
        scores = _Batches(root / "explanation_scores", compress=compress)
        for lines in neuronpedia_lines(store, source, model=model, author=author, **conditions):
            explanations.add(lines.explanation)
            for line in lines.scores:
                scores.add(line)
        paths += explanations.finish() + scores.finish()
    return paths


class _Batches:
    """Writes lines into files of _BATCH each."""

    def __init__(self, folder: Path, *, compress: bool) -> None:
        self._folder, self._compress = folder, compress
        self._lines: list[str] = []
        self._paths: list[Path] = []

    def add(self, line: Row) -> None:
        """Add a line."""
        self._lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        if len(self._lines) == _BATCH:
            self._write()

    def finish(self) -> list[Path]:
        """Write what is left; returns the paths of all files."""
        if self._lines:
            self._write()
        return self._paths

    def _write(self) -> None:
        path = self._folder / f"batch-{len(self._paths)}.jsonl{'.gz' if self._compress else ''}"
        text = "".join(self._lines).encode()
        # Without a time in the header, equal content is an equal file.
        write_file(path, gzip.compress(text, mtime=0) if self._compress else text)
        self._paths.append(path)
        self._lines.clear()


def write_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, into a folder that need not be there yet."""
    with open_whole(path, make_folder=True) as stream:
        stream.write(content)


def explanation_line(stored: StoredExplanation, place: Place, author: str = AUTHOR) -> Row:
    """An explanation as a row of Neuronpedia's table."""
    explanation = stored.explanation
    llm = explanation.provenance.get("llm")
    index = str(explanation.feature.index)
    line = {
        "id": _id("explanation", *place, index, explanation.explainer, str(llm), str(explanation.text)),
        "modelId": place.model,
        "layer": place.layer,
        "index": index,
        "description": explanation.text,
        "authorId": author,
        "typeName": f"neuronaut_{explanation.explainer}",
        "explanationModelName": None if llm is None else str(llm),
        "notes": "weak" if stored.status == "weak" else None,
        "createdAt": stored.created,
        "triggeredByUserId": None,
    }
    return line | _original_columns(explanation.provenance, place)


def _original_columns(provenance: Mapping[str, object], place: Place) -> Row:
    """The columns that an explanation had at Neuronpedia, where it was imported from this place."""
    origin = provenance.get("origin")
    if not isinstance(origin, dict) or (origin.get("modelId"), origin.get("layer")) != place:
        return {}
    required = {key: origin[key] for key in ("id", "authorId", "createdAt") if key in origin}
    return required | {key: origin.get(key) for key in _OPTIONAL}


def _score_line(score: Score, explanation_id: str, author: str) -> Row:
    details = {
        "scorer": score.scorer,
        "examples": score.examples,
        "metric": score.metric,
        "backend": score.backend,
        "judge": score.judge,
        "ci_low": score.ci_low,
        "ci_high": score.ci_high,
        "n": score.n,
        "coverage": score.coverage,
        "baselines": score.baselines,
    }
    llm = score.provenance.get("llm")
    return {
        "id": _id("score", explanation_id, score.value, *details.values()),
        "explanationId": explanation_id,
        "initiatedByUserId": author,
        "value": score.value,
        "explanationScoreTypeName": f"neuronaut_{score.scorer}_{score.examples}_{score.metric}",
        "explanationScoreModelName": None if llm is None else str(llm),
        "jsonDetails": json.dumps(details, sort_keys=True),
    }


def _id(*parts: object) -> str:
    """An id for a row of Neuronpedia's, from the content."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:ID_LENGTH]


FEATURES, TEXT, TOKENS, EFFECTS = 128, 512, 1024, 20
"""The most that a body, a text, a window and a list of tokens may hold."""
_SECTIONS = 4
_TOP, _PER_SECTION = 20, 5
"""How many of the strongest windows are uploaded, and of each part of the sample."""


class Uploads(NamedTuple):
    """The files for one source."""

    paths: list[Path]
    shortened: list[Feature]
    """Features whose text was too long."""
    silent: list[Feature]
    """Features that are explained and left out, because no stored window activates them."""
    weak: list[Feature]
    """Features whose explanation is weak, which a body has no place for."""


def write_uploads(
    store: Store,
    folder: str | Path,
    source: SourceId,
    *,
    promoted: Callable[[Feature], Promoted],
    model: str | None = None,
    method: str | None = None,
    **conditions: Unpack[Conditions],
) -> Uploads:
    """Write `MODEL/LAYER/upload-N.json`: the explained features of a source, not its negative tails.

    `promoted` returns the tokens that a feature writes; `method` is a name of an explainer that Neuronpedia knows.
    """
    place = places(store, [source], model=model)[source]
    uploads = Uploads([], [], [], [])
    batch: list[Row] = []
    for stored in store.iterate_best(source, **conditions):
        feature, text = stored.explanation.feature, str(stored.explanation.text)
        evidence = store.evidence(feature)
        if not (windows := upload_windows(evidence)):
            uploads.silent.append(feature)
            continue
        short = shorten(text)
        if short != text:
            uploads.shortened.append(feature)
        if stored.status == "weak":
            uploads.weak.append(feature)
        batch.append(
            _upload_feature(
                evidence.statistics,
                feature=feature,
                windows=windows,
                effects=promoted(feature),
                text=short,
                method=method,
            )
        )
        if len(batch) == FEATURES:
            uploads.paths.append(_write_upload(Path(folder), place, len(uploads.paths), batch))
            batch = []
    if batch:
        uploads.paths.append(_write_upload(Path(folder), place, len(uploads.paths), batch))
    return uploads


def _write_upload(folder: Path, place: Place, number: int, features: Sequence[Row]) -> Path:
    path = folder / place.model / place.layer / f"upload-{number}.json"
    body = {"modelId": place.model, "source": place.layer, "features": features}
    write_file(path, json.dumps(body, ensure_ascii=False, allow_nan=False).encode())
    return path


def _upload_feature(
    statistics: Statistics, feature: Feature, windows: Sequence[Row], effects: Promoted, text: str, method: str | None
) -> Row:
    return {
        "index": feature.index,
        "density": statistics.density,
        "topLogits": _effects(effects.top),
        "bottomLogits": _effects(effects.bottom),
        "explanations": [{"text": text, "methodName": method, "modelName": None}],
        "activations": list(windows),
    }


def _effects(effects: Sequence[TokenEffect]) -> list[Row]:
    return [{"token": effect.token, "value": round(effect.value, 4)} for effect in effects[:EFFECTS]]


def upload_windows(evidence: Evidence) -> list[Row]:
    """Windows that activate the feature, the strongest of each section first."""
    examples = [e for e in evidence.examples if e.peak > 0]
    examples.sort(key=lambda example: (-example.peak, example.window))
    top = [example for example in examples if example.kind == "top"][:_TOP]
    sample = [example for example in examples if example.kind == "quantile"]
    return [_upload_window(example, None, None, None) for example in top] + [
        _upload_window(example, round(part[-1].peak, 4), round(part[0].peak, 4), len(part) / len(sample))
        for part in _split_evenly(sample)
        for example in part[:_PER_SECTION]
    ]


def _split_evenly(sample: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """The sample in _SECTIONS even parts, without empty ones."""
    ends = [round(number * len(sample) / _SECTIONS) for number in range(_SECTIONS + 1)]
    return (sample[first:last] for first, last in zip(ends, ends[1:], strict=False) if first < last)


def _upload_window(example: Example, low: float | None, high: float | None, share: float | None) -> Row:
    """At most TOKENS of the window, around its peak."""
    first = max(0, min(int(example.activations.argmax()) - TOKENS // 2, len(example.tokens) - TOKENS))
    return {
        "tokens": list(example.tokens[first : first + TOKENS]),
        "values": [round(value, 4) for value in example.activations[first : first + TOKENS].tolist()],
        "quantileMin": low,
        "quantileMax": high,
        "quantileFraction": share,
    }


def shorten(text: str) -> str:
    """Cut a text of more than TEXT characters after a word, and end it with an ellipsis."""
    if _count_units(text) <= TEXT:
        return text
    start = text[: TEXT - 1]
    while _count_units(start) > TEXT - 1:
        start = start[:-1]
    words = re.match(r"(.*\S)\s", text[: len(start) + 1], re.DOTALL)
    return (words[1] if words else start) + "…"


def _count_units(text: str) -> int:
    """Count characters as JavaScript does."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
