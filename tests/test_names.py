"""Names on every way in, spreadsheets' formulas, and what would command a terminal."""

import csv
import io
import json
import sqlite3
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from neuronaut.cli import common, display
from neuronaut.cli.main import main
from neuronaut.data.store.export import write_csv, write_neuronpedia, write_uploads
from neuronaut.data.store.importing import Sources, import_files
from neuronaut.data.store.journal_values import InvestigationRecord
from neuronaut.data.store.lines import read
from neuronaut.data.store.listing import ROW_KEYS
from neuronaut.data.store.store import Store
from neuronaut.subject.address import LONGEST_NAME, SourceId, check_name
from neuronaut.subject.convention import BEFORE
from neuronaut.subject.directions import Promoted
from neuronaut.subject.errors import NeuronautError

from .stored import explanation, harvest_result

BAD = ("../../x", "..", ".", "", "a/b", "a\\b", "/etc", "-rf", "a\x1b[31m", "a\u202eb", "a\u009bb", "x" * 201)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_a_path_an_option_or_a_command_is_refused(name: str) -> None:
    with pytest.raises(NeuronautError, match="the dictionary name") as caught:
        check_name(name, what="dictionary")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["gpt2", "res-jb", "Ünï", "a.b", "..a", "x" * LONGEST_NAME])
def test_other_names_are_taken(name: str) -> None:
    check_name(name, what="dictionary")
    check_name(f"owner/{name}"[:LONGEST_NAME], what="model", parts=2)


@pytest.mark.parametrize(
    "name", ["demo:mlp.2@../../x", "../x:mlp.2", "a/b/c:mlp.2", "-m:mlp.2", "demo:mlp.2@a\x1b[31m"]
)
def test_a_harvest_under_such_a_name_is_not_stored(name: str) -> None:
    with Store(":memory:") as store:
        source = SourceId.parse(name)
        with pytest.raises(NeuronautError, match="name"):
            store.check_source(source, revision="", model_revision="weights-1", width=5, convention=BEFORE)
        with pytest.raises(NeuronautError, match="name"):
            store.write_harvest(harvest_result(name))
        assert store.sources() == []


def rename(path: Path, **columns: str) -> None:
    """Write into a database what this version would refuse."""
    with sqlite3.connect(path) as connection:
        for column, value in columns.items():
            connection.execute(f"UPDATE sources SET {column} = ?", [value])


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A database of before, whose source has a path for a name."""
    path = tmp_path / "hostile.db"
    with Store(path) as store:
        store.write_harvest(harvest_result("demo:mlp.2@sae"))
        store.add_explanation(explanation(source="demo:mlp.2@sae"))
    rename(path, name="demo:mlp.2@/../../../../out", dictionary="/../../../../out")
    return path


def test_a_database_with_such_a_source_is_not_merged_and_the_row_is_named(hostile: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "own.db") as store:
        with pytest.raises(NeuronautError, match=r"hostile\.db: source 'demo:mlp\.2@/\.\.(.*)': the dictionary name"):
            store.merge(hostile)
        assert store.sources() == []


def test_a_source_whose_columns_say_another_name_is_not_merged(hostile: Path, tmp_path: Path) -> None:
    rename(hostile, name="demo:mlp.2@sae")
    with Store(tmp_path / "own.db") as store, pytest.raises(NeuronautError, match="its model, site and dictionary are"):
        store.merge(hostile)


def test_a_session_whose_id_is_a_path_is_not_merged(tmp_path: Path) -> None:
    with Store(tmp_path / "other.db") as other:
        other.journal.begin(record("../../x"))
    with Store(tmp_path / "own.db") as store, pytest.raises(NeuronautError, match="the session name '../../x'"):
        store.merge(tmp_path / "other.db")


@pytest.mark.parametrize("model", [None, "../up"])
def test_an_export_never_writes_outside_its_folder(hostile: Path, tmp_path: Path, model: str | None) -> None:
    folder = tmp_path / "a" / "b" / "c" / "tree"
    with Store(hostile) as store:
        (id,) = [SourceId.parse(str(row["source"])) for row in store.sources()]
        assert store.list_rows()[1]["explanation"] == "fires on ` self`"  # it can still be read
        with pytest.raises(NeuronautError, match="has no place at Neuronpedia"):
            write_neuronpedia(store, folder, model=model)
        with pytest.raises(NeuronautError, match="has no place at Neuronpedia"):
            write_uploads(store, folder, id, promoted=lambda _: Promoted((), ()), model=model)
    assert not list(tmp_path.rglob("*.json*"))
    assert not [path for path in tmp_path.rglob("*") if path.is_dir()]


def test_an_import_refuses_an_explainer_that_commands_a_terminal(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    row = {"feature": "demo:mlp.2:1", "explanation": "text", "explainer": "x\x1b[31m"}
    file.write_text(json.dumps(row), encoding="utf-8")
    with Store(":memory:") as store:
        store.write_harvest(harvest_result())
        with pytest.raises(NeuronautError, match=r"in.jsonl:1: the explainer name 'x\\x1b"):
            import_files(store, [file], sources=Sources(store), check_rule=str)


# Cells


FORMULAS = (
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\n=1",
    "'=1",
    "''+1",
    "'",
    "'quoted'",
    "it's",
    "- a",
    "",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_that_a_spreadsheet_would_run_is_neutral_and_comes_back_as_it_was(text: str, tmp_path: Path) -> None:
    stream = io.StringIO()
    write_csv([dict.fromkeys(ROW_KEYS) | {"feature": "demo:mlp.2:1", "explanation": text, "score": -0.5}], stream)
    (cells,) = list(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert not cells["explanation"].startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert cells["score"] == "-0.5"
    file = tmp_path / "rows.csv"
    file.write_bytes(stream.getvalue().encode())
    ((_, row),) = read(file)
    assert row["explanation"] == (text or None)


# The terminal


@pytest.mark.parametrize(
    "arguments",
    [
        ("import", "no\x1b[31mfile.jsonl"),
        ("show", "demo:mlp.2\x1b]0;title\x07:3"),
        ("show", "x:mlp.2@\x9b31m:3"),
        ("no\x1b[31mverb",),
        ("--no\x1b[31moption",),
        ("list", "--limit", "\x1b[31m"),
        ("list", "--no\x1b[2Joption"),
        ("list", "-d", "no\x1b[31m.db"),
        ("harvest", "no\x1b[31mmodel", "mlp.2", "--corpus", "stdlib"),
    ],
)
def test_an_error_spells_out_what_would_command_the_terminal(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store(tmp_path / "neuronaut.db") as store:
        store.write_harvest(harvest_result())
    # CliRunner would take the colours away, which is what a terminal does not do.
    result = CliRunner().invoke(main, arguments, color=True)
    assert result.exit_code in (1, 2)
    assert not [c for c in result.output if not c.isprintable() and c != "\n"]
    assert "\\x" in result.output


def test_what_is_printed_beside_results_commands_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b]0;t\x07b\x9b31m\u202ec"
    common.say(hostile)
    common.emit([{"text": hostile}], "json", lambda _: "")
    common.emit([{"text": hostile}], "nl", lambda _: "")
    common.emit([{"text": hostile}], "table", lambda rows: str(rows[0]["text"]))
    out, err = capsys.readouterr()
    assert not [c for c in out + err if not c.isprintable() and c != "\n"]
    array, line, _ = out.rsplit("\n", 3)[0], out.split("\n")[-3], out.split("\n")[-2]
    assert json.loads(array)[0]["text"] == json.loads(line)["text"] == hostile


def test_our_own_colours_stay() -> None:
    styled = click.style("bold", bold=True) + "\x1b[2J"
    assert display.harmless(styled) == click.style("bold", bold=True) + "\\x1b[2J"


# Sessions


def record(id: str) -> InvestigationRecord:
    return InvestigationRecord(
        id=id, kind="feature", target="demo:mlp.2:1", policy="scripted", settings={}, provenance={}, parent=None
    )


@pytest.mark.parametrize("wild", ["%", "_", "a%", "*", "a?", "[ab]", "%2"])
def test_a_session_is_named_by_its_beginning_and_by_no_wildcard(wild: str) -> None:
    with Store(":memory:") as store:
        store.journal.begin(record("abc123"))
        assert store.journal.row("abc")["id"] == "abc123"
        with pytest.raises(NeuronautError, match="no investigation"):
            store.journal.row(wild)
