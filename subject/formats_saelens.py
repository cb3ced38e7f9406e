"""SAELens' layouts: cfg.json beside sae_weights.safetensors, of every version and of training checkpoints.

`save_dictionary` writes the layout of its version 6, which it and `load_dictionary` read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .dictionary import EXTRAS, NORMS, RANKED, Dictionary, Kind
from .errors import NeuronautError
from .formats_checkpoint import Checkpoint, Format
from .formats_files import Location
from .formats_sites import tl_name
from .pursuit import Pursuit

AVERAGE = ("expected_average_only_in", True)
"""What SAELens writes where all inputs were multiplied by one constant; True until its version 6."""
_FIRST_OF_LAYOUT = "6.0.0"
"""The SAELens version whose configuration layout `save_dictionary` writes."""
_ARCHITECTURES: Mapping[str, Kind] = {
    **{kind: kind for kind in EXTRAS if kind not in ("groupmax", "matching_pursuit")},
    # Trained with k per vector on average; a threshold stands in for the ranking at inference.
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
}
_SKIP = "skip_transcoder"
_PURSUIT = "matching_pursuit"


def _is_saelens(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    sized = "d_in" in location.config and "d_sae" in location.config
    flat = {"W_enc", "W_dec", "b_dec"} <= tensors.keys() and tensors["W_enc"].ndim == tensors["W_dec"].ndim == 2
    return sized and flat and location.config.get("architecture") not in ("temporal", _PURSUIT)


def _is_pursuit(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    return location.config.get("architecture") == _PURSUIT and {"W_dec", "b_dec"} <= tensors.keys()


def _convert(checkpoint: Checkpoint) -> Dictionary:
    config, tensors = checkpoint.config, dict(checkpoint.tensors)
    kind, k = _read_kind(checkpoint)
    transcodes = str(config.get("architecture")).endswith("transcoder")
    if transcodes:
        checkpoint.require_target("hook_name_out")
    W_enc = checkpoint.encoder("W_enc", fixed=True)
    width = W_enc.shape[1]
    W_dec = checkpoint.decoder("W_dec", width, fixed=True)
    checkpoint.check_size(d_in=W_enc.shape[0], d_sae=width)
    if transcodes:
        checkpoint.check_size(d_out=W_dec.shape[1])
    if (factor := tensors.pop("scaling_factor", None)) is not None:
        W_dec = W_dec * factor[:, None]
    if kind == "jumprelu" and "topk_threshold" in tensors:
        tensors["threshold"] = _expand_threshold(tensors.pop("topk_threshold"), W_dec, config)
    bias = "b_gate" if kind == "gated" else "b_enc"
    skip = ("W_skip",) if config.get("architecture") == _SKIP else ()
    wanted = ("W_enc", "W_dec", "b_dec", bias, *EXTRAS[kind], *skip)
    if set(tensors) != set(wanted):
        raise checkpoint.refusal(f"{', '.join(sorted(tensors))} in a {kind} SAE", ", ".join(wanted))
    return checkpoint.build(
        kind,
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=tensors[bias],
        b_dec=tensors["b_dec"],
        subtract_b_dec=bool(config.get("apply_b_dec_to_input", not transcodes)),
        norm=read_norm(checkpoint),
        k=k,
        **{name: tensors[name] for name in EXTRAS[kind]},
        **{name: tensors[name].T.contiguous() for name in skip},
    )


def read_norm(checkpoint: Checkpoint) -> str:
    """What is done to single vectors, by its name in NORMS. Raises NeuronautError for what a source cannot do."""
    config = checkpoint.config
    norm = config.get("normalize_activations") or "none"
    norm = "none" if norm in AVERAGE else norm
    if norm not in NORMS:
        raise checkpoint.refusal(f"normalize_activations {norm!r}", ", ".join(NORMS))
    if (head := config.get("hook_head_index", config.get("hook_point_head_index"))) is not None:
        raise checkpoint.refusal(f"attention head {head} alone", "all heads of a layer")
    return norm


def _read_kind(checkpoint: Checkpoint) -> tuple[Kind, int]:
    """The kind and its k. Before version 6 a TopK SAE was a standard one with another activation function."""
    config = checkpoint.config
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    architecture = config.get("architecture") or "standard"
    if architecture == "standard" and function in ("topk", "relu"):
        architecture = "topk" if function == "topk" else "standard"
    if architecture not in _ARCHITECTURES:
        raise checkpoint.refusal(f"architecture {architecture!r}", ", ".join(_ARCHITECTURES))
    kind = _ARCHITECTURES[architecture]
    if kind not in RANKED and function != "relu":
        raise checkpoint.refusal(f"activation function {function!r} in a {kind} SAE", "relu")
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k") or 0
    if kind in RANKED and k != int(k):
        raise checkpoint.refusal(f"k {k}", f"a whole number in a {kind} SAE")
    return kind, int(k) if kind in RANKED else 0


def _expand_threshold(threshold: Tensor, W_dec: Tensor, config: Mapping[str, Any]) -> Tensor:
    """One threshold for all features of a training checkpoint, in the units of `linear`."""
    each = threshold.expand(W_dec.shape[0])
    return each / W_dec.norm(dim=1) if config.get("rescale_acts_by_decoder_norm") else each.contiguous()


def _convert_pursuit(checkpoint: Checkpoint) -> Dictionary:
    """A tied pair of matrices, of which the file holds one; b_dec is put back only where it was taken off."""
    config, tensors = checkpoint.config, checkpoint.tensors
    if set(tensors) != {"W_dec", "b_dec"}:
        raise checkpoint.refusal(f"{', '.join(sorted(tensors))} in a matching pursuit SAE", "W_dec, b_dec")
    # Without subtraction SAELens leaves b_dec out of the reconstruction, too.
    subtract = bool(config.get("apply_b_dec_to_input", True))
    W_dec = checkpoint.encoder("W_dec", side=1, fixed=True).T.contiguous()
    width, d_in = W_dec.shape
    checkpoint.check_size(d_in=d_in, d_sae=width)
    return checkpoint.build(
        _PURSUIT,
        W_enc=W_dec.T,
        W_dec=W_dec,
        b_enc=torch.zeros(width),
        b_dec=tensors["b_dec"] if subtract else torch.zeros(d_in),
        subtract_b_dec=subtract,
        norm=read_norm(checkpoint),
        pursuit=Pursuit(
            steps=config.get("max_iterations") or d_in,
            tolerance=config.get("residual_threshold", 1e-2),
            stop_at_repeat=config.get("stop_on_duplicate_support", True),
        ),
    )


SAELENS = Format("SAELens", "W_enc, W_dec and b_dec beside a cfg.json with d_in and d_sae", _is_saelens, _convert)
PURSUIT = Format(
    "SAELens matching pursuit", "architecture matching_pursuit, W_dec and b_dec", _is_pursuit, _convert_pursuit
)


def save_dictionary(
    dictionary: Dictionary,
    folder: str | Path,
    *,
    metadata: Mapping[str, object] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write cfg.json and sae_weights.safetensors as SAELens >= 6 does, which it and `load_dictionary` read.

    `metadata` joins SAELens' own keys, for example model_name or dataset_path. Raises NeuronautError for what
    SAELens has no architecture for, and where a tensor does not fit `dtype`.
    """
    names = {"b_enc": "b_gate"} if dictionary.kind == "gated" else {}
    tensors = {
        names.get(name, name): (tensor.T if name == "W_skip" else tensor).to("cpu", dtype).contiguous()
        for name, tensor in dictionary.tensors().items()
        if dictionary.pursuit is None or name not in ("W_enc", "b_enc")
    }
    if overflown := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise NeuronautError(f"{', '.join(overflown)} of {dictionary.id} does not fit {dtype}; save it as float32")
    ranked = {"k": dictionary.k, "rescale_acts_by_decoder_norm": False} if dictionary.kind in RANKED else {}
    if (ends := dictionary.pursuit) is not None:
        ranked = {
            "max_iterations": ends.steps,
            "residual_threshold": ends.tolerance,
            "stop_on_duplicate_support": ends.stop_at_repeat,
        }
    written = {"hook_name_out": tl_name(dictionary.targets[0])} if dictionary.targets else {}
    config = {
        "architecture": _name_architecture(dictionary),
        "d_in": dictionary.d_site,
        "d_sae": dictionary.width,
        "dtype": "float32",
        "apply_b_dec_to_input": dictionary.subtract_b_dec,
        "normalize_activations": dictionary.norm,
        "reshape_activations": "hook_z" if dictionary.id.site.startswith("head.") else "none",
        **ranked,
        **({"d_out": dictionary.d_out} if dictionary.targets else {}),
        "metadata": {
            "sae_lens_version": _FIRST_OF_LAYOUT,
            "hook_name": tl_name(dictionary.id.site),
            **written,
            **(metadata or {}),
        },
    }
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, target / "sae_weights.safetensors")


def _name_architecture(dictionary: Dictionary) -> str:
    name = dictionary.kind
    if dictionary.temporal is not None:
        raise NeuronautError(f"{dictionary.id} is temporal; its attention is not saved, so keep its own files")
    if len(dictionary.writes) > 1:
        raise NeuronautError(f"SAELens has no dictionary of several sites to save {dictionary.id} as")
    if dictionary.targets:
        plain = "skip_transcoder" if dictionary.W_skip is not None else "transcoder"
        name = plain if dictionary.kind == "standard" else f"{dictionary.kind}_{plain}"
    if name not in {*_ARCHITECTURES, _PURSUIT}:
        raise NeuronautError(f"SAELens has no {name.replace('_', ' ')} to save {dictionary.id} as")
    return name
