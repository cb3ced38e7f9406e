"""Exports: the rows of `Store.list_rows` as JSON lines or CSV, and Neuronpedia's bulk format.

Neuronpedia knows a feature by (modelId, layer, index). The modelId is here the model's name without
its organisation (`gemma-2-2b` for `google/gemma-2-2b`), unless another is given; the layer is the
site's layer number and a name, as in `20-gemmascope-res-16k`: the dictionary's, or the site's kind
where there is none, as in `5-mlp`. The negative tail has no name there and is left out. Its import
takes the columns of a file from the first line, so every line has the same keys, and skips an id
that it has, so ids are made from the content and importing twice adds nothing. An explanation that was
imported from Neuronpedia (data/importing.py) goes back under the id, author and type that it had there.
"""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from ..subject.address import Feature, SourceId
from ..subject.errors import NeuronautError
from .records import Score
from .rows import ROW_KEYS, Row, StoredExplanation
from .store import Store

AUTHOR = "clkht01d40000jv08hvalcvly"
"""The user that Neuronpedia's own batch labels belong to; an import needs one that exists there."""
_BATCH = 1024
ID_LENGTH = 25
"""Characters of an id, at most, as Neuronpedia's columns take it."""
_OPTIONAL = ("typeName", "explanationModelName", "notes", "triggeredByUserId")
"""Columns of an explanation that may be null there."""


def write_jsonl(rows: Iterable[Row], stream: TextIO) -> None:
    """One JSON object a line."""
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_csv(rows: Iterable[Row], stream: TextIO) -> None:
    """A header and one line per row; what is null is empty."""
    # A field is quoted if it holds a character of the line's end, and one that holds a mere "\r" must be.
    line = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(line, ROW_KEYS, lineterminator="\r\n")
    for row in ({key: key for key in ROW_KEYS}, *rows):
        writer.writerow(row)
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
    """The place of each source, of all in the store where none are given; an error where two have one place."""
    chosen = sources or [SourceId.parse(str(row["source"])) for row in store.sources()]
    found = {source: Place.of(source, model=model) for source in chosen}
    if len(set(found.values())) < len(found):
        raise NeuronautError(
            "two sources have one place at Neuronpedia; export them one at a time, each with its model"
        )
    return found


def explained(store: Store, source: SourceId, *, min_score: float | None = None) -> Iterator[StoredExplanation]:
    """The best explanation of each feature of a source that has a text; not of negative tails."""
    # The best come first, so they are the last to take their feature's place in the reverse order.
    best = {stored.explanation.feature: stored for stored in reversed(store.explanations(source))}
    for row in store.list_rows(source, min_score=min_score):
        feature = Feature.parse(str(row["feature"]))
        if row["explanation"] is not None and not feature.negative:
            yield best[feature]


class Lines(NamedTuple):
    """Lines for Neuronpedia's tables Explanation and ExplanationScore."""

    explanations: list[Row]
    scores: list[Row]


def neuronpedia_lines(
    store: Store, source: SourceId, *, model: str | None = None, author: str = AUTHOR,
    min_score: float | None = None,
) -> Lines:  # fmt: skip
    """The best explanation of each feature of a source, and its measured scores."""
    place = Place.of(source, model=model)
    lines = Lines([], [])
    for stored in explained(store, source, min_score=min_score):
        line = _explanation_line(stored, place, author)
        lines.explanations.append(line)
        scores = [score for score in store.scores(stored.id) if score.value is not None]
        lines.scores.extend(_score_line(score, str(line["id"]), author) for score in scores)
    return lines


def write_neuronpedia(
    store: Store, folder: str | Path, *, sources: Sequence[SourceId] | None = None, model: str | None = None,
    author: str = AUTHOR, min_score: float | None = None, compress: bool = True,
) -> list[Path]:  # fmt: skip
    """Write `v1/MODEL/LAYER/{explanations,explanation_scores}/batch-N.jsonl[.gz]` and return the paths.

    Without `sources`, all are written.
    """
    paths: list[Path] = []
    for source, place in places(store, sources, model=model).items():
        lines = neuronpedia_lines(store, source, model=model, author=author, min_score=min_score)
        root = Path(folder) / "v1" / place.model / place.layer
        paths += _write_batches(root / "explanations", lines.explanations, compress=compress)
        paths += _write_batches(root / "explanation_scores", lines.scores, compress=compress)
    return paths


def _write_batches(folder: Path, lines: Sequence[Row], *, compress: bool) -> list[Path]:
    paths: list[Path] = []
    for start in range(0, len(lines), _BATCH):
        path = folder / f"batch-{start // _BATCH}.jsonl{'.gz' if compress else ''}"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[start : start + _BATCH])
        # Without a time in the header, equal content is an equal file.
        write_file(path, gzip.compress(text.encode(), mtime=0) if compress else text.encode())
        paths.append(path)
    return paths


def write_file(path: Path, content: bytes) -> None:
    """Write a file into a folder that need not be there yet."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise NeuronautError(f"{path} cannot be written ({error.strerror}); name a folder elsewhere") from error


def _explanation_line(stored: StoredExplanation, place: Place, author: str) -> Row:
    explanation = stored.explanation
    llm = explanation.provenance.get("llm")
    named = [place.model, place.layer, str(explanation.feature.index)]
    line = {
        "id": _id("explanation", *named, explanation.explainer, str(llm), str(explanation.text)),
        "modelId": named[0],
        "layer": named[1],
        "index": named[2],
        "description": explanation.text,
        "authorId": author,
        "typeName": f"neuronaut_{explanation.explainer}",
        "explanationModelName": None if llm is None else str(llm),
        "notes": None,
        "createdAt": stored.created,
        "triggeredByUserId": None,
    }
    return line | _original(explanation.provenance, place)


def _original(provenance: Mapping[str, object], place: Place) -> Row:
    """What Neuronpedia itself says of an explanation that was imported from this place."""
    origin = provenance.get("origin")
    if not isinstance(origin, dict) or (origin.get("modelId"), origin.get("layer")) != place:
        return {}
    required = {key: origin[key] for key in ("id", "authorId", "createdAt") if key in origin}
    return required | {key: origin.get(key) for key in _OPTIONAL}


def _score_line(score: Score, explanation_id: str, author: str) -> Row:
    details = {
        "scorer": score.scorer, "examples": score.examples, "metric": score.metric, "ci_low": score.ci_low,
        "ci_high": score.ci_high, "n": score.n, "coverage": score.coverage, "baselines": score.baselines,
    }  # fmt: skip
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
