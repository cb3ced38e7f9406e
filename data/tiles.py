"""Windows run through the subject: the activations of sources, tile by tile.

A dictionary encodes in tiles that stay in a CPU's cache, into a reused buffer; neurons are views of
what the model computed. The dense (window, position, feature) tensor of a wide dictionary is never built.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..subject.address import SourceId
from ..subject.model import Subject
from ..subject.sources import Neurons, Source

ROWS = 32
"""Windows per forward, always: matrix products round by the number of rows, so that a short batch is filled up and
a window's activations have the same bits whatever batch it came in. (On a CPU with several threads PyTorch's
attention keeps this only for windows of 32 tokens and more.)"""


def neurons(subject: Subject, sites: Iterable[str]) -> list[Source]:
    """The neurons (coordinates) of each site as sources."""
    return [Neurons(SourceId(subject.name, site), subject.width(site)) for site in sites]


def tiles(
    subject: Subject, sources: Sequence[Source], tokens: NDArray[np.integer], *, whole: bool = False
) -> Iterable[tuple[Source, slice, int, Tensor]]:
    """Run windows (row, position) through the subject and yield activations tile by tile.

    Each tile is (source, which windows, first feature, activations (window, position, feature)) with
    BOS left out; it is overwritten by the next one. `whole` gives all features in one tile.
    """
    for start in range(0, len(tokens), ROWS):
        part = tokens[start : start + ROWS]
        filled = np.concatenate([part, np.repeat(part[:1], ROWS - len(part), axis=0)])
        for source, span, first, tile in _full_tiles(subject, sources, filled, whole=whole):
            if span.start < len(part):
                stop = min(span.stop, len(part))
                yield source, slice(start + span.start, start + stop), first, tile[: stop - span.start]


def _full_tiles(
    subject: Subject, sources: Sequence[Source], tokens: NDArray[np.integer], *, whole: bool
) -> Iterable[tuple[Source, slice, int, Tensor]]:
    """The tiles of exactly ROWS windows."""
    read = subject.read(with_bos(subject, tokens), list(dict.fromkeys(source.id.site for source in sources)))
    for source in sources:
        vectors = read[source.id.site]
        positions, skip = vectors.shape[1], int(subject.bos is not None)
        if isinstance(source, Neurons):
            yield source, slice(0, len(vectors)), 0, vectors[:, skip:].float()
            continue
        rows, width = _tile_shape(vectors, source, whole=whole)
        buffer = torch.empty(rows * positions * width, dtype=torch.float32, device=vectors.device)
        for start in range(0, len(vectors), rows):
            part = vectors[start : start + rows]
            flat = part.reshape(-1, part.shape[2]).float()
            for first in range(0, source.width, width):
                features = slice(first, min(first + width, source.width))
                n = features.stop - first
                out = buffer[: len(flat) * n].view(len(flat), n)
                source.encode(flat, None if n == source.width else features, out=out)
                yield source, slice(start, start + len(part)), first, out.view(len(part), positions, n)[:, skip:]


def _tile_shape(vectors: Tensor, source: Source, *, whole: bool) -> tuple[int, int]:
    """Windows (a power of two, so that all tiles are alike) and features per tile.

    About 4 MiB of 1024 features on a CPU, measured best: large enough for the matrix product, small
    enough to be still in cache when it is scanned.
    """
    size, width = (1040 * 1024, 1024) if vectors.device.type == "cpu" else (1 << 28, 16384)
    width = source.width if whole or not source.separable else min(width, source.width)
    rows = max(1, min(len(vectors), size // width // vectors.shape[1]))
    return 1 << (rows.bit_length() - 1), width


def with_bos(subject: Subject, tokens: NDArray[np.integer]) -> Tensor:
    """Windows as a tensor on the subject's device, BOS in front where the subject has one. (row, position [+ 1])."""
    rows = torch.from_numpy(tokens.astype(np.int64)).to(subject.device)
    if subject.bos is None:
        return rows
    return torch.cat([rows.new_full((len(rows), 1), subject.bos), rows], dim=1)
