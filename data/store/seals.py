"""Seals: a digest of every cell that an investigation wrote, so that a later edit is known by table, row and column.

A seal is made in the transaction in which an investigation ends, and whenever one is left before its end or forked.
Rows are only ever added, so a later seal keeps every digest of the one before and adds those of new rows; only what
ending writes into the investigation's own row is taken anew. A seal is no signature: who can edit a database can
also write a seal. What follows from other rows by arithmetic is judged again whatever the seal says (agent/checks.py).

Ids that a merge gives anew are left out; the explanation is known by the digest of its content.
"""

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from .journal_values import as_json

Cells = dict[str, dict[str, dict[str, str]]]
"""Digests by table, row and column."""

_KEYS: Mapping[str, tuple[str, ...]] = {
    "investigations": ("id",),
    "decisions": ("step",),
    "hypotheses": ("name",),
    "experiments": ("name",),
    "predictions": ("experiment", "hypothesis"),
    "observations": ("experiment",),
    "peeks": ("purpose",),
    "ledger": ("key",),
    "events": ("key",),
}
"""What a row of an investigation is called by."""
_JSON = {"settings", "provenance", "decision", "body", "args", "base", "expected", "cost", "payload"}
_AT_THE_END = ("status", "reason", "explanation_id", "ended")
_TYPES = {
    "INTEGER": ("integer",),
    "REAL": ("real", "integer"),
    "TEXT": ("text", "null"),
    "BLOB": ("blob",),
    "ANY": ("text", "null", "integer"),
}
_DIGITS = 8


class Edit(NamedTuple):
    """One difference between an investigation's rows and its seal."""

    table: str
    row: str
    column: str | None
    """None of a whole row."""
    what: Literal["edited", "removed", "added", "renamed"]


class _Cell(NamedTuple):
    table: str
    row: str
    column: str
    declared: str
    type: str
    value: bytes | None


def seal(connection: sqlite3.Connection, id: str) -> None:
    """Make an investigation's seal, or add to it, within the caller's transaction."""
    cells = read_cells(connection, id)
    row = connection.execute("SELECT ended FROM investigations WHERE id = ?", [id]).fetchone()
    before, ended = find_seal(connection, id)
    for table, rows in (before or {}).items():
        for name, digests in rows.items():
            fresh = cells[table].get(name, {}) if table == "investigations" and not ended else {}
            cells[table][name] = {**digests, **{key: fresh[key] for key in _AT_THE_END if key in fresh}}
    connection.execute(
        "INSERT OR REPLACE INTO seals VALUES (?, ?, ?)",
        [id, zlib.compress(as_json(cells).encode()), row["ended"] is not None],
    )


def find_seal(connection: sqlite3.Connection, id: str) -> tuple[Cells | None, bool]:
    """The sealed digests, and whether they are of an investigation that had ended; None where there is no seal."""
    row = connection.execute("SELECT cells, ended FROM seals WHERE investigation = ?", [id]).fetchone()
    return (None, False) if row is None else (json.loads(zlib.decompress(row["cells"])), bool(row["ended"]))


def read_cells(connection: sqlite3.Connection, id: str) -> Cells:
    """Digest every cell of an investigation as it is now."""
    cells: Cells = {table: {} for table in _KEYS}
    for cell in _cells(connection, id):
        content = cell.type.encode() + b":" + (cell.value or b"")
        cells[cell.table].setdefault(cell.row, {})[cell.column] = hashlib.sha256(content).hexdigest()[:_DIGITS]
    return cells


def find_edits(sealed: Cells, now: Cells) -> list[Edit]:
    """What differs from the seal, each edit once: a row whose name alone was changed is one edit."""
    edits: list[Edit] = []
    for table, before in sealed.items():
        after = now[table]
        added = {row: digests for row, digests in after.items() if row not in before}
        for row, digests in before.items():
            if row in after:
                edits += [
                    Edit(table, row, column, "edited") for column in digests if digests[column] != after[row][column]
                ]
            elif twin := next((name for name, others in added.items() if others == digests), None):
                del added[twin]
                edits.append(Edit(table, row, f"(now {twin})", "renamed"))
            else:
                edits.append(Edit(table, row, None, "removed"))
        edits += [Edit(table, row, None, "added") for row in added]
    return edits


def find_unreadable(connection: sqlite3.Connection, id: str) -> list[str]:
    """The cells that cannot be read, each with the reason: another type, no UTF-8, no JSON, not packed."""
    faults = [
        f"{cell.table} {cell.row} {cell.column} {fault}"
        for cell in _cells(connection, id)
        if (fault := _fault(cell)) is not None
    ]
    try:
        find_seal(connection, id)
    except (ValueError, TypeError, zlib.error) as error:
        faults.append(f"seals {id} cells cannot be decoded ({type(error).__name__})")
    return faults


def _fault(cell: _Cell) -> str | None:
    if cell.type not in _TYPES[cell.declared]:
        return f"holds {cell.type}, wanted {cell.declared.lower()}"
    try:
        if cell.declared == "BLOB":
            json.loads(zlib.decompress(cell.value or b""))
        elif cell.declared == "TEXT" and cell.value is not None:
            text = cell.value.decode()
            if cell.column in _JSON:
                json.loads(text)
    except (ValueError, zlib.error, RecursionError) as error:
        return f"cannot be decoded ({type(error).__name__})"
    return None


def _cells(connection: sqlite3.Connection, id: str) -> Iterator[_Cell]:
    """Every cell as SQLite has it; a text is not decoded, since it may be no UTF-8."""
    for table, keys in _KEYS.items():
        columns = {
            row["name"]: row["type"]
            for row in connection.execute(f"PRAGMA table_info({table})")
            if row["name"] not in ("id", "investigation", *keys)
        }
        if table == "investigations":
            columns["explanation_id"] = "ANY"
        values = ", ".join(f"typeof({_sql(name)}), CAST({_sql(name)} AS BLOB)" for name in columns)
        key = " || ' ' || ".join(f"coalesce({name}, '')" for name in keys)
        whose = "id" if table == "investigations" else "investigation"
        for name, *row in connection.execute(
            f"SELECT CAST({key} AS BLOB), {values} FROM {table} WHERE {whose} = ? ORDER BY rowid", [id]
        ):
            row_name = name.decode(errors="replace")
            for (column, declared), type, value in zip(columns.items(), row[::2], row[1::2], strict=True):
                yield _Cell(table, row_name, column, declared=declared, type=type, value=value)


def _sql(column: str) -> str:
    if column != "explanation_id":
        return column
    # NULL for an id that no explanation has would pass for none; the id itself does not.
    return "coalesce((SELECT digest FROM explanations AS e WHERE e.id = explanation_id), explanation_id)"
