"""The layouts of dictionaries of several sites: crosscoders, and cross-layer transcoders (CLTs).

    crosscoder     one latent reads all sites: W_enc (site, d, F) is summed over sites, W_dec (F, site, d)
    cross-layer    a file, or W_enc_N and W_dec_N, for each layer; its latents read one site, and W_dec (F, slot, d)
                   writes to that layer and later ones (all layers have a slot in Gemma Scope 2)

What Gemma Scope 2 calls a crosscoder is of the second sort: a file for each layer, whose latents read that one alone
and write to all of its layers. Slots of earlier layers that hold zeros are left out. W_enc of several models, as those
that compare a base model with a chat model have it, names one site, and is refused.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from .dictionary import Dictionary, Kind
from .errors import NeuronautError
from .formats_checkpoint import Checkpoint, Format
from .formats_files import Location
from .formats_sites import EVIDENCE, Place, following, named_layers, named_place, tl_name

_SKIPS = ("W_skip", "affine_skip_connection")
_FILE = re.compile(r"(?:params_layer|layer|W_enc)_(?P<number>\d+)")


def file_number(weights: Path) -> int | None:
    """The number of the layer that a file of a folder of layers is of; None of any other file."""
    match = _FILE.fullmatch(weights.stem)
    return int(match["number"]) if match else None


def layer_place(location: Location) -> Place:
    """The site that one layer of a folder reads, as configuration, folder and file name it, and those that may be
    written where these are told; `writes` is empty where they follow from the weights.
    """
    number = file_number(location.weights)
    place = named_place(location.config, location.weights)
    if number is None:
        return place
    if place.reads:
        if number >= len(place.reads):
            raise NeuronautError(
                f"{location.weights} is file {number} of a dictionary whose configuration names "
                f"{len(place.reads)} sites, {', '.join(place.reads)}; wanted 0 to {len(place.reads) - 1}"
            )
        return place._replace(site=place.reads[number], reads=())
    if place.site is None and (layers := named_layers(location.weights)):
        sites = tuple(f"resid_post.{layer}" for layer in layers)
        return Place(sites[number], sites) if number < len(sites) else Place(None)
    if place.site is None and "clt" in location.weights.parts:
        return Place(f"mlp_in.{number}", (f"mlp_out.{number}",))
    return place


def _normalise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the number of their layer, in capitals, and a skip path under one name."""
    plain = {re.sub(r"_\d+$", "", name): tensor for name, tensor in tensors.items()}
    renamed = {"w_enc": "W_enc", "w_dec": "W_dec", "activation_function.threshold": "threshold", _SKIPS[1]: _SKIPS[0]}
    return {renamed.get(name, name): tensor for name, tensor in plain.items()}


# One layer of several


class _Slots(NamedTuple):
    """What the slots of a layer's decoder are."""

    place: Place
    kept: list[int]
    """Those that are written: from the layer's own on, and earlier ones that hold something but zeros."""
    own: int
    """Which of these is the layer's own output, that b_dec and a skip path are of."""


def _is_layer(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    del location
    parts = _normalise(tensors)
    ranks = {name: parts[name].ndim for name in ("W_enc", "W_dec") if name in parts}
    # Half of a pair, W_enc_2 without W_dec_2, is of no other format either.
    numbered = any(re.fullmatch(r"W_(enc|dec)_\d+", name) for name in tensors)
    return ranks == {"W_enc": 2, "W_dec": 3} or (numbered and ranks.get("W_dec", 3) == 3)


def _place_layer(location: Location, tensors: Mapping[str, Tensor]) -> Place:
    """The sites of a layer: of those that it may write, the ones that its decoder has a slot for."""
    place = layer_place(location)
    return place if place.site is None or "W_dec" not in _normalise(tensors) else _find_slots(location, tensors).place


def _find_slots(location: Location, tensors: Mapping[str, Tensor]) -> _Slots:
    place, W_dec = layer_place(location), _normalise(tensors)["W_dec"]
    count = W_dec.shape[1]
    if len(place.writes) > 1:
        own, sites = file_number(location.weights) or 0, place.writes
    else:
        first = place.writes[0] if place.writes else place.site or ""
        family, _, layer = first.partition(".")
        # Gemma Scope 2, whose names are in lower case, has a slot for every layer of the model.
        own = int(layer or 0) if "w_dec" in tensors else 0
        sites = following(first, count) if not own else following(f"{family}.0", count)
    if len(sites) != count or own >= count:
        raise NeuronautError(
            f"{location.weights} has slots for {count} sites that are written, and {len(sites)} are named, "
            f"{', '.join(sites)}; the configuration beside it is of another dictionary"
        )
    kept = [slot for slot in range(count) if slot >= own or bool((W_dec[:, slot] != 0).any())]
    return _Slots(place._replace(writes=tuple(sites[slot] for slot in kept)), kept, kept.index(own))


def _convert_layer(checkpoint: Checkpoint) -> Dictionary:
    given, tensors = checkpoint.tensors, _normalise(checkpoint.tensors)
    wanted = {"W_enc", "W_dec", "b_enc", "b_dec"}
    if tensors.keys() - {"threshold", "W_skip"} != wanted:
        raise checkpoint.refusal(
            f"{', '.join(sorted(given))}, a part of one layer",
            f"{', '.join(sorted(wanted))} in one file, or W_enc_N and W_dec_N side by side",
        )
    if checkpoint.place.site is None:
        raise checkpoint.refusal(
            "one layer of several, and nothing says which sites it reads and writes",
            "feature_input_hook and feature_output_hook in a config.yaml, or hf_hook_point_in and _out in config.json",
        )
    slots = _find_slots(checkpoint.location, given)
    width, _, d_out = tensors["W_dec"].shape
    # Gemma Scope 2's encoders lie the other way round than circuit-tracer's.
    W_enc = checkpoint._replace(tensors=tensors).encoder("W_enc", side=0 if "w_enc" in given else 1, fixed=True)
    if W_enc.shape[1] != width:
        raise checkpoint.refusal(f"a W_enc of {W_enc.shape[1]} features", f"{width}, as its W_dec has")
    threshold, skip = tensors.get("threshold"), tensors.get("W_skip")
    return checkpoint.build(
        "standard" if threshold is None else "jumprelu",
        W_enc=W_enc,
        W_dec=tensors["W_dec"][:, slots.kept].flatten(1),
        b_enc=tensors["b_enc"],
        b_dec=_put_slot(tensors["b_dec"], slots),
        threshold=None if threshold is None else threshold.flatten(),
        W_skip=None if skip is None else _put_slot(skip, slots),
    )


def count_layers(location: Location, tensors: Mapping[str, Tensor]) -> int:
    """How many layers the dictionary has that a file of one layer is of: one for every site that is written."""
    slots = _find_slots(location, tensors)
    return (file_number(location.weights) or 0) + len(slots.kept) - slots.own


def _put_slot(own: Tensor, slots: _Slots) -> Tensor:
    """A tensor of a layer's own output, (..., d), beside zeros for the others that are written."""
    whole = own.new_zeros(*own.shape[:-1], len(slots.kept), own.shape[-1])
    whole[..., slots.own, :] = own
    return whole.flatten(-2)


# Latents that read all sites


def _is_crosscoder(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    del location
    parts = _normalise(tensors)
    return {"W_enc", "W_dec"} <= parts.keys() and parts["W_enc"].ndim == 3


def _convert_crosscoder(checkpoint: Checkpoint) -> Dictionary:
    tensors = _normalise(checkpoint.tensors)
    wanted = {"W_enc", "W_dec", "b_enc", "b_dec"}
    if tensors.keys() - {"threshold"} != wanted:
        raise checkpoint.refusal(f"{', '.join(sorted(tensors))} in a crosscoder", ", ".join(sorted(wanted)))
    architecture = checkpoint.config.get("architecture")
    kind = "standard" if "threshold" not in tensors else "jumprelu"
    if architecture not in (None, "crosscoder", "jump_relu", f"{kind}_crosscoder"):
        raise checkpoint.refusal(f"architecture {architecture!r}", f"{kind}_crosscoder")
    return _build_crosscoder(checkpoint, kind, tensors, threshold=tensors.get("threshold"))


def _build_crosscoder(
    checkpoint: Checkpoint, kind: Kind, tensors: Mapping[str, Tensor], *, threshold: Tensor | None
) -> Dictionary:
    """W_enc (site, d, F), W_dec (F, site, d) or (site, F, d), b_enc (F,), b_dec (site, d)."""
    W_enc, W_dec, place = tensors["W_enc"], tensors["W_dec"], checkpoint.place
    count, d, width = W_enc.shape
    reads = place.reads or ((place.site,) if place.site else ())
    if len(reads) != count:
        named = f"names {len(reads)}, {', '.join(reads)}" if reads else "names none"
        raise checkpoint.refusal(
            f"a crosscoder of {count} sites, or models, and its configuration {named}",
            f'{count} sites of one model, as "hook_names": ["blocks.1.hook_resid_post", ...] in a config.json; of '
            f"several models {EVIDENCE}",
        )
    if W_dec.shape == (count, width, d) != (width, count, d):
        W_dec = W_dec.transpose(0, 1)
    shapes = {"W_dec": (width, count, d), "b_dec": (count, d)}
    found = {"W_dec": tuple(W_dec.shape), "b_dec": tuple(tensors["b_dec"].shape)}
    if found != shapes or d != checkpoint.d_site:
        raise checkpoint.refusal(
            f"W_enc {tuple(W_enc.shape)}, W_dec {found['W_dec']} and b_dec {found['b_dec']}",
            f"(sites, {checkpoint.d_site}, features), {shapes['W_dec']} and {shapes['b_dec']}: vectors of "
            f"{checkpoint.id.site} are {checkpoint.d_site} wide",
        )
    checkpoint.check_size(d_in=d, d_sae=width, activation_dim=d, dict_size=width)
    return checkpoint.build(
        kind,
        W_enc=W_enc.flatten(0, 1),
        W_dec=W_dec.flatten(1),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"].flatten(),
        threshold=threshold,
    )


_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}


def _is_linear_crosscoder(location: Location, tensors: Mapping[str, Tensor]) -> bool:
    del location
    return tensors.keys() >= _LINEAR and tensors["encoder.weight"].ndim == 3


def _convert_linear_crosscoder(checkpoint: Checkpoint) -> Dictionary:
    tensors = checkpoint.tensors
    renamed = {
        "W_enc": tensors["encoder.weight"],
        "W_dec": tensors["decoder.weight"],
        "b_enc": tensors["encoder.bias"],
        "b_dec": tensors["decoder.bias"],
    }
    statistics = [name for name in ("activation_mean", "activation_std") if name in tensors]
    if any(bool(tensors[name].isfinite().any()) for name in statistics):
        raise checkpoint.refusal(f"{' and '.join(statistics)}, by which vectors are normed", "weights for raw vectors")
    if (threshold := tensors.get("threshold")) is None:
        return _build_crosscoder(checkpoint, "standard", renamed, threshold=None)
    if threshold.ndim or not bool(threshold >= 0) or not bool(threshold.isfinite()):
        raise checkpoint.refusal(f"threshold {threshold.tolist()}", "one number of 0 or more, set by a whole training")
    linear = _build_crosscoder(checkpoint, "standard", renamed, threshold=None)
    codes = int(tensors.get("code_normalization_id", torch.tensor(_SUMMED)))
    if codes not in _CODE_NORMS:
        raise checkpoint.refusal(f"code_normalization_id {codes}", f"one of {', '.join(map(str, _CODE_NORMS))}")
    # The library compares an activation times the norm of its decoder with the threshold, and gives it without.
    norms = _CODE_NORMS[codes](linear.written_norms()).clamp(min=torch.finfo(torch.float32).tiny)
    return replace(linear, kind="jumprelu", threshold=threshold / norms)


_SUMMED = 1
_CODE_NORMS: Mapping[int, Callable[[Tensor], Tensor]] = {
    _SUMMED: lambda norms: norms.sum(1),
    2: lambda norms: norms.norm(dim=1),
    4: lambda norms: torch.ones_like(norms[:, 0]),
}
"""dictionary_learning's code_normalization_id: what an activation is multiplied by, of decoder norms (F, site)."""

LAYER = Format(
    "one layer of a cross-layer dictionary",
    "W_dec of rank 3 beside W_enc of rank 2, or W_enc_N and W_dec_N",
    _is_layer,
    _convert_layer,
    find_place=_place_layer,
)
CROSS = (
    LAYER,
    Format("crosscoder", "W_enc of rank 3", _is_crosscoder, _convert_crosscoder),
    Format(
        "dictionary_learning crosscoder",
        "encoder.weight and decoder.weight of rank 3",
        _is_linear_crosscoder,
        _convert_linear_crosscoder,
    ),
)


def save_crosscoder(
    dictionary: Dictionary, folder: str | Path, *, metadata: Mapping[str, object] | None = None
) -> None:
    """Write a crosscoder as cfg.json and sae_weights.safetensors, with SAELens' names: W_enc (site, d, F) and so on.

    SAELens has no crosscoder, so only `load_dictionary` reads it. Raises NeuronautError for one whose kind has no
    layout, and for what is no crosscoder.
    """
    sites = dictionary.reads
    if dictionary.writes != sites or dictionary.kind not in ("standard", "jumprelu") or dictionary.W_skip is not None:
        raise NeuronautError(f"{dictionary.id} is no crosscoder that can be saved: it wants relu or a threshold")
    tensors = {
        "W_enc": dictionary.W_enc.unflatten(0, (len(sites), -1)),
        "W_dec": dictionary.W_dec.unflatten(1, (len(sites), -1)),
        "b_enc": dictionary.b_enc,
        "b_dec": dictionary.b_dec.unflatten(0, (len(sites), -1)),
        **({} if dictionary.threshold is None else {"threshold": dictionary.threshold}),
    }
    config = {
        "architecture": f"{dictionary.kind}_crosscoder",
        "d_in": dictionary.d_site // len(sites),
        "d_sae": dictionary.width,
        "dtype": "float32",
        "metadata": {"hook_names": [tl_name(site) for site in sites], **(metadata or {})},
    }
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(
        {name: tensor.to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()},
        target / "sae_weights.safetensors",
    )
