"""Reading chosen features on chosen windows, many rows to a forward pass.

Rows that differ in a few tokens only, as those of a scan do, share a beginning: it is run once, and of each row just
the ending (`read_last`).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..subject.model import Subject
from ..subject.sources import Source
from .tiles import with_bos

ROWS = 64
"""Rows per forward."""
ENDINGS = (1, 2, 4, 8, 16)
"""Tokens after a beginning that rows may share."""
SHARING = 4
"""Rows from which on a beginning is run by itself."""
ENDING_TOKENS, ENDING_ROWS = 2048, 512
"""Tokens of endings per forward, and rows, for each of which the beginning's keys and values are held."""
Row = tuple[int, ...]


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


def read_last(subject: Subject, source: Source, rows: Sequence[Row], features: Sequence[int]) -> NDArray[np.float32]:
    """Activations of the chosen features at the last token of each row. Rows of ids, of any length -> (row, chosen)."""
    chosen = torch.as_tensor(list(features), dtype=torch.long, device=subject.device)
    found: dict[Row, NDArray[np.float32]] = {}
    left = sorted(set(rows), key=lambda ids: (len(ids), ids))
    for beginning, members in _sharing(left):
        length = len(members[0]) - len(beginning)
        size = min(ENDING_ROWS, ENDING_TOKENS // length)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            read = _encode_endings(subject, source, beginning, [row[-length:] for row in part], chosen)
            found |= dict(zip(part, read, strict=True))
    left = [row for row in left if row not in found]
    for start in range(0, len(left), ROWS):
        part = left[start : start + ROWS]
        # What stands after a causal model's last token cannot matter.
        ids = np.zeros((len(part), len(part[-1])), np.int64)
        for place, row in enumerate(part):
            ids[place, : len(row)] = row
        read = _encode(subject, source, ids, chosen).cpu().numpy()
        found |= {row: read[place, len(row) - 1] for place, row in enumerate(part)}
    return np.array([found[row] for row in rows], np.float32).reshape(-1, len(chosen))


def _sharing(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Beginnings with the rows that share them, as long as there are; each row at most once."""
    for length in ENDINGS:
        groups: dict[Row, list[Row]] = defaultdict(list)
        for row in rows:
            groups[row[:-length]].append(row)
        shared = {beginning: group for beginning, group in groups.items() if beginning and len(group) >= SHARING}
        yield from shared.items()
        rows = [row for row in rows if row[:-length] not in shared]


def _encode_endings(
    subject: Subject, source: Source, beginning: Row, endings: Sequence[Row], chosen: torch.Tensor
) -> NDArray[np.float32]:
    """(row, chosen) activations at the last token of each ending."""
    opening = with_bos(subject, np.array([beginning], np.int64))[0]
    ends = torch.tensor(endings, dtype=torch.long, device=subject.device)
    vectors = subject.read_endings(opening, ends, [source.id.site])[source.id.site][:, -1]
    return source.encode(vectors.float(), chosen).float().cpu().numpy()


def _encode(subject: Subject, source: Source, tokens: NDArray[np.integer], chosen: torch.Tensor) -> torch.Tensor:
    """(row, position, chosen) activations, BOS left out."""
    vectors = subject.read(with_bos(subject, tokens), [source.id.site])[source.id.site]
    vectors = vectors[:, int(subject.bos is not None) :]
    flat = source.encode(vectors.reshape(-1, vectors.shape[2]).float(), chosen)
    return flat.view(len(vectors), vectors.shape[1], -1).float()
