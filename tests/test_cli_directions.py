"""`directions` and `find` on the planted model: from texts to a feature that every verb takes, and what is refused."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from neuronaut.cli.main import main
from neuronaut.subject.direction_matrix import read_directions
from tests import planted

SITE = "resid_post.2"


class World(NamedTuple):
    model: str
    corpus: str
    folder: Path
    file: str
    database: str


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def rows_of(*arguments: object) -> list[dict[str, Any]]:
    return json.loads(run(*arguments, "--json").stdout)


def write(file: Path, *words: str) -> str:
    names, verbs = ("Anna", "Boris", "Clara", "David"), ("saw", "left", "liked", "found", "forgot")
    pairs = enumerate((name, verb) for name in names for verb in verbs)
    file.write_text("".join(f"{name} {verb} {words[i % len(words)]} .\n" for i, (name, verb) in pairs))
    return str(file)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A fitted direction and a token's, in one file; a database with them, one labelled, and with the neurons."""
    folder = tmp_path_factory.mktemp("directions")
    model, corpus = planted.build(documents=60).save(folder)
    write(folder / "city.txt", "Paris", "Cairo", "Lima")
    write(folder / "colour.txt", "red", "green", "blue")
    found = World(str(model), str(corpus), folder, str(folder / "city.safetensors"), str(folder / "x.db"))
    run(
        *("directions", "fit", model, "--positive", folder / "city.txt", "--negative", folder / "colour.txt"),
        *("--site", SITE, "--out", found.file, "--shuffles", 20),
    )
    run("directions", "add", model, "--site", SITE, "--token", " Oslo", "--out", found.file)
    common = ["--corpus", corpus, "--window", "32", "-d", found.database, "--device", "cpu", "--tokens", "8k"]
    said = run("harvest", model, "--sae", found.file, *common).stderr
    assert f"planted:{SITE}@city: 2 directions as the file has them, lengths" in said
    run("harvest", model, "mlp.2", *common)
    run("label", f"planted:{SITE}@city:0", "-d", found.database)
    return found


def test_a_fit_tells_its_figures_and_the_file_keeps_them(world: World) -> None:
    (row,) = rows_of(
        *("directions", "fit", world.model, "--positive", world.folder / "city.txt"),
        *("--negative", world.folder / "colour.txt", "--site", SITE, "--shuffles", 20),
    )
    assert (row["name"], row["site"], row["method"], row["position"]) == ("city", SITE, "diff-means", "mean")
    assert row["auroc"] == 1 and row["ci_low"] < row["ci_high"] == 1 and row["p"] < 0.05 < row["shuffled"]
    fitted, token = rows_of("directions", "list", world.file)
    assert fitted["auroc"] == [row["auroc"], row["ci_low"], row["ci_high"]] and fitted["length"] == row["length"]
    assert (token["name"], token["method"], token["offset"]) == ("token  Oslo", "unembedding", 0)


def test_components_are_listed_with_their_share(world: World) -> None:
    rows = rows_of(
        *("directions", "add", world.model, "--site", SITE, "--components", 2),
        *("--corpus", world.corpus, "--corpus-tokens", "1k"),
    )
    assert [row["name"] for row in rows] == ["component 0", "component 1"]
    assert 1 > rows[0]["variance"] > rows[1]["variance"] > 0


def test_a_direction_is_listed_shown_searched_tried_and_exported_by_its_name(world: World) -> None:
    listed = {row["feature"]: row for row in rows_of("list", "-d", world.database)}
    assert listed[f"planted:{SITE}@city:1"]["name"] == "token  Oslo" and listed["planted:mlp.2:3"]["name"] is None
    feature = f"planted:{SITE}@city:0"
    (shown,) = rows_of("show", feature, "-d", world.database)
    found = shown["provenance"]["harvest"]["directions"][f"planted:{SITE}@city"]
    assert shown["name"] == "city" and found["found"][0]["method"] == "diff-means" and shown["stats"]["trough"] < 0
    assert f"{feature} (city)" in run("show", feature, "-d", world.database).stdout
    assert any(city in shown["explanation"] for city in ("Paris", "Cairo", "Lima"))
    assert rows_of("search", shown["explanation"].split("`")[1].strip(), "-d", world.database)[0]["name"] == "city"
    city, colour = rows_of("try", feature, "Anna saw Paris .", "Anna saw red .", "-d", world.database)
    assert city["actual"][2] > 0 > colour["actual"][2] and city["actual"][:2] == colour["actual"][:2]
    source = next(row for row in rows_of("sources", "-d", world.database) if "@city" in row["source"])
    assert source["kind"] == "directions" and source["signed"]
    assert run("export", "-d", world.database, "--format", "jsonl").stdout.count("@city:0") == 1


def test_a_direction_is_steered_edited_and_attributed(world: World) -> None:
    unit, sae = f"{SITE}@city:0", ("--sae", world.file)
    rows = rows_of(
        *("steer", world.model, f"{unit}+=1", "Anna saw", *sae, "--reference", world.corpus),
        *("--strengths", "0,1", "--tokens", 0, "--controls", 2),
    )
    assert [row["strength"] for row in rows] == [0, 1] and rows[1]["max_change"] > 0
    assert "fired" in run("run", world.model, "Anna saw", *sae, "--edit", f"{unit}=0", "--controls", 1).stdout
    (row,) = rows_of(
        *("attribute", world.model, "Anna saw Paris", *sae, "--inputs", "gradient", "--feature", f"planted:{unit}")
    )
    assert len(row["values"]) == len(row["tokens"])
    refused = run("attribute", world.model, "Anna saw", *sae, "--split", f"{SITE}@city", code=1).stderr
    assert "holds directions, which do not add up to a vector" in refused


def test_a_direction_is_investigated(world: World) -> None:
    arguments = ("investigate", f"planted:{SITE}@city:0", "-d", world.database, "--budget", "minutes=0.2", "--json")
    result = CliRunner().invoke(main, arguments)
    (row,) = json.loads(result.stdout)
    assert row["target"] == f"planted:{SITE}@city:0" and row["status"] in (
        "supported",
        "open",
        "no_explanation",
        "budget",
    )


def test_features_are_found_with_labels_and_names(world: World) -> None:
    rows = rows_of("find", "planted", "Anna saw Paris .", "--token", "Paris", "-d", world.database)
    own = next(row for row in rows if row["feature"] == f"planted:{SITE}@city:0")
    assert own["name"] == "city" and own["explanation"] and own["relative"] > 0 and own["token"].strip() == "Paris"
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    only = rows_of("find", world.model, "Anna saw Paris .", "--source", "mlp.2", "-n", 3, "-d", world.database)
    assert 0 < len(only) <= 3 and all(":mlp.2:" in row["feature"] for row in only)


def test_what_tells_files_apart_is_found_without_a_database(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(
        *("find", world.model, "--positive", world.folder / "city.txt", "--negative", world.folder / "colour.txt"),
        *("--source", f"{SITE}@city", "--sae", world.file, "-n", 1),
    )
    assert "there is no database neuronaut.db: features have activations alone" in result.stderr
    assert f"planted:{SITE}@city:0" in result.stdout and "q at most 0.05 (Benjamini-Hochberg)" in result.stderr
    assert not any(tmp_path.iterdir())
    (row,) = rows_of(
        *("find", world.model, "--positive", world.folder / "city.txt", "--negative", world.folder / "colour.txt"),
        *("--source", f"{SITE}@city", "--sae", world.file, "-n", 1),
    )
    assert row["level"] == pytest.approx(1 - 0.05 / row["tested"]) and f"of {row['tested']} tests have" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["find", "planted"], 2, "name one TEXT, or --positive and --negative"),
        (["find", "planted", "x", "--positive", "a"], 2, "--positive and --negative go together"),
        (["find", "planted", "x", "--against", "y", "--token", "x"], 2, "--token is of one TEXT"),
        (["find", "other", "x", "-d", "none.db"], 1, "there is no database none.db"),
        (["find", "demo", "x", "--sae", "x.safetensors"], 2, "--sae is of a --source; name it"),
        (["find", "demo", "x", "--by", "mean"], 2, "--by is of --positive and --negative"),
        (["directions", "add", "demo", "--site", SITE], 2, "name --components N or --token TOKEN"),
        (["directions", "add", "demo", "--site", SITE, "--token", "x", "--corpus", "stdlib"], 2, "--corpus is of"),
        (["directions", "list", "none.npy"], 1, "none.npy cannot be read"),
    ],
)
def test_what_makes_no_sense_is_said(arguments: list[str], code: int, message: str) -> None:
    assert message in run(*arguments, code=code).output


def test_files_that_do_not_fit_are_said_in_one_line(world: World, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"

    def hold(rows: int, width: int, **metadata: str) -> None:
        save_file({"directions": torch.eye(width)[:rows]}, file, metadata)

    def add(message: str) -> None:
        said = run("directions", "add", world.model, "--site", SITE, "--token", " Oslo", "--out", file, code=1).stderr
        assert message in said and said.strip().count("\n") == 0

    width = read_directions(world.file).rows.shape[1]
    hold(3, width, names='["a"]')
    add("has 3 directions and 1 names; wanted one for each, or none")
    hold(3, width, names='["a", "a", "b"]')
    add("holds directions of the same name")
    hold(2, 3)
    add(f"holds directions of 3 coordinates, and {SITE} of planted has {width}")
    hold(1, width, provenance='[{"auroc": 0.93}]')
    assert "0.93" in run("directions", "list", file).stdout
    assert "with: neuronaut directions list" in run("sources", "inspect", file, code=1).stderr
    said = run("find", "planted", "Anna saw Paris .", "--token", "²", "-d", world.database, code=1).stderr
    assert "the text has no token ²" in said
