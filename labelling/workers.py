"""Worker processes: each opens what the work needs once, and then performs one item after the other.

Items and results are pickled. What a worker tells while it performs an item (`tell`) is passed on as it comes. What
opens a worker is a function that another process can import, with its arguments (`functools.partial`); it gives, as a
context, the function that performs an item. An error in a worker is raised where the results are read, with the
worker's traceback as a note. A worker ends when its parent does, however that ends.
"""

import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, NamedTuple, NoReturn, Self, TypeVar

from ..subject.errors import NeuronautError

T = TypeVar("T", contravariant=True)
R = TypeVar("R", covariant=True)

OpenWorker = Callable[[], AbstractContextManager[Callable[[T], R]]]
ENDING_SECONDS = 5.0
"""Seconds after which a worker that was told to end is killed."""


class Failure(NamedTuple):
    """What went wrong in a worker; not the exception, which may not be pickled."""

    expected: bool
    """Whether it was a NeuronautError."""
    message: str
    trace: str

    @classmethod
    def of(cls, error: Exception, trace: str) -> "Failure":
        """What an exception says, with its traceback."""
        expected = isinstance(error, NeuronautError)
        return cls(expected, str(error) if expected else f"{type(error).__name__}: {error}", trace)

    def throw(self) -> NoReturn:
        """Raise it, with the worker's traceback as a note."""
        error = (NeuronautError if self.expected else RuntimeError)(self.message)
        error.add_note(self.trace)
        raise error


class _Told(NamedTuple):
    """What a worker says while it performs an item."""

    value: object


_send_told: Callable[[Any], object] | None = None
"""In a worker: the way to whoever runs its items."""


def tell(value: object) -> None:
    """In a worker: pass something on to whoever runs the items; elsewhere nothing."""
    if _send_told is not None:
        _send_told(value)


def redirect_told(send: Callable[[Any], object]) -> None:
    """In a worker: set where `tell` sends what is told."""
    global _send_told
    _send_told = send


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection


class Workers(Generic[T, R]):
    """A few processes that perform items; a context, at whose end they are gone.

    >>> with Workers(2, open_worker) as workers:
    ...     sorted(workers.run([1, 2, 3]))
    [10, 20, 30]
    """

    def __init__(
        self,
        count: int,
        open_worker: OpenWorker[T, R],
        *,
        threads: int | None = None,
        on_tell: Callable[[Any], None] | None = None,
    ) -> None:
        """Start `count` processes, each with `threads` threads of PyTorch, by default its share of the cores."""
        self._on_tell = on_tell
        self._threads = threads or max(1, (os.cpu_count() or 1) // count)
        # A fork of a process that has used threads may hang.
        context = get_context("spawn")
        self._workers: list[_Worker] = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, open_worker, self._threads), daemon=True)
            process.start()
            theirs.close()
            # Windows has a class of its own for pipes, with the same methods.
            self._workers.append(_Worker(process, ours))  # pyright: ignore[reportArgumentType]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(ENDING_SECONDS)
            if worker.process.exitcode is None:
                worker.process.kill()
            worker.connection.close()

    def run(self, items: Iterable[T | None]) -> Iterator[R]:
        """The results of the items as they are done.

        None among the items: the next can be begun only when another is done. Raises what a worker raised, and
        NeuronautError where one is gone.
        """
        remaining, more = iter(items), True
        idle, busy = list(self._workers), dict[Connection, _Worker]()
        while True:
            while more and idle:
                more, item = next(((True, item) for item in remaining), (False, None))
                if item is None:
                    break
                worker = idle.pop()
                _send(worker, item)
                busy[worker.connection] = worker
            if not busy:
                return
            for connection in wait(list(busy)):
                worker = busy[connection]  # pyright: ignore[reportArgumentType]
                answer = self._receive(worker)
                if isinstance(answer, _Told):
                    if self._on_tell is not None:
                        self._on_tell(answer.value)
                    continue
                del busy[worker.connection]
                idle.append(worker)
                yield answer

    def _receive(self, worker: _Worker) -> R | _Told:
        try:
            answer = worker.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            worker.process.join(ENDING_SECONDS)
            raise NeuronautError(
                f"a worker process is gone (exit code {worker.process.exitcode}; -9 is often too little memory); "
                "give the command again, with fewer of them (-j)"
            ) from error
        if isinstance(answer, Failure):
            answer.throw()
        return answer


def _send(worker: _Worker, item: object) -> None:
    # One that is gone is found out when its result is read.
    with suppress(BrokenPipeError):
        worker.connection.send(item)


def _serve(connection: Connection, open_worker: OpenWorker[T, R], threads: int) -> None:
    """Perform items until the parent is gone."""
    import torch

    redirect_told(lambda value: connection.send(_Told(value)))
    # An interrupt from the keyboard reaches the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        with open_worker() as perform:
            while True:
                item = connection.recv()
                connection.send(perform(item))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        with suppress(BrokenPipeError):
            connection.send(Failure.of(error, traceback.format_exc()))
