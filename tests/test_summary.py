"""The summary: counts, medians, baselines, lengths, costs and controls that are known beforehand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from neuronaut.cli.main import main
from neuronaut.data.records import Score
from neuronaut.data.store.calls import Call
from neuronaut.data.store.store import Store
from neuronaut.data.store.summary import Interval, _draw_medians, median, separation, summarise
from tests.stored import explanation, harvest_result, score

SCORES = (0.9, 0.8, 0.4)
"""Of features 0, 1 and 2, whose token rule has 0.5 and whose token table has 0.85."""


def simulated(value: float) -> Score:
    baselines = {"token_rule": 0.5, "token_table": 0.85, "other_rule": None}
    return replace(score(value), ci_low=value - 0.05, ci_high=value + 0.05, baselines=baselines)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Five features of a trained and of a random model: three explained, one dense, one unlabelled."""
    path = tmp_path / "summary.db"
    with Store(path) as store:
        store.write_harvest(harvest_result("demo:mlp.2", "demo:resid_post.2@sae"))
        store.write_harvest(replace(harvest_result("demo~random-0:mlp.2"), revision="weights-2"))
        for index, value in enumerate(SCORES):
            text = replace(explanation(index, f"three words {index}. And three more."), headline=f"three words {index}")
            store.add_result(text, [simulated(value)])
            control = replace(text, feature=store.features(f"demo~random-0:mlp.2:{index}")[0])
            store.add_result(control, [simulated(value - 0.3)])
        store.add_result(explanation(3, None, status="dense"), [])
    return path


def test_counts_medians_and_baselines_of_a_source(database: Path) -> None:
    with Store(database) as store:
        group, control = summarise(store, "demo:mlp.2").groups
    assert (group.name, group.features, group.abstained) == ("demo:mlp.2", 5, {"dense": 1})
    # Whether an explanation below its baseline is weak is the store's to say; both have a text.
    assert group.statuses["explained"] + group.statuses["weak"] == 3
    assert (group.statuses["unlabelled"], group.statuses["failed"]) == (1, 0)
    (scores,) = group.scores
    assert (scores.scorer, scores.metric, scores.median.value, scores.median.n) == ("simulation", "correlation", 0.8, 3)
    assert scores.median.low == 0.4 and scores.median.high == 0.9
    assert {role: (b.median.value, b.beaten) for role, b in scores.baselines.items()} == {
        "token_rule": (0.5, 2),
        "token_table": (0.85, 1),
    }
    assert group.words is not None and group.words.value == 6
    assert group.headline_words is not None and group.headline_words.value == 3
    assert control.name == "demo~random-0:mlp.2"


def test_layers_and_models_with_several_sources_are_pooled(database: Path) -> None:
    with Store(database) as store:
        groups = {(group.level, group.name): group.features for group in summarise(store).groups}
    assert groups == {
        ("source", "demo:mlp.2"): 5,
        ("source", "demo:resid_post.2@sae"): 5,
        ("source", "demo~random-0:mlp.2"): 5,
        ("layer", "demo layer 2"): 10,
        ("model", "demo"): 10,
    }


def test_a_control_is_set_beside_the_trained_source(database: Path) -> None:
    with Store(database) as store:
        (control,) = summarise(store, "demo:mlp.2").controls
    assert (control.trained, control.random) == ("demo:mlp.2", "demo~random-0:mlp.2")
    # 0.9, 0.8, 0.4 against 0.6, 0.5, 0.1: of nine pairs only 0.4 against 0.6 and 0.5 are the wrong way round.
    assert control.auroc.value == pytest.approx(7 / 9)
    assert control.auroc.low < 7 / 9 < control.auroc.high
    assert control.random_median.value == pytest.approx(0.5)


def test_separation_is_the_share_of_pairs_and_needs_both_sides() -> None:
    generator = np.random.default_rng(0)
    same = separation(generator.normal(size=40), generator.normal(size=40))
    apart = separation(generator.normal(5, size=40), generator.normal(size=40))
    assert same is not None and apart is not None
    assert same.low < 0.5 < same.high and same.high - same.low < 0.4
    assert apart.low > 0.99
    assert separation([1.0, 1.0], [1.0]) == Interval(0.5, 0.5, 0.5, 2)
    assert separation([], [1.0]) is None
    assert median([None, None]) is None


def test_costs_are_those_of_the_call_log(database: Path) -> None:
    call = Call("k", "gpt", "here", "detection", "{}", "ok", "yes", None, 900, 20, 1.0, 0.01)
    with Store(database) as store:
        assert summarise(store).cost == (0, 0, 0, 0.0)
        store.calls.record(call)
        store.calls.record(replace(call, key="l", cost=None))
        assert summarise(store).cost == (2, 1800, 40, None)


def test_the_verb_prints_tables_json_and_a_figure(database: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = tmp_path / "scores.png"
    shown = CliRunner().invoke(main, ["summary", "demo:mlp.2", "-d", str(database), "--figure", str(figure)])
    assert shown.exit_code == 0, shown.output
    assert "0.80 [0.40, 0.90]" in shown.stdout and "0.85 [0.85, 0.85], 1/3" in shown.stdout
    assert "0.78 [" in shown.stdout and "1 dense" in shown.stdout
    assert figure.stat().st_size > 1000
    printed = CliRunner().invoke(main, ["summary", "demo:mlp.2", "-d", str(database), "--json"])
    group, control, cost = json.loads(printed.stdout)
    assert group["scores"][0]["baselines"]["token_table"]["beaten"] == 1
    assert control["against_trained"][0]["auroc"] == pytest.approx(7 / 9)
    assert cost == {
        "group": "language models",
        "level": "database",
        "calls": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "usd": 0.0,
    }


def test_medians_of_resamples_are_distributed_as_those_of_real_resamples() -> None:
    for n in (1, 2, 7, 10):
        values = np.random.default_rng(n).normal(size=n)
        real = np.median(values[np.random.default_rng(0).integers(n, size=(20_000, n))], axis=1)
        drawn = np.concatenate([_draw_medians(np.sort(values), np.random.default_rng(seed)) for seed in range(10)])
        for share in (0.05, 0.25, 0.5, 0.75, 0.95):
            value = np.quantile(real, share)
            assert (drawn <= value + 1e-12).mean() == pytest.approx((real <= value + 1e-12).mean(), abs=0.02)


def test_separation_is_that_of_all_pairs_with_ties() -> None:
    rng = np.random.default_rng(0)
    higher, lower = rng.integers(0, 6, 30), rng.integers(0, 5, 20)
    pairs = (higher[:, None] > lower) + 0.5 * (higher[:, None] == lower)
    found = separation(higher, lower)
    assert found is not None and found.value == pytest.approx(pairs.mean()) and found.low < found.value < found.high
