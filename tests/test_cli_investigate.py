"""`neuronaut investigate` and `sessions` on a planted neuron: verdicts, exit codes, streams, pages, replays."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from filelock import FileLock

from neuronaut.agent.loop.budget import Limits
from neuronaut.agent.loop.judging import FORMULA
from neuronaut.agent.report.citations import find_uncited
from neuronaut.agent.report.event_lines import format_event
from neuronaut.cli import investigate as verb
from neuronaut.cli.investigate import EXITS
from neuronaut.cli.main import main
from neuronaut.cli.progress_view import Watch
from neuronaut.cli.session_view import format_plan, seconds_between
from neuronaut.data.store.store import Store
from tests import journals, planted

RIVER = "planted:mlp.2:3"
"""The neuron that fires on `river`, except directly after `dry`."""
KINDS = {
    "begun",
    "phase",
    "baseline",
    "proposed",
    "decided",
    "planned",
    "observed",
    "judged",
    "spent",
    "frozen",
    "holdout",
    "control",
    "ended",
}


def run(*arguments: object, code: int = 0, **options: Any) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], **options)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with the harvest of a planted model."""
    folder = tmp_path_factory.mktemp("investigate")
    model, corpus = planted.build(documents=100).save(folder)
    database = str(folder / "planted.db")
    run("harvest", model, "mlp.2", "--corpus", corpus, "--window", 32, "-d", database, "--device", "cpu")
    return database


@pytest.fixture(scope="module")
def copy(harvested: str) -> str:
    """The same before anything was investigated."""
    run("db", "backup", f"{harvested}.copy", "-d", harvested)
    return f"{harvested}.copy"


@pytest.fixture(scope="module")
def done(harvested: str, copy: str) -> Mapping[str, Any]:
    """The report of a finished investigation, and its events."""
    assert Path(copy).is_file()
    result = run("investigate", RIVER, "--budget", "experiments=30", "-d", harvested, "--nl")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return {"id": events[0]["investigation"], "events": events, "stderr": result.stderr}


@pytest.fixture(autouse=True)
def _database(harvested: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONAUT_DB", harvested)


# Investigating


def test_events_come_one_object_a_line_and_are_told_on_stderr(done: Mapping[str, Any]) -> None:
    events = done["events"]
    assert {event["kind"] for event in events} >= KINDS
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["status"] == "supported"
    assert f"{done['id']}  supported: " in done["stderr"]
    assert re.search(r"o1 \w+: ", done["stderr"])


def test_the_same_command_again_gives_the_finished_report(done: Mapping[str, Any], harvested: str) -> None:
    result = run("investigate", RIVER, "--budget", "experiments=30")
    first, text, *rest = result.stdout.splitlines()
    assert first == f"{RIVER}: supported"
    assert "` river`" in text
    assert "` dry`" in text
    assert any(line.startswith("holdout top random correlation ") for line in rest)
    assert f"neuronaut sessions show {done['id']}" in rest[-1]
    rows = json.loads(run("investigate", RIVER, "--budget", "experiments=30", "--json").stdout)
    assert [row["id"] for row in rows] == [done["id"]]
    with Store(harvested) as store:
        assert len([row for row in store.journal.rows() if row["parent"] is None]) == 1


def test_a_finished_investigation_becomes_a_page(done: Mapping[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    run("investigate", RIVER, "--budget", "experiments=30", "--html", page)
    html = page.read_text(encoding="utf-8")
    assert "Where it is strongest" in html
    assert "<script" not in html
    assert done["id"] in html


def test_several_targets_have_a_line_and_a_page_each_and_the_worst_exit_code(
    copy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = ["planted:mlp.2:3,0", "--budget", "experiments=2", "-d", copy]
    result = run("investigate", *targets, "--html", tmp_path / "page.html", code=4)
    assert "will hold 2 of 2 investigations, 0 are done already; at most 4 experiments\n" in result.stderr
    assert re.search(r"1 of 2 investigated, [\d.]+ s each, \d+ s left", result.stderr)
    for target in (RIVER, "planted:mlp.2:0"):
        page = tmp_path / f"page-{target.replace(':', '-')}.html"
        assert target in page.read_text(encoding="utf-8")
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        [RIVER, "budget"],
        ["planted:mlp.2:0", "budget"],
    ]
    assert "2 budget" in result.stderr
    again = run("investigate", *targets, "--json", code=4)
    assert "0 of 2 investigations, 2 are done already; another --seed" in again.stderr and "left" not in again.stderr
    report = json.loads(again.stdout)[0]
    assert (report["spent"]["experiments"], report["limits"]["experiments"]) == (2, 2)
    made = verb.run_sessions

    def ended(*given: Any, **named: Any) -> Any:
        statuses = iter(("supported", "no_explanation"))
        yield from (replace(session, status=next(statuses)) for session in made(*given, **named))

    monkeypatch.setattr(verb, "run_sessions", ended)
    assert "1 supported, 1 no explanation" in run("investigate", *targets, code=3).stderr
    assert set(EXITS.values()) == {0, 1, 3, 4}


def test_a_plan_says_what_is_left_what_it_costs_at_most_and_how_long_it_takes(copy: str, monkeypatch) -> None:
    limits = Limits(usd=0.5, fwd=2000, experiments=30, minutes=2)
    assert format_plan(8, 2, limits, seconds=[60.0, 86400.0, 45.0]) == (
        "will hold 8 of 10 investigations, 2 are done already; at most $4.00, 16,000 forward passes, 240 experiments, "
        "16 minutes; about 8 minutes at the rate of earlier ones"
    )
    run("investigate", "planted:mlp.2:3,0", "--budget", "experiments=2", "-d", copy, code=4)
    with Store(copy) as store:
        first, last = sorted(datetime.fromisoformat(row["ended"]) for row in store.journal.rows())
        assert seconds_between(store, "scripted", Limits(experiments=2)) == [(last - first).total_seconds()]
        with monkeypatch.context() as patch:
            patch.setattr("neuronaut.cli.session_view._PAUSE", timedelta(0))
            (alone,) = seconds_between(store, "scripted", Limits(experiments=2))
            assert 0 < alone < (last - first).total_seconds()
        assert seconds_between(store, "scripted", Limits(experiments=3)) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "nothing to investigate"),
        ([RIVER, "--resume", "abc"], 2, "leave the others out"),
        ([RIVER, "--policy", "replay"], 2, "--transcript ID"),
        ([RIVER, "--policy", "llm"], 2, "-m openai:gpt-4o-mini"),
        ([RIVER, "--budget", "usd=1"], 1, "none is named; add -m"),
        ([RIVER, "--budget", "apples=3"], 1, "wanted any of usd, tokens"),
        (["--resume", "nothing"], 1, "neuronaut sessions list"),
        (["planted:mlp.2:3", "planted:mlp.2:0", "--task", "induction"], 1, "wanted one model"),
        (["planted:mlp.9:3"], 1, "mlp.9"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: list[str], code: int, words: str) -> None:
    result = run("investigate", *arguments, code=code)
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_transcript_is_followed_without_the_one_who_decided(done: Mapping[str, Any]) -> None:
    again = json.loads(
        run(
            "investigate",
            RIVER,
            "--budget",
            "experiments=30",
            "--policy",
            "replay",
            "--transcript",
            done["id"],
            "--json",
        ).stdout
    )[0]
    first = json.loads(run("sessions", "show", done["id"], "--json").stdout)[0]
    assert again["id"] != first["id"]
    assert again["policy"] == "replay"
    assert (again["status"], again["text"], again["rule"]) == (first["status"], first["text"], first["rule"])
    assert [trial["result"] for trial in again["trials"]] == [trial["result"] for trial in first["trials"]]


def test_a_fork_goes_on_from_its_step(done: Mapping[str, Any]) -> None:
    new = json.loads(run("sessions", "fork", done["id"][:6], "--step", 2, "--json").stdout)[0]
    assert (new["parent"], new["step"]) == (done["id"], 2)
    report = json.loads(run("investigate", "--resume", new["id"], "--json").stdout)[0]
    assert (report["id"], report["parent"], report["status"]) == (new["id"], done["id"], "supported")
    assert report["limits"]["experiments"] == 30


def test_a_fork_that_decides_the_same_predicts_and_sees_the_same(done: Mapping[str, Any]) -> None:
    first = json.loads(run("sessions", "show", done["id"], "--json").stdout)[0]
    step = max(event["step"] for event in done["events"] if event["kind"] == "decided")
    new = json.loads(run("sessions", "fork", done["id"], "--step", step, "--json").stdout)[0]
    report = json.loads(run("investigate", "--resume", new["id"], "--json").stdout)[0]
    for part in ("text", "rule", "contenders", "scores", "controls"):
        assert report[part] == first[part], part
    assert [(t["items"], t["result"]) for t in report["trials"]] == [(t["items"], t["result"]) for t in first["trials"]]


def test_a_fork_is_made_once_and_at_a_step_that_there_is(done: Mapping[str, Any]) -> None:
    run("sessions", "fork", done["id"], "--step", 1)
    assert "is there already" in run("sessions", "fork", done["id"], "--step", 1, code=1).stderr
    assert "not 99" in run("sessions", "fork", done["id"], "--step", 99, code=1).stderr


# Sessions


def test_sessions_are_listed_by_default(done: Mapping[str, Any]) -> None:
    rows = json.loads(run("sessions", "--json").stdout)
    assert rows == json.loads(run("sessions", "list", "--json").stdout)
    row = next(row for row in rows if row["id"] == done["id"])
    assert (row["target"], row["policy"], row["status"]) == (RIVER, "scripted", "supported")
    assert done["id"] in run("sessions").stdout


def test_a_report_is_shown_and_cites(done: Mapping[str, Any], tmp_path: Path) -> None:
    text = run("sessions", "show", done["id"][:7], "--html", tmp_path / "page.html").stdout
    assert text.startswith(f"{RIVER}: supported")
    assert find_uncited(text) == []
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    report = json.loads(run("sessions", "show", done["id"], "--json").stdout)[0]
    assert report["broken"] is None
    assert "no investigation zz" in run("sessions", "show", "zz", code=1).stderr


def test_one_that_no_process_is_at_is_told_as_interrupted(done: Mapping[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    run("db", "backup", copy)
    with Store(copy) as store:
        store.db.conn.execute("UPDATE investigations SET status = 'running', ended = NULL")

    def row() -> dict[str, Any]:
        return next(r for r in json.loads(run("sessions", "--json", "-d", copy).stdout) if r["id"] == done["id"])

    def shown() -> str:
        return run("sessions", "show", done["id"], "-d", copy).stdout.splitlines()[0]

    assert row()["status"] == "interrupted" and f"--resume {done['id']}" in row()["reason"]
    assert shown().endswith(": interrupted")
    told = run("sessions", "show", done["id"], "-d", copy).stderr
    assert told.splitlines()[-1] == f"go on with: neuronaut investigate --resume {done['id']}"
    lock = FileLock(f"{copy}.{done['id']}.lock")
    with lock:
        assert row()["status"] == "running" and shown().endswith(": running")


def test_a_replay_is_the_same_to_the_bit_until_something_is_changed(done: Mapping[str, Any], tmp_path: Path) -> None:
    judged, *notes = run("sessions", "replay", done["id"]).stdout.splitlines()
    assert "the same to the bit: supported" in judged
    assert len(notes) == 1 and notes[0].startswith("not judged again without the model: ")
    judged, again = run("sessions", "replay", done["id"], "--rerun").stdout.splitlines()
    assert "the same to the bit: supported" in judged and "run again: the same within 0.001" in again
    copy = tmp_path / "copy.db"
    run("db", "backup", copy)
    with Store(copy) as store:
        store.db.conn.execute("DROP TRIGGER predictions_update")
        store.db.conn.execute("UPDATE predictions SET expected = replace(expected, '1.0', '0.0')")
    result = run("sessions", "replay", done["id"], "-d", copy, code=1)
    assert "not the same" in result.stdout
    assert "the chain of predictions breaks at" in result.stdout


def test_a_replay_tells_that_verdicts_were_another_formulas(done: Mapping[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    run("db", "backup", copy)
    with Store(copy) as store:
        store.db.conn.execute(
            """UPDATE events SET payload = json_set(payload, '$.formula', 'verdicts-0', '$.rivals[0].log_odds', 9)
            WHERE kind = 'judged'"""
        )
    result = run("sessions", "replay", done["id"], "-d", copy, code=1)
    assert "come out otherwise" in result.stdout
    assert f"it was judged by verdicts-0, this Neuronaut judges by {FORMULA}" in result.stdout


def test_exports(done: Mapping[str, Any], tmp_path: Path) -> None:
    head, *rows = [json.loads(line) for line in run("sessions", "export", done["id"]).stdout.splitlines()]
    assert (head["format"], head["id"], head["seed"]) == ("neuronaut-investigation", done["id"], 0)
    assert set(head["splits"]) == {"train", "tune", "select", "holdout"}
    assert "torch" in head["packages"]
    assert [row["seq"] for row in rows if row["record"] == "event"] == [event["seq"] for event in done["events"]]
    file = tmp_path / "log.json"
    run("sessions", "export", done["id"], "--format", "inspect", "--output", file)
    assert json.loads(file.read_text(encoding="utf-8"))["eval"]["task"] == "neuronaut/investigate"


# The watch


def watched(events: list[Mapping[str, Any]], capsys: pytest.CaptureFixture[str], *, live: bool) -> str:
    with Watch(lambda _: {"H3": journals.HYPOTHESES[2].text}, live=live) as watch:
        for event in events:
            watch({"investigation": "abc", **event})
    return capsys.readouterr().err


def test_every_kind_of_event_is_told_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Store(":memory:") as store:
        events = store.journal.events(journals.fill(store.journal))
    assert {event["kind"] for event in events} >= KINDS
    assert all(format_event(event) and "\n" not in format_event(event) for event in events)
    plain = watched(events, capsys, live=False)
    assert len(plain.splitlines()) == len(events)
    assert "\x1b" not in plain


def test_a_terminal_shows_the_rivals_and_is_left_clean(capsys: pytest.CaptureFixture[str]) -> None:
    with Store(":memory:") as store:
        events = store.journal.events(journals.fill(store.journal))
    drawn = watched(events, capsys, live=True)
    assert "█" in drawn
    assert "fires on ` river`" in drawn
    assert drawn.endswith("\x1b[J")
    # What is drawn is what is cleared, so the cursor ends where it began.
    up = sum(int(number) for number in re.findall(r"\x1b\[(\d+)A", drawn))
    assert up == drawn.count("\n")
