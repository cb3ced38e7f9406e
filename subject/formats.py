"""Published dictionaries read into the canonical form of `dictionary.py`.

A format is recognised by the names of its tensors (by the name of its file only where two formats have the same, and
no configuration tells them apart), and converted by its row of `FORMATS`; a further format is a further row. Names do
not tell which way round a matrix lies: its shape does, against the width of the subject's site. Where both sides are
equal, only a format whose own configuration fixes the orientation is taken. Whatever cannot be represented raises an
error that names it: an unknown architecture, a transcoder, a site that differs from the declared one.

What a file asks to be done around its weights (a scale, centring, decoder norms) is folded into them once. Each fold
keeps the reconstruction of the site's vectors, and all but `_fold_decoder_norms` keep the activations as well.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from .address import SourceId, split_random
from .dictionary import EXTRAS, NORMS, Dictionary, Kind
from .errors import NeuronautError
from .formats_files import Location, locate, read_tensors
from .formats_sites import named_site, read_prepend_bos, same_site, tl_name
from .randomize import randomize_dictionary

_AVERAGE = ("expected_average_only_in", True)
"""What SAELens writes where all inputs were multiplied by one constant; True until its version 6."""
_FIRST_OF_LAYOUT = "6.0.0"
"""The SAELens version whose configuration layout `save_dictionary` writes."""


class Checkpoint(NamedTuple):
    """A weight file that has been read, and what it is read for."""

    location: Location
    tensors: Mapping[str, Tensor]
    """Float32, on the CPU."""
    id: SourceId
    d_site: int

    def matrix(self, name: str, *, site_side: int, fixed: bool) -> Tensor:
        """A matrix with the site's width on `site_side`; `fixed`: the format fixes how a square one lies."""
        matrix = self.tensors[name]
        if matrix.ndim != 2 or self.d_site not in matrix.shape:
            raise NeuronautError(
                f"{name} of {self.location.weights} is {'x'.join(map(str, matrix.shape))}, and neither side fits "
                f"{self.id.site} of {self.id.model}, {self.d_site} wide; name the model and site it was trained on"
            )
        if matrix.shape[0] == matrix.shape[1] and not fixed:
            raise NeuronautError(
                f"{name} of {self.location.weights} is square, so that its orientation cannot be told; save it with "
                "a SAELens cfg.json"
            )
        return matrix if matrix.shape[site_side] == self.d_site else matrix.T


class Format(NamedTuple):
    """One row of the table of formats."""

    name: str
    recognises: Callable[[Location, set[str]], bool]
    """Whether the tensor names, and only then what lies beside them, are of this format."""
    convert: Callable[[Checkpoint], Dictionary]


def load_dictionary(
    path: str | Path,
    *,
    id: SourceId,
    d_site: int,
    device: torch.device | str = "cpu",
    norm_scale: float | None = None,
    allow_pickle: bool = False,
) -> Dictionary:
    """Read a dictionary from a file, a folder, or `OWNER/NAME[/FOLDER]` on the Hugging Face hub.

    `d_site`: the width of the subject's vectors at `id.site`. `norm_scale`: the factor that the
    site's vectors were multiplied by in training; folded into the weights. Where the name in `id` ends in
    `~random-SEED`, the matrices are drawn again (randomize.py). Raises NeuronautError
    where the format is unknown, the width or the declared site differ, a weight is not finite, or
    the file asks for a norm scale that it does not hold.

    >>> from neuronaut.subject.opening import BUILT_IN
    >>> folder = BUILT_IN["demo", "resid_post.2", "sae"]
    >>> load_dictionary(folder, id=SourceId("demo", "resid_post.2", "sae"), d_site=subject.width("resid_post.2")).width
    1024
    """
    location = locate(path, allow_pickle=allow_pickle)
    declared = named_site(location.config, location.weights)
    if declared is not None and not same_site(declared, id.site):
        raise NeuronautError(f"{path} was trained on {declared}, but {id.site} is asked for; give it {declared}")
    tensors = {name: tensor.float() for name, tensor in read_tensors(location.weights).items()}
    dictionary = _recognise(location, tensors, d_site).convert(Checkpoint(location, tensors, id, d_site))
    scale = location.norm_scale if norm_scale is None else norm_scale
    if scale is None and location.config.get("normalize_activations") in _AVERAGE:
        raise NeuronautError(
            f"{path} was trained on vectors times a constant that the file does not hold (expected_average_only_in); "
            "pass --norm-scale, sqrt(width) over the mean norm of its training vectors"
        )
    if scale is not None:
        dictionary = _fold_scale(dictionary, scale)
    if _read_model_options(location.config).get("center_writing_weights"):
        dictionary = _fold_centring(dictionary)
    if location.config.get("rescale_acts_by_decoder_norm"):
        dictionary = _fold_decoder_norms(dictionary)
    _, seed = split_random(id.dictionary or "")
    return (dictionary if seed is None else randomize_dictionary(dictionary, seed)).to(device)


def declared_site(path: str | Path, *, allow_pickle: bool = False) -> str | None:
    """The site that a dictionary's files (or their folder) name; None where they name none.

    Raises NeuronautError where they name a point of the model that is no site.
    """
    location = locate(path, allow_pickle=allow_pickle)
    return named_site(location.config, location.weights)


def save_dictionary(
    dictionary: Dictionary,
    folder: str | Path,
    *,
    metadata: Mapping[str, object] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write cfg.json and sae_weights.safetensors as SAELens >= 6 does, which it and `load_dictionary` read.

    `metadata` joins SAELens' own keys, for example model_name or dataset_path.
    """
    names = {"b_enc": "b_gate"} if dictionary.kind == "gated" else {}
    tensors = {
        names.get(name, name): tensor.to("cpu", dtype).contiguous() for name, tensor in dictionary.tensors().items()
    }
    if overflown := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise NeuronautError(f"{', '.join(overflown)} of {dictionary.id} does not fit {dtype}; save it as float32")
    config = {
        "architecture": dictionary.kind,
        "d_in": dictionary.d_site,
        "d_sae": dictionary.width,
        "dtype": "float32",
        "apply_b_dec_to_input": dictionary.subtract_b_dec,
        "normalize_activations": dictionary.norm,
        "reshape_activations": "hook_z" if dictionary.id.site.startswith("head.") else "none",
        **({"k": dictionary.k, "rescale_acts_by_decoder_norm": False} if dictionary.kind == "topk" else {}),
        "metadata": {
            "sae_lens_version": _FIRST_OF_LAYOUT,
            "hook_name": tl_name(dictionary.id.site),
            **(metadata or {}),
        },
    }
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, target / "sae_weights.safetensors")


def _recognise(location: Location, tensors: Mapping[str, Tensor], d_site: int) -> Format:
    matching = [format for format in FORMATS if format.recognises(location, set(tensors))]
    if len(matching) == 1:
        return matching[0]
    if not location.config and {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"} == set(tensors):
        raise NeuronautError(
            f"{location.weights} has no cfg.json beside it, so that whether its encoder takes b_dec off first is not "
            f'known; fetch it, or write one: {{"architecture": "jumprelu", "d_in": {d_site}, "d_sae": '
            f'{tensors["b_enc"].numel()}, "apply_b_dec_to_input": true}} (SAELens; false as in Gemma Scope, whose own '
            "file is params.npz)"
        )
    kinds = f"fits {' and '.join(format.name for format in matching)}" if matching else "is of no known format"
    tensor_list = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items())[:20])
    raise NeuronautError(
        f"{location.weights} {kinds} ({', '.join(format.name for format in FORMATS)}); "
        f"it holds {tensor_list or 'no tensors'}, and {'a' if location.config else 'no'} configuration lies beside it"
    )


def _convert_saelens(checkpoint: Checkpoint) -> Dictionary:
    config, tensors = checkpoint.location.config, dict(checkpoint.tensors)
    kind, k = _read_saelens_kind(checkpoint)
    norm = config.get("normalize_activations") or "none"
    norm = "none" if norm in _AVERAGE else norm
    if norm not in NORMS:
        raise _refusal(checkpoint, f"normalize_activations {norm!r}", ", ".join(NORMS))
    if (head := config.get("hook_head_index", config.get("hook_point_head_index"))) is not None:
        raise _refusal(checkpoint, f"attention head {head} alone", "all heads of a layer")
    W_enc = checkpoint.matrix("W_enc", site_side=0, fixed=True)
    W_dec = checkpoint.matrix("W_dec", site_side=1, fixed=True)
    _check_size(checkpoint, d_in=W_enc.shape[0], d_sae=W_enc.shape[1])
    if (factor := tensors.pop("scaling_factor", None)) is not None:
        W_dec = W_dec * factor[:, None]
    if kind == "jumprelu" and "topk_threshold" in tensors:
        tensors["threshold"] = _expand_threshold(tensors.pop("topk_threshold"), W_dec, config)
    bias = "b_gate" if kind == "gated" else "b_enc"
    wanted = ("W_enc", "W_dec", "b_dec", bias, *EXTRAS[kind])
    if set(tensors) != set(wanted):
        raise _refusal(checkpoint, f"{', '.join(sorted(tensors))} in a {kind} SAE", ", ".join(wanted))
    return Dictionary(
        id=checkpoint.id,
        kind=kind,
        W_enc=by_feature(W_enc),
        W_dec=W_dec.contiguous(),
        b_enc=tensors[bias],
        b_dec=tensors["b_dec"],
        subtract_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        norm=norm,
        k=k,
        prepend_bos=read_prepend_bos(config),
        **{name: tensors[name] for name in EXTRAS[kind]},
    )


def _check_size(checkpoint: Checkpoint, **sizes: int) -> None:
    """Refuse weights of another size than the configuration beside them says."""
    for field, size in sizes.items():
        if (said := checkpoint.location.config.get(field) or size) != size:
            raise _refusal(checkpoint, f"weights whose {field} is {size}", f"{said}, as {field} of its cfg.json says")


_ARCHITECTURES: Mapping[str, Kind] = {
    **{kind: kind for kind in EXTRAS},
    # Trained with k per vector on average; a threshold stands in for the ranking at inference.
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}


def _read_saelens_kind(checkpoint: Checkpoint) -> tuple[Kind, int]:
    """The kind and, for topk, k. Before version 6 a TopK SAE was a standard one with another activation function."""
    config = checkpoint.location.config
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    architecture = config.get("architecture") or "standard"
    if architecture == "standard" and function in ("topk", "relu"):
        architecture = "topk" if function == "topk" else "standard"
    if architecture not in _ARCHITECTURES:
        raise _refusal(checkpoint, f"architecture {architecture!r}", ", ".join(_ARCHITECTURES))
    kind = _ARCHITECTURES[architecture]
    if kind != "topk" and function != "relu":
        raise _refusal(checkpoint, f"activation function {function!r} in a {kind} SAE", "relu")
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k") or 0
    if kind == "topk" and k != int(k):
        raise _refusal(checkpoint, f"k {k}", "a whole number in a topk SAE")
    return kind, int(k) if kind == "topk" else 0


def _expand_threshold(threshold: Tensor, W_dec: Tensor, config: Mapping[str, Any]) -> Tensor:
    """One threshold for all features of a training checkpoint, in the units of `linear`."""
    each = threshold.expand(W_dec.shape[0])
    return each / W_dec.norm(dim=1) if config.get("rescale_acts_by_decoder_norm") else each.contiguous()


def _convert_gemma_scope(checkpoint: Checkpoint) -> Dictionary:
    checkpoint = checkpoint._replace(tensors={_capitalise(name): value for name, value in checkpoint.tensors.items()})
    tensors = checkpoint.tensors
    return Dictionary(
        id=checkpoint.id,
        kind="jumprelu",
        W_enc=by_feature(checkpoint.matrix("W_enc", site_side=0, fixed=False)),
        W_dec=checkpoint.matrix("W_dec", site_side=1, fixed=False).contiguous(),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        subtract_b_dec=False,
        threshold=tensors["threshold"],
    )


def _convert_sparsify(checkpoint: Checkpoint) -> Dictionary:
    config, tensors = checkpoint.location.config, checkpoint.tensors
    if config.get("transcode") or "W_skip" in tensors:
        raise _refusal(checkpoint, "a transcoder, which rebuilds another site than it reads", "an SAE")
    if config.get("activation", "topk") != "topk" or config.get("signed"):
        name = "signed top-k" if config.get("signed") else config["activation"]
        raise _refusal(checkpoint, f"activation {name!r}", "topk")
    if "k" not in config:
        raise _refusal(checkpoint, "no k", "a cfg.json with k beside the weights")
    W_enc = checkpoint.matrix("encoder.weight", site_side=1, fixed=True).T
    _check_size(checkpoint, d_in=W_enc.shape[0], num_latents=W_enc.shape[1])
    return Dictionary(
        id=checkpoint.id,
        kind="topk",
        W_enc=by_feature(W_enc),
        W_dec=checkpoint.matrix("W_dec", site_side=1, fixed=True).contiguous(),
        b_enc=tensors["encoder.bias"],
        b_dec=tensors["b_dec"],
        k=int(config["k"]),
    )


def _is_saelens(location: Location, names: set[str]) -> bool:
    return {"W_enc", "W_dec", "b_dec"} <= names and "d_in" in location.config and "d_sae" in location.config


def _is_gemma_scope(location: Location, names: set[str]) -> bool:
    jump = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
    # SAELens' JumpReLU has the same names and may take b_dec off first: without a configuration the file tells which.
    told = "w_enc" in names or (not location.config and location.weights.name in _JUMPRELU_FILES)
    return {_capitalise(name) for name in names} == jump and told


_JUMPRELU_FILES = ("params.npz", "ae.pt")
"""Gemma Scope's file, and dictionary_learning's, whose encoder is the same."""


def _is_sparsify(location: Location, names: set[str]) -> bool:
    del location
    return {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} <= names


FORMATS = (
    Format("SAELens", _is_saelens, _convert_saelens),
    Format("Gemma Scope", _is_gemma_scope, _convert_gemma_scope),
    Format("sparsify", _is_sparsify, _convert_sparsify),
)


def by_feature(W_enc: Tensor) -> Tensor:
    """The same (d_site, F) matrix, laid out so that one feature's weights are contiguous."""
    return W_enc.T.contiguous().T


def _capitalise(name: str) -> str:
    return name.replace("w_", "W_") if name in ("w_enc", "w_dec") else name


def _read_model_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = config.get("metadata") or {}
    return metadata.get("model_from_pretrained_kwargs") or config.get("model_from_pretrained_kwargs") or {}


def _refusal(checkpoint: Checkpoint, content: str, wanted: str) -> NeuronautError:
    return NeuronautError(f"{checkpoint.location.weights} holds {content}; wanted {wanted}")


def _fold_scale(dictionary: Dictionary, scale: float) -> Dictionary:
    """The dictionary that takes `x` where the given one takes `x * scale`."""
    return replace(
        dictionary, W_enc=dictionary.W_enc * scale, W_dec=dictionary.W_dec / scale, b_dec=dictionary.b_dec / scale
    )


def _fold_centring(dictionary: Dictionary) -> Dictionary:
    """The dictionary that takes `x` where the given one takes `x - mean(x)`, the mean over d_site.

    TransformerLens centres all that writes to the residual stream where asked to
    (center_writing_weights); the subject's own vectors keep their mean.
    """
    if dictionary.norm == "layer_norm":
        return dictionary
    if dictionary.norm != "none":
        raise NeuronautError(f"{dictionary.id} wants centred vectors and {dictionary.norm}, which cannot be combined")
    means = dictionary.W_enc.mean(dim=0)
    shift = -means * dictionary.b_dec.sum() * dictionary.subtract_b_dec
    gated = {}
    if dictionary.b_mag is not None and dictionary.r_mag is not None:
        gated = {"b_mag": dictionary.b_mag + shift * dictionary.r_mag.exp()}
    return replace(dictionary, W_enc=dictionary.W_enc - means, b_enc=dictionary.b_enc + shift, **gated)


def _fold_decoder_norms(dictionary: Dictionary) -> Dictionary:
    """Activations in units of the decoder's norms: what SAELens calls rescale_acts_by_decoder_norm."""
    norms = dictionary.W_dec.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    tensors = {"b_enc": dictionary.b_enc, "b_mag": dictionary.b_mag, "threshold": dictionary.threshold}
    return replace(
        dictionary,
        W_enc=dictionary.W_enc * norms,
        W_dec=dictionary.W_dec / norms[:, None],
        **{name: tensor * norms for name, tensor in tensors.items() if tensor is not None},
    )
