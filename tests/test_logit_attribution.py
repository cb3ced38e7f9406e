"""Direct logit attribution: its sums against the logits, each value against the naive formula, and planted circuits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuronaut.causal.logit_attribution import LogitAttribution, logit_attribution
from neuronaut.causal.prompts import Batch
from neuronaut.subject.address import SourceId
from neuronaut.subject.dictionary import Dictionary, Norm
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.circuits import gate, induction
from tests.families import FAMILIES, HEADS, tiny_subject, tiny_tokens

TOKENS = tiny_tokens(4, 7)
BATCH = Batch(TOKENS, torch.tensor([7, 3, 5, 7]))
ROWS, LAST = torch.arange(4), BATCH.last
TOKEN, AGAINST = torch.tensor([3, 50, 299, 0]), torch.tensor([9, 51, 1, 7])
every_family = pytest.mark.parametrize("family", FAMILIES)
SPLITS = (["head.0", "mlp.1", "head.2", "mlp.2"], ["resid_post.0"], ["resid_pre.2", "mlp_out.2"], ["mlp.0", "head.1"])
"""Sites of kind head and mlp are split into their units, others by a dictionary."""


def dictionary_at(subject: Subject, site: str, *, norm: Norm = "none") -> Dictionary:
    d, generator = subject.width(site), torch.Generator().manual_seed(0)
    W_enc, W_dec = (torch.randn(30, d, generator=generator) / d**0.5 for _ in range(2))
    b_enc, b_dec = torch.randn(30, generator=generator), torch.randn(d, generator=generator)
    return Dictionary(
        id=SourceId(subject.name, site, "toy"),
        kind="standard",
        W_enc=W_enc.T,
        W_dec=W_dec,
        b_enc=b_enc,
        b_dec=b_dec,
        norm=norm,
    )


def before_cap(subject: Subject, tokens: Tensor) -> Tensor:
    """The subject's own logits at the last positions, its soft-cap undone in float64."""
    logits, cap = subject.logits(tokens)[ROWS, LAST], getattr(subject.model.config, "final_logit_softcapping", None)
    return cap * (logits.double() / cap).atanh().float() if cap else logits


@every_family
@pytest.mark.parametrize("dictionaries", [False, True])
def test_components_sum_to_the_logit_and_to_the_difference(family: str, dictionaries: bool) -> None:
    subject = tiny_subject(family)
    with torch.no_grad():  # Tiny random logits saturate a cap of 3; smaller ones do not.
        subject.model.get_output_embeddings().weight *= 0.1
    real, capped = before_cap(subject, TOKENS), subject.logits(TOKENS)[ROWS, LAST]
    for sites in ([], *SPLITS):
        split = [
            dictionary_at(subject, s) if dictionaries or s[:3] not in ("hea", "mlp") or "_" in s else s for s in sites
        ]
        for against in (None, AGAINST):
            found = logit_attribution(subject, BATCH, token=TOKEN, against=against, split=split)
            wanted, spoken = (
                each[ROWS, TOKEN] - (0 if against is None else each[ROWS, AGAINST]) for each in (real, capped)
            )
            scale = found.values.abs().sum(1)
            assert ((found.values.sum(1) - wanted).abs() <= 1e-4 * scale).all()
            assert torch.allclose(found.total, wanted, rtol=1e-3, atol=1e-4)
            assert torch.allclose(found.logit, spoken, atol=1e-5)
            assert found.values.shape == (4, len(found.components)) and len({*found.components}) == len(
                found.components
            )


def naive_norm(norm: Any, part: Tensor, whole: Tensor) -> Tensor:
    """A part of a norm's input, (d_model,), through it, with the denominator of the whole."""
    gemma = "Gemma" in type(norm).__name__
    gain = 1 + norm.weight if gemma else norm.weight
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    if isinstance(norm, nn.LayerNorm):
        return (part - part.mean()) / (whole.var(correction=0) + epsilon).sqrt() * gain
    return part / (whole.square().mean() + epsilon).sqrt() * gain


@every_family
@torch.no_grad()
def test_every_unit_is_worth_what_the_formula_says_of_its_writing(family: str) -> None:
    """Each head and neuron alone through its projection, the norm behind that, and the final norm."""
    subject = tiny_subject(family)
    architecture, base = subject.architecture, subject.model.base_model
    found = logit_attribution(subject, BATCH, token=TOKEN, against=AGAINST, split=["head.1", "mlp.1"])
    values = dict(zip(found.components, found.values.T, strict=True))
    read = subject.read(TOKENS, ["head.1", "mlp.1", "attn_out.0", "resid_post.2"])
    vectors = {site: tensor[ROWS, LAST].clone() for site, tensor in read.items()}
    W, final = subject.model.get_output_embeddings().weight, base.get_submodule(architecture.final_norm)

    def worth(row: int, written: Tensor) -> float:
        whole = vectors["resid_post.2"][row]
        return float(naive_norm(final, written, whole) @ (W[TOKEN[row]] - W[AGAINST[row]]))

    width = vectors["head.1"].shape[1] // HEADS
    units = {f"head.1:{head}": slice(head * width, (head + 1) * width) for head in range(HEADS)}
    units |= {f"mlp.1:{neuron}": slice(neuron, neuron + 1) for neuron in (0, 17, 79)}
    for unit, columns in units.items():
        site = unit.partition(":")[0]
        path, behind = {
            "head.1": (architecture.attention, architecture.attention_norm),
            "mlp.1": (architecture.mlp, architecture.mlp_norm),
        }[site]
        layer = base.get_submodule(f"{architecture.layers}.1")
        projection = layer.get_submodule(path)
        for row in range(4):
            alone = torch.zeros_like(vectors[site][row])
            alone[columns] = vectors[site][row, columns]
            written = projection(alone[None])[0] - projection(torch.zeros_like(alone)[None])[0]
            if behind:
                written = naive_norm(layer.get_submodule(behind), written, projection(vectors[site][row][None])[0])
            wanted = worth(row, written)
            assert float(values[unit][row]) == pytest.approx(wanted, rel=1e-3, abs=1e-5), (unit, row)
    for row in range(4):
        assert float(values["attn_out.0"][row]) == pytest.approx(
            worth(row, vectors["attn_out.0"][row]), rel=1e-3, abs=1e-5
        )


@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm"])
def test_a_feature_is_worth_what_taking_it_out_would_cost_on_the_direct_path(norm: Norm) -> None:
    """What setting the feature to 0 changes at the site, through the final norm with the denominator of the run."""
    subject = tiny_subject("gpt2")
    dictionary = dictionary_at(subject, "resid_post.1", norm=norm)
    found = logit_attribution(subject, BATCH, token=TOKEN, split=[dictionary])
    values = dict(zip(found.components, found.values.T, strict=True))
    vectors = {
        site: t[ROWS, LAST].clone() for site, t in subject.read(TOKENS, ["resid_post.1", "resid_post.2"]).items()
    }
    activations = dictionary.encode(vectors["resid_post.1"])
    W, final = subject.model.get_output_embeddings().weight, subject.model.get_submodule("transformer.ln_f")
    active = activations.any(0).nonzero()[:, 0]
    assert len(active) > 5 and {f"resid_post.1@toy:{index}" for index in active.tolist()} == {
        name for name in values if name.startswith("resid_post.1@toy:")
    }
    for index in active:
        without = dictionary.edit(vectors["resid_post.1"], index[None], torch.zeros(4, 1))
        for row in range(4):
            written = (vectors["resid_post.1"] - without)[row]
            wanted = float(naive_norm(final, written, vectors["resid_post.2"][row]) @ W[TOKEN[row]])
            assert float(values[f"resid_post.1@toy:{index}"][row]) == pytest.approx(wanted, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_induction_head_writes_all_of_the_answer(family: str) -> None:
    circuit = induction(family)  # pyright: ignore[reportArgumentType]
    batch = Batch(circuit.clean, torch.full((len(circuit.clean),), circuit.clean.shape[1]))
    split = ["head.0", "mlp.0", "head.1", "mlp.1"]
    found = logit_attribution(circuit.subject, batch, token=circuit.answer, against=circuit.wrong, split=split)
    share = {
        name: float((values / found.total).mean())
        for name, values in zip(found.components, found.values.T, strict=True)
    }
    assert share.pop("head.1:0") == pytest.approx(1, abs=1e-6)
    assert all(abs(rest) < 1e-6 for rest in share.values()) and len(share) == 17
    assert found.ranked()[0] == ("head.1:0", pytest.approx(4, abs=1e-5))


def test_the_neurons_of_a_gate_are_told_apart_and_inert_ones_are_worth_nothing() -> None:
    circuit = gate("or")
    found = logit_attribution(
        circuit.subject,
        Batch(circuit.clean, torch.tensor([4])),
        token=circuit.answer,
        against=circuit.wrong,
        split=["mlp.1", "head.1"],
    )
    values = dict(zip(found.components, found.values[0].tolist(), strict=True))
    assert values["mlp.1:0"] == pytest.approx(10) and values["mlp.1:1"] == pytest.approx(-6)
    assert values["embed"] == pytest.approx(-3) and all(values[unit] == 0 for unit in circuit.inert)


def test_places_are_those_of_the_rule_and_padding_changes_nothing() -> None:
    subject = tiny_subject("llama")
    every = logit_attribution(subject, BATCH, token=5, positions="every")
    assert len(every.places) == int(BATCH.lengths.sum())
    alone = logit_attribution(subject, Batch(TOKENS[1:2, :3], torch.tensor([3])), token=5)
    chosen = (every.places == torch.tensor([1, 2])).all(1)
    assert torch.allclose(every.values[chosen], alone.values, atol=1e-5)


def test_what_cannot_be_attributed_is_said() -> None:
    subject = tiny_subject("gpt2")

    def attribute(*split: str | Dictionary, token: int = 1) -> LogitAttribution:
        return logit_attribution(subject, BATCH, token=token, split=split)

    for words, split in (
        ("attn_out.1 has no units", ["attn_out.1"]),
        ("mlp_out.0 would be split twice", ["mlp.0", dictionary_at(subject, "resid_pre.1")]),
        ("no site 'head.7'", ["head.7"]),
    ):
        with pytest.raises(NeuronautError, match=words):
            attribute(*split)
    with pytest.raises(NeuronautError, match="token 300 is outside the vocabulary of gpt2, 0 to 299"):
        attribute(token=300)
    with (
        subject.model.get_submodule("transformer.h.2").register_forward_hook(lambda *call: 1.01 * call[-1]),
        pytest.raises(NeuronautError, match="the parts of gpt2 miss its logit"),
    ):
        attribute()


def test_a_model_in_bfloat16_adds_up_within_its_rounding() -> None:
    subject = tiny_subject("gemma2")
    coarse = Subject(subject.model.to(torch.bfloat16), subject.tokenizer, name="coarse")
    found = logit_attribution(coarse, BATCH, token=TOKEN, against=AGAINST, split=["head.1", "mlp.2"])
    assert ((found.values.sum(1) - found.total).abs() < 0.02 * found.values.abs().sum(1)).all()
