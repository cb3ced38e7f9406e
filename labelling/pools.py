"""Where workers run: here (`processes`), or on a Ray cluster (`ray_workers`)."""

from collections.abc import Callable
from typing import Any

from ..subject.errors import NeuronautError
from .processes import Processes
from .workers import OpenWorker, R, T, Workers


def start_workers(
    count: int, open_worker: OpenWorker[T, R], *, on: str | None = None, on_tell: Callable[[Any], None] | None = None
) -> Workers[T, R]:
    """Start workers here, or `on` a Ray cluster: `ray` for one of this machine, or `ray:ADDRESS`.

    `on_tell` is given what workers `tell`. Raises NeuronautError where there is no such place.
    """
    if on is None:
        return Processes(count, open_worker, on_tell=on_tell)
    from .ray_workers import RayWorkers

    return RayWorkers(count, open_worker, address=ray_address(on), on_tell=on_tell)


def ray_address(on: str) -> str | None:
    """The address in `ray:ADDRESS`, None of `ray` alone; raises NeuronautError for anything else."""
    place, colon, address = on.partition(":")
    if place != "ray" or bool(colon) != bool(address):
        raise NeuronautError(f"--on {on} is not known; wanted ray, or ray:ADDRESS as in ray:auto")
    return address or None
