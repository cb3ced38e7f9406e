"""Temporal dictionaries (temporal.py): SAELens' own layout, and the release that it reads.

Both hold the same numbers. SAELens writes W_dec, b_dec, W_enc where it is not W_dec turned, and its settings in a
cfg.json; the release (canrager/temporalSAEs) has them as D, b and E beside a conf.yaml of groups, in a folder of
`layer_N`. The encoder is divided by 4 * d_in, which no file holds (SAELens' TemporalSAE, `lam`).
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .dictionary import Dictionary
from .formats_checkpoint import Checkpoint, Format
from .formats_files import Location
from .formats_folds import fold_scale
from .formats_saelens import read_norm
from .temporal import PROJECTIONS, Temporal

_ATTENTION = "attn_layers."
_EPSILON = 1e-6
"""SAELens' TemporalSAE, `eps`."""
_NAMES = {"D": "W_dec", "E": "W_enc", "b": "b_dec"}
_RENAMED = {"scaling_factor": "activation_normalization_factor"}
"""Settings of the release by SAELens' names, where these differ."""
_RESCALED = "constant_scalar_rescale"


def _is_temporal(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    attends = any(name.startswith(_ATTENTION) for name in tensors)
    return location.config.get("architecture") == "temporal" or (attends and {"D", "b"} <= tensors.keys())


def _convert(checkpoint: Checkpoint) -> Dictionary:
    settings = _read_settings(checkpoint.config)
    tensors = {_NAMES.get(name, name): tensor for name, tensor in checkpoint.tensors.items()}
    checkpoint = checkpoint._replace(tensors=tensors)
    tied = bool(settings.get("tied_weights", True))
    wanted = {"W_dec", "b_dec"} if tied else {"W_dec", "b_dec", "W_enc"}
    held = {name for name in tensors if not name.startswith(_ATTENTION)}
    if held != wanted or len(held) == len(tensors):
        content = f"{', '.join(sorted(held))}{' alone' if len(held) == len(tensors) else ''} in a temporal SAE"
        raise checkpoint.refusal(content, f"{', '.join(sorted(wanted))} and {_ATTENTION}N (tied_weights {tied})")
    W_dec = checkpoint.encoder("W_dec", side=1, fixed=True).T.contiguous()
    width, d_in = W_dec.shape
    checkpoint.check_size(settings, d_in=d_in, d_sae=width)
    W_enc = W_dec.T if tied else checkpoint.encoder("W_enc", fixed=True)
    subtract = bool(settings.get("apply_b_dec_to_input", True))
    kind = settings.get("sae_diff_type", "topk")
    if kind not in ("topk", "relu"):
        raise checkpoint.refusal(f"sae_diff_type {kind!r}", "topk or relu")
    k = (settings.get("kval_topk") or 0) if kind == "topk" else 0
    rescaled = settings.get("normalize_activations") == _RESCALED
    dictionary = checkpoint.build(
        "topk" if k else "standard",
        W_enc=W_enc / (4 * d_in),
        W_dec=W_dec,
        b_enc=torch.zeros(width),
        # SAELens puts it back where it took it off, and in any case where there is an encoder of its own.
        b_dec=tensors["b_dec"] if subtract or not tied else torch.zeros(d_in),
        subtract_b_dec=subtract,
        norm="none" if rescaled else read_norm(checkpoint),
        k=k,
        temporal=_read_attention(checkpoint, settings, width),
    )
    return fold_scale(dictionary, settings.get("activation_normalization_factor") or 1.0) if rescaled else dictionary


def _read_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings by SAELens' names."""
    if not isinstance(release := config.get("sae"), Mapping):
        return config
    named = {_RENAMED.get(str(name), str(name)): value for name, value in release.items()}
    return {**named, "d_in": (config.get("llm") or {}).get("dimin"), "normalize_activations": _RESCALED}


def _read_attention(checkpoint: Checkpoint, settings: Mapping[str, Any], width: int) -> Temporal:
    held = {name.removeprefix(_ATTENTION): own for name, own in checkpoint.tensors.items() if _ATTENTION in name}
    layers = 1 + max((int(name.split(".")[0]) for name in held if re.match(r"\d+\.", name)), default=0)
    checkpoint.check_size(settings, n_attn_layers=layers)
    heads, narrow = settings.get("n_heads") or 8, width // (settings.get("bottleneck_factor") or 64)
    shapes = {
        f"{layer}.{name}.{part}": (size, width) if part == "weight" else (size,)
        for layer in range(layers)
        for name, size in zip(PROJECTIONS, (narrow, narrow, width, width), strict=True)
        for part in ("weight", "bias")
    }
    found = {name: tuple(tensor.shape) for name, tensor in held.items()}
    if found != shapes or narrow % heads or width % heads:
        wrong = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        named = ", ".join(f"{_ATTENTION}{name} {found.get(name, 'missing')}" for name in wrong[:3])
        raise checkpoint.refusal(
            named or f"attention {narrow} and {width} wide",
            f"{layers} layers of {', '.join(PROJECTIONS)} for {width} features, {heads} heads (n_heads) and keys of "
            f"{narrow} (d_sae / bottleneck_factor)",
        )
    return Temporal(held, layers, heads, _EPSILON)


TEMPORAL = Format("SAELens temporal", "architecture temporal, or D and b, beside attn_layers.N", _is_temporal, _convert)
