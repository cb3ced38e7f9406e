"""Commands that the server runs in a process of their own: `neuronaut investigate`, as it is typed.

So a session that was started by a button and one that was started by hand are the same, and either goes on with the
other. What a command prints is told line by line, and before its first result what it says beside it; Ctrl-C is what a
cancelled one gets, so that it stops cleanly.
"""

import io
import runpy
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from ..subject.errors import NeuronautError
from .worker import Perform, Tell

PACKAGE = (__package__ or "").partition(".")[0]
INTERRUPTED = 130
LONGEST = 1000
"""Characters of a line that is told before the first result."""
FAILED = (1, 2)
"""Exit codes of errors; what a command found out may have others."""


@contextmanager
def open_commands() -> Iterator[Perform]:
    """Give the function that runs a verb with its `arguments`."""
    yield run_command


def run_command(verb: str, arguments: Mapping[str, Any], tell: Tell) -> int:
    """Run a verb; `tell` hears each line of results, and before the first one what it says. Returns its exit code.

    Raises NeuronautError with what it said where that is an error's, and KeyboardInterrupt where it was interrupted.
    """
    said: deque[str] = deque(maxlen=20)
    results = False

    def tell_result(line: str) -> None:
        nonlocal results
        results = True
        tell(line)

    def tell_beside(line: str) -> None:
        # Of a bar that is drawn again and again, the last; threads of libraries have no way to the server.
        said.append(last := line.rpartition("\r")[2][:LONGEST])
        if not results and threading.current_thread() is threading.main_thread():
            tell(last)

    before = sys.argv
    sys.argv = [PACKAGE, verb, *arguments["arguments"]]
    try:
        with redirect_stdout(_Lines(tell_result)), redirect_stderr(_Lines(tell_beside)):
            runpy.run_module(PACKAGE, run_name="__main__", alter_sys=False)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = before
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code in FAILED:
        error = next((line for line in reversed(said) if line.startswith("Error: ")), "")
        raise NeuronautError(error.removeprefix("Error: ") or f"{verb} ended with exit code {code}")
    return code


class _Lines(io.TextIOBase):
    """A stream that passes on whole lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line, self._rest = on_line, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(None, lines):
            self._on_line(line)
        return len(text)
