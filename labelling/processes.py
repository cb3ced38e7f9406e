"""Workers that are processes of this machine (see workers.py). One ends when its parent does, however that ends."""

import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from .workers import Answer, Begin, GoOn, OpenWorker, Performer, R, T, WorkerLostError, Workers

ENDING_SECONDS = 5.0
"""Seconds after which a worker that was told to end is killed."""


class _Told(NamedTuple):
    """What a worker says while it performs an item."""

    value: object


class Processes(Workers[T, R]):
    """A few processes that perform items.

    >>> with Processes(2, open_worker) as workers:
    ...     sorted(workers.run([1, 2, 3]))
    [10, 20, 30]
    """

    def __init__(
        self,
        number: int,
        open_worker: OpenWorker[T, R],
        *,
        threads: int | None = None,
        on_tell: Callable[[Any], None] | None = None,
    ) -> None:
        """Start so many, each with `threads` threads of PyTorch, by default its share of the cores."""
        share, told = threads or max(1, (os.cpu_count() or 1) // number), queue.SimpleQueue[Any]()
        self._told = told
        super().__init__(number, lambda: _Process(open_worker, share, told), on_tell=on_tell)

    def told(self) -> Iterator[Any]:
        """What workers have told since the last time."""
        with suppress(queue.Empty):
            while True:
                yield self._told.get_nowait()


class _Process:
    """One process. A thread of ours reads what it answers, and a thread of its own what we send: neither waits long."""

    def __init__(self, open_worker: OpenWorker[Any, Any], threads: int, told: queue.SimpleQueue[Any]) -> None:
        # A fork of a process that has used threads may hang.
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, open_worker, threads), daemon=True)
        self._process.start()
        theirs.close()
        # Windows has a class of its own for pipes, with the same methods.
        self._connection: Connection = ours  # pyright: ignore[reportAttributeAccessIssue]
        self._told, self._lock, self._lost = told, threading.Lock(), ""
        self._waiting = deque[Future[Answer]]()
        self._reader = threading.Thread(target=self._read, name="worker", daemon=True)
        self._reader.start()

    def send(self, step: Begin | GoOn) -> Future[Answer]:
        """Have it perform a step."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._lost:
                future.set_exception(WorkerLostError(self._lost))
                return future
            self._waiting.append(future)
        # One that is gone is found out when its answer is read.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(step)
        return future

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.join(ENDING_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
        self._reader.join(ENDING_SECONDS)
        self._connection.close()

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                answer = self._connection.recv()
                if isinstance(answer, _Told):
                    self._told.put(answer.value)
                else:
                    self._waiting.popleft().set_result(answer)
        self._process.join(ENDING_SECONDS)
        with self._lock:
            self._lost = f"a process ended with exit code {self._process.exitcode}"
        for future in self._waiting:
            future.set_exception(WorkerLostError(self._lost))


def _serve(connection: Connection, open_worker: OpenWorker[Any, Any], threads: int) -> None:
    """Perform steps until the parent is gone."""
    import torch

    # An interrupt from the keyboard reaches the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    performer, steps = Performer(open_worker, lambda value: connection.send(_Told(value))), queue.SimpleQueue[Any]()
    threading.Thread(target=_take, args=(connection, steps), daemon=True).start()
    with suppress(Exception):
        # Before there is anything to do; what cannot be opened is the answer to the first step.
        performer.open()
    while True:
        connection.send(performer.answer(steps.get()))


def _take(connection: Connection, steps: queue.SimpleQueue[Any]) -> None:
    """Take what is to be done; the end of the parent is the end of this process, in the middle of a step too."""
    with suppress(EOFError, OSError):
        while True:
            steps.put(connection.recv())
    os._exit(0)
