"""The layouts that training libraries write: sparsify, dictionary_learning, OpenAI's, and bare linear layers.

Their encoders are linear layers, (F, d_site); where they take a bias off first is a matter of each class. A threshold
of dictionary_learning that is below 0 or not finite was never set, and is not used.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .dictionary import Dictionary, Kind
from .errors import NeuronautError
from .formats_checkpoint import Checkpoint, Format
from .formats_files import PICKLES, Location

# sparsify


def _is_sparsify(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    del location
    return {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} <= tensors.keys()


def _convert_sparsify(checkpoint: Checkpoint) -> Dictionary:
    config, tensors = checkpoint.config, checkpoint.tensors
    # Until sparsify 1.0 a flag; multi_topk is of training only.
    activation = "signed" if config.get("signed") else config.get("activation", "topk")
    kinds: Mapping[str, Kind] = {"topk": "topk", "groupmax": "groupmax", "signed": "abstopk"}
    if activation not in kinds:
        raise checkpoint.refusal(f"activation {activation!r}", ", ".join(kinds))
    if "k" not in config:
        raise checkpoint.refusal("no k", "a cfg.json with k beside the weights")
    transcodes = bool(config.get("transcode"))
    if transcodes:
        checkpoint.require_target("a folder that is named after the module, such as layers.3.mlp")
    W_enc = checkpoint.encoder("encoder.weight", side=1, fixed=True)
    checkpoint.check_size(d_in=W_enc.shape[0], num_latents=W_enc.shape[1])
    skip = tensors.get("W_skip")
    if skip is not None and not transcodes:
        raise checkpoint.refusal("W_skip in an SAE", "transcode true in cfg.json beside it")
    return checkpoint.build(
        kinds[activation],
        W_enc=W_enc,
        W_dec=checkpoint.decoder("W_dec", W_enc.shape[1], fixed=True),
        b_enc=tensors["encoder.bias"],
        b_dec=tensors["b_dec"],
        subtract_b_dec=not transcodes,
        k=int(config["k"]),
        W_skip=None if skip is None else skip.T.contiguous(),
    )


# dictionary_learning

_LAYERS = {"encoder.weight", "encoder.bias", "decoder.weight"}


def _trainer(checkpoint: Checkpoint | Location) -> Mapping[str, Any]:
    return checkpoint.config.get("trainer") or {}


def _is_dictionary_learning(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    if "encoder.weight" in tensors and tensors["encoder.weight"].ndim != 2:
        return False
    if "dict_class" in _trainer(location):
        return True
    if location.config:
        return False
    if tensors.keys() == _CONVERT["JumpReluAutoEncoder"][0]:
        # Gemma Scope's npz has the same names and the same encoder; SAELens' safetensors may take b_dec off first.
        return location.weights.name == "ae.pt"
    bare = tensors.keys() >= _LAYERS and bool(tensors.keys() & {"bias", "b_dec"})
    return bare or {"gate_bias", "r_mag"} <= tensors.keys() or "group_sizes" in tensors


def _convert_dictionary_learning(checkpoint: Checkpoint) -> Dictionary:
    name = _trainer(checkpoint).get("dict_class") or _guess_class(checkpoint)
    if name not in _CONVERT:
        raise checkpoint.refusal(f"dict_class {name!r}", ", ".join(_CONVERT))
    wanted, convert = _CONVERT[name]
    names = set(checkpoint.tensors)
    if missing := wanted - names:
        raise checkpoint.refusal(
            f"{', '.join(sorted(names))} in a {name}, without {', '.join(sorted(missing))}", ", ".join(sorted(wanted))
        )
    scaled = _take_factor_out(checkpoint)
    dictionary = convert(scaled)
    table = _trainer(checkpoint)
    checkpoint.check_size(table, activation_dim=dictionary.d_site, dict_size=dictionary.width)
    return dictionary


def _guess_class(checkpoint: Checkpoint) -> str:
    """The class of a file without configuration, where its tensors tell."""
    names = set(checkpoint.tensors)
    if "group_sizes" in names:
        return "MatryoshkaBatchTopKSAE"
    if {"gate_bias", "r_mag"} <= names:
        return "GatedAutoEncoder"
    if "threshold" in names and "W_enc" in names:
        return "JumpReluAutoEncoder"
    if "b_dec" not in names:
        return "AutoEncoder"
    raise NeuronautError(
        f"{checkpoint.location.weights} has no config.json beside it, and AutoEncoderTopK and BatchTopKSAE have the "
        'same tensors; fetch it, or write one: {"trainer": {"dict_class": "BatchTopKSAE", "k": 64}} (or '
        "AutoEncoderTopK, which keeps k of every vector)"
    )


_BIASES = ("bias", "b_dec", "b_enc", "encoder.bias", "decoder.bias", "decoder_bias", "gate_bias", "mag_bias")


def _take_factor_out(checkpoint: Checkpoint) -> Checkpoint:
    """A backup's weights as the library saves them at the end of training: for the vectors as they are."""
    factor = checkpoint.settings.get("norm_factor")
    if not isinstance(factor, float) or factor == 1:
        return checkpoint
    scaled = {name: tensor * factor for name, tensor in checkpoint.tensors.items() if name in _BIASES}
    if _is_set(threshold := checkpoint.tensors.get("threshold")):
        assert threshold is not None, "it is set"
        scaled["threshold"] = threshold * factor
    return checkpoint._replace(tensors={**checkpoint.tensors, **scaled})


def _is_set(threshold: Tensor | None) -> bool:
    return threshold is not None and bool(((threshold >= 0) & threshold.isfinite()).all())


def _convert_layers(checkpoint: Checkpoint, kind: Kind, bias: str, **more: Any) -> Dictionary:
    """Linear layers `encoder` and `decoder`, and the vector that is taken off before and put back behind."""
    tensors = checkpoint.tensors
    W_enc = checkpoint.encoder("encoder.weight", side=1, fixed=True)
    b_enc = more.pop("b_enc", None)
    return checkpoint.build(
        kind,
        W_enc=W_enc,
        W_dec=checkpoint.decoder("decoder.weight", W_enc.shape[1], side=1, fixed=True),
        b_enc=tensors["encoder.bias"] if b_enc is None else b_enc,
        b_dec=tensors[bias],
        **more,
    )


def _convert_topk(checkpoint: Checkpoint) -> Dictionary:
    return _convert_layers(checkpoint, "topk", "b_dec", subtract_b_dec=True, k=_read_k(checkpoint))


def _read_k(checkpoint: Checkpoint) -> int:
    held = checkpoint.tensors.get("k", checkpoint.settings.get("k"))
    k = float(held) if isinstance(held, int | float | Tensor) else _trainer(checkpoint).get("k")
    if k is None or k != int(k):
        raise checkpoint.refusal("no whole k" if k is None else f"k {k}", "one in config.json")
    return int(k)


def _convert_batch_topk(checkpoint: Checkpoint) -> Dictionary:
    width = checkpoint.tensors["encoder.bias"].numel()
    return _convert_layers(
        checkpoint, "jumprelu", "b_dec", subtract_b_dec=True, threshold=_expand_threshold(checkpoint, width)
    )


def _expand_threshold(checkpoint: Checkpoint, width: int) -> Tensor:
    threshold = checkpoint.tensors["threshold"]
    if not _is_set(threshold):
        raise NeuronautError(
            f"{checkpoint.location.weights} holds threshold {float(threshold):g}, which is none: training ended before "
            "one was set, and every positive feature would fire; write a measured one into the file, or set dict_class "
            "to AutoEncoderTopK in config.json to keep k of every vector (linear layers only)"
        )
    return threshold.expand(width).contiguous()


def _convert_matryoshka(checkpoint: Checkpoint) -> Dictionary:
    width = checkpoint.tensors["b_enc"].numel()
    return _convert_matrices(checkpoint, subtract=True, threshold=_expand_threshold(checkpoint, width))


def _convert_jumprelu(checkpoint: Checkpoint) -> Dictionary:
    return _convert_matrices(checkpoint, subtract=False, threshold=checkpoint.tensors["threshold"])


def _convert_matrices(checkpoint: Checkpoint, *, subtract: bool, threshold: Tensor) -> Dictionary:
    tensors = checkpoint.tensors
    W_enc = checkpoint.encoder("W_enc", fixed=True)
    return checkpoint.build(
        "jumprelu",
        W_enc=W_enc,
        W_dec=checkpoint.decoder("W_dec", W_enc.shape[1], fixed=True),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        subtract_b_dec=subtract,
        threshold=threshold,
    )


def _convert_gated(checkpoint: Checkpoint) -> Dictionary:
    tensors = checkpoint.tensors
    return _convert_layers(
        checkpoint,
        "gated",
        "decoder_bias",
        subtract_b_dec=True,
        b_enc=tensors["gate_bias"],
        b_mag=tensors["mag_bias"],
        r_mag=tensors["r_mag"],
    )


_CONVERT: Mapping[str, tuple[set[str], Callable[[Checkpoint], Dictionary]]] = {
    "AutoEncoder": ({*_LAYERS, "bias"}, lambda file: _convert_layers(file, "standard", "bias", subtract_b_dec=True)),
    "AutoEncoderNew": ({*_LAYERS, "decoder.bias"}, lambda file: _convert_layers(file, "standard", "decoder.bias")),
    "GatedAutoEncoder": (
        {"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"},
        _convert_gated,
    ),
    "AutoEncoderTopK": ({*_LAYERS, "b_dec"}, _convert_topk),
    "BatchTopKSAE": ({*_LAYERS, "b_dec", "threshold"}, _convert_batch_topk),
    "MatryoshkaBatchTopKSAE": ({"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}, _convert_matryoshka),
    "JumpReluAutoEncoder": ({"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}, _convert_jumprelu),
}
"""By class, the tensors that it needs, and what reads it."""

# OpenAI's


def _is_openai(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    del location
    return {"pre_bias", "latent_bias", "encoder.weight", "decoder.weight"} <= tensors.keys()


def _convert_openai(checkpoint: Checkpoint) -> Dictionary:
    tensors, settings = checkpoint.tensors, checkpoint.settings
    # A file without a word on it is a ReLU autoencoder, for its library too.
    activation = settings.get("activation", "ReLU")
    state = settings.get("activation_state_dict") or {}
    k = state.get("k", 0) if isinstance(state, dict) else 0
    after = state.get("postact_fn", "ReLU") if isinstance(state, dict) else "ReLU"
    if activation not in ("ReLU", "TopK") or after != "ReLU" or not isinstance(k, int):
        raise checkpoint.refusal(f"activation {activation} followed by {after}", "ReLU, or TopK followed by ReLU")
    ranked = activation == "TopK"
    return _convert_layers(
        checkpoint,
        "topk" if ranked else "standard",
        "pre_bias",
        subtract_b_dec=True,
        b_enc=tensors["latent_bias"],
        k=k if ranked else 0,
        norm="layer_norm" if ranked else "none",
    )


# Bare linear layers


def _is_linear(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    linear = {name.replace("_linear", "") for name in tensors} == {*_LAYERS, "decoder.bias"}
    linear = linear and all(tensor.ndim < 3 for tensor in tensors.values())
    # Llama Scope's safetensors have the same names, and their meaning in hyperparams.json.
    return linear and (
        "encoder_linear.weight" in tensors or (location.weights.suffix in PICKLES and not location.config)
    )


def _convert_linear(checkpoint: Checkpoint) -> Dictionary:
    renamed = {name.replace("_linear", ""): tensor for name, tensor in checkpoint.tensors.items()}
    return _convert_layers(checkpoint._replace(tensors=renamed), "standard", "decoder.bias")


LIBRARIES = (
    Format("sparsify", "encoder.weight, encoder.bias, W_dec and b_dec", _is_sparsify, _convert_sparsify),
    Format(
        "dictionary_learning",
        "dict_class in config.json, or encoder.*, decoder.weight and bias, gate_bias or group_sizes",
        _is_dictionary_learning,
        _convert_dictionary_learning,
    ),
    Format("OpenAI", "pre_bias, latent_bias, encoder.weight and decoder.weight", _is_openai, _convert_openai),
    Format(
        "linear layers",
        "encoder_linear.* and decoder_linear.*, or a pickle of encoder.* and decoder.*",
        _is_linear,
        _convert_linear,
    ),
)
