"""The response tools find what is planted, their controls are silent, and they see training windows only."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from neuronaut.agent.bench import Bench
from neuronaut.agent.investigation.experiments import Design, Measured, Tool
from neuronaut.agent.investigation.hypotheses import Hypothesis
from neuronaut.agent.investigation.lab import FeatureLab
from neuronaut.agent.tools.places import places
from neuronaut.agent.tools.prune_context import PruneContext
from neuronaut.agent.tools.scan_vocabulary import ScanVocabulary
from neuronaut.agent.tools.swap_pairs import SwapPairs
from neuronaut.agent.tools.sweep_positions import SweepPositions, _period
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest import harvest
from neuronaut.data.store import Store
from neuronaut.explainers.rules import Rule
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons
from neuronaut.tests.planted import LAYER, build

LabOf = Callable[..., FeatureLab]


@pytest.fixture(scope="module")
def lab_of() -> Iterator[LabOf]:
    """Makes the lab of a planted neuron by its name, with rivals if there are."""
    planted = build(documents=120)
    subject = Subject(planted.model, planted.tokenizer, name="planted")
    store = Store(":memory:")
    harvest(subject, [f"mlp.{LAYER}"], Corpus.of("planted", planted.corpus), store)
    source = Neurons(SourceId("planted", f"mlp.{LAYER}"), subject.width(f"mlp.{LAYER}"))
    bench = Bench(store, subject, source)
    indices = {neuron.name: neuron.index for neuron in planted.neurons}

    def make(name: str, **rules: str) -> FeatureLab:
        evidence = store.evidence(Feature(source.id, indices[name]))
        batch = bench.train([evidence])
        lab = FeatureLab(store, subject, source, batch.features[0], batch)
        lab.rivals = {rival: Hypothesis(text=rival, rule=Rule.parse(rule)) for rival, rule in rules.items()}
        return lab

    yield make
    store.close()


def run(tool: Tool[Any], lab: FeatureLab, **args: Any) -> tuple[Design, Measured]:
    """Design and measure; what every tool promises is checked here."""
    given = tool.args(**args)
    design = tool.design(given, lab)
    assert asdict(tool.design(given, lab)) == asdict(design), "design is deterministic"
    measured = tool.measure(design, lab)
    assert len(measured.values) == len(design.items)
    assert all(len(item.ids) == lab.width for item in design.items)
    assert np.isfinite(measured.values).all()
    labels = [item.label for item in design.items]
    assert len(set(labels)) == len(labels), "every item has its own name"
    assert measured == tool.measure(design, lab)
    return design, measured


def rows(lab: FeatureLab, work: Callable[[], object]) -> int:
    """Prompts that pass through the subject."""
    before = lab.meter.rows
    with lab.meter.counting(lab.subject):
        work()
    return lab.meter.rows - before


RIVER = '{"any": [{"when": [{"token": " river"}], "value": 1.0}]}'


def test_the_scan_before_near_misses_finds_the_exception_word(lab_of: LabOf) -> None:
    lab = lab_of("river_not_dry")
    _, measured = run(ScanVocabulary(), lab, offset=-1, carriers="near_miss")
    assert measured.found["flips"] == {}
    kept = measured.found["nearly all flip but"]
    assert len(kept) == 3 and all(set(tokens) == {" dry"} for tokens in kept.values())
    _, measured = run(ScanVocabulary(), lab, offset=-1)
    assert set(measured.found["flipping most carriers"]) == {" dry"}
    assert measured.effect is not None and 0 < measured.effect < 0.05
    assert measured.control is not None and measured.control.value == 0


def test_the_scan_at_the_pivot_finds_every_second_cause(lab_of: LabOf) -> None:
    lab = lab_of("three_causes")
    _, measured = run(ScanVocabulary(), lab, carriers="near_miss", count=5)
    # Near misses of this neuron are words that stood after Mister elsewhere; whatever they are, two words fire alone.
    assert set(measured.found["flipping most carriers"]) == {" piano", " 7"}


def test_a_full_scan_costs_a_row_for_each_token_and_carrier(lab_of: LabOf) -> None:
    lab = lab_of("day")
    design = ScanVocabulary().design(ScanVocabulary.args(), lab)
    assert rows(lab, lambda: ScanVocabulary().measure(design, lab)) <= 3 * len(lab.vocabulary)


def test_of_a_larger_vocabulary_a_part_is_scanned_and_said(lab_of: LabOf) -> None:
    lab = lab_of("day", H1='{"any": [{"when": [{"token": " Friday"}], "value": 1.0}]}')
    design, measured = run(ScanVocabulary(), lab, most=60)
    assert len(design.items) == 60
    assert "of 81 tokens" in measured.found["left_out"] or "left" in measured.found["left_out"]
    assert any("` Friday`" in item.label for item in design.items), "what rivals name is never left out"


def test_inputs_can_be_chosen_by_what_the_leader_expects(lab_of: LabOf) -> None:
    lab = lab_of("river_not_dry", H1=RIVER)
    silent, _ = run(ScanVocabulary(), lab, expect="silence")
    active, _ = run(ScanVocabulary(), lab, expect="activity")
    assert {item.about["put"] for item in active.items} == {" river"}
    assert " river" not in {item.about["put"] for item in silent.items}
    lab.rivals = {}
    with pytest.raises(NeuronautError, match="leading hypothesis with a rule"):
        run(ScanVocabulary(), lab, expect="silence")


def test_only_training_windows_can_be_named(lab_of: LabOf) -> None:
    lab = lab_of("day")
    secret = lab.store.evidence(lab.feature).holdout[0].window
    with pytest.raises(NeuronautError, match="none of the training windows"):
        run(ScanVocabulary(), lab, windows=(secret,))
    design, _ = run(ScanVocabulary(), lab, windows=(lab.examples[0].window,))
    assert {item.about["carrier"] for item in design.items} == {1}


def test_places_are_of_different_tokens(lab_of: LabOf) -> None:
    lab = lab_of("day")
    found = places(lab, "active", 3)
    assert {lab.vocabulary[place.token] for place in found} == {" Monday", " Friday", " Sunday"}
    assert all(place.value > 0.9 for place in found)
    with pytest.raises(NeuronautError, match="no near_miss place"):
        places(lab, "near_miss", 3)


def test_what_is_between_quotes_is_not_mistaken_for_what_follows_a_token(lab_of: LabOf) -> None:
    _, quoted = run(SwapPairs(), lab_of("quoted"))
    assert all(group["flipped"] == 0 for group in quoted.found["groups"].values())
    assert len(quoted.found["groups"]) == 4
    _, bigram = run(SwapPairs(), lab_of("new_haven"))
    groups = bigram.found["groups"]
    assert groups["previous token swapped"]["flipped"] == groups["previous token replaced"]["flipped"] == 1
    assert groups["others swapped"]["flipped"] == groups["others replaced"]["flipped"] == 0
    for measured in (quoted, bigram):
        assert measured.control is not None and measured.control.value == 0


@pytest.mark.parametrize(
    ("name", "lowest", "highest"), [("day", 1, 1), ("new_haven", 2, 2), ("price", 2, 2), ("bell_after_storm", 2, 5)]
)
def test_the_context_that_is_needed(lab_of: LabOf, name: str, lowest: int, highest: int) -> None:
    _, measured = run(PruneContext(), lab_of(name))
    for way in ("filled", "cut"):
        assert all(lowest <= length <= highest for length in measured.found["needed"][way]), measured.found
    if name == "bell_after_storm":
        assert max(measured.found["needed"]["filled"]) > 2
    assert measured.effect == np.mean(measured.found["needed"]["filled"])
    assert measured.control is not None and measured.control.value == 0


def test_a_position_is_told_from_the_length_of_the_context(lab_of: LabOf) -> None:
    _, measured = run(PruneContext(), lab_of("early"))
    assert set(measured.found["needed"]["filled"]) == {1}, "whatever stands before"
    assert min(measured.found["needed"]["cut"]) > 1, "moved to the start it is silent"


def test_the_sweep_finds_the_band_of_positions(lab_of: LabOf) -> None:
    lab = lab_of("early")
    for where in ("active", "near_miss"):
        _, measured = run(SweepPositions(), lab, carriers=where)
        assert (measured.found["first"], measured.found["last"], measured.found["every"]) == (5, 8, 1)
        assert measured.effect == pytest.approx(4 / lab.width)
        assert measured.found["control"]["first"] == 5, "the position alone is the cause"
    _, measured = run(SweepPositions(), lab_of("day"))
    assert measured.effect == 1 and measured.control is not None and (measured.control.value or 0) < 0.1


def test_every_so_manyth_position_is_recognised() -> None:
    inside = list(range(3, 31))
    assert [_period(inside, active) for active in (inside, inside[::3], [3, 4, 30], [3])] == [1, 3, None, None]
