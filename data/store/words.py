"""Search by words.

What a user searches for is text, never a query language: words are looked up in the full-text index (as one phrase
where quoted), what holds no word at all, like `(`, is looked up as it is. Filters apply before the limit, so a short
page is the end.

What RANKED explanations or fewer hold is sorted by relevance: those with the whole query as it stands first, then by
BM25. Words that more of them hold say too little for that, and what holds no word says nothing: there the best scores
come first. Those are found by walking the explanations from the best score on and asking of each whether it holds the
words, since one that does is near; where it is not, all that hold the words are sorted after all.
"""

import json
import re
import sqlite3
import unicodedata
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

from ...subject.errors import NeuronautError
from .database import Row
from .listing import COLUMNS, Filter, iterate_keys
from .writing import clean

RANKED = 3000
"""So many explanations are sorted by relevance, at most."""
WALKED = 10_000
"""So many explanations are asked, from the best on, before all that hold the words are sorted."""
_STRIDE = 250
_WHOLE = "coalesce(explanations.headline || ' ', '') || explanations.text"
"""All words of an explanation; one from elsewhere may have a headline that its text does not begin with."""


class Query(NamedTuple):
    """What an explanation must hold."""

    whole: str
    match: str
    """For the full-text index; empty where no term holds a word."""
    marks: list[str]
    """Terms that hold no word."""

    @classmethod
    def parse(cls, text: str) -> "Query":
        """Read what a user typed; NeuronautError where it is empty."""
        text = clean(text) or ""
        parts = [phrase or bare for phrase, bare in re.findall(r'"([^"]+)"|([^\s"]+)', text)]
        words = [part for part in parts if any(map(_in_word, part))]
        marks = [part.strip() for part in parts if part not in words and part.strip()]
        if not words and not marks:
            raise NeuronautError("the query is empty; wanted some words, for example: neuronaut search 'method calls'")
        match = " AND ".join('"' + word.replace('"', '""') + '"' for word in words)
        return cls(text.strip().strip('"'), match, marks)

    def marked(self) -> str:
        """The condition that the marks are there, as SQL with a parameter for each."""
        return " AND ".join(["1", *[f"instr(lower({_WHOLE}), lower(?))"] * len(self.marks)])


def _in_word(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LN" or category == "Co"


def search_rows(
    connection: sqlite3.Connection, query: str, chosen: Filter, *, limit: int | None, markers: tuple[str, str] | None
) -> list[Row]:
    """Rows whose best explanation holds every term, with their rank."""
    asked = Query.parse(query)
    most = -1 if limit is None else limit
    if asked.match and not _is_common(connection, asked):
        ids = _by_relevance(connection, asked, chosen, most)
    else:
        ids = _walk(connection, asked, chosen, most) if 0 < most <= WALKED else None
        ids = _by_score(connection, asked, chosen, most) if ids is None else ids
    rows = read_explained(connection, ids)
    if asked.match and markers is not None:
        rows = [row | _highlight(connection, asked, id_, markers) for id_, row in zip(ids, rows, strict=True)]
    return [row | {"rank": rank, "similarity": None} for rank, row in enumerate(rows, start=1)]


def read_explained(connection: sqlite3.Connection, ids: Sequence[int]) -> list[Row]:
    """The rows of these best explanations, in their order."""
    sql = f"SELECT {COLUMNS} FROM feature_rows WHERE explanation_id = ?"
    return [dict(connection.execute(sql, [id_]).fetchone()) for id_ in ids]


def _is_common(connection: sqlite3.Connection, asked: Query) -> bool:
    sql = "SELECT count(*) FROM (SELECT rowid FROM explanations_fts WHERE explanations_fts MATCH ? LIMIT ?)"
    return connection.execute(sql, [asked.match, RANKED + 1]).fetchone()[0] > RANKED


_MATCHING = """explanations_fts CROSS JOIN listed ON listed.explanation_id = explanations_fts.rowid
    CROSS JOIN explanations ON explanations.id = listed.explanation_id WHERE explanations_fts MATCH ? AND has_text"""
_ANY = "listed CROSS JOIN explanations ON explanations.id = listed.explanation_id WHERE has_text"


def _by_relevance(connection: sqlite3.Connection, asked: Query, chosen: Filter, limit: int) -> list[int]:
    condition, values = chosen.sql()
    sql = (
        f"SELECT listed.explanation_id FROM {_MATCHING} AND {condition} AND {asked.marked()}"
        f" ORDER BY NOT instr(lower({_WHOLE}), lower(?)), bm25(explanations_fts), listed.explanation_id LIMIT ?"
    )
    found = connection.execute(sql, [asked.match, *values, *asked.marks, asked.whole, limit])
    return [id_ for (id_,) in found]


def _by_score(connection: sqlite3.Connection, asked: Query, chosen: Filter, limit: int) -> list[int]:
    condition, values = chosen.sql()
    table, match = (_MATCHING, [asked.match]) if asked.match else (_ANY, [])
    sql = (
        f"SELECT listed.explanation_id FROM {table} AND {condition} AND {asked.marked()}"
        " ORDER BY by_score, source_id, idx, listed.negative LIMIT ?"
    )
    return [id_ for (id_,) in connection.execute(sql, [*match, *values, *asked.marks, limit])]


def _walk(connection: sqlite3.Connection, asked: Query, chosen: Filter, limit: int) -> list[int] | None:
    """What `_by_score` finds, where it is soon found; None where it is not."""
    found: list[int] = []
    with closing(iterate_keys(connection, chosen, sort="score", limit=WALKED)) as keys:
        for walked in range(_STRIDE, WALKED + _STRIDE, _STRIDE):
            part = list(islice(keys, _STRIDE))
            ids = [key.explanation_id for key in part if key.explanation_id is not None]
            holding = _holding(connection, asked, ids)
            found += [id_ for id_ in ids if id_ in holding]
            if len(found) >= limit or (len(part) < _STRIDE and walked <= WALKED):
                return found[:limit]
    return None


def _holding(connection: sqlite3.Connection, asked: Query, ids: Sequence[int]) -> set[int]:
    """Those explanations that hold every term."""
    if asked.match:
        sql = (
            "SELECT rowid FROM explanations_fts WHERE explanations_fts MATCH ? AND rowid IN"
            " (SELECT value FROM json_each(?))"
        )
        ids = [id_ for (id_,) in connection.execute(sql, [asked.match, json.dumps(list(ids))])]
    sql = (
        f"SELECT id FROM explanations WHERE id IN (SELECT value FROM json_each(?)) AND text IS NOT NULL"
        f" AND {asked.marked()}"
    )
    return {id_ for (id_,) in connection.execute(sql, [json.dumps(list(ids)), *asked.marks])}


def _highlight(connection: sqlite3.Connection, asked: Query, id_: int, markers: tuple[str, str]) -> Row:
    """The texts of an explanation with markers around the words that matched."""
    sql = (
        "SELECT highlight(explanations_fts, 0, ?, ?) AS headline, highlight(explanations_fts, 1, ?, ?) AS explanation"
        " FROM explanations_fts WHERE explanations_fts MATCH ? AND rowid = ?"
    )
    return dict(connection.execute(sql, [*markers, *markers, asked.match, id_]).fetchone())
