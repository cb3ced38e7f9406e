"""What a harvest keeps while it runs, or a shard of one: bounded, mergeable, the same in any order.

A harvest's state as one .npz file, written beside its name and renamed, so that it is whole or absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ...subject.errors import NeuronautError
from ...subject.sources import Source
from .lists import Lists
from .scan import SourceState, window_hash
from .windows import WindowBatch

TOP = (20, 8, 12)
"""Examples kept per feature in (train, select, holdout) for the top and the bottom lists."""
QUANTILE = (16, 8, 12)
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
        return cls(np.empty(0, np.int64), np.empty((0, positions), np.int32), np.empty(0, np.int8))

    def add(self, uid: NDArray[np.int64], tokens: NDArray[np.int32], split: NDArray[np.int8]) -> None:
        merged, first = np.unique(np.concatenate([self.uid, uid]), return_index=True)
        self.uid = merged
        self.tokens = np.concatenate([self.tokens, tokens])[first]
        self.split = np.concatenate([self.split, split])[first]

    def keep(self, chosen: NDArray[np.bool_]) -> None:
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
    tokens: int = 0
    """Corpus tokens counted so far."""
    batches: int = 0
    """Batches of this shard that are done: where to go on after a checkpoint."""
    unsaved: list[WindowBatch] = field(default_factory=list)
    """Batches whose windows are not in the table yet."""

    @classmethod
    def empty(cls, sources: Sequence[Source], *, window: int) -> "HarvestState":
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
        self.settle()
        other.settle()
        for name, state in self.sources.items():
            state.absorb(other.sources[name])
        self.table.add(other.table.uid, other.table.tokens, other.table.split)
        self.tokens += other.tokens
        self.prune()

    def settle(self) -> None:
        """Move the latest batches' windows into the table."""
        if self.unsaved:
            uid, tokens, split = (
                np.concatenate([getattr(b, key) for b in self.unsaved]) for key in ("uid", "tokens", "split")
            )
            self.table.add(uid, tokens.astype(np.int32), split)
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


def save_state(path: Path, state: "HarvestState") -> None:
    """Write a state whose windows are settled; the old file stays until the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    with scratch.open("wb") as file:
        np.savez(file, allow_pickle=False, tokens=state.tokens, batches=state.batches, **_arrays(state))
    scratch.replace(path)


def load_state(path: Path, empty: "HarvestState") -> "HarvestState":
    """Fill an empty state of the same sources from a file."""
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            state = empty
            state.tokens, state.batches = int(file["tokens"]), int(file["batches"])
            _assign(state.table, "table", file)
            for name, source in state.sources.items():
                _assign(source, name, file)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise NeuronautError(
            f"{path} is not a whole harvest checkpoint ({error}); delete it and harvest again"
        ) from error
    return state


def _arrays(state: "HarvestState") -> dict[str, NDArray[Any]]:
    found = dict(_named("table", state.table))
    for name, source in state.sources.items():
        found |= dict(_named(name, source))
    return found


def _named(prefix: str, value: Any) -> list[tuple[str, NDArray[Any]]]:
    """Every array below a dataclass, by its path."""
    found: list[tuple[str, NDArray[Any]]] = []
    for part in fields(value):
        inner = getattr(value, part.name)
        path = f"{prefix}/{part.name}"
        if isinstance(inner, Lists):
            found += _named(path, inner)
        elif inner is not None:
            found.append((path, inner))
    return found


def _assign(value: Any, prefix: str, file: Any) -> None:
    for part in fields(value):
        inner = getattr(value, part.name)
        path = f"{prefix}/{part.name}"
        if isinstance(inner, Lists):
            _assign(inner, path, file)
        elif inner is not None:
            setattr(value, part.name, file[path])
