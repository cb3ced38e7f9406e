"""The state of a harvest while it runs, or of a shard of one: bounded, mergeable, the same in any order.

A checkpoint is a state as one .npz file, written beside its name and renamed, so that it is whole or absent.
"""

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ...subject.convention import Convention
from ...subject.errors import NeuronautError
from ...subject.sources import Source
from .scan import SourceState, window_hash
from .windows import Given, WindowBatch, join_batches

TOP = (20, 16, 12)
"""Examples kept per feature in (train, select, holdout) for the top and the bottom lists; half of select is tune."""
QUANTILE = (16, 16, 12)
"""Examples kept per feature in (train, select, holdout) for the uniform sample of active windows."""
POOL = 4096
"""Windows in the pool."""


@dataclass(slots=True)
class WindowTable:
    """Token ids of the windows that a state still refers to."""

    uid: NDArray[np.int64]
    tokens: NDArray[np.int32]
    """Shape (window, position)."""
    split: NDArray[np.int8]

    @classmethod
    def empty(cls, positions: int) -> "WindowTable":
        """A table without windows, for windows of so many positions."""
        return cls(np.empty(0, np.int64), np.empty((0, positions), np.int32), np.empty(0, np.int8))

    def add(self, uid: NDArray[np.int64], tokens: NDArray[np.int32], split: NDArray[np.int8]) -> None:
        """Add the windows that the table does not hold yet."""
        merged, first = np.unique(np.concatenate([self.uid, uid]), return_index=True)
        self.uid = merged
        self.tokens = np.concatenate([self.tokens, tokens])[first]
        self.split = np.concatenate([self.split, split])[first]

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Drop all rows but the chosen ones."""
        self.uid, self.tokens, self.split = self.uid[chosen], self.tokens[chosen], self.split[chosen]

    def pool(self, size: int) -> NDArray[np.bool_]:
        """Which rows are the `size` windows of lowest hash: a uniform sample that no order can change."""
        chance = window_hash(~self.uid)
        chosen = np.zeros(len(self.uid), bool)
        chosen[np.lexsort((self.uid, chance))[:size]] = True
        return chosen


@dataclass(slots=True)
class HarvestState:
    """A harvest under way, or a shard of one."""

    sources: dict[str, SourceState]
    table: WindowTable
    convention: Convention | None = None
    """How the subject reads the corpus, with the norms above which a position is massive."""
    tokens: int = 0
    """Corpus tokens read so far, BOS not counted."""
    special: int = 0
    """How many of these are special tokens, which no statistic counts."""
    given: Given = field(default_factory=Given)
    """What the documents hold that these are taken from; whole when the shard is."""
    batches: int = 0
    """Batches of this shard that are done: where to go on after a checkpoint."""
    unsaved: list[WindowBatch] = field(default_factory=list)
    """Batches whose windows are not in the table yet."""

    @classmethod
    def empty(cls, sources: Sequence[Source], *, window: int) -> "HarvestState":
        """The state before the first batch of windows of `window` tokens."""
        states = {
            str(source.id): SourceState.empty(source.width, window, signed=source.signed, top=TOP, quantile=QUANTILE)
            for source in sources
        }
        return cls(states, WindowTable.empty(window))

    def absorb(self, other: "HarvestState") -> None:
        """Merge another shard into this one; the result does not depend on the order of merges."""
        if self.sources.keys() != other.sources.keys():
            raise NeuronautError(
                f"shards of different sources: {', '.join(self.sources)} and {', '.join(other.sources)}; "
                "harvest every shard with the same sites"
            )
        if None not in (self.convention, other.convention) and self.convention != other.convention:
            raise NeuronautError(
                f"shards of different conventions: {self.convention} and {other.convention}; harvest every shard with "
                "the same --bos, of the same corpus"
            )
        self.convention = self.convention or other.convention
        self.settle()
        other.settle()
        for name, state in self.sources.items():
            state.absorb(other.sources[name])
        self.table.add(other.table.uid, other.table.tokens, other.table.split)
        self.tokens += other.tokens
        self.special += other.special
        self.given = Given(
            *(mine + theirs for mine, theirs in zip(astuple(self.given), astuple(other.given), strict=True))
        )
        self.prune()

    def settle(self) -> None:
        """Move the latest batches' windows into the table."""
        if self.unsaved:
            joined = join_batches(self.unsaved)
            self.table.add(joined.uid, joined.tokens.astype(np.int32), joined.split)
            self.unsaved.clear()

    def prune(self) -> None:
        """Drop windows that no list and not the pool refers to."""
        self.settle()
        used = self.table.pool(POOL)
        for state in self.sources.values():
            for lists in (state.top, state.quantile, state.bottom):
                if lists is not None:
                    used |= np.isin(self.table.uid, lists.uid)
        self.table.keep(used)


class Stopped(NamedTuple):
    """A harvest that was stopped, by its checkpoint."""

    path: Path
    sources: tuple[str, ...]
    corpus: str
    tokens: int
    """Corpus tokens read so far."""
    budget: int | None
    """Of how many; None: all there are."""


def find_stopped(checkpoint: Path) -> list[Stopped]:
    """The stopped harvests whose checkpoints lie beside a database, the latest first."""
    paths = sorted(checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}-*.npz"), key=lambda p: -p.stat().st_mtime)
    return [stopped for stopped in map(_read_stopped, paths) if stopped is not None]


def _read_stopped(path: Path) -> Stopped | None:
    try:
        about = read_about(path)
        return Stopped(path, tuple(about["sources"]), about["corpus"], about["tokens"], about["budget"])
    except (NeuronautError, KeyError):
        return None


def read_about(path: Path) -> dict[str, Any]:
    """What a file of a state says of itself, with its `tokens`; NeuronautError where it is none."""
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            return {**json.loads(str(file["about"])), "tokens": int(file["tokens"])}
    except FileNotFoundError as error:
        raise NeuronautError(f"there is no file {path}; name one that harvest wrote") from error
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise NeuronautError(f"{path} holds no part of a harvest ({error}); name one that harvest wrote") from error


def save_state(path: Path, state: HarvestState, *, about: Mapping[str, object]) -> None:
    """Write a state whose windows are settled; the old file stays until the new one is whole.

    `about` says what is harvested: `sources`, `corpus` and `budget`, as `Stopped` has them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    with scratch.open("wb") as file:
        table = {"table/uid": state.table.uid, "table/tokens": state.table.tokens, "table/split": state.table.split}
        arrays = table | _source_arrays(state)
        counts = {"tokens": state.tokens, "special": state.special, "batches": state.batches}
        said = np.array(json.dumps(about))
        np.savez(file, allow_pickle=False, **counts, about=said, given=astuple(state.given), **arrays)
    scratch.replace(path)


def load_state(path: Path, empty: HarvestState) -> HarvestState:
    """Fill an empty state of the same sources from a file; NeuronautError where the file is not whole."""
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            state = empty
            state.tokens, state.special, state.batches = (int(file[name]) for name in ("tokens", "special", "batches"))
            state.given = Given(*file["given"].tolist())
            state.table = WindowTable(file["table/uid"], file["table/tokens"], file["table/split"])
            for path_in_file, array in _source_arrays(state).items():
                array[...] = file[path_in_file]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise NeuronautError(
            f"{path} is not a whole harvest checkpoint ({error}); delete it and harvest again"
        ) from error
    return state


def _source_arrays(state: HarvestState) -> dict[str, NDArray[np.generic]]:
    """The arrays of all sources, by their path in a checkpoint."""
    return {
        f"{name}/{path}": array for name, source in state.sources.items() for path, array in source.arrays().items()
    }
