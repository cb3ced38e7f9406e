"""Attention patterns of every family: read as transformers reports them, written where the model uses them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

from neuronaut.causal.edits import Edit
from neuronaut.causal.intervene import Materials, apply
from neuronaut.causal.prompts import Batch
from neuronaut.subject.attention import eager, patterns, scores
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.families import FAMILIES, HEADS, tiny_subject, tiny_tokens

POSITIONS, WINDOW, LAYERS = 12, 4, range(3)
TOKENS = tiny_tokens(positions=POSITIONS)
BATCH = Batch(TOKENS, torch.tensor([POSITIONS] * 3))
SLIDING = {"mistral": LAYERS, "qwen2": (0, 2), "gemma2": (0, 2), "gemma3_text": (0, 2)}
"""By family, the layers whose queries see WINDOW tokens."""
every_family = pytest.mark.parametrize("family", FAMILIES)


def edited(subject: Subject, *texts: str, materials: Materials | None = None, may_idle: bool = False) -> Tensor:
    edits = [Edit.parse(text) for text in texts]
    with apply(subject, BATCH, edits, materials=materials or Materials(), may_idle=may_idle):
        return subject.logits(TOKENS)


def plain(subject: Subject) -> Tensor:
    with eager(subject):
        return subject.logits(TOKENS)


def allowed_of(family: str, layer: int) -> Tensor:
    """Where a query may look, from the configuration alone: (query, key), bool."""
    query, key = torch.arange(POSITIONS)[:, None], torch.arange(POSITIONS)
    causal = key <= query
    return causal & (query - key < WINDOW) if layer in SLIDING.get(family, ()) else causal


@every_family
def test_patterns_are_what_transformers_reports(family: str) -> None:
    subject = tiny_subject(family)
    before = subject.model.config._attn_implementation
    found = patterns(subject, TOKENS, LAYERS)
    assert subject.model.config._attn_implementation == before
    with eager(subject), torch.no_grad():
        reported = subject.model(TOKENS, output_attentions=True).attentions
    for layer in LAYERS:
        assert torch.equal(found[layer], reported[layer])
        assert torch.equal(found[layer] > 0, allowed_of(family, layer).expand_as(found[layer]))


@every_family
def test_writing_what_was_there_leaves_every_bit(family: str) -> None:
    subject = tiny_subject(family)
    own = {f"pattern.{layer}": pattern for layer, pattern in patterns(subject, TOKENS, LAYERS).items()}
    own |= {f"score.{layer}": found for layer, found in scores(subject, TOKENS, LAYERS).items()}
    for text in ("pattern.{}=patch@every", "pattern.{}*=1", "score.{}=patch@every", "score.{}+=0"):
        texts = [text.format(layer) for layer in LAYERS]
        assert torch.equal(edited(subject, *texts, materials=Materials(source_runs=own), may_idle=True), plain(subject))


@every_family
def test_a_uniform_pattern_is_uniform_over_what_the_mask_allows(family: str) -> None:
    subject = tiny_subject(family)
    for layer in LAYERS:
        site = f"head.{layer}"
        wanted = allowed_of(family, layer) / allowed_of(family, layer).sum(-1, keepdim=True)
        source_run = {f"pattern.{layer}": wanted.expand(3, HEADS, -1, -1)}
        found = edited(subject, f"pattern.{layer}=uniform@every")
        same = edited(subject, f"pattern.{layer}=patch@every", materials=Materials(source_runs=source_run))
        torch.testing.assert_close(found, same, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, plain(subject), atol=1e-3)
        with apply(subject, BATCH, [Edit.parse(f"pattern.{layer}:1=uniform@5")]):
            z = subject.read(TOKENS, [site])[site].unflatten(-1, (HEADS, -1))
        with eager(subject):
            changed = (z != subject.read(TOKENS, [site])[site].unflatten(-1, (HEADS, -1))).any(-1)
        assert changed.nonzero()[:, 1:].unique(dim=0).tolist() == [[5, 1]]


@every_family
def test_a_knocked_out_edge_is_as_if_the_model_had_masked_it(family: str) -> None:
    """The reference is transformers' own forward with one more edge masked, in all layers and heads."""
    subject = tiny_subject(family)
    masks = {}
    for kind, layer in (("full_attention", 1), ("sliding_attention", 0)):
        mask = allowed_of(family, layer).clone()
        mask[9, 7] = False
        masks[kind] = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min).expand(3, 1, -1, -1)
    given: Any = masks if family in ("qwen2", "gemma2", "gemma3_text", "qwen3") else masks["full_attention"]
    with eager(subject), torch.no_grad():
        wanted = subject.model(TOKENS, attention_mask=given, use_cache=False).logits
    found = edited(subject, *(f"pattern.{layer}=knockout@9>7" for layer in LAYERS))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[:, :9], plain(subject)[:, :9])
    assert not torch.allclose(found[:, 9], plain(subject)[:, 9], atol=1e-4)


@every_family
def test_one_heads_edge_by_hand(family: str) -> None:
    """z is the pattern times the values; the values are what z is under the identity pattern."""
    subject = tiny_subject(family)
    eye = {"pattern.1": torch.eye(POSITIONS).expand(3, HEADS, -1, -1)}
    with apply(subject, BATCH, [Edit.parse("pattern.1=patch@every")], materials=Materials(source_runs=eye)):
        values = subject.read(TOKENS, ["head.1"])["head.1"].unflatten(-1, (HEADS, -1))
    weights = patterns(subject, TOKENS, [1])[1]
    for change, factor in (("=0", 0.0), ("=0.5", None), ("*=3", 3.0)):
        wanted = weights.clone()
        wanted[:, 2, 8, 6] = 0.5 if factor is None else factor * weights[:, 2, 8, 6]
        with apply(subject, BATCH, [Edit.parse(f"pattern.1:2{change}@8>6")]) as ledger:
            z = subject.read(TOKENS, ["head.1"])["head.1"].unflatten(-1, (HEADS, -1))
        torch.testing.assert_close(z, torch.einsum("rhqk,rkhd->rqhd", wanted, values), rtol=1e-4, atol=1e-5)
        assert ledger.reports[0].max_change == pytest.approx(float((wanted - weights).abs().max()), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scores_are_queries_at_keys(family: str) -> None:
    """Rotated where the family rotates, scaled, and masked."""
    subject = tiny_subject(family)
    vectors = subject.read(TOKENS, ["query.1", "key.1"])
    query, key = (
        vectors[site].unflatten(-1, (subject.heads(site) or 0, -1)).transpose(1, 2) for site in ("query.1", "key.1")
    )
    if family == "llama":
        turns = subject.model.base_model.rotary_emb(query, torch.arange(POSITIONS)[None])
        query, key = modeling_llama.apply_rotary_pos_emb(query, key, *turns)
    each = key.repeat_interleave(HEADS // key.shape[1], 1)
    wanted = query @ each.transpose(-1, -2) / query.shape[-1] ** 0.5
    masked = wanted.masked_fill(~allowed_of(family, 1), -torch.inf)
    torch.testing.assert_close(scores(subject, TOKENS, [1])[1], masked, rtol=1e-4, atol=1e-5)


@every_family
def test_an_edited_score_goes_through_the_softmax(family: str) -> None:
    subject = tiny_subject(family)
    plain_scores, plain_patterns = scores(subject, TOKENS, [1])[1], patterns(subject, TOKENS, [1])[1]
    torch.testing.assert_close(plain_scores.softmax(-1), plain_patterns)
    eye = {"pattern.1": torch.eye(POSITIONS).expand(3, HEADS, -1, -1)}
    with apply(subject, BATCH, [Edit.parse("pattern.1=patch@every")], materials=Materials(source_runs=eye)):
        values = subject.read(TOKENS, ["head.1"])["head.1"].unflatten(-1, (HEADS, -1))
    for change, edit in (("=0", lambda score: 0 * score), ("+=1.5", lambda score: score + 1.5)):
        changed = plain_scores.clone()
        changed[:, 2, 8, 6] = edit(changed[:, 2, 8, 6])
        with apply(subject, BATCH, [Edit.parse(f"score.1:2{change}@8>6")]):
            z = subject.read(TOKENS, ["head.1"])["head.1"].unflatten(-1, (HEADS, -1))
        wanted = torch.einsum("rhqk,rkhd->rqhd", changed.softmax(-1), values)
        torch.testing.assert_close(z, wanted, rtol=1e-4, atol=1e-5)


def test_an_edge_that_the_mask_forbids_cannot_be_written() -> None:
    for family, edge in (("llama", "3>5"), ("mistral", "9>2")):
        with pytest.raises(NeuronautError, match="changed nothing"):
            edited(tiny_subject(family), f"pattern.1=0.5@{edge}")


def test_padding_and_bos_keep_their_patterns() -> None:
    subject = tiny_subject()
    batch = Batch.of(subject, [[0, 5, 6, 7, 8], [0, 5, 6]])
    with apply(subject, batch, [Edit.parse("pattern.0=0")]) as ledger:
        z = subject.read(batch.tokens, ["head.0"])["head.0"]
    assert z.any(-1).tolist() == [[True, False, False, False, False], [True, False, False, True, True]]
    assert ledger.reports[0].places == {0: (1, 2, 3, 4), 1: (1, 2)}


def test_a_pattern_edit_under_gradients() -> None:
    subject, leaves = tiny_subject(), []

    def leaf(vectors: Tensor) -> Tensor:
        leaves.append(vectors.detach().requires_grad_())
        return leaves[-1]

    with subject.editing({"embed": leaf}), apply(subject, BATCH, [Edit.parse(f"pattern.{n}=0") for n in LAYERS]):
        subject.run(TOKENS)[:, 5, 7].sum().backward()
    # Without attention a position sees itself only.
    assert leaves[-1].grad.any(-1).any(0).nonzero().flatten().tolist() == [5]


# --- what cannot be proven is refused ------------------------------------------------------------


def _without_softmax(_: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **__: Any) -> Any:
    scores = query @ key.transpose(-1, -2) / value.shape[-1] ** 0.5
    weights = (scores + mask).exp() if mask is not None else scores.exp()
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights @ value).transpose(1, 2), weights


def _softmax_for_show(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **_: Any) -> Any:
    weights = torch.softmax(query @ key.transpose(-1, -2) / value.shape[-1] ** 0.5 + mask, dim=-1)
    return _without_softmax(module, query, key, value, mask)[0], weights


@pytest.mark.parametrize(("kernel", "says"), [(_without_softmax, "softmax 0 times"), (_softmax_for_show, "is off by")])
def test_a_kernel_that_hides_its_pattern_is_refused(monkeypatch: pytest.MonkeyPatch, kernel: Any, says: str) -> None:
    monkeypatch.setattr(modeling_gpt2, "eager_attention_forward", kernel)
    subject = tiny_subject()
    for use in (lambda: patterns(subject, TOKENS, [1]), lambda: edited(subject, "pattern.1=uniform")):
        with pytest.raises(NeuronautError, match=f"pattern.1 of gpt2 is refused: .*{says}"):
            use()


def test_no_layer_or_an_unknown_one_is_an_error() -> None:
    with pytest.raises(NeuronautError, match="no layer"):
        patterns(tiny_subject(), TOKENS, [])
    with pytest.raises(NeuronautError, match="no site 'head.3'"):
        patterns(tiny_subject(), TOKENS, [3])
