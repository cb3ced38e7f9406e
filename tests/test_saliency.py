"""Input attribution: exact on the linear world; on real architectures by `inputs_embeds` and naive replacements."""

from collections.abc import Callable

import pytest
import torch

from neuronaut.causal.saliency import (
    Activation,
    Logit,
    Saliency,
    Target,
    gradient_x_input,
    integrated_gradients,
    occlusion,
)
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.dictionary import EXTRAS, RANKED, Dictionary, Kind
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.pursuit import Pursuit
from neuronaut.subject.sources import Neurons
from tests.circuits import gate, induction, linear_world
from tests.families import FAMILIES, tiny_subject, tiny_tokens

TOKENS = [0, *tiny_tokens(1, 8)[0].tolist()]
every_family = pytest.mark.parametrize("family", FAMILIES)


def neuron(subject: Subject, site: str, index: int, *, negative: bool = False, position: int = -1) -> Activation:
    id = SourceId(subject.name, site)
    return Activation(Neurons(id, subject.width(site)), Feature(id, index, negative), position)


def test_on_a_linear_world_every_method_says_the_same() -> None:
    circuit = linear_world()
    subject = circuit.subject
    for row, target in ((0, Logit(2, 3)), (1, neuron(subject, "resid_post.1", 5)), (2, Logit(2, 3, position=-3))):
        tokens = circuit.clean[row].tolist()
        whole = integrated_gradients(subject, tokens, target, baseline=7, steps=1)
        alone = occlusion(subject, tokens, target, baseline=7)
        assert whole.values == pytest.approx(alone.values, abs=1e-4)
        assert whole.completeness_error == pytest.approx(0, abs=1e-4)
        assert whole.at_baseline is not None and sum(alone.values) == pytest.approx(
            whole.metric - whole.at_baseline, abs=1e-4
        )
        # Of an affine metric, the gradient's products at two inputs differ by what integrated gradients give.
        other = [0] + [7] * 7
        products, others = (torch.tensor(gradient_x_input(subject, ids, target).values) for ids in (tokens, other))
        assert (products - others).tolist() == pytest.approx(list(whole.values), abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_the_midpoint_error_falls_with_the_square_of_the_steps(family: str) -> None:
    subject, errors = tiny_subject(family), []
    for steps in (16, 32, 64):
        found = integrated_gradients(subject, TOKENS, Logit(5, 9), baseline=7, steps=steps, at_once=50)
        assert found.completeness_error is not None and found.at_baseline is not None
        errors.append(found.completeness_error)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.12) and errors[1] / errors[2] == pytest.approx(4, rel=0.03)
    assert abs(errors[2]) < 0.01 * abs(found.metric - found.at_baseline)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_parts_of_the_line_are_cut_where_they_do_not_add_up(family: str) -> None:
    """Beside the mean embedding a norm turns sharply; wanted are the values of 2000 equal steps."""
    subject = tiny_subject(family)
    fine = integrated_gradients(subject, TOKENS, Logit(5, 9), baseline="mean", steps=2000, at_once=500)
    found = integrated_gradients(subject, TOKENS, Logit(5, 9), baseline="mean")
    assert found.steps is not None and found.steps <= 64
    equal = integrated_gradients(subject, TOKENS, Logit(5, 9), baseline="mean", steps=found.steps)
    assert found.missed is not None and equal.missed is not None and found.missed < 0.01
    assert found.missed <= equal.missed + 1e-6 and equal.steps == found.steps
    assert found.values == pytest.approx(fine.values, abs=0.01 * max(map(abs, fine.values)))


@every_family
def test_gradients_are_those_of_hugging_faces_own_embeddings(family: str) -> None:
    """The model run from `inputs_embeds`, whose gradient is that of the first layer's input."""
    subject, ids = tiny_subject(family), torch.tensor([TOKENS])
    embedded = subject.model.get_input_embeddings()(ids).requires_grad_()
    output = subject.model(inputs_embeds=embedded, output_hidden_states=True, use_cache=False)
    vectors = subject.read(ids, ["embed"])["embed"].clone()
    for target, value in (
        (Logit(5, 9), output.logits[0, -1, 5] - output.logits[0, -1, 9]),
        (neuron(subject, "resid_pre.2", 3, negative=True, position=6), -output.hidden_states[2][0, 6, 3]),
    ):
        (gradient,) = torch.autograd.grad(value, embedded, retain_graph=True)
        found = gradient_x_input(subject, TOKENS, target)
        assert found.metric == pytest.approx(float(value.detach()), abs=1e-5)
        assert found.values == pytest.approx((vectors * gradient).sum(-1)[0].tolist(), rel=1e-3, abs=1e-4)


def naive(subject: Subject, ids: torch.Tensor, target: Target) -> float:
    """The metric, read in the plainest way."""
    if isinstance(target, Logit):
        logits = subject.logits(ids)[0, target.position]
        return float(logits[target.token] - (0 if target.against is None else logits[target.against]))
    site, index = target.source.id.site, target.feature.index
    value = float(subject.read(ids, [site])[site][0, target.position, index])
    return -value if target.feature.negative else value


@every_family
def test_occlusion_puts_another_token_in_the_place_of_each(family: str) -> None:
    subject, target = tiny_subject(family), Logit(5)
    found = occlusion(subject, TOKENS, target, baseline=77, at_once=4)
    plain = naive(subject, torch.tensor([TOKENS]), target)
    assert found.values[0] == 0 and found.metric == pytest.approx(plain, abs=1e-5)
    for place in range(1, len(TOKENS)):
        other = torch.tensor([[*TOKENS[:place], 77, *TOKENS[place + 1 :]]])
        assert found.values[place] == pytest.approx(plain - naive(subject, other, target), abs=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_mean_embedding_keeps_the_position(family: str) -> None:
    """Occluding a token is worth what moving its vector by the mean of all such moves is worth."""
    subject, place = tiny_subject(family), 4
    prompts = torch.tensor([[*TOKENS[:place], token, *TOKENS[place + 1 :]] for token in range(300)])
    mean = subject.read(prompts, ["embed"])["embed"][:, place].mean(0)

    def moved(vectors: torch.Tensor) -> torch.Tensor:
        vectors = vectors.clone()
        vectors[:, place] = mean
        return vectors

    plain = naive(subject, torch.tensor([TOKENS]), Logit(5))
    with subject.editing({"embed": moved}):
        wanted = plain - naive(subject, torch.tensor([TOKENS]), Logit(5))
    assert occlusion(subject, TOKENS, Logit(5), baseline="mean").values[place] == pytest.approx(wanted, abs=2e-5)


@pytest.mark.parametrize("kind", EXTRAS)
def test_a_features_gradient_goes_through_its_encoder(kind: Kind) -> None:
    subject, generator = tiny_subject("gpt2"), torch.Generator().manual_seed(0)
    extras = {name: 0.1 * torch.randn(9, generator=generator) for name in EXTRAS[kind]}
    W_enc, W_dec = torch.randn(9, 24, generator=generator), torch.randn(9, 24, generator=generator)
    dictionary = Dictionary(
        id=SourceId("gpt2", "resid_pre.1", "toy"),
        kind=kind,
        W_enc=W_enc.T,
        W_dec=W_dec,
        b_enc=torch.ones(9),
        b_dec=torch.zeros(24),
        k=3 if kind in RANKED else 0,
        pursuit=Pursuit(3, 0.0, stop_at_repeat=True) if kind == "matching_pursuit" else None,
        **extras,
    )
    vector = subject.read(torch.tensor([TOKENS]), ["resid_pre.1"])["resid_pre.1"][:, -1]
    index = int(dictionary.encode(vector)[0].argmax())
    target = Activation(dictionary, Feature(dictionary.id, index))
    found = integrated_gradients(subject, TOKENS, target, baseline="mean", steps=400, at_once=100)
    assert found.metric == pytest.approx(float(dictionary.encode(vector)[0, index]), rel=1e-5) and found.metric > 0
    assert found.completeness_error == pytest.approx(0, abs=0.03 * found.metric)


def test_the_induction_circuit_reads_the_word_its_first_place_and_the_follower() -> None:
    circuit = induction("llama")
    row = circuit.clean[0].tolist()
    found = occlusion(circuit.subject, row, Logit(int(circuit.answer[0]), int(circuit.wrong[0])), baseline="mean")
    first = row.index(row[-1])
    worth = {place for place, value in enumerate(found.values) if abs(value) > 0.5}
    assert {first, first + 1, len(row) - 1} <= worth


def test_the_gates_tell_noise_from_need() -> None:
    """With one of two bits off, the and-gate is closed and the or-gate still open."""
    worth = {}
    for kind in ("and", "or"):
        circuit = gate(kind)
        worth[kind] = occlusion(circuit.subject, circuit.clean[0].tolist(), Logit(4, 5), baseline=2).values
    assert worth["and"][1:3] == pytest.approx((2, 2), abs=1e-5) and worth["or"][1:3] == pytest.approx((0, 0), abs=1e-5)


METHODS: tuple[Callable[[Subject, list[int], Target], Saliency], ...] = (
    gradient_x_input,
    lambda *call: integrated_gradients(*call, baseline=7, steps=5, at_once=2),
    lambda *call: occlusion(*call, baseline=7, at_once=3),
)


@pytest.mark.parametrize("method", METHODS)
def test_the_subject_is_left_as_it_was_and_the_future_is_worth_nothing(method: Callable[..., Saliency]) -> None:
    subject = tiny_subject("gpt2")
    before = subject.revision
    found = method(subject, TOKENS, Logit(5, position=4))
    assert found.values[5:] == (0, 0, 0, 0) and all(found.values[1:5])
    with torch.inference_mode():
        assert method(subject, TOKENS, Logit(5, position=4)) == found and torch.is_inference_mode_enabled()
    with torch.no_grad():
        assert method(subject, TOKENS, Logit(5, position=4)) == found
    with pytest.raises(NeuronautError, match="position 9 is outside the prompt of 9 tokens, -9 to 8"):
        method(subject, TOKENS, neuron(subject, "mlp.1", 0, position=9))
    del subject.__dict__["revision"]
    assert subject.revision == before and torch.is_grad_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())


def test_what_cannot_be_attributed_is_said() -> None:
    subject = tiny_subject("gpt2")
    with pytest.raises(NeuronautError, match="every token of the prompt is the baseline, 7"):
        occlusion(subject, [0, 7, 7], Logit(5), baseline=7)
    with pytest.raises(NeuronautError, match="token 300 is outside the vocabulary of gpt2, 0 to 299"):
        gradient_x_input(subject, TOKENS, Logit(5, 300))
    with pytest.raises(NeuronautError, match="no token to attribute to"):
        gradient_x_input(subject, [], Logit(5))
    with pytest.raises(NeuronautError, match="in 0 steps"):
        integrated_gradients(subject, TOKENS, Logit(5), baseline=7, steps=0)
    with pytest.raises(NeuronautError, match="is no feature of gpt2:mlp.1"):
        gradient_x_input(subject, TOKENS, neuron(subject, "mlp.1", 999))
