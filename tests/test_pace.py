"""What is told of work as it goes: how much there is, and about how long the rest takes."""

from types import SimpleNamespace

import pytest

from neuronaut.subject import pace
from neuronaut.subject.pace import Pace


def test_the_rest_is_told_by_the_pace_so_far_and_begins_anew_with_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now))
    told = Pace()
    assert told.format("loads", 0, 0) == "loads" and told.format("passes", 3, 0) == "passes 3"
    assert told.format("runs", 0, 4000, "tokens") == "runs, 0% of 4,000 tokens"
    now += 0.5
    assert told.format("runs", 1000, 4000, "tokens") == "runs, 25% of 4,000 tokens"
    now += 59.5
    assert told.format("writes", 1000, 4000, "tokens") == "writes, 25% of 4,000 tokens, about 3 minutes left"
    now += 60
    assert told.format("writes", 3000, 4000, "tokens") == "writes, 75% of 4,000 tokens, about 40 s left"
    line = told.format("writes", 3000, 4000, "tokens", most=15)
    assert line == "writes, 75% of 4,000 tokens, at most 15 s left" and told.left == 15
    assert told.format("reads", 1, 10) == "reads, 10% of 10"
