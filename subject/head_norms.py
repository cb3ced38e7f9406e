"""Attention heads as features: how large the vector is that a head writes.

Head h writes z_h W_O[h], and its activation is the length of that, so that heads can be compared: the length of z alone
says nothing of what the output projection makes of it. Where a family norms what attention gives once more (Gemma 2),
the length is that before the norm. With W_O[h]^T = Q R (QR decomposition) it is the length of R z_h, of d_head
coordinates instead of d_model.
"""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from .address import SourceId
from .directions import branch, without_bias
from .errors import NeuronautError
from .model import Subject
from .sources import Features, Vectorwise

NAME = "norm"
"""The source's name behind its site: `head.3@norm`."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadNorms(Vectorwise):
    """The heads of a layer, each with the length of what it writes."""

    id: SourceId
    roots: Tensor = field(repr=False)
    """R of each head, (head, rank, d_head), float32."""
    revision: str = ""
    signed: bool = False
    separable: bool = True
    rescales: bool = True

    @classmethod
    def of(cls, subject: Subject, id: SourceId) -> Self:
        """The heads of the layer that `id.site`, a `head.L`, is of."""
        projection, _ = branch(subject, id.site)
        heads = subject.heads(id.site)
        if heads is None or projection is None or not id.site.startswith("head."):
            raise NeuronautError(f"{id} is of no heads; lengths are of head.L, such as head.3@{NAME}")
        written = without_bias(projection, torch.eye(subject.width(id.site), device=subject.device))
        return cls(id, torch.linalg.qr(written.unflatten(0, (heads, -1)).transpose(1, 2)).R)

    @property
    def reads(self) -> tuple[str, ...]:
        """The site of the heads."""
        return (self.id.site,)

    @property
    def writes(self) -> tuple[str, ...]:
        """The same."""
        return (self.id.site,)

    @property
    def width(self) -> int:
        """How many heads there are."""
        return len(self.roots)

    def encode(self, vectors: Tensor, features: Features | None = None, *, out: Tensor | None = None) -> Tensor:
        """How large what each chosen head writes is. (row, head * d_head) -> (row, chosen)."""
        chosen = slice(None) if features is None else features
        z = vectors.float().unflatten(-1, (self.width, -1))[:, chosen]
        lengths = torch.einsum("rhd,hkd->rhk", z, self.roots[chosen]).norm(dim=-1)
        return lengths if out is None else out.copy_(lengths)

    def edit(
        self,
        vectors: Tensor,
        features: Tensor,
        values: Tensor,
        *,
        inputs: Tensor | None = None,
        site: str | None = None,
    ) -> Tensor:
        """The vectors in which the chosen heads write as much as `values` (row, chosen) say, in the same direction.

        Raises NeuronautError for a value below zero, and where a head that writes nothing shall write something.
        """
        del inputs, site
        before = self.encode(vectors, features)
        if bool((values < 0).any()) or bool(((before == 0) & (values > 0)).any()):
            raise NeuronautError(f"{self.id} is a length: it is never below 0, and nothing has no direction to grow in")
        edited = vectors.unflatten(-1, (self.width, -1)).clone()
        factor = torch.where(before > 0, values / before.clamp_min(torch.finfo(before.dtype).tiny), 0.0)
        edited[:, features] *= factor[..., None].to(edited.dtype)
        return edited.flatten(-2)

    def directions(self, features: Tensor) -> Tensor:
        """Refused: what a head writes has another direction at each token."""
        del features
        raise NeuronautError(
            f"{self.id} has no directions, because a head writes another one at each token; ablate it, or take a "
            "direction in what it writes as a source"
        )
