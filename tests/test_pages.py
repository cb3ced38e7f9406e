"""Feature pages written and read back, SAEDashboard's JSON, and what the database says of itself in Datasette."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from neuronaut.cli.main import main
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.records import Example, Explanation
from neuronaut.data.store.datasette import HIDDEN, TABLES, describe
from neuronaut.data.store.evidence import import_evidence
from neuronaut.data.store.evidence_files import Naming, list_evidence
from neuronaut.data.store.pages import BARS, write_pages
from neuronaut.data.store.store import Store
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.directions import logit_effects
from neuronaut.subject.model import Subject
from neuronaut.subject.opening import open_source
from tests.stored import explanation, harvest_result, score

SOURCE = SourceId.parse("demo:mlp.1")
COUNT = 8


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path, Subject]:
    """A harvest of the built-in model, and the pages of some of its features."""
    folder, subject = tmp_path_factory.mktemp("pages"), Subject.load("demo")
    store = Store(folder / "own.db")
    harvest(subject, ["mlp.1"], Corpus.load("stdlib"), store, tokens=12_000)
    for index in range(COUNT):
        store.add_explanation(Explanation(Feature(SOURCE, index), f"fires on {index}", "rule", provenance={"key": "a"}))
    neurons = open_source(subject, SOURCE)
    written = write_pages(
        store,
        folder / "tree",
        SOURCE,
        effects=lambda feature: logit_effects(subject, neurons, feature, count=20, bars=BARS),
        status="explained",
    )
    assert [path.name for path in written.paths] == [f"{index}.json" for index in range(COUNT)] and not written.silent
    return store, folder, subject


def page(folder: Path, index: int) -> Any:
    return json.loads((folder / "tree" / "demo" / "1-mlp" / f"{index}.json").read_text())


def by_text(examples: tuple[Example, ...]) -> dict[tuple[str, ...], Example]:
    return {example.tokens: example for example in examples}


def test_pages_come_back_as_the_same_examples(pages: tuple[Store, Path, Subject]) -> None:
    store, folder, _ = pages
    with Store(":memory:") as other:
        naming = Naming("far:mlp.{layer}")
        (report,) = import_evidence(other, list_evidence(str(folder / "tree")), naming)
        assert report.features == COUNT
        for index in range(COUNT):
            known = by_text(store.evidence(Feature(SOURCE, index)).examples)
            found = by_text(other.evidence(Feature(SourceId.parse("far:mlp.1"), index)).examples)
            written = [tuple(window["tokens"]) for window in page(folder, index)["activations"]]
            assert written and {*written} <= known.keys() & found.keys()
            for text in written:
                # The format's four decimals, and the half precision in which they are kept.
                values = known[text].activations
                np.testing.assert_allclose(found[text].activations, values, rtol=2**-10, atol=6e-5)


def test_a_page_says_what_the_store_and_the_model_say(pages: tuple[Store, Path, Subject]) -> None:
    store, folder, subject = pages
    feature = Feature(SOURCE, 3)
    found, statistics = page(folder, 3), store.evidence(feature).statistics
    assert (found["modelId"], found["layer"], found["index"]) == ("demo", "1-mlp", "3")
    assert found["frac_nonzero"] == statistics.density
    assert found["maxActApprox"] == pytest.approx(statistics.peak, abs=1e-4)
    for kind in ("freq", "logits"):
        heights, values = (found[f"{kind}_hist_data_bar_{part}"] for part in ("heights", "values"))
        assert len(heights) == len(values) == BARS and values == sorted(values)
    assert sum(found["freq_hist_data_bar_heights"]) == pytest.approx(sum(statistics.histogram))
    assert sum(found["logits_hist_data_bar_heights"]) == len(subject.vocabulary)
    assert found["pos_values"] == sorted(found["pos_values"], reverse=True) and len(found["pos_str"]) == 20
    assert found["neg_values"] == sorted(found["neg_values"]) and found["neg_values"][0] < 0 < found["pos_values"][0]
    assert [row["description"] for row in found["explanations"]] == ["fires on 3"]
    for window in found["activations"]:
        values = window["values"]
        assert window["maxValue"] == max(values) == values[window["maxValueTokenIndex"]] > 0
        assert window["minValue"] == min(values)
    shares = {window["binContains"] for window in found["activations"]}
    assert shares == {-1, 0.25}


def test_explanations_of_pages_are_imported(pages: tuple[Store, Path, Subject]) -> None:
    _, folder, _ = pages
    database, tree = str(folder / "far.db"), folder / "tree"
    evidence = ["import", "--evidence", str(tree), "--source", "far:mlp.{layer}", "-d", database]
    assert CliRunner().invoke(main, evidence).exit_code == 0
    own = str(tree / "demo" / "1-mlp")
    for added in (1, 0):
        result = CliRunner().invoke(main, ["import", own, "--source", "far:mlp.1", "-d", database, "--json"])
        assert result.exit_code == 0, result.stderr
        assert [row["added"] for row in json.loads(result.stdout)] == [added] * COUNT
    with Store(database) as store:
        stored = store.best(Feature.parse("far:mlp.1:5"))
        assert stored is not None and stored.explanation.text == "fires on 5"


def test_a_page_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    for text, why in (("{", "1: this is no JSON"), ('{"explanations": 3}', "no page of a feature")):
        (tmp_path / "page.json").write_text(text)
        with Store(tmp_path / "own.db") as store:
            store.write_harvest(harvest_result())
        result = CliRunner().invoke(main, ["import", str(tmp_path / "page.json"), "-d", str(tmp_path / "own.db")])
        assert result.exit_code == 1 and why in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_batch_of_saedashboard_is_read(tmp_path: Path) -> None:
    """As its converter for Neuronpedia writes one."""
    bins = {"bin_min": -1, "bin_max": 2.5, "bin_contains": -1}
    window = {**bins, "tokens": ["<bos>", " a", " b"], "values": [9, 0.125, 2.5]}
    silent = window | {"tokens": [" c", " d"], "values": [0, 0], "qualifying_token_index": 1}
    features = [{"feature_index": 7, "frac_nonzero": 0.1, "pos_str": [], "activations": [window, silent]}]
    batch = {"model_id": "gpt2-small", "layer": 5, "sae_set": "res-jb", "sae_id_suffix": None, "features": features}
    (tmp_path / "batch-0.json").write_text(json.dumps(batch))
    with Store(":memory:") as store:
        naming = Naming("gpt2:resid_pre.{layer}@res-jb")
        (report,) = import_evidence(store, list_evidence(str(tmp_path)), naming)
        assert (report.source, report.features, report.windows) == ("gpt2:resid_pre.5@res-jb", 1, 2)
        examples = by_text(store.evidence(Feature.parse("gpt2:resid_pre.5@res-jb:7")).examples)
        assert examples[" a", " b"].activations.tolist() == [0.125, 2.5]


def test_datasette_is_told_of_every_table_and_column() -> None:
    with Store(":memory:") as store:
        store.write_harvest(harvest_result())
        store.add_result(explanation(0, "commas"), [score(0.5)])
        columns, metadata = store.columns(), describe(store, name="own")
    assert columns.keys() == TABLES.keys() | {*HIDDEN}
    told = metadata["databases"]["own"]["tables"]
    for name, about in TABLES.items():
        named = [*about.columns, *about.facets, *filter(None, [(about.sort or "").removeprefix("-"), about.label])]
        assert {*named} <= {*columns[name]}, name
        assert told[name]["description"] and told[name].get("facets", []) == list(about.facets)
    assert told["feature_rows"]["columns"].keys() == {*columns["feature_rows"]}
    assert all(told[name] == {"hidden": True} for name in HIDDEN)


def test_the_command_writes_what_datasette_reads(tmp_path: Path) -> None:
    database, path = tmp_path / "own.db", tmp_path / "own.db.metadata.json"
    with Store(database) as store:
        store.write_harvest(harvest_result())
    result = CliRunner().invoke(main, ["datasette", "-d", str(database)])
    assert result.exit_code == 0 and result.stdout.strip() == str(path) and "datasette " in result.stderr
    assert json.loads(path.read_text())["title"] == "Neuronaut: own"
