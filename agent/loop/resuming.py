"""Going on with investigations: checkpoints and a lock in files beside the database, and the revision of this code.

A checkpoint of LangGraph says which node comes next, and nothing else is read from it: what an investigation knows is
in the journal, and forks copy decisions. So only the latest are kept, and the file stays small however long an
investigation goes on. The lock file of an investigation keeps a second process out.
"""

import sqlite3
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver

from ...subject.errors import NeuronautError

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig


KEPT = 4


class Latest(SqliteSaver):
    """Keeps the last KEPT checkpoints of each investigation."""

    def put(
        self,
        config: "RunnableConfig",
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> "RunnableConfig":
        """Saves a checkpoint, then drops those that are too old; ids rise with time."""
        saved = super().put(config, checkpoint, metadata, new_versions)
        thread = saved.get("configurable", {})["thread_id"]
        oldest = (
            "SELECT checkpoint_id FROM checkpoints WHERE thread_id = ?1 ORDER BY checkpoint_id DESC LIMIT 1 OFFSET ?2"
        )
        with self.cursor() as cursor:
            for table in ("checkpoints", "writes"):
                cursor.execute(
                    f"DELETE FROM {table} WHERE thread_id = ?1 AND checkpoint_id < ({oldest})", (thread, KEPT - 1)
                )
        return saved


@contextmanager
def checkpoints(path: str) -> Generator[BaseCheckpointSaver[Any]]:
    """Opens the checkpoints of the database at `path`; of one in memory they are in memory, too."""
    if path == ":memory:":
        yield InMemorySaver()
        return
    connection = sqlite3.connect(f"{path}.checkpoints", check_same_thread=False, timeout=60)
    try:
        # The log beside the file is emptied into it ten times as often as SQLite does by itself: 0.4 MB at most.
        connection.execute("PRAGMA wal_autocheckpoint = 100")
        yield Latest(connection)
    finally:
        connection.close()


@contextmanager
def hold_lock(path: str, id: str) -> Generator[None]:
    """Holds the investigation's lock; an error where another process has it. A database in memory has none."""
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


def is_running(path: str, id: str) -> bool:
    """Whether a process is at this investigation now, or that cannot be told."""
    if not Path(_lock(path, id)).exists():
        return False
    try:
        with hold_lock(path, id):
            return False
    except (NeuronautError, OSError):
        return True


def current_status(path: str, id: str, status: str) -> str:
    """The status of a session; `interrupted` where it is stored as running and no process is at it."""
    return "interrupted" if status == "running" and not is_running(path, id) else status


def _lock(path: str, id: str) -> str:
    return f"{path}.{id}.lock"


_ROOT = Path(__file__).parents[2]
_SECONDS = 10


@cache
def code_revision() -> dict[str, Any] | None:
    """`commit`, and `dirty`: whether files differ from it; None for an installed package, or where git is not there."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True, timeout=_SECONDS
    )
    return done.stdout.strip()
