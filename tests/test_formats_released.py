"""The layouts of released suites and training libraries, written by the test, against plain formulas; their traps."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuronaut.subject.address import SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.formats import declared_site, load_dictionary, save_dictionary
from neuronaut.subject.formats_folds import Affine
from neuronaut.subject.formats_sites import named_place

from .test_formats import COMMON, ID, TENSORS, D, F, Hub, assert_equal, expected, pick, random_weights, saelens, write

K, SCALE = 4, 2.5
IN = SourceId("toy", "mlp_in.3", "coder")
Weights = dict[str, torch.Tensor]


@pytest.fixture
def weights() -> Weights:
    return random_weights()


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(20, D, generator=torch.Generator().manual_seed(1)) + 0.5


def put(
    folder: Path, tensors: Mapping[str, Any], file: str, config: dict[str, Any] | None = None, name: str = "config.json"
) -> Path:
    """Write weights, of which a pickle may hold more than tensors, and a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / name).write_text(json.dumps(config))
    if file.endswith(".pt"):
        torch.save(dict(tensors), folder / file)
        return folder / file
    write(folder, dict(tensors), None, file)
    return folder / file


def read(path: Path, id: SourceId = ID, **more: Any) -> Dictionary:
    return load_dictionary(path, id=id, d_site=D, allow_pickle=True, **more)


def linear(w: Weights, **more: torch.Tensor) -> Weights:
    """Linear layers: both matrices lie the other way round."""
    return {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T, **more}


def jump(w: Weights, threshold: float) -> Weights:
    return {**w, "threshold": torch.full((F,), threshold)}


# ---- dictionary_learning ---------------------------------------------------------------------


def trained(name: str, **more: Any) -> dict[str, Any]:
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "toy"}
    return {"trainer": {**trainer, "submodule_name": "resid_post_layer_3", **more}, "buffer": {"ctx_len": 128}}


def matrices(w: Weights, **more: torch.Tensor) -> Weights:
    return {**pick(w, *COMMON, "b_enc"), **more}


def library(w: Weights) -> dict[str, tuple[Weights, tuple[str, Weights, bool]]]:
    """By class: its tensors, and the kind, weights and subtraction of the formula."""
    k, threshold = torch.tensor(K), torch.tensor(0.3)
    gate = {"gate_bias": w["b_gate"], "mag_bias": w["b_mag"], "r_mag": w["r_mag"], "decoder_bias": w["b_dec"]}
    gated = {name: tensor for name, tensor in linear(w, **gate).items() if name != "encoder.bias"}
    groups = torch.tensor([10, 20])
    return {
        "AutoEncoder": (linear(w, bias=w["b_dec"]), ("standard", w, True)),
        "AutoEncoderNew": (linear(w, **{"decoder.bias": w["b_dec"]}), ("standard", w, False)),
        "GatedAutoEncoder": (gated, ("gated", w, True)),
        "AutoEncoderTopK": (linear(w, b_dec=w["b_dec"], k=k, threshold=threshold), ("topk", w, True)),
        "BatchTopKSAE": (linear(w, b_dec=w["b_dec"], k=k, threshold=threshold), ("jumprelu", jump(w, 0.3), True)),
        "MatryoshkaBatchTopKSAE": (
            matrices(w, k=k, threshold=threshold, group_sizes=groups),
            ("jumprelu", jump(w, 0.3), True),
        ),
        "JumpReluAutoEncoder": (matrices(w, threshold=w["threshold"]), ("jumprelu", w, False)),
    }


CLASSES = tuple(library(random_weights()))


@pytest.mark.parametrize("name", CLASSES)
def test_dictionary_learning(tmp_path: Path, weights: Weights, vectors: torch.Tensor, name: str) -> None:
    tensors, (kind, formula, subtract) = library(weights)[name]
    path = put(tmp_path / "trainer_0", tensors, "ae.pt", trained(name, k=K))
    assert declared_site(path, allow_pickle=True) == "resid_post.3"
    assert_equal(read(path), vectors, expected(kind, formula, vectors, k=K, subtract=subtract))


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("AutoEncoderTopK", "BatchTopKSAE")])
def test_dictionary_learning_without_its_configuration(
    tmp_path: Path, weights: Weights, vectors: torch.Tensor, name: str
) -> None:
    tensors, (kind, formula, subtract) = library(weights)[name]
    path = put(tmp_path, tensors, "ae.pt")
    assert_equal(read(path), vectors, expected(kind, formula, vectors, subtract=subtract))


def test_two_classes_with_the_same_tensors_are_asked_about(tmp_path: Path, weights: Weights) -> None:
    with pytest.raises(NeuronautError, match=r'same tensors; fetch it, or write one: \{"trainer": \{"dict_class"'):
        read(put(tmp_path, library(weights)["BatchTopKSAE"][0], "ae.pt"))


@pytest.mark.parametrize("threshold", [-1.0, math.inf, math.nan])
def test_a_threshold_that_was_never_set_is_no_threshold(
    tmp_path: Path, weights: Weights, vectors: torch.Tensor, threshold: float
) -> None:
    tensors = library(weights)["BatchTopKSAE"][0] | {"threshold": torch.tensor(threshold)}
    with pytest.raises(NeuronautError, match="ended before one was set.* AutoEncoderTopK"):
        read(put(tmp_path, tensors, "ae.pt", trained("BatchTopKSAE", k=K)))
    ranked = put(tmp_path, tensors, "ae.pt", trained("AutoEncoderTopK", k=K))
    assert_equal(read(ranked), vectors, expected("topk", weights, vectors, k=K))


def test_a_backup_holds_the_weights_of_scaled_vectors(tmp_path: Path, weights: Weights, vectors: torch.Tensor) -> None:
    """What the library takes out of the weights at the end of training is taken out here: activations times it."""
    tensors = library(weights)["BatchTopKSAE"][0]
    backup = {"step": 7, "ae": tensors, "optimizer": {"lr": 0.1}, "norm_factor": SCALE}
    dictionary = read(put(tmp_path, backup, "ae.pt", trained("BatchTopKSAE", k=K)))
    acts, rebuilt = expected("jumprelu", jump(weights, 0.3), vectors / SCALE)
    assert_equal(dictionary, vectors, (acts * SCALE, rebuilt * SCALE))


def test_what_a_class_lacks_or_a_size_denies_is_named(tmp_path: Path, weights: Weights) -> None:
    tensors = library(weights)["AutoEncoder"][0]
    for config, message in (
        (trained("GatedAutoEncoder"), "without decoder_bias, gate_bias"),
        (trained("Autoencoder"), "dict_class 'Autoencoder'; wanted AutoEncoder, "),
        (trained("AutoEncoder", dict_size=99), "dict_size is 30; wanted 99"),
    ):
        with pytest.raises(NeuronautError, match=message):
            read(put(tmp_path, tensors, "ae.pt", config))


# ---- OpenAI, linear layers, sparsify ---------------------------------------------------------


def test_openai_relu(tmp_path: Path, weights: Weights, vectors: torch.Tensor) -> None:
    tensors = {**linear(weights), "pre_bias": weights["b_dec"], "latent_bias": weights["b_enc"]}
    del tensors["encoder.bias"]
    path = put(tmp_path, {**tensors, "stats_last_nonzero": torch.zeros(F, dtype=torch.long)}, "8.pt")
    assert_equal(read(path), vectors, expected("standard", weights, vectors))


def test_openai_topk_standardises_each_vector(tmp_path: Path, weights: Weights, vectors: torch.Tensor) -> None:
    tensors = {**linear(weights), "pre_bias": weights["b_dec"], "latent_bias": weights["b_enc"]}
    del tensors["encoder.bias"]
    state = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}
    x = vectors.double().numpy()
    centred = x - x.mean(1, keepdims=True)
    deviation = centred.std(1, ddof=1, keepdims=True)
    acts, rebuilt = expected("topk", weights, torch.from_numpy(centred / (deviation + 1e-5)), k=K)
    assert_equal(
        read(put(tmp_path, {**tensors, **state}, "8.pt")),
        vectors,
        (acts, rebuilt * deviation + x.mean(1, keepdims=True)),
    )
    state["activation_state_dict"] = {"k": K, "postact_fn": "Identity"}
    with pytest.raises(NeuronautError, match="TopK followed by Identity"):
        read(put(tmp_path, {**tensors, **state}, "8.pt"))


@pytest.mark.parametrize("named", ["_linear", ""])
def test_bare_linear_layers(tmp_path: Path, weights: Weights, vectors: torch.Tensor, named: str) -> None:
    tensors = linear(weights, **{"decoder.bias": weights["b_dec"]})
    tensors = {name.replace(".", f"{named}."): tensor for name, tensor in tensors.items()}
    path = put(tmp_path, tensors, "layer_19.pth.pt")
    assert_equal(read(path), vectors, expected("standard", weights, vectors, subtract=False))


def sparsify(w: Weights) -> Weights:
    return {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], **pick(w, "W_dec", "b_dec")}


def test_sparsify_groupmax(tmp_path: Path, weights: Weights, vectors: torch.Tensor) -> None:
    config = {"k": 5, "d_in": D, "num_latents": F, "activation": "groupmax"}
    path = put(tmp_path / "layers.3", sparsify(weights), "sae.safetensors", config, "cfg.json")
    relu, _ = expected("standard", weights, vectors)
    groups = relu.reshape(len(relu), 5, 6)
    acts = np.where(groups == groups.max(2, keepdims=True), groups, 0).reshape(relu.shape)
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    dictionary = read(path)
    assert_equal(dictionary, vectors, (acts, acts @ w["W_dec"] + w["b_dec"]))
    assert not dictionary.separable and not dictionary.signed


@pytest.mark.parametrize("layout", ["sparsify signed", "SAELens abstopk"])
def test_the_farthest_from_zero_keep_their_sign(
    tmp_path: Path, weights: Weights, vectors: torch.Tensor, layout: str
) -> None:
    if layout == "sparsify signed":
        config = {"k": K, "d_in": D, "signed": True}
        path = put(tmp_path / "layers.3", sparsify(weights), "sae.safetensors", config, "cfg.json")
    else:
        write(tmp_path, pick(weights, *COMMON, "b_enc"), saelens("abstopk", k=K))
        path = tmp_path
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    pre = (vectors.double().numpy() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = np.where(np.abs(pre) >= np.sort(np.abs(pre), axis=1)[:, -K][:, None], pre, 0)
    dictionary = read(path)
    assert_equal(dictionary, vectors, (acts, acts @ w["W_dec"] + w["b_dec"]))
    assert dictionary.signed and (acts < 0).any()


# ---- suites ----------------------------------------------------------------------------------


def llama(tmp_path: Path, w: Weights, **more: Any) -> Path:
    norms = {"in": math.sqrt(D) / 3, "out": math.sqrt(D) / 3}
    config = {
        "d_model": D,
        "d_sae": F,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.6,
        "hook_point_in": "blocks.3.hook_resid_post",
        "hook_point_out": "blocks.3.hook_resid_post",
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": norms,
        "sparsity_include_decoder_norm": True,
        **more,
    }
    folder = tmp_path / "Llama3_1-8B-Base-L3R-8x"
    tensors = linear(w, **{"decoder.bias": w["b_dec"]})
    put(folder / "checkpoints", tensors, "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(config))
    return folder


def test_llama_scope(tmp_path: Path, weights: Weights, vectors: torch.Tensor) -> None:
    """Biases over the scale, then decoders of norm 1, then the threshold, of the vectors as they are."""
    folder = llama(tmp_path, weights)
    assert declared_site(folder) == "resid_post.3"
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    norms = np.linalg.norm(w["W_dec"], axis=1)
    pre = (vectors.double().numpy() @ w["W_enc"] + w["b_enc"] / 3) * norms
    acts = np.where(pre > 0.6, pre, 0)
    assert_equal(read(folder), vectors, (acts, acts / norms @ w["W_dec"] + w["b_dec"] / 3))


def test_weights_below_their_configuration_are_fetched_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    folder = llama(tmp_path / "hub", weights)
    hub = Hub(tmp_path / "hub")
    for constant, value in {"ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{constant}", value)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    fetched = read(Path(f"owner/saes/{folder.name}"))
    assert hub.asked == {f"{folder.name}/hyperparams.json", f"{folder.name}/checkpoints/final.safetensors"}
    hub.shutdown()
    hub.server_close()
    assert fetched.revision == read(folder).revision


def test_llama_scope_says_what_it_lacks(tmp_path: Path, weights: Weights) -> None:
    for change, message in (
        ({"act_fn": "prolu"}, "act_fn 'prolu'"),
        ({"use_glu_encoder": True}, "gated linear unit"),
        ({"norm_activation": "token-wise"}, "norm_activation 'token-wise'"),
        ({"jump_relu_threshold": None}, "no jump_relu_threshold"),
        ({"d_sae": 31}, "d_sae is 30; wanted 31, as d_sae of its hyperparams.json says"),
    ):
        with pytest.raises(NeuronautError, match=message):
            read(llama(tmp_path, weights, **change))
    folder = llama(tmp_path, weights)
    (folder / "hyperparams.json").unlink()
    with pytest.raises(NeuronautError, match=r"no hyperparams\.json above it"):
        read(folder)


def test_llama_scope_r1(tmp_path: Path, weights: Weights, vectors: torch.Tensor) -> None:
    """Under SAELens' file name; its threshold is a logarithm, its scale is not in the file."""
    tensors = linear(weights, **{"decoder.bias": weights["b_dec"]}, log_jumprelu_threshold=weights["r_mag"])
    config = {"d_model": D, "expansion_factor": 2.5, "hook_point_in": "blocks.3.hook_resid_post"}
    path = put(tmp_path, tensors, "sae_weights.safetensors", config)
    with pytest.raises(NeuronautError, match="--norm-scale"):
        read(path)
    formula = {**weights, "threshold": weights["r_mag"].exp()}
    acts, rebuilt = expected("jumprelu", formula, vectors * SCALE, subtract=False)
    assert_equal(read(path, norm_scale=SCALE), vectors, (acts, rebuilt / SCALE))


def test_qwen_scope_has_its_k_in_its_name(tmp_path: Path, weights: Weights, vectors: torch.Tensor) -> None:
    """SAELens' names for matrices that lie the other way round."""
    turned = {**pick(weights, "b_enc", "b_dec"), "W_enc": weights["W_enc"].T, "W_dec": weights["W_dec"].T}
    path = put(tmp_path / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}", turned, "layer3.sae.pt")
    assert declared_site(path, allow_pickle=True) == "resid_post.3"
    assert_equal(read(path), vectors, expected("topk", weights, vectors, k=K, subtract=False))
    with pytest.raises(NeuronautError, match="Qwen Scope, whose folder's name ends in L0_K"):
        read(put(tmp_path / "renamed", turned, "layer3.sae.pt"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"activation": "TopK", "activation_state_dict": {"k": [4]}}, "TopK followed by ReLU"),
        ({"activation": ["TopK"]}, "activation .'TopK'."),
        ({"activation": "TopK"}, "k=0"),
    ],
)
def test_settings_of_a_pickle_are_not_trusted(
    tmp_path: Path, weights: Weights, state: dict[str, Any], message: str
) -> None:
    tensors = {**linear(weights), "pre_bias": weights["b_dec"], "latent_bias": weights["b_enc"]}
    del tensors["encoder.bias"]
    with pytest.raises(NeuronautError, match=message):
        read(put(tmp_path, {**tensors, **state}, "8.pt"))


def test_jumprelu_weights_without_a_configuration_are_asked_about(tmp_path: Path, weights: Weights) -> None:
    """Gemma Scope's tensors and SAELens' are the same, and SAELens may take b_dec off first."""
    path = put(tmp_path, pick(weights, *TENSORS["jumprelu"]), "sae_weights.safetensors")
    with pytest.raises(NeuronautError, match=r'no cfg\.json beside it.*"d_in": 12, "d_sae": 30'):
        read(path)


def test_gemma_scopes_embeddings_are_those_before_the_model_scales_them(
    tmp_path: Path, weights: Weights, vectors: torch.Tensor
) -> None:
    folder = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    path = put(folder, pick(weights, *TENSORS["jumprelu"]), "params.npz")
    acts, rebuilt = expected("jumprelu", weights, vectors / math.sqrt(D), subtract=False)
    assert_equal(read(path, SourceId("toy", "embed", "sae")), vectors, (acts, rebuilt * math.sqrt(D)))


# ---- what no source of one site can hold -----------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "config", "reason"),
    [({"W_enc": (2, D, F), "W_dec": (F, 2, D), "b_enc": (F,), "b_dec": (2, D)}, None, "2 sites, or models")],
)
def test_what_a_source_cannot_hold_is_told_with_the_way_round(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], config: dict[str, Any] | None, reason: str
) -> None:
    path = put(tmp_path, {name: torch.ones(shape) for name, shape in tensors.items()}, "a.safetensors", config)
    with pytest.raises(NeuronautError, match=rf"{reason}.* import --evidence"):
        read(path)


# ---- transcoders -----------------------------------------------------------------------------

OUT = 9


def transcoder_weights() -> Weights:
    """From D coordinates to OUT others."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"W_enc": (D, F), "W_dec": (F, OUT), "b_enc": (F,), "b_dec": (OUT,), "threshold": (F,), "W_skip": (D, OUT)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def transcoded(w: Weights, kind: str, vectors: torch.Tensor, *, skip: bool, k: int = K) -> tuple[Any, Any]:
    acts, rebuilt = expected(kind, w, vectors, k=k, subtract=False)
    return acts, rebuilt + (vectors.double().numpy() @ w["W_skip"].double().numpy() if skip else 0)


HOOKS = {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}


@pytest.mark.parametrize(
    ("architecture", "kind", "extra"),
    [
        ("transcoder", "standard", ()),
        ("skip_transcoder", "standard", ("W_skip",)),
        ("jumprelu_transcoder", "jumprelu", ("threshold",)),
    ],
)
def test_saelens_transcoders(
    tmp_path: Path, vectors: torch.Tensor, architecture: str, kind: str, extra: tuple[str, ...]
) -> None:
    w = transcoder_weights()
    tensors = {name: w[name].T if name == "W_skip" else w[name] for name in (*COMMON, "b_enc", *extra)}
    config = saelens(architecture, d_out=OUT, apply_b_dec_to_input=False)
    config["metadata"] |= HOOKS
    write(tmp_path, tensors, config)
    dictionary = read(tmp_path, IN)
    assert (dictionary.id.site, dictionary.writes) == ("mlp_in.3", ("mlp_out.3",))
    assert_equal(dictionary, vectors, transcoded(w, kind, vectors, skip=bool(extra == ("W_skip",))))
    save_dictionary(dictionary, tmp_path / "again", dtype=torch.float32)
    assert read(tmp_path / "again", IN).revision == dictionary.revision


def test_a_transcoder_cannot_take_its_output_bias_off_its_input(tmp_path: Path) -> None:
    config = saelens("transcoder", d_out=OUT)
    config["metadata"] |= HOOKS
    write(tmp_path, pick(transcoder_weights(), *COMMON, "b_enc"), config)
    with pytest.raises(NeuronautError, match="takes b_dec, a vector of mlp_out.3, off vectors of mlp_in.3"):
        read(tmp_path, IN)


@pytest.mark.parametrize("skip", [False, True])
def test_gemma_scope_2_transcoders(tmp_path: Path, vectors: torch.Tensor, skip: bool) -> None:
    w = transcoder_weights()
    tensors = {name.replace("W_", "w_"): w[name] for name in TENSORS["jumprelu"]}
    config = {
        "architecture": "jump_relu",
        "type": "transcoder",
        "width": F,
        "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
    }
    affine = {"affine_skip_connection": w["W_skip"]} if skip else {}
    path = put(tmp_path, {**tensors, **affine}, "params.safetensors", config)
    dictionary = read(path, IN)
    assert dictionary.writes == ("mlp_out.3",)
    assert_equal(dictionary, vectors, transcoded(w, "jumprelu", vectors, skip=skip))


def test_gemma_scope_2_without_its_configuration_may_be_either(tmp_path: Path, weights: Weights) -> None:
    tensors = {name.replace("W_", "w_"): weights[name] for name in TENSORS["jumprelu"]}
    with pytest.raises(NeuronautError, match="whether it rebuilds what it reads or is a transcoder is not known"):
        read(put(tmp_path, tensors, "params.safetensors"))


def test_gemma_scope_1_transcoders_read_the_norm_before_its_gain(tmp_path: Path, vectors: torch.Tensor) -> None:
    w = transcoder_weights()
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_3" / "width_16k" / "average_l0_9"
    path = put(folder, pick(w, *TENSORS["jumprelu"]), "params.npz")
    with pytest.raises(NeuronautError, match="without its gain; open it with the model"):
        read(path, IN)
    generator = torch.Generator().manual_seed(2)
    norm = Affine(torch.rand(D, generator=generator) + 0.5, torch.randn(D, generator=generator))
    dictionary = read(path, IN, norm=lambda: norm)
    assert dictionary.writes == ("mlp_out.3",)
    assert_equal(dictionary, vectors * norm.gain + norm.bias, transcoded(w, "jumprelu", vectors, skip=False))
    dead = Affine(torch.zeros(D), torch.zeros(D))
    with pytest.raises(NeuronautError, match="a gain of 0"):
        read(path, IN, norm=lambda: dead)


def test_an_autoencoder_of_the_norm_before_its_gain_gives_what_has_the_gain(
    tmp_path: Path, weights: Weights, vectors: torch.Tensor
) -> None:
    config = saelens("standard")
    config["metadata"]["hook_name"] = "blocks.3.ln2.hook_normalized"
    write(tmp_path, pick(weights, *TENSORS["standard"]), config)
    generator = torch.Generator().manual_seed(2)
    norm = Affine(torch.rand(D, generator=generator) + 0.5, torch.randn(D, generator=generator))
    acts, rebuilt = expected("standard", weights, vectors)
    wanted = acts, rebuilt * norm.gain.numpy() + norm.bias.numpy()
    assert_equal(read(tmp_path, IN, norm=lambda: norm), vectors * norm.gain + norm.bias, wanted)


@pytest.mark.parametrize("skip", [False, True])
def test_sparsify_transcoders_are_of_the_module_that_their_folder_names(
    tmp_path: Path, vectors: torch.Tensor, skip: bool
) -> None:
    w = transcoder_weights()
    w |= {"W_dec": torch.randn(F, D), "b_dec": torch.randn(D), "W_skip": torch.randn(D, D)}
    tensors = sparsify(w) | ({"W_skip": w["W_skip"].T} if skip else {})
    config = {"k": K, "d_in": D, "transcode": True, "skip_connection": skip}
    path = put(tmp_path / "layers.3.mlp", tensors, "sae.safetensors", config, "cfg.json")
    dictionary = read(path, IN)
    assert dictionary.writes == ("mlp_out.3",)
    assert_equal(dictionary, vectors, transcoded(w, "topk", vectors, skip=skip))
    attention = put(tmp_path / "layers.3.self_attn", tensors, "sae.safetensors", config, "cfg.json")
    with pytest.raises(NeuronautError, match="reads the input of layers.3.self_attn"):
        read(attention, IN)


@pytest.mark.parametrize("turned", [False, True])
def test_transcoders_with_a_file_for_each_layer(tmp_path: Path, vectors: torch.Tensor, turned: bool) -> None:
    """Suites differ in how W_dec lies: the number of features tells."""
    w = transcoder_weights()
    tensors = {**pick(w, "b_enc", "b_dec"), "W_enc": w["W_enc"].T, "W_dec": w["W_dec"].T if turned else w["W_dec"]}
    for layer in (2, 3):
        put(tmp_path, {**tensors, "W_skip": w["W_skip"].T}, f"layer_{layer}.safetensors")
    (tmp_path / "config.yaml").write_text("model_name: toy\nfeature_input_hook: mlp.hook_in\n")
    path = tmp_path / "layer_3.safetensors"
    with pytest.raises(NeuronautError, match="wanted feature_output_hook in its configuration"):
        read(path, IN)
    (tmp_path / "config.yaml").write_text("feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n")
    dictionary = read(path, IN)
    assert dictionary.writes == ("mlp_out.3",)
    assert_equal(dictionary, vectors, transcoded(w, "standard", vectors, skip=True))
    (tmp_path / "config.yaml").write_text("feature_input_hook: [")
    with pytest.raises(NeuronautError, match="not readable YAML"):
        read(path, IN)


@pytest.mark.parametrize(
    ("hook", "site", "without_gain"),
    [
        ("hook_mlp_in", "resid_mid.3", False),
        ("mlp.hook_in", "mlp_in.3", False),
        ("ln2.hook_normalized", "mlp_in.3", True),
    ],
)
def test_the_three_points_before_an_mlp(hook: str, site: str, without_gain: bool) -> None:
    place = named_place({"hook_name": f"blocks.3.{hook}"}, Path("sae.safetensors"))
    assert (place.site, place.without_gain) == (site, without_gain)
