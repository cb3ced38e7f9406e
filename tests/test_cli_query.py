"""What `show`, `list`, `search` and `export` tell of explanations whose scores are planted."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from neuronaut.cli.main import main
from neuronaut.data.records import Explanation, Score
from neuronaut.data.store.store import Store
from neuronaut.subject.address import Feature
from tests import stored as planted


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def rows_of(*arguments: object) -> list[dict[str, Any]]:
    return json.loads(run(*arguments, "--json").stdout)


def test_show_tells_the_whole_text_its_curve_and_the_judges(tmp_path):
    tune = [{"clauses": 1, "tune": 0.5}, {"clauses": 2, "tune": 0.625}]
    told = Explanation(
        Feature.parse("demo:mlp.2:1"),
        "fires on names; less on verbs",
        "rule",
        rule='{"version": 1}',
        headline="fires on names",
        predictor='{"version": 1, "any": []}',
        provenance={"key": "k", "curve": tune},
    )
    holdout = {"curve": [{"clauses": 2, "correlation": 0.25}]}
    score = Score("simulation", "top_random", "correlation", 0.5, ci_low=0.4, ci_high=0.6, provenance=holdout)
    with Store(tmp_path / "told.db") as store:
        store.write_harvest(planted.harvest_result())
        store.add_result(told, [replace(score, backend="json", judge="small @ here # 1a2b")])
    show = ("show", "demo:mlp.2:1", "-n", "0", "-d", tmp_path / "told.db")
    (row,) = rows_of(*show)
    assert (row["explanation"], row["headline"]) == (told.text, told.headline)
    assert row["rule"] == {"version": 1} and row["predictor"] == {"version": 1, "any": []}
    assert row["curve"] == [
        {"clauses": 1, "tune": 0.5, "holdout": None},
        {"clauses": 2, "tune": 0.625, "holdout": 0.25},
    ]
    assert (row["scores"][0]["backend"], row["scores"][0]["judge"]) == ("json", "small @ here # 1a2b")
    lines = run(*show).stdout.splitlines()
    assert lines[1:6] == [told.text, "", "clauses  tune  holdout", "      1  0.50        –", "      2  0.62     0.25"]
    assert lines[-1].split()[-5:] == ["small", "@", "here", "#", "1a2b"] and "version" not in "".join(lines)
    assert 'predictor  {"version": 1, "any": []}' in run(*show, "--rule").stdout
    assert run("list", "-d", tmp_path / "told.db").stdout.count("fires on names") == 1
    assert "verbs" not in run("list", "-d", tmp_path / "told.db").stdout
    found = run("search", "verbs", "-d", tmp_path / "told.db").stdout
    assert "fires on names" in found and "verbs" not in found


def test_weak_explanations_are_told_and_filtered_everywhere(tmp_path):
    database = tmp_path / "weak.db"
    with Store(database) as store:
        store.write_harvest(planted.harvest_result())
        store.add_result(planted.explanation(0, "good"), [planted.score(0.8)])
        store.add_result(planted.explanation(1, "at chance"), [planted.score(0.05)])
    assert [row["status"] for row in rows_of("list", "--limit", "2", "-d", database)] == ["explained", "weak"]
    assert [row["explanation"] for row in rows_of("list", "--status", "weak", "-d", database)] == ["at chance"]
    assert [row["explanation"] for row in rows_of("list", "--beats-baseline", "-d", database)] == ["good"]
    assert rows_of("search", "chance", "--status", "explained", "-d", database) == []
    exported = run("export", "--status", "weak", "-d", database).stdout.splitlines()
    assert [json.loads(line)["status"] for line in exported] == ["weak"]
    (path, _) = run("export", "--format", "neuronpedia", "-o", tmp_path / "tree", "-d", database).stdout.splitlines()
    lines = map(json.loads, gzip.decompress(Path(path).read_bytes()).splitlines())
    assert [(line["description"], line["notes"]) for line in lines] == [("good", None), ("at chance", "weak")]
    assert "weak" in run("list", "--status", "strong", "-d", database, code=2).stderr
