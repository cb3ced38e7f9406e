"""Opening a database file, transactions, and the one-line errors that replace SQLite's own.

A file is opened for writing where its permissions allow, and only for reading where they do not.
Every write happens inside `transaction`, which takes the write lock first, so that what a writer
reads there cannot change before it writes. Writers of other processes wait their turn, and one that
waits for long says so.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from ...subject.errors import NeuronautError

BUSY_SECONDS = 60
"""How long SQLite waits where a reader meets a lock."""
WRITE_SECONDS = 600.0
"""How long a writer waits for its turn, unless it has better things to do."""
_TRY_SECONDS = 1.0
"""How long a writer waits at a stretch, since an interrupt is noticed only in between."""
TELL_SECONDS = 3.0
"""After so long a wait for another process is told."""
CACHE_KIB = 32 * 1024
"""How much of a file a connection keeps in memory, at most: the inner pages of a database of a million features."""
_log = logging.getLogger(__name__)
Row = dict[str, Any]
"""A row by column, or what a command prints: names and plain JSON values."""


def connect(path: str, *, create: bool) -> Database:
    """Open the file at `path` (":memory:" for none), which may be new only with `create`."""
    if path == ":memory:":
        return _configure(sqlite3.connect(path, isolation_level=None, check_same_thread=False))
    file = Path(path).absolute()
    if file.is_dir():
        raise NeuronautError(f"{path} is a folder; wanted a database file, for example {path.rstrip('/')}/neuronaut.db")
    if not file.exists():
        _check_new(path, file, create)
    with translate_errors(path):
        db = _configure(
            sqlite3.connect(_uri(file), uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        )
        db.conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return db


def _check_new(path: str, file: Path, create: bool) -> None:
    if not create:
        raise NeuronautError(f"there is no database {path}; make it with: neuronaut harvest MODEL SITE -d {path}")
    if not file.parent.is_dir():
        raise NeuronautError(f"there is no folder {file.parent} for the database; make it, or name another file")
    if not os.access(file.parent, os.W_OK):
        raise NeuronautError(f"the folder {file.parent} cannot be written to; name a database file elsewhere")


def _uri(file: Path) -> str:
    writable_folder = os.access(file.parent, os.W_OK)
    if not file.exists() or (os.access(file, os.W_OK) and writable_folder):
        return file.as_uri()
    # A write-ahead log needs files beside the database; where none can be made, and none holds
    # unfinished work, the file is promised not to change.
    immutable = not writable_folder and not file.with_name(file.name + "-wal").exists()
    return f"{file.as_uri()}?mode=ro" + ("&immutable=1" if immutable else "")


def _configure(connection: sqlite3.Connection) -> Database:
    db = Database(connection, execute_plugins=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return db


class BusyError(NeuronautError):
    """Another process has held the lock for longer than a writer would wait."""


@contextmanager
def transaction(db: Database, path: str, *, patience: float = WRITE_SECONDS) -> Iterator[sqlite3.Connection]:
    """Hold the write lock; all of the block is written, or nothing. Blocks may be nested.

    After `patience` seconds without the lock, a BusyError.
    """
    if db.conn.in_transaction:
        yield db.conn
        return
    with translate_errors(path):
        _begin(db.conn, path, patience)
        try:
            yield db.conn
        # An interrupt, too, leaves nothing half written.
        except BaseException:
            if db.conn.in_transaction:
                db.conn.execute("ROLLBACK")
            raise
        db.conn.execute("COMMIT")


def _begin(connection: sqlite3.Connection, path: str, patience: float) -> None:
    """Take the write lock."""
    began, told = time.monotonic(), False
    connection.execute(f"PRAGMA busy_timeout = {round(1000 * min(patience, _TRY_SECONDS))}")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                waited = time.monotonic() - began
                if not _is_busy(error) or waited >= patience:
                    raise
                if waited >= TELL_SECONDS and not told:
                    _log.warning("waits for another process that is writing to %s", path)
                    told = True
    finally:
        connection.execute(f"PRAGMA busy_timeout = {1000 * BUSY_SECONDS}")


def _is_busy(error: sqlite3.Error) -> bool:
    return (error.sqlite_errorcode & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def keep_write_ahead_log(db: Database, path: str) -> None:
    """Write to a log beside the file from now on, so that readers and a writer never wait for each other."""
    # SQLite gives up on this pragma at once where another process is at the file, whatever the timeout.
    locked = retry_if_exception(lambda error: isinstance(error, sqlite3.OperationalError) and _is_busy(error))
    patient = Retrying(retry=locked, stop=stop_after_delay(BUSY_SECONDS), wait=wait_random(0.01, 0.05), reraise=True)
    with translate_errors(path):
        patient(db.conn.execute, "PRAGMA journal_mode = WAL")


@contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Turn those of SQLite's errors that a user can mend into one line each."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        message = str(error)
        if isinstance(error, sqlite3.OperationalError) and _is_busy(error):
            raise BusyError(f"{path}: {_BUSY} (SQLite: {message})") from error
        for sign, advice in _ADVICE.items():
            if sign in message:
                raise NeuronautError(f"{path}: {advice} (SQLite: {message})") from error
        raise


_BUSY = "another process has been writing for too long; wait for it, then run the command again"
_ADVICE = {
    "not a database": "this is not a Neuronaut database; name another file",
    "malformed": "the database is damaged; restore a backup, or harvest into a new file",
    "disk I/O error": "the disk could not be read or written; check it, then run the command again",
    "readonly": "the database can only be read; change its permissions, or write to a copy",
    "unable to open": "the database cannot be opened; check the permissions of the file and its folder",
    "Could not decode": "a text in it is no UTF-8; neuronaut sessions replay ID names it if it is a session's",
    "disk is full": "the disk is full; make room, then run the command again",
}
