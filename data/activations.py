"""Reading chosen features on chosen windows, many rows to a forward pass."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..subject.model import Subject
from ..subject.sources import Source
from .tiles import with_bos

ROWS = 64
"""Rows per forward."""


def read_columns(
    subject: Subject, source: Source, tokens: NDArray[np.integer], features: Sequence[int]
) -> NDArray[np.float32]:
    """Activations of the chosen features on every window. tokens (row, position) -> (row, position, chosen)."""
    chosen = torch.as_tensor(list(features), dtype=torch.long, device=subject.device)
    found = np.empty((*tokens.shape, len(chosen)), np.float32)
    for start in range(0, len(tokens), ROWS):
        found[start : start + ROWS] = _encode(subject, source, tokens[start : start + ROWS], chosen).cpu().numpy()
    return found


def read_own(
    subject: Subject, source: Source, tokens: NDArray[np.integer], features: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Each window's activation of its own feature. tokens (row, position), features (row,) -> (row, position).

    Rows of many features share a forward: that is what makes interventions on a batch of features cheap.
    """
    found = np.empty(tokens.shape, np.float32)
    for start in range(0, len(tokens), ROWS):
        part = slice(start, start + ROWS)
        wanted, column = np.unique(features[part], return_inverse=True)
        read = _encode(subject, source, tokens[part], torch.from_numpy(wanted.astype(np.int64)).to(subject.device))
        rows = torch.arange(len(read), device=read.device)
        found[part] = read[rows, :, torch.from_numpy(column).to(read.device)].cpu().numpy()
    return found


def _encode(subject: Subject, source: Source, tokens: NDArray[np.integer], chosen: torch.Tensor) -> torch.Tensor:
    """(row, position, chosen) activations, BOS left out."""
    vectors = subject.read(with_bos(subject, tokens), [source.id.site])[source.id.site]
    vectors = vectors[:, int(subject.bos is not None) :]
    flat = source.encode(vectors.reshape(-1, vectors.shape[2]).float(), chosen)
    return flat.view(len(vectors), vectors.shape[1], -1).float()
