"""Doses and responses: against one run at a time, on a planted neuron of known slope, on one that is inert."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuronaut.causal import steering
from neuronaut.causal.controls import random_directions
from neuronaut.causal.doses import Trend, Usable, trend, usable
from neuronaut.causal.edits import Edit
from neuronaut.causal.intervene import Materials, apply
from neuronaut.causal.measures import Question, fidelity, mean, metric
from neuronaut.causal.prompts import Batch
from neuronaut.causal.readouts import activation, answers, token_set
from neuronaut.causal.runs import gather
from neuronaut.causal.steering import dose_response
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons
from tests import planted as world
from tests.families import tiny_subject, tiny_tokens
from tests.test_edits import dictionary

SAE = {"resid_post.1@sae": dictionary()}
MATERIALS = Materials(sources=SAE)
ROWS = [[0, *tiny_tokens(1, length, seed=length)[0].tolist()] for length in (3, 9, 6)]
TEXT = [[0, *tiny_tokens(1, length, seed=20 + length)[0].tolist()] for length in (11, 5, 8, 8)]
STRENGTHS = (-1.0, 0.0, 2.0)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny_subject("llama")


@pytest.fixture(scope="module")
def planted() -> tuple[Subject, dict[str, world.PlantedNeuron], Batch]:
    model, tokenizer, corpus, neurons = world.build(documents=3)
    found = Subject(model, tokenizer, name="planted")
    rows = [[found.bos or 0, *found.encode(text)[:20]] for text in corpus]
    return found, {neuron.name: neuron for neuron in neurons}, Batch.of(found, rows)


def alone(subject: Subject, row: list[int], edit: Edit | None, materials: Materials) -> Tensor:
    """All logits of one row, by itself: (position, token)."""
    batch = Batch.of(subject, [row])
    if edit is None:
        return subject.logits(batch.tokens)[0]
    with apply(subject, batch, [edit], materials=materials, may_idle=True):
        return subject.logits(batch.tokens)[0]


# --- the whole, against one run at a time -----------------------------------------------------------


@pytest.mark.parametrize("text", ["resid_post.1@sae:4+=1q", "mlp.1:3=1@last", "head.1:2*=1"])
def test_doses_are_what_one_run_at_a_time_shows(subject: Subject, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "LOGITS", 300 * 12 * 3)  # So that the text takes two blocks.
    monkeypatch.setattr(steering, "AT_ONCE", 10)
    edit, ids = Edit.parse(text), [5, 6, 7]
    batch, unrelated = Batch.of(subject, ROWS), Batch.of(subject, TEXT)
    found = dose_response(
        subject,
        batch,
        edit,
        answers("log_probability", ids),
        text=unrelated,
        strengths=[2, -1, 0, 2],
        controls=4,
        materials=MATERIALS,
        seed=9,
    )
    patch_values = gather(subject, [edit], materials=MATERIALS, reference=unrelated)
    assert tuple(dose.strength for dose in found.doses) == STRENGTHS

    def effect(one: Edit) -> float:
        runs = [[alone(subject, row, given, patch_values)[-1].log_softmax(0) for given in (None, one)] for row in ROWS]
        changes = [after[id] - plain[id] for (plain, after), id in zip(runs, ids, strict=True)]
        return float(torch.stack(changes).mean())

    for dose in found.doses:
        one = edit.model_copy(update={"value": dose.strength})
        assert dose.effect.value == pytest.approx(effect(one), abs=2e-5) and dose.effect.n == 3
        assert dose.response.value - found.plain.value == pytest.approx(dose.effect.value, abs=1e-5)
        assert (dose.rank is None) == (dose.max_change == 0)
        if dose.rank:
            wanted = [effect(control) for control in random_directions(one, count=4, seed=9)]
            assert dose.rank.controls == pytest.approx(wanted, abs=2e-5)
        divergences, losses = side_effects(subject, one.model_copy(update={"positions": "all"}), patch_values)
        for found_one, rows in ((dose.kl, divergences), (dose.loss, losses)):
            by_row = mean(rows, seed=9)
            assert found_one.value == pytest.approx(by_row.value, abs=2e-5) and found_one.n == 4
            assert found_one.interval == pytest.approx(by_row.interval, abs=2e-5)
    assert len({round(dose.kl.value, 4) for dose in found.doses}) == 3


def side_effects(subject: Subject, edit: Edit, materials: Materials) -> tuple[list[float], list[float]]:
    divergences, losses = [], []
    for row in TEXT:
        plain, after = (alone(subject, row, one, materials).log_softmax(-1) for one in (None, edit))
        divergences.append(float((plain.exp() * (plain - after)).sum(-1)[1:].mean()))
        own = torch.tensor(row[1:])[:, None]
        losses.append(float((plain - after)[:-1].gather(1, own).mean()))
    return divergences, losses


def test_strength_is_in_the_features_own_activations(subject: Subject) -> None:
    batch, unrelated = Batch.of(subject, ROWS), Batch.of(subject, TEXT)
    given: dict[str, Any] = {"text": unrelated, "controls": 0, "materials": MATERIALS}
    vectors = [subject.read(torch.tensor([row]), ["resid_post.1"])["resid_post.1"][0, 1:] for row in TEXT]
    acts = SAE["resid_post.1@sae"].encode(torch.cat(vectors))[:, [4, 9]]
    peaks = acts.amax(0)
    readout = token_set([1, 2])
    found = dose_response(subject, batch, Edit.parse("resid_post.1@sae:4,9+=1q"), readout, strengths=[-1, 0.5], **given)
    assert found.unit == pytest.approx(peaks.tolist(), rel=1e-5)
    single = dose_response(subject, batch, Edit.parse("resid_post.1@sae:4+=1q"), readout, strengths=[-1, 0.5], **given)
    plain = dose_response(
        subject,
        batch,
        Edit.parse("resid_post.1@sae:4+=1"),
        readout,
        strengths=[-float(peaks[0]), 0.5 * float(peaks[0])],
        **given,
    )
    assert plain.unit is None
    for one, other in zip(single.doses, plain.doses, strict=True):
        assert one.effect.value == pytest.approx(other.effect.value, abs=1e-5) and one.rank is None
    other = Batch.of(subject, ROWS)
    elsewhere = dose_response(
        subject, batch, Edit.parse("resid_post.1@sae:4+=1q"), readout, strengths=[0, 1], reference=other, **given
    )
    assert elsewhere.unit != single.unit and elsewhere.provenance.prompts != single.provenance.prompts
    assert single.dictionaries == {"resid_post.1@sae": fidelity(subject, SAE["resid_post.1@sae"], unrelated)}
    assert single.provenance.dictionaries == {"resid_post.1@sae": SAE["resid_post.1@sae"].revision}


# --- planted answers --------------------------------------------------------------------------------


def test_a_planted_neuron_raises_its_token_by_four_a_unit(planted) -> None:  # noqa: ANN001
    subject, neurons, text = planted
    neuron = next(neuron for neuron in neurons.values() if neuron.promotes)
    token = subject.vocabulary.index(f" {neuron.promotes}")
    prompts = Batch.of(subject, ["the old house", "Anna said", "a small boat"])
    readout = answers("logit_difference", [token] * 3, wrong=[subject.vocabulary.index(" forest")] * 3)
    edit = Edit(site=f"mlp.{world.LAYER}", units=(neuron.index,), operation="add", value=1)
    found = dose_response(subject, prompts, edit, readout, text=text, strengths=[-2, 0, 1, 3], controls=30)
    assert [dose.effect.value for dose in found.doses] == pytest.approx([-8, 0, 4, 12], rel=2e-3, abs=1e-3)
    assert found.trend == Trend("rising", ())
    strong = found.doses[-1]
    assert strong.rank is not None and strong.rank.percentile == 100 and strong.kl.value > 1
    down = Edit(site=edit.site, units=edit.units, operation="add", value=1, negative=True)
    opposite = dose_response(subject, prompts, down, readout, text=text, strengths=[0, 1], controls=0)
    assert opposite.trend.sense == "falling" and opposite.doses[1].effect.value == pytest.approx(-4, rel=2e-3)


def test_an_inert_neuron_has_no_response_and_no_side_effects(planted) -> None:  # noqa: ANN001
    subject, neurons, text = planted
    inert = next(neuron for neuron in neurons.values() if neuron.promotes is None)
    prompts = Batch.of(subject, ["the old house", "Anna said"])
    edit = Edit(site=f"mlp.{world.LAYER}", units=(inert.index,), operation="add", value=1)
    found = dose_response(subject, prompts, edit, answers("kl"), text=text, strengths=[0, 1, 4], controls=10)
    assert [dose.max_change for dose in found.doses] == [0, 1, 4]
    idle, *doses = found.doses
    assert idle.effect.value == idle.response.value == idle.kl.value == idle.loss.value == 0 and idle.rank is None
    for dose in doses:
        assert 0 <= dose.effect.value < 1e-6 and 0 <= dose.kl.value < 1e-6
        assert dose.rank is not None and dose.rank.p > 0.5
    assert found.usable == Usable(0, 4, (False, False))


# --- trend and range --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effects", "wanted"),
    [
        ([0.0, 1.0, 2.0, 5.0], Trend("rising", ())),
        ([0.0, 1.0, 1.0, 0.999], Trend("rising", ())),  # Back by a thousandth: a plateau.
        ([3.0, 1.0, 1.0, -2.0], Trend("falling", ())),
        ([0.0, 2.0, 1.0, 1.0], Trend(None, (2.0,))),
        ([0.0, 2.0, 2.0, 1.0], Trend(None, (3.0,))),
        ([1.0, 0.0, 1.0, 0.0], Trend(None, (2.0, 3.0))),
        ([0.0, 0.0, 0.0, 0.0], Trend(None, ())),
    ],
)
def test_trend(effects: list[float], wanted: Trend) -> None:
    assert trend([1, 2, 3, 4], effects) == wanted


@pytest.mark.parametrize(
    ("divergences", "wanted"),
    [
        ([0.04, 0.01, 0.0, 0.01, 0.04], Usable(-2, 2, (False, False))),
        ([0.16, 0.04, 0.0, 0.04, 0.16], Usable(-1.5, 1.5, (True, True))),  # Square roots 0.4, 0.2 about 0.3.
        ([0.04, 0.0, 0.36, 0.0, 0.0], Usable(-2, -0.5, (False, True))),  # What lies beyond a crossing is not counted.
        ([0.5, 0.4, 0.3, 0.2, 0.1], None),
        ([0.5, 0.4, 0.3, 0.2, 0.09], Usable(2, 2, (True, False))),
        ([0.04, 0.01, -1e-9, 0.01, 0.36], Usable(-2, 1 + 0.2 / 0.5, (False, True))),
    ],
)
def test_usable(divergences: list[float], wanted: Usable | None) -> None:
    found = usable([-2, -1, 0, 1, 2], divergences, bound=0.09)
    if wanted is None or found is None:
        assert found == wanted
    else:
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
        assert found.reached == wanted.reached


# --- readouts -----------------------------------------------------------------------------------------


def test_readouts_by_hand(subject: Subject) -> None:
    batch, ids = Batch.of(subject, ROWS), [5, 6, 7]
    last = torch.stack([alone(subject, row, None, MATERIALS)[-1] for row in ROWS])
    chosen = token_set([9, 3, 3])
    wanted = (last.softmax(-1)[:, 3] + last.softmax(-1)[:, 9]).log()
    torch.testing.assert_close(chosen.read(chosen.run(subject, batch), last), wanted, rtol=1e-4, atol=1e-5)
    other = torch.randn(last.shape, generator=torch.Generator().manual_seed(0))
    for name in ("kl", "loss", "logit_difference"):
        readout = answers(name, ids, wrong=[1, 2, 3])
        question = Question(torch.tensor(ids), torch.tensor([1, 2, 3]), last)
        assert torch.equal(readout.read(other, last), metric(name)(other, question))
    neuron = activation(Neurons(SourceId("llama", "mlp.2"), subject.width("mlp.2")), Feature.parse("llama:mlp.2:11-"))
    site = torch.stack([subject.read(torch.tensor([row]), ["mlp.2"])["mlp.2"][0, -1] for row in ROWS])
    torch.testing.assert_close(neuron.read(neuron.run(subject, batch), last), -site[:, 11], rtol=1e-4, atol=1e-5)


def test_a_feature_further_on_answers_and_one_before_cannot(subject: Subject) -> None:
    batch, text = Batch.of(subject, ROWS), Batch.of(subject, TEXT)
    readout = activation(SAE["resid_post.1@sae"], Feature(SAE["resid_post.1@sae"].id, 4))
    given: dict[str, Any] = {"text": text, "strengths": [0, 3], "controls": 2}
    same = dose_response(subject, batch, Edit.parse("resid_post.1@sae:4+=1"), readout, materials=MATERIALS, **given)
    assert same.doses[1].effect.value != 0 and same.readout == "activation of gpt2:resid_post.1@sae:4"
    earlier = dose_response(subject, batch, Edit.parse("mlp.0:5+=1"), readout, **given)
    assert abs(earlier.doses[0].effect.value) < 1e-5 < 1e-3 < abs(earlier.doses[1].effect.value)
    with pytest.raises(NeuronautError, match="the pass ended before its site"):
        dose_response(subject, batch, Edit.parse("mlp.2:5+=1"), readout, **given)


# --- results, refusals --------------------------------------------------------------------------------


def test_results_are_data_and_a_picture(subject: Subject, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    batch, text = Batch.of(subject, ROWS), Batch.of(subject, TEXT)
    before, state = subject.logits(batch.tokens), torch.get_rng_state()
    found = dose_response(
        subject, batch, Edit.parse("mlp.1:3+=1"), token_set([4]), text=text, strengths=[0, 2], controls=3
    )
    again = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert again["doses"][1]["strength"] == 2 and again["trend"]["turns"] == []
    assert again["provenance"]["model"] == "llama" and again["edit"] == "mlp.1:3+=1"
    assert again["doses"][1]["kl"]["interval"][0] <= again["doses"][1]["kl"]["value"]
    found.picture(tmp_path / "dose.png")
    assert (tmp_path / "dose.png").read_bytes().startswith(b"\x89PNG")
    assert torch.equal(subject.logits(batch.tokens), before) and torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())


@pytest.mark.parametrize(
    ("edit", "given", "message"),
    [
        ("mlp.1:3=0", {}, "has no strength to vary"),
        ("pattern.1:3=0.5", {}, "has no strength to vary"),
        ("mlp.1:3+=1~4", {}, "has no strength to vary"),
        ("mlp.1:3+=1", {"strengths": [1]}, "at least two different finite numbers"),
        ("mlp.1:3+=1", {"strengths": [1, float("inf")]}, "at least two different finite numbers"),
        ("mlp.1:3*=1", {"strengths": [1, 1 + 1e-12]}, "changed nothing at strengths"),
        ("mlp.1:3+=1", {"text": [[0, 4], [0]]}, "row of the unrelated text has one token"),
        ("mlp.1:3+=1", {"readout": answers("log_probability", [1])}, "has 1 answers for 3 prompts"),
        ("mlp.1:3+=1", {"readout": answers("log_probability")}, "has 0 answers for 3 prompts"),
        ("mlp.1:3+=1", {"readout": token_set([300])}, "not all among the 300 of llama"),
        ("mlp.1:3+=1", {"readout": answers("logit_difference", [1, 2, 3])}, "needs 'wrong'"),
        ("mlp.1:999+=1", {}, "there is no unit 999"),
    ],
)
def test_what_cannot_be_steered_is_an_error(subject: Subject, edit: str, given: dict[str, Any], message: str) -> None:
    text = Batch.of(subject, given.get("text", TEXT))
    with pytest.raises(NeuronautError, match=message):
        dose_response(
            subject,
            Batch.of(subject, ROWS),
            Edit.parse(edit),
            given.get("readout", token_set([4])),
            text=text,
            strengths=given.get("strengths", STRENGTHS),
            controls=2,
        )


def test_an_empty_set_of_tokens_is_an_error() -> None:
    with pytest.raises(NeuronautError, match="set of tokens is empty"):
        token_set([])
