"""What a feature writes, and what it makes the subject write: against edits, sums and the planted answers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.architecture import ARCHITECTURES
from neuronaut.subject.dictionary import NORMS, Dictionary, Norm
from neuronaut.subject.directions import direction, logit_effect, promoted
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons, Source
from tests import planted as world
from tests.families import FAMILIES, tiny_subject, tiny_tokens

TOKENS = tiny_tokens()
STEP = 0.25
KINDS = ("resid_pre", "head", "attn_out", "resid_mid", "mlp", "mlp_out", "resid_post")
every_family = pytest.mark.parametrize("family", FAMILIES)
SUBJECTS: dict[str, Subject] = {}


def subject_of(family: str) -> Subject:
    if family not in SUBJECTS:
        SUBJECTS[family] = tiny_subject(family)
    return SUBJECTS[family]


@pytest.fixture(scope="module")
def planted() -> tuple[Subject, dict[str, world.PlantedNeuron]]:
    model, tokenizer, _, neurons = world.build(documents=1)
    return Subject(model, tokenizer, name="planted"), {neuron.name: neuron for neuron in neurons}


def neurons_at(subject: Subject, site: str) -> Neurons:
    return Neurons(SourceId(subject.name, site), subject.width(site))


def dictionary_at(subject: Subject, site: str, *, norm: Norm = "none", seed: int = 0) -> Dictionary:
    """A random dictionary of 12 features whose encoder is wide open, so that every feature is active."""
    d, generator = subject.width(site), torch.Generator().manual_seed(seed)
    W_enc, W_dec = (torch.randn(12, d, generator=generator) / d**0.5 for _ in range(2))
    return Dictionary(
        id=SourceId(subject.name, site, "toy"),
        kind="standard",
        W_enc=W_enc.T,
        W_dec=W_dec,
        b_enc=torch.full((12,), 50.0),
        b_dec=torch.randn(d, generator=generator),
        norm=norm,
    )


def downstream(subject: Subject, site: str) -> str:
    """Where in the residual stream a site's writing can be seen alone."""
    kind, _, layer = site.partition(".")
    middle = f"resid_mid.{layer}" if f"resid_mid.{layer}" in subject.sites else f"resid_post.{layer}"
    return {
        "embed": "resid_pre.0",
        "head": middle,
        "attn_out": middle,
        "mlp": f"resid_post.{layer}",
        "mlp_out": f"resid_post.{layer}",
    }.get(kind, site)


def moved(subject: Subject, source: Source, index: int) -> Tensor:
    """How the residual stream moves when the feature's activation rises by STEP, per unit. (row, position, d_model)."""
    site, chosen = source.id.site, torch.tensor([index])

    def raised(vectors: Tensor) -> Tensor:
        flat = vectors.reshape(-1, vectors.shape[-1])
        return source.edit(flat, chosen, source.encode(flat, chosen) + STEP).view_as(vectors)

    seen = downstream(subject, site)
    before = subject.read(TOKENS, [seen])[seen]
    with subject.editing({site: raised}):
        return (subject.read(TOKENS, [seen])[seen] - before) / STEP


def normed_after(subject: Subject, site: str) -> bool:
    row = ARCHITECTURES[subject.model.config.model_type]
    return site.partition(".")[0] in ("head", "mlp") and row.mlp_norm is not None


@every_family
@pytest.mark.parametrize("kind", ("embed", *KINDS))
@pytest.mark.parametrize("make", [neurons_at, dictionary_at])
def test_an_edit_moves_the_residual_stream_along_the_direction(
    family: str, kind: str, make: Callable[[Subject, str], Source]
) -> None:
    subject = subject_of(family)
    site = kind if kind == "embed" else f"{kind}.1"
    if site not in subject.sites:
        assert kind == "resid_mid"
        return
    source = make(subject, site)
    written = direction(subject, source, Feature(source.id, 5))
    assert written.vector.shape == (subject.d_model,)
    assert written.exact is not normed_after(subject, site)
    if written.exact:
        change = moved(subject, source, 5)
        assert change.abs().max() > 1e-2
        assert torch.allclose(change, written.vector.expand_as(change), atol=5e-4)


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "none"])
def test_a_dictionary_that_norms_its_inputs_writes_along_the_direction(norm: Norm) -> None:
    subject = subject_of("gpt2")
    source = dictionary_at(subject, "resid_mid.1", norm=norm)
    written = direction(subject, source, Feature(source.id, 3))
    change = moved(subject, source, 3)
    factor = (change @ written.vector) / written.vector.square().sum()
    assert not written.exact and bool((factor > 0).all()) and float(factor.std()) > 1e-3
    assert torch.allclose(change, factor[..., None] * written.vector, atol=5e-4)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize(("site", "out"), [("mlp.1", "mlp_out.1"), ("head.1", "attn_out.1")])
def test_where_a_norm_follows_directions_add_up_to_the_branch_but_for_its_size(
    family: str, site: str, out: str
) -> None:
    subject = subject_of(family)
    read = subject.read(TOKENS, [site, out])
    source = neurons_at(subject, site)
    vectors = torch.stack([direction(subject, source, Feature(source.id, i)).vector for i in range(source.width)])
    total = read[site] @ vectors
    factor = (total * read[out]).sum(-1, keepdim=True) / total.square().sum(-1, keepdim=True)
    assert bool((factor > 0).all())
    assert torch.allclose(total * factor, read[out], atol=1e-4)


def test_the_negative_tail_writes_the_opposite() -> None:
    subject = subject_of("llama")
    source = neurons_at(subject, "mlp.1")
    up, down = (direction(subject, source, Feature(source.id, 7, tail)).vector for tail in (False, True))
    assert torch.equal(up, -down) and bool(up.any())
    rising, falling = (promoted(subject, source, Feature(source.id, 7, tail), count=5) for tail in (False, True))
    assert [e.token for e in rising.top] == [e.token for e in falling.bottom]
    assert [e.value for e in rising.top] == [-e.value for e in falling.bottom]


@every_family
def test_logit_effects_of_all_parts_add_up_to_the_logits(family: str) -> None:
    subject = subject_of(family)
    parts = ["embed", *(f"{kind}.{layer}" for layer in range(3) for kind in ("attn_out", "mlp_out"))]
    read = subject.read(TOKENS, [*parts, "resid_post.2"])
    final = read["resid_post.2"][1, 4]
    row = ARCHITECTURES[subject.model.config.model_type]
    norm, head = subject.model.base_model.get_submodule(row.final_norm), subject.model.get_output_embeddings()
    layer_norm = isinstance(norm, torch.nn.LayerNorm)
    epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    spread = final - final.mean() if layer_norm else final
    denominator = (spread.square().mean() + epsilon).sqrt()
    with torch.no_grad():
        constant = head(norm.bias) if layer_norm else 0.0
        whole = sum(logit_effect(subject, read[part][1, 4]) for part in parts) / denominator + constant
        wanted = subject.logits(TOKENS)[1, 4]
    cap = row.softcap and getattr(subject.model.config, row.softcap)
    wanted = cap * torch.atanh(wanted.double() / cap) if cap else wanted.double()
    inside = wanted.abs() < 2 * cap if cap else torch.ones_like(wanted, dtype=torch.bool)
    assert int(inside.sum()) > 100
    assert torch.allclose(whole.double()[inside], wanted[inside], atol=2e-3)


def test_promoted_tokens_are_the_planted_ones(planted) -> None:  # noqa: ANN001
    subject, neurons = planted
    source = neurons_at(subject, f"mlp.{world.LAYER}")
    named = [neuron for neuron in neurons.values() if neuron.promotes]
    assert len(named) > 10
    for neuron in named:
        found = promoted(subject, source, Feature(source.id, neuron.index), count=3)
        assert found.top[0].token.strip() == neuron.promotes
        assert found.top[0].value > 4 * found.spread


def test_a_neuron_that_writes_nothing_promotes_nothing(planted) -> None:  # noqa: ANN001
    subject, neurons = planted
    source = neurons_at(subject, f"mlp.{world.LAYER}")
    silent = next(neuron for neuron in neurons.values() if neuron.promotes is None)
    assert promoted(subject, source, Feature(source.id, silent.index)) == ((), (), 0.0)


@pytest.mark.parametrize("name", ["toy:mlp.1:0", "gpt2:mlp.1:999", "gpt2:mlp.0:0"])
def test_a_feature_of_another_source_is_refused(name: str) -> None:
    subject = subject_of("gpt2")
    with pytest.raises(NeuronautError, match="is no feature of gpt2:mlp.1"):
        direction(subject, neurons_at(subject, "mlp.1"), Feature.parse(name))
