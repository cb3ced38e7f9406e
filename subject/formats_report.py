"""What lies at a dictionary's path, told without a model: the format, what tells it, the parts, and what is wrong."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import one_hot

from .address import SourceId
from .dictionary import Dictionary
from .errors import NeuronautError
from .formats import Found, inspect, load_dictionary
from .formats_folds import Affine
from .formats_layers import find_layers
from .formats_sites import Place

_BIASES = ("b_dec", "pre_bias", "bias", "decoder_bias", "decoder.bias", "decoder_linear.bias", "b")
"""The vectors of the site's width, by the names that formats give them."""
_WIDTHS = ("d_in", "d_model", "activation_dim")
_UNNAMED = "unnamed"
HOW_TO_ADD = "a further format is one row and one function: docs/extending/dictionary-format.md"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a dictionary is made of."""

    kind: str
    features: int
    d_in: int
    d_out: int
    k: int | None
    steps: int | None
    """Of a matching pursuit, how many at most."""
    tolerance: float | None
    """Of a matching pursuit, the length of the rest that ends it."""
    attention_layers: int | None
    """Of a temporal dictionary, how many predict a vector from those before it."""
    norm: str
    subtracts_b_dec: bool
    skip: bool
    """Whether a linear path runs beside the features."""
    prepend_bos: bool | None
    decoder_norm_median: float
    norms_by_site: Mapping[str, float]
    """By site that is written, where these are several, the median decoder norm there."""
    shares: Mapping[str, float]
    """By site, where these are several, the share of features that write most there, in units of these medians."""

    @classmethod
    def of(cls, dictionary: Dictionary) -> "Parts":
        """The parts of a dictionary that was read."""
        norms = dictionary.written_norms()
        sites = dictionary.writes if len(dictionary.writes) > 1 else ()
        norms = norms[:, : len(sites)]
        medians = norms.median(dim=0).values
        longest = one_hot((norms / medians).argmax(1), len(sites)).double().mean(0) if sites else medians
        return cls(
            kind=dictionary.kind,
            features=dictionary.width,
            d_in=dictionary.d_site,
            d_out=dictionary.d_out,
            k=dictionary.k or None,
            steps=dictionary.pursuit and dictionary.pursuit.steps,
            tolerance=dictionary.pursuit and dictionary.pursuit.tolerance,
            attention_layers=dictionary.temporal and dictionary.temporal.layers,
            norm=dictionary.norm,
            subtracts_b_dec=dictionary.subtract_b_dec,
            skip=dictionary.W_skip is not None,
            prepend_bos=dictionary.prepend_bos,
            decoder_norm_median=float(dictionary.W_dec.norm(dim=-1).median()),
            norms_by_site=dict(zip(sites, medians.tolist(), strict=True)),
            shares=dict(zip(sites, longest.tolist(), strict=True)),
        )


@dataclass(frozen=True, slots=True)
class FileReport:
    """What lies at a path."""

    file: str
    configuration: str | None
    """The name of the file with its settings."""
    format: str | None
    told_by: str | None
    """What the format is recognised by."""
    tensors: Mapping[str, tuple[int, ...]]
    """By name, their shapes."""
    site: str | None
    """What its sources are called after: the site that it reads, of several the last."""
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    """The sites that are rebuilt; `reads` but for a transcoder."""
    layers: tuple[str, ...]
    """The sites that the other files of its folder read, where it holds one for each of several layers."""
    without_gain: bool
    """Whether it reads the norm's output before its gain, which is folded in with the model."""
    parts: Parts | None
    """None where it cannot be read."""
    problem: str | None
    """Why it cannot be read."""

    @property
    def readable(self) -> bool:
        """Whether it can be read, as far as can be told without a model."""
        return self.problem is None


def report_on(
    path: str, *, site: str | None = None, norm_scale: float | None = None, allow_pickle: bool = False
) -> FileReport:
    """Tell what lies at a path; `site` is what it reads, where its files do not name that.

    Raises NeuronautError where there is no weight file, or it cannot be opened.
    """
    layers = find_layers(path)
    site = site or (layers.sites[0] if layers else None)
    found = inspect(path, site=site, allow_pickle=allow_pickle)
    parts, problem, place = None, None, Place(None)
    try:
        place = found.place
        site = site or place.site
        id = SourceId("model", site or _UNNAMED, "dictionary")
        parts = Parts.of(
            load_dictionary(
                path,
                id=id,
                d_site=_guess_width(found),
                norm_scale=norm_scale,
                allow_pickle=allow_pickle,
                norm=lambda: Affine(torch.ones(_guess_width(found)), torch.zeros(_guess_width(found))),
            )
        )
    except NeuronautError as error:
        problem = str(error)
    layout = found.formats[0] if len(found.formats) == 1 else None
    return FileReport(
        file=str(found.location.weights),
        configuration=found.location.config_file,
        format=layout and layout.name,
        told_by=layout and layout.told_by,
        tensors={name: tuple(tensor.shape) for name, tensor in found.tensors.items()},
        site=site,
        reads=(reads := place.reads or ((site,) if site else ())),
        writes=place.writes or reads,
        layers=layers.sites if layers else (),
        without_gain=place.without_gain,
        parts=parts,
        problem=problem,
    )


def _guess_width(found: Found) -> int:
    """The width of the vectors that are read, as configuration or biases have it; 0 where nothing tells."""
    tables = (found.location.config, found.location.config.get("trainer") or {})
    said = [table[name] for table in tables for name in _WIDTHS if table.get(name)]
    plain = {re.sub(r"_\d+$", "", name): tensor for name, tensor in found.tensors.items()}
    # Of several sites, a bias a row.
    held = [plain[name].shape[-1] for name in _BIASES if name in plain]
    return next(iter([*said, *held]), 0)
