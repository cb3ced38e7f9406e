"""The database as the server reads it: a few open stores, each lent to one request at a time."""

import queue
from collections.abc import Generator
from contextlib import contextmanager

from ..data.store.store import Store

READERS = 4
"""Stores open at a time; further requests wait for one."""


class Stores:
    """A database's open stores, made when first needed."""

    def __init__(self, database: str) -> None:
        self.database = database
        self._free: queue.LifoQueue[Store | None] = queue.LifoQueue()
        for _ in range(READERS):
            self._free.put(None)

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
