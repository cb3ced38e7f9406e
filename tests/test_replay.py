"""A replay vouches for everything that a report shows: every edit is noticed and named, in a line."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from neuronaut.agent.forking import fork
from neuronaut.agent.loop.budget import Limits
from neuronaut.agent.replay import Replay, replay
from neuronaut.agent.report.assemble import assemble
from neuronaut.agent.rerun import first_difference, rerun
from neuronaut.agent.session import InvestigationConfig, investigate
from neuronaut.cli.main import main
from neuronaut.data.store.store import Store
from neuronaut.subject.errors import NeuronautError
from tests.investigating import harvested, subject

CONFIG = InvestigationConfig(limits=Limits(experiments=14))


@pytest.fixture(scope="module")
def original() -> Iterator[tuple[Store, str]]:
    """A finished investigation, and its id."""
    with harvested() as store:
        yield store, investigate("planted:mlp.2:3", subject(), store, CONFIG).id


@pytest.fixture
def copied(original: tuple[Store, str]) -> Iterator[tuple[Store, str]]:
    """The same, to be edited."""
    with Store(":memory:") as store:
        original[0].db.conn.backup(store.db.conn)
        for trigger in ("predictions_update", "predictions_delete", "observations_update", "observations_delete"):
            store.db.conn.execute(f"DROP TRIGGER {trigger}")
        store.db.conn.execute("PRAGMA foreign_keys = OFF")
        store.db.conn.create_function("swap", 3, swap)
        yield store, original[1]


def swap(value: Any, old: str, new: str) -> Any:
    """JSON with a text in another's place, packed or not."""
    packed = isinstance(value, bytes)
    text = zlib.decompress(value).decode() if packed else str(value)
    assert old in text
    changed = text.replace(old, new, 1)
    json.loads(changed)
    return zlib.compress(changed.encode()) if packed else changed


def edited(copied: tuple[Store, str], sql: str) -> Replay:
    """The replay after an edit, which must change something."""
    store, id = copied
    assert store.db.conn.execute(sql).rowcount > 0
    return replay(store.journal, id)


FIRST_OK = """(SELECT experiment FROM observations JOIN experiments ON name = experiment
    WHERE status = 'ok' AND survey = 0)"""
JUDGED_AGAIN = {
    "UPDATE investigations SET status = 'open'": "status: 'open' is stored",
    "UPDATE investigations SET reason = 'because'": "reason: 'because' is stored",
    "UPDATE investigations SET target = 'planted:mlp.2:4'": "target: what is stored",
    "UPDATE investigations SET policy = 'llm'": "policy: what is stored",
    "UPDATE investigations SET settings = swap(settings, '\"seed\":0', '\"seed\":1')": "settings: what is stored",
    "UPDATE investigations SET created = '2999'": "times: it began after",
    "UPDATE investigations SET ended = '1999'": "times: it began after its first event, or ended before",
    "UPDATE hypotheses SET body = swap(body, '\"text\":\"', '\"text\":\"not ') WHERE name = 'H3'": "hypothesis H3",
    "UPDATE events SET payload = swap(payload, '\"text\":\"', '\"text\":\"not ') WHERE kind = 'frozen'": "frozen text",
    "UPDATE events SET payload = json_set(payload, '$.hash', '00') WHERE kind = 'frozen'": "frozen hash",
    "UPDATE events SET payload = json_set(payload, '$.evidence', 'open') WHERE kind = 'frozen'": "frozen verdict",
    "UPDATE events SET payload = json_set(payload, '$.reason', 'luck') WHERE kind = 'frozen'": "frozen reason",
    "UPDATE events SET payload = json_set(payload, '$.scores[0].value', 0.999) WHERE kind = 'holdout'": "holdout score",
    "UPDATE scores SET value = 0.123": "holdout score",
    "UPDATE explanations SET text = 'else' WHERE id = (SELECT explanation_id FROM investigations)": "its text is not",
    "UPDATE events SET payload = json_set(payload, '$.status', 'open') WHERE kind = 'concluded'": "status:",
    "UPDATE events SET payload = json_set(payload, '$.reason', 'luck') WHERE kind = 'ended'": "reason: 'luck'",
    "UPDATE events SET payload = json_set(payload, '$.passed', json('false')) WHERE kind = 'control'": "status:",
    "INSERT INTO peeks SELECT id, 'again', ended FROM investigations": "peeks: 2 readings",
    "DELETE FROM peeks": "peeks: 0 readings",
    "UPDATE peeks SET created = '1999'": "times: the holdout was read for holdout before freezing",
    "UPDATE ledger SET forwards = 0 WHERE kind = 'experiment'": "ledger: o",
    "DELETE FROM ledger WHERE kind = 'experiment'": "was run and never charged",
    "UPDATE ledger SET minutes = 0": "ledger: 0 minutes are charged",
    "UPDATE events SET time = '1999' WHERE seq = 7": "times: events",
    f"UPDATE observations SET created = 5 WHERE experiment = {FIRST_OK}": "was observed before it was predicted",
    "UPDATE predictions SET expected = '[0]' WHERE seq = 2": "the chain of predictions breaks at",
    "UPDATE predictions SET created = 5 WHERE seq = 2": "the chain of predictions breaks at",
    f"UPDATE observations SET result = swap(result, '\"effect\":', '\"effect\":1') WHERE experiment = {FIRST_OK}": (
        "effect is stored as"
    ),
    "UPDATE events SET payload = swap(payload, '\"share\":', '\"share\":1') WHERE kind = 'judged'": (
        "come out otherwise"
    ),
}
"""Edits, and what is said of each although no seal is there."""
SEALED = {
    "UPDATE investigations SET provenance = '{}'": "investigations {id} provenance was edited",
    "UPDATE investigations SET parent = 'abc'": "investigations {id} parent was edited",
    "UPDATE investigations SET kind = 'behaviour'": "investigations {id} kind was edited",
    "UPDATE investigations SET explanation_id = 1 + explanation_id": "investigations {id} explanation_id",
    "UPDATE hypotheses SET origin = 'challenger' WHERE name = 'H3'": "hypotheses H3 origin was edited",
    "UPDATE hypotheses SET name = 'H99' WHERE name = 'H1'": "hypotheses H1 (now H99) was renamed",
    "UPDATE decisions SET role = 'challenger' WHERE step = 1": "decisions 1 role was edited",
    "UPDATE experiments SET purpose = 'else' WHERE name = 'o2'": "experiments o2 purpose was edited",
    "UPDATE experiments SET tool = 'steer' WHERE name = 'o2'": "experiments o2 tool was edited",
    "UPDATE experiments SET args = '{}' WHERE name = 'o2'": "experiments o2 args was edited",
    "UPDATE experiments SET role = 'challenger' WHERE name = 'o2'": "experiments o2 role was edited",
    "UPDATE experiments SET survey = 1 - survey WHERE name = 'o2'": "experiments o2 survey was edited",
    "UPDATE experiments SET round = 9 WHERE name = 'o2'": "experiments o2 round was edited",
    "UPDATE experiments SET reference = 'H1' WHERE name = 'o3'": "experiments o3 reference was edited",
    "UPDATE experiments SET design = swap(design, '\"question\":\"', '\"question\":\"x') WHERE name = 'o2'": (
        "experiments o2 design was edited"
    ),
    "UPDATE observations SET cost = '{\"forwards\":0}' WHERE experiment = 'o2'": "observations o2 cost was edited",
    "UPDATE ledger SET usd = usd + 1 WHERE kind = 'holdout'": "ledger holdout usd was edited",
    "DELETE FROM events WHERE kind = 'control'": "events control:dead, control:permuted, control:sham was removed",
    "UPDATE events SET payload = json_set(payload, '$.text', 'else') WHERE kind = 'baseline'": (
        "events baseline payload was edited"
    ),
    "INSERT INTO events SELECT investigation, 999, time, 'rejected', 'x', payload FROM events WHERE kind = 'ended'": (
        "events x was added"
    ),
    "UPDATE events SET payload = json_set(payload, '$.what', 'else') WHERE kind = 'control'": "payload was edited",
    "UPDATE events SET payload = json_set(payload, '$.limits', json('{}')) WHERE kind = 'spent'": "payload was edited",
}
"""Edits of what nothing else tells, and what the seal tells of each."""
UNREADABLE = {
    "UPDATE events SET payload = '{' WHERE kind = 'frozen'": "events frozen payload cannot be decoded",
    "UPDATE experiments SET design = x'00' WHERE name = 'o2'": "experiments o2 design cannot be decoded (error)",
    "UPDATE experiments SET round = 'many' WHERE name = 'o2'": "experiments o2 round holds text, wanted integer",
    "UPDATE hypotheses SET body = '[1' WHERE name = 'H2'": "hypotheses H2 body cannot be decoded",
    "UPDATE investigations SET reason = CAST(x'ff' AS TEXT)": "reason cannot be decoded (UnicodeDecodeError)",
    "UPDATE investigations SET settings = x'00'": "settings holds blob, wanted text",
    "UPDATE observations SET result = 'x' WHERE experiment = 'o2'": "observations o2 result holds text, wanted blob",
    "UPDATE seals SET cells = x'00'": "cells cannot be decoded (error)",
}


def check(replayed: Replay, words: str) -> None:
    assert not replayed.same
    assert any(words in fault for fault in replayed.faults), replayed.faults
    assert all("\n" not in fault for fault in replayed.faults)


def test_what_nobody_edited_is_the_same_and_sealed(original: tuple[Store, str]) -> None:
    store, id = original
    replayed = replay(store.journal, id)
    assert replayed.same and replayed.faults == () and replayed.unvouched == ()
    assert "holdout and controls" in replayed.measured[0]
    assert store.journal.edits(id) == ([], True)


@pytest.mark.parametrize("sql", [*JUDGED_AGAIN, *SEALED])
def test_every_edit_of_a_sealed_session_is_named(copied: tuple[Store, str], sql: str) -> None:
    replayed = edited(copied, sql)
    # The explanation and its scores are no rows of the session: they are held against what it told.
    own = "" if sql.startswith(("UPDATE scores", "UPDATE explanations")) else "after it was sealed"
    check(replayed, SEALED.get(sql, own).format(id=copied[1]))
    check(replayed, JUDGED_AGAIN.get(sql, ""))


@pytest.mark.parametrize("sql", JUDGED_AGAIN)
def test_what_follows_from_other_rows_is_judged_again_without_a_seal(copied: tuple[Store, str], sql: str) -> None:
    copied[0].db.conn.execute("DELETE FROM seals")
    check(edited(copied, sql), JUDGED_AGAIN[sql])


@pytest.mark.parametrize("sql", UNREADABLE)
def test_rows_that_cannot_be_read_are_named(copied: tuple[Store, str], sql: str) -> None:
    replayed = edited(copied, sql)
    assert len(replayed.faults) == 1
    check(replayed, UNREADABLE[sql])


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE events SET payload = '[]' WHERE kind = 'judged'",
        "UPDATE events SET payload = '{}' WHERE kind = 'frozen'",
        "UPDATE hypotheses SET body = '{\"text\": 1}'",
        "UPDATE predictions SET expected = '7'",
        "UPDATE decisions SET decision = '[[]]'",
    ],
)
def test_rows_of_another_shape_end_nothing(copied: tuple[Store, str], sql: str) -> None:
    check(edited(copied, sql), "after it was sealed")
    try:
        assemble(copied[0].journal, copied[1])
    except NeuronautError as error:
        assert "\n" not in str(error)


def test_an_old_session_says_what_nothing_vouches_for(copied: tuple[Store, str]) -> None:
    store, id = copied
    store.db.conn.execute("DELETE FROM seals")
    check(replay(store.journal, id), "seal: it was made when the session ended, and is gone")
    # Before there were seals, the code of why exploring ended was not written down.
    store.db.conn.execute("UPDATE events SET payload = json_remove(payload, '$.stop_code') WHERE kind = 'concluded'")
    replayed = replay(store.journal, id)
    assert replayed.same and "it has no seal" in replayed.unvouched[0]


def test_an_edit_of_many_rows_is_one_line(copied: tuple[Store, str]) -> None:
    (fault,) = edited(copied, "UPDATE ledger SET usd = usd + 1").faults
    assert fault.startswith("ledger ") and " more usd was edited after it was sealed" in fault and len(fault) < 250


def test_a_fork_is_sealed_as_it_was_copied_and_goes_on(copied: tuple[Store, str]) -> None:
    store, id = copied
    new = fork(store.journal, id, step=2, seed=5)
    store.journal.event(new.id, "phase", {"phase": "acquire"}, key="phase:acquire:0")
    replayed = replay(store.journal, new.id)
    assert replayed.same and "1 rows were added since it was sealed" in replayed.unvouched[0]
    store.db.conn.execute("UPDATE decisions SET role = 'x' WHERE investigation = ? AND step = 0", [new.id])
    store.journal.seal(new.id)
    check(replay(store.journal, new.id), "decisions 0 role was edited after it was sealed")


def test_one_that_is_stopped_is_sealed_and_the_end_adds_to_it(copied: tuple[Store, str]) -> None:
    class StopError(Exception):
        pass

    def stop(event: Any) -> None:
        if event["kind"] == "judged":
            raise StopError

    store, _ = copied
    ended = replace_config(on_event=stop)
    with pytest.raises(StopError):
        investigate("planted:mlp.2:3", subject(), store, ended)
    id = next(row["id"] for row in store.journal.rows() if row["ended"] is None)
    assert store.journal.edits(id) == ([], False)
    assert replay(store.journal, id).same


def replace_config(**changes: Any) -> InvestigationConfig:
    return InvestigationConfig(limits=Limits(experiments=6), seed=3, **changes)


def test_seals_go_along_in_a_merge(original: tuple[Store, str], tmp_path: Path) -> None:
    store, id = original
    store.backup(str(tmp_path / "one.db"))
    with Store(tmp_path / "two.db") as other:
        other.merge(str(tmp_path / "one.db"))
        assert other.journal.edits(id) == ([], True)
        assert replay(other.journal, id).same


def test_running_again_gives_the_same(original: tuple[Store, str]) -> None:
    again = rerun(original[0], original[1], subject())
    assert again.experiments > 10 and again.faults == ()


def test_running_again_tells_what_was_never_measured(copied: tuple[Store, str]) -> None:
    store, id = copied
    name = store.db.conn.execute(f"SELECT {FIRST_OK}").fetchone()[0]
    edit = "swap(result, '\"effect\":', '\"effect\":7')"
    store.db.conn.execute(f"UPDATE observations SET result = {edit} WHERE experiment = ?", [name])
    edit = "json_set(payload, '$.scores[0].value', 0.5)"
    store.db.conn.execute(f"UPDATE events SET payload = {edit} WHERE kind IN ('holdout', 'baseline')")
    faults = rerun(store, id, subject()).faults
    assert any(fault.startswith(f"{name}: ") and "effect is stored as 7" in fault for fault in faults)
    assert any(fault.startswith("holdout: scores.0.value is stored as 0.5") for fault in faults)
    assert any(fault.startswith("baseline: scores.0.value is stored as 0.5") for fault in faults)
    assert len(faults) == 3
    store.db.conn.execute("UPDATE harvests SET created = '9999'")
    assert "more came since: " in rerun(store, id, subject()).faults[-1]


def test_running_again_wants_the_same_weights(copied: tuple[Store, str]) -> None:
    store, id = copied
    store.db.conn.execute("UPDATE investigations SET provenance = json_set(provenance, '$.model', 'other')")
    with pytest.raises(NeuronautError, match="was run on weights other"):
        rerun(store, id, subject())


def test_numbers_may_differ_by_little() -> None:
    assert first_difference({"a": [1.0, None, "x"]}, {"a": [1.0004, None, "x"]}) is None
    assert first_difference({"a": [1.0, 2]}, {"a": [1.0, 2.01]}) == "a.1 is stored as 2, run again it is 2.01"
    assert first_difference({"a": 1.0}, {"a": None}) == "a is stored as 1.0, run again it is null"


def test_the_command_prints_a_line_for_each(copied: tuple[Store, str], tmp_path: Path) -> None:
    store, id = copied
    store.db.conn.execute("UPDATE investigations SET status = 'open', reason = 'x' || char(10) || 'y'")
    store.db.conn.execute("UPDATE hypotheses SET body = '[1' WHERE name = 'H2'")
    database = str(tmp_path / "edited.db")
    store.backup(database)
    result = CliRunner().invoke(main, ["sessions", "replay", id, "-d", database])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:2] == [
        f"{id}: not the same:",
        "  hypotheses H2 body cannot be decoded (JSONDecodeError)",
    ]
    shown = CliRunner().invoke(main, ["sessions", "show", id, "-d", database])
    assert shown.exit_code == 1 and "hypotheses H2 body cannot be decoded" in shown.stderr
    assert len(shown.stderr.strip().splitlines()) == 1
