"""What people write: explanations, which are candidates like any other, and ratings, which are scores by a person.

An explanation that a person wrote has the explainer "person" and its author in the provenance; an edit is a new
explanation that names the one it was made from. A rating is a score of the scorer "person" whose judge is the
author, from 1 to 5; each author has one of an explanation, the latest. Since they are explanations and scores, they
are ranked, listed, merged and shown as such. A rating proves nothing, so it is no headline score.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping

from ...subject.address import Feature
from ...subject.errors import NeuronautError
from ..records import Explanation, Score
from .database import Row
from .writing import add_scores, now

PERSON = "person"
"""The explainer, and the scorer, that a person is."""
WORST, BEST = 1, 5
LONGEST_TEXT, LONGEST_AUTHOR = 4000, 80
"""Characters."""


def written(
    feature: Feature, text: str, *, author: str, headline: str | None = None, edits: int | None = None
) -> Explanation:
    """The explanation that a person wrote; `edits` is the id of the one that it was made from.

    Raises NeuronautError for no text or one that is too long, and for a name that is none.
    """
    text = text.strip()
    if not text or len(text) > LONGEST_TEXT:
        raise NeuronautError(f"the explanation has {len(text):,} characters; wanted 1 to {LONGEST_TEXT:,}")
    provenance: dict[str, object] = {"author": check_author(author)}
    return Explanation(
        feature, text, PERSON, headline=headline, provenance=provenance | ({} if edits is None else {"edits": edits})
    )


def check_author(author: str) -> str:
    """The name of an author without spaces around it; an error for one that is empty, long, or does not print."""
    author = author.strip()
    if not author or len(author) > LONGEST_AUTHOR or not author.isprintable():
        raise NeuronautError(f"{author[:LONGEST_AUTHOR]!a} is no name; wanted 1 to {LONGEST_AUTHOR} characters")
    return author


def check_rating(value: object, *, author: str) -> str:
    """The author's name; an error for a rating that is none."""
    if isinstance(value, bool) or value not in range(WORST, BEST + 1):
        raise NeuronautError(f"{value!r:.40} is no rating; wanted a whole number from {WORST} to {BEST}")
    return check_author(author)


def rate(connection: sqlite3.Connection, explanation_id: int, value: float, *, author: str) -> None:
    """Store an author's rating of an explanation in place of an earlier one of theirs."""
    author = check_rating(value, author=author)
    earlier = "DELETE FROM scores WHERE explanation_id = ? AND scorer = ? AND judge = ?"
    connection.execute(earlier, [explanation_id, PERSON, author])
    rating = Score(PERSON, "rating", "rating", float(value), judge=author, backend=PERSON, provenance={"rated": now()})
    add_scores(connection, explanation_id, [rating])


def ratings_of(scores: Iterable[Score]) -> dict[str, float]:
    """The ratings among scores, by author; of several, as after a merge, the latest."""
    rated = [score for score in scores if score.scorer == PERSON and score.value is not None]
    rated.sort(key=lambda score: str(score.provenance.get("rated", "")))
    return {score.judge: score.value for score in rated if score.value is not None}


def author_of(provenance: Mapping[str, object]) -> str | None:
    """Who wrote an explanation, here or where it was imported from; None where that is not known."""
    origin = provenance.get("origin")
    author = provenance.get("author") or (origin.get("author") if isinstance(origin, dict) else None)
    return author if isinstance(author, str) else None


def add_people(connection: sqlite3.Connection, rows: Iterable[Row]) -> Iterator[Row]:
    """Put `author` and `ratings` beside the rows whose best explanation has such."""
    sql = """SELECT best.feature, explanations.provenance,
            (SELECT json_group_object(judge, value) FROM (SELECT judge, value FROM scores
             WHERE scores.explanation_id = best.explanation_id AND scorer = ?1 ORDER BY provenance)) AS ratings
        FROM best_explanations AS best JOIN explanations ON explanations.id = best.explanation_id
        WHERE explanations.explainer IN (?1, 'import:' || ?1)
            OR best.explanation_id IN (SELECT explanation_id FROM scores WHERE scorer = ?1)"""
    people: dict[str, Row] = {}
    for feature, provenance, ratings in connection.execute(sql, [PERSON]):
        told = {"author": author_of(json.loads(provenance)), "ratings": json.loads(ratings)}
        people[feature] = {key: value for key, value in told.items() if value}
    for row in rows:
        yield row | people.get(row["feature"], {})
