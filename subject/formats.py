"""Published dictionaries read into the canonical form of `dictionary.py`.

A format is recognised by the names and ranks of its tensors (by the name of its file or folder only where two formats
have the same, and no configuration tells them apart), and converted by its row of `FORMATS`; a further format is a
further row. Whatever cannot be represented raises an error that names it: an unknown architecture, a dictionary of
several models at once, a site that differs from the declared one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .address import SourceId, split_random
from .dictionary import Dictionary
from .errors import NeuronautError
from .formats_checkpoint import Checkpoint, Format
from .formats_cross import CROSS, LAYER, count_layers, file_number, save_crosscoder
from .formats_files import Location, find_local, locate, read_contents
from .formats_folds import Affine, fold_centring, fold_decoder_norms, fold_gain, fold_scale
from .formats_layers import find_layers, require_layers
from .formats_libraries import LIBRARIES
from .formats_saelens import AVERAGE, PURSUIT, SAELENS, save_dictionary
from .formats_scopes import SCOPES
from .formats_sites import Place, named_place, same_site
from .formats_temporal import TEMPORAL
from .randomize import randomize_dictionary

__all__ = ["FORMATS", "Found", "declared_site", "inspect", "load_dictionary", "save_crosscoder", "save_dictionary"]

FORMATS: tuple[Format, ...] = (SAELENS, PURSUIT, TEMPORAL, *SCOPES, *CROSS, *LIBRARIES)


class Found(NamedTuple):
    """What lies at a path, before it is read for a model."""

    location: Location
    tensors: Mapping[str, Tensor]
    """In the file's own dtype, on the CPU."""
    settings: Mapping[str, object]
    """What the weight file holds beside tensors."""
    formats: tuple[Format, ...]
    """Those that it fits: one, where it can be read."""

    @property
    def place(self) -> Place:
        """The sites that its files name; an error where one of them is no site."""
        find = self.formats[0].find_place if len(self.formats) == 1 else None
        if find is not None:
            return find(self.location, self.tensors)
        return named_place(self.location.config, self.location.weights)


def inspect(path: str | Path, *, site: str | None = None, allow_pickle: bool = False) -> Found:
    """Look at what lies at a path, and which formats it fits; in a folder of layers, the one that reads `site`."""
    local = find_local(path)
    layers = find_layers(local)
    location = locate(layers.choose(site) if layers else local, allow_pickle=allow_pickle)
    contents = read_contents(location)
    fitting = tuple(format for format in FORMATS if format.recognises(location, contents.tensors))
    return Found(location, contents.tensors, contents.settings, fitting)


def load_dictionary(
    path: str | Path,
    *,
    id: SourceId,
    d_site: int,
    device: torch.device | str = "cpu",
    norm_scale: float | None = None,
    allow_pickle: bool = False,
    norm: Callable[[], Affine] | None = None,
) -> Dictionary:
    """Read a dictionary from a file, a folder, or `OWNER/NAME[/FOLDER]` on the Hugging Face hub.

    `d_site`: the width of the subject's vectors at `id.site`. `norm_scale`: the factor that the
    site's vectors were multiplied by in training; folded into the weights. `norm`: what gives the gain and bias that
    the subject's norm applies before `id.site`, for dictionaries that read its output without them. Where the name in
    `id` ends in `~random-SEED`, the matrices are drawn again (randomize.py). Raises NeuronautError
    where the format is unknown, the width or the declared site differ, a weight is not finite, or
    the file asks for a norm scale that it does not hold.

    >>> from neuronaut.subject.opening import BUILT_IN
    >>> folder = BUILT_IN["demo", "resid_post.2", "sae"]
    >>> load_dictionary(folder, id=SourceId("demo", "resid_post.2", "sae"), d_site=subject.width("resid_post.2")).width
    1024
    """
    found = inspect(path, site=id.site, allow_pickle=allow_pickle)
    format, location, place = require_format(found), found.location, found.place
    if place.site is not None and not same_site(place.site, id.site):
        raise NeuronautError(f"{path} was trained on {place.site}, but {id.site} is asked for; give it {place.site}")
    tensors = {name: tensor.float() for name, tensor in found.tensors.items()}
    dictionary = format.convert(
        Checkpoint(location, tensors, settings=found.settings, id=id, d_site=d_site, place=place)
    )
    dictionary = _fold(dictionary, location, norm_scale, scaled=format.scaled)
    if place.without_gain:
        dictionary = fold_gain(dictionary, _require_norm(path, id, norm)())
    if format is LAYER:
        layers = find_layers(location.weights.parent)
        count, own = count_layers(location, found.tensors), location.weights
        options = {"d_site": d_site, "device": device, "norm_scale": norm_scale, "norm": norm}

        def open_others() -> Iterator[Dictionary]:
            for site, file in require_layers(layers, count, own).items():
                yield load_dictionary(file, id=replace(id, site=site), **options)

        dictionary = replace(dictionary, companions=open_others)
    _, seed = split_random(id.dictionary or "")
    return (dictionary if seed is None else randomize_dictionary(dictionary, seed)).to(device)


def declared_site(path: str | Path, *, allow_pickle: bool = False) -> str | None:
    """The site that a dictionary's files (or their folder) name; None where they name none.

    Raises NeuronautError where they name a point of the model that is no site.
    """
    location = locate(path, allow_pickle=allow_pickle)
    if file_number(location.weights) is not None:
        # Whether such a file reads one of the sites that its configuration names, or all, its tensors tell.
        return inspect(location.weights, allow_pickle=allow_pickle).place.site
    return named_place(location.config, location.weights).site


def require_format(found: Found) -> Format:
    """The one format that a file fits. Raises NeuronautError where it fits none or several, and says what it holds."""
    if len(found.formats) == 1:
        return found.formats[0]
    location, tensors, matching = found.location, found.tensors, found.formats
    if hint := _explain_ambiguity(location, tensors):
        raise NeuronautError(hint)
    kinds = f"fits {' and '.join(format.name for format in matching)}" if matching else "is of no known format"
    tensor_list = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items())[:20])
    raise NeuronautError(
        f"{location.weights} {kinds} ({', '.join(format.name for format in FORMATS)}); "
        f"it holds {tensor_list or 'no tensors'}, and {'a' if location.config else 'no'} configuration lies beside it"
    )


def _explain_ambiguity(location: Location, tensors: Mapping[str, Tensor]) -> str | None:
    """What to fetch or write where a configuration is all that is missing; None of any other file."""
    if location.config:
        return None
    matrices = {"W_enc", "W_dec", "b_enc", "b_dec"}
    if tensors.keys() == {*matrices, "threshold"} or (tensors.keys() == matrices and tensors["W_enc"].ndim == 2):
        width = tensors["b_enc"].numel()
        kind = "jumprelu" if "threshold" in tensors else "standard"
        others = "" if kind == "jumprelu" else "or topk with a k, "
        return (
            f"{location.weights} has no cfg.json beside it, so that whether its encoder takes b_dec off first is not "
            f'known; fetch it, or write one: {{"architecture": "{kind}", "d_in": {tensors["b_dec"].numel()}, "d_sae": '
            f'{width}, "apply_b_dec_to_input": true}} (SAELens; {others}false as in Gemma Scope, whose own '
            "file is params.npz, and Qwen Scope, whose folder's name ends in L0_K)"
        )
    if tensors.keys() == {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}:
        return (
            f"{location.weights} has no hyperparams.json above it, which holds the threshold and the scale of a Llama "
            'Scope dictionary; fetch it, or write a config.json: {"trainer": {"dict_class": "AutoEncoderNew"}} where '
            "it is a plain ReLU autoencoder"
        )
    return None


def _fold(dictionary: Dictionary, location: Location, norm_scale: float | None, *, scaled: bool) -> Dictionary:
    """Fold in what the configuration asks to be done around the weights."""
    config = location.config
    scale = location.norm_scale if norm_scale is None else norm_scale
    if scale is None and (scaled or config.get("normalize_activations") in AVERAGE):
        raise NeuronautError(
            f"{location.weights} was trained on vectors times a constant that the file does not hold "
            "(expected_average_only_in); pass --norm-scale, sqrt(width) over the mean norm of its training vectors"
        )
    if scale is not None:
        dictionary = fold_scale(dictionary, scale)
    if _read_model_options(config).get("center_writing_weights"):
        dictionary = fold_centring(dictionary)
    return fold_decoder_norms(dictionary) if config.get("rescale_acts_by_decoder_norm") else dictionary


def _require_norm(path: str | Path, id: SourceId, norm: Callable[[], Affine] | None) -> Callable[[], Affine]:
    if norm is None:
        raise NeuronautError(
            f"{path} reads what the norm before {id.site} gives without its gain; open it with the model, whose gain "
            "is then folded into it (open_source, or harvest)"
        )
    return norm


def _read_model_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = config.get("metadata") or {}
    return metadata.get("model_from_pretrained_kwargs") or config.get("model_from_pretrained_kwargs") or {}
