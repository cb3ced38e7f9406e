"""Commands as processes of their own: their wall and CPU time, peak memory, and what they leave on disk.

Linux counts the memory of whoever starts a process as the first of its own, so that this file, run by a small
interpreter, stands between: `python processes.py FIGURES COMMAND…`.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Run(NamedTuple):
    """One process with its children: seconds, CPU seconds, the largest peak memory of one in MB, and stdout."""

    seconds: float
    cpu_seconds: float
    peak_mb: int
    printed: str


def run_command(command: Sequence[str], *, threads: int = 1) -> Run:
    """Run a command offline with so many threads to its end; ends this program with its last words where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        between = [sys.executable, "-I", "-S", __file__, str(figures)]
        done = subprocess.run([*between, *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command[:4])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return Run(*json.loads(figures.read_text()), printed=done.stdout)


def disk_mb(path: Path) -> float:
    """Megabytes of a file or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def _stand_between(figures: str, *command: str) -> int:
    begun = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    seconds = time.monotonic() - begun
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(figures).write_text(json.dumps([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024]))
    return code


if __name__ == "__main__":
    sys.exit(_stand_between(*sys.argv[1:]))
