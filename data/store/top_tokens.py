"""The tokens that each feature raises and lowers the most by its direct path to the logits, as the harvest found them.

They follow from weights alone, so the first that are stored of a feature stay.
"""

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...subject.address import Feature

if TYPE_CHECKING:
    from ...subject.directions import TopTokens

TOP_TOKENS = """CREATE TABLE top_tokens (
    feature_id INTEGER PRIMARY KEY REFERENCES features(id) ON DELETE CASCADE, ids BLOB NOT NULL, effects BLOB NOT NULL,
    spread REAL NOT NULL)"""


class TokenShift(NamedTuple):
    """How a feature moves the logit of a token."""

    id: int
    """Of the token, in the model's vocabulary."""
    value: float
    """Logits per unit of activation, above the vocabulary's mean, times the final norm's denominator."""
    deviations: float
    """The same in standard deviations over the vocabulary."""


class TokenShifts(NamedTuple):
    """The tokens of a feature."""

    promoted: list[TokenShift]
    """Highest first."""
    suppressed: list[TokenShift]
    """Lowest first."""


def write_top_tokens(connection: sqlite3.Connection, feature_ids: Sequence[int], tokens: "TopTokens") -> None:
    """Keep those of features, by id in the order of the tokens' rows; what writes nothing has none."""
    connection.executemany(
        "INSERT INTO top_tokens (feature_id, ids, effects, spread) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            (feature_id, ids.astype("<i4").tobytes(), effects.astype("<f4").tobytes(), spread)
            for feature_id, ids, effects, spread in zip(
                feature_ids, tokens.ids, tokens.effects, tokens.spread.tolist(), strict=True
            )
            if spread > 0
        ),
    )


def read_top_tokens(connection: sqlite3.Connection, feature: Feature) -> TokenShifts | None:
    """Those of a feature; of a negative tail, which does the opposite, with signs turned. None where none are known."""
    row = connection.execute(
        "SELECT ids, effects, spread FROM top_tokens JOIN features ON features.id = feature_id"
        " WHERE source_id = (SELECT id FROM sources WHERE name = ?) AND idx = ?",
        [str(feature.source), feature.index],
    ).fetchone()
    if row is None:
        return None
    sign = -1 if feature.negative else 1
    ids, effects = np.frombuffer(row["ids"], "<i4").tolist(), (sign * np.frombuffer(row["effects"], "<f4")).tolist()
    shifts = [TokenShift(id, value, value / row["spread"]) for id, value in zip(ids, effects, strict=True)]
    sides = shifts[: len(shifts) // 2], shifts[len(shifts) // 2 :]
    return TokenShifts(*reversed(sides)) if feature.negative else TokenShifts(*sides)
