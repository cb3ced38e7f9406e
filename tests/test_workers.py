"""What workers answer and tell, and what is told of one that is lost.

Workers import this module, so it imports no more than they need.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from neuronaut.labelling import workers as workers_module
from neuronaut.labelling.pools import ray_address, start_workers
from neuronaut.labelling.processes import Processes
from neuronaut.labelling.ray_workers import open_in
from neuronaut.labelling.workers import tell
from neuronaut.subject.errors import NeuronautError


@contextmanager
def open_sum(fails: bool) -> Generator[Callable[[int], int]]:
    if fails:
        raise NeuronautError("there is no such model")

    def perform(number: int) -> int:
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if number < 0:
            raise ZeroDivisionError("nothing is left")
        return number + 1

    yield perform


def test_what_goes_wrong_in_a_worker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "RETRIES", 1)

    def run_sums(*numbers: int, fails: bool = False, by: int = 1) -> list[int]:
        with Processes(by, partial(open_sum, fails), threads=1) as workers:
            return sorted(workers.run(iter(numbers)))

    assert run_sums(1, 2, 3, by=2) == [2, 3, 4]
    for numbers, fails, kind, message in (
        ((1,), True, NeuronautError, "no such model"),
        ((1, -1), False, RuntimeError, "ZeroDivisionError: nothing is left"),
        ((1, 0), False, NeuronautError, "a worker was lost 2 times on one item .*exit code -9"),
    ):
        with pytest.raises(kind, match=message):
            run_sums(*numbers, fails=fails)


@contextmanager
def doubling(marker: Path | None) -> Generator[Callable[[int], int]]:
    """A worker that doubles; the first that is given 3 dies of it."""

    def perform(number: int) -> int:
        tell(number)
        if number == 3 and marker is not None and not marker.exists():
            marker.touch()
            os._exit(9)
        if number < 0:
            raise NeuronautError("no negative numbers")
        return 2 * number

    yield perform


def test_workers_pass_on_what_is_told() -> None:
    told: list[int] = []
    with Processes(2, partial(doubling, None), on_tell=told.append) as workers:
        assert sorted(workers.run(range(4))) == [0, 2, 4, 6]
    assert sorted(told) == [0, 1, 2, 3]
    tell(5)
    assert sorted(told) == [0, 1, 2, 3]


def test_a_lost_ray_worker_is_replaced_and_its_item_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    marker, told, said = tmp_path / "died", list[int](), ""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with start_workers(2, partial(doubling, marker), on="ray", on_tell=told.append) as workers:
        assert signal.getsignal(signal.SIGTERM) is on_sigterm, "a command that is ended says what is kept"
        assert sorted(workers.run(range(6))) == [0, 2, 4, 6, 8, 10]
        assert marker.exists()
        with pytest.raises(NeuronautError, match="no negative numbers"):
            list(workers.run([-1]))
        # Ray says so in its own time.
        for _ in range(300):
            assert (new := capsys.readouterr()).out == ""
            if "A worker died" in (said := said + new.err):
                break
            time.sleep(0.1)
    assert "A worker died" in said
    assert set(told) <= {0, 1, 2, 3, 4, 5, -1} and {0, 1, 2, 4, 5} <= set(told)


def test_a_ray_worker_opens_in_the_folder_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere a worker begins in the cluster's folder, from which a corpus that is named here would not be found."""
    monkeypatch.chdir("/")
    for folder in (tmp_path, tmp_path / "only here"):
        with open_in(str(folder), partial(doubling, None)) as perform:
            assert perform(2) == 4 and Path.cwd() == tmp_path


def test_a_place_without_a_cluster_is_said_at_once() -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"ray:127.0.0.1:{free.getsockname()[1]}"
        for address in (nowhere, nowhere.replace("ray:", "ray:ray://")):
            with pytest.raises(NeuronautError, match="no Ray cluster answers at .*refused"):
                start_workers(1, partial(doubling, None), on=address)


def test_a_place_for_workers_is_read() -> None:
    assert ray_address("ray") is None and ray_address("ray:ray://head:10001") == "ray://head:10001"
    for text in ("", "ray:", "slurm", "rays"):
        with pytest.raises(NeuronautError, match="is not known; wanted ray"):
            ray_address(text)
