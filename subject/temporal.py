"""Temporal dictionaries: what attention over the earlier vectors of a row tells of each vector.

Only what is not predicted so is encoded (SAELens' TemporalSAE; Lubana et al. 2025, arXiv 2511.01836). Of one row,
`inputs` are its vectors as the encoder takes them, (position, d_site), and each layer explains part of what those
before it left:

    rest       = inputs
    codes      = relu(rest @ W_enc)                                                      (position, F)
    earlier    = codes one position later, 0 at the first
    found      = relu(attention(queries of codes, keys and values of earlier) @ output)  (position, F)
    written    = found @ W_dec
    rest      -= written * (written . rest) / (|written| + epsilon)^2
    prediction = inputs - rest

A position asks with its own codes and is answered by those before it. BOS and special tokens are positions like any
other, as in SAELens' own forward; the first position of a row is predicted from nothing but biases. Rows are run one by
one, so that a row's bits do not depend on its batch, and what stands behind a position has weight 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

PROJECTIONS = ("k_ctx", "q_target", "v_ctx", "c_proj")
"""Keys, queries, values and output of a layer."""


@dataclass(frozen=True, eq=False, slots=True)
class Temporal:
    """The attention layers of a temporal dictionary."""

    tensors: Mapping[str, Tensor]
    """`LAYER.PROJECTION.weight`, (out, in), and `.bias`, (out,), for each of PROJECTIONS."""
    layers: int
    heads: int
    epsilon: float
    """Added to the length of what is predicted, in the units of `inputs`."""

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Self:
        """The same layers with each tensor, given by name, changed."""
        return replace(self, tensors={name: change(name, tensor) for name, tensor in self.tensors.items()})

    def predict(self, inputs: Tensor, W_enc: Tensor, W_dec: Tensor) -> Tensor:
        """What is predicted of each vector. (row, position, d_site), (d_site, F), (F, d_site) -> inputs' shape."""
        return torch.stack([self._predict_row(row, W_enc, W_dec) for row in inputs])

    def _predict_row(self, inputs: Tensor, W_enc: Tensor, W_dec: Tensor) -> Tensor:
        rest = inputs
        for layer in range(self.layers):
            codes = (rest @ W_enc).relu()
            written = self._attend(layer, codes).relu() @ W_dec
            size = written.norm(dim=-1, keepdim=True) + self.epsilon
            rest = rest - written * (written * rest).sum(-1, keepdim=True) / size.square()
        return inputs - rest

    def _attend(self, layer: int, codes: Tensor) -> Tensor:
        """What a layer finds at each position of a row. (position, F) -> (position, F)."""
        earlier = pad(codes[:-1], (0, 0, 1, 0))
        query = self._project(layer, "q_target", codes)
        key, value = (self._project(layer, name, earlier) for name in ("k_ctx", "v_ctx"))
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
        answers = scores.masked_fill(later, -torch.inf).softmax(-1) @ value
        return self._apply(layer, "c_proj", answers.transpose(0, 1).flatten(1))

    def _project(self, layer: int, name: str, codes: Tensor) -> Tensor:
        """By head: (position, F) -> (head, position, width)."""
        return self._apply(layer, name, codes).unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def _apply(self, layer: int, name: str, vectors: Tensor) -> Tensor:
        return linear(vectors, self.tensors[f"{layer}.{name}.weight"], self.tensors[f"{layer}.{name}.bias"])
