"""Transcoders at work. An MLP of ReLU neurons is itself a transcoder, from what it reads to what it writes: each of its
features is a neuron, so that every edit, reading and attribution of the one must be that of the other."""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from neuronaut.causal.attribution_patching import Line, attribution_patching
from neuronaut.causal.edits import Edit
from neuronaut.causal.generation import generate
from neuronaut.causal.grids import Grid
from neuronaut.causal.intervene import Materials, apply
from neuronaut.causal.logit_attribution import logit_attribution
from neuronaut.causal.measures import fidelity
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.runs import compare, gather
from neuronaut.causal.saliency import Activation, gradient_x_input
from neuronaut.causal.sweeps import sweep
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.store.store import Store
from neuronaut.labelling.opening import pass_gate
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.directions import direction, promoted
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.formats import save_dictionary
from neuronaut.subject.formats_folds import Affine, fold_centring, fold_gain
from neuronaut.subject.model import Subject
from neuronaut.subject.opening import norm_before, open_dictionary, open_source
from neuronaut.subject.sources import Neurons
from tests.families import CONTEXT, D_MODEL, HEADS, VOCABULARY, byte_tokenizer, tiny_subject, tiny_tokens

LAYER = 1
NAME = f"mlp_in.{LAYER}@mlp"
TOKENS = tiny_tokens(3, 10)
TOKENS[:, 0] = 0  # BOS


@cache
def subject() -> Subject:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=D_MODEL, n_layer=3, n_head=HEADS, activation_function="relu"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return Subject(model, byte_tokenizer(), name="relu")


@cache
def transcoder(layer: int = LAYER) -> Dictionary:
    mlp = subject().model.base_model.get_submodule(f"h.{layer}.mlp")
    tensors = {name: tensor.detach() for name, tensor in mlp.state_dict().items()}
    return Dictionary(
        id=SourceId("relu", f"mlp_in.{layer}", "mlp"),
        kind="standard",
        W_enc=tensors["c_fc.weight"].T.contiguous().T,
        W_dec=tensors["c_proj.weight"],
        b_enc=tensors["c_fc.bias"],
        b_dec=tensors["c_proj.bias"],
        subtract_b_dec=False,
        targets=(f"mlp_out.{layer}",),
    )


def batch() -> Batch:
    return Batch(TOKENS, torch.tensor([10, 10, 10]))


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def both(text: str) -> tuple[Edit, Edit]:
    """An edit of the transcoder's features, and of the neurons that they are."""
    return Edit.parse(f"{NAME}:{text}"), Edit.parse(f"mlp.{LAYER}:{text}")


def test_it_rebuilds_what_the_mlp_writes() -> None:
    vectors = subject().read(TOKENS, [f"mlp_in.{LAYER}", f"mlp.{LAYER}", f"mlp_out.{LAYER}"])
    close(transcoder().encode(vectors[f"mlp_in.{LAYER}"].flatten(0, 1)), vectors[f"mlp.{LAYER}"].flatten(0, 1))
    close(transcoder().reconstruct(vectors[f"mlp_in.{LAYER}"].flatten(0, 1)), vectors[f"mlp_out.{LAYER}"].flatten(0, 1))


@pytest.mark.parametrize(
    "change",
    [
        "5=3",
        "5,7=0",
        "5*=2@last",
        "5+=1.5@2-6",
        "5+=2q",
        "5=mean",
        "3-9=resample#4",
        "5+=2noise@all#3",
        "5=1..2",
        "5=patch",
    ],
)
def test_an_edit_of_a_feature_is_that_of_the_neuron(change: str) -> None:
    other = Batch(tiny_tokens(3, 10, seed=9), torch.tensor([10, 10, 10]))
    outcomes = []
    for edit in both(change):
        materials = Materials(sources={NAME: transcoder()})
        materials = gather(subject(), [edit], materials=materials, reference=other, source_run=other)
        outcomes.append(compare(subject(), batch(), [edit], materials=materials))
    close(outcomes[0].after, outcomes[1].after)
    assert (outcomes[0].after - outcomes[0].before).abs().max() > 0.001
    assert outcomes[0].reports[0].places == outcomes[1].reports[0].places


def test_an_edit_keeps_what_the_transcoder_misses() -> None:
    """Of a coder that rebuilds little the rest stays: with its features set to what they are, nothing changes."""
    coder = replace(transcoder(), W_dec=transcoder().W_dec.roll(1, 0), W_skip=torch.randn(D_MODEL, D_MODEL))
    vectors = subject().read(TOKENS, [f"mlp_in.{LAYER}", f"mlp_out.{LAYER}"])
    inputs, outputs = (tensor.flatten(0, 1) for tensor in vectors.values())
    features = torch.tensor([4, 17])
    own = coder.encode(inputs, features)
    close(coder.edit(outputs, features, own, inputs=inputs), outputs)
    changed = coder.edit(outputs, features, own + 1, inputs=inputs)
    close(changed, outputs + coder.W_dec[features].sum(0))
    with pytest.raises(NeuronautError, match=rf"writes mlp_out\.{LAYER}: an edit of it wants the vectors of mlp_in"):
        coder.edit(outputs, features, own)


def written(*edits: Edit) -> torch.Tensor:
    """What stands at the written site under these edits, BOS left out."""
    site, materials = f"mlp_out.{LAYER}", Materials(sources={NAME: transcoder()})
    with apply(subject(), batch(), edits, materials=materials):
        return subject().read(TOKENS, [site])[site][:, 1:]


def test_it_reads_what_earlier_edits_of_its_site_left() -> None:
    first, (coded, plain) = Edit.parse(f"mlp_in.{LAYER}:3+=2"), both("5*=3")
    close(written(first, coded), written(first, plain))
    assert (written(first, coded) - written(first)).abs().max() > 0.01


def test_it_writes_onto_what_earlier_edits_of_its_target_left() -> None:
    coded, other = both("5=3")[0], Edit.parse(f"mlp_out.{LAYER}:4=1")
    step = written(coded)[..., 4] - subject().read(TOKENS, [f"mlp_out.{LAYER}"])[f"mlp_out.{LAYER}"][:, 1:, 4]
    close(written(other, coded)[..., 4], 1 + step)
    close(written(coded, other)[..., 4], torch.ones_like(step))


def test_a_control_moves_the_written_site_by_as_much() -> None:
    plain = subject().read(TOKENS, [f"mlp_out.{LAYER}"])[f"mlp_out.{LAYER}"][:, 1:]
    edited, control = (written(Edit.parse(f"{NAME}:5=3{seed}")) - plain for seed in ("", "~1"))
    close(edited.norm(dim=-1), control.norm(dim=-1))
    assert (edited - control).abs().max() > 0.01


@pytest.mark.parametrize("cached", [True, False])
def test_a_feature_steers_what_is_written_as_the_neuron_does(cached: bool) -> None:
    materials = Materials(sources={NAME: transcoder()})
    coded, plain = (
        generate(subject(), batch(), [edit], tokens=4, cached=cached, materials=materials) for edit in both("5=8")
    )
    assert coded.tokens == plain.tokens
    for row, wanted in zip(coded.logprobs, plain.logprobs, strict=True):
        assert row == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("line", [None, Line("embed", 3), Line("site", 3)])
def test_attribution_patching_of_features_is_that_of_the_neurons(line: Line | None) -> None:
    clean, corrupted = (Batch(tiny_tokens(2, 8, seed=seed), torch.tensor([8, 8])) for seed in (3, 4))
    pairs = Pairs.aligned(subject(), clean, corrupted, torch.tensor([5, 6]), torch.tensor([7, 8]))
    scores = []
    for texts in zip(both("5=patch"), both("11=patch@last"), strict=True):
        grid = Grid.of_edits(texts)
        options = {"line": line, "materials": Materials(sources={NAME: transcoder()}), "sample": 2, "top": 1}
        found = attribution_patching(subject(), pairs, grid, **options)
        scores.append(torch.tensor([node.scores for node in found.nodes if node.edit is not None]))
        swept = sweep(subject(), pairs, grid, materials=options["materials"])
        assert len(swept.cells) == 2
    if line is None or line.over == "embed":
        close(scores[0], scores[1])
    assert scores[0].abs().max() > 0


def test_logits_are_taken_apart_by_what_the_features_write() -> None:
    parts = logit_attribution(subject(), batch(), token=5, split=[transcoder()])
    neurons = logit_attribution(subject(), batch(), token=5, split=[f"mlp.{LAYER}"])
    named = dict(zip(neurons.components, neurons.values.T, strict=True))
    coded = dict(zip(parts.components, parts.values.T, strict=True))
    active = [name for name in coded if name.startswith(f"{NAME}:")]
    assert len(active) > 10
    for name in active:
        close(coded[name], named[f"mlp.{LAYER}:{name.rpartition(':')[2]}"])
    close(coded[f"{NAME} error"], torch.zeros(3))
    close(parts.values.sum(1), parts.total)


def test_a_feature_points_where_its_neuron_does() -> None:
    coded, plain = Feature(transcoder().id, 5), Feature(SourceId("relu", f"mlp.{LAYER}"), 5)
    source = open_source(subject(), plain.source)
    found, wanted = direction(subject(), transcoder(), coded), direction(subject(), source, plain)
    close(found.vector, wanted.vector)
    assert found.exact and wanted.exact
    assert [t.token for t in promoted(subject(), transcoder(), coded).top] == [
        t.token for t in promoted(subject(), source, plain).top
    ]
    saliency = [
        gradient_x_input(subject(), TOKENS[0].tolist(), Activation(s, f))
        for s, f in ((transcoder(), coded), (source, plain))
    ]
    assert saliency[0].values == pytest.approx(saliency[1].values, abs=1e-3)


def test_what_only_the_mlp_reads_promotes_nothing_directly() -> None:
    """An autoencoder of the MLP's input writes there, and not to the residual stream."""
    eye = torch.eye(D_MODEL)
    zeros = torch.zeros(D_MODEL)
    id = SourceId("relu", f"mlp_in.{LAYER}", "sae")
    sae = Dictionary(id=id, kind="standard", W_enc=eye, W_dec=eye, b_enc=zeros, b_dec=zeros)
    assert not direction(subject(), sae, Feature(id, 3)).vector.any()
    assert promoted(subject(), sae, Feature(id, 3)).top == ()
    with pytest.raises(NeuronautError, match=rf"mlp_in\.{LAYER} is no part of the residual stream"):
        logit_attribution(subject(), batch(), token=5, split=[sae])


def test_the_fidelity_is_of_the_written_site() -> None:
    whole = fidelity(subject(), transcoder(), batch())
    assert whole.unexplained == pytest.approx(0, abs=1e-6)
    assert whole.rebuilt_loss == pytest.approx(whole.loss, abs=1e-4)
    half = fidelity(subject(), replace(transcoder(), W_dec=transcoder().W_dec / 2), batch())
    assert half.unexplained is not None and half.unexplained > 0.05
    assert half.rebuilt_loss != pytest.approx(whole.loss, abs=1e-3)


@cache
def corpus() -> Corpus:
    drawn = random.Random(0)
    return Corpus.of("letters", [" ".join(drawn.choices(["ab", "cd", "x", "yz", "q"], k=30)) for _ in range(60)])


def test_a_harvest_of_features_is_that_of_the_neurons(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db") as store:
        neurons = Neurons(SourceId("relu", f"mlp.{LAYER}"), 4 * D_MODEL)
        result = harvest(subject(), [transcoder(), neurons], corpus(), store, tokens=2000, window=16)
        coded, plain = result.sources
        assert (coded.kind, plain.kind) == ("transcoder", "neurons")
        assert coded.peak == pytest.approx(plain.peak, abs=1e-3)
        (row,) = [row for row in store.sources() if row["kind"] == "transcoder"]
        assert row["source"] == f"relu:{NAME}" and row["writes"] == f"mlp_out.{LAYER}"
        assert [row["writes"] for row in store.sources() if row["kind"] == "neurons"] == [f"mlp.{LAYER}"]


def test_the_gate_holds_it_to_what_it_writes_and_finds_its_layers() -> None:
    (line,) = pass_gate(subject(), [transcoder()], corpus(), window=16, force=False)
    assert line.startswith(f"relu:{NAME}: FVU 0.000")
    moved = replace(transcoder(2), id=transcoder().id, targets=(f"mlp_out.{LAYER}",))
    lines = [*pass_gate(subject(), [moved], corpus(), window=16, force=True)]
    assert "mlp_in.2 > mlp_out.2 is rebuilt better (FVU 0.000)" in lines[-1]
    crossed = replace(transcoder(), targets=(f"resid_post.{LAYER}",))
    with pytest.raises(NeuronautError, match=rf"does not rebuild the vectors of resid_post\.{LAYER}"):
        [*pass_gate(subject(), [crossed], corpus(), window=16, force=False)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gemma3_text"])
def test_the_gain_that_is_folded_in_is_the_norms(family: str) -> None:
    """What the norm gives, less its bias and over its gain, has mean 0 (LayerNorm) and a mean square of 1."""
    model = tiny_subject(family)
    vectors = model.read(TOKENS, ["mlp_in.1"])["mlp_in.1"].flatten(0, 1)
    norm = norm_before(model, "mlp_in.1")
    bare = (vectors - norm.bias) / norm.gain
    close(bare.square().mean(1), torch.ones(len(bare)))
    if family == "gpt2":
        close(bare.mean(1), torch.zeros(len(bare)))
    else:
        close(norm.bias, torch.zeros_like(norm.bias))


def test_a_norm_that_is_not_there_is_not_guessed() -> None:
    for family, site in (("gpt_neox", "mlp_in.1"), ("gpt2", "resid_post.1")):
        with pytest.raises(NeuronautError, match=rf"the norm before {site} of {family} is not known"):
            norm_before(tiny_subject(family), site)


def test_a_transcoder_of_the_norm_without_gain_is_opened_with_the_model(tmp_path: Path) -> None:
    """Saved for ln2.hook_normalized, it is the MLP's own again once the gain is folded in."""
    norm = norm_before(subject(), f"mlp_in.{LAYER}")
    whole = transcoder()
    bare = replace(whole, W_enc=whole.W_enc * norm.gain[:, None], b_enc=whole.b_enc + norm.bias @ whole.W_enc)
    hook = {"hook_name": f"blocks.{LAYER}.ln2.hook_normalized"}
    save_dictionary(bare, tmp_path / "coder", metadata=hook, dtype=torch.float32)
    opened = open_dictionary(subject(), whole.id, str(tmp_path / "coder"))
    close(opened.W_enc, whole.W_enc)
    close(opened.b_enc, whole.b_enc)


def test_another_width_at_the_written_site_is_an_error(tmp_path: Path) -> None:
    narrow = replace(transcoder(), W_dec=transcoder().W_dec[:, :7], b_dec=torch.zeros(7))
    save_dictionary(narrow, tmp_path / "coder", dtype=torch.float32)
    with pytest.raises(NeuronautError, match=rf"writes 7 coordinates, and mlp_out\.{LAYER} of relu has {D_MODEL}"):
        open_dictionary(subject(), narrow.id, str(tmp_path / "coder"))


def test_what_it_writes_cannot_come_before_what_it_reads(tmp_path: Path) -> None:
    save_dictionary(replace(transcoder(), targets=("resid_post.0",)), tmp_path / "coder", dtype=torch.float32)
    with pytest.raises(NeuronautError, match=rf"writes resid_post\.0, which comes before mlp_in\.{LAYER}"):
        open_dictionary(subject(), transcoder().id, str(tmp_path / "coder"))


def test_two_edits_of_one_feature_at_one_place_are_refused() -> None:
    """A transcoder's feature is read before either, so the second would not see the first; elsewhere both work."""
    for texts in ((f"{NAME}:3=2", f"{NAME}:3=0@last"), (f"{NAME}:3,4=2", f"{NAME}:4=2")):
        with pytest.raises(NeuronautError, match="another edit has changed at the same place"):
            written(*map(Edit.parse, texts))
    for texts in ((f"{NAME}:3=2", f"{NAME}:4=0"), (f"{NAME}:3=2@1", f"{NAME}:3=0@last")):
        plain = [Edit.parse(text.replace(NAME, f"mlp.{LAYER}")) for text in texts]
        close(written(*map(Edit.parse, texts)), written(*plain))
    with pytest.raises(NeuronautError, match="another edit has changed"):
        edits = [Edit.parse(f"{NAME}:3=2"), Edit.parse(f"{NAME}:3=0@last")]
        generate(subject(), batch(), edits, tokens=2, materials=Materials(sources={NAME: transcoder()}))


def test_centring_and_a_norms_gain_are_folded_exactly() -> None:
    """With a skip path, and with gates whose magnitudes have biases of their own."""
    generator = torch.Generator().manual_seed(0)
    skip = replace(transcoder(), W_skip=torch.randn(D_MODEL, D_MODEL, generator=generator))
    x = torch.randn(20, D_MODEL, generator=generator) + 1
    close(fold_centring(skip).reconstruct(x), skip.reconstruct(x - x.mean(1, keepdim=True)))
    sizes = (transcoder().width,)
    gated = replace(
        transcoder(),
        kind="gated",
        b_mag=torch.randn(sizes, generator=generator),
        r_mag=0.1 * torch.randn(sizes, generator=generator),
    )
    norm = Affine(torch.rand(D_MODEL, generator=generator) + 0.5, torch.randn(D_MODEL, generator=generator))
    for whole in (skip, gated):
        close(fold_gain(whole, norm).encode(x * norm.gain + norm.bias), whole.encode(x))
        close(fold_gain(whole, norm).reconstruct(x * norm.gain + norm.bias), whole.reconstruct(x))
