"""An interrupt waits until the work under way is whole; a second one does not."""

import signal
import threading
from collections.abc import Iterator

import pytest

from neuronaut.data.interrupts import Interrupts


@pytest.fixture
def terminated() -> Iterator[list[int]]:
    """The signals of termination that were delivered."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    yield came
    signal.signal(signal.SIGTERM, before)


def test_one_waits_for_the_end(terminated: list[int]) -> None:
    with Interrupts() as interrupts:
        assert not interrupts.came
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.came and not terminated
    assert terminated == [signal.SIGTERM] and interrupts.came
    signal.raise_signal(signal.SIGTERM)
    assert len(terminated) == 2, "the handler of before is back"


def test_a_second_one_is_delivered_at_once(terminated: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")
    assert not terminated


def test_an_interrupt_goes_before_what_ended_the_work() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ValueError


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert not interrupts.came
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_notes_nothing(terminated: list[int]) -> None:
    def work() -> None:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGTERM)
            seen.append(interrupts.came)

    seen: list[bool] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False] and terminated == [signal.SIGTERM]
