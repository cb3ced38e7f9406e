"""Dictionaries (sparse autoencoders) in one canonical form, whatever file they came from.

    linear         = (norm(vectors) - b_dec) @ W_enc + b_enc       b_dec only where `subtract_b_dec`
    activations    = standard: relu(linear)
                     topk:     relu(linear) at the k largest of each row, 0 elsewhere
                     jumprelu: linear where linear > max(threshold, 0), 0 elsewhere
                     gated:    relu((linear - b_enc) * exp(r_mag) + b_mag) where linear > 0, 0 elsewhere
    reconstruction = undo_norm(activations @ W_dec + b_dec)

Whatever else a file asks for (a constant scale of its inputs, decoder norms, centred inputs) is
folded into these tensors when it is read (see `formats.py`). The encoder lies in memory feature by
feature, so that any slice of features is a view and any choice of them a gather of whole rows.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from .address import SourceId
from .errors import NeuronautError
from .sources import Features

Kind = Literal["standard", "topk", "jumprelu", "gated"]
Norm = Literal["none", "constant_norm_rescale", "layer_norm"]

EXTRAS: Mapping[Kind, tuple[str, ...]] = {
    "standard": (),
    "topk": (),
    "jumprelu": ("threshold",),
    "gated": ("b_mag", "r_mag"),
}
"""The (feature,) tensors that a kind needs beside W_enc, W_dec, b_enc and b_dec."""


class Normalised(NamedTuple):
    """Vectors as the encoder takes them, and what turns its reconstruction back: `y * scale + mean`."""

    vectors: Tensor
    """(row, d_site)."""
    scale: Tensor | float
    """(row, 1) where it differs between vectors."""
    mean: Tensor | float
    """(row, 1) where it differs between vectors."""


def _leave_unchanged(vectors: Tensor) -> Normalised:
    return Normalised(vectors, 1.0, 0.0)


def _rescale(vectors: Tensor) -> Normalised:
    scale = vectors.norm(dim=-1, keepdim=True) / math.sqrt(vectors.shape[-1])
    return Normalised(vectors / scale, scale, 0.0)


def _standardise(vectors: Tensor) -> Normalised:
    mean = vectors.mean(dim=-1, keepdim=True)
    centred = vectors - mean
    deviation = centred.std(dim=-1, keepdim=True)
    # SAELens adds its epsilon on the way in only; so do the trained weights.
    return Normalised(centred / (deviation + 1e-5), deviation, mean)


NORMS: Mapping[Norm, Callable[[Tensor], Normalised]] = {
    "none": _leave_unchanged,
    "constant_norm_rescale": _rescale,
    "layer_norm": _standardise,
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Dictionary:
    """A sparse autoencoder as a source: F features that encode and rebuild a site's vectors.

    Tensors are float32. Raises NeuronautError where a tensor is missing, misshapen or not finite.

    >>> import torch
    >>> sae = Dictionary(
    ...     id=SourceId("demo", "resid_post.1", "mine"), kind="standard", W_enc=torch.eye(64), W_dec=torch.eye(64),
    ...     b_enc=torch.zeros(64), b_dec=torch.zeros(64),
    ... )
    >>> sae.encode(torch.full((1, 64), -1.0)).max().item()
    0.0
    """

    id: SourceId
    kind: Kind
    W_enc: Tensor
    """(d_site, F); fastest as the transpose of a contiguous (F, d_site)."""
    W_dec: Tensor
    """(F, d_site)."""
    b_enc: Tensor
    """(F,); for gated, the bias of the gate."""
    b_dec: Tensor
    """(d_site,)."""
    subtract_b_dec: bool = True
    """Whether the encoder sees vectors from which b_dec was taken."""
    norm: Norm = "none"
    """What is done to every single vector before it is encoded, and undone after it is decoded."""
    k: int = 0
    """Features kept per vector; only for topk."""
    threshold: Tensor | None = None
    """(F,); only for jumprelu."""
    b_mag: Tensor | None = None
    """(F,); only for gated."""
    r_mag: Tensor | None = None
    """(F,), the logarithm of a gain; only for gated."""
    prepend_bos: bool | None = None
    """Whether its training text had BOS before each row; None where its files do not say."""

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2:
            raise NeuronautError(f"W_enc of {self.id} has shape {tuple(self.W_enc.shape)}; wanted (d_site, features)")
        d_site, width = self.W_enc.shape
        shapes = {"W_dec": (width, d_site), "b_enc": (width,), "b_dec": (d_site,)}
        shapes |= {name: (width,) for name in EXTRAS[self.kind]}
        tensors = self.tensors()
        for name, shape in shapes.items():
            if name not in tensors or tensors[name].shape != shape:
                problem = f"has shape {tuple(tensors[name].shape)}" if name in tensors else "is missing"
                raise NeuronautError(
                    f"{name} of {self.id} {problem}; wanted {shape} beside W_enc {(d_site, width)} in a {self.kind} SAE"
                )
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise NeuronautError(f"{name} of {self.id} holds NaN or infinite values; the file is damaged")
        if self.kind == "topk" and not 0 < self.k <= width:
            raise NeuronautError(f"{self.id} is a TopK SAE with k={self.k}; wanted 1 to {width}, its width")

    @property
    def width(self) -> int:
        """How many features there are."""
        return self.W_enc.shape[1]

    @property
    def d_site(self) -> int:
        """Width of the vectors that it encodes."""
        return self.W_enc.shape[0]

    @property
    def signed(self) -> bool:
        """Never: activations are at least 0."""
        return False

    @property
    def separable(self) -> bool:
        """False for topk, in which all features compete."""
        return self.kind != "topk"

    @property
    def rescales(self) -> bool:
        """Whether every vector is normed by its own size, so that a feature adds to it in proportion to that size."""
        return self.norm != "none"

    @property
    def revision(self) -> str:
        """First 16 hex digits of the SHA-256 of all that decides the activations and the reconstruction."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(f"{self.kind} {self.k} {self.norm} {self.subtract_b_dec}".encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f" {name} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def tensors(self) -> dict[str, Tensor]:
        """The canonical tensors by field name, those of other kinds left out."""
        required = {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_enc": self.b_enc, "b_dec": self.b_dec}
        extras = {"threshold": self.threshold, "b_mag": self.b_mag, "r_mag": self.r_mag}
        return required | {name: tensor for name, tensor in extras.items() if tensor is not None}

    def to(self, device: torch.device | str) -> Self:
        """The same dictionary on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def encode(self, vectors: Tensor, features: Features | None = None, *, out: Tensor | None = None) -> Tensor:
        """Activations of the chosen features (all by default). (row, d_site) -> (row, chosen), float32.

        `out`, where given, is a contiguous float32 (row, chosen) buffer that receives and is the result; beside
        it a separable kind takes at most a mask of its size, one byte an activation.
        """
        inputs = NORMS[self.norm](vectors.float()).vectors
        if self.subtract_b_dec:
            inputs = inputs - self.b_dec
        if self.separable or features is None:
            return _ACTIVATIONS[self.kind](self, self._linear(inputs, features, out), features)
        chosen = _topk(self, self._linear(inputs, None, None), None)[:, features]
        return chosen if out is None else out.copy_(chosen)

    def decode(self, activations: Tensor, *, vectors: Tensor | None = None) -> Tensor:
        """The site's vectors rebuilt. (row, F) -> (row, d_site).

        `vectors` (row, d_site) are those that were encoded; without them the result is in the units of `norm`.
        """
        rebuilt = torch.addmm(self.b_dec, activations, self.W_dec)
        if vectors is None:
            return rebuilt
        normalised = NORMS[self.norm](vectors.float())
        return rebuilt * normalised.scale + normalised.mean

    def reconstruct(self, vectors: Tensor) -> Tensor:
        """What the features say of the vectors. (row, d_site) -> (row, d_site)."""
        return self.decode(self.encode(vectors), vectors=vectors)

    def edit(self, vectors: Tensor, features: Tensor, values: Tensor) -> Tensor:
        """The site's vectors with the chosen features set to `values` (row, chosen), nothing else changed.

        Error-preserving: `x + dec(z') - dec(z)`, in which all other features and the error cancel.
        """
        change = (values.float() - self.encode(vectors, features)) @ self.W_dec[features]
        return vectors + (change * NORMS[self.norm](vectors.float()).scale).to(vectors.dtype)

    def directions(self, features: Tensor) -> Tensor:
        """What a unit of each chosen feature's activation adds to a vector, in the units of `norm`."""
        return self.W_dec[features]

    def _linear(self, inputs: Tensor, features: Features | None, out: Tensor | None) -> Tensor:
        chosen = slice(None) if features is None else features
        return torch.addmm(self.b_enc[chosen], inputs, self.W_enc.T[chosen].T, out=out)


def _relu(dictionary: Dictionary, linear: Tensor, features: Features | None) -> Tensor:
    del dictionary, features
    return linear.relu_()


def _topk(dictionary: Dictionary, linear: Tensor, features: Features | None) -> Tensor:
    del features
    largest = linear.topk(dictionary.k, dim=-1, sorted=False)
    return linear.zero_().scatter_(-1, largest.indices, largest.values.relu())


def _jumprelu(dictionary: Dictionary, linear: Tensor, features: Features | None) -> Tensor:
    threshold = _select(dictionary.threshold, features).clamp(min=0)
    return linear.masked_fill_(linear <= threshold, 0)


def _gated(dictionary: Dictionary, linear: Tensor, features: Features | None) -> Tensor:
    closed = linear <= 0
    magnitude = linear.sub_(_select(dictionary.b_enc, features)).mul_(_select(dictionary.r_mag, features).exp())
    return magnitude.add_(_select(dictionary.b_mag, features)).masked_fill_(closed, 0).relu_()


def _select(tensor: Tensor | None, features: Features | None) -> Tensor:
    assert tensor is not None, "__post_init__ holds that every kind has its tensors"
    return tensor if features is None else tensor[features]


_ACTIVATIONS: Mapping[Kind, Callable[[Dictionary, Tensor, Features | None], Tensor]] = {
    "standard": _relu,
    "topk": _topk,
    "jumprelu": _jumprelu,
    "gated": _gated,
}
"""Each turns `linear` (row, chosen) into activations in place."""
