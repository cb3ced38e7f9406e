"""The log of calls to language models, which is also their cache; and the batches that are under way.

A call is recorded the moment its reply arrives, by whichever thread got it, in a transaction of its own; so
a process that is killed loses at most the calls in flight. Only a call that went well is ever an answer;
failed ones are kept for inspection. For a database in memory the log shares the store's connection.
"""

import json
import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from sqlite_utils import Database

from .database import Row, connect, transaction, translate_errors
from .writing import clean, now


@dataclass(frozen=True, slots=True)
class Call:
    """A request and its reply."""

    key: str
    """Hash of model, endpoint and everything the request says."""
    model: str
    endpoint: str
    prompt: str
    """Name of the prompt file."""
    request: str
    """As JSON."""
    status: str
    """"ok", "refused", "truncated", "empty" or "failed"."""
    reply: str
    reason: str | None
    input_tokens: int
    output_tokens: int
    seconds: float
    cost: float | None
    """US dollars; None where the price is not known."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Log-probabilities, calls of tools and what else the reply held, as plain JSON values."""


class CallLog:
    """The calls of one database."""

    def __init__(self, path: str, db: Database) -> None:
        self._path = path
        # Its own connection, so that replies can be written while the store's is in the middle of something.
        self._own = path != ":memory:"
        self._db = connect(path, create=False) if self._own else db
        self._lock = Lock()

    def close(self) -> None:
        """Close the log's own connection."""
        if self._own:
            self._db.conn.close()

    def answers(self, keys: Iterable[str]) -> dict[str, Call]:
        """Of these keys, the calls that went well."""
        sql = "SELECT * FROM llm_calls WHERE status = 'ok' AND key IN (SELECT value FROM json_each(?))"
        with self._lock, translate_errors(self._path):
            rows = self._db.conn.execute(sql, [json.dumps(list(keys))]).fetchall()
        return {row["key"]: _read_call(row) for row in rows}

    def unanswered(self, keys: Iterable[str]) -> dict[str, tuple[Call, int]]:
        """Of these keys, those that never went well: the latest call, and how many there were."""
        sql = (
            "SELECT *, max(id), count(*) AS tries FROM llm_calls WHERE key IN (SELECT value FROM json_each(?))"
            " GROUP BY key HAVING sum(status = 'ok') = 0"
        )
        with self._lock, translate_errors(self._path):
            rows = self._db.conn.execute(sql, [json.dumps(list(keys))]).fetchall()
        return {row["key"]: (_read_call(row), row["tries"]) for row in rows}

    def record(self, call: Call) -> None:
        """Record a call; a second good answer to one request is left out."""
        with self._lock, transaction(self._db, self._path) as connection:
            _insert(connection, call)

    def rows(self, *, limit: int | None = None, status: str | None = None, prompt: str | None = None) -> list[Row]:
        """Calls as rows, the latest first; `calls` of each are those of tools that the reply made."""
        sql = (
            "SELECT id, created, model, endpoint, prompt, status, reason, input_tokens, output_tokens, seconds, cost,"
            " key, request, reply, detail FROM llm_calls"
            " WHERE (?1 IS NULL OR status = ?1) AND (?2 IS NULL OR prompt = ?2) ORDER BY id DESC LIMIT ?3"
        )
        with self._lock, translate_errors(self._path):
            values = [status, prompt, -1 if limit is None else limit]
            rows = [dict(row) for row in self._db.conn.execute(sql, values)]
        for row in rows:
            row["calls"] = _unpack_detail(row.pop("detail")).get("calls", [])
        return rows

    def statistics(self) -> list[Row]:
        """A row per model, endpoint and prompt: calls by status, tokens, seconds, cost."""
        sql = """SELECT model, endpoint, prompt, count(*) AS calls,
            sum(status = 'ok') AS ok, sum(status = 'refused') AS refused, sum(status = 'truncated') AS truncated,
            sum(status = 'empty') AS empty, sum(status = 'failed') AS failed, sum(input_tokens) AS input_tokens,
            sum(output_tokens) AS output_tokens, avg(seconds) AS mean_seconds,
            CASE WHEN count(cost) = count(*) THEN sum(cost) END AS cost
            FROM llm_calls GROUP BY model, endpoint, prompt ORDER BY model, endpoint, prompt"""
        with self._lock, translate_errors(self._path):
            return [dict(row) for row in self._db.conn.execute(sql)]

    # Batches

    def begin_batch(self, batch: str, model: str, endpoint: str, requests: Sequence[tuple[str, str, str]]) -> None:
        """Record a batch with its requests (key, prompt, request), before it is sent."""
        with self._lock, transaction(self._db, self._path) as connection:
            connection.execute("INSERT INTO llm_batches VALUES (?, ?, ?, NULL, ?)", [batch, model, endpoint, now()])
            connection.executemany(
                "INSERT INTO llm_batch_requests VALUES (?, ?, ?, ?)", ((batch, *request) for request in requests)
            )

    def mark_sent(self, batch: str, remote: str) -> None:
        """Record that the server took the batch, under its own name `remote`."""
        with self._lock, transaction(self._db, self._path) as connection:
            connection.execute("UPDATE llm_batches SET remote = ? WHERE id = ?", [remote, batch])

    def batches(self, model: str, endpoint: str) -> list[Row]:
        """The batches that are not collected yet, each with its number of `requests`."""
        sql = """SELECT id, remote, created, (SELECT count(*) FROM llm_batch_requests WHERE batch_id = id) AS requests
            FROM llm_batches WHERE model = ? AND endpoint = ? ORDER BY created"""
        with self._lock, translate_errors(self._path):
            return [dict(row) for row in self._db.conn.execute(sql, [model, endpoint])]

    def batch_requests(self, batch: str) -> dict[str, tuple[str, str]]:
        """Prompt name and request of a batch, by key."""
        sql = "SELECT key, prompt, request FROM llm_batch_requests WHERE batch_id = ?"
        with self._lock, translate_errors(self._path):
            return {row["key"]: (row["prompt"], row["request"]) for row in self._db.conn.execute(sql, [batch])}

    def end_batch(self, batch: str, calls: Iterable[Call]) -> None:
        """Record the calls of a batch, and forget the batch."""
        with self._lock, transaction(self._db, self._path) as connection:
            for call in calls:
                _insert(connection, call)
            connection.execute("DELETE FROM llm_batch_requests WHERE batch_id = ?", [batch])
            connection.execute("DELETE FROM llm_batches WHERE id = ?", [batch])


def _insert(connection: sqlite3.Connection, call: Call) -> None:
    connection.execute(
        "INSERT INTO llm_calls (key, model, endpoint, prompt, request, status, reply, reason, detail, input_tokens,"
        " output_tokens, seconds, cost, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        [
            call.key,
            call.model,
            call.endpoint,
            call.prompt,
            call.request,
            call.status,
            clean(call.reply),
            clean(call.reason),
            zlib.compress(json.dumps(call.detail).encode()),
            call.input_tokens,
            call.output_tokens,
            call.seconds,
            call.cost,
            now(),
        ],
    )


def _read_call(row: sqlite3.Row) -> Call:
    return Call(
        key=row["key"],
        model=row["model"],
        endpoint=row["endpoint"],
        prompt=row["prompt"],
        request=row["request"],
        status=row["status"],
        reply=row["reply"],
        reason=row["reason"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        seconds=row["seconds"],
        cost=row["cost"],
        detail=_unpack_detail(row["detail"]),
    )


def _unpack_detail(packed: bytes) -> dict[str, Any]:
    return json.loads(zlib.decompress(packed))
