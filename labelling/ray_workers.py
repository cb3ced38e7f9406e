"""Workers on a Ray cluster: an actor each, that opens what the work needs once and performs one item after the other.

They keep the contract of `workers.Workers`. An actor that is lost, with its process or with its machine, is begun anew
and given its item again, `RETRIES` times at most for one item. What workers `tell` comes through a queue.
"""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Generic, Self

from ..subject.errors import NeuronautError
from .workers import Failure, OpenWorker, R, T, redirect_told

RETRIES = 3
POLL_SECONDS = 0.5


class RayWorkers(Generic[T, R]):
    """Actors of a Ray cluster that perform items; a context, at whose end they are gone."""

    def __init__(
        self,
        count: int,
        open_worker: OpenWorker[T, R],
        *,
        address: str | None = None,
        on_tell: Callable[[Any], None] | None = None,
    ) -> None:
        """Start `count` actors on the cluster at `address`, or on one of this machine's own where that is None.

        Each has one GPU where the cluster has any. Raises NeuronautError where Ray is not installed or not there.
        """
        self._ray, self._on_tell, self._open_worker = _start_ray(count, address), on_tell, open_worker
        from ray.util.queue import Queue

        self._told = Queue(actor_options={"num_cpus": 0})
        gpus = min(1, int(self._ray.cluster_resources().get("GPU", 0)))
        options = {"num_cpus": 0 if address is None else 1, "num_gpus": gpus, "max_restarts": 0}
        self._actor = self._ray.remote(_Actor).options(**options)
        self._actors = [self._start() for _ in range(count)]

    def _start(self) -> Any:
        return self._actor.remote(self._open_worker, self._told)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()

    def run(self, items: Iterable[T | None]) -> Iterator[R]:
        """The results of the items as they are done; see `Workers.run`."""
        remaining, more = iter(items), True
        idle, busy = list(self._actors), dict[Any, tuple[Any, T, int]]()
        while True:
            while more and idle:
                more, item = next(((True, item) for item in remaining), (False, None))
                if item is None:
                    break
                actor = idle.pop()
                busy[actor.perform.remote(item)] = actor, item, 0
            if not busy:
                return
            ready, _ = self._ray.wait(list(busy), timeout=POLL_SECONDS)
            self._pass_on()
            for reference in ready:
                actor, item, tries = busy.pop(reference)
                try:
                    answer = self._ray.get(reference)
                except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError) as error:
                    actor = self._replace(actor, tries, error)
                    busy[actor.perform.remote(item)] = actor, item, tries + 1
                    continue
                idle.append(actor)
                if isinstance(answer, Failure):
                    answer.throw()
                yield answer

    def _replace(self, lost: Any, tries: int, error: Exception) -> Any:
        """Another actor in the place of a lost one."""
        if tries == RETRIES:
            raise NeuronautError(
                f"a Ray worker was lost {RETRIES + 1} times on one item, often for want of memory; give the command "
                "again, with fewer workers (-j)"
            ) from error
        fresh = self._start()
        self._actors[self._actors.index(lost)] = fresh
        return fresh

    def _pass_on(self) -> None:
        """Hand on what workers told."""
        for value in self._told.get_nowait_batch(self._told.qsize()):
            if self._on_tell is not None:
                self._on_tell(value)


class _Actor:
    """A worker, in a process of Ray's."""

    def __init__(self, open_worker: OpenWorker[Any, Any], told: Any) -> None:
        redirect_told(told.put)
        self._stack = ExitStack()
        self._open_worker = open_worker
        self._perform: Callable[[Any], Any] | None = None

    def perform(self, item: Any) -> Any:
        """Perform an item; a Failure where it raises."""
        try:
            if self._perform is None:
                self._perform = self._stack.enter_context(self._open_worker())
            return self._perform(item)
        except Exception as error:
            return Failure.of(error, traceback.format_exc())


def _start_ray(count: int, address: str | None) -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise NeuronautError("--on ray needs Ray; install it with: pip install 'neuronaut[ray]'") from error
    own: dict[str, Any] = {"num_cpus": count, "include_dashboard": False} if address is None else {"address": address}
    try:
        ray.init(**own, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise NeuronautError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or give --on ray"
        ) from error
    return ray
