"""Windows of several lengths as one array: each row ends in padding, which no token sees and no number counts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PADDING = -1
"""Takes the place of a token id behind a window's end."""


def pad_ids(rows: Sequence[NDArray[np.integer]], *, width: int) -> NDArray[np.int64]:
    """Token ids of windows of at most `width` tokens, (row, position)."""
    padded = np.full((len(rows), width), PADDING, np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def pad_activations(rows: Sequence[NDArray[np.floating]], *, width: int) -> NDArray[np.float32]:
    """Activations at the tokens of windows, 0 on padding, (row, position)."""
    padded = np.zeros((len(rows), width), np.float32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def cut(ids: Sequence[int], window: int) -> NDArray[np.int64]:
    """A document's consecutive windows, the last one padded, (row, position)."""
    count = -(-len(ids) // window)
    return np.pad(np.asarray(ids, np.int64), (0, count * window - len(ids)), constant_values=PADDING).reshape(
        count, window
    )
