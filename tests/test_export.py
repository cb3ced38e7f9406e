"""Exports read back: rows as JSON lines and CSV, and Neuronpedia's lines."""

import csv
import gzip
import io
import json

import pytest

from neuronaut.data.export import WRITERS, Place, neuronpedia_lines, write_neuronpedia
from neuronaut.data.rows import ROW_KEYS
from neuronaut.data.store import Store
from neuronaut.subject.address import SourceId
from neuronaut.subject.errors import NeuronautError
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


def test_neuronpedia_lines(store):
    lines = neuronpedia_lines(store, NEURONS)
    assert [(line["index"], line["description"]) for line in lines.explanations] == [
        ("0", 'commas, "quotes"\nand lines — ü'), ("3", "brackets"),
    ]  # fmt: skip
    required = {"id", "modelId", "layer", "index", "description", "authorId"}
    for line in lines.explanations:
        assert set(line) == set(lines.explanations[0]) >= required
        assert all(line[key] is not None for key in required)
        assert len(line["id"]) <= 25
    assert lines.explanations[0]["typeName"] == "neuronaut_rule"
    assert [line["value"] for line in lines.scores] == [0.5, 0.1]
    assert lines.scores[0]["explanationId"] == lines.explanations[0]["id"]
    assert json.loads(lines.scores[0]["jsonDetails"])["baselines"] == {"token_rule": 0.2, "other_rule": None}
    assert len(neuronpedia_lines(store, NEURONS, min_score=0.4).explanations) == 1


def test_ids_depend_on_the_content_alone(store):
    with Store(":memory:") as other:
        other.write_harvest(harvest_result())
        other.add_result(explanation(3, "brackets"), [score(0.1)])
        line = neuronpedia_lines(other, NEURONS)
        known = neuronpedia_lines(store, NEURONS)
        assert line.explanations[0]["id"] == known.explanations[1]["id"]
        assert line.scores[0]["id"] == known.scores[1]["id"]
        other.add_explanation(explanation(4, "brackets"))
        assert len({row["id"] for row in neuronpedia_lines(other, NEURONS).explanations}) == 2


def test_the_tree_is_written_the_same_twice(store, tmp_path):
    paths = write_neuronpedia(store, tmp_path)
    root = tmp_path / "v1" / "demo" / "2-mlp"
    assert paths == [root / "explanations" / "batch-0.jsonl.gz", root / "explanation_scores" / "batch-0.jsonl.gz"]
    lines = [json.loads(line) for line in gzip.decompress(paths[0].read_bytes()).splitlines()]
    assert lines == neuronpedia_lines(store, NEURONS).explanations
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
