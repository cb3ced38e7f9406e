"""LangGraph's checkpoints in a file beside the database, of which only the latest are kept.

A checkpoint says which node comes next, and nothing else is read from it: what an investigation knows is in the
journal, and forks copy decisions. So the file stays small however long an investigation goes on.
"""

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

KEPT = 4


class Latest(SqliteSaver):
    """Keeps the last KEPT checkpoints of each investigation."""

    def put(
        self, config: "RunnableConfig", checkpoint: Checkpoint, metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> "RunnableConfig":  # fmt: skip
        """Save a checkpoint, then drop those that are too old. Ids rise with time."""
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
    """The checkpoints of the database at `path`; of one in memory they are in memory, too."""
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
