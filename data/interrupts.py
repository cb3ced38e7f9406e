"""Interrupts that wait until what is under way is whole, so that work that is stopped loses nothing of what it did."""

import signal
import threading
from multiprocessing import parent_process
from types import FrameType
from typing import Any, Self


class Interrupts:
    """Within it the first SIGINT or SIGTERM is noted, and delivered at its end; a second one is delivered at once.

    Handlers belong to the main thread: in another one it notes nothing, nor in a worker, which its parent ends. A
    signal that is ignored stays so. Where an error ends the work, that goes before the signal.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._waiting: int | None = None
        self._ended = False
        self.came = False
        """Whether one was noted: keep what there is, and end."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread() and parent_process() is None:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.getsignal(number)
                    signal.signal(number, self._note)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._ended = True
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._waiting is not None and error is None:
            signal.raise_signal(self._waiting)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.came and not self._ended:
            self.came, self._waiting = True, number
            return
        self._waiting = None
        handler = self._before[number]
        if callable(handler):
            handler(number, frame)
        else:
            signal.signal(number, handler)
            signal.raise_signal(number)
