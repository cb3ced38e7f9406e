"""Matrices of directions (probes, concept vectors, principal components) as sources, and the files that hold them.

    activation = vectors @ row + offset        of each row, as the file has it: nothing is normed
    direction  = row / |row|²                  what a unit of activation adds to a vector
    edit       = vectors + (values - activations) @ pseudo-inverse of the chosen rows

So an edit sets the activations of the chosen rows together and moves the vector by no more than that takes: what is
orthogonal to all of them stays as it is. Activations go below zero, and their negative tails are kept.

A file is a .npy array, or a .safetensors file with the tensor `directions` (or one tensor alone), of shape
(feature, d_site) or (d_site,). Beside it a .safetensors file may hold `offsets` (feature,), and in its metadata
`site`, and JSON lists with one entry for each row: `names`, and `provenance` (objects), which harvests keep.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .address import SourceId, split_random
from .errors import NeuronautError
from .sources import Features, Vectorwise

SUFFIXES = (".safetensors", ".npy")
_TENSORS = frozenset({"directions", "offsets"})
_INDEPENDENT = 1e-6
"""Rows of which one is a mixture of the others but for this share of its length cannot be set apart from them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions(Vectorwise):
    """A matrix of directions as a source. Raises NeuronautError where a row is zero or not finite, or sizes differ.

    >>> import torch
    >>> matrix = Directions(id=SourceId("demo", "resid_post.1", "mine"), rows=torch.tensor([[0.0, 2.0]]))
    >>> matrix.encode(torch.tensor([[1.0, 3.0]])).item(), matrix.directions(torch.tensor([0])).tolist()
    (6.0, [[0.0, 0.5]])
    """

    id: SourceId
    rows: Tensor
    """(feature, d_site), float32."""
    offsets: Tensor | None = None
    """(feature,), float32: what is added to each activation; zero where there are none."""
    names: tuple[str, ...] = ()
    """What each row is called; none where the file has no names."""
    provenance: tuple[Mapping[str, object], ...] = ()
    """How each row was found, as the file tells it; none where it does not."""
    signed: bool = True
    separable: bool = True
    rescales: bool = False

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or not len(self.rows):
            raise NeuronautError(f"the directions of {self.id} have shape {tuple(self.rows.shape)}; wanted (n, d_site)")
        if self.offsets is not None and self.offsets.shape != (self.width,):
            raise NeuronautError(f"{self.id} has {self.width} directions and {self.offsets.numel()} offsets")
        if self.names and len(self.names) != self.width:
            raise NeuronautError(
                f"{self.id} has {self.width} directions and {len(self.names)} names; name each, or none"
            )
        finite = self.rows.isfinite().all(1) & (self.offsets is None or self.offsets.isfinite())
        if len(wrong := (~(finite & self.rows.any(1))).nonzero()):
            raise NeuronautError(f"direction {int(wrong[0])} of {self.id} is zero or not finite; leave it out")

    @property
    def width(self) -> int:
        """How many directions there are."""
        return len(self.rows)

    @property
    def reads(self) -> tuple[str, ...]:
        """The site that they are directions of."""
        return (self.id.site,)

    @property
    def writes(self) -> tuple[str, ...]:
        """The same."""
        return (self.id.site,)

    def name(self, index: int) -> str | None:
        """What a row is called; None where the file has no names."""
        return self.names[index] if self.names else None

    @property
    def scale(self) -> str:
        """The scale that the rows are read at, in words."""
        lengths = self.rows.norm(dim=1)
        low, high = float(lengths.min()), float(lengths.max())
        span = f"length {low:.3g}" if low == high else f"lengths {low:.3g} to {high:.3g}"
        zero = "" if self.offsets is None else ", with offsets"
        return f"{self.id}: {self.width} direction{'s' * (self.width > 1)} as the file has them, {span}{zero}"

    @property
    def revision(self) -> str:
        """First 16 hex digits of the SHA-256 of rows and offsets."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(f"directions {tuple(self.rows.shape)}".encode())
        for tensor in (self.rows, *([] if self.offsets is None else [self.offsets])):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> Self:
        """The same directions on another device."""
        offsets = None if self.offsets is None else self.offsets.to(device)
        return replace(self, rows=self.rows.to(device), offsets=offsets)

    def encode(self, vectors: Tensor, features: Features | None = None, *, out: Tensor | None = None) -> Tensor:
        """Projections onto the chosen rows (all by default), and offsets. (row, d_site) -> (row, chosen), float32."""
        chosen = slice(None) if features is None else features
        activations = torch.mm(vectors.float(), self.rows[chosen].T, out=out)
        return activations if self.offsets is None else activations.add_(self.offsets[chosen])

    def edit(
        self,
        vectors: Tensor,
        features: Tensor,
        values: Tensor,
        *,
        inputs: Tensor | None = None,
        site: str | None = None,
    ) -> Tensor:
        """The vectors with the chosen activations at `values` (row, chosen), what is orthogonal to them unchanged.

        Raises NeuronautError where one of the chosen rows is a mixture of others, so that it follows from theirs.
        """
        del inputs, site
        change = (values.float() - self.encode(vectors, features)) @ self._invert(features)
        return vectors + change.to(vectors.dtype)

    def _invert(self, features: Tensor) -> Tensor:
        """What a unit of each chosen activation adds where the others stay. (chosen,) -> (chosen, d_site)."""
        rows = self.rows[features].cpu().double()
        scaled = rows / rows.norm(dim=1, keepdim=True)
        if len(rows) > rows.shape[1] or float(torch.linalg.svdvals(scaled)[-1]) < _INDEPENDENT:
            raise NeuronautError(
                f"the {len(rows)} chosen directions of {self.id} depend on each other, so they cannot be set apart; "
                "choose fewer"
            )
        return torch.linalg.pinv(rows).T.float().to(self.rows.device)

    def directions(self, features: Tensor) -> Tensor:
        """What a unit of each chosen activation adds to a vector. (chosen,) -> (chosen, d_site), float32."""
        rows = self.rows[features].float()
        return rows / rows.square().sum(1, keepdim=True)


def holds_directions(path: str | Path) -> bool:
    """Whether a local file holds directions, going by its suffix and the names and shapes of its tensors."""
    file = Path(path).expanduser()
    if file.suffix not in SUFFIXES or not file.is_file():
        return False
    if file.suffix == ".npy":
        return True
    try:
        with safe_open(file, "pt") as tensors:
            names = set(tensors.keys())
            return "directions" in names and names <= _TENSORS or len(names) == 1
    except (SafetensorError, OSError):
        return False  # The reader of dictionaries says what is wrong with it.


class DirectionFile(NamedTuple):
    """What a file of directions holds."""

    rows: Tensor
    """(feature, d_site), float32."""
    offsets: Tensor | None
    """(feature,), float32."""
    names: tuple[str, ...]
    provenance: tuple[Mapping[str, object], ...]
    site: str | None
    """The site that the file names."""


def read_directions(path: str | Path) -> DirectionFile:
    """Read a file of directions (see the module). Raises NeuronautError where it is none."""
    file = Path(path).expanduser()
    tensors, metadata = _read(file)
    rows = tensors.get("directions", next(iter(tensors.values()), torch.zeros(0))).float()
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.numel() or not set(tensors) <= _TENSORS and len(tensors) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
        raise NeuronautError(f"{file} holds {shapes}; wanted directions of shape (n, d_site), and maybe offsets (n,)")
    offsets = tensors["offsets"].float() if "offsets" in tensors else None
    names, provenance = (_read_list(file, metadata, key) for key in ("names", "provenance"))
    counts = {"offsets": len(rows) if offsets is None else offsets.numel(), "names": len(names)}
    for part, count in (counts | {"provenance": len(provenance)}).items():
        if count not in (len(rows), 0) or (part == "offsets" and count == 0):
            raise NeuronautError(f"{file} has {len(rows)} directions and {count} {part}; wanted one for each, or none")
    return DirectionFile(
        rows.contiguous(),
        offsets,
        tuple(map(str, names)),
        tuple(row if isinstance(row, dict) else {} for row in provenance),
        metadata.get("site"),
    )


def load_directions(path: str | Path, *, id: SourceId, d_site: int, device: torch.device | str = "cpu") -> Directions:
    """Open a file of directions as a source. `d_site`: the width of the subject's vectors at `id.site`.

    Raises NeuronautError where it cannot be read, or is of another width or site.
    """
    if split_random(id.dictionary or "")[1] is not None:
        raise NeuronautError(f"{id} would draw directions again, which means nothing; use --randomize weights")
    held = read_directions(path)
    if held.rows.shape[1] != d_site:
        raise NeuronautError(
            f"{path} holds directions of shape {tuple(held.rows.shape)}; wanted (n, {d_site}), the width of {id.site}"
        )
    if held.site not in (None, id.site):
        raise NeuronautError(f"{path} holds directions of {held.site}, but {id.site} is asked for; give it {held.site}")
    return Directions(id=id, rows=held.rows, offsets=held.offsets, names=held.names, provenance=held.provenance).to(
        device
    )


def save_directions(
    path: str | Path,
    rows: Tensor,
    *,
    site: str,
    offsets: Tensor | None = None,
    names: Sequence[str] = (),
    provenance: Sequence[Mapping[str, object]] = (),
) -> None:
    """Write a .safetensors file that `load_directions` reads. rows: (feature, d_site), offsets: (feature,)."""
    if Path(path).suffix != ".safetensors":
        raise NeuronautError(f"{path} has no name of a safetensors file; end it in .safetensors")
    tensors = {"directions": rows, **({} if offsets is None else {"offsets": offsets})}
    metadata = {"site": site, "names": json.dumps(list(names)), "provenance": json.dumps(list(provenance))}
    save_file({name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file."""
    try:
        if file.suffix == ".npy":
            return {"directions": torch.from_numpy(np.load(file, allow_pickle=False))}, {}
        with safe_open(file, "pt") as opened:
            return load_file(file), opened.metadata() or {}
    except (SafetensorError, OSError, ValueError, EOFError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise NeuronautError(f"{file} cannot be read ({reason}); wanted a .npy or .safetensors matrix") from error


def _read_list(file: Path, metadata: Mapping[str, str], key: str) -> list[object]:
    try:
        value: object = json.loads(metadata.get(key, "[]"))
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise NeuronautError(f"{file}: its {key} are no JSON list; write them anew, or leave them out")
    return value
