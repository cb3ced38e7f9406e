"""The spool: replies that could not be written into the database at once, in a file beside it.

A paid reply must not be lost because another process holds the database's lock. It is appended to FILE-spool as a line
of JSON, synced to the disk, and goes into the database with the next write to it. A line that was cut off by
a kill is no reply; it is left out, and counted.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from ...subject.errors import NeuronautError
from .database import Row


class Spooled(NamedTuple):
    """What is in a spool."""

    rows: list[Row]
    torn: int
    """Lines that were cut off."""


class Spool:
    """The spool of one database file."""

    def __init__(self, database: str) -> None:
        self.path = Path(f"{Path(database).resolve()}-spool")
        self._lock = f"{self.path}.lock"

    def exists(self) -> bool:
        """Whether anything waits."""
        return self.path.exists()

    def add(self, *rows: Mapping[str, object]) -> None:
        """Append rows; they are on the disk when this returns."""
        try:
            with FileLock(self._lock), self.path.open("a+b") as file:
                # After a line that was cut off, the next one begins a line of its own.
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                torn = file.read(1) not in (b"", b"\n")
                file.write(b"\n" * torn + b"".join(json.dumps(row).encode() + b"\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise NeuronautError(
                f"a reply is lost: the database is locked, and {self.path} cannot be written ({error.strerror}); "
                "make room there, then run the command again"
            ) from error

    def read(self) -> Spooled:
        """Read what waits."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return Spooled([], 0)
        rows = [_parse(line) for line in lines if line.strip()]
        whole = [row for row in rows if row is not None]
        return Spooled(whole, len(rows) - len(whole))

    @contextmanager
    def take(self) -> Iterator[Spooled]:
        """What waits, for a block that writes it elsewhere: after the block, but not after an exception, it is gone."""
        if not self.exists():
            yield Spooled([], 0)
            return
        with FileLock(self._lock):
            yield self.read()
            self.path.unlink(missing_ok=True)


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
