"""Interrupts that wait until what is under way is whole, so that work that is stopped loses nothing of what it did."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupts:
    """Within it the first SIGINT or SIGTERM is noted, and delivered at its end; a second one is delivered at once.

    Handlers belong to the main thread: in another one it notes nothing. A signal that is ignored stays so.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._came: int | None = None

    @property
    def came(self) -> bool:
        """Whether one waits: keep what there is, and end."""
        return self._came is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        waiting = self._came if self._before else None  # a second one was delivered
        self._restore()
        if waiting is not None:
            signal.raise_signal(waiting)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._came is None:
            self._came = number
        else:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
