"""Tasks: code that asks a language model, written as if every answer were there at once.

A task is a generator: it yields the requests that it needs next, all of them together, and is sent their
replies in the same order; its return value is its result. So it neither waits nor knows of threads,
retries, caches or budgets. `gather` runs many side by side, and `LLMClient` (client.py) answers.
"""

from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from ..subject.errors import NeuronautError
from .types import Reply, Request

T = TypeVar("T")

LLMTask = Generator[Sequence[Request], Sequence[Reply], T]
"""Yields requests, receives their replies in order, returns a T."""
Task = Generator[Sequence[Request] | Future[Any], Sequence[Reply], T]
"""The same of a task that may also wait for work elsewhere: it yields a future, and goes on when that is done."""


class NobodyAskedError(NeuronautError):
    """A task asks a language model, and none was named."""

    def __init__(self) -> None:
        super().__init__("this explainer or scorer asks a language model; name one, for example -m openai:MODEL")


def run_task(value: list[T] | LLMTask[list[T]]) -> LLMTask[list[T]]:
    """Returns the list, or runs the task and returns its result."""
    return value if isinstance(value, list) else (yield from value)


def gather(parts: Sequence[LLMTask[T]]) -> LLMTask[list[T]]:
    """Run tasks side by side; each round asks what all unfinished tasks need in one batch of requests."""
    results: dict[int, T] = {}
    waiting: dict[int, Sequence[Request]] = {}

    def advance(index: int, replies: Sequence[Reply] | None) -> None:
        try:
            waiting[index] = next(parts[index]) if replies is None else parts[index].send(replies)
        except StopIteration as stop:
            results[index] = stop.value

    for index in range(len(parts)):
        advance(index, None)
    while waiting:
        batch = dict(waiting)
        waiting.clear()
        replies = yield [request for requests in batch.values() for request in requests]
        start = 0
        for index, requests in batch.items():
            advance(index, replies[start : start + len(requests)])
            start += len(requests)
    return [results[index] for index in range(len(parts))]
