"""An interrupt waits until the work under way is whole; a second one does not."""

import os
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


def test_an_error_that_ended_the_work_goes_before_it() -> None:
    with pytest.raises(ValueError, match="broken"), Interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("broken")


def test_one_that_comes_while_handlers_are_put_back_is_delivered(
    terminated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = signal.signal

    def interrupted(number: int, handler: object) -> object:
        if number == signal.SIGINT:  # is put back first
            os.kill(os.getpid(), signal.SIGTERM)
        return put(number, handler)

    with Interrupts() as interrupts:
        monkeypatch.setattr(signal, "signal", interrupted)
    monkeypatch.undo()
    assert terminated == [signal.SIGTERM] and not interrupts.came
    with Interrupts():
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(signal, "signal", interrupted)
    monkeypatch.undo()
    assert terminated == [signal.SIGTERM] * 2, "the first one went with the second"


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
