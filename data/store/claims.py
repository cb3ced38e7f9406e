"""Claims: who is about to ask what, so that of two processes only one sends a request.

A request is claimed by its key before it is sent, and the claim goes in the transaction that records the reply. It is
a lease, renewed while the request is under way: one that ran out is free, and so is one whose process is gone, where
that can be told, which is on the same machine.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from secrets import token_hex
from socket import gethostname

LEASE_SECONDS = 120.0
"""Longer than another writer may keep the owner from renewing."""
RENEW_SECONDS = 5.0


@cache
def _machine() -> str:
    """This machine and, in a container, its numbering of processes."""
    try:
        return f"{gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return gethostname()


@dataclass(frozen=True, slots=True)
class Owner:
    """Who claims: one log of calls in one process."""

    token: str = field(default_factory=lambda: token_hex(8))
    machine: str = field(default_factory=_machine)
    pid: int = field(default_factory=os.getpid)


def claim(connection: sqlite3.Connection, keys: Sequence[str], owner: Owner) -> dict[str, str]:
    """Claim those of the keys that are free; returns who has the others, by key."""
    sql = "SELECT * FROM llm_claims WHERE owner <> ? AND key IN (SELECT value FROM json_each(?))"
    rows = connection.execute(sql, [owner.token, json.dumps(keys)]).fetchall()
    held = {row["key"]: _describe(row, owner) for row in rows if _stands(row, owner)}
    until = time.time() + LEASE_SECONDS
    connection.executemany(
        "INSERT OR REPLACE INTO llm_claims (key, owner, machine, pid, leased_until) VALUES (?, ?, ?, ?, ?)",
        ((key, owner.token, owner.machine, owner.pid, until) for key in keys if key not in held),
    )
    return held


def renew(connection: sqlite3.Connection, keys: Iterable[str], owner: Owner) -> None:
    """Prolong the owner's claims on these keys."""
    sql = "UPDATE llm_claims SET leased_until = ? WHERE owner = ? AND key IN (SELECT value FROM json_each(?))"
    connection.execute(sql, [time.time() + LEASE_SECONDS, owner.token, json.dumps(list(keys))])


def release(connection: sqlite3.Connection, keys: Iterable[str], owner: Owner) -> None:
    """Give up the owner's claims on these keys."""
    sql = "DELETE FROM llm_claims WHERE owner = ? AND key IN (SELECT value FROM json_each(?))"
    connection.execute(sql, [owner.token, json.dumps(list(keys))])


def _stands(row: sqlite3.Row, owner: Owner) -> bool:
    """Whether a claim of another is still one."""
    return row["leased_until"] > time.time() and (row["machine"] != owner.machine or _runs(row["pid"]))


def _runs(pid: int) -> bool:
    """Whether there is such a process; where the system cannot be asked without harm, there is."""
    if os.name != "posix":
        return True
    with suppress(OSError):
        # One that was killed stays in the list until its parent looks at it, in the state Z.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _describe(row: sqlite3.Row, owner: Owner) -> str:
    where = "" if row["machine"] == owner.machine else f" on {row['machine'].partition(' ')[0]}"
    return f"that another process ({row['pid']}{where}) has asked for"
