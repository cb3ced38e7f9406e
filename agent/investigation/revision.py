"""Which revision of this code is running, where it runs from its own repository."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

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
