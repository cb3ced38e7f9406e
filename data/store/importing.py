"""Imports: rows from outside, each with an explanation of one feature, become explanations in the store.

A row names its feature either by address, as our own exports do (columns `feature` and `explanation`), or by
Neuronpedia's place and index (`modelId`, `layer`, `index`, `description`). What comes from outside stays recognisable:
the explainer is "import:NAME", the windows that it was shown are unknown, and scores are left behind, because nothing
here could check them; ratings by people come along. The key of an imported explanation is a digest of the feature, the
text and its author, so importing twice adds nothing. Files are first read as a whole, into a scratch file, so that
none is imported where a line of one cannot be read; then they are stored, in pieces so small that nobody waits for the
lock for long. An import that was broken off goes on when it is given again. A line whose feature is not in the
database is left out and reported by its number.
"""

import json
import math
import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from ...subject.address import Feature, SourceId, check_name
from ...subject.errors import NeuronautError
from ..codec import content_digest
from ..records import Explanation
from .database import Row
from .export import ID_LENGTH, Place
from .lines import malformed, read
from .listing import ROW_KEYS
from .people import check_rating, ratings_of
from .store import Store
from .writing import clean

AHEAD = 256
"""Rows that are read before the lock is taken, and stored while it is held: for some hundredths of a second."""
RuleCheck = Callable[[str], str]
"""Returns a rule's JSON as it is to be stored; a NeuronautError where it is no rule."""
IMPORTED = "import:"
UNNAMED = "unnamed"
"""The explainer of rows that name none."""
_OURS = frozenset({"feature", "explanation"})
_NEURONPEDIA = frozenset({"modelId", "layer", "index", "description"})
_SCORES = frozenset({"score", "scoreV1", "scoreV2"})
_NOT_ORIGIN = frozenset({*ROW_KEYS, *_SCORES, "description", "rule", "rank", "similarity"})
"""Columns that have a meaning of their own here, or none outside the database that they come from."""


@dataclass(frozen=True, slots=True)
class Imported:
    """Counts of one file's rows, by what became of them."""

    file: str
    rows: int = 0
    added: int = 0
    already_there: int = 0
    without_text: int = 0
    """Rows of features that are not explained."""
    with_scores: int = 0
    """Rows that bring a score, which is left behind."""
    not_matched: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Line numbers of the rows whose feature is not in the database, by reason."""


class _NotMatched(Exception):
    """There is no such feature here; the message says why."""


class Sources:
    """Finds the source that a row means, among those in a store."""

    def __init__(self, store: Store, *, source: SourceId | None = None, model: str | None = None) -> None:
        """With `source`, all rows are of this one, by whatever one name they call it.

        `model` is the modelId of all sources at Neuronpedia, as in `Place.of`.
        """
        self._only = source and SourceId.parse(str(store.known_source(source)))
        self._called: SourceId | Place | None = None
        self._widths = {SourceId.parse(str(row["source"])): int(row["width"]) for row in store.sources()}
        self._called_by: dict[SourceId | Place, list[SourceId]] = defaultdict(list)
        for stored in self._widths:
            self._called_by[stored].append(stored)
            self._called_by[Place.of(stored, model=model)].append(stored)

    def feature(self, called: SourceId | Place, index: int, *, negative: bool) -> Feature:
        """The feature of an index in the source that is called so."""
        source = self._source(called)
        if index >= self._widths[source]:
            raise _NotMatched(f"the index is beyond the {self._widths[source]:,} features of {source}")
        return Feature(source, index, negative)

    def _source(self, called: SourceId | Place) -> SourceId:
        if self._only is not None:
            self._called = self._called or called
            if called != self._called:
                raise NeuronautError(f"{called} and, before it, {self._called} cannot both be {self._only}")
            return self._only
        matches = self._called_by.get(called, [])
        if len(matches) != 1:
            raise _NotMatched(
                f"{called} could be {' or '.join(map(str, matches))}" if matches else f"{called} is not in the database"
            )
        return matches[0]


@dataclass(frozen=True, slots=True)
class _ParsedRow:
    """A row of either kind."""

    called: SourceId | Place
    index: int
    negative: bool
    text: str | None
    headline: str | None
    explainer: str | None
    author: str | None
    llm: str | None


class _Tally:
    """What became of the rows of one file, so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.not_matched: dict[str, list[int]] = defaultdict(list)


def import_files(store: Store, paths: Sequence[Path], *, sources: Sources, check_rule: RuleCheck) -> list[Imported]:
    """Store the explanations of files: all that have a feature here or, where a line cannot be read, none."""
    with ExitStack() as stack:
        parsed: list[tuple[Path, _Tally, BinaryIO]] = []
        for path in paths:
            tally, scratch = _Tally(), stack.enter_context(TemporaryFile())
            explanations = _parse_file(path, tally, sources=sources, check_rule=check_rule)
            while ahead := list(islice(explanations, AHEAD)):
                pickle.dump(ahead, scratch)
            parsed.append((path, tally, scratch))
        reports: list[Imported] = []
        for path, tally, scratch in parsed:
            for ahead in _read_back(scratch):
                added = store.add_explanations(ahead)
                tally.counts["added"] += added
                tally.counts["already_there"] += len(ahead) - added
            _store_ratings(store, path, sources, check_rule)
            reports.append(Imported(str(path), **tally.counts, not_matched=dict(tally.not_matched)))
        return reports


def _read_back(scratch: BinaryIO) -> Iterator[Sequence[Explanation]]:
    """What this process wrote into its own scratch file, which has no name."""
    end = scratch.tell()
    scratch.seek(0)
    while scratch.tell() < end:
        yield pickle.load(scratch)


def _parse_file(path: Path, tally: _Tally, *, sources: Sources, check_rule: RuleCheck) -> Iterator[Explanation]:
    """The explanations of a file, one in memory at a time; the other rows go into the tally."""
    for number, row in read(path):
        tally.counts["rows"] += 1
        tally.counts["with_scores"] += any(row.get(column) is not None for column in _SCORES)
        try:
            explanation = _parse_explanation(row, path.name, sources, check_rule)
            _parse_ratings(row)
        except _NotMatched as reason:
            tally.not_matched[str(reason)].append(number)
        except (NeuronautError, ValueError) as error:
            raise malformed(path, number, error) from None
        else:
            if explanation is None:
                tally.counts["without_text"] += 1
            else:
                yield explanation


def _store_ratings(store: Store, path: Path, sources: Sources, check_rule: RuleCheck) -> None:
    """Store the ratings that a file brings of its explanations, which are in the store."""
    for _, row in read(path):
        if ratings := _parse_ratings(row):
            with suppress(_NotMatched):
                explanation = _parse_explanation(row, path.name, sources, check_rule)
                if explanation is not None:
                    _rate(store, explanation, ratings)


def _rate(store: Store, explanation: Explanation, ratings: Mapping[str, float]) -> None:
    id = store.add_explanation(explanation)
    known = ratings_of(store.scores(id))
    for author, value in ratings.items():
        if known.get(author) != value:
            store.rate(id, value, author=author)


def _parse_ratings(row: Row) -> dict[str, float]:
    """The ratings that a row brings, by author."""
    ratings = row.get("ratings") or {}
    if not isinstance(ratings, dict):
        raise NeuronautError(f"ratings are {json.dumps(ratings)[:60]}, wanted an object from author to number")
    for author, value in ratings.items():
        check_rating(value, author=author)
    return ratings


def _parse_explanation(row: Row, file: str, sources: Sources, check_rule: RuleCheck) -> Explanation | None:
    """The explanation of a row; None where it has no text."""
    parsed = _parse_row(row)
    rule = _parse_rule(row.get("rule"), check_rule)
    if parsed.text is None or not parsed.text.strip():
        return None
    feature = sources.feature(parsed.called, parsed.index, negative=parsed.negative)
    name = (parsed.explainer or UNNAMED).removeprefix(IMPORTED)
    check_name(name, what="explainer", parts=2)
    key = content_digest(IMPORTED, str(feature), parsed.text, rule, name, parsed.author, parsed.llm)
    origin = {column: value for column, value in row.items() if column not in _NOT_ORIGIN and _is_plain(value)}
    return Explanation(
        feature,
        parsed.text,
        f"{IMPORTED}{name}",
        rule=rule,
        headline=parsed.headline,
        provenance={"key": key, "seen": "unknown", "file": file, "origin": origin},
    )


def _parse_row(row: Row) -> _ParsedRow:
    if row.keys() >= _NEURONPEDIA:
        called, index, negative = Place(_text(row, "modelId"), _text(row, "layer")), str(row["index"]), False
        if not re.fullmatch("[0-9]{1,18}", index):
            raise NeuronautError(f"index is {index!r}, wanted a number")
        if len(_optional(row, "id") or "") > ID_LENGTH:
            raise NeuronautError(f"id has {len(row['id'])} characters, wanted at most {ID_LENGTH}")
        columns = ("description", "typeName", "authorId", "explanationModelName")
    elif row.keys() >= _OURS:
        feature = Feature.parse(_text(row, "feature"))
        called, index, negative = feature.source, feature.index, feature.negative
        columns = ("explanation", "explainer", "author", "llm")
    else:
        raise NeuronautError(
            f"the columns are {', '.join(row) or 'none'}; wanted feature and explanation, "
            f"or Neuronpedia's {', '.join(sorted(_NEURONPEDIA))}"
        )
    text, *rest = (_optional(row, column) for column in columns)
    return _ParsedRow(called, int(index), negative, text, _optional(row, "headline"), *rest)


def _optional(row: Row, column: str) -> str | None:
    return None if row.get(column) is None else clean(_text(row, column))


def _text(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise NeuronautError(f"{column} is {json.dumps(value)[:60]}, wanted text")
    return value


def _parse_rule(value: object, check_rule: RuleCheck) -> str | None:
    """The rule of a row, in which it stands as JSON or as JSON in a text."""
    if value is None:
        return None
    try:
        return check_rule(value if isinstance(value, str) else json.dumps(value))
    except NeuronautError as error:
        raise NeuronautError(f"rule: {error}") from None


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
