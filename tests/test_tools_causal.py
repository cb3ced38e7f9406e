"""Causal tools on hand-built weights: they find what a unit writes and reads, and nothing where there is nothing."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from neuronaut.agent.loop.experiments import Measured
from neuronaut.agent.loop.feature_lab import FeatureLab
from neuronaut.agent.loop.hypotheses import Hypothesis
from neuronaut.agent.loop.levels import LEVELS, levels_of
from neuronaut.agent.tools.effects import steer
from neuronaut.agent.tools.effects.ablate import Ablate, PatchActivation
from neuronaut.agent.tools.effects.attention import Attention
from neuronaut.agent.tools.effects.downstream import Downstream
from neuronaut.agent.tools.effects.linear_probe import ProbeProperty
from neuronaut.agent.tools.effects.steer import PromotedTokens, Steer
from neuronaut.agent.tools.effects.upstream import CutUpstream, Upstream
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.activations import neurons
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.store.store import Store
from neuronaut.labelling.inputs import EvidenceLoader
from neuronaut.subject.address import SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Source
from tests.planted import LAYER, PlantedNeuron, build

INERT = "river"
"""The neuron whose output row is set to nothing."""
CODED = ("day", "new_haven")
"""The neurons that the dictionary has as features, by what they write."""


class World:
    """The planted subject, harvested, and labs of its features."""

    def __init__(self) -> None:
        planted = build(documents=60)
        self.neurons = {neuron.name: neuron for neuron in planted.neurons}
        self.written = planted.model.transformer.h[LAYER].mlp.c_proj.weight
        with torch.no_grad():
            self.written[self.neurons[INERT].index] = 0.0
        self.subject = Subject(planted.model, planted.tokenizer, name="planted")
        self.store = Store(":memory:")
        self.dictionary = self._coded()
        corpus = Corpus.of("planted", planted.corpus)
        sites = [f"mlp.{LAYER}", f"mlp.{LAYER - 1}"]
        harvest(self.subject, [*sites, self.dictionary], corpus, self.store)
        after, before = neurons(self.subject, sites)
        self.sources: dict[str, Source] = {"mlp": after, "before": before, "dictionary": self.dictionary}
        self.loaders = {s.id: EvidenceLoader(self.store, self.subject, s) for s in self.sources.values()}
        self.labs: dict[str, FeatureLab] = {}

    def _coded(self) -> Dictionary:
        """A feature for each of CODED, whose activation is the neuron's and which writes what it writes."""
        written = torch.stack([self.written[self.neurons[name].index] for name in CODED]).detach()
        read = torch.zeros_like(written)
        for row, name in enumerate(CODED):
            channel = int(written[row].argmax())
            read[row, channel] = 1 / float(written[row, channel])
            assert self.neurons[name].promotes
        return Dictionary(
            id=SourceId("planted", f"resid_post.{LAYER}", "coded"),
            kind="standard",
            W_enc=read.T,
            W_dec=written,
            b_enc=torch.zeros(len(CODED)),
            b_dec=torch.zeros(written.shape[1]),
        )

    def lab(self, name: str, *, coded: bool = False, **claims: Any) -> FeatureLab:
        """The lab of a neuron or of the feature that is its code; `claims` are a rival's."""
        index = CODED.index(name) if coded else self.neurons[name].index
        return self.lab_of("dictionary" if coded else "mlp", index, **claims)

    def lab_of(self, sort: str, index: int, **claims: Any) -> FeatureLab:
        """The lab of a feature of one of the sources."""
        source = self.sources[sort]
        key = f"{source.id}:{index}"
        if key not in self.labs:
            (feature,) = self.store.features(key)
            batch = self.loaders[source.id].train([self.store.evidence(feature)])
            self.labs[key] = FeatureLab(self.store, self.subject, source, batch.features[0], batch)
        lab = self.labs[key]
        lab.rivals = {"H1": Hypothesis(text="a claim", kind="described", **claims)} if claims else {}
        return lab


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    yield made
    made.store.close()


def run(tool: Any, lab: FeatureLab, **args: Any) -> Measured:
    return tool.measure(tool.design(tool.args(**args), lab), lab)


def levels(tool: Any, lab: FeatureLab, **args: Any) -> dict[str, str]:
    """The level of each item."""
    design = tool.design(tool.args(**args), lab)
    seen = levels_of(tool.measure(design, lab).values)
    names = [item.about.get("token") or item.about["node"] for item in design.items]
    return {name: LEVELS[level] for name, level in zip(names, seen, strict=True)}


def promoting(world: World) -> list[PlantedNeuron]:
    return [neuron for neuron in world.neurons.values() if neuron.promotes and neuron.name != INERT]


def word(name: str | None) -> str:
    return f" {name}"


def test_promoted_tokens_are_the_planted_ones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steer, "OTHERS", 8)
    for neuron in promoting(world):
        found = run(PromotedTokens(), world.lab(neuron.name), count=1)
        assert [one["token"] for one in found.found["raises"]] == [word(neuron.promotes)], neuron.name
        assert found.effect is not None and found.effect > 5
        assert found.found["exact"]


def test_promoted_tokens_are_compared_with_those_of_other_features(world: World) -> None:
    found = run(PromotedTokens(), world.lab("day"))
    silent = found.found["others_that_write_nothing"]
    assert 0 < silent < steer.OTHERS
    assert found.control is not None and found.control.what.startswith(f"{steer.OTHERS - silent} other")


def test_a_feature_that_writes_nothing_has_no_promoted_tokens(world: World) -> None:
    with pytest.raises(NeuronautError, match="writes nothing"):
        run(PromotedTokens(), world.lab(INERT))


TOKEN_TOOLS = [Ablate(), PatchActivation(), Steer()]


@pytest.mark.parametrize("tool", TOKEN_TOOLS, ids=lambda tool: tool.name)
@pytest.mark.parametrize(("name", "coded"), [("day", False), ("new_haven", False), ("day", True), ("new_haven", True)])
def test_the_planted_token_is_strong_and_its_controls_are_silent(
    world: World, tool: Any, name: str, coded: bool
) -> None:
    planted = word(world.neurons[name].promotes)
    lab = world.lab(name, coded=coded, promotes=(planted, " bird"))
    found = levels(tool, lab, count=3)
    assert len(found) == 4
    assert found.pop(planted) == "strong"
    assert set(found.values()) == {"silent"}


@pytest.mark.parametrize("tool", TOKEN_TOOLS, ids=lambda tool: tool.name)
def test_the_effect_of_an_inert_unit_is_within_its_shams(world: World, tool: Any) -> None:
    lab = world.lab(INERT, promotes=(word(world.neurons[INERT].promotes), " bird", " Oslo"))
    found = run(tool, lab, count=3)
    assert found.control is not None and found.control.low is not None and found.control.high is not None
    assert found.effect is not None
    assert abs(found.effect) <= max(abs(found.control.low), abs(found.control.high))
    assert {LEVELS[level] for level in levels_of(found.values)} == {"silent"}


def test_tools_choose_the_tokens_where_no_rival_claims_any(world: World) -> None:
    planted = word(world.neurons["day"].promotes)
    assert levels(Ablate(), world.lab("day"))[planted] == "strong"
    assert set(levels(Ablate(), world.lab(INERT)).values()) == {"silent"}


def test_what_is_said_to_be_suppressed_and_is_not_counts_against_the_headline(world: World) -> None:
    planted = word(world.neurons["day"].promotes)
    right = run(Ablate(), world.lab("day", promotes=(planted,)))
    wrong = run(Ablate(), world.lab("day", suppresses=(planted,)))
    assert right.effect is not None and wrong.effect == -right.effect
    assert right.values == wrong.values


@pytest.mark.parametrize("how", ["mean", "zero", "resample"])
def test_the_effect_of_an_ablation_is_the_planted_weight_times_the_activation(world: World, how: str) -> None:
    found = run(Ablate(), world.lab("day", promotes=(word(world.neurons["day"].promotes),)), how=how)
    share = 1 - 1 / len(world.subject.vocabulary)  # above the vocabulary's mean
    assert found.effect == pytest.approx(4 * share, rel=0.2)
    assert found.n == 6 and found.units == "logits"


def test_shams_of_both_directions_of_a_patch_do_not_cancel(world: World) -> None:
    lab, widths = world.lab("day", promotes=(word(world.neurons["day"].promotes),)), dict[str, float]()
    for direction in ("on", "both"):
        control = run(PatchActivation(), lab, direction=direction, count=3).control
        assert control is not None and control.low is not None and control.high is not None
        widths[direction] = control.high - control.low
    assert widths["both"] == pytest.approx(widths["on"], rel=0.2)


def test_steering_is_monotone_and_nothing_at_zero_dose(world: World) -> None:
    for neuron in promoting(world)[::4]:
        found = run(Steer(), world.lab(neuron.name, promotes=(word(neuron.promotes),)), count=2).found
        effects = [dose["effect"] for dose in found["curve"]]
        assert found["sense"] == "rising" and effects == sorted(effects), neuron.name
        assert found["zero_dose"] == pytest.approx(0, abs=0.01)
        assert effects[-1] == pytest.approx(8, rel=0.2)


READS = {"new_haven": "head.0:0", "bell_after_storm": "head.0:2", "seen_before": "head.0:3", "quoted": "head.0:1"}
"""By neuron, the head that its condition comes through."""


# The mean of a count is some other count, so `quoted` may well go on under it.
@pytest.mark.parametrize(("name", "how"), [*((name, "silent_run") for name in READS), ("new_haven", "mean")])
def test_cutting_upstream_finds_the_head_that_is_read_and_no_other(world: World, name: str, how: str) -> None:
    found = levels(CutUpstream(), world.lab(name, reads=(READS[name],)), how=how, nodes=("head.1:0", "head.2:0"))
    assert found.pop(READS[name]) == "strong"
    assert set(found.values()) == {"silent"}


def test_a_token_set_reads_no_head(world: World) -> None:
    lab = world.lab("day", reads=("head.0:0",))
    assert set(levels(CutUpstream(), lab).values()) == {"silent"}
    found = run(CutUpstream(), lab)
    assert found.effect == pytest.approx(0, abs=0.01)


def test_a_dictionary_feature_comes_through_what_its_neuron_comes_through(world: World) -> None:
    found = levels(CutUpstream(), world.lab("new_haven", coded=True, reads=("head.0:0", "mlp_out.2")))
    assert (found["head.0:0"], found["mlp_out.2"]) == ("strong", "strong")


@pytest.mark.parametrize(("name", "coded"), [("new_haven", False), ("new_haven", True), ("bell_after_storm", False)])
def test_the_survey_names_the_head_and_the_tokens(world: World, name: str, coded: bool) -> None:
    found = run(Upstream(), world.lab(name, coded=coded)).found
    heads = [one["node"] for one in found["components"] if one["node"].startswith("head")]
    assert heads[0] == READS[name]
    before = " New" if name == "new_haven" else " storm"
    for place in found["tokens"]:
        strong = {one["token"] for one in place["tokens"] if one["share"] > 0.5}
        assert strong == {f" {'Haven' if name == 'new_haven' else 'bell'}", before}


def test_the_share_to_first_order_is_the_exact_one_where_the_path_is_linear(world: World) -> None:
    for one in run(Upstream(), world.lab("colour")).found["components"]:
        assert one["predicted"] == pytest.approx(one["share"], abs=0.02)


def test_attention_shows_the_previous_token_head(world: World) -> None:
    found = run(Attention(), world.lab("new_haven"))
    (head, *_) = found.found["heads"]
    assert head["head"] == "head.0:0" and head["kinds"]["previous"] > 0.99
    assert head["looks"][0]["offset"] == -1 and set(head["looks"][0]["tokens"]) == {" New"}
    assert found.effect == pytest.approx(1, abs=0.01)


ANY_CAUSE = 2
"""The neuron of the layer before that rises with either cause of `three_causes`."""


def test_downstream_finds_the_neuron_that_reads_the_flag(world: World) -> None:
    found = run(Downstream(), world.lab_of("before", ANY_CAUSE))
    reader = f"mlp.{LAYER}:{world.neurons['three_causes'].index}"
    assert found.found["first"] == found.found["neurons"][0]["unit"] == reader
    assert found.found["neurons"][0]["raised_by"] > 0
    assert found.found["neurons"][1]["deviations"] < 0.1 * found.found["neurons"][0]["deviations"]
    assert found.control is not None and found.control.high is not None and found.effect is not None
    assert found.effect > found.control.high


def test_nothing_is_downstream_of_the_last_layer(world: World) -> None:
    with pytest.raises(NeuronautError, match="only the output reads"):
        run(Downstream(), world.lab("day"))


def test_the_residual_stream_knows_what_a_feature_says_and_other_neurons_may_not(world: World) -> None:
    stream = run(ProbeProperty(), world.lab("day", coded=True))
    assert stream.effect == pytest.approx(1) and stream.found["with_the_feature"] == pytest.approx(1)
    bigram = run(ProbeProperty(), world.lab("new_haven"))
    assert bigram.found["with_the_feature"] == pytest.approx(1)
    assert bigram.effect is not None and bigram.control is not None and bigram.control.high is not None
    assert bigram.effect < bigram.control.high


def test_what_a_component_is_must_come_before_the_feature(world: World) -> None:
    with pytest.raises(NeuronautError, match="not computed before"):
        run(CutUpstream(), world.lab("day"), nodes=("mlp_out.2",))
    assert run(CutUpstream(), world.lab("day", reads=("mlp_out.2", "head.0:0"))).found["left_out"] == ["mlp_out.2"]


def test_an_edit_that_changes_nothing_is_an_error(world: World) -> None:
    with pytest.raises(NeuronautError, match="changes nothing"):
        run(Ablate(), world.lab("always"), how="mean")


def test_a_given_token_must_be_one_and_a_claimed_one_that_is_none_is_reported(world: World) -> None:
    with pytest.raises(NeuronautError, match="no token"):
        run(Ablate(), world.lab("day"), tokens=("nonesuch",))
    assert run(Ablate(), world.lab("day", promotes=("nonesuch", " bird"))).found["left_out"] == ["nonesuch"]


def test_designs_are_deterministic(world: World) -> None:
    tools: Sequence[Any] = [*TOKEN_TOOLS, PromotedTokens(), CutUpstream(), Upstream(), Attention(), ProbeProperty()]
    for tool in tools:
        assert tool.design(tool.args(), world.lab("day")) == tool.design(tool.args(), world.lab("day"))
