"""Attention heads as features: how much each head writes along one direction of the residual stream.

Head h writes z_h W_O[h], and its activation is (z_h W_O[h]) · u, which is linear in z. The direction u is a vector of a
file, taken at unit length, or `token:" Paris"`: what raises that token's logit above the vocabulary's mean, so that
the activation is direct logit attribution, in logits times the final norm's denominator. Norms on the way are
taken as `directions.py` takes them: all of them but the division by a vector's size.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from .address import SourceId
from .directions import branch, pull_back, unembedding, without_bias
from .errors import NeuronautError
from .model import Subject
from .sources import Features, Vectorwise

ALONG = "along:"
"""Begins what the store keeps as the place of such a source; the direction follows."""
_TOKEN = "token:"


@dataclass(frozen=True, slots=True, eq=False)
class HeadWrites(Vectorwise):
    """The heads of a layer, each with what it writes along a direction."""

    id: SourceId
    readers: Tensor = field(repr=False)
    """W_O[h] u of each head, (head, d_head), float32."""
    revision: str
    rescales: bool
    signed: bool = True
    separable: bool = True

    @classmethod
    def of(cls, subject: Subject, id: SourceId, along: str) -> Self:
        """The heads of the layer that `id.site`, a `head.L`, is of; `along` is a file or `token:" Paris"`."""
        projection, norm = branch(subject, id.site)
        heads = subject.heads(id.site)
        if heads is None or projection is None or not id.site.startswith("head."):
            raise NeuronautError(f"{id} is of no heads; what is written along a direction is of head.L, such as head.3")
        vector = read_direction(subject, along)
        # Of a token its text, since devices round its vector differently.
        known = along.encode() if along.startswith(_TOKEN) else vector.cpu().numpy().tobytes()
        digest = hashlib.sha256(known).hexdigest()[:16]
        if norm is not None:
            vector = pull_back(norm, vector)
        written = without_bias(projection, torch.eye(subject.width(id.site), device=subject.device))
        factor = subject.architecture.branch_factor(subject.model.config)
        return cls(id, (written @ vector * factor).unflatten(0, (heads, -1)), digest, rescales=norm is not None)

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
        return len(self.readers)

    def encode(self, vectors: Tensor, features: Features | None = None, *, out: Tensor | None = None) -> Tensor:
        """What each chosen head writes along the direction. (row, head * d_head) -> (row, chosen)."""
        chosen = slice(None) if features is None else features
        z = vectors.float().unflatten(-1, (self.width, -1))[:, chosen]
        written = torch.einsum("rhd,hd->rh", z, self.readers[chosen])
        return written if out is None else out.copy_(written)

    def edit(
        self,
        vectors: Tensor,
        features: Tensor,
        values: Tensor,
        *,
        inputs: Tensor | None = None,
        site: str | None = None,
    ) -> Tensor:
        """The vectors in which the chosen heads write `values` (row, chosen) there, by the least change."""
        del inputs, site
        change = (values - self.encode(vectors, features))[..., None] * self._least(features)
        edited = vectors.unflatten(-1, (self.width, -1)).clone()
        edited[:, features] += change.to(edited.dtype)
        return edited.flatten(-2)

    def directions(self, features: Tensor) -> Tensor:
        """What a unit of each chosen head's activation adds to z, at least. (chosen,) -> (chosen, d_site), float32."""
        added = self.readers.new_zeros(len(features), *self.readers.shape)
        added[torch.arange(len(features)), features] = self._least(features)
        return added.flatten(1)

    def _least(self, features: Tensor) -> Tensor:
        """The shortest change of z_h that adds 1, (chosen, d_head); zero where the head cannot write there."""
        readers = self.readers[features]
        return readers / readers.square().sum(-1, keepdim=True).clamp_min(torch.finfo(readers.dtype).tiny)


def read_direction(subject: Subject, along: str) -> Tensor:
    """A direction of the residual stream, (d_model,), float32: of a token's logit, or of a file, at unit length."""
    if along.startswith(_TOKEN):
        return _read_token(subject, along.removeprefix(_TOKEN))
    path = Path(along).expanduser()
    if not path.is_file() or path.suffix not in (".npy", ".safetensors"):
        raise NeuronautError(f'{along!r} is no direction; wanted a .npy or .safetensors file, or token:" Paris"')
    try:
        tensors = list(load_file(path).values()) if path.suffix == ".safetensors" else [torch.from_numpy(np.load(path))]
    except (ValueError, OSError) as error:
        raise NeuronautError(f"{path} cannot be read: {error}") from error
    vectors = [tensor.float().squeeze() for tensor in tensors]
    if len(vectors) != 1 or vectors[0].shape != (subject.d_model,) or not 0 < float(vectors[0].norm()) < torch.inf:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise NeuronautError(
            f"{path} holds shapes {shapes}; wanted one vector ({subject.d_model},) of finite length above 0"
        )
    return (vectors[0] / vectors[0].norm()).to(subject.device)


def _read_token(subject: Subject, quoted: str) -> Tensor:
    try:
        token = json.loads(quoted) if quoted.startswith('"') else quoted
    except ValueError as error:
        raise NeuronautError(f'{quoted} is no quoted token; wanted for example token:" Paris"') from error
    if token not in subject.vocabulary:
        raise NeuronautError(f'{subject.name} has no token {token!r}; give one with its space, such as token:" Paris"')
    return unembedding(subject, [subject.vocabulary.index(token)])[0]
