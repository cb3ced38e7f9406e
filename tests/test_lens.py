"""The logit lens, against the models' own modules and the hand-built induction circuit."""

from typing import Any

import pytest
import torch

from neuronaut.causal.lens import lens
from neuronaut.subject.architecture import architecture_of
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.circuits import Circuit, induction
from tests.families import FAMILIES, tiny_subject, tiny_tokens

TOKENS = tiny_tokens(2, 6)
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_the_last_layer_is_the_subjects_own_distribution(family: str) -> None:
    subject = tiny_subject(family)
    seen = lens(subject, TOKENS, top=3)
    own = subject.logits(TOKENS).softmax(-1).topk(3)
    assert seen.sites[-1] == "resid_post.2" and seen.kl[-1].abs().max() < 1e-5
    assert torch.equal(seen.top[-1], own.indices) and torch.allclose(seen.probabilities[-1], own.values, atol=1e-6)
    assert (seen.kl[:-1] > 1e-4).all()


@every_family
def test_every_layer_is_read_as_hugging_face_would_read_it(family: str) -> None:
    """Hugging Face's hidden states, but for the last, are those before the final norm."""
    subject = tiny_subject(family)
    with torch.inference_mode():
        hidden = subject.model(TOKENS, output_hidden_states=True).hidden_states[:-1]
        norm = architecture_of(subject.model.config.model_type, name=family).final_norm
        logits = subject.model.get_output_embeddings()(
            subject.model.base_model.get_submodule(norm)(torch.stack(hidden))
        )
        cap = getattr(subject.model.config, "final_logit_softcapping", None)
        wanted = (cap * (logits / cap).tanh() if cap else logits).log_softmax(-1)
    own = subject.logits(TOKENS).log_softmax(-1)
    targets = torch.tensor([[7], [11]])
    seen = lens(subject, TOKENS, sites=["resid_pre.2", "embed", "resid_pre.1"], targets=targets)
    assert seen.sites == ("embed", "resid_pre.1", "resid_pre.2")
    assert torch.allclose(
        seen.kl, torch.nn.functional.kl_div(wanted, own, log_target=True, reduction="none").sum(-1), atol=1e-5
    )
    assert seen.ranks is not None and seen.target_probabilities is not None
    for row, target in enumerate((7, 11)):
        order = wanted[:, row].argsort(dim=-1, descending=True)
        assert torch.equal(seen.ranks[:, row], (order == target).int().argmax(-1))
        assert torch.allclose(seen.target_probabilities[:, row], wanted[:, row, :, target].exp(), atol=1e-6)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def circuit(request: pytest.FixtureRequest) -> Circuit:
    return induction(request.param)


def test_the_answer_of_the_induction_circuit_comes_up_in_layer_1_behind_the_attention(circuit: Circuit) -> None:
    """Until there nothing is in the block that the unembedding reads, and all 16 tokens are alike."""
    seen = lens(circuit.subject, circuit.clean, targets=circuit.answer[:, None])
    assert seen.target_probabilities is not None
    at_the_end = dict(zip(seen.sites, seen.target_probabilities[:, :, -1], strict=True))
    share = torch.tensor(4.0).exp() / (torch.tensor(4.0).exp() + 15)
    for site, found in at_the_end.items():
        wanted = share if site in ("resid_mid.1", "resid_post.1") else torch.tensor(1 / 16)
        assert torch.allclose(found, wanted.expand(len(found)), atol=1e-5), site


def test_an_edit_behind_the_last_layer_is_noticed() -> None:
    subject = tiny_subject()

    def doubled(_: object, __: object, output: Any) -> Any:
        output.logits = 2 * output.logits
        return output

    with subject.model.register_forward_hook(doubled), pytest.raises(NeuronautError, match="off its logits by 0.5"):
        lens(subject, TOKENS)


def test_edits_are_seen_through() -> None:
    subject = tiny_subject()
    with subject.editing({"resid_mid.1": lambda vectors: vectors + 1.5 * torch.arange(24) % 5}):
        edited = lens(subject, TOKENS)
        own = subject.logits(TOKENS).softmax(-1).topk(5)
    plain = lens(subject, TOKENS)
    assert torch.equal(edited.top[-1], own.indices)
    same = [torch.equal(before, after) for before, after in zip(plain.kl, edited.kl, strict=True)]
    assert torch.equal(edited.top[:3], plain.top[:3]) and same == [False] * 6 + [True]


def test_other_sites_are_refused(circuit: Circuit) -> None:
    subject: Subject = circuit.subject
    for sites, words in ((["attn_out.0"], "attn_out.0 is none"), ([], "no site is none"), (["resid_mid.9"], "no site")):
        with pytest.raises(NeuronautError, match=words):
            lens(subject, circuit.clean, sites=sites)
    with pytest.raises(NeuronautError, match="top 17 tokens; wanted 1 to 16"):
        lens(subject, circuit.clean, top=17)
