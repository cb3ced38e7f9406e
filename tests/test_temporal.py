"""Temporal dictionaries: the prediction against one written position by position, formats, edits, SAELens itself."""

import math
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from neuronaut.causal.edits import Edit
from neuronaut.causal.generation import generate
from neuronaut.causal.intervene import Materials
from neuronaut.causal.logit_attribution import logit_attribution
from neuronaut.causal.measures import fidelity
from neuronaut.causal.prompts import Batch
from neuronaut.causal.readouts import activation
from neuronaut.causal.runs import compare, gather
from neuronaut.data.harvest.activations import read_columns, read_last, tiles
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.formats import declared_site, load_dictionary, save_dictionary
from neuronaut.subject.randomize import randomize_dictionary
from tests.families import tiny_tokens
from tests.test_formats import saelens, write
from tests.test_transcoders import subject

SITE = "resid_post.1"
D, F, HEADS, NARROW, LAYERS = 12, 48, 2, 8, 2
Tensors = dict[str, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weights(d: int = D) -> Tensors:
    """As SAELens writes them, with codes of about the size of 1."""
    tensors = {"W_dec": draw(F, d), "b_dec": draw(d), "W_enc": draw(d, F, seed=3) * 4 * math.sqrt(d)}
    for layer in range(LAYERS):
        for name, size in (("k_ctx", NARROW), ("q_target", NARROW), ("v_ctx", F), ("c_proj", F)):
            tensors[f"attn_layers.{layer}.{name}.weight"] = draw(size, F, seed=layer) / math.sqrt(F)
            tensors[f"attn_layers.{layer}.{name}.bias"] = draw(size, seed=layer + 9) / 3
    return tensors


def config(d: int = D, **more: Any) -> dict[str, Any]:
    settings = {"n_heads": HEADS, "n_attn_layers": LAYERS, "bottleneck_factor": F // NARROW, "kval_topk": 5}
    settings |= {"sae_diff_type": "topk", "tied_weights": False, "d_in": d, "d_sae": F}
    return saelens("temporal") | settings | more


def put(folder: Path, d: int = D, **more: Any) -> Path:
    tensors, settings = weights(d), config(d, **more)
    if settings["tied_weights"]:
        del tensors["W_enc"]
    return write(folder, tensors, settings)


def read(path: Path, **options: Any) -> Dictionary:
    return load_dictionary(path, id=SourceId("toy", "resid_post.3", "sae"), d_site=D, **options)


def by_hand(row: np.ndarray, settings: dict[str, Any], w: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One row's activations and reconstruction, a position and a head at a time, in float64."""
    factor = settings.get("activation_normalization_factor", 1.0)
    W_dec, b_dec = w["W_dec"], w["b_dec"]
    W_enc = W_dec.T if settings["tied_weights"] else w["W_enc"]
    inputs = row * factor - b_dec * settings["apply_b_dec_to_input"]
    rest, predicted = inputs.copy(), np.zeros_like(inputs)
    for layer in range(LAYERS):
        name = f"attn_layers.{layer}."
        codes = [np.maximum(vector / (4 * len(vector)) @ W_enc, 0) for vector in rest]
        earlier = [np.zeros(F), *codes[:-1]]
        taken = []
        for position, code in enumerate(codes):
            answer = []
            for head in range(HEADS):
                narrow, wide = (slice(head * n // HEADS, (head + 1) * n // HEADS) for n in (NARROW, F))
                query = (w[name + "q_target.weight"] @ code + w[name + "q_target.bias"])[narrow]
                keys = [(w[name + "k_ctx.weight"] @ one + w[name + "k_ctx.bias"])[narrow] for one in earlier]
                values = [(w[name + "v_ctx.weight"] @ one + w[name + "v_ctx.bias"])[wide] for one in earlier]
                scores = np.array([query @ key / math.sqrt(len(query)) for key in keys[: position + 1]])
                shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                answer.append(sum(share * value for share, value in zip(shares, values, strict=False)))
            output = w[name + "c_proj.weight"] @ np.concatenate(answer) + w[name + "c_proj.bias"]
            written = np.maximum(output, 0) @ W_dec
            taken.append(written * (written @ rest[position]) / (np.linalg.norm(written) + 1e-6) ** 2)
        rest, predicted = rest - np.array(taken), predicted + np.array(taken)
    novel = np.maximum(rest / (4 * row.shape[1]) @ W_enc, 0)
    if settings["sae_diff_type"] == "topk":
        novel[novel < np.sort(novel, axis=1)[:, -settings["kval_topk"], None]] = 0
    put_back = b_dec * (settings["apply_b_dec_to_input"] or not settings["tied_weights"])
    return novel, (novel @ W_dec + predicted + put_back) / factor


VARIANTS: list[dict[str, Any]] = [
    {},
    {"sae_diff_type": "relu"},
    {"tied_weights": True},
    {"apply_b_dec_to_input": False},
    {"tied_weights": True, "apply_b_dec_to_input": False},
    {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.3},
]


@pytest.mark.parametrize("more", VARIANTS)
def test_the_format_is_the_formula_position_by_position(tmp_path: Path, more: dict[str, Any]) -> None:
    dictionary, rows = read(put(tmp_path, **more)), draw(3, 7, D) * 2
    joined = dictionary.join({"resid_post.3": rows})
    w = {name: tensor.double().numpy() for name, tensor in weights().items()}
    for row, encoded in zip(rows, joined, strict=True):
        novel, rebuilt = by_hand(row.double().numpy(), config() | more, w)
        np.testing.assert_allclose(dictionary.encode(encoded).numpy(), novel, atol=1e-4)
        np.testing.assert_allclose(dictionary.reconstruct(encoded).numpy(), rebuilt, atol=1e-4)
        assert (dictionary.encode(encoded) > 0).any() and encoded[:, D:].abs().max() > 0.1
    chosen = torch.tensor([5, 0])
    torch.testing.assert_close(dictionary.encode(joined[0], chosen), dictionary.encode(joined[0])[:, chosen])


def test_neither_the_batch_nor_what_stands_behind_changes_a_bit(tmp_path: Path) -> None:
    dictionary, rows = read(put(tmp_path)), draw(4, 9, D)
    joined = dictionary.join({"resid_post.3": rows})
    assert torch.equal(dictionary.join({"resid_post.3": rows[2:3]})[0], joined[2])
    padded = rows.clone()
    padded[:, 5:] = 100 * draw(D, seed=4)
    assert torch.equal(dictionary.join({"resid_post.3": padded})[:, :5], joined[:, :5])


def test_single_vectors_are_refused_never_encoded(tmp_path: Path) -> None:
    dictionary, rows = read(put(tmp_path)), draw(4, 9, D)
    for alone in (
        partial(dictionary.join, {"resid_post.3": rows[0]}),
        partial(dictionary.encode, rows[0]),
        partial(dictionary.reconstruct, rows[0]),
        partial(dictionary.edit, rows[0], torch.tensor([1]), torch.ones(9, 1)),
    ):
        with pytest.raises(NeuronautError, match=r"was given single vectors; give whole rows"):
            alone()


def test_an_edit_holds_the_prediction_as_it_was(tmp_path: Path) -> None:
    dictionary, rows = read(put(tmp_path)), draw(1, 9, D)
    inputs, chosen = dictionary.join({"resid_post.3": rows})[0], torch.tensor([3, 7])
    own = dictionary.encode(inputs, chosen)
    assert torch.equal(dictionary.edit(rows[0], chosen, own, inputs=inputs), rows[0])
    moved = dictionary.edit(rows[0], chosen, own + torch.tensor([2.0, -1.0]), inputs=inputs)
    wanted = 2 * dictionary.W_dec[3] - dictionary.W_dec[7]
    torch.testing.assert_close(moved - rows[0], wanted.expand(9, D))


def test_the_attention_is_part_of_the_revision_and_of_the_random_control(tmp_path: Path) -> None:
    dictionary = read(put(tmp_path))
    drawn = randomize_dictionary(dictionary, 1)
    assert dictionary.temporal is not None and drawn.temporal is not None
    name = "1.v_ctx.weight"
    assert not torch.equal(drawn.temporal.tensors[name], dictionary.temporal.tensors[name])
    torch.testing.assert_close(drawn.temporal.tensors[name].norm(), dictionary.temporal.tensors[name].norm())
    tensors = weights()
    tensors["attn_layers.1.k_ctx.bias"][0] += 0.1
    write(tmp_path, tensors, config())
    assert read(tmp_path).revision != dictionary.revision
    with pytest.raises(NeuronautError, match="is temporal; its attention is not saved"):
        save_dictionary(dictionary, tmp_path / "again")


def test_the_released_layout_is_the_same_dictionary(tmp_path: Path) -> None:
    more = {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.3}
    folder = tmp_path / "layer_3" / "temporal"
    folder.mkdir(parents=True)
    names = {"W_dec": "D", "W_enc": "E", "b_dec": "b"}
    save_file({names.get(name, name): one for name, one in weights().items()}, folder / "latest_ckpt.safetensors")
    settings = {name: config()[name] for name in ("n_heads", "n_attn_layers", "bottleneck_factor", "kval_topk")}
    settings |= {"exp_factor": 4, "sae_diff_type": "topk", "tied_weights": False, "scaling_factor": 0.3}
    (folder / "conf.yaml").write_text(yaml.safe_dump({"llm": {"dimin": D}, "sae": settings, "data": {"dtype": "x"}}))
    assert declared_site(folder) == "resid_post.3"
    assert read(folder).revision == read(put(tmp_path / "theirs", **more)).revision


@pytest.mark.parametrize(
    ("left_out", "more", "reason"),
    [
        ("W_enc", {}, r"W_dec, b_dec in a temporal SAE; wanted W_dec, W_enc, b_dec and attn_layers.N"),
        ("attn_layers.0.k_ctx.bias", {}, r"attn_layers.0.k_ctx.bias missing; wanted 2 layers"),
        ("attn_layers", {}, "alone in a temporal SAE"),
        ("", {"n_heads": 3}, r"attention 8 and 48 wide; wanted 2 layers .* 3 heads"),
        ("", {"bottleneck_factor": 3}, r"attn_layers.0.k_ctx.bias \(8,\)"),
        ("", {"n_attn_layers": 1}, "n_attn_layers is 2; wanted 1"),
        ("", {"sae_diff_type": "jumprelu"}, "sae_diff_type 'jumprelu'; wanted topk or relu"),
        ("", {"kval_topk": 0}, "kval_topk is 0; wanted a whole number"),
        ("", {"model_from_pretrained_kwargs": {"center_writing_weights": True}}, "centred vectors.*import --evidence"),
        ("", {"normalize_activations": "expected_average_only_in"}, "pass --norm-scale"),
    ],
)
def test_what_is_no_temporal_dictionary_is_one_line(
    tmp_path: Path, left_out: str, more: dict[str, Any], reason: str
) -> None:
    kept = {name: one for name, one in weights().items() if not left_out or not name.startswith(left_out)}
    write(tmp_path, kept, config(**more))
    with pytest.raises(NeuronautError, match=reason):
        read(tmp_path)


# In a model


@cache
def temporal(site: str = SITE) -> Dictionary:
    with TemporaryDirectory() as folder:
        path = put(Path(folder), subject().d_model, metadata={}, sae_diff_type="relu", apply_b_dec_to_input=False)
        return load_dictionary(path, id=SourceId("relu", site, "t"), d_site=subject().d_model)


def prompts(seed: int = 0) -> Batch:
    tokens = tiny_tokens(3, 10, seed=seed)
    tokens[:, 0] = 0  # BOS
    return Batch(tokens, torch.tensor([10, 10, 10]))


GIVEN = Materials(sources={f"{SITE}@t": temporal()})


def joined(seed: int = 0) -> Tensor:
    return temporal().join(subject().read(prompts(seed).tokens, [SITE]))


@pytest.mark.parametrize("text", ["5=2", "5,7*=3", "5=patch"])
def test_an_edit_in_a_model_is_the_hook_written_by_hand(text: str) -> None:
    source, edit = temporal(), Edit.parse(f"{SITE}@t:{text}")
    assert edit.units is not None
    features = torch.tensor(edit.units)
    now, other = (source.encode(joined(seed).flatten(0, 1), features).view(3, 10, -1) for seed in (0, 4))
    wanted = {"5=2": torch.full_like(now, 2.0), "5,7*=3": 3 * now, "5=patch": other}[text]
    change = (wanted - now) @ source.W_dec[features]
    change[:, 0] = 0  # BOS is not edited.
    with subject().editing({SITE: lambda x: x + change}):
        by_hand_logits = subject().logits(prompts().tokens)[:, -1]
    given = gather(subject(), [edit], materials=GIVEN, source_run=prompts(4))
    outcome = compare(subject(), prompts(), [edit], materials=given)
    torch.testing.assert_close(outcome.after, by_hand_logits, rtol=1e-4, atol=1e-4)
    assert (outcome.after - outcome.before).abs().max() > 0.01


def test_every_reader_reads_whole_rows() -> None:
    """The harvest's tiles, chosen columns, endings and readouts, all against the formula on the whole row."""
    source, features = temporal(), [5, 0, 7]
    tokens = prompts().tokens[:, 1:].numpy()
    columns = read_columns(subject(), source, tokens, features)
    assert len(subject().bos_prefix) == 1 and (columns > 0).any()
    wanted = source.encode(joined().flatten(0, 1)).view(3, 10, -1)[:, 1:, features]
    torch.testing.assert_close(torch.from_numpy(columns), wanted)
    for tile in tiles(subject(), [source], tokens):
        chosen = [f - tile.first_feature for f in features]
        torch.testing.assert_close(tile.activations[..., chosen], torch.from_numpy(columns[tile.rows]))
    rows = [tuple(row[:stop].tolist()) for row in tokens for stop in (4, 9)] * 12
    last = read_last(subject(), source, rows, features)
    np.testing.assert_allclose(last, np.concatenate([columns[:, [3, 8]].reshape(6, 3)] * 12), atol=1e-4)
    readout = activation(source, Feature(source.id, 5))
    np.testing.assert_allclose(readout.run(subject(), prompts())[:, 0].numpy(), columns[:, -1, 0], atol=1e-4)
    rebuilt = source.reconstruct(joined()[:, 1:].flatten(0, 1))
    vectors = joined()[:, 1:, : source.d_site].flatten(0, 1)
    missed = (vectors - rebuilt).square().sum() / (vectors - vectors.mean(0)).square().sum()
    assert fidelity(subject(), source, prompts()).unexplained == pytest.approx(float(missed), rel=1e-4)


def test_what_is_of_single_vectors_is_refused() -> None:
    edit = Edit.parse(f"{SITE}@t:5=2")
    with pytest.raises(NeuronautError, match="an edit of text that is being written is of single vectors; it can be"):
        generate(subject(), prompts(), [edit], tokens=2, materials=GIVEN)
    with pytest.raises(NeuronautError, match="the attribution of a logit is of single vectors"):
        logit_attribution(subject(), prompts(), token=3, split=[temporal()])
    mean = Edit.parse(f"{SITE}@t:5=mean")
    with pytest.raises(NeuronautError, match="an edit a number in place of a mean"):
        given = gather(subject(), [mean], materials=GIVEN, reference=prompts(3))
        compare(subject(), prompts(), [mean], materials=given)


@pytest.mark.parametrize("more", [*VARIANTS, {"normalize_activations": "layer_norm"}])
def test_saelens_itself_agrees(tmp_path: Path, more: dict[str, Any]) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    theirs, ours = sae_lens.SAE.load_from_disk(str(put(tmp_path, **more))), read(tmp_path)
    rows = draw(3, 7, D) * 2
    inputs = ours.join({"resid_post.3": rows}).flatten(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(inputs), theirs.encode(rows).flatten(0, 1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.reconstruct(inputs), theirs(rows).flatten(0, 1), atol=1e-4, rtol=1e-4)
