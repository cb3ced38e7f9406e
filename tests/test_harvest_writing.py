"""A harvest is written while its silent windows are looked for, and ends as if it had been written after."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

import pytest
import torch

from neuronaut.data.harvest.ending import finish
from neuronaut.data.harvest.harvest import collect, harvest
from neuronaut.data.harvest.mining import Mining
from neuronaut.data.records import Mined
from neuronaut.data.store import writing
from neuronaut.data.store.store import Store
from neuronaut.subject.errors import NeuronautError
from tests import test_harvest
from tests.test_harvest import WINDOW, corpus, sources, splits, subject
from tests.test_harvest import content as content_of
from tests.test_shards import content

one_thread = test_harvest.one_thread


def hold_mining(patch: Any, then: Callable[[], None] = lambda: None) -> None:
    """Let mining end only when all of the last source that can be written is written, and do something then."""
    written, mine = Event(), Mining.run

    class Told(writing._SourceWriter):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            if self.name == str(sources()[-1].id):
                written.set()

    def run(self: Mining, *arguments: Any, **options: Any) -> Mined:
        mined = mine(self, *arguments, **options)
        assert current_thread() is not main_thread()
        assert written.wait(60), "nothing is written before mining ends"
        then()
        return mined

    patch(writing, "_SourceWriter", Told)
    patch(Mining, "run", run)


def harvest_into(file: Path, **options: Any) -> object:
    with Store(file) as store:
        return content_of(harvest(subject(), sources(), corpus(), store, window=WINDOW, **options).sources)


def test_what_is_known_is_written_while_the_rest_is_mined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        hold_mining(patch.setattr)
        beside = harvest_into(tmp_path / "beside.db")
    after = harvest_into(tmp_path / "after.db")
    assert beside == after
    assert content(tmp_path / "beside.db") == content(tmp_path / "after.db")
    with Store(tmp_path / "beside.db") as store:
        kinds = {row["kind"] for row in store.db.query("SELECT DISTINCT kind FROM examples")}
    assert {"top", "quantile", "silent", "near_miss"} <= kinds


def test_it_is_what_one_thread_finds_and_writes(tmp_path: Path) -> None:
    harvest_into(tmp_path / "beside.db")
    state = collect(subject(), sources(), corpus(), splits(), window=WINDOW)
    with Store(tmp_path / "alone.db") as store:
        store.write_harvest(finish(subject(), sources(), corpus(), state))
    beside, alone = (content(tmp_path / name) for name in ("beside.db", "alone.db"))
    different = {table for table, rows in beside.items() if rows != alone[table]}
    assert different == {"harvests", "top_tokens"}, "harvest says more of the run, and finds tokens"


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    """The digest says so, which is hashed in two parts."""
    file = tmp_path / "twice.db"
    harvest_into(file)
    with Store(file) as store:
        before = [tuple(row.values()) for row in store.db.query("SELECT * FROM harvests ORDER BY source_id")]
        harvest(subject(), sources(), corpus(), store, window=WINDOW)
        assert [tuple(row.values()) for row in store.db.query("SELECT * FROM harvests ORDER BY source_id")] == before
        harvest(subject(), sources(), corpus(), store, window=WINDOW, tokens=500)
        assert [tuple(row.values()) for row in store.db.query("SELECT * FROM harvests ORDER BY source_id")] != before
    again = harvest_into(tmp_path / "less.db", tokens=500)
    with Store(file) as store:
        examples = [tuple(row.values()) for row in store.db.query(_LISTS)]
    with Store(tmp_path / "less.db") as store:
        assert examples == [tuple(row.values()) for row in store.db.query(_LISTS)] and again


_LISTS = """SELECT sources.name, idx, examples.kind, examples.n, activations FROM examples
    JOIN features ON features.id = feature_id JOIN sources ON sources.id = source_id
    ORDER BY sources.name, idx, examples.rowid"""


def test_mining_that_fails_leaves_the_database_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NeuronautError("the model is gone")

    with Store(tmp_path / "own.db"):
        pass
    before = content(tmp_path / "own.db")
    hold_mining(monkeypatch.setattr, fail)
    with pytest.raises(NeuronautError, match="the model is gone"):
        harvest_into(tmp_path / "own.db")
    assert content(tmp_path / "own.db") == before


def test_an_interrupt_of_the_writing_ends_mining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, mine = Event(), Mining.run

    def run(self: Mining, of: Any, *, progress: Callable[[int, int], None]) -> Mined:
        try:
            mine(self, of, progress=progress)
            for _ in range(60_000):
                progress(1, 1)
                ended.wait(0.001)
            raise AssertionError("nobody told it to end")
        finally:
            ended.set()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Mining, "run", run)
    monkeypatch.setattr(writing, "_write_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harvest_into(tmp_path / "own.db")
    assert ended.is_set()
    with Store(tmp_path / "own.db") as store:
        assert store.sources() == []


def kill_yourself(folder: str) -> None:
    """A harvest that is killed while it mines and writes; run in a process of its own."""
    torch.set_num_threads(1)
    hold_mining(setattr, lambda: os.kill(os.getpid(), signal.SIGKILL))
    harvest_into(Path(folder) / "killed.db", checkpoint=Path(folder) / "state")


def test_what_is_killed_in_the_middle_is_written_as_if_nothing_had_happened(tmp_path: Path) -> None:
    call = f"from tests.test_harvest_writing import kill_yourself; kill_yourself({str(tmp_path)!r})"
    assert subprocess.run([sys.executable, "-c", call], cwd=Path(__file__).parents[1]).returncode == -signal.SIGKILL
    with Store(tmp_path / "killed.db") as store:
        assert store.sources() == []
    harvest_into(tmp_path / "killed.db", checkpoint=tmp_path / "state")
    harvest_into(tmp_path / "whole.db")
    assert content(tmp_path / "killed.db") == content(tmp_path / "whole.db")
