"""Steered continuations: against the model's own logits one token at a time, alone and in company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neuronaut.causal.clamp import SLOTS, Clamp, steer
from neuronaut.subject.address import Feature
from neuronaut.subject.directions import promoted
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Source
from tests import planted as world
from tests.test_directions import TOKENS, dictionary_at, every_family, neurons_at, planted, subject_of

__all__ = ["planted"]


def plain_greedy(subject: Subject, prompt: list[int], tokens: int, clamp: Clamp | None, source: Source) -> list[int]:
    """One prompt, one token at a time, by the model's own logits."""
    start = len(subject.bos_prefix)
    row = [*subject.bos_prefix, *prompt]

    def held(vectors: Tensor) -> Tensor:
        edited = vectors.clone()
        edited[:, start:, clamp.feature.index] = -clamp.activation if clamp.feature.negative else clamp.activation
        return edited

    for _ in range(tokens):
        with subject.editing({source.id.site: held} if clamp else {}):
            row.append(int(subject.logits(torch.tensor([row]))[0, -1].argmax()))
    return row[start + len(prompt) :]


@every_family
def test_steering_is_one_token_at_a_time_by_the_models_own_logits(family: str) -> None:
    subject = subject_of(family)
    source = neurons_at(subject, "mlp.1")
    prompts = [[5, 9, 13, 2, 7], [40, 41], [100, 3, 8]]
    clamps = [Clamp(Feature(source.id, i, negative=i % 2 == 1), 30.0) for i in range(SLOTS + 2)]
    found = steer(subject, source, clamps, prompts, tokens=5)
    assert [list(row) for row in found.plain] == [plain_greedy(subject, p, 5, None, source) for p in prompts]
    for clamp, rows in zip(clamps, found.steered, strict=True):
        assert [list(row) for row in rows] == [plain_greedy(subject, p, 5, clamp, source) for p in prompts]
    assert any(rows != found.plain for rows in found.steered)


@settings(max_examples=8, deadline=None)
@given(beside=st.lists(st.integers(0, 79), max_size=6, unique=True), temperature=st.sampled_from([0.0, 1.0]))
def test_a_continuation_does_not_depend_on_what_is_asked_for_beside_it(beside: list[int], temperature: float) -> None:
    subject = subject_of("llama")
    source = neurons_at(subject, "mlp.2")
    wanted, prompts = Clamp(Feature(source.id, 11), 20.0), [[1, 2, 3], [50]]
    alone = steer(subject, source, [wanted], prompts, tokens=6, temperature=temperature, seed=4)
    others = [Clamp(Feature(source.id, index), 15.0) for index in beside]
    among = steer(subject, source, [*others, wanted], prompts, tokens=6, temperature=temperature, seed=4)
    assert among.steered[-1] == alone.steered[0] and among.plain == alone.plain


def test_samples_follow_the_models_probabilities() -> None:
    subject = subject_of("gpt2")
    source = neurons_at(subject, "mlp.1")
    drawn = [steer(subject, source, [], [[9, 4]] * 400, tokens=1, temperature=2.0, seed=s).plain for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    logits = subject.logits(torch.tensor([[0, 9, 4]]))[0, -1]
    wanted = (logits / 2.0).softmax(0)
    token = int(wanted.argmax())
    share = sum(row == (token,) for part in (drawn[0], drawn[2]) for row in part) / 800
    assert abs(share - float(wanted[token])) < 4 * (float(wanted[token]) * (1 - float(wanted[token])) / 800) ** 0.5


def test_a_steered_neuron_writes_its_planted_token(planted) -> None:  # noqa: ANN001
    subject, neurons = planted
    source = neurons_at(subject, f"mlp.{world.LAYER}")
    neuron = next(neuron for neuron in neurons.values() if neuron.promotes)
    found = steer(subject, source, [Clamp(Feature(source.id, neuron.index), 30.0)], [[5, 6, 7]], tokens=3)
    assert {token.strip() for token in subject.decode_tokens(found.steered[0][0])} == {neuron.promotes}
    assert found.plain != found.steered[0]


def test_a_clamp_that_changes_nothing_is_an_error() -> None:
    subject = subject_of("gpt2")
    source = dictionary_at(subject, "resid_post.1")
    source.W_dec[4] = 0.0
    with pytest.raises(NeuronautError, match=r"edit resid_post.1@toy:4=3 changed nothing at resid_post.1"):
        steer(subject, source, [Clamp(Feature(source.id, 4), 3.0)], [[1, 2]], tokens=2)


@pytest.mark.parametrize(
    ("prompts", "tokens", "activation", "message"),
    [
        ([], 3, 1.0, "nothing to continue: 0 prompts"),
        ([[1], []], 3, 1.0, "the shortest of 0 tokens"),
        ([[1] * 60], 12, 1.0, "have 73; gpt2 takes at most 64"),
        ([[1]], 3, float("nan"), "cannot be held at nan"),
    ],
)
def test_what_cannot_be_steered_is_an_error(prompts, tokens: int, activation: float, message: str) -> None:  # noqa: ANN001
    subject = subject_of("gpt2")
    source = neurons_at(subject, "mlp.1")
    with pytest.raises(NeuronautError, match=message):
        steer(subject, source, [Clamp(Feature(source.id, 0), activation)], prompts, tokens=tokens)


def test_steering_leaves_the_model_as_it_was() -> None:
    subject = subject_of("gpt2")
    source = neurons_at(subject, "mlp.1")
    before = subject.logits(TOKENS)
    steer(subject, source, [Clamp(Feature(source.id, 0), 9.0)], [[1, 2]], tokens=2)
    promoted(subject, source, Feature(source.id, 0))
    assert torch.equal(subject.logits(TOKENS), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
