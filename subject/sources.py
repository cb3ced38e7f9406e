"""Sources: families of features that are read at one site, or at several.

The protocol is all that the harvest, the explainers and the interventions use of a source; neurons
are the site's own coordinates, a dictionary (see `dictionary.py`) encodes the site's vector. All of
these write where they read, except a transcoder: its features are read at one site and act at another.

A crosscoder reads several sites, and a cross-layer transcoder writes several. Their vectors are those of the sites
side by side, in the order of `reads` and of `writes`, all of one width; a source's address names the last site that it
reads, where its activations are known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .address import SourceId
from .errors import NeuronautError

Features = slice | Tensor
"""Which features: a slice, or an index tensor of shape (chosen,)."""


class Source(Protocol):
    """A family of features at a site."""

    @property
    def id(self) -> SourceId:
        """What it is called in addresses."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """The sites whose vectors, side by side, it encodes: `id.site`, and of a crosscoder others before it."""
        ...

    @property
    def writes(self) -> tuple[str, ...]:
        """The sites that edits and directions are of: those that it reads, but of a transcoder others."""
        ...

    @property
    def revision(self) -> str:
        """What its weights are known by; empty where it has none beside the model's, as neurons."""
        ...

    @property
    def width(self) -> int:
        """How many features there are."""
        ...

    @property
    def signed(self) -> bool:
        """Whether activations go below zero, so that the negative tail is worth keeping."""
        ...

    @property
    def separable(self) -> bool:
        """Whether a few features cost less than all (False for TopK, which ranks all of them)."""
        ...

    @property
    def rescales(self) -> bool:
        """Whether what an activation adds to a vector is multiplied by a positive number of that vector's own."""
        ...

    @property
    def looks_back(self) -> bool:
        """Whether what `join` gives of a position depends on those before it in its row."""
        ...

    def join(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """What `encode` takes, of the vectors by site (row, position, width): (row, position, d_site).

        Where it `looks_back`, the rows are whole, BOS included where they have one, and NeuronautError is raised for
        others.
        """
        ...

    def encode(self, vectors: Tensor, features: Features | None = None, *, out: Tensor | None = None) -> Tensor:
        """Activations of the chosen features (all by default). (row, d_site) -> (row, chosen).

        The vectors are what `join` gives.

        `out`, where given, is a contiguous float32 (row, chosen) buffer that receives and is the result.
        """
        ...

    def edit(
        self,
        vectors: Tensor,
        features: Tensor,
        values: Tensor,
        *,
        inputs: Tensor | None = None,
        site: str | None = None,
    ) -> Tensor:
        """The vectors at `writes` with the chosen features set to `values` (row, chosen), nothing else changed.

        For a dictionary this is error-preserving: `x + dec(z') - dec(z)`. `inputs` (row, d_site) are the vectors that
        the features are read from; None where these are `vectors`. With a `site`, one of `writes`, the vectors are of
        that one alone.
        """
        ...

    def directions(self, features: Tensor) -> Tensor:
        """What a unit of each chosen feature's activation adds at `writes`. (chosen,) -> (chosen, d_out), float32."""
        ...


def join_vectors(vectors: Mapping[str, Tensor], sites: Sequence[str]) -> Tensor:
    """The vectors of sites side by side, (..., sum of widths); those of a single site as they are."""
    parts = [vectors[site] for site in sites]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def split_vectors(joined: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
    """By site, its part of vectors that stand side by side: the inverse of `join_vectors`, as views."""
    return dict(zip(sites, joined.chunk(len(sites), dim=-1), strict=True))


def require_one_site(source: Source, purpose: str) -> str:
    """The one site that a source writes. Raises NeuronautError where it reads or writes several.

    `purpose` is what cannot be done with several, such as "attribution by gradients".
    """
    if len(source.reads) > 1 or len(source.writes) > 1:
        raise NeuronautError(
            f"{source.id} reads {', '.join(source.reads)} and writes {', '.join(source.writes)}, and {purpose} is of "
            "one site; it can be harvested, labelled, tried, found and edited"
        )
    return next(iter(source.writes))


def require_vectorwise(source: Source, purpose: str) -> None:
    """Raise NeuronautError where a source looks back; `purpose`, such as "a linear probe", is of single vectors."""
    if source.looks_back:
        raise NeuronautError(
            f"{source.id} reads each vector beside what those before it predict of it, and {purpose} is of single "
            "vectors; it can be harvested, labelled, tried, found and edited on given text"
        )


class Vectorwise:
    """What the sources that encode vector by vector have in common."""

    __slots__ = ()

    @property
    def looks_back(self) -> bool:
        """False."""
        return False

    def join(self: Source, vectors: Mapping[str, Tensor]) -> Tensor:
        """The vectors of the sites that it reads, side by side."""
        return join_vectors(vectors, self.reads)


@dataclass(frozen=True, slots=True)
class Neurons(Vectorwise):
    """The coordinates of a site themselves, for example the neurons `mlp.L`."""

    id: SourceId
    width: int
    signed: bool = True
    separable: bool = True
    rescales: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The site that they are the coordinates of."""
        return (self.id.site,)

    @property
    def writes(self) -> tuple[str, ...]:
        """The same."""
        return (self.id.site,)

    @property
    def revision(self) -> str:
        """Empty: neurons have no weights beside the model's."""
        return ""

    def encode(self, vectors: Tensor, features: Features | None = None, *, out: Tensor | None = None) -> Tensor:
        """The coordinates themselves. (row, d_site) -> (row, chosen)."""
        chosen = vectors if features is None else vectors[:, features]
        return chosen if out is None else out.copy_(chosen)

    def edit(
        self,
        vectors: Tensor,
        features: Tensor,
        values: Tensor,
        *,
        inputs: Tensor | None = None,
        site: str | None = None,
    ) -> Tensor:
        """The vectors with the chosen coordinates set to `values` (row, chosen)."""
        del inputs, site
        edited = vectors.clone()
        edited[:, features] = values.to(edited.dtype)
        return edited

    def directions(self, features: Tensor) -> Tensor:
        """The basis vectors of the chosen coordinates. (chosen,) -> (chosen, d_site), float32."""
        return one_hot(features, self.width).float()
