"""Workers: each opens what the work needs once, and then performs items; where they run, a subclass says.

Items and results are pickled. What opens a worker is a function that another process can import, with its arguments
(`functools.partial`); it gives, as a context, the function that performs an item. That returns the result or, where a
language model is to be asked, a task (llm/tasks.py) that does: the worker runs it from one question to the next, and
the questions are answered where the items come from, so that there is one client, one budget and one log.

A worker that is lost is begun anew, and what it was at is done again by any: its tasks are given the replies that they
had, so nothing is asked twice. An error in a worker is raised where the results are read, with its traceback as a note.
What a worker tells while it performs an item (`tell`) is passed on as it comes.
"""

import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, Self, TypeVar

from ..llm.tasks import LLMTask, NobodyAskedError, Task
from ..llm.types import Reply, Request
from ..subject.errors import NeuronautError

T = TypeVar("T", contravariant=True)
R = TypeVar("R", covariant=True)

OpenWorker = Callable[[], AbstractContextManager[Callable[[T], R | LLMTask[R]]]]
RETRIES = 3
"""How often an item is done again that workers were lost on."""
LOOK_SECONDS = 0.5
"""How often it is looked for what workers tell."""


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


class Begin(NamedTuple):
    """A worker is to begin an item."""

    number: int
    item: Any


class GoOn(NamedTuple):
    """A worker is to go on with an item whose questions are answered."""

    number: int
    replies: Sequence[Reply]


class Asked(NamedTuple):
    """What an item asks the language model next."""

    requests: Sequence[Request]


class Done(NamedTuple):
    """The result of an item."""

    result: Any


Answer = Asked | Done | Failure


class _Exchange(NamedTuple):
    requests: Sequence[Request]
    replies: Sequence[Reply]


class WorkerLostError(Exception):
    """A worker is gone; the message says how it ended."""


_send_told: Callable[[Any], object] | None = None
"""In a worker: the way to whoever runs its items."""


def tell(value: object) -> None:
    """In a worker: pass something on to whoever runs the items; elsewhere nothing."""
    if _send_told is not None:
        _send_told(value)


class Performer:
    """The inside of a worker: performs steps of items, of which several may be open."""

    def __init__(self, open_worker: OpenWorker[Any, Any], send_told: Callable[[Any], object]) -> None:
        """`send_told` is the way of what is told."""
        global _send_told
        _send_told = send_told
        self._stack, self._open_worker = ExitStack(), open_worker
        self._perform: Callable[[Any], Any] | None = None
        self._tasks: dict[int, LLMTask[Any]] = {}

    def open(self) -> Callable[[Any], Any]:
        """Open what the work needs, once."""
        self._perform = self._perform or self._stack.enter_context(self._open_worker())
        return self._perform

    def answer(self, step: Begin | GoOn) -> Answer:
        """Perform a step; a Failure where it raises."""
        try:
            if isinstance(step, Begin):
                result = self.open()(step.item)
                if not isinstance(result, Generator):
                    return Done(result)
                self._tasks[step.number] = result
                return Asked(next(result))
            return Asked(self._tasks[step.number].send(step.replies))
        except StopIteration as stop:
            self._tasks.pop(step.number)
            return Done(stop.value)
        except Exception as error:
            self._tasks.pop(step.number, None)
            return Failure.of(error, traceback.format_exc())


class Worker(Protocol):
    """One of several workers, which performs steps in the order in which they are sent."""

    def send(self, step: Begin | GoOn) -> Future[Answer]:
        """Have it perform a step; the future may raise WorkerLostError."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(slots=True)
class _Place:
    """Where a worker is, and after it is lost, the next one."""

    worker: Worker
    open: int = 0
    """Items that are begun and not done."""


class Workers(Generic[T, R]):
    """A few workers that perform items; a context, at whose end they are gone."""

    def __init__(
        self, number: int, start: Callable[[], Worker], *, on_tell: Callable[[Any], None] | None = None
    ) -> None:
        """Start so many, each with `start`; `on_tell` is given what they tell."""
        self._start, self._on_tell = start, on_tell
        self._places = [_Place(start()) for _ in range(number)]
        self._numbers = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for place in self._places:
            place.worker.close()

    def __len__(self) -> int:
        return len(self._places)

    def told(self) -> Iterator[Any]:
        """What workers have told since the last time."""
        raise NotImplementedError

    def perform(self, item: T) -> Task[R]:
        """Have a worker perform an item: a task, which asks what the worker's asks, and waits for it in between."""
        history: list[_Exchange] = []
        for left in reversed(range(RETRIES + 1)):
            place = min(self._places, key=lambda place: place.open)
            worker = place.worker
            place.open += 1
            try:
                return (yield from self._converse(worker, item, history))
            except WorkerLostError as error:
                if not left:
                    raise NeuronautError(
                        f"a worker was lost {RETRIES + 1} times on one item ({error}; -9 is often too little memory); "
                        "give the command again, with fewer of them (-j)"
                    ) from error
                if place.worker is worker:
                    worker.close()
                    place.worker = self._start()
            finally:
                place.open -= 1
        raise AssertionError("the last loss of a worker is raised")

    def _converse(self, worker: Worker, item: T, history: list[_Exchange]) -> Task[R]:
        """Perform an item by one worker; what was asked before is in `history`, to which the rest is added."""
        number, known = next(self._numbers), deque(history)
        history.clear()
        step: Begin | GoOn = Begin(number, item)
        while True:
            sent = worker.send(step)
            yield sent
            answer = sent.result()
            if isinstance(answer, Failure):
                answer.throw()
            if isinstance(answer, Done):
                return answer.result
            if known and known[0].requests == answer.requests:
                replies = known.popleft().replies
            else:
                known.clear()
                replies = yield answer.requests
            history.append(_Exchange(answer.requests, replies))
            step = GoOn(number, replies)

    def run(self, items: Iterable[T | None]) -> Iterator[R]:
        """The results of items that ask no language model, as they are done.

        None among the items: the next can be begun only when another is done. Raises what a worker raised.
        """
        remaining, more = iter(items), True
        at_work: dict[Future[Answer], Task[R]] = {}
        while True:
            while more and len(at_work) < len(self):
                more, item = next(((True, item) for item in remaining), (False, None))
                if item is None:
                    break
                task = self.perform(item)
                at_work[_wait_of(next(task))] = task
            if not at_work:
                return
            ended, _ = wait(at_work, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
            self._pass_on()
            for future in ended:
                task = at_work.pop(future)
                try:
                    at_work[_wait_of(next(task))] = task
                except StopIteration as stop:
                    yield stop.value

    def _pass_on(self) -> None:
        """Hand on what workers told."""
        for value in self.told():
            if self._on_tell is not None:
                self._on_tell(value)


def _wait_of(step: Future[Any] | Sequence[Request]) -> Future[Any]:
    """What a task waits for that asks nobody."""
    if not isinstance(step, Future):
        raise NobodyAskedError
    return step
