"""The corpus that every Python ships: the source code of its own standard library.

Tests are left out, and so are generated tables (code pages, pydoc's topics), which are not source
code and repeat each other. The order is that of the sorted relative paths, the same on every
machine with the same Python.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
)


def modules() -> Iterator[tuple[str, str]]:
    """Yield `(relative path, source)` of every standard-library module, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(_find_modules(root)):
        yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def _find_modules(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):
        # Installed packages, which may be many times as many files, are not looked into.
        inner[:] = set(inner) - LEFT_OUT
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def held_out(name: str) -> bool:
    """Whether a module (one in twenty, by the hash of its path) is kept from training the demo model."""
    return hashlib.sha256(name.encode()).digest()[0] < 256 // 20
