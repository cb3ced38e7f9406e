"""A harvest's state as one .npz file, written beside its name and renamed, so that it is whole or absent."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..subject.errors import NeuronautError
from .lists import Lists

if TYPE_CHECKING:
    from .state import HarvestState


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
