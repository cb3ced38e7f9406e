"""Imports: what one database exports another takes in, once; what cannot be read names its file and line."""

import gzip
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from neuronaut.cli.exchange import ranges
from neuronaut.cli.main import main
from neuronaut.data.store import importing
from neuronaut.data.store.export import WRITERS, neuronpedia_lines, write_neuronpedia
from neuronaut.data.store.importing import Imported, Sources, import_files
from neuronaut.data.store.lines import list_tables
from neuronaut.data.store.store import Store
from neuronaut.rules.language import Rule
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.errors import NeuronautError
from tests.stored import explanation, harvest_result, score

NEURONS = SourceId.parse("demo:mlp.2")
SAE = "demo:resid_post.2@sae"
RULE = '{"version":1,"any":[{"when":[{"token":[" self"]}],"value":1.0}]}'
SCORED = ("score", "ci_low", "ci_high", "metric", "scorer", "baseline", "n")


def harvested(path: str | Path = ":memory:") -> Store:
    store = Store(path)
    store.write_harvest(harvest_result(str(NEURONS), SAE))
    return store


@pytest.fixture
def labelled():
    with harvested() as store:
        store.add_result(explanation(0, 'commas, "quotes"\r\nand lines\u2028— ü 🙂'), [score(0.5)])
        store.add_result(explanation(1, None, status="dense"), [])
        store.add_result(replace(explanation(2, "below zero", negative=True), headline="below"), [score(0.7)])
        store.add_result(explanation(3, " space around ", source=SAE, explainer="oneshot"), [score(0.1)])
        yield store


@pytest.fixture
def fresh():
    with harvested() as store:
        yield store


def taken(store: Store, path: Path, *, source: str | None = None, model: str | None = None) -> Imported:
    sources = Sources(store, source=source and SourceId.parse(source), model=model)
    (report,) = import_files(store, [path], sources=sources, check_rule=lambda text: Rule.parse(text).to_json())
    return report


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def exported(store: Store, path: Path) -> Path:
    stream = io.StringIO()
    WRITERS[path.name.split(".")[1]](store.list_rows(), stream)
    content = stream.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# Round trips


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.csv.gz"])
def test_rows_come_back_without_their_scores(labelled, fresh, tmp_path, name):
    report = taken(fresh, exported(labelled, tmp_path / name))
    explained = [row for row in labelled.list_rows() if row["explanation"] is not None]
    rest = [row for row in labelled.list_rows() if row["explanation"] is None]
    assert (report.added, report.without_text, report.with_scores) == (3, len(rest), 3)
    # Without scores nothing is weak.
    left = {"status": "explained"} | dict.fromkeys(SCORED)
    wanted = [row | {"explainer": f"import:{row['explainer']}"} | left for row in explained]
    assert {row["status"] for row in explained} == {"explained", "weak"}
    assert [row for row in fresh.list_rows() if row["explanation"] is not None] == wanted
    again = taken(fresh, exported(labelled, tmp_path / name))
    assert (again.added, again.already_there, again.not_matched) == (0, 3, {})
    # A copy of a copy is an equal copy, and it is known where the first one is.
    with harvested() as third:
        assert taken(third, exported(fresh, tmp_path / name)).added == 3
        assert third.list_rows() == fresh.list_rows()
    assert taken(fresh, exported(fresh, tmp_path / name)).added == 0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(texts=["a\rb", "c\n"])
@given(texts=st.lists(st.text(min_size=1).filter(lambda text: text.replace("\0", " ").strip()), min_size=1, max_size=5))
def test_any_text_survives_both_formats(tmp_path, texts):
    with harvested() as store:
        for index, text in enumerate(texts):
            store.add_explanation(explanation(index, text))
        said = [row["explanation"] for row in store.list_rows(NEURONS)]
        for name in ("rows.jsonl", "rows.csv"):
            with harvested() as other:
                assert taken(other, exported(store, tmp_path / name)).added == len(texts)
                assert [row["explanation"] for row in other.list_rows(NEURONS)] == said


def test_neuronpedia_lines_come_back_and_go_out_as_they_came(labelled, fresh, tmp_path):
    for path in (path for path in write_neuronpedia(labelled, tmp_path) if path.parent.name == "explanations"):
        assert taken(fresh, path).added == 1
        assert taken(fresh, path).already_there == 1
    for source in (NEURONS, SourceId.parse(SAE)):
        lines = [line.explanation for line in neuronpedia_lines(labelled, source)]
        assert [line.explanation for line in neuronpedia_lines(fresh, source)] == lines
        assert all(row.keys() == lines[0].keys() and len(row["id"]) <= 25 for row in lines)
    theirs = {
        "id": "cm5x8k",
        "modelId": "gpt2-small",
        "layer": "2-mlp",
        "index": "4",
        "description": "dates",
        "authorId": "someone",
        "typeName": "np_max-act-logits",
        "explanationModelName": "gemini-2.0-flash",
        "notes": None,
        "createdAt": "2024-11-25T23:13:39.441Z",
        "triggeredByUserId": None,
        "embedding": [0.25] * 256,
    }
    taken(fresh, written(tmp_path / "theirs.jsonl", theirs), model="gpt2-small")
    (line,) = [row for row, _ in neuronpedia_lines(fresh, NEURONS, model="gpt2-small") if row["index"] == "4"]
    assert line == {key: value for key, value in theirs.items() if key != "embedding"}
    # At another place it is another feature's, so it cannot have the same id.
    (moved,) = [row for row, _ in neuronpedia_lines(fresh, NEURONS) if row["index"] == "4"]
    assert moved["id"] != theirs["id"] and moved["modelId"] == "demo" and moved.keys() == line.keys()
    stored = fresh.best(Feature(NEURONS, 4)).explanation
    assert stored.explainer == "import:np_max-act-logits" and stored.text == "dates" and stored.seen == ()
    assert stored.provenance["seen"] == "unknown" and stored.provenance["file"] == "theirs.jsonl"
    assert stored.provenance["origin"]["explanationModelName"] == "gemini-2.0-flash"
    assert "embedding" not in stored.provenance["origin"]


def test_who_says_what_of_which_feature_makes_the_key(fresh, tmp_path):
    row = {"feature": "demo:mlp.2:1", "explanation": "dates", "explainer": "me", "author": "a", "llm": "x"}
    changes = {"feature": "demo:mlp.2:2", "explanation": "years", "explainer": "you", "author": "b", "llm": "y"}
    others = [row | {key: value} for key, value in changes.items()]
    assert taken(fresh, written(tmp_path / "a.jsonl", row, row, *others)).added == 6
    noted = row | {"notes": "checked", "score": 0.5}
    assert taken(fresh, written(tmp_path / "b.jsonl", noted)).already_there == 1


def test_rules_are_checked_and_kept(fresh, tmp_path):
    row = {"feature": "demo:mlp.2:1", "explanation": "self", "rule": json.loads(RULE)}
    taken(fresh, written(tmp_path / "a.jsonl", row))
    assert fresh.best(Feature(NEURONS, 1)).explanation.rule == Rule.parse(RULE).to_json()
    assert taken(fresh, written(tmp_path / "b.jsonl", row | {"rule": RULE})).already_there == 1


# Which feature is meant


def test_what_is_not_here_is_told_by_line(fresh, tmp_path):
    path = written(
        tmp_path / "rows.jsonl",
        {"feature": "demo:mlp.2:1", "explanation": "here"},
        {"feature": "demo:mlp.9:1", "explanation": "no such source"},
        "",
        {"feature": "demo:mlp.2:5", "explanation": "no such index"},
        {"modelId": "demo", "layer": "9-mlp", "index": 1, "description": "no such place"},
        {"feature": "demo:mlp.9:2", "explanation": "no such source"},
    )
    report = taken(fresh, path)
    assert (report.rows, report.added) == (5, 1)
    assert report.not_matched == {
        "demo:mlp.9 is not in the database": [2, 6],
        "the index is beyond the 5 features of demo:mlp.2": [4],
        "demo/9-mlp is not in the database": [5],
    }


def test_a_source_may_be_called_otherwise_but_by_one_name(fresh, tmp_path):
    line = {"modelId": "gpt2-small", "layer": "2-res-jb", "index": "3", "description": "dates"}
    assert taken(fresh, written(tmp_path / "a.jsonl", line)).not_matched
    assert taken(fresh, written(tmp_path / "a.jsonl", line), source=SAE).added == 1
    assert fresh.best(Feature(SourceId.parse(SAE), 3)).explanation.text == "dates"
    with pytest.raises(NeuronautError, match=r"b.jsonl:2: gpt2-small/3-res-jb and, before it, gpt2-small/2-res-jb"):
        taken(fresh, written(tmp_path / "b.jsonl", line, line | {"layer": "3-res-jb"}), source=SAE)
    with pytest.raises(NeuronautError, match="is not in the database"):
        taken(fresh, tmp_path / "a.jsonl", source="demo:mlp.9")


def test_a_place_of_two_sources_is_not_guessed(tmp_path):
    with Store(":memory:") as store:
        store.write_harvest(harvest_result("a/demo:mlp.2"))
        store.write_harvest(harvest_result("b/demo:mlp.2"))
        line = {"modelId": "demo", "layer": "2-mlp", "index": "3", "description": "dates"}
        path = written(tmp_path / "a.jsonl", line)
        assert list(taken(store, path).not_matched) == ["demo/2-mlp could be a/demo:mlp.2 or b/demo:mlp.2"]
        assert taken(store, path, source="b/demo:mlp.2").added == 1


def test_folders_give_their_explanations_in_order(tmp_path):
    tree = tmp_path / "v1" / "demo" / "2-mlp"
    for name in (
        "explanations/batch-10.jsonl.gz",
        "explanations/batch-2.jsonl.gz",
        "features/batch-0.jsonl.gz",
        "explanation_scores/batch-0.jsonl",
        "source.jsonl",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    wanted = ["batch-2.jsonl.gz", "batch-10.jsonl.gz"]
    for folder in (tmp_path, tree, tree / "explanations"):
        assert [path.name for path in list_tables(str(folder))] == wanted
    assert [path.name for path in list_tables(str(tree / "features"))] == ["batch-0.jsonl.gz"]
    (tmp_path / "empty").mkdir()
    for named, words in {
        "empty": "holds no explanations",
        "none": "no file or folder",
        "a.txt": "wanted a file",
    }.items():
        (tmp_path / "a.txt").touch()
        with pytest.raises(NeuronautError, match=words):
            list_tables(str(tmp_path / named))


# What cannot be read

GOOD = '{"feature": "demo:mlp.2:1", "explanation": "here"}'
BAD_LINES = {
    "{": "is no JSON",
    "[1]": "JSON list, wanted one object",
    "[" * 9999: "is no JSON",
    "NaN": "is no JSON",
    '{"feature": "demo:mlp.2:1", "explanation": "x", "n": NaN}': "NaN is no number",
    '{"feature": "demo:mlp.2:1"}': "the columns are feature; wanted feature and explanation",
    '{"feature": "demo", "explanation": "x"}': "'demo' is not MODEL:SITE:INDEX",
    '{"feature": null, "explanation": "x"}': "feature is null, wanted text",
    '{"feature": "demo:mlp.2:1", "explanation": 5}': "explanation is 5, wanted text",
    '{"feature": "demo:mlp.2:1", "explanation": "x", "rule": "{}"}': r"rule: .*\$",
    '{"modelId": "demo", "layer": "2-mlp", "index": "-1", "description": "x"}': "index is '-1', wanted a number",
    '{"modelId": "demo", "layer": 2, "index": "1", "description": "x"}': "layer is 2, wanted text",
    '{"modelId": "demo", "layer": "2-mlp", "index": 1, "description": "x", "id": "%s"}' % ("i" * 26): "id has 26",
}


@pytest.mark.parametrize(("line", "words"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named_and_nothing_is_imported(fresh, tmp_path, line, words):
    with pytest.raises(NeuronautError, match=rf"rows\.jsonl:3: .*{words}") as told:
        taken(fresh, written(tmp_path / "rows.jsonl", GOOD, "", line, GOOD))
    assert "\n" not in str(told.value)
    assert fresh.best(Feature(NEURONS, 1)) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'feature,explanation\ndemo:mlp.2:1,"two\nlines"\ndemo:mlp.2:2\n', "rows.csv:4: 1 fields came, wanted 2"),
        (b'feature,explanation\ndemo:mlp.2:1,"open\n', "rows.csv:2: this is no CSV"),
        (b"feature,explanation\ndemo:mlp.2:1,\xff\n", "rows.csv:2: this is not UTF-8"),
        (b"feature,text\ndemo:mlp.2:1,x\n", "rows.csv:2: the columns are feature, text"),
        (b'feature,explanation\ndemo:mlp.2:1,"two\n\nlines"\nnowhere,x\n', "rows.csv:5: 'nowhere' is not"),
    ],
)
def test_bad_csv_is_named_by_line(fresh, tmp_path, content, words):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(NeuronautError, match=words):
        taken(fresh, tmp_path / "rows.csv")
    assert fresh.best(Feature(NEURONS, 1)) is None


def test_a_byte_order_mark_is_no_column_and_a_cut_archive_is_told(fresh, tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbffeature,explanation\r\ndemo:mlp.2:1,dates\r\n\r\n")
    assert taken(fresh, tmp_path / "rows.csv").added == 1
    whole = gzip.compress((GOOD + "\n").encode() * 500)
    for content in (whole[:-9], b"no archive"):
        (tmp_path / "rows.jsonl.gz").write_bytes(content)
        with pytest.raises(NeuronautError, match="cannot be read after line"):
            taken(fresh, tmp_path / "rows.jsonl.gz")


# In pieces

ROWS = [{"feature": f"demo:mlp.2:{number % 5}", "explanation": f"text {number}"} for number in range(20)]


def test_the_lock_is_not_held_while_rows_are_read_nor_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "AHEAD", 7)
    path = written(tmp_path / "rows.jsonl", *({**row, "rule": RULE} for row in ROWS))
    with harvested(tmp_path / "a.db") as store, harvested(tmp_path / "a.db") as other:
        said = []
        store.db.conn.set_trace_callback(said.append)

        def check(rule: str) -> str:
            # Another process can write while a row is read.
            other.add_explanation(explanation(1, f"theirs {len(said)}", key=str(len(said))))
            return Rule.parse(rule).to_json()

        (report,) = import_files(store, [path], sources=Sources(store), check_rule=check)
        assert (report.added, said.count("BEGIN IMMEDIATE"), said.count("COMMIT")) == (20, 3, 3)


def test_a_broken_import_goes_on_and_adds_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "AHEAD", 4)
    database = tmp_path / "a.db"
    harvested(database).close()
    path = written(tmp_path / "rows.jsonl", *ROWS)
    add, count = Store.add_explanations, itertools.count()

    def stopped(self, explanations):
        if next(count) == 2:
            raise KeyboardInterrupt
        return add(self, explanations)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_explanations", stopped)
        told = run("import", path, "-d", database, code=130).stderr
    assert "is not added again" in told and f"go on with: neuronaut import {path}" in told
    with Store(database) as store:
        assert store.status()["explanations"] == 8
        report = taken(store, path)
        assert (report.rows, report.added, report.already_there) == (20, 12, 8)
        assert store.status()["explanations"] == 20


def test_rows_of_one_import_are_compared_with_each_other_too(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "AHEAD", 3)
    first, second = written(tmp_path / "a.jsonl", *ROWS, *ROWS), written(tmp_path / "b.jsonl", *ROWS[:5])
    with harvested() as store:
        reports = import_files(store, [first, second], sources=Sources(store), check_rule=str)
        assert [(r.rows, r.added, r.already_there) for r in reports] == [(40, 20, 20), (5, 0, 5)]
        assert store.status()["explanations"] == 20


# The command


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_the_command_counts_and_tells(labelled, tmp_path):
    database = tmp_path / "fresh.db"
    harvested(database).close()
    path = exported(labelled, tmp_path / "rows.jsonl")
    with path.open("a") as stream:
        stream.write('{"feature": "demo:mlp.9:1", "explanation": "x"}\n' * 3)
    (row,) = json.loads((done := run("import", path, "-d", database, "--json")).stdout)
    assert (row["rows"], row["added"], row["already_there"], row["without_text"], row["with_scores"]) == (
        14,
        3,
        0,
        8,
        3,
    )
    assert row["not_matched"] == [{"reason": "demo:mlp.9 is not in the database", "rows": 3, "lines": "12-14"}]
    assert "demo:mlp.9 is not in the database: " in done.stderr and "rows.jsonl:12-14" in done.stderr
    assert done.stderr.count("neuronaut score") == 1
    table = run("import", path, "-d", database).stdout.splitlines()
    assert table[0].split() == ["file", "rows", "added", "already", "there", "without", "text", "not", "matched"]
    assert table[1].split()[1:] == ["14", "0", "3", "8", "3"]


def test_one_bad_file_leaves_all_out(tmp_path):
    database = tmp_path / "fresh.db"
    harvested(database).close()
    good, bad = written(tmp_path / "a.jsonl", GOOD), written(tmp_path / "b.jsonl", GOOD, "{")
    error = run("import", good, bad, "-d", database, code=1).stderr
    assert f"{bad}:2: " in error and error.count("\n") == 1
    with Store(database) as store:
        assert store.best(Feature(NEURONS, 1)) is None


def test_an_import_of_nothing_is_an_error_that_says_how(tmp_path):
    database = tmp_path / "fresh.db"
    harvested(database).close()
    path = written(tmp_path / "a.jsonl", {"feature": "gpt2:mlp.2:1", "explanation": "x"})
    assert "--source" in run("import", path, "-d", database, code=1).stderr
    assert run("import", path, "-d", database, "--source", "demo:mlp.2").stdout
    run("import", path, "-d", database, "--source", "demo:mlp.2", "--model-id", "x", code=2)
    run("import", "-d", database, code=2)


def test_ranges():
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert ranges([]) == ""
