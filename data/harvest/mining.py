"""Silent windows and near misses: where a feature stays quiet, checked on the subject itself.

The lowest-hashed windows of the pool (at most one in 32 windows of the corpus, so that mining costs
little) are run through the subject. A window is silent for a feature when its activation stays below
a tenth of the feature's peak; a silent window that holds one of the tokens on which the feature
peaks in its training examples is a near miss. Every example carries its measured activations.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...subject.model import Subject
from ...subject.sources import Source
from ..records import ExampleList, Kind, Mined
from .activations import TILE_ROWS, tiles
from .scan import SourceState, as_half, window_hash
from .watch import Told

if TYPE_CHECKING:
    from .state import HarvestState

SILENCE = 0.1
"""A window is silent for a feature while its activation stays below this fraction of the feature's peak."""
CAPACITY: dict[Kind, tuple[int, int, int]] = {"silent": (4, 2, 4), "near_miss": (6, 2, 4)}
"""Examples kept per feature in (train, select, holdout)."""
PEAK_TOKENS = 3
"""How many of a feature's peak tokens make near misses."""


class Mining:
    """Looks for silent examples and near misses of every feature, in whatever thread."""

    def __init__(self, sources: Sequence[Source], state: "HarvestState", pool: NDArray[np.bool_]) -> None:
        """Take what it needs of a state, whose lists may then be emptied; `pool` are rows of its table."""
        table = state.table
        rows = np.flatnonzero(pool)
        rows = rows[np.argsort(window_hash(~table.uid[rows]), kind="stable")]
        self._rows = rows[: count_mined(-(-state.tokens // table.tokens.shape[1]), len(rows))]
        self._tokens, self._sources = table.tokens, sources
        self._miners = {str(source.id): _Miner(state, state.sources[str(source.id)]) for source in sources}

    @property
    def windows(self) -> int:
        """How many it runs."""
        return len(self._rows)

    def run(self, subject: Subject, *, progress: Told) -> Mined:
        """Look for them, once; `progress` is told windows done, and of how many."""
        for start in range(0, len(self._rows), TILE_ROWS):
            part = self._rows[start : start + TILE_ROWS]
            held = _tokens_held(self._tokens[part], len(subject.vocabulary))
            for tile in tiles(subject, self._sources, self._tokens[part]):
                own = self._miners[str(tile.source.id)]
                own.take(part[tile.rows], held[tile.rows], tile.silenced, first_feature=tile.first_feature)
            progress(start + len(part), len(self._rows))
        return {name: miner.lists() for name, miner in self._miners.items()}


def count_mined(harvested: int, pool: int) -> int:
    """How many windows of the pool are mined, where so many were harvested."""
    return min(pool, max(64, harvested // 32))


def _tokens_held(tokens: NDArray[np.integer], vocabulary: int) -> NDArray[np.bool_]:
    """Which tokens each window holds, (window, token); the last one, which PADDING's -1 names, is held by none."""
    held = np.zeros((len(tokens), vocabulary + 1), bool)
    np.put_along_axis(held, tokens.astype(np.int64), values=True, axis=1)
    held[:, -1] = False
    return held


class _Examples(NamedTuple):
    """Examples that one window is to some features."""

    features: NDArray[np.int64]
    """Shape (feature,)."""
    row: int
    """The window's row in the table."""
    activations: NDArray[np.float16]
    """Shape (feature, position)."""


class _Miner:
    """Collects the silent examples and near misses of one source."""

    def __init__(self, state: "HarvestState", source: SourceState) -> None:
        self._table, self._peak = state.table, source.peak
        self._tokens = _peak_tokens(state, source)
        self._room = {
            kind: np.repeat(np.array(capacity)[:, None], len(source.peak), axis=1)
            for kind, capacity in CAPACITY.items()
        }
        """How many examples each split and feature may still get, (split, feature)."""
        self._examples: dict[Kind, list[_Examples]] = {kind: [] for kind in CAPACITY}

    def take(self, rows: NDArray[np.int64], held: NDArray[np.bool_], tile: torch.Tensor, *, first_feature: int) -> None:
        """Look at activations (window, position, feature) of the table's `rows`, of features from `first_feature`.

        `held` says which tokens each window holds, (window, token).
        """
        own = slice(first_feature, first_feature + tile.shape[2])
        peak = self._peak[own]
        quiet = (tile.amax(1).float().cpu().numpy() < SILENCE * peak) & (peak > 0)
        for i, row in enumerate(rows):
            split = int(self._table.split[row])
            room = {kind: left[split, own] for kind, left in self._room.items()}
            wanting = np.flatnonzero(quiet[i] & ((room["near_miss"] > 0) | (room["silent"] > 0)))
            near = held[i][self._tokens[own][wanting]].any(axis=1)
            kinds: dict[Kind, NDArray[np.int64]] = {"near_miss": wanting[near], "silent": wanting[~near]}
            for kind, features in kinds.items():
                features = features[room[kind][features] > 0]
                if len(features):
                    room[kind][features] -= 1
                    values = as_half(tile[i, :, torch.from_numpy(features).to(tile.device)].T).cpu().numpy()
                    self._examples[kind].append(_Examples(features + first_feature, int(row), values))

    def lists(self) -> dict[Kind, ExampleList]:
        """The examples by kind, where there are some; the miner holds them no longer."""
        lists: dict[Kind, ExampleList] = {kind: self._list(self._examples.pop(kind)) for kind in list(self._examples)}
        return {kind: part for kind, part in lists.items() if len(part.features)}

    def _list(self, parts: list[_Examples]) -> ExampleList:
        positions = self._table.tokens.shape[1]
        if not parts:
            return ExampleList(np.empty(0, np.int32), np.empty(0, np.int32), np.empty((0, positions), np.float16))
        feature = np.concatenate([part.features for part in parts])
        row = np.concatenate([np.full(len(part.features), part.row) for part in parts])
        order = np.lexsort((self._table.split[row], feature))
        place = np.argsort(order)
        values = np.empty((len(feature), positions), np.float16)
        end = len(feature)
        while parts:  # each part is let go as it is placed: two copies at once would be the harvest's peak of memory
            activations = parts.pop().activations
            values[place[end - len(activations) : end]] = activations
            end -= len(activations)
        return ExampleList(feature[order].astype(np.int32), row[order].astype(np.int32), values)


def _peak_tokens(state: "HarvestState", source: SourceState) -> NDArray[np.int64]:
    """The tokens of each feature's highest training peaks, (feature, PEAK_TOKENS), padded with -1."""
    lists, table = source.top, state.table
    train = slice(int(lists.offsets[0]), int(lists.offsets[1]))
    order = np.argsort(-lists.score[:, train], axis=1, kind="stable")[:, :PEAK_TOKENS]
    uid = np.take_along_axis(lists.uid[:, train], order, axis=1)
    activations = np.take_along_axis(lists.activations[:, train], order[:, :, None], axis=1)
    row = np.searchsorted(table.uid, uid).clip(0, len(table.uid) - 1)
    tokens = table.tokens[row, activations.argmax(axis=2)].astype(np.int64)
    return np.where(table.uid[row] == uid, tokens, -1)
