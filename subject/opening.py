"""Opens a source by its name: neurons need nothing else, a dictionary needs its folder, directions their file."""

from functools import partial
from pathlib import Path

import torch

from .address import SourceId
from .dictionary import Dictionary
from .direction_matrix import Directions, holds_directions, load_directions
from .directions import apply
from .errors import NeuronautError
from .formats import load_dictionary
from .formats_folds import Affine
from .head_norms import NAME as HEAD_NORMS
from .head_norms import HeadNorms
from .head_writes import ALONG, HeadWrites
from .model import Subject
from .sources import Neurons, Source

BUILT_IN = {("demo", "resid_post.2", "sae"): Path(__file__).parent.parent / "data" / "demo" / "sae"}
"""Dictionaries that ship with Neuronaut."""
_LARGE = 1e3
"""Coordinates beside which a norm's epsilon is nothing."""


def built_in(source: SourceId) -> Path | None:
    """Where a dictionary lies that ships with Neuronaut; None for any other."""
    trained = source.trained
    return BUILT_IN.get((trained.model, trained.site, trained.dictionary or ""))


def open_source(subject: Subject, source: SourceId, *, path: str | None = None) -> Source:
    """The neurons of a site, or the dictionary or directions at `path` (a folder, file or Hugging Face repository).

    >>> open_source(subject, SourceId.parse("demo:resid_post.2@sae")).width
    1024
    """
    if source.dictionary is None:
        return Neurons(source, subject.width(source.site))
    if path is not None and path.startswith(ALONG):
        return HeadWrites.of(subject, source, path.removeprefix(ALONG))
    location = path or built_in(source)
    if location is None and source.dictionary == HEAD_NORMS:
        return HeadNorms.of(subject, source)
    if location is None:
        raise NeuronautError(f"where {source} lies is not known; give its folder or repository with --sae")
    return load_source(subject, source, str(location))


def load_source(
    subject: Subject, source: SourceId, path: str, *, norm_scale: float | None = None, allow_pickle: bool = False
) -> Dictionary | Directions:
    """The directions at `path` where the file holds these, else the dictionary."""
    if not holds_directions(path):
        return open_dictionary(subject, source, path, norm_scale=norm_scale, allow_pickle=allow_pickle)
    if norm_scale is not None:
        raise NeuronautError(f"{path} holds directions, which are read at their own scale; leave --norm-scale out")
    return load_directions(path, id=source, d_site=subject.width(source.site), device=subject.device)


def open_dictionary(
    subject: Subject, source: SourceId, path: str, *, norm_scale: float | None = None, allow_pickle: bool = False
) -> Dictionary:
    """The dictionary at `path`, for the subject's vectors; see `load_dictionary`.

    Raises NeuronautError also where a transcoder writes a site that the subject lacks or has in another width.
    """
    dictionary = load_dictionary(
        path,
        id=source,
        d_site=subject.width(source.site),
        device=str(subject.device),
        norm_scale=norm_scale,
        allow_pickle=allow_pickle,
        norm=partial(norm_before, subject, source.site),
    )
    _check_sites(subject, dictionary)
    return dictionary


def _check_sites(subject: Subject, dictionary: Dictionary) -> None:
    """Refuse a dictionary whose sites the subject lacks, has in other widths, or computes in another order."""
    for sites, width in ((dictionary.reads, dictionary.d_site), (dictionary.writes, dictionary.d_out)):
        if wrong := [site for site in sites if subject.width(site) != width // len(sites)]:
            verb = "reads" if sites == dictionary.reads else "writes"
            raise NeuronautError(
                f"{dictionary.id} {verb} {width // len(sites)} coordinates, and {wrong[0]} of {subject.name} has "
                f"{subject.width(wrong[0])}; name the model it was trained on"
            )
    order = subject.sites.index
    if order(dictionary.writes[-1]) < order(dictionary.reads[-1]):
        raise NeuronautError(
            f"{dictionary.id} writes {dictionary.writes[-1]}, which comes before {dictionary.reads[-1]}, the site that "
            "it reads; see with: neuronaut sources inspect PATH"
        )
    if len(dictionary.reads) > 1 and list(dictionary.reads) != sorted(dictionary.reads, key=order):
        raise NeuronautError(
            f"{dictionary.id} reads {', '.join(dictionary.reads)}, which {subject.name} computes in another order; "
            "a crosscoder's sites are named in the order of the forward pass"
        )


def norm_before(subject: Subject, site: str) -> Affine:
    """The gain and bias of the norm that makes `mlp_in.L` of `resid_mid.L`. Raises NeuronautError where there is none.

    >>> norm_before(subject, "mlp_in.2").gain.shape
    torch.Size([128])
    """
    architecture, (family, _, layer) = subject.architecture, site.partition(".")
    norm = architecture.resid_mid
    reads_stream = norm == architecture.mlp_reader or architecture.stream_norms is not None
    if family != "mlp_in" or not architecture.has_resid_mid(subject.model.config) or reads_stream:
        raise NeuronautError(
            f"the norm before {site} of {subject.name} is not known, so that its gain cannot be folded into a "
            "dictionary; wanted mlp_in.L of a model whose MLP follows its attention"
        )
    module = subject.model.base_model.get_submodule(f"{architecture.layers}.{layer}.{norm}")
    # Signs in turn have mean 0 and a size of 1, so that a norm leaves them as they are.
    signs = torch.ones(1, subject.width(site), device=subject.device)
    signs[:, 1::2] = -1
    with torch.inference_mode():
        up, down = apply(module, _LARGE * signs)[0], apply(module, -_LARGE * signs)[0]
    return Affine((up - down) / 2 * signs[0], (up + down) / 2)
