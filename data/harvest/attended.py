"""What a head looks at where it is most active: the source token of an example whose destination token is its peak."""

import numpy as np
import torch
from numpy.typing import NDArray

from ...subject.attention import patterns, prove
from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.sources import Source
from ..records import ExampleList
from .activations import TILE_ROWS, with_bos


def find_refusal(subject: Subject, site: str) -> str | None:
    """Why the patterns of a `head.L` cannot be read; None where they can."""
    try:
        prove(subject, _layer_of(site))
    except NeuronautError as error:
        return str(error)
    return None


def find_attended(subject: Subject, source: Source, examples: ExampleList, tokens: NDArray[np.integer]) -> ExampleList:
    """The examples of heads with the position that each head attends to most at its peak, and the weight of that.

    What stands behind an encoder's text is left out: only BOS and the text are looked at.

    tokens: the windows that `examples.windows` are rows of, (window, position).
    """
    layer, skip = _layer_of(source.id.site), len(subject.bos_prefix)
    keys, weights = np.zeros(len(examples.windows), np.int32), np.zeros(len(examples.windows), np.float16)
    peaks = examples.activations.argmax(1)
    needed, places = np.unique(examples.windows, return_inverse=True)

    def find(part: slice) -> None:
        windows = tokens[needed[part]]
        pattern = patterns(subject, with_bos(subject, windows), [layer])[layer][..., : skip + windows.shape[1]]
        if not subject.causal:
            behind = torch.from_numpy(np.pad(windows < 0, ((0, 0), (skip, 0)))).to(pattern.device)
            pattern = pattern.masked_fill(behind[:, None, None], -1)
        own = np.flatnonzero((places >= part.start) & (places < part.stop))
        rows, heads = places[own] - part.start, examples.features[own].astype(np.int64)
        index = (torch.from_numpy(array) for array in (rows, heads, peaks[own] + skip))
        found = pattern[*index].float().max(-1)
        keys[own], weights[own] = found.indices.cpu().numpy() - skip, found.values.cpu().numpy()

    for _ in subject.batching.batches(len(needed), TILE_ROWS, find, work="windows of patterns"):
        pass
    return examples._replace(attended=(keys, weights))


def _layer_of(site: str) -> int:
    return int(site.partition(".")[2])
