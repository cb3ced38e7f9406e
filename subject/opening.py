"""Opens a source by its name: neurons need nothing else, a dictionary needs its folder."""

from pathlib import Path

from .address import SourceId
from .errors import NeuronautError
from .formats import load_dictionary
from .head_norms import NAME as HEAD_NORMS
from .head_norms import HeadNorms
from .head_writes import ALONG, HeadWrites
from .model import Subject
from .sources import Neurons, Source

BUILT_IN = {("demo", "resid_post.2", "sae"): Path(__file__).parent.parent / "data" / "demo" / "sae"}
"""Dictionaries that ship with Neuronaut."""


def built_in(source: SourceId) -> Path | None:
    """Where a dictionary lies that ships with Neuronaut; None for any other."""
    trained = source.trained
    return BUILT_IN.get((trained.model, trained.site, trained.dictionary or ""))


def open_source(subject: Subject, source: SourceId, *, path: str | None = None) -> Source:
    """The neurons of a site, or the dictionary at `path` (a folder, file or Hugging Face repository).

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
    return load_dictionary(str(location), id=source, device=str(subject.device), d_site=subject.width(source.site))
