"""The log of calls to language models, which is also their cache; and the batches that are under way.

A call is recorded the moment its reply arrives, by whichever thread got it, in a transaction of its own; so
a process that is killed loses at most the calls in flight. Where another process holds the lock, the call goes into
the spool (spool.py) instead, and from there into the log with the next write. Only a call that went well is ever an
answer; failed ones are kept for inspection. A request is claimed (claims.py) before it is sent. For a database in
memory, which no other process sees, the log shares the store's connection, and nothing is claimed or spooled.
"""

import json
import logging
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any

from sqlite_utils import Database

from ..codec import content_digest
from . import claims
from .database import WRITE_SECONDS, BusyError, Row, connect, transaction, translate_errors
from .spool import Spool, Spooled
from .writing import clean, now

RECORD_SECONDS = 1.0
"""How long a reply waits for the lock before it goes into the spool, and a request before it is claimed later."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """A request and its reply."""

    key: str
    """Hash of model, endpoint and all that determines the answer."""
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
    created: str = field(default_factory=now)
    """When the reply arrived, UTC, ISO 8601."""

    def asked(self) -> Any:
        """The request, parsed."""
        return json.loads(self.request)


class CallLog:
    """The calls of one database."""

    def __init__(self, path: str, db: Database) -> None:
        self._path = path
        # Its own connection, so that replies can be written while the store's is in the middle of something.
        self._own = path != ":memory:"
        self._db = connect(path, create=False) if self._own else db
        self._lock = RLock()
        self._spool, self._owner = Spool(path), claims.Owner()
        self._claimed: set[str] = set()
        self._closed, self._keeper = Event(), Thread(target=self._keep_claims, name="claims", daemon=True)

    def close(self) -> None:
        """Close the log's own connection; replies that come later go into the spool."""
        if self._own:
            self.write_spool()
            with self._lock:
                self._closed.set()
                self._db.conn.close()

    @contextmanager
    def _writing(self, patience: float = WRITE_SECONDS) -> Iterator[sqlite3.Connection]:
        """A transaction, which writes down first what is in the spool."""
        with self._lock, ExitStack() as end:
            if self._closed.is_set():
                raise BusyError(f"{self._path} is closed; open it again")
            with transaction(self._db, self._path, patience=patience) as connection:
                if self._own:
                    # Taken inside, so that nobody holds the spool who waits for the lock, and gone after the commit.
                    _write_spooled(connection, end.enter_context(self._spool.take()), self._spool.path)
                yield connection

    def write_spool(self) -> None:
        """Write down what is in the spool, unless another process holds the lock."""
        try:
            if self._own and self._spool.exists() and self._is_writable():
                with self._writing(RECORD_SECONDS):
                    pass
        except BusyError:
            return

    def _is_writable(self) -> bool:
        return os.access(self._path, os.W_OK) and os.access(Path(self._path).absolute().parent, os.W_OK)

    # Claims

    def claim(self, keys: Sequence[str]) -> dict[str, str]:
        """Claim requests before they are sent; returns those not to be sent now, each with why.

        A request whose claim came through may have been answered meanwhile: look for the answer again.
        """
        if not self._own or not keys:
            return {}
        try:
            with self._writing(RECORD_SECONDS) as connection:
                held = claims.claim(connection, keys, self._owner)
        except BusyError:
            return dict.fromkeys(keys, f"until another process has written to {self._path}")
        with self._lock:
            self._claimed |= set(keys) - held.keys()
            if self._keeper.ident is None:
                self._keeper.start()
        return held

    def release(self, keys: Iterable[str]) -> None:
        """Give claims up, of requests that were not sent."""
        if not (keys := self._claimed.intersection(keys)):
            return
        self._claimed -= keys
        try:
            with self._writing(RECORD_SECONDS) as connection:
                claims.release(connection, keys, self._owner)
        except BusyError:
            return  # The lease is no longer renewed, and runs out.

    def _keep_claims(self) -> None:
        """Renew the claims as long as the log is open, and write down what is in the spool."""
        while not self._closed.wait(claims.RENEW_SECONDS):
            try:
                if self._claimed or self._spool.exists():
                    with self._writing(0) as connection:
                        claims.renew(connection, self._claimed, self._owner)
            except BusyError:
                continue

    # Calls

    def answers(self, keys: Iterable[str]) -> dict[str, Call]:
        """Of these keys, the calls that went well."""
        sql = "SELECT * FROM llm_calls WHERE status = 'ok' AND key IN (SELECT value FROM json_each(?))"
        wanted = list(keys)
        spooled = {row["key"]: Call(**row) for row in self._spool.read().rows} if self._own else {}
        with self._lock, translate_errors(self._path):
            rows = self._db.conn.execute(sql, [json.dumps(wanted)]).fetchall()
        good = {key: spooled[key] for key in wanted if key in spooled and spooled[key].status == "ok"}
        return good | {row["key"]: _read_call(row) for row in rows}

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
        """Record a call, which ends its claim; a second good answer to one request is left out."""
        self._claimed.discard(call.key)
        # One after the other, so that where one reply waited in vain, the next ones do not wait.
        with self._lock:
            try:
                with self._writing(0 if self._own and self._spool.exists() else RECORD_SECONDS) as connection:
                    _insert(connection, call)
                    claims.release(connection, [call.key], self._owner)
            except BusyError:
                if not self._own:
                    raise
                if not self._spool.exists():
                    _log.warning("another process is writing to %s: replies wait in %s", self._path, self._spool.path)
                self._spool.add(asdict(call))

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

    def begin_batch(self, model: str, endpoint: str, requests: Sequence[tuple[str, str, str]]) -> tuple[str, set[str]]:
        """Record a batch with its requests (key, prompt, request), before it is sent; returns its id and their keys.

        Requests that are in another batch, or that another process is asking, are left out.
        """
        keys = [key for key, _, _ in requests]
        with self._writing() as connection:
            others = "SELECT key FROM llm_batch_requests WHERE key IN (SELECT value FROM json_each(?))"
            taken = {key for (key,) in connection.execute(others, [json.dumps(keys)])}
            taken |= claims.claim(connection, keys, self._owner).keys()
            claims.release(connection, keys, self._owner)
            left = [request for request in requests if request[0] not in taken]
            batch = content_digest(*(key for key, _, _ in left))[:32]
            if left:
                connection.execute("INSERT INTO llm_batches VALUES (?, ?, ?, NULL, ?)", [batch, model, endpoint, now()])
            connection.executemany(
                "INSERT INTO llm_batch_requests VALUES (?, ?, ?, ?)", ((batch, *request) for request in left)
            )
        return batch, {key for key, _, _ in left}

    def mark_sent(self, batch: str, remote: str) -> None:
        """Record that the server took the batch, under its own name `remote`."""
        with self._writing() as connection:
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
        with self._writing() as connection:
            for call in calls:
                _insert(connection, call)
            connection.execute("DELETE FROM llm_batch_requests WHERE batch_id = ?", [batch])
            connection.execute("DELETE FROM llm_batches WHERE id = ?", [batch])


def _write_spooled(connection: sqlite3.Connection, spooled: Spooled, path: Path) -> None:
    """Write down the calls of a spool, which ends their claims, whoever has them."""
    for row in spooled.rows:
        known = "SELECT 1 FROM llm_calls WHERE key = ? AND created = ?"
        # A process that was killed after it wrote them left them in the spool as well.
        if connection.execute(known, [row["key"], row["created"]]).fetchone() is None:
            _insert(connection, Call(**row))
        connection.execute("DELETE FROM llm_claims WHERE key = ?", [row["key"]])
    if spooled.rows:
        _log.warning("replies that waited in %s and are in the log now: %d", path, len(spooled.rows))
    if spooled.torn:
        _log.warning("replies in %s that a kill had cut off and are left out: %d", path, spooled.torn)


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
            call.created,
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
        created=row["created"],
    )


def _unpack_detail(packed: bytes) -> dict[str, Any]:
    return json.loads(zlib.decompress(packed))
