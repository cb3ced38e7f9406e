"""Every format, written in its own layout by the test, against an independent reference; every trap."""

import json
import math
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from neuronaut.subject.address import SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.formats import declared_site, load_dictionary, save_dictionary
from neuronaut.subject.formats_sites import same_site, tl_name

D, F = 12, 30
ID = SourceId("toy", "resid_post.3", "sae")
Array = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return random_weights()


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(20, D, generator=torch.Generator().manual_seed(1)) + 0.5


def random_weights(width: int = F) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    shapes = {"W_enc": (D, width), "W_dec": (width, D), "b_dec": (D,)}
    per_feature = ("b_enc", "threshold", "b_gate", "b_mag", "r_mag")
    shapes |= {name: (width,) for name in per_feature}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def write(
    folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None, file: str = "sae_weights.safetensors"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "cfg.json").write_text(json.dumps(config))
    if file.endswith(".npz"):
        np.savez(folder / file, allow_pickle=False, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif file.endswith(".pt"):
        torch.save(tensors, folder / file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)
    return folder


def saelens(architecture: str, **more: Any) -> dict[str, Any]:
    """A cfg.json as SAELens 6 writes it."""
    return {
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "architecture": architecture,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.3.hook_resid_post", "model_name": "toy", "sae_lens_version": "6.54.12"},
        **more,
    }


def pick(weights: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: weights[name] for name in names}


COMMON = ("W_enc", "W_dec", "b_dec")
TENSORS = {
    "standard": (*COMMON, "b_enc"),
    "topk": (*COMMON, "b_enc"),
    "jumprelu": (*COMMON, "b_enc", "threshold"),
    "gated": (*COMMON, "b_gate", "b_mag", "r_mag"),
}


def expected(
    kind: str, weights: dict[str, torch.Tensor], vectors: torch.Tensor, *, k: int = 4, subtract: bool = True
) -> tuple[Array, Array]:
    """Activations and reconstruction by the formulas of each architecture, in numpy and float64."""
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    x = vectors.double().numpy() - (w["b_dec"] if subtract else 0)
    linear = x @ w["W_enc"]
    if kind == "gated":
        magnitudes = np.maximum(x @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
        acts = np.where(linear + w["b_gate"] > 0, magnitudes, 0)
    else:
        linear = linear + w["b_enc"]
        acts = np.maximum(linear, 0)
    if kind == "topk":
        acts = np.where(linear >= np.sort(linear, axis=1)[:, -k][:, None], acts, 0)
    if kind == "jumprelu":
        acts = np.where(linear > w["threshold"], acts, 0)
    return acts, acts @ w["W_dec"] + w["b_dec"]


def assert_equal(dictionary: Dictionary, vectors: torch.Tensor, wanted: tuple[Array, Array]) -> None:
    """Activations and reconstruction to 1e-5 of their own size."""
    activations, rebuilt = wanted
    assert np.count_nonzero(activations) > 0
    for got, want in ((dictionary.encode(vectors), activations), (dictionary.reconstruct(vectors), rebuilt)):
        assert np.abs(got.numpy() - want).max() < 1e-5 * max(1.0, np.abs(want).max())


# ---- SAELens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("subtract", [True, False])
def test_saelens(
    tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor, kind: str, subtract: bool
) -> None:
    config = saelens(kind, apply_b_dec_to_input=subtract, **({"k": 4} if kind == "topk" else {}))
    write(tmp_path, pick(weights, *TENSORS[kind]), config)
    dictionary = load_dictionary(tmp_path, id=ID, d_site=D)
    assert dictionary.kind == kind
    assert_equal(dictionary, vectors, expected(kind, weights, vectors, subtract=subtract))


def test_saelens_before_6(tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor) -> None:
    flat = {"d_in": D, "d_sae": F, "hook_point": "blocks.3.hook_resid_post", "normalize_activations": False}
    topk = {**flat, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    write(tmp_path / "relu", pick(weights, *TENSORS["standard"]), flat)
    write(tmp_path / "topk", pick(weights, *TENSORS["topk"]), topk)
    for kind in ("relu", "topk"):
        wanted = expected("topk" if kind == "topk" else "standard", weights, vectors)
        assert_equal(load_dictionary(tmp_path / kind, id=ID, d_site=D), vectors, wanted)


@pytest.mark.parametrize("ones", [True, False])
def test_the_finetuned_decoder_scale_of_old_files(
    tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor, ones: bool
) -> None:
    factor = torch.ones(F) if ones else torch.rand(F) + 0.5
    write(tmp_path, pick(weights, *TENSORS["standard"]) | {"scaling_factor": factor}, saelens("standard"))
    acts, _ = expected("standard", weights, vectors)
    rebuilt = (acts * factor.double().numpy()) @ weights["W_dec"].double().numpy() + weights["b_dec"].double().numpy()
    assert_equal(load_dictionary(tmp_path, id=ID, d_site=D), vectors, (acts, rebuilt))


def test_topk_ranked_by_decoder_norm(tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor) -> None:
    config = saelens("topk", k=4, rescale_acts_by_decoder_norm=True)
    write(tmp_path, pick(weights, *TENSORS["topk"]), config)
    norms = weights["W_dec"].norm(dim=1)
    folded = {**weights, "W_enc": weights["W_enc"] * norms, "b_enc": weights["b_enc"] * norms}
    folded["W_dec"] = weights["W_dec"] / norms[:, None]
    assert_equal(load_dictionary(tmp_path, id=ID, d_site=D), vectors, expected("topk", folded, vectors))


@pytest.mark.parametrize("rescale", [True, False])
def test_a_training_checkpoint_with_a_pooled_threshold(
    tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor, rescale: bool
) -> None:
    """Inputs times the scaler's factor, then relu(pre) * norm > threshold, as batch TopK is run after training."""
    tensors = pick(weights, *TENSORS["topk"]) | {"topk_threshold": torch.tensor(1.5, dtype=torch.float64)}
    config = saelens(
        "batchtopk", k=4.5, rescale_acts_by_decoder_norm=rescale, normalize_activations="expected_average_only_in"
    )
    write(tmp_path, tensors, config)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    norms = weights["W_dec"].double().norm(dim=1).numpy() if rescale else np.ones(F)
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    linear = ((vectors.double().numpy() * 0.5 - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    acts = np.where(linear > 1.5, linear, 0)
    rebuilt = ((acts / norms) @ w["W_dec"] + w["b_dec"]) / 0.5
    got = load_dictionary(tmp_path, id=ID, d_site=D)
    # SAELens states such activations in units of the folded decoder, whose norm is 1 in the site's own scale.
    assert_equal(got, vectors, (acts / 0.5 if rescale else acts, rebuilt))


@pytest.mark.parametrize("norm", ["constant_norm_rescale", "layer_norm"])
def test_norms_per_vector(tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor, norm: str) -> None:
    write(tmp_path, pick(weights, *TENSORS["jumprelu"]), saelens("jumprelu", normalize_activations=norm))
    x = vectors.double().numpy()
    mean = x.mean(1, keepdims=True) if norm == "layer_norm" else 0
    scale = x.std(1, ddof=1, keepdims=True) if norm == "layer_norm" else np.linalg.norm(x, axis=1, keepdims=True)
    scale = scale if norm == "layer_norm" else scale / math.sqrt(D)
    normal = (x - mean) / (scale + (1e-5 if norm == "layer_norm" else 0))
    acts, rebuilt = expected("jumprelu", weights, torch.from_numpy(normal))
    assert_equal(load_dictionary(tmp_path, id=ID, d_site=D), vectors, (acts, rebuilt * scale + mean))


def test_a_scale_that_the_file_does_not_hold_is_asked_for_and_folded(
    tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor
) -> None:
    for config in (
        saelens("jumprelu", normalize_activations="expected_average_only_in"),
        saelens("jumprelu", normalize_activations=True),
    ):
        write(tmp_path, pick(weights, *TENSORS["jumprelu"]), config)
        with pytest.raises(NeuronautError, match="--norm-scale"):
            load_dictionary(tmp_path, id=ID, d_site=D)
        acts, rebuilt = expected("jumprelu", weights, vectors * 0.25)
        assert_equal(load_dictionary(tmp_path, id=ID, d_site=D, norm_scale=0.25), vectors, (acts, rebuilt / 0.25))


@pytest.mark.parametrize("kind", TENSORS)
def test_centred_inputs(tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor, kind: str) -> None:
    config = saelens(kind, **({"k": 4} if kind == "topk" else {}))
    config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    write(tmp_path, pick(weights, *TENSORS[kind]), config)
    wanted = expected(kind, weights, vectors - vectors.mean(dim=1, keepdim=True))
    assert_equal(load_dictionary(tmp_path, id=ID, d_site=D), vectors, wanted)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (saelens("transcoder"), "a transcoder, and nothing says which site it writes; wanted hook_name_out"),
        (saelens("crosscoder"), "architecture 'crosscoder'"),
        (saelens("standard", normalize_activations="covariance_whitening"), "covariance_whitening"),
        (saelens("gated"), r"in a gated SAE; wanted W_enc, W_dec, b_dec, b_gate, b_mag, r_mag"),
        (saelens("jumprelu"), "in a jumprelu SAE"),
        (saelens("topk"), "k=0"),
        (saelens("standard", hook_head_index=4), "attention head 4 alone"),
        (saelens("standard", activation_fn="tanh-relu"), "tanh-relu"),
    ],
)
def test_what_saelens_may_say_and_cannot_be_read_is_named(
    tmp_path: Path, weights: dict[str, torch.Tensor], config: dict[str, Any], message: str
) -> None:
    write(tmp_path, pick(weights, *TENSORS["standard"]), config)
    with pytest.raises(NeuronautError, match=message):
        load_dictionary(tmp_path, id=ID, d_site=D)


# ---- Gemma Scope and sparsify ----------------------------------------------------------------


@pytest.mark.parametrize("lower", [True, False])
def test_gemma_scope(tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor, lower: bool) -> None:
    folder = tmp_path / "models--google--gemma-scope-2b-pt-res" / "layer_3" / "width_16k" / "average_l0_41"
    tensors = pick(weights, *TENSORS["jumprelu"])
    tensors = {name.replace("W_", "w_") if lower else name: tensor for name, tensor in tensors.items()}
    write(folder, tensors, None, "params.npz")
    assert declared_site(folder) == "resid_post.3"
    dictionary = load_dictionary(folder / "params.npz", id=ID, d_site=D)
    assert_equal(dictionary, vectors, expected("jumprelu", weights, vectors, subtract=False))


def test_gemma_scope_2(tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor) -> None:
    tensors = {name.replace("W_", "w_"): tensor for name, tensor in pick(weights, *TENSORS["jumprelu"]).items()}
    write(tmp_path, tensors, None, "params.safetensors")
    config = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.3.output"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert declared_site(tmp_path) == "resid_post.3"
    wanted = expected("jumprelu", weights, vectors, subtract=False)
    assert_equal(load_dictionary(tmp_path, id=ID, d_site=D), vectors, wanted)


def test_sparsify(tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor) -> None:
    """Its encoder lies feature by feature, its b_dec is always subtracted, whatever normalize_decoder says."""
    tensors = sparsify(weights)
    folder = write(tmp_path / "layers.3", tensors, {"k": 4, "d_in": D, "normalize_decoder": True}, "sae.safetensors")
    assert declared_site(folder) == "resid_post.3"
    assert_equal(load_dictionary(folder, id=ID, d_site=D), vectors, expected("topk", weights, vectors))


def test_a_square_sparsify_encoder_is_turned_all_the_same(tmp_path: Path, vectors: torch.Tensor) -> None:
    weights = random_weights(width=D)
    folder = write(tmp_path / "layers.3", sparsify(weights), {"k": 4, "d_in": D}, "sae.safetensors")
    assert_equal(load_dictionary(folder, id=ID, d_site=D), vectors, expected("topk", weights, vectors))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"k": 4, "transcode": True}, "nothing says which site it writes"),
        ({"k": 4, "activation": "softmax"}, "softmax"),
        ({"k": 4, "activation": "groupmax"}, "30 features in 4 groups"),
        ({}, "no k"),
    ],
)
def test_a_sparsify_coder_of_another_kind_is_named(
    tmp_path: Path, weights: dict[str, torch.Tensor], config: dict[str, Any], message: str
) -> None:
    write(tmp_path, sparsify(weights), config, "sae.safetensors")
    with pytest.raises(NeuronautError, match=message):
        load_dictionary(tmp_path, id=ID, d_site=D)


def sparsify(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"encoder.weight": weights["W_enc"].T, "encoder.bias": weights["b_enc"], **pick(weights, "W_dec", "b_dec")}


# ---- recognition -----------------------------------------------------------------------------


def test_shape_decides_the_orientation(tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor) -> None:
    turned = {**pick(weights, *TENSORS["standard"]), "W_enc": weights["W_enc"].T, "W_dec": weights["W_dec"].T}
    write(tmp_path, turned, saelens("standard"))
    wanted = expected("standard", weights, vectors)
    assert_equal(load_dictionary(tmp_path, id=ID, d_site=D), vectors, wanted)


def test_a_square_matrix_is_taken_only_where_the_format_says_how_it_lies(tmp_path: Path, vectors: torch.Tensor) -> None:
    weights = random_weights(width=D)
    tensors = pick(weights, *TENSORS["jumprelu"])
    write(tmp_path / "said", tensors, saelens("jumprelu", d_sae=D))
    wanted = expected("jumprelu", weights, vectors)
    assert_equal(load_dictionary(tmp_path / "said", id=ID, d_site=D), vectors, wanted)
    write(tmp_path / "unsaid", tensors, None, "params.npz")
    with pytest.raises(NeuronautError, match="square"):
        load_dictionary(tmp_path / "unsaid", id=ID, d_site=D)


def test_another_width_names_both(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    write(tmp_path, pick(weights, *TENSORS["standard"]), saelens("standard"))
    with pytest.raises(NeuronautError, match=r"12x30.*resid_post\.3 of toy, 768 wide"):
        load_dictionary(tmp_path, id=ID, d_site=768)


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (("W_in", "W_out", "b_in", "b_out"), None),
        (("encoder.weight", "encoder.bias", "decoder.weight", "log_jumprelu_threshold"), {"d_in": D, "d_sae": F}),
        (("weight",), {}),
    ],
)
def test_an_unknown_layout_prints_its_tensors(
    tmp_path: Path, names: tuple[str, ...], config: dict[str, Any] | None
) -> None:
    """Even under SAELens' own file name: names of tensors decide, not names of files."""
    write(tmp_path, {name: torch.ones(3, 2) for name in names}, config)
    with pytest.raises(NeuronautError) as error:
        load_dictionary(tmp_path, id=ID, d_site=D)
    assert all(f"{name} (3, 2)" in str(error.value) for name in names)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor], value: float
) -> None:
    weights["W_dec"][3, 4] = value
    write(tmp_path, pick(weights, *TENSORS["standard"]), saelens("standard"))
    with pytest.raises(NeuronautError, match="W_dec .* NaN or infinite"):
        load_dictionary(tmp_path, id=ID, d_site=D)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 5000), flip=st.integers(0, 300))
def test_a_damaged_file_is_one_line_or_still_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
) -> None:
    folder = write(
        tmp_path_factory.mktemp("damaged"), pick(random_weights(), *TENSORS["standard"]), saelens("standard")
    )
    file = folder / "sae_weights.safetensors"
    content = bytearray(file.read_bytes()[: -cut or None])
    if flip < len(content):
        content[flip] ^= 0x15
    file.write_bytes(content)
    try:
        load_dictionary(folder, id=ID, d_site=D)
    except NeuronautError as error:
        assert "\n" not in str(error)


# ---- files -----------------------------------------------------------------------------------


def test_a_pickle_is_read_only_on_demand_and_never_run(tmp_path: Path, vectors: torch.Tensor) -> None:
    weights = random_weights()
    write(tmp_path / "good", pick(weights, *TENSORS["standard"]), saelens("standard"), "ae.pt")
    with pytest.raises(NeuronautError, match="--allow-pickle"):
        load_dictionary(tmp_path / "good", id=ID, d_site=D)
    dictionary = load_dictionary(tmp_path / "good", id=ID, d_site=D, allow_pickle=True)
    assert_equal(dictionary, vectors, expected("standard", weights, vectors))
    write(tmp_path / "evil", {"W_enc": Runs(tmp_path / "ran")}, saelens("standard"), "ae.pt")  # pyright: ignore[reportArgumentType]
    with pytest.raises(NeuronautError, match="cannot be read"):
        load_dictionary(tmp_path / "evil", id=ID, d_site=D, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


class Runs:
    """What a malicious pickle holds: a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(NeuronautError, match="cannot be read"):
        load_dictionary(tmp_path, id=ID, d_site=D)


def test_a_folder_of_folders_says_where_the_weights_are(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    write(tmp_path / "layers.3", sparsify(weights), {"k": 4}, "sae.safetensors")
    with pytest.raises(NeuronautError, match=r"no weight file .* some in layers\.3"):
        load_dictionary(tmp_path, id=ID, d_site=D)


def test_several_weight_files_are_not_guessed_between(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    write(tmp_path, sparsify(weights), {"k": 4}, "a.safetensors")
    write(tmp_path, sparsify(weights), None, "b.safetensors")
    with pytest.raises(NeuronautError, match=r"a\.safetensors, b\.safetensors"):
        load_dictionary(tmp_path, id=ID, d_site=D)
    write(tmp_path, {"sparsity": torch.zeros(F)}, None, "sparsity.safetensors")
    assert load_dictionary(tmp_path / "a.safetensors", id=ID, d_site=D).k == 4


def test_settings_that_are_not_json_are_one_line(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    write(tmp_path, sparsify(weights), None, "sae.safetensors")
    (tmp_path / "cfg.json").write_text("{k: 4")
    with pytest.raises(NeuronautError, match="not readable JSON"):
        load_dictionary(tmp_path, id=ID, d_site=D)


def test_a_name_that_is_neither_here_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NeuronautError, match="offline"):
        load_dictionary("nobody/nothing/layers.3", id=ID, d_site=D)
    with pytest.raises(NeuronautError, match="does not exist"):
        load_dictionary("nothing", id=ID, d_site=D)


class Hub(ThreadingHTTPServer):
    """A local server that speaks as much of the Hugging Face hub's protocol as a download needs."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root, self.asked = root, set[str]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    """The answers of `Hub`: the list of a repository's files, and each file."""

    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """Send the list, or a file."""
        if self.path.startswith("/api/models/owner/saes"):
            files = [str(file.relative_to(self.server.root)) for file in self.server.root.rglob("*") if file.is_file()]
            self.reply(json.dumps({"id": "owner/saes", "siblings": [{"rfilename": f} for f in files]}).encode())
        elif (file := self.server.root / self.path.removeprefix("/owner/saes/resolve/main/")).is_file():
            self.server.asked.add(str(file.relative_to(self.server.root)))
            self.reply(file.read_bytes())
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def reply(self, body: bytes) -> None:
        """Send the body under the headers that the hub's client wants."""
        self.send_response(200)
        for header, value in {"ETag": f'"{len(body)}"', "X-Repo-Commit": "0" * 40, "Content-Length": len(body)}.items():
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""
        del format, args


@pytest.mark.parametrize("name", ["owner/saes/layers.3", "owner/saes@layers.3", "owner/saes/layers.3/sae.safetensors"])
def test_a_hub_folder_is_fetched_alone_and_then_read_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, torch.Tensor], vectors: torch.Tensor, name: str
) -> None:
    for layer in (3, 4):
        write(tmp_path / "hub" / f"layers.{layer}", sparsify(weights), {"k": 4, "d_in": D}, "sae.safetensors")
    (tmp_path / "hub" / "README.md").write_text("two layers")
    hub = Hub(tmp_path / "hub")
    for constant, value in {"ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{constant}", value)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(NeuronautError, match=r"some in layers\.3, layers\.4"):
        load_dictionary("owner/saes", id=ID, d_site=D)
    with pytest.raises(NeuronautError, match="neither here nor on Hugging Face"):
        load_dictionary("owner/others", id=ID, d_site=D)
    first = load_dictionary(name, id=ID, d_site=D)
    assert_equal(first, vectors, expected("topk", weights, vectors))
    assert hub.asked == {"layers.3/cfg.json", "layers.3/sae.safetensors"}
    hub.shutdown()
    hub.server_close()
    assert load_dictionary(name, id=ID, d_site=D).revision == first.revision


# ---- sites -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.8.hook_resid_pre", "resid_pre.8"),
        ("blocks.8.hook_resid_mid", "resid_mid.8"),
        ("blocks.11.hook_mlp_out", "mlp_out.11"),
        ("blocks.0.hook_attn_out", "attn_out.0"),
        ("blocks.5.attn.hook_z", "head.5"),
        ("blocks.5.mlp.hook_post", "mlp.5"),
        ("hook_embed", "embed"),
        ("blocks.5.mlp.hook_in", "mlp_in.5"),
        ("model.layers.5.mlp.input", "mlp_in.5"),
        ("model.layers.5.pre_feedforward_layernorm.output", "mlp_in.5"),
        ("model.layers.5.self_attn.o_proj.input", "head.5"),
        ("model.layers.5.post_feedforward_layernorm.output", "mlp_out.5"),
    ],
)
def test_the_declared_site(tmp_path: Path, weights: dict[str, torch.Tensor], hook: str, site: str) -> None:
    config = saelens("standard")
    config["metadata"]["hook_name"] = hook
    write(tmp_path, pick(weights, *TENSORS["standard"]), config)
    assert declared_site(tmp_path) == site
    assert load_dictionary(tmp_path, id=SourceId("toy", site, "sae"), d_site=D).id.site == site
    with pytest.raises(NeuronautError, match=rf"trained on {site}, but resid_post\.3"):
        load_dictionary(tmp_path, id=ID, d_site=D)
    if not hook.startswith("model."):
        assert tl_name(site) == hook


@pytest.mark.parametrize("hook", ["blocks.5.ln1.hook_normalized", "blocks.5.hook_q_input", "model.layers.5.attn.input"])
def test_a_point_that_is_no_site_is_named(tmp_path: Path, weights: dict[str, torch.Tensor], hook: str) -> None:
    config = saelens("standard")
    config["metadata"]["hook_name"] = hook
    write(tmp_path, pick(weights, *TENSORS["standard"]), config)
    with pytest.raises(NeuronautError, match=hook):
        load_dictionary(tmp_path, id=ID, d_site=D)


@pytest.mark.parametrize(
    ("folder", "site"),
    [
        ("layers.3", "resid_post.3"),
        ("h.5", "resid_post.5"),
        ("layers.3.mlp", "mlp_out.3"),
        ("layers.3.attention", "attn_out.3"),
        ("h.5.mlp.act", "mlp.5"),
        ("gpt_neox.layers.3", "resid_post.3"),
        ("embed_in", "embed"),
        ("my_sae", None),
        ("gemma-scope-9b-pt-att/layer_7/width_16k/average_l0_40", "head.7"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "embed"),
    ],
)
def test_the_site_that_only_the_folder_names(
    tmp_path: Path, weights: dict[str, torch.Tensor], folder: str, site: str | None
) -> None:
    assert declared_site(write(tmp_path / folder, sparsify(weights), {"k": 4}, "sae.safetensors")) == site


def test_what_leaves_a_block_enters_the_next() -> None:
    assert same_site("resid_post.7", "resid_pre.8")
    assert not same_site("resid_post.8", "resid_pre.8")


# ---- saving ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_what_is_saved_is_what_is_read(
    tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor, kind: str, norm: str
) -> None:
    config = saelens(kind, normalize_activations=norm, **({"k": 4} if kind == "topk" else {}))
    write(tmp_path / "a", pick(weights, *TENSORS[kind]), config)
    first = load_dictionary(tmp_path / "a", id=ID, d_site=D)
    save_dictionary(first, tmp_path / "exact", dtype=torch.float32)
    again = load_dictionary(tmp_path / "exact", id=ID, d_site=D)
    assert again.revision == first.revision
    assert torch.equal(again.encode(vectors), first.encode(vectors))
    save_dictionary(first, tmp_path / "half", metadata={"model_name": "toy"})
    half = load_dictionary(tmp_path / "half", id=ID, d_site=D)
    assert (half.W_dec - first.W_dec).abs().max() < 5e-3
    save_dictionary(half, tmp_path / "half again")
    assert load_dictionary(tmp_path / "half again", id=ID, d_site=D).revision == half.revision
    assert declared_site(tmp_path / "half") == "resid_post.3"
    assert json.loads((tmp_path / "half" / "cfg.json").read_text())["metadata"]["model_name"] == "toy"


def test_weights_too_large_for_half_precision_are_not_lost(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weights["W_enc"] *= 1e5
    write(tmp_path, pick(weights, *TENSORS["standard"]), saelens("standard"))
    dictionary = load_dictionary(tmp_path, id=ID, d_site=D)
    with pytest.raises(NeuronautError, match=r"W_enc .* torch\.float16"):
        save_dictionary(dictionary, tmp_path / "half")


# ---- against SAELens itself, where it is installed -------------------------------------------


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("written_by_us", [False, True])
def test_saelens_itself_agrees(
    tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor, kind: str, norm: str, written_by_us: bool
) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    extra = {"k": 4, "rescale_acts_by_decoder_norm": True} if kind == "topk" else {}
    write(tmp_path, pick(weights, *TENSORS[kind]), saelens(kind, normalize_activations=norm, **extra))
    ours = load_dictionary(tmp_path, id=ID, d_site=D)
    if written_by_us:
        save_dictionary(ours, tmp_path / "ours", dtype=torch.float32)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "ours" if written_by_us else tmp_path))
    with torch.no_grad():
        activations = theirs.encode(vectors)
        rebuilt = theirs.decode(activations)
    torch.testing.assert_close(ours.encode(vectors), activations, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ours.reconstruct(vectors), rebuilt, atol=1e-4, rtol=1e-4)
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_post"


@pytest.mark.parametrize("rescale", [True, False])
def test_saelens_itself_agrees_on_a_norm_scale(
    tmp_path: Path, weights: dict[str, torch.Tensor], vectors: torch.Tensor, rescale: bool
) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    config = saelens(
        "topk", k=4, rescale_acts_by_decoder_norm=rescale, normalize_activations="expected_average_only_in"
    )
    write(tmp_path, pick(weights, *TENSORS["topk"]), config)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    theirs.fold_activation_norm_scaling_factor(0.25)
    ours = load_dictionary(tmp_path, id=ID, d_site=D, norm_scale=0.25)
    with torch.no_grad():
        activations = theirs.encode(vectors)
        rebuilt = theirs.decode(activations)
    torch.testing.assert_close(ours.encode(vectors), activations, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ours.reconstruct(vectors), rebuilt, atol=1e-4, rtol=1e-4)
