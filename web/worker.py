"""The model process: a child that performs requests one after another, can be told to stop one, and ends with us.

The server itself never loads a model: the child does, at the first request. A request that is cancelled is interrupted
between two operations of Python, as Ctrl-C interrupts a command, so that hooks are taken off and the child goes on with
what it has loaded; one that does not stop within `GRACE_SECONDS` ends with its child. A child that is gone is started
again by the next request. A thread of the child reads what the parent sends, so the end of the parent, however it came,
is the end of the child, in the middle of a request too.
"""

import _thread
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from ..subject.errors import NeuronautError

Tell = Callable[[str], None]
"""Hears in a line what is being done."""
Perform = Callable[[str, Mapping[str, Any], Tell], Any]
"""Performs an operation with its arguments, and returns what can be pickled."""
OpenPerform = Callable[[], AbstractContextManager[Perform]]
"""What the child opens once; a function that another process can import."""

GRACE_SECONDS = 10.0
"""Seconds after which a request that was cancelled, and goes on, is ended with its process."""


class Request(NamedTuple):
    """What the child is to do."""

    number: int
    operation: str
    arguments: Mapping[str, Any]


class _Cancel(NamedTuple):
    number: int


class _Progress(NamedTuple):
    number: int
    text: str


class _Done(NamedTuple):
    number: int
    result: Any


class _Failed(NamedTuple):
    """An error or, with a message of None, that it was cancelled; not the exception, which may not be pickled."""

    number: int
    message: str | None
    expected: bool = True
    """Whether it was a NeuronautError."""


class CancelledError(Exception):
    """The request was cancelled."""


class ProcessGoneError(NeuronautError):
    """The process ended in the middle of the request."""


class ModelProcess:
    """A child process that performs requests; `perform` is for one thread, `cancel` and `close` are for any."""

    def __init__(self, open_perform: OpenPerform) -> None:
        self._open = open_perform
        self._process: BaseProcess | None = None
        self._connection: Any = None
        self._lock = threading.Lock()
        self._cancelled: set[int] = set()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the child; None where none runs."""
        process = self._process
        return process.pid if process is not None and process.is_alive() else None

    def perform(self, request: Request, tell: Tell) -> Any:
        """Have the child perform a request, and start it where there is none; `tell` hears how it goes.

        Raises CancelledError, ProcessGoneError, NeuronautError with the child's words, and RuntimeError for any other
        error in it.
        """
        answer = self._exchange(request, tell)
        if answer is None:
            # A child that had ended before it took the request in is no fault of the request.
            answer = self._exchange(request, tell)
        if answer is None:
            raise ProcessGoneError(self._bury())
        if isinstance(answer, _Failed):
            if answer.message is None:
                raise CancelledError
            raise (NeuronautError if answer.expected else RuntimeError)(answer.message)
        return answer.result

    def _exchange(self, request: Request, tell: Tell) -> _Done | _Failed | None:
        """The child's answer; None where it ended before the request was begun."""
        begun = False
        try:
            connection = self._send(request, tell)
            while isinstance(answer := connection.recv(), _Progress):
                begun = True
                tell(answer.text)
        except (EOFError, OSError) as error:
            if begun:
                raise ProcessGoneError(self._bury()) from error
            self._bury()
            return None
        return answer

    def cancel(self, number: int) -> None:
        """Interrupt this request, or see to it that it is not begun."""
        with self._lock, suppress(OSError):
            self._cancelled.add(number)
            if self._connection is not None:
                self._connection.send(_Cancel(number))

    def kill(self) -> None:
        """End the child at once; what it is at ends with ProcessGoneError."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """End the child, and start none any more."""
        self._closed = True
        self.kill()
        if self._process is not None:
            self._process.join(GRACE_SECONDS)
            self._connection.close()

    def _send(self, request: Request, tell: Tell) -> Any:
        """Send a request, to a new child where none runs, and return the connection."""
        with self._lock:
            if self._closed or request.number in self._cancelled:
                raise CancelledError
            if self._process is None or not self._process.is_alive():
                tell("starting the model process")
                self._start()
            self._connection.send(request)
            return self._connection

    def _start(self) -> None:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._open), daemon=True)
        self._process.start()
        theirs.close()
        if self._connection is not None:
            self._connection.close()
        self._connection = ours

    def _bury(self) -> str:
        """Forget the child that is gone, and say so."""
        code = None
        if self._process is not None:
            self._process.join(GRACE_SECONDS)
            code = self._process.exitcode
        return (
            f"the model process ended in the middle of this request (exit code {code}; -9 is often too little memory); "
            "the next request starts it again: ask for less, or once more"
        )


class _Interrupter:
    """Interrupts the main thread of the child while it is at a request that was cancelled, and never else."""

    def __init__(self) -> None:
        self._current: int | None = None
        self._cancelled: set[int] = set()
        # Ctrl-C in a terminal reaches the whole group of processes; it is the parent's to obey.
        signal.signal(signal.SIGINT, self._handle)

    def cancel(self, number: int) -> None:
        """Interrupt this request, now or when it is begun; called by the thread that reads."""
        self._cancelled.add(number)
        if self._current == number:
            _thread.interrupt_main()

    @contextmanager
    def at(self, number: int) -> Generator[None]:
        """A block that is interrupted with KeyboardInterrupt if this request is cancelled."""
        if number in self._cancelled:
            raise KeyboardInterrupt
        self._current = number
        try:
            yield
        finally:
            self._current = None
            self._cancelled.discard(number)

    @contextmanager
    def held(self, number: int) -> Generator[None]:
        """A block inside `at` that is whole: an interrupt waits for its end."""
        self._current = None
        yield
        self._current = number
        self._handle()

    def _handle(self, *_: object) -> None:
        if self._current in self._cancelled:
            # Once: what is cleaned up on the way out is not interrupted again.
            self._current = None
            raise KeyboardInterrupt


def _serve(connection: Connection, open_perform: OpenPerform) -> None:
    """Perform requests until the parent is gone."""
    interrupter, requests = _Interrupter(), queue.SimpleQueue[Request]()
    threading.Thread(target=_read, args=(connection, requests, interrupter), daemon=True).start()
    while True:
        request = requests.get()
        try:
            with open_perform() as perform:
                while True:
                    connection.send(_answer(request, perform, connection, interrupter))
                    request = requests.get()
        except Exception as error:
            # What cannot be opened is the answer to the request that wanted it; the next one tries again.
            connection.send(_failure(request.number, error))


def _read(connection: Connection, requests: "queue.SimpleQueue[Request]", interrupter: _Interrupter) -> None:
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        if isinstance(message, _Cancel):
            interrupter.cancel(message.number)
        else:
            requests.put(message)


def _answer(request: Request, perform: Perform, connection: Connection, interrupter: _Interrupter) -> _Done | _Failed:
    number = request.number

    def tell(text: str) -> None:
        # Half a message would garble all that come after it.
        with interrupter.held(number):
            connection.send(_Progress(number, text))

    try:
        with interrupter.at(number):
            tell("begun")
            return _Done(number, perform(request.operation, request.arguments, tell))
    except KeyboardInterrupt:
        return _Failed(number, None)
    except Exception as error:
        return _failure(number, error)


def _failure(number: int, error: Exception) -> _Failed:
    if isinstance(error, NeuronautError):
        return _Failed(number, " ".join(str(error).split()))
    print(traceback.format_exc(), file=sys.stderr)  # noqa: T201
    return _Failed(number, f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}", expected=False)
