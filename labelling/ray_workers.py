"""Workers that are actors of a Ray cluster (see workers.py). What they tell comes through a queue."""

import logging
import os
import signal
import socket
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from ..llm.tasks import LLMTask
from ..subject.errors import NeuronautError
from .workers import Answer, Begin, GoOn, OpenWorker, Performer, R, T, WorkerLostError, Workers


class RayWorkers(Workers[T, R]):
    """Actors of a Ray cluster that perform items."""

    def __init__(
        self,
        number: int,
        open_worker: OpenWorker[T, R],
        *,
        address: str | None = None,
        on_tell: Callable[[Any], None] | None = None,
    ) -> None:
        """Start so many on the cluster at `address`, or on one of this machine's own where that is None.

        Each has one GPU where the cluster has any. Raises NeuronautError where Ray is not installed or not there.
        """
        self._ray = ray = _start_ray(number, address)
        # Ray tells of lost workers on standard output, where results go.
        of_ray, self._print = ray._private.worker, ray._private.worker.print_to_stdstream
        of_ray.print_to_stdstream = lambda told, **more: self._print(told | {"is_err": True}, **more)
        from ray.util.queue import Queue

        told = Queue(actor_options={"num_cpus": 0})
        gpus = min(1, int(ray.cluster_resources().get("GPU", 0)))
        options = {"num_cpus": 0 if address is None else 1, "num_gpus": gpus, "max_restarts": 0}
        actor = ray.remote(Performer).options(**options)
        self._told, here = told, partial(open_in, os.getcwd(), open_worker)
        super().__init__(number, lambda: _Actor(ray, actor.remote(here, told.put)), on_tell=on_tell)

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._ray.shutdown()
        self._ray._private.worker.print_to_stdstream = self._print

    def told(self) -> Iterator[Any]:
        """What workers have told since the last time."""
        yield from self._told.get_nowait_batch(self._told.qsize())


class _Actor(NamedTuple):
    ray: Any
    handle: Any

    def send(self, step: Begin | GoOn) -> Future[Answer]:
        """Have it perform a step."""
        sent: Future[Answer] = Future()
        self.handle.answer.remote(step).future().add_done_callback(lambda done: self._take(done, sent))
        return sent

    def close(self) -> None:
        """End it."""
        self.ray.kill(self.handle)

    def _take(self, done: Future[Answer], sent: Future[Answer]) -> None:
        """Pass an answer on, or that the actor is lost."""
        errors = self.ray.exceptions
        try:
            sent.set_result(done.result())
        except (errors.RayActorError, errors.OutOfMemoryError) as error:
            sent.set_exception(WorkerLostError(f"Ray says: {' '.join(str(error).split())}"))
        except BaseException as error:
            sent.set_exception(error)


@contextmanager
def open_in(folder: str, open_worker: OpenWorker[T, R]) -> Generator[Callable[[T], R | LLMTask[R]]]:
    """Open a worker in the command's folder, where its machine has that: files may be named from there."""
    with suppress(OSError):
        os.chdir(folder)
    with open_worker() as perform:
        yield perform


def _start_ray(number: int, address: str | None) -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise NeuronautError("--on ray needs Ray; install it with: pip install 'neuronaut[ray]'") from error
    # "local" is a cluster of its own although another one may run here.
    options: dict[str, Any] = {"address": "local", "num_cpus": number, "include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address is not None:
            _knock(address)
            options = {"address": address}
        ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
        # Ray would end the command without a word of what is kept.
        if signal.getsignal(signal.SIGTERM) is not on_sigterm:
            signal.signal(signal.SIGTERM, on_sigterm)
    except OSError as error:
        if address is None:
            raise NeuronautError(f"Ray does not start on this machine ({error}); -j N without --on works") from error
        raise NeuronautError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or give --on ray"
        ) from error
    return ray


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT, on which Ray would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
