"""The logit lens, against the models' own modules and the hand-built induction circuit."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from neuronaut.causal import lens as lens_module
from neuronaut.causal.edits import Edit
from neuronaut.causal.grids import Grid
from neuronaut.causal.lens import lens
from neuronaut.causal.logit_attribution import logit_attribution
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.runs import compare, patching, resumable
from neuronaut.causal.sweeps import sweep
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
        norm = subject.architecture.final_norm
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


@contextmanager
def unembedded(subject: Subject) -> Generator[list[int]]:
    """How many vectors went through the unembedding, by call."""
    counts: list[int] = []
    head = subject.model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)

    def count(_: object, args: tuple[torch.Tensor, ...], __: object) -> None:
        counts.append(args[0].shape[:-1].numel())

    with head.register_forward_hook(count):
        yield counts


@every_family
def test_only_what_is_asked_for_is_unembedded_and_it_is_the_same(family: str) -> None:
    """The rows that go through the unembedding are counted: at the asked places alone, for each site and twice more."""
    subject = tiny_subject(family)
    mask = torch.tensor([[False, True, False, False, False, True], [False, False, False, True, False, False]])
    whole = lens(subject, TOKENS, top=3, targets=torch.tensor([[7], [11]]))
    with unembedded(subject) as rows:
        some = lens(subject, TOKENS, top=3, targets=torch.tensor([[7], [11]]), mask=mask)
    assert sum(rows) == 3 * (len(some.sites) + 2) and set(rows) == {3}
    assert some.sites == whole.sites and torch.equal(some.top, whole.top[:, mask])
    assert some.ranks is not None and whole.ranks is not None and torch.equal(some.ranks, whole.ranks[:, mask])
    for part, full in ((some.kl, whole.kl), (some.probabilities, whole.probabilities)):
        assert torch.allclose(part, full[:, mask], atol=1e-6)


def test_many_places_are_unembedded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny_subject()
    whole = lens(subject, TOKENS)
    monkeypatch.setattr(lens_module, "LOGITS", 5 * len(subject.vocabulary))
    with unembedded(subject) as rows:
        parts = lens(subject, TOKENS)
    assert max(rows) == 5 and sum(rows) == TOKENS.numel() * (len(parts.sites) + 2)
    assert parts.top.shape == whole.top.shape and torch.equal(parts.top, whole.top)
    assert torch.allclose(parts.kl, whole.kl, atol=1e-6)
    with pytest.raises(NeuronautError, match="no position is asked for"):
        lens(subject, TOKENS, mask=torch.zeros_like(TOKENS, dtype=torch.bool))


def test_causal_runs_unembed_the_last_position_of_each_row_alone() -> None:
    subject = tiny_subject()
    batch = Batch.of(subject, [[1, 2, 3, 4, 5], [6, 7, 8], [9, 3]])
    pairs = Pairs.aligned(subject, batch, batch.take([0, 1, 2]), torch.tensor([5, 6, 7]), torch.tensor([7, 6, 5]))
    edits = [Edit.parse("mlp.1=0"), Edit.parse("head.0:1=0")]
    resumable(subject)  # By runs of eight random tokens, once.
    with unembedded(subject) as rows:
        compare(subject, batch, edits)
    assert rows == [3, 3]
    with unembedded(subject) as rows:
        patching(subject, pairs, edits[:1])
    assert rows == [3] * 4
    with unembedded(subject) as rows:
        sweep(subject, pairs, Grid.of_edits(edits), metrics=["logit_difference"])
    assert sum(rows) == 2 * 3 + 2 * 2 * 3
    for positions, places in (("last", 3), ("every", 10)):
        with unembedded(subject) as rows:
            logit_attribution(subject, batch, token=5, positions=positions)
        assert sum(rows) == places
