"""One process at a time: a lock file beside the database for each investigation."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ...subject.errors import NeuronautError


@contextmanager
def alone(path: str, id: str) -> Generator[None]:
    """Hold the investigation's lock; an error where another process has it. A database in memory has none."""
    if path == ":memory:":
        yield
        return
    lock = FileLock(_lock(path, id))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise NeuronautError(
            f"investigation {id} is running in another process; wait for it, or stop it, then run this again"
        ) from None
    try:
        yield
    finally:
        lock.release()


def under_way(path: str, id: str) -> bool:
    """Whether a process is at this investigation now, or that cannot be told."""
    if not Path(_lock(path, id)).exists():
        return False
    try:
        with alone(path, id):
            return False
    except (NeuronautError, OSError):
        return True


def _lock(path: str, id: str) -> str:
    return f"{path}.{id}.lock"
