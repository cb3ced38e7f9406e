"""Dictionaries (sparse autoencoders, transcoders, crosscoders) in one canonical form, whatever file they came from.

    linear         = (norm(vectors) - b_dec) @ W_enc + b_enc       b_dec only where `subtract_b_dec`
    activations    = standard: relu(linear)
                     topk:     relu(linear) at the k largest of each row, 0 elsewhere
                     abstopk:  linear at the k of each row that are farthest from 0, 0 elsewhere
                     groupmax: relu(linear) at the largest of each of k groups of neighbours, 0 elsewhere
                     jumprelu: linear where linear > max(threshold, 0), 0 elsewhere
                     gated:    relu((linear - b_enc) * exp(r_mag) + b_mag) where linear > 0, 0 elsewhere
                     matching_pursuit: feature after feature, with W_dec alone, see pursuit.py
    reconstruction = undo_norm(activations @ W_dec + b_dec) + vectors @ W_skip      W_skip only where there is one

An autoencoder rebuilds the vectors that it reads. A transcoder reads one site, `id.site`, and rebuilds another,
`writes`: its features are families of the site that they are read at, and their directions lie where it writes.
A crosscoder reads and rebuilds the vectors of several sites side by side: its W_enc is one encoder a site below the
other, whose results are summed, and its W_dec one decoder a site beside the other. One layer of a cross-layer
transcoder (CLT) reads one site and adds to several, which only all layers together rebuild (`companions`).
A temporal dictionary takes off what the earlier vectors of a row predict before it encodes, and puts it back after it
has decoded (see temporal.py); what it encodes is the vector beside that prediction, as `join` gives them.

Whatever else a file asks for (a constant scale of its inputs, decoder norms, centred inputs) is
folded into these tensors when it is read (see `formats.py`). The encoder lies in memory feature by
feature, so that any slice of features is a view and any choice of them a gather of whole rows.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from .address import SourceId
from .errors import NeuronautError
from .pursuit import Pursuit, pursue
from .sources import Features, join_vectors, split_vectors
from .temporal import Temporal

Kind = Literal["standard", "topk", "abstopk", "groupmax", "jumprelu", "gated", "matching_pursuit"]
Norm = Literal["none", "constant_norm_rescale", "layer_norm"]

EXTRAS: Mapping[Kind, tuple[str, ...]] = {
    "standard": (),
    "topk": (),
    "abstopk": (),
    "groupmax": (),
    "jumprelu": ("threshold",),
    "gated": ("b_mag", "r_mag"),
    "matching_pursuit": (),
}
"""The (feature,) tensors that a kind needs beside W_enc, W_dec, b_enc and b_dec."""
RANKED: frozenset[Kind] = frozenset({"topk", "abstopk", "groupmax"})
"""The kinds in which features compete for k places."""


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
    """A sparse autoencoder, transcoder or crosscoder as a source: F features that encode vectors and rebuild vectors.

    Where it reads or writes several sites, d_site and d_out are the sums of their widths, which are alike.

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
    """(d_site, F); fastest as the transpose of a contiguous (F, d_site). W_dec turned for matching_pursuit."""
    W_dec: Tensor
    """(F, d_out); d_out is d_site but for a transcoder."""
    b_enc: Tensor
    """(F,); for gated, the bias of the gate; not used by matching_pursuit."""
    b_dec: Tensor
    """(d_out,)."""
    subtract_b_dec: bool = True
    """Whether the encoder sees vectors from which b_dec was taken."""
    norm: Norm = "none"
    """What is done to every single vector before it is encoded, and undone after it is decoded but by a transcoder."""
    k: int = 0
    """Features kept per vector for topk and abstopk, groups for groupmax; 0 for the others."""
    pursuit: Pursuit | None = None
    """When a vector's encoding ends; only for matching_pursuit."""
    temporal: Temporal | None = None
    """What predicts a vector from those before it; only of a temporal dictionary."""
    threshold: Tensor | None = None
    """(F,); only for jumprelu."""
    b_mag: Tensor | None = None
    """(F,); only for gated."""
    r_mag: Tensor | None = None
    """(F,), the logarithm of a gain; only for gated."""
    targets: tuple[str, ...] = ()
    """The sites that it rebuilds, where they are not simply `id.site`: of a transcoder and of a crosscoder."""
    inputs: tuple[str, ...] = ()
    """The sites that a crosscoder reads, the last of them `id.site`; empty where that is the only one."""
    companions: "Callable[[], Iterable[Dictionary]] | None" = None
    """Of one layer of a cross-layer transcoder, what opens the other layers, one after the other."""
    W_skip: Tensor | None = None
    """(d_site, d_out); only where a transcoder has an affine path beside its features."""
    prepend_bos: bool | None = None
    """Whether its training text had BOS before each row; None where its files do not say."""

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2:
            raise NeuronautError(f"W_enc of {self.id} has shape {tuple(self.W_enc.shape)}; wanted (d_site, features)")
        d_site, width = self.W_enc.shape
        d_out = d_site if not self.targets or self.W_dec.ndim != 2 else self.d_out
        shapes = {"W_dec": (width, d_out), "b_enc": (width,), "b_dec": (d_out,)}
        shapes |= {name: (width,) for name in EXTRAS[self.kind]}
        if self.W_skip is not None:
            shapes["W_skip"] = (d_site, d_out)
        tensors = self.tensors()
        for name, shape in shapes.items():
            if name not in tensors or tensors[name].shape != shape:
                problem = f"has shape {tuple(tensors[name].shape)}" if name in tensors else "is missing"
                raise NeuronautError(
                    f"{name} of {self.id} {problem}; wanted {shape} beside W_enc {(d_site, width)} in a {self.kind} SAE"
                )
        for name, tensor in (tensors | self._attention()).items():
            if not torch.isfinite(tensor).all():
                raise NeuronautError(f"{name} of {self.id} holds NaN or infinite values; the file is damaged")
        if self.kind in RANKED and not 0 < self.k <= width:
            raise NeuronautError(f"{self.id} is a {self.kind} SAE with k={self.k}; wanted 1 to {width}, its width")
        if self.kind == "groupmax" and width % self.k:
            raise NeuronautError(f"{self.id} has {width} features in {self.k} groups; wanted groups of one size")
        if (self.kind == "matching_pursuit") != (self.pursuit is not None) or (self.pursuit and self.targets):
            raise NeuronautError(f"{self.id} is a {self.kind} SAE; wanted matching_pursuit of one site with its ends")
        if self.temporal is not None and (self.targets or self.pursuit):
            raise NeuronautError(f"{self.id} is temporal; wanted no matching pursuit, and one site to read and rebuild")
        self._check_sites()

    def _check_sites(self) -> None:
        """Refuse sites that do not go with the other fields."""
        if self.targets and self.subtract_b_dec:
            raise NeuronautError(
                f"{self.id} takes b_dec, a vector of {', '.join(self.targets)}, off vectors of {', '.join(self.reads)}"
                "; a transcoder wants subtract_b_dec=False (apply_b_dec_to_input false in SAELens' cfg.json)"
            )
        if self.inputs and (self.inputs[-1] != self.id.site or not self.targets or self.norm != "none"):
            raise NeuronautError(
                f"{self.id} reads {', '.join(self.inputs)}: a crosscoder is called after the last site that it reads, "
                "names those that it writes, and norms no vectors"
            )
        for sites, width in ((self.reads, self.d_site), (self.writes, self.d_out)):
            if width % len(sites) or len(set(sites)) < len(sites):
                raise NeuronautError(
                    f"{self.id} has {width} coordinates for {', '.join(sites)}; wanted different sites of one width"
                )

    @property
    def width(self) -> int:
        """How many features there are."""
        return self.W_enc.shape[1]

    @property
    def d_site(self) -> int:
        """Width of the vectors that it encodes."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of the vectors that it rebuilds."""
        return self.W_dec.shape[1]

    @property
    def reads(self) -> tuple[str, ...]:
        """The sites whose vectors, side by side, it encodes."""
        return self.inputs or (self.id.site,)

    @property
    def writes(self) -> tuple[str, ...]:
        """The sites that it rebuilds, side by side, at which its features' directions lie."""
        return self.targets or (self.id.site,)

    def written_norms(self) -> Tensor:
        """How long each feature's decoder vector is at each site that is written, (F, site), in the sites' units."""
        return self.W_dec.unflatten(1, (len(self.writes), -1)).norm(dim=-1)

    @property
    def signed(self) -> bool:
        """Only for abstopk: else activations are at least 0."""
        return self.kind == "abstopk"

    @property
    def separable(self) -> bool:
        """False for the kinds in which features compete."""
        return self.kind not in RANKED and self.pursuit is None

    @property
    def rescales(self) -> bool:
        """Whether every vector is normed by its own size, so that a feature adds to it in proportion to that size."""
        return self.norm != "none" and not self.targets

    @property
    def looks_back(self) -> bool:
        """Whether it is temporal."""
        return self.temporal is not None

    @property
    def revision(self) -> str:
        """First 16 hex digits of the SHA-256 of all that decides the activations and the reconstruction."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(f"{self.kind} {self.k} {self.norm} {self.subtract_b_dec}".encode())
        digest.update(f" {self.pursuit}".encode() if self.pursuit else b"")
        # Only of a transcoder, so that the revisions of autoencoders stay what they were.
        digest.update(f" writes {' '.join(self.targets)}".encode() if self.targets else b"")
        digest.update(f" reads {' '.join(self.inputs)}".encode() if self.inputs else b"")
        digest.update(f" temporal {self.temporal.heads} {self.temporal.epsilon}".encode() if self.temporal else b"")
        for name, tensor in sorted((self.tensors() | self._attention()).items()):
            digest.update(f" {name} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def tensors(self) -> dict[str, Tensor]:
        """The canonical tensors by field name, those of other kinds left out."""
        required = {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_enc": self.b_enc, "b_dec": self.b_dec}
        extras = {"threshold": self.threshold, "b_mag": self.b_mag, "r_mag": self.r_mag, "W_skip": self.W_skip}
        return required | {name: tensor for name, tensor in extras.items() if tensor is not None}

    def to(self, device: torch.device | str) -> Self:
        """The same dictionary on another device."""
        temporal = self.temporal and self.temporal.map(lambda _, tensor: tensor.to(device))
        tensors = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, temporal=temporal, **tensors)

    def _attention(self) -> dict[str, Tensor]:
        """The tensors of a temporal dictionary's attention, by name."""
        return {} if self.temporal is None else dict(self.temporal.tensors)

    def join(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """What it encodes, of the vectors by site: those of `reads` side by side, (row, position, d_site).

        Of a temporal dictionary each vector beside its prediction, (row, position, 2 * d_site), float32.
        Raises NeuronautError where it is given single vectors of rows.
        """
        joined = join_vectors(vectors, self.reads)
        if self.temporal is None:
            return joined
        if joined.ndim != 3:
            raise self._refuse_alone()
        own = joined.float()
        prediction = self.temporal.predict(self._normalise(own), self.W_enc, self.W_dec)
        return torch.cat([own, prediction], dim=-1)

    def _refuse_alone(self) -> NeuronautError:
        return NeuronautError(
            f"{self.id} reads each vector beside what those before it predict of it, and was given single vectors; "
            "give whole rows of text, and an edit a number in place of a mean or quantile of reference text"
        )

    def _split(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """The vectors themselves, (row, d_site), and what is predicted of them."""
        if self.temporal is None:
            return vectors.float(), None
        if vectors.shape[-1] != 2 * self.d_site:
            raise self._refuse_alone()
        own, prediction = vectors.float().chunk(2, dim=-1)
        return own, prediction

    def _normalise(self, vectors: Tensor) -> Tensor:
        """(..., d_site), as the encoder takes them."""
        inputs = NORMS[self.norm](vectors).vectors
        return inputs - self.b_dec if self.subtract_b_dec else inputs

    def encode(self, vectors: Tensor, features: Features | None = None, *, out: Tensor | None = None) -> Tensor:
        """Activations of the chosen features (all by default). (row, d_site) -> (row, chosen), float32.

        The vectors are what `join` gives, of a temporal dictionary twice as wide; so are those of the methods below.
        `out`, where given, is a contiguous float32 (row, chosen) buffer that receives and is the result; beside
        it a separable kind takes at most a mask of its size, one byte an activation.
        """
        own, prediction = self._split(vectors)
        inputs = self._normalise(own)
        if prediction is not None:
            inputs = inputs - prediction
        if self.separable or (features is None and self.pursuit is None):
            return _ACTIVATIONS[self.kind](self, self._linear(inputs, features, out), features)
        if self.pursuit is not None:
            whole = pursue(inputs, self.W_dec, self.pursuit)
        else:
            whole = _ACTIVATIONS[self.kind](self, self._linear(inputs, None, None), None)
        chosen = whole if features is None else whole[:, features]
        return chosen if out is None else out.copy_(chosen)

    def decode(self, activations: Tensor, *, vectors: Tensor | None = None) -> Tensor:
        """The vectors at `writes` rebuilt. (row, F) -> (row, d_out).

        `vectors` (row, d_site) are those that were encoded; without them the result is in the units of `norm`, and
        lacks what a skip path or a prediction adds.
        """
        rebuilt = torch.addmm(self.b_dec, activations, self.W_dec)
        if vectors is None:
            return rebuilt
        own, prediction = self._split(vectors)
        if prediction is not None:
            rebuilt = rebuilt + prediction
        if not self.targets:
            normalised = NORMS[self.norm](own)
            rebuilt = rebuilt * normalised.scale + normalised.mean
        return rebuilt if self.W_skip is None else torch.addmm(rebuilt, own, self.W_skip)

    def reconstruct(self, vectors: Tensor) -> Tensor:
        """What is rebuilt of the vectors at `writes` from those at the site. (row, d_site) -> (row, d_out)."""
        return self.decode(self.encode(vectors), vectors=vectors)

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

        Error-preserving: `x + dec(z') - dec(z)`, in which all other features, the skip path, a prediction from earlier
        vectors and the error cancel. `inputs` (row, d_site) are the vectors that the features are read from; whatever
        writes other sites, or is temporal, wants them.
        With a `site`, one of `writes`, the vectors are of that one alone.
        """
        if inputs is None and self.writes != self.reads:
            raise NeuronautError(
                f"{self.id} writes {', '.join(self.writes)}: an edit of it wants the vectors of {', '.join(self.reads)}"
            )
        read = vectors if inputs is None else inputs
        written = self.W_dec[features]
        if site is not None:
            written = split_vectors(written, self.writes)[site]
        change = (values.float() - self.encode(read, features)) @ written
        return vectors + (change * self.scale(read)).to(vectors.dtype)

    def scale(self, vectors: Tensor) -> Tensor | float:
        """What an activation is multiplied by where it is written, for vectors (row, d_site): what the norm undoes."""
        return NORMS[self.norm](self._split(vectors)[0]).scale if self.rescales else 1.0

    def directions(self, features: Tensor) -> Tensor:
        """What a unit of each chosen feature's activation adds to a vector at `writes`, in the units of `norm`."""
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


def _abstopk(dictionary: Dictionary, linear: Tensor, features: Features | None) -> Tensor:
    del features
    places = linear.detach().abs().topk(dictionary.k, dim=-1, sorted=False).indices
    kept = torch.zeros_like(linear, dtype=torch.bool).scatter_(-1, places, value=True)
    return linear.masked_fill_(~kept, 0)


def _groupmax(dictionary: Dictionary, linear: Tensor, features: Features | None) -> Tensor:
    del features
    groups = linear.unflatten(-1, (dictionary.k, -1))
    largest = groups.max(dim=-1, keepdim=True)
    kept, places = largest.values.relu(), largest.indices
    groups.zero_().scatter_(-1, places, kept)
    return linear


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
    "abstopk": _abstopk,
    "groupmax": _groupmax,
    "jumprelu": _jumprelu,
    "gated": _gated,
}
"""Each turns `linear` (row, chosen) into activations in place."""
