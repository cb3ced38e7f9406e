"""Activations of sources on windows: of chosen features as arrays, of all features tile by tile.

Chosen features are read many rows to a forward pass. Rows that differ in a few tokens only, as those of a
vocabulary scan or minimal pairs do, share a beginning: `read_last` runs it once, and of each row just the ending.

All features are read in tiles (`tiles`): a dictionary encodes into a reused buffer that stays in a CPU's cache,
neurons are views of what the model computed. The dense (window, position, feature) tensor of a wide dictionary
is never built.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...subject.address import SourceId
from ...subject.model import Subject
from ...subject.sources import Neurons, Source
from ..padding import PADDING
from ..recorded import RecordedSource

ROWS = 64
"""Rows per forward."""
ENDINGS = (1, 2, 4, 8, 16)
"""Tokens after a beginning that many rows may share."""
MANY = 16
"""Rows from which on a beginning is run by itself."""
STEP = 16
"""Beginnings that fewer rows share are cut to multiples of it, so that those of many rows are run together."""
SPAN = 8
"""Tokens by which rows of one forward differ in length, at most: the shorter ones are filled up."""
ENDING_TOKENS, ENDING_ROWS = 2048, 512
"""Tokens of endings per forward, and rows, for each of which the beginning's keys and values are held."""
Row = tuple[int, ...]


def read_columns(
    subject: Subject, source: Source, tokens: NDArray[np.integer], features: Sequence[int]
) -> NDArray[np.float32]:
    """Activations of the chosen features on every window. tokens (row, position) -> (row, position, chosen)."""
    if isinstance(source, RecordedSource):
        return source.columns(tokens, features)
    chosen = torch.as_tensor(list(features), dtype=torch.long, device=subject.device)

    def read(part: slice) -> NDArray[np.float32]:
        return _encode(subject, source, tokens[part], chosen).cpu().numpy()

    parts = [*subject.batching.batches(len(tokens), rows_of(subject, tokens), read, work="rows")]
    return np.concatenate(parts) if parts else np.empty((*tokens.shape, len(chosen)), np.float32)


def rows_of(subject: Subject, tokens: NDArray[np.integer]) -> int:
    """How many of these windows, (row, position), are run together."""
    return subject.batching.rows(ROWS, tokens.shape[1])


def read_own(
    subject: Subject, source: Source, tokens: NDArray[np.integer], features: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Each window's activation of its own feature. tokens (row, position), features (row,) -> (row, position).

    Rows of many features share a forward: that is what makes interventions on a batch of features cheap.
    """

    def read(part: slice) -> NDArray[np.float32]:
        distinct, column = np.unique(features[part], return_inverse=True)
        values = _encode(subject, source, tokens[part], torch.from_numpy(distinct.astype(np.int64)).to(subject.device))
        rows = torch.arange(len(values), device=values.device)
        return values[rows, :, torch.from_numpy(column).to(values.device)].cpu().numpy()

    parts = [*subject.batching.batches(len(tokens), rows_of(subject, tokens), read, work="rows")]
    return np.concatenate(parts) if parts else np.empty(tokens.shape, np.float32)


def read_last(subject: Subject, source: Source, rows: Sequence[Row], features: Sequence[int]) -> NDArray[np.float32]:
    """Activations of the chosen features at the last token of each row. Rows of ids, of any length -> (row, chosen).

    Of a causal subject: elsewhere what is left out behind the last token would have mattered (NeuronautError).
    """
    subject.require_causal("text cannot be cut behind a token, as this does")
    chosen = torch.as_tensor(list(features), dtype=torch.long, device=subject.device)
    values: dict[Row, NDArray[np.float32]] = {}
    ordered = sorted(set(rows), key=lambda ids: (len(ids), ids))
    # What looks back needs the vectors of the beginning, too, which a shared one does not give.
    for start, members in [(0, ordered)] if source.looks_back else _group_by_beginning(ordered):
        for part in _cut_to_forwards(members, start, tokens=subject.batching.tokens):

            def read(span: slice, part: list[Row] = part, start: int = start) -> dict[Row, NDArray[np.float32]]:
                return dict(zip(part[span], _encode_last(subject, source, part[span], start, chosen), strict=True))

            for encoded in subject.batching.batches(len(part), len(part), read, work="endings" if start else "rows"):
                values |= encoded
    return np.array([values[row] for row in rows], np.float32).reshape(-1, len(chosen))


def read_pivots(
    subject: Subject,
    source: Source,
    tokens: NDArray[np.integer],
    pivots: NDArray[np.integer],
    features: NDArray[np.integer],
) -> NDArray[np.float32]:
    """Each window's activation of its own feature at its pivot. tokens (row, position), the others (row,) -> (row,).

    What stands after a causal model's pivot cannot matter, and is not run. Windows of several features share forwards
    where the subject's batches are to be filled; else a feature's numbers are those that it has alone.
    """
    if not subject.causal:
        return read_own(subject, source, tokens, features)[np.arange(len(tokens)), pivots]
    if subject.batching.tokens is not None:
        distinct, column = np.unique(features, return_inverse=True)
        every = [tuple(row[: pivot + 1].tolist()) for row, pivot in zip(tokens, pivots, strict=True)]
        return read_last(subject, source, every, distinct.tolist())[np.arange(len(every)), column]
    activations = np.empty(len(tokens), np.float32)
    for feature in np.unique(features).tolist():
        own = np.flatnonzero(features == feature)
        rows = [tuple(tokens[i, : pivots[i] + 1].tolist()) for i in own.tolist()]
        activations[own] = read_last(subject, source, rows, [feature])[:, 0]
    return activations


def _group_by_beginning(rows: Sequence[Row]) -> Iterator[tuple[int, list[Row]]]:
    """Rows whose beginnings are of one length, the shortest first, with that length; each row is in one group.

    First those of a beginning that at least MANY share, then those that share one whose length is a multiple of STEP,
    then those that share none, with 0. A group may be empty.
    """
    for length in ENDINGS:
        groups = _alike(rows, lambda row, length=length: row[:-length], least=MANY)
        yield from ((len(group[0]) - length, group) for group in groups)
        taken = {row for group in groups for row in group}
        rows = [row for row in rows if row not in taken]
    longest = max(map(len, rows), default=1)
    for length in range((longest - 1) // STEP * STEP, 0, -STEP):
        longer = [row for row in rows if len(row) > length]
        together = [row for group in _alike(longer, lambda row, length=length: row[:length], least=2) for row in group]
        yield length, sorted(together, key=len)
        taken = set(together)
        rows = [row for row in rows if row not in taken]
    yield 0, list(rows)


def _cut_to_forwards(rows: Sequence[Row], start: int, *, tokens: int | None) -> Iterator[list[Row]]:
    """Cut rows, the shortest first, into parts of similar length that a forward takes, of so many `tokens`."""
    part: list[Row] = []
    for row in rows:
        most = min(ENDING_ROWS, ENDING_TOKENS // (len(row) - start)) if start else ROWS
        if tokens is not None:
            # A beginning's keys and values are held for each row, so a row takes room for all of its tokens.
            most = max(most, tokens // len(row))
        if part and (len(row) - len(part[0]) >= SPAN or len(part) >= most):
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _alike(rows: Sequence[Row], beginning: Callable[[Row], Row], *, least: int) -> list[list[Row]]:
    """The groups of at least so many rows of one beginning that is not empty."""
    groups: dict[Row, list[Row]] = defaultdict(list)
    for row in rows:
        groups[beginning(row)].append(row)
    return [group for shared, group in groups.items() if shared and len(group) >= least]


def _encode_last(
    subject: Subject, source: Source, rows: Sequence[Row], start: int, chosen: torch.Tensor
) -> NDArray[np.float32]:
    """(row, chosen) activations at the last token of each row; beginnings of `start` tokens are run once each."""
    # What stands after a causal model's last token cannot matter.
    endings, lasts = np.zeros((len(rows), max(map(len, rows)) - start), np.int64), np.zeros(len(rows), np.int64)
    for place, row in enumerate(rows):
        endings[place, : len(row) - start], lasts[place] = row[start:], len(row) - start - 1
    sites = _with_telling(subject, source.reads)
    if start:
        places = {beginning: place for place, beginning in enumerate(dict.fromkeys(row[:start] for row in rows))}
        of = torch.tensor([places[row[:start]] for row in rows], device=subject.device)
        opening = with_bos(subject, np.array(list(places), np.int64))
        read = subject.read_endings(opening, torch.from_numpy(endings).to(subject.device), sites, of=of)
    else:
        read = subject.read(with_bos(subject, endings), sites)
        lasts = lasts + len(subject.bos_prefix)
    places = (np.arange(len(rows)), lasts)
    last = {name: vectors[places][:, None] for name, vectors in read.items()}
    activations = source.encode(source.join(read)[places].float(), chosen).float().cpu().numpy()
    return activations * _count(subject, source.reads, np.array([row[-1:] for row in rows]), last)


def _encode(subject: Subject, source: Source, tokens: NDArray[np.integer], chosen: torch.Tensor) -> torch.Tensor:
    """(row, position, chosen) activations, BOS left out; 0 at positions that do not count."""
    read = read_sites(subject, source.reads, tokens)
    vectors = without_bos(subject, tokens, source.join(read))
    flat = source.encode(vectors.reshape(-1, vectors.shape[2]).float(), chosen)
    counted = torch.from_numpy(find_counted(subject, source.reads, tokens, read)).to(flat.device)
    return flat.view(len(vectors), vectors.shape[1], -1).float().masked_fill(~counted[:, :, None], 0)


def read_counted(subject: Subject, site: str, tokens: NDArray[np.integer]) -> Tensor:
    """The vectors of a site at the positions that count. tokens (row, position) without BOS -> (vector, width)."""
    return read_together(subject, [site], tokens, at=[site])[site]


def read_inputs(subject: Subject, source: Source, tokens: NDArray[np.integer]) -> Tensor:
    """What a source encodes of the positions that count. tokens (row, position) without BOS -> (vector, d_site)."""

    def read(part: slice) -> Tensor:
        whole = read_sites(subject, source.reads, tokens[part])
        counted = torch.from_numpy(find_counted(subject, source.reads, tokens[part], whole))
        return without_bos(subject, tokens[part], source.join(whole))[counted].float()

    return torch.cat([*subject.batching.batches(len(tokens), ROWS, read, work="rows")])


def read_together(
    subject: Subject, sites: Sequence[str], tokens: NDArray[np.integer], *, at: Sequence[str]
) -> dict[str, Tensor]:
    """The vectors of sites, all of the same tokens: those of the positions that count `at` all of some sites.

    tokens (row, position) without BOS -> site: (vector, width).
    """

    def read(part: slice) -> dict[str, Tensor]:
        whole = read_sites(subject, [*sites, *at], tokens[part])
        counted = torch.from_numpy(find_counted(subject, at, tokens[part], whole))
        return {site: without_bos(subject, tokens[part], whole[site])[counted].float() for site in sites}

    parts = [*subject.batching.batches(len(tokens), ROWS, read, work="rows")]
    return {site: torch.cat([part[site] for part in parts]) for site in sites}


def mark_counted(subject: Subject, sites: Sequence[str], tokens: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which positions count in statistics at sites. tokens (row, position) without BOS -> (row, position)."""
    return find_counted(subject, sites, tokens, read_sites(subject, sites, tokens))


def read_sites(subject: Subject, sites: Sequence[str], tokens: NDArray[np.integer]) -> dict[str, Tensor]:
    """The vectors of sites, and of those that tell which positions are massive, BOS included."""
    return subject.read(with_bos(subject, tokens), _with_telling(subject, sites))


def _with_telling(subject: Subject, sites: Sequence[str]) -> list[str]:
    """Sites, and those that tell which of their positions are massive."""
    return list(dict.fromkeys([*sites, *_telling(subject, sites)]))


def _telling(subject: Subject, sites: Iterable[str]) -> list[str]:
    """The sites whose norms tell which positions of `sites` are massive."""
    told = dict.fromkeys(norm_site(subject, site) for site in sites)
    return [site for site in told if site is not None and site in subject.convention.norm_limits]


def norm_site(subject: Subject, site: str) -> str | None:
    """The residual-stream site whose vectors tell whether a position is massive: its own, or before its block."""
    if site.startswith(("resid", "embed")):
        return site
    before = f"resid_pre.{site.partition('.')[2]}"
    return before if before in subject.sites else None


def find_counted(
    subject: Subject, sites: Sequence[str], tokens: NDArray[np.integer], vectors: Mapping[str, Tensor]
) -> NDArray[np.bool_]:
    """Which positions count in statistics at `sites`: those of text with massive vectors at none, (row, position).

    tokens: (row, position) without BOS; vectors: site -> (row, position, width), BOS included.
    """
    text = {site: without_bos(subject, tokens, vectors[site]) for site in _telling(subject, sites)}
    return _count(subject, sites, tokens, text)


def _count(
    subject: Subject, sites: Sequence[str], tokens: NDArray[np.integer], vectors: Mapping[str, Tensor]
) -> NDArray[np.bool_]:
    """As `find_counted`, of vectors without BOS."""
    counted = tokens >= 0
    if subject.convention.special_tokens:
        counted &= ~np.isin(tokens, list(subject.special_ids))
    for site in _telling(subject, sites):
        norms = vectors[site].float().norm(dim=-1)
        counted = counted & (norms <= subject.convention.norm_limits[site]).cpu().numpy()
    return counted


TILE_ROWS = 32
"""Windows per forward, as long as they fit into memory: matrix products round by the number of rows, so that a short
batch is filled up and a window's activations have the same bits whatever batch it came in. (On a CPU with several
threads PyTorch's attention keeps this only for windows of 32 tokens and more.)"""
WINDOWS = "windows"
"""What a subject's batching calls them."""


def neurons(subject: Subject, sites: Iterable[str]) -> list[Source]:
    """The neurons (coordinates) of each site as sources."""
    return [Neurons(SourceId(subject.name, site), subject.width(site)) for site in sites]


class Tile(NamedTuple):
    """Activations of some features of a source on some windows."""

    source: Source
    rows: slice
    """Which windows."""
    first_feature: int
    activations: Tensor
    """(window, position, feature), BOS left out; overwritten by the next tile."""
    counted: NDArray[np.bool_]
    """Which positions count, (window, position): not padding, special tokens and massive ones."""

    @property
    def silenced(self) -> Tensor:
        """The activations, 0 where a position does not count."""
        if self.counted.all():
            return self.activations
        uncounted = torch.from_numpy(~self.counted).to(self.activations.device)
        return self.activations.masked_fill(uncounted[:, :, None], 0)


def tiles(subject: Subject, sources: Sequence[Source], tokens: NDArray[np.integer]) -> Iterable[Tile]:
    """Run windows (row, position) through the subject and yield activations tile by tile."""
    sites = [site for source in sources for site in source.reads]

    def read(part: slice) -> tuple[slice, _Forward]:
        own = tokens[part]
        missing = subject.batching.most(WINDOWS, TILE_ROWS) - len(own)
        filled = np.concatenate([own, np.repeat(own[:1], missing, axis=0)])
        vectors = read_sites(subject, sites, filled)
        return part, _Forward(filled, vectors, {source.id: source.join(vectors) for source in sources})

    for part, forward in subject.batching.batches(len(tokens), TILE_ROWS, read, work=WINDOWS):
        length = part.stop - part.start
        for tile in _full_tiles(subject, sources, forward):
            if tile.rows.start < length:
                stop = min(tile.rows.stop, length)
                size, rows = stop - tile.rows.start, slice(part.start + tile.rows.start, part.start + stop)
                yield tile._replace(rows=rows, activations=tile.activations[:size], counted=tile.counted[:size])


class _Forward(NamedTuple):
    """What one forward pass gives."""

    tokens: NDArray[np.integer]
    """(window, position), without BOS."""
    read: dict[str, Tensor]
    """By site, (window, position of the whole row, width)."""
    joined: dict[SourceId, Tensor]
    """By source, what it encodes, likewise."""


def _full_tiles(subject: Subject, sources: Sequence[Source], forward: _Forward) -> Iterable[Tile]:
    """The tiles of one forward's windows."""
    tokens = forward.tokens
    for source in sources:
        vectors = forward.joined[source.id]
        counted = find_counted(subject, source.reads, tokens, forward.read)
        if isinstance(source, Neurons):
            yield Tile(source, slice(0, len(vectors)), 0, without_bos(subject, tokens, vectors).float(), counted)
            continue
        for rows, first, activations in _encode_tiles(subject, source, vectors):
            yield Tile(source, rows, first, without_bos(subject, tokens[rows], activations), counted[rows])


def _encode_tiles(subject: Subject, source: Source, vectors: Tensor) -> Iterator[tuple[slice, int, Tensor]]:
    """Rows, the first feature, and activations (row, position, feature), which the next ones overwrite."""
    rows, width = _tile_shape(vectors, source)
    positions, buffer = vectors.shape[1], _Buffer(vectors.device)
    for start in range(0, len(vectors), rows):
        flat = vectors[start : start + rows].flatten(0, 1).float()
        for first in range(0, source.width, width):
            features = slice(first, min(first + width, source.width))

            def encode(part: slice, flat: Tensor = flat, features: slice = features) -> tuple[slice, Tensor]:
                own, n = flat[part.start * positions : part.stop * positions], features.stop - features.start
                out = buffer.take(len(own), n)
                source.encode(own, None if n == source.width else features, out=out)
                return part, out.view(-1, positions, n)

            count = len(flat) // positions
            for part, activations in subject.batching.batches(count, rows, encode, work="encoded windows"):
                yield slice(start + part.start, start + part.stop), first, activations


class _Buffer:
    """Memory for one tile at a time, as large as the largest so far."""

    def __init__(self, device: torch.device) -> None:
        self._numbers = torch.empty(0, dtype=torch.float32, device=device)

    def take(self, rows: int, columns: int) -> Tensor:
        """A matrix, which overwrites the one before."""
        if self._numbers.numel() < rows * columns:
            self._numbers = self._numbers.new_empty(rows * columns)
        return self._numbers[: rows * columns].view(rows, columns)


def _tile_shape(vectors: Tensor, source: Source) -> tuple[int, int]:
    """Windows (a power of two, so that all tiles are alike) and features per tile.

    About 4 MiB of 1024 features on a CPU, measured best: large enough for the matrix product, small
    enough to be still in cache when it is scanned.
    """
    size, width = (1040 * 1024, 1024) if vectors.device.type == "cpu" else (1 << 28, 16384)
    width = min(width, source.width) if source.separable else source.width
    rows = max(1, min(len(vectors), size // width // vectors.shape[1]))
    return 1 << (rows.bit_length() - 1), width


def with_bos(subject: Subject, tokens: NDArray[np.integer]) -> Tensor:
    """Windows as a tensor on the subject's device, BOS in front where rows begin with it. (row, position [+ 1]).

    Padding becomes some token: it stands behind all that is read, where a causal model's positions cannot see it. An
    encoder's rows end as its tokenizer ends them, and then in at least one position of padding.
    """
    rows = torch.from_numpy(tokens.astype(np.int64)).to(subject.device)
    opening = rows.new_tensor(subject.bos_prefix).expand(len(rows), -1)
    if subject.causal:
        return torch.cat([opening, rows.clamp(min=0)], dim=1) if subject.bos_prefix else rows.clamp(min=0)
    closing = rows.new_tensor(subject.eos_suffix).expand(len(rows), -1)
    framed = torch.cat([opening, rows, rows.new_full((len(rows), closing.shape[1] + 1), PADDING)], dim=1)
    ends = (rows >= 0).sum(1, keepdim=True) + opening.shape[1]
    return framed.scatter_(1, ends + torch.arange(closing.shape[1], device=rows.device), closing)


def without_bos(subject: Subject, tokens: NDArray[np.integer], vectors: Tensor) -> Tensor:
    """The part of what was read of `with_bos` rows that is of the windows' own positions.

    tokens (row, position), vectors (row, position of the whole row, width) -> (row, position, width).
    """
    opening = len(subject.bos_prefix)
    return vectors[:, opening : opening + tokens.shape[1]]
