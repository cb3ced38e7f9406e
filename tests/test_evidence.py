"""Evidence from elsewhere: four kinds of files become features that need no model."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.cli.main import main
from neuronaut.data.store.evidence import Imported, import_evidence, recorded_source, recorded_subject
from neuronaut.data.store.evidence_files import Naming, list_evidence
from neuronaut.data.store.store import Store
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.loading import load_tokens
from tests.stored import harvest_result
from tests.test_label_llm import reader, served

SOURCE = "far:mlp.3"
WORDS = [" house", " old", " tree", " stone", " small", " bird", " sky", " road"]
FIRES = {7: " river", 9: " red"}
"""Two features and the word that each fires on."""


def window(index: int, seed: int) -> tuple[list[str], list[float]]:
    """Twelve words, in two of three of which the feature's own stands, and its activations."""
    generator = np.random.default_rng([index, seed])
    tokens = [str(word) for word in generator.choice(WORDS, 12)]
    if seed % 3:
        tokens[int(generator.integers(12))] = FIRES[index]
    return tokens, [(4.0 + seed % 5) * (token == FIRES[index]) for token in tokens]


def own(index: int, seed: int, **more: object) -> dict[str, object]:
    tokens, activations = window(index, seed)
    return {"feature": f"{SOURCE}:{index}", "tokens": tokens, "activations": activations, **more}


def neuron_record(index: int) -> dict[str, Any]:
    records = [dict(zip(("tokens", "activations"), window(index, seed), strict=True)) for seed in range(60)]
    return {
        "dataclass_name": "NeuronRecord",
        "neuron_id": {"dataclass_name": "NeuronId", "layer_index": 3, "neuron_index": index},
        "most_positive_activation_records": [r for r in records if any(r["activations"])],
        "random_sample": [r for r in records if not any(r["activations"])],
        "random_sample_by_quantile": None,
    }


def neuronpedia(index: int, seed: int) -> dict[str, Any]:
    tokens, values = window(index, seed)
    place = {"id": f"{index}-{seed}", "modelId": "far", "layer": "3-mlp", "index": str(index)}
    return {**place, "tokens": ["<bos>", *tokens], "values": [99.0, *values], "maxValue": max(values)}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def rows_of_ours() -> list[dict[str, object]]:
    return [own(index, seed) for index in FIRES for seed in range(60)]


def taken(path: Path, *, source: str | None = None, tokens: Any = None) -> tuple[Store, list[Imported]]:
    store = Store(":memory:")
    return store, import_evidence(store, list_evidence(str(path)), Naming(source, tokens))


def test_three_formats_of_one_recording_make_the_same_evidence(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours.jsonl", rows_of_ours())
    for index in FIRES:
        write(tmp_path / "records" / f"{index}.json", [neuron_record(index)])
    pedia = [neuronpedia(index, seed) for index in FIRES for seed in range(60)]
    write(tmp_path / "v1" / "far" / "3-mlp" / "activations" / "batch-0.jsonl.gz", pedia)
    made = [
        taken(ours),
        taken(tmp_path / "records", source="far:mlp.{layer}"),
        taken(tmp_path / "v1", source="far:mlp.{layer}"),
    ]
    for store, (report,) in made:
        assert (report.source, report.features, report.windows, report.documents) == (SOURCE, 2, 120, 120)
        assert report.tokens == 120 * 12
        assert min(report.train, report.select, report.holdout) >= 20
        assert [str(feature) for feature in store.features(SOURCE)] == [f"{SOURCE}:7", f"{SOURCE}:9"]
        evidence = store.evidence(Feature.parse(f"{SOURCE}:7"))
        assert evidence.statistics.peak == 8.0 and evidence.statistics.tokens == 120 * 12
        assert evidence.statistics.density == pytest.approx(40 / (120 * 12))
        for example in evidence.examples:
            fires = [float(value) > 0 for value in example.activations]
            assert fires == [token == " river" for token in example.tokens]
        kinds = {example.kind for example in evidence.examples}
        assert kinds >= {"top", "quantile", "silent"}
        splits = [{e.document for e in part} for part in (evidence.train, evidence.select, evidence.holdout)]
        assert all(splits) and not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


def test_delphis_caches_hold_ids_and_every_window(tmp_path: Path) -> None:
    strings = load_tokens("demo")
    generator = np.random.default_rng(0)
    tokens = generator.integers(300, 340, (90, 16))
    fires = np.argwhere(tokens == 305)
    assert len(fires) > 20
    locations = np.concatenate([fires, np.full((len(fires), 1), 2)], axis=1)
    cache = {
        "locations": np.ascontiguousarray(locations, np.uint16),
        "activations": (1 + fires[:, 1]).astype(np.float16),
        "tokens": tokens,
    }
    path = tmp_path / "layers.3" / "4_7.safetensors"
    path.parent.mkdir()
    save_file(cache, path)
    write(path.parent / "config.json", [{"width": 8}])
    with pytest.raises(NeuronautError, match="--tokenizer"):
        taken(path.parent, source="far:resid_post.3@sae")
    store, (report,) = taken(path.parent, source="far:resid_post.3@sae", tokens=lambda: strings)
    assert (report.features, report.windows) == (1, len(set(fires[:, 0].tolist())))
    feature = store.features("far:resid_post.3@sae")[0]
    assert feature.index == 4 + 2
    top = store.evidence(feature).train[0]
    assert top.tokens[int(top.activations.argmax())] == strings[305]
    assert top.peak == 1 + int(top.activations.argmax())
    # The windows on which nothing fires are the pool's, too.
    assert sum(len(windows) for windows in store.pool("far").values()) == len({tuple(row) for row in tokens.tolist()})
    save_file(cache | {"tokens": tokens[:, :8].copy()}, path)
    with pytest.raises(NeuronautError, match="places beyond its 90 rows of 8 tokens"):
        taken(path, source="far:resid_post.3@sae", tokens=lambda: strings)


def test_what_was_recorded_is_read_back_and_the_rest_is_zero(tmp_path: Path) -> None:
    store, _ = taken(write(tmp_path / "ours.jsonl", rows_of_ours()))
    source = recorded_source(store, SourceId.parse(SOURCE))
    assert source is not None
    pool = np.concatenate([part for part in store.pool("far").values() if len(part)])
    read = source.columns(pool, [7, 9])
    strings = np.array(store.vocabulary("far"))[pool]
    assert read.shape == (120, 12, 2)
    # Each feature was recorded on its own sixty windows; on the other's it counts as silent.
    fires = (read > 0).any(axis=1)
    assert fires.sum(axis=0).tolist() == [40, 40] and not (fires[:, 0] & fires[:, 1]).any()
    assert (strings[read[:, :, 0] > 0] == " river").all() and (strings[read[:, :, 1] > 0] == " red").all()


@pytest.mark.parametrize(("documents", "splits"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_few_documents_never_fail_to_split(documents: int, splits: tuple[int, ...], tmp_path: Path) -> None:
    rows = [own(7, seed) for seed in range(1, documents + 1)]
    store, (report,) = taken(write(tmp_path / "few.jsonl", rows))
    assert (report.train, report.select, report.holdout) == splits
    assert store.evidence(Feature.parse(f"{SOURCE}:7")).train


def test_a_document_stays_in_one_split(tmp_path: Path) -> None:
    rows = [own(7, seed, document=f"book {seed % 5}", revision="r1") for seed in range(60)]
    store, (report,) = taken(write(tmp_path / "books.jsonl", rows))
    assert report.documents == 5
    evidence = store.evidence(Feature.parse(f"{SOURCE}:7"))
    parts = (evidence.train, (*evidence.tune, *evidence.select), evidence.holdout)
    assert [len({example.document for example in part}) for part in parts] == [2, 1, 2]
    (row,) = store.sources()
    assert row["kind"] == "evidence" and row["model_revision"].startswith("evidence:r1:")


def test_the_same_again_changes_nothing_and_clashes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ours.jsonl", rows_of_ours())
    store, reports = taken(path)
    assert import_evidence(store, [path], Naming()) == reports
    other = write(tmp_path / "other.jsonl", [own(7, 99)])
    with pytest.raises(NeuronautError, match="far here is other evidence"):
        import_evidence(store, [other], Naming())
    with pytest.raises(NeuronautError, match="far here is of other weights"):
        store.write_harvest(harvest_result("far:mlp.4"))
    with Store(":memory:") as harvested:
        harvested.write_harvest(harvest_result("far:mlp.4"))
        with pytest.raises(NeuronautError, match=r"far was harvested here \(far:mlp.4\)"):
            import_evidence(harvested, [path], Naming())
        assert [row["source"] for row in harvested.sources()] == ["far:mlp.4"]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"feature": "far:mlp.3:1", "tokens": ["a"], "activations": [1, 2]}, "1 tokens came with activations"),
        ({"feature": "far:mlp.3:1", "tokens": ["a"], "activations": [1e6]}, "too large"),
        ({"feature": "far:mlp.3:1", "tokens": ["a"], "activations": ["x"]}, "could not convert"),
        ({"feature": "far:mlp.3:1", "tokens": "a", "activations": [1]}, "no list of strings"),
        ({"feature": "far:mlp.3:1", "tokens": ["<bos>"], "activations": [1]}, "no tokens"),
        ({"feature": "far:mlp.3:1-", "tokens": ["a"], "activations": [1]}, "negative tail"),
        ({"feature": 1, "tokens": ["a"], "activations": [1]}, "name it with --source"),
        ({"tokens": ["a"]}, "the keys are tokens"),
        ({"neuron_id": {}, "most_positive_activation_records": []}, "layer_index"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(row: object, wrong: str, tmp_path: Path) -> None:
    path = write(tmp_path / "wrong.jsonl", [own(7, 1), row])
    with pytest.raises(NeuronautError, match=r"wrong\.jsonl:2: .*" + wrong):
        taken(path)


def test_models_are_not_mixed(tmp_path: Path) -> None:
    path = write(tmp_path / "two.jsonl", [own(7, 1), {**own(7, 2), "feature": "near:mlp.3:7"}])
    with pytest.raises(NeuronautError, match="evidence of far and near"):
        taken(path)


def test_the_stand_in_refuses_what_needs_the_model(tmp_path: Path) -> None:
    store, _ = taken(write(tmp_path / "ours.jsonl", rows_of_ours()))
    subject = recorded_subject(store, "far")
    assert subject is not None and subject.name == "far" and " river" in subject.vocabulary
    for ask in (lambda: subject.encode("a"), lambda: subject.sites, lambda: subject.model, lambda: subject.width("x")):
        with pytest.raises(NeuronautError, match="far is evidence from elsewhere, without its model"):
            ask()
    assert recorded_subject(store, "near") is None


# The command line, from import to export


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with served() as server:
        yield server


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def rows_printed(*arguments: object) -> list[dict[str, Any]]:
    return json.loads(run(*arguments, "--json").stdout)


def test_a_full_round_without_a_model(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONAUT_DB", str(tmp_path / "far.db"))
    (report,) = rows_printed("import", "--evidence", write(tmp_path / "ours.jsonl", rows_of_ours()))
    assert report["features"] == 2
    asked = ("-m", "openai:reader", "--base-url", server.url, "--price", "in=1,out=2")
    labelled = run("label", SOURCE, "-e", "highlight", "-s", "detection,simulation", *asked)
    # Each fires on one word alone, so that no text about it is above the rule of a single token.
    assert "2 explained" in labelled.stderr
    for row, word in zip(rows_printed("list", SOURCE), FIRES.values(), strict=True):
        assert f"`{word}`" in row["explanation"] and row["score"] > 0.9
    assert [row["feature"] for row in rows_printed("search", "river")] == [f"{SOURCE}:7"]
    (shown,) = rows_printed("show", f"{SOURCE}:7")
    scores = {(s["scorer"], s["examples"]): s for s in shown["scores"] if s["metric"] in ("correlation", "auroc")}
    assert scores["detection", "windows"]["value"] > 0.9
    # Minimal pairs would have to be run through the model.
    assert not [s for s in shown["scores"] if s["examples"] == "counterfactual" and s["value"] is not None]
    assert shown["provenance"]["harvest"]["unrecorded"] == "counted as zero"
    assert len(run("export", "--source", SOURCE).stdout.splitlines()) == 2
    for verb in (
        ("try", f"{SOURCE}:7", "a river"),
        ("label", f"{SOURCE}:7", "-e", "rule"),
        ("investigate", f"{SOURCE}:7"),
    ):
        assert "without its model" in run(*verb, code=1).stderr, verb


def test_contrastive_and_fuzzing_need_no_model_either(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURONAUT_DB", str(tmp_path / "far.db"))
    run("import", "--evidence", write(tmp_path / "ours.jsonl", rows_of_ours()))
    asked = ("-m", "openai:reader", "--base-url", server.url)
    for explainer in ("contrastive", "oneshot"):
        labelled = run("label", f"{SOURCE}:7", "-e", explainer, "-s", "fuzzing", *asked)
        assert "1 explained" in labelled.stderr, labelled.output


def test_the_reader_answers_by_marked_words() -> None:
    """What these tests take for granted of the server's model."""
    assert "` river`" in reader([{"content": ""}, {"content": "a« river» b\nc« river» d"}])
