"""Reads texts token by token, as a harvest reads a corpus: special tokens and massive positions are left out.

A text is cut into windows, so that none is too long; what stands in an earlier window is no context of a later one.
Which positions are massive is told by the texts themselves, where the subject's convention has no limit yet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..subject.address import SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .harvest.activations import ROWS, find_counted, read_sites, without_bos
from .harvest.massive import norm_limits
from .padding import cut

WINDOW = 256
"""Tokens of a window, where the model has room for them."""


class TextRows(NamedTuple):
    """Windows of texts."""

    tokens: NDArray[np.int64]
    """(row, position), padded at the end, without BOS."""
    owners: NDArray[np.int64]
    """(row,): which text each is of."""
    starts: NDArray[np.int64]
    """(row,): the position of its first token in its text."""


class Places(NamedTuple):
    """The tokens of texts that count for a source, in their order."""

    vectors: Tensor
    """(token, width), float32, on the subject's device: what the source encodes."""
    owners: Tensor
    """(token,), there too: which text each is of."""
    positions: Tensor
    """(token,), there too: where each stands in its text, BOS not counted."""


def cut_texts(subject: Subject, texts: Sequence[str]) -> TextRows:
    """The windows of texts. Raises NeuronautError for a text without tokens."""
    window = min(WINDOW, subject.room)
    parts: list[NDArray[np.int64]] = []
    for number, ids in enumerate(subject.encode_all(texts)):
        if not ids:
            raise NeuronautError(f"text {number + 1} has no tokens: {texts[number][:60]!r}; give some words")
        parts.append(cut(ids, window))
    width = max((parts[number] >= 0).sum(1).max() for number in range(len(parts)))
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    starts = np.concatenate([np.arange(len(part)) * window for part in parts])
    return TextRows(np.concatenate(parts)[:, :width], owners, starts)


def limit_norms(subject: Subject, sites: Sequence[str], rows: TextRows) -> Subject:
    """The subject with the norms above which positions of these sites are massive, where it has none of its own."""
    limits = norm_limits(subject, sites, rows.tokens[:ROWS]) | dict(subject.convention.norm_limits)
    return subject.with_convention(replace(subject.convention, norm_limits=limits))


@torch.inference_mode()
def read_texts(subject: Subject, sources: Sequence[Source], rows: TextRows) -> Iterator[dict[SourceId, Places]]:
    """The texts' tokens by source, some windows at a time; the vectors of a site are those of its `neurons`."""

    def read_part(part: slice) -> dict[SourceId, Places]:
        tokens, owners, starts = (whole[part] for whole in rows)
        tokens = tokens[:, : int((tokens >= 0).sum(1).max())]
        read = read_sites(subject, [site for source in sources for site in source.reads], tokens)
        places: dict[SourceId, Places] = {}
        for source in sources:
            counted = find_counted(subject, source.reads, tokens, read)
            row, position = map(torch.from_numpy, counted.nonzero())
            at = (row.to(subject.device), position.to(subject.device))
            vectors = without_bos(subject, tokens, source.join(read))[at]
            owned, first = torch.from_numpy(owners)[row], torch.from_numpy(starts)[row]
            placed = (owned.to(subject.device), (first + position).to(subject.device))
            places[source.id] = Places(vectors.float(), *placed)
        return places

    yield from subject.batching.batches(len(rows.tokens), ROWS, read_part, work="rows")


def check_heard(owners: Tensor, texts: Sequence[str], site: str) -> None:
    """Raise NeuronautError where no token of a text counts. owners: (token,)."""
    silent = set(range(len(texts))) - set(owners.tolist())
    if silent:
        number = min(silent)
        raise NeuronautError(
            f"no token of text {number + 1} counts at {site}, all are special or of massive norm: "
            f"{texts[number][:60]!r}; give a longer one"
        )
