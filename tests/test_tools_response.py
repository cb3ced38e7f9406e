"""The response tools find what is planted, their controls are silent, and they see training windows only."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from neuronaut.agent.loop.experiments import AnyTool, Design, Measured, design_from_json
from neuronaut.agent.loop.feature_lab import FeatureLab
from neuronaut.agent.loop.hypotheses import Hypothesis
from neuronaut.agent.loop.rejections import RejectedError
from neuronaut.agent.tools.near_misses import MineNearMisses
from neuronaut.agent.tools.places import find_places
from neuronaut.agent.tools.positions_and_pairs import SwapPairs, SweepPositions, _period
from neuronaut.agent.tools.probe_state import ProbeState
from neuronaut.agent.tools.prune_context import PruneContext
from neuronaut.agent.tools.random_edits import EditAtRandom
from neuronaut.agent.tools.scan_vocabulary import ScanVocabulary
from neuronaut.agent.tools.surveys import KnownExplanations, LearnRule
from neuronaut.agent.tools.table import TOOLS, tools_for
from neuronaut.agent.tools.window_edits import RunTexts
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.records import Explanation
from neuronaut.data.store.store import Store
from neuronaut.explainers.explainer import TrainBatch
from neuronaut.labelling.inputs import EvidenceLoader
from neuronaut.rules.language import Rule
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons
from tests.planted import LAYER, build

LabOf = Callable[..., FeatureLab]

MINE = {
    name: TOOLS[name]
    for name in (
        "run_texts",
        "scan_vocabulary",
        "swap_pairs",
        "prune_context",
        "sweep_positions",
        "mine_near_misses",
        "edit_at_random",
        "probe_state",
        "learn_rule",
        "known_explanations",
    )
}


@pytest.fixture(scope="module")
def lab_of() -> Iterator[LabOf]:
    """Makes the lab of a planted neuron by its name, with rivals if there are."""
    planted = build(documents=120)
    subject = Subject(planted.model, planted.tokenizer, name="planted")
    store = Store(":memory:")
    harvest(subject, [f"mlp.{LAYER}"], Corpus.of("planted", planted.corpus), store)
    source = Neurons(SourceId("planted", f"mlp.{LAYER}"), subject.width(f"mlp.{LAYER}"))
    loader = EvidenceLoader(store, subject, source)
    indices = {neuron.name: neuron.index for neuron in planted.neurons}

    @cache
    def trained(name: str) -> TrainBatch:
        return loader.train([store.evidence(Feature(source.id, indices[name]))])

    def make(name: str, **rules: str) -> FeatureLab:
        batch = trained(name)
        lab = FeatureLab(store, subject, source, batch.features[0], batch)
        lab.rivals = {rival: Hypothesis(text=rival, rule=Rule.parse(rule)) for rival, rule in rules.items()}
        return lab

    yield make
    store.close()


def run(tool: AnyTool, lab: FeatureLab, **args: Any) -> tuple[Design, Measured]:
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
    beginnings = 3
    assert rows(lab, lambda: ScanVocabulary().measure(design, lab)) <= 3 * len(lab.vocabulary) + beginnings


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
    with pytest.raises(NeuronautError, match="hypothesis with a rule"):
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
    found = find_places(lab, "active", 3)
    assert {lab.vocabulary[place.token] for place in found} == {" Monday", " Friday", " Sunday"}
    assert all(place.value > 0.9 for place in found)
    with pytest.raises(NeuronautError, match="no near_miss place"):
        find_places(lab, "near_miss", 3)


def test_places_begin_with_the_pivot_of_the_hypothesis_in_question(lab_of: LabOf) -> None:
    rules = {name: f'{{"any": [{{"when": [{{"token": " {day}"}}], "value": 1.0}}]}}' for name, day in DAYS.items()}
    lab = lab_of("day", **rules)
    for about, name in (("", "H1"), ("H1", "H1"), ("H2", "H2")):
        design, _ = run(ScanVocabulary(), lab, count=2, about=about, most=60)
        first, *_ = re.findall("« (\\w+)»", design.question)
        assert first == DAYS[name] and first in design.plan["carriers"][0]["text"]
    with pytest.raises(RejectedError, match="about=H9 is no rival with a rule; there are H1, H2"):
        run(ScanVocabulary(), lab, about="H9")


DAYS = {"H1": "Sunday", "H2": "Friday"}


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
        _, measured = run(SweepPositions(), lab, carriers=where, count=1)
        assert (measured.found["first"], measured.found["last"], measured.found["every"]) == (5, 8, 1)
        assert measured.effect == pytest.approx(4 / lab.width)
        assert measured.found["control"]["first"] == 5, "the position alone is the cause"
    _, measured = run(SweepPositions(), lab_of("day"), count=2)
    assert measured.effect == 1 and measured.control is not None and (measured.control.value or 0) < 0.1


def test_every_so_manyth_position_is_recognised() -> None:
    inside = list(range(3, 31))
    assert [_period(inside, active) for active in (inside, inside[::3], [3, 4, 30], [3])] == [1, 3, None, None]


def test_texts_are_read_at_every_token_and_asked_at_the_marked_one(lab_of: LabOf) -> None:
    lab = lab_of("river_not_dry")
    texts = (" the dry river", " the «river» was old", " the old river")
    design, measured = run(RunTexts(), lab, texts=texts)
    np.testing.assert_allclose(measured.values, [0, 1, 1], atol=1e-3)
    assert [item.pivot for item in design.items] == [2, 1, 2]
    assert measured.found["texts"][1]["tokens"][:2] == [" the", " river"]
    assert measured.found["texts"][1]["values"] == pytest.approx([0, 1, 0, 0], abs=1e-3)
    assert measured.effect == pytest.approx(2 / 3, abs=1e-3)
    assert measured.control is not None and (measured.control.value or 0) < 1
    part, _ = run(RunTexts(), lab, texts=(" the old river", "a «b» «c»"))
    assert len(part.items) == 1 and "text 2: 'a «b» «c»' has more marks" in part.plan["left_out"][0]
    for bad, message in [((), "no text"), (("a «b» «c»",), "more marks"), ((" a" * 65,), "65 tokens")]:
        with pytest.raises(NeuronautError, match=message):
            run(RunTexts(), lab, texts=bad)


def test_near_misses_of_the_corpus_show_the_exception(lab_of: LabOf) -> None:
    lab = lab_of("river_not_dry", H1=RIVER)
    design, measured = run(MineNearMisses(), lab)
    assert list(measured.found["only before silent"]) == [" dry"]
    assert measured.effect is not None and 0.3 < measured.effect <= 0.5, "H1 reads the pivot alone: dry is cut away"
    assert measured.control is not None and measured.control.value == 0
    aware = f'{RIVER[:-1]}, "unless": [{{"token": " dry", "at": -1}}]}}'
    lab = lab_of("river_not_dry", H1=RIVER, H2=aware)
    design, measured = run(MineNearMisses(), lab, count=20)
    assert measured.effect == 0, "H2 reads the token before, which is all that matters"
    assert sum(item.about["was"] < 0.1 for item in design.items) == 10
    kept = {
        name: MineNearMisses().design(MineNearMisses.args(), lab_of("river_not_dry", H1=rule)).plan["kept"]
        for name, rule in (("pivot", RIVER), ("before", aware), ("text", RIVER[:-1] + ', "unless": [{"repeat": 1}]}'))
    }
    assert kept == {"pivot": 0, "before": 1, "text": 16}
    silent, _ = run(MineNearMisses(), lab_of("river_not_dry", H1=aware), expect="silence")
    assert all(item.about["was"] < 0.1 for item in silent.items)


def test_random_edits_are_half_expected_to_be_silent(lab_of: LabOf) -> None:
    lab = lab_of("river_not_dry", H1=RIVER)
    design, measured = run(EditAtRandom(), lab)
    said = np.array(lab.expect(lab.rivals["H1"], design))
    assert len(design.items) == 40 and (said < 0.1).sum() == 20
    assert measured.control is not None and measured.control.value == 0
    wrong = (np.array(measured.values) > 0.5) != (said > 0.5)
    assert 0 < wrong.mean() < 0.5, "some edit brings dry in"


def test_aimed_edits_tell_rivals_apart(lab_of: LabOf) -> None:
    aware = f'{RIVER[:-1]}, "unless": [{{"token": " dry", "at": -1}}]}}'
    lab = lab_of("river_not_dry", H1=RIVER, H2=aware)
    design, measured = run(EditAtRandom(), lab, aimed=True)
    one, other = (np.array(lab.expect(lab.rivals[name], design)) for name in ("H1", "H2"))
    assert (np.abs(one - other) > 0.5).all() and len(design.items) >= 10
    np.testing.assert_allclose(measured.values, other, atol=0.01)
    lab.rivals = {name: lab.rivals["H1"] for name in ("H1", "H3")}
    with pytest.raises(NeuronautError, match="predict the same"):
        run(EditAtRandom(), lab, aimed=True)
    lab.rivals = {"H1": lab.rivals["H1"]}
    with pytest.raises(NeuronautError, match="two rivals"):
        run(EditAtRandom(), lab, aimed=True)


def test_edits_at_the_boundary_break_the_leading_rule(lab_of: LabOf) -> None:
    day = '{"any": [{"when": [{"token": [" Monday", " Friday"]}], "value": 1.0}]}'
    lab = lab_of("new_haven", H1='{"any": [{"when": [{"token": " Haven"}, {"token": " New", "at": -1}], "value": 1}]}')
    design, measured = run(EditAtRandom(), lab, boundary=True)
    assert {item.about["group"] for item in design.items} == {
        "a condition broken",
        "an unlisted token of the same class",
        "a cause written",
    }
    assert {i for item in design.items for i in (0, -1) if f" at {i} in" in item.label} == {0, -1}
    written = np.array([item.about["group"] == "a cause written" for item in design.items])
    values = np.array(measured.values)
    assert values[~written].max() < 0.1, "the rule is right: every broken condition silences it"
    assert values[written].min() > 0.9, "and written anywhere it fires"
    lab = lab_of("day", H1=day)
    _, measured = run(EditAtRandom(), lab, boundary=True, count=400)
    assert measured.found["groups"]["a condition broken"]["flipped"] > 0.5


def test_an_earlier_copy_is_told_from_no_copy_at_any_distance(lab_of: LabOf) -> None:
    _, measured = run(ProbeState(), lab_of("seen_before"))
    means = measured.found["mean by distance"]
    assert means["bare"]["0"] == 0
    assert min(means["copied"].values()) > 0.99 and len(means["copied"]) >= 6
    assert measured.effect == pytest.approx(1, abs=0.01)
    assert measured.control is not None and measured.control.value == 0
    _, measured = run(ProbeState(), lab_of("day"))
    assert measured.effect == pytest.approx(0, abs=0.01), "day fires with or without a copy"


def test_a_copy_of_the_token_is_told_from_a_copy_of_the_pair(lab_of: LabOf) -> None:
    _, measured = run(ProbeState(), lab_of("seen_before"), what="induction")
    means = measured.found["mean by distance"]
    assert min(means["copied"].values()) > 0.99 and min(means["token alone copied"].values()) > 0.99


def test_an_open_quotation_is_told_from_a_closed_one(lab_of: LabOf) -> None:
    _, measured = run(ProbeState(), lab_of("quoted"), what="double")
    means = measured.found["mean by distance"]
    assert min(means["opened"].values()) > 0.99
    assert max(means["opened and closed"].values()) < 0.01 and means["bare"]["0"] < 0.01
    assert measured.effect == pytest.approx(1, abs=0.01)
    assert measured.control is not None and measured.control.value == 0
    with pytest.raises(NeuronautError, match="no token of the corpus"):
        run(ProbeState(), lab_of("quoted"), what="braces")


def test_a_rule_is_learned_from_what_was_measured(lab_of: LabOf) -> None:
    lab, tool = lab_of("river_not_dry"), LearnRule()
    first, learned = run(tool, lab)
    assert learned.effect is None and learned.n == 0
    assert learned.found["rule"]["any"] and " river" in learned.found["text"]
    design, measured = run(ScanVocabulary(), lab, offset=-1)
    lab.take(design, measured.values)
    second, learned = run(tool, lab)
    assert first != second, "more is known, so it is another survey"
    assert learned.n == len(design.items) and learned.effect == 1 and learned.low == 1
    assert learned.found["disagreements"] == []
    assert Rule.parse(json.dumps(learned.found["rule"]))
    assert rows(lab, lambda: tool.measure(second, lab)) == 0, "its interventions are not run again"
    assert run(tool, lab_of("always"))[1].found["status"] == "dense"


def test_a_rule_is_held_to_all_that_was_measured(lab_of: LabOf) -> None:
    """River alone misses that dry silences it; halved, a rule says the same of when it fires."""
    lab = lab_of("river_not_dry")
    design, measured = run(ScanVocabulary(), lab, offset=-1)
    lab.take(design, measured.values)
    right = Rule.parse(
        json.dumps(
            {"any": [{"when": [{"token": [" river"]}], "unless": [{"token": [" dry"], "at": -1}], "value": 1.0}]}
        )
    )
    half = right.model_copy(update={"any": (right.any[0].model_copy(update={"value": lab.scale * 0.3}),)})
    alone = right.model_copy(update={"any": (right.any[0].model_copy(update={"unless": ()}),)})
    assert lab.told_rightly(right) == lab.told_rightly(half) == 1.0
    assert lab.told_rightly(alone) == pytest.approx(0.5), "all that stays silent is told wrongly"


def test_explanations_that_are_known_are_told_with_their_scores(lab_of: LabOf) -> None:
    lab = lab_of("river_not_dry")
    twin = lab_of("river")
    assert run(KnownExplanations(), lab)[1].n == 0
    for one, text in ((lab, "rivers"), (twin, "any river")):
        one.store.add_explanation(Explanation(one.feature, text, "oneshot", rule=RIVER))
    _, measured = run(KnownExplanations(), lab)
    assert [own["text"] for own in measured.found["own"]] == ["rivers"]
    assert "any river" in [other["explanation"] for other in measured.found["similar"]]


def test_no_tool_reads_or_makes_a_window_of_the_holdout(lab_of: LabOf) -> None:
    lab = lab_of("river_not_dry", H1=RIVER)
    evidence = lab.store.evidence(lab.feature)
    secret = {example.ids.tobytes() for example in (*evidence.holdout, *evidence.select)}
    secret |= {w.ids.astype(np.int64).tobytes() for w in lab.store.pool_windows("planted", "holdout")}
    for name, tool in MINE.items():
        args = tool.args(texts=[" the dry river"]) if name == "run_texts" else tool.args()
        design = tool.design(args, lab)
        made = [ids for item in design.items for ids in [item.ids]]
        made += [part for row in design.plan.get("control", []) for part in row if isinstance(part, list)]
        assert not secret & {np.array(ids, np.int64).tobytes() for ids in made}, name


def test_every_tool_says_what_it_is_and_stands_in_the_table() -> None:
    feature = tools_for("feature")
    assert set(MINE) <= set(feature)
    for name, tool in MINE.items():
        assert tool.version >= 1
        assert 40 < len(" ".join((type(tool).__doc__ or "").split())) < 400
        fields = tool.args.model_fields.values()
        assert all(field.description and not field.is_required() for field in fields), name
        tool.args.model_validate({})
        with pytest.raises(ValidationError):
            tool.args.model_validate({"unknown": 1})


def test_designs_survive_being_written_down(lab_of: LabOf) -> None:
    lab = lab_of("river_not_dry", H1=RIVER)
    for name, tool in MINE.items():
        args = tool.args(texts=[" the dry river"]) if name == "run_texts" else tool.args()
        design = tool.design(args, lab)
        again = design_from_json(json.loads(json.dumps(asdict(design))))
        assert again.items == design.items, name
        json.dumps(asdict(tool.measure(again, lab)))
