"""Opens a source by its name: neurons need nothing else, a dictionary needs its folder, directions their file."""

from pathlib import Path

import torch

from .address import SourceId
from .dictionary import Dictionary
from .direction_matrix import Directions, holds_directions, load_directions
from .errors import NeuronautError
from .formats import load_dictionary
from .model import Subject
from .sources import Neurons, Source

BUILT_IN = {("demo", "resid_post.2", "sae"): Path(__file__).parent.parent / "data" / "demo" / "sae"}
"""Dictionaries that ship with Neuronaut."""


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
    location = path or built_in(source)
    if location is None:
        raise NeuronautError(f"where {source} lies is not known; give its folder or repository with --sae")
    return load_source(str(location), id=source, device=subject.device, d_site=subject.width(source.site))


def load_source(
    path: str,
    *,
    id: SourceId,
    d_site: int,
    device: torch.device | str = "cpu",
    norm_scale: float | None = None,
    allow_pickle: bool = False,
) -> Dictionary | Directions:
    """Read directions where the file at `path` holds them, else a dictionary; arguments as of `load_dictionary`."""
    if not holds_directions(path):
        return load_dictionary(
            path, id=id, d_site=d_site, device=device, norm_scale=norm_scale, allow_pickle=allow_pickle
        )
    if norm_scale is not None:
        raise NeuronautError(f"{path} holds directions, which are read at their own scale; leave --norm-scale out")
    return load_directions(path, id=id, d_site=d_site, device=device)
