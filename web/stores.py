"""The database as the server reads it: a few open stores, each lent to one request at a time."""

import os
import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

from ..data.store.store import Store

READERS = 4
"""Stores open at a time; further requests wait for one."""


T = TypeVar("T")


class _Remembered(NamedTuple):
    stamp: tuple[int, ...]
    made: float
    took: float
    value: Any


PATIENCE = 20.0
"""What took a second to read is read again after so many seconds at the earliest, while the database changes."""


class Stores:
    """A database's open stores, made when first needed."""

    def __init__(self, database: str) -> None:
        self.database = database
        self._free: queue.LifoQueue[Store | None] = queue.LifoQueue()
        for _ in range(READERS):
            self._free.put(None)
        self._remembered: dict[str, _Remembered] = {}
        self._making = threading.Lock()

    def remember(self, name: str, read: Callable[[Store], T]) -> T:
        """What `read` says of the database, read again only where the file has changed."""
        with self._making:
            known, stamp, now = self._remembered.get(name), self._stamp(), time.monotonic()
            if known is not None and (known.stamp == stamp or now - known.made < PATIENCE * known.took):
                return known.value
            with self.reading() as store:
                value = read(store)
            took = time.monotonic() - now
            self._remembered[name] = _Remembered(stamp, now, took, value)
            return value

    def _stamp(self) -> tuple[int, ...]:
        """What changes when the file or its write-ahead log is written to."""
        stamp: list[int] = []
        for path in (self.database, f"{self.database}-wal"):
            with suppress(OSError):
                status = os.stat(path)
                stamp += [status.st_mtime_ns, status.st_size]
        return tuple(stamp)

    @contextmanager
    def reading(self) -> Generator[Store]:
        """A store that refuses to write."""
        store = self._free.get()
        try:
            if store is None:
                store = Store(self.database, create=False)
                store.refuse_writes()
            yield store
        finally:
            self._free.put(store)

    @contextmanager
    def writing(self) -> Generator[Store]:
        """A store of its own that writes."""
        with Store(self.database, create=False) as store:
            yield store

    def close(self) -> None:
        """Close those that are not lent out."""
        while not self._free.empty():
            if (store := self._free.get_nowait()) is not None:
                store.close()
