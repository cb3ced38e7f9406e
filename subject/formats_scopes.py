"""The layouts of released suites: Gemma Scope 1 and 2, Llama Scope, its R1 variant, Qwen Scope, transcoders a layer.

None of their encoders takes b_dec off first. Llama Scope divides its biases by the scale of its training vectors and
compares its threshold in units of decoders of norm 1, so that its activations are of the vectors as they are.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from .dictionary import Dictionary
from .errors import NeuronautError
from .formats_checkpoint import Checkpoint, Format
from .formats_files import Location
from .formats_folds import fold_decoder_norms, fold_scale

_JUMP = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
_PLAIN = {"W_enc", "W_dec", "b_enc", "b_dec"}
_AFFINE = "affine_skip_connection"
_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
_WIDTH_AND_K = re.compile(r"SAE-Res-[^/]+-L0_(?P<k>\d+)")
_THRESHOLD = "activation_function.threshold"


def _is_gemma_scope(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    # SAELens' JumpReLU has the same names and may take b_dec off first: without a configuration the file tells which.
    return tensors.keys() == _JUMP and not location.config and location.weights.suffix == ".npz"


def _convert_gemma_scope(checkpoint: Checkpoint) -> Dictionary:
    dictionary = _convert_jumprelu(checkpoint, checkpoint.tensors)
    # Trained on embeddings as they are stored; the model multiplies them by the root of their width.
    embeddings = checkpoint.id.site == "embed"
    return fold_scale(dictionary, 1 / math.sqrt(dictionary.d_site)) if embeddings else dictionary


def _is_gemma_scope_2(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    del location
    one = all(tensors[name].ndim == 2 for name in ("w_enc", "w_dec") if name in tensors)
    return one and tensors.keys() - {_AFFINE} == {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}


def _convert_gemma_scope_2(checkpoint: Checkpoint) -> Dictionary:
    config, tensors = checkpoint.config, checkpoint.tensors
    if checkpoint.place.site is None:
        raise NeuronautError(
            f"{checkpoint.location.weights} has no config.json beside it, so that whether it rebuilds what it reads or "
            "is a transcoder is not known; fetch it, or write one with hf_hook_point_in and hf_hook_point_out, such as "
            '"model.layers.5.output"'
        )
    if config.get("type") == "transcoder":
        checkpoint.require_target("hf_hook_point_out")
    checkpoint.check_size(width=tensors["b_enc"].numel())
    capitalised = {name.replace("w_", "W_"): tensor for name, tensor in tensors.items()}
    return _convert_jumprelu(checkpoint._replace(tensors=capitalised), capitalised)


def _convert_jumprelu(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Dictionary:
    W_enc = checkpoint.encoder("W_enc", fixed=False)
    skip = tensors.get(_AFFINE)
    return checkpoint.build(
        "jumprelu",
        W_enc=W_enc,
        W_dec=checkpoint.decoder("W_dec", W_enc.shape[1], fixed=False),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"],
        W_skip=skip,
    )


def _is_llama_scope(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    return tensors.keys() == _LINEAR and "act_fn" in location.config and "norm_activation" in location.config


def _convert_llama_scope(checkpoint: Checkpoint) -> Dictionary:
    config, tensors = checkpoint.config, checkpoint.tensors
    if config.get("use_glu_encoder"):
        raise checkpoint.refusal("an encoder with a gated linear unit", "a linear one")
    if (kind := {"jumprelu": "jumprelu", "relu": "standard", "topk": "topk"}.get(config["act_fn"])) is None:
        raise checkpoint.refusal(f"act_fn {config['act_fn']!r}", "jumprelu, relu or topk")
    W_enc = checkpoint.encoder("encoder.weight", side=1, fixed=True)
    width = W_enc.shape[1]
    checkpoint.check_size(d_model=W_enc.shape[0], d_sae=width)
    W_dec = checkpoint.decoder("decoder.weight", width, side=1, fixed=True)
    read, written = _llama_scales(checkpoint, W_enc.shape[0], W_dec.shape[1])
    linear = checkpoint.build(
        "standard",
        W_enc=W_enc,
        W_dec=W_dec * (read / written),
        b_enc=tensors["encoder.bias"] / read,
        b_dec=tensors["decoder.bias"] / written,
        subtract_b_dec=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
    )
    if config.get("sparsity_include_decoder_norm", True):
        linear = fold_decoder_norms(linear)
    if kind == "jumprelu":
        if config.get("jump_relu_threshold") is None:
            raise checkpoint.refusal("no jump_relu_threshold", "one in hyperparams.json")
        threshold = linear.b_enc.new_full((width,), config["jump_relu_threshold"])
        return replace(linear, kind="jumprelu", threshold=threshold)
    return linear if kind == "standard" else replace(linear, kind="topk", k=int(config.get("top_k") or 0))


def _llama_scales(checkpoint: Checkpoint, d_in: int, d_out: int) -> tuple[float, float]:
    """What the vectors that it reads, and those that it writes, were multiplied by in training."""
    config = checkpoint.config
    if config["norm_activation"] == "inference":
        return 1.0, 1.0
    norms = config.get("dataset_average_activation_norm") or {}
    if config["norm_activation"] != "dataset-wise" or not {"in", "out"} <= set(norms):
        raise checkpoint.refusal(
            f"norm_activation {config['norm_activation']!r}", "dataset-wise with dataset_average_activation_norm"
        )
    return math.sqrt(d_in) / norms["in"], math.sqrt(d_out) / norms["out"]


def _is_llama_scope_r1(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    del location
    return tensors.keys() == {*_LINEAR, "log_jumprelu_threshold"}


def _convert_llama_scope_r1(checkpoint: Checkpoint) -> Dictionary:
    tensors = checkpoint.tensors
    W_enc = checkpoint.encoder("encoder.weight", side=1, fixed=True)
    checkpoint.check_size(d_model=W_enc.shape[0])
    return checkpoint.build(
        "jumprelu",
        W_enc=W_enc,
        W_dec=checkpoint.decoder("decoder.weight", W_enc.shape[1], side=1, fixed=True),
        b_enc=tensors["encoder.bias"],
        b_dec=tensors["decoder.bias"],
        threshold=tensors["log_jumprelu_threshold"].exp(),
    )


def _is_qwen_scope(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    named = _WIDTH_AND_K.search(str(location.weights.resolve()))
    return tensors.keys() == _PLAIN and tensors["W_enc"].ndim == 2 and not location.config and named is not None


def _convert_qwen_scope(checkpoint: Checkpoint) -> Dictionary:
    named = _WIDTH_AND_K.search(str(checkpoint.location.weights.resolve()))
    assert named is not None, "it was recognised by that"
    W_enc = checkpoint.encoder("W_enc", side=1, fixed=True)
    return checkpoint.build(
        "topk",
        W_enc=W_enc,
        W_dec=checkpoint.decoder("W_dec", W_enc.shape[1], side=1, fixed=True),
        b_enc=checkpoint.tensors["b_enc"],
        b_dec=checkpoint.tensors["b_dec"],
        k=int(named["k"]),
    )


def _is_layer_transcoder(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    plain = tensors.keys() - {"W_skip", _THRESHOLD} == _PLAIN and tensors["W_dec"].ndim == 2
    return plain and "feature_input_hook" in location.config


def _convert_layer_transcoder(checkpoint: Checkpoint) -> Dictionary:
    tensors = checkpoint.tensors
    checkpoint.require_target("feature_output_hook")
    W_enc = checkpoint.encoder("W_enc", side=1, fixed=True)
    threshold = tensors.get(_THRESHOLD)
    skip = tensors.get("W_skip")
    return checkpoint.build(
        "standard" if threshold is None else "jumprelu",
        W_enc=W_enc,
        W_dec=checkpoint.decoder("W_dec", W_enc.shape[1], fixed=False),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        threshold=threshold,
        W_skip=None if skip is None else skip.T.contiguous(),
    )


SCOPES = (
    Format("Gemma Scope", "W_enc, W_dec, b_enc, b_dec and threshold in an npz", _is_gemma_scope, _convert_gemma_scope),
    Format("Gemma Scope 2", "w_enc, w_dec, b_enc, b_dec and threshold", _is_gemma_scope_2, _convert_gemma_scope_2),
    Format(
        "Llama Scope", "encoder.* and decoder.* with hyperparams.json above them", _is_llama_scope, _convert_llama_scope
    ),
    Format(
        "Llama Scope R1",
        "encoder.*, decoder.* and log_jumprelu_threshold",
        _is_llama_scope_r1,
        _convert_llama_scope_r1,
        scaled=True,
    ),
    Format(
        "Qwen Scope",
        "W_enc, W_dec, b_enc and b_dec in a folder named SAE-Res-...-L0_K",
        _is_qwen_scope,
        _convert_qwen_scope,
    ),
    Format(
        "a transcoder of one layer",
        "W_enc, W_dec, b_enc and b_dec beside a config.yaml with feature_input_hook",
        _is_layer_transcoder,
        _convert_layer_transcoder,
    ),
)
