"""Exports read back: rows as JSON lines and CSV, Neuronpedia's lines, and uploads within its limits."""

import csv
import gzip
import io
import json
import resource
import subprocess
import sys
import tracemalloc
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from neuronaut.cli.main import main
from neuronaut.data.records import ExampleList
from neuronaut.data.store import export
from neuronaut.data.store.export import (
    EFFECTS,
    FEATURES,
    TEXT,
    TOKENS,
    WRITERS,
    Place,
    neuronpedia_lines,
    shorten,
    write_neuronpedia,
    write_uploads,
)
from neuronaut.data.store.listing import ROW_KEYS
from neuronaut.data.store.store import Store
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.directions import Promoted, TokenEffect, promoted
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.opening import open_source
from tests import planted
from tests.stored import explanation, harvest_result, score

NEURONS = SourceId.parse("demo:mlp.2")


@pytest.fixture
def store():
    with Store(":memory:") as store:
        store.write_harvest(harvest_result("demo:mlp.2", "demo:resid_post.2@sae"))
        store.add_result(explanation(0, 'commas, "quotes"\nand lines — ü'), [score(0.5), score(None, metric="auroc")])
        store.add_result(explanation(1, None, status="dense"), [])
        store.add_result(explanation(2, "below zero", negative=True), [score(0.7)])
        store.add_result(explanation(3, "brackets"), [score(0.1)])
        yield store


def test_rows_come_back_from_jsonl_and_csv(store):
    rows = store.list_rows()
    stream = io.StringIO()
    WRITERS["jsonl"](rows, stream)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == rows
    stream = io.StringIO()
    WRITERS["csv"](rows, stream)
    stream.seek(0)
    texts = [{key: "" if row[key] is None else str(row[key]) for key in ROW_KEYS} for row in rows]
    assert list(csv.DictReader(stream)) == texts


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("google/gemma-2-2b:resid_post.20@gemmascope-res-16k", ("gemma-2-2b", "20-gemmascope-res-16k")),
        ("gpt2:mlp.5", ("gpt2", "5-mlp")),
        ("gpt2:attn_out.11", ("gpt2", "11-attn-out")),
        ("gpt2:embed", ("gpt2", "embed")),
    ],
)
def test_places(source, place):
    assert Place.of(SourceId.parse(source)) == place
    assert Place.of(SourceId.parse(source), model="gpt2-small").model == "gpt2-small"


def planted_lines(store, **options):
    """Lines for both tables."""
    lines = list(neuronpedia_lines(store, NEURONS, **options))
    return [line.explanation for line in lines], [score for line in lines for score in line.scores]


def test_neuronpedia_lines(store):
    explanations, scores = planted_lines(store)
    assert [(line["index"], line["description"]) for line in explanations] == [
        ("0", 'commas, "quotes"\nand lines — ü'),
        ("3", "brackets"),
    ]
    required = {"id", "modelId", "layer", "index", "description", "authorId"}
    for line in explanations:
        assert set(line) == set(explanations[0]) >= required
        assert all(line[key] is not None for key in required)
        assert len(line["id"]) <= 25
    assert explanations[0]["typeName"] == "neuronaut_rule"
    assert [line["value"] for line in scores] == [0.5, 0.1]
    assert scores[0]["explanationId"] == explanations[0]["id"]
    assert json.loads(scores[0]["jsonDetails"])["baselines"] == {"token_rule": 0.2, "other_rule": None}
    assert len(planted_lines(store, min_score=0.4)[0]) == 1


def test_ids_depend_on_the_content_alone(store):
    with Store(":memory:") as other:
        other.write_harvest(harvest_result())
        other.add_result(explanation(3, "brackets"), [score(0.1)])
        explanations, scores = planted_lines(other)
        known_explanations, known_scores = planted_lines(store)
        assert explanations[0]["id"] == known_explanations[1]["id"]
        assert scores[0]["id"] == known_scores[1]["id"]
        other.add_explanation(explanation(4, "brackets"))
        assert len({row["id"] for row in planted_lines(other)[0]}) == 2


def test_the_tree_is_written_the_same_twice(store, tmp_path):
    paths = write_neuronpedia(store, tmp_path)
    root = tmp_path / "v1" / "demo" / "2-mlp"
    assert paths == [root / "explanations" / "batch-0.jsonl.gz", root / "explanation_scores" / "batch-0.jsonl.gz"]
    lines = [json.loads(line) for line in gzip.decompress(paths[0].read_bytes()).splitlines()]
    assert lines == planted_lines(store)[0]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_neuronpedia(store, tmp_path)] == before
    plain = write_neuronpedia(store, tmp_path / "plain", compress=False)
    assert plain[0].read_bytes() == gzip.decompress(paths[0].read_bytes())
    (tmp_path / "file").write_text("")
    with pytest.raises(NeuronautError, match="cannot be written"):
        write_neuronpedia(store, tmp_path / "file")


def test_two_sources_in_one_place_are_refused(tmp_path):
    with Store(":memory:") as store:
        store.write_harvest(harvest_result("a/demo:mlp.2"))
        store.write_harvest(harvest_result("b/demo:mlp.2"))
        with pytest.raises(NeuronautError, match="one place"):
            write_neuronpedia(store, tmp_path)


# Uploads


def javascript_length(text: str) -> int:
    return len(text) + sum(ord(character) > 0xFFFF for character in text)


@given(st.text(st.sampled_from("ab \n\t🙂é"), max_size=2 * TEXT) | st.text(max_size=2 * TEXT))
def test_a_text_is_cut_only_where_it_must_be_and_after_a_word(text):
    cut = shorten(text)
    assert javascript_length(cut) <= TEXT
    assert (cut == text) == (javascript_length(text) <= TEXT)
    if cut != text:
        kept = cut.removesuffix("…")
        assert text.startswith(kept) and kept != cut
        broken = not kept[-1:].isspace() and not text[len(kept)].isspace()
        # A word is broken only where there is no other place for the cut, or nothing was said before it.
        assert not broken or not kept.strip() or not any(c.isspace() for c in kept.lstrip())


def wide(features: int, positions: int, windows: int = 40):
    """A harvest in which window w activates every feature, with peak w + 1, at the end; 0 to 19 are the top ones."""
    base = harvest_result("demo:mlp.2", width=features)
    feature, window = np.divmod(np.arange(features * windows), windows)
    values = np.zeros((features * windows, positions), np.float16)
    values[:, -3] = window + 1
    lists = {
        "top": ExampleList(feature.astype(np.int32), window.astype(np.int32), values),
        "quantile": ExampleList(feature.astype(np.int32), window.astype(np.int32), values),
    }
    ids = np.random.default_rng(0).integers(0, 100, (windows, positions)).astype(np.int32)
    return replace(
        base,
        windows=ids,
        window=positions,
        splits=np.zeros(windows, np.int8),
        pool=np.zeros(windows, bool),
        documents=tuple(f"doc-{n}" for n in range(windows)),
        sources=(replace(base.sources[0], lists=lists),),
    )


EFFECT = tuple(TokenEffect(f" t{n}", 1.0 / (n + 1)) for n in range(99))
WRITES = Promoted(EFFECT, EFFECT, 1.0)


def bodies(paths: list[Path]) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def test_uploads_obey_every_limit(tmp_path):
    with Store(":memory:") as store:
        store.write_harvest(wide(FEATURES + 2, TOKENS + 100, windows=3))
        with store.transaction():
            for index in range(FEATURES + 2):
                store.add_explanation(explanation(index, "some words " * (index + 1)))
        found = write_uploads(store, tmp_path, NEURONS, promoted=lambda _: WRITES, method="np_max-act")
    assert [path.name for path in found.paths] == ["upload-0.json", "upload-1.json"] and found.silent == []
    assert found.shortened == [Feature(NEURONS, n) for n in range(46, FEATURES + 2)]
    read = bodies(found.paths)
    assert [len(body["features"]) for body in read] == [FEATURES, 2]
    for body in read:
        assert (body["modelId"], body["source"]) == ("demo", "2-mlp")
        for row in body["features"]:
            assert row.keys() == read[0]["features"][0].keys()
            assert len(row["topLogits"]) == len(row["bottomLogits"]) == EFFECTS
            assert 0 <= row["density"] <= 1 and isinstance(row["index"], int)
            (said,) = row["explanations"]
            assert javascript_length(said["text"]) <= TEXT
            assert (said["methodName"], said["modelName"]) == ("np_max-act", None)
            assert row["activations"]
            for window in row["activations"]:
                # The peak is near the end of a window that is too long, and stays in it.
                assert len(window["tokens"]) == len(window["values"]) == TOKENS and max(window["values"]) > 0


def test_uploads_have_the_strongest_windows_and_four_even_quantiles(tmp_path):
    with Store(":memory:") as store:
        store.write_harvest(wide(2, 16))
        store.add_explanation(explanation(0, "dates"))
        (path,) = write_uploads(store, tmp_path, NEURONS, promoted=lambda _: WRITES, model="gpt2-small").paths
    assert path == tmp_path / "gpt2-small" / "2-mlp" / "upload-0.json"
    sections = defaultdict(list)
    for window in bodies([path])[0]["features"][0]["activations"]:
        named = tuple(window[key] for key in ("quantileMin", "quantileMax", "quantileFraction"))
        sections[named].append(max(window["values"]))
    assert sections == {
        (None, None, None): [*range(40, 20, -1)],
        (31, 40, 0.25): [40, 39, 38, 37, 36],
        (21, 30, 0.25): [30, 29, 28, 27, 26],
        (11, 20, 0.25): [20, 19, 18, 17, 16],
        (1, 10, 0.25): [10, 9, 8, 7, 6],
    }


def test_features_without_a_window_are_left_out_and_told(store, tmp_path):
    store.write_harvest(harvest_result("demo:mlp.3", dead=(3,)))
    store.add_explanation(explanation(3, "brackets", source="demo:mlp.3"))
    found = write_uploads(store, tmp_path, SourceId.parse("demo:mlp.3"), promoted=lambda _: WRITES)
    assert found.silent == [Feature.parse("demo:mlp.3:3")] and not found.paths and not found.shortened
    found = write_uploads(store, tmp_path, NEURONS, promoted=lambda _: WRITES, min_score=0.4)
    # Not the negative tail of feature 2, which has no name there.
    assert [row["index"] for row in bodies(found.paths)[0]["features"]] == [0]


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_the_command_opens_the_model_and_tells_what_it_cut(tmp_path):
    model, corpus = planted.build(documents=40).save(tmp_path)
    here = ["-d", tmp_path / "planted.db"]
    run("harvest", model, "mlp.2", "--corpus", corpus, "--window", "32", *here)
    with Store(tmp_path / "planted.db") as store:
        store.add_explanation(explanation(3, "fires on ` river`, " * 40, source="planted:mlp.2"))
    upload = ["export", "--format", "neuronpedia-upload", *here]
    done = run(*upload, "--out", tmp_path / "up", "--model-id", "p", "--method", "human")
    (path,) = map(Path, done.stdout.splitlines())
    assert "1 cut to 512 characters: planted:mlp.2:3" in done.stderr
    (row,) = bodies([path])[0]["features"]
    subject = Subject.load(str(model))
    source = open_source(subject, SourceId.parse("planted:mlp.2"))
    effects = promoted(subject, source, Feature(source.id, 3), count=EFFECTS)
    assert [effect["token"] for effect in row["topLogits"]] == [effect.token for effect in effects.top]
    assert [effect["token"] for effect in row["bottomLogits"]] == [effect.token for effect in effects.bottom]
    assert "river" in {token.strip() for window in row["activations"] for token in window["tokens"]}
    assert "nothing is explained" in run(*upload, "-o", tmp_path / "up", "--min-score", "0.5").stderr
    assert "goes with neuronpedia-upload" in run("export", "--method", "human", *here, code=2).stderr
    assert "-o" in run(*upload, code=2).stderr


# Large exports, full disks, interrupts


@pytest.fixture
def many(tmp_path):
    """Stores with few and with many explained features."""

    def make(count: int) -> Path:
        path = tmp_path / f"{count}.db"
        with Store(path) as store, store.transaction():
            store.write_harvest(harvest_result(width=count))
            for index in range(count):
                store.add_result(explanation(index, f"feature {index} " + "fires on some words " * 20), [score(0.5)])
        return path

    return make


def write_all(kind: str, store: Store, folder: Path) -> None:
    if kind == "neuronpedia":
        write_neuronpedia(store, folder)
    else:
        with (folder / f"rows.{kind}").open("w") as stream:
            WRITERS[kind](store.iterate_rows(), stream)


def test_memory_does_not_grow_with_the_rows(many, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_BATCH", 50)
    peaks = defaultdict(list)
    for count in (300, 1500):
        with Store(many(count)) as store:
            for kind in ("jsonl", "csv", "neuronpedia"):
                tracemalloc.start()
                write_all(kind, store, tmp_path)
                peaks[kind].append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
    for kind, (few, plenty) in peaks.items():
        assert plenty < 1.5 * few, kind


@contextmanager
def files_of_at_most(size: int):
    """The operating system refuses to make any file longer, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def export_to(kind: str, folder: Path, database: Path) -> list[object]:
    output = folder / "tree" if kind == "neuronpedia" else folder / f"rows.{kind}"
    return ["export", "--format", kind, "-o", output, "-d", database]


KINDS = ["jsonl", "csv", "neuronpedia"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_no_half_file_and_says_so(many, tmp_path, kind):
    folder, database = tmp_path / "out", many(100)
    folder.mkdir()
    command = export_to(kind, folder, database)
    run(*command)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # Open all the while, so that the database's own files are there already.
    with Store(database) as store:
        store.add_result(explanation(0, "another"), [])
        with files_of_at_most(1000):
            told = run(*command, code=1).stderr
    assert told.count("\n") == 1 and "File too large" in told and "nothing half written is left" in told
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_leaves_no_half_file_and_says_so(many, tmp_path, monkeypatch, kind):
    folder, database = tmp_path / "out", many(100)
    folder.mkdir()
    method = "iterate_best" if kind == "neuronpedia" else "iterate_rows"
    iterate = getattr(Store, method)

    def interrupted(self, *arguments, **options):
        yield from islice(iterate(self, *arguments, **options), 50)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, method, interrupted)
        told = run(*export_to(kind, folder, database), code=130).stderr
    assert "nothing half written is left in" in told and "neuronaut export" in told
    assert not [path for path in folder.rglob("*") if path.is_file()]
    run(*export_to(kind, folder, database))


def test_a_full_standard_output_is_told(many):
    command = [sys.executable, "-m", "neuronaut", "export", "-d", str(many(100))]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


def test_devices_and_links_stay_what_they_are(many, tmp_path):
    database = many(5)
    assert "No space left on device" in run("export", "-o", "/dev/full", "-d", database, code=1).stderr
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "there.jsonl")
    run("export", "-o", tmp_path / "link.jsonl", "-d", database)
    assert (tmp_path / "link.jsonl").is_symlink() and (tmp_path / "there.jsonl").read_text().count("\n") == 5
