"""What an edit makes of attention patterns and of the scores behind them; `subject/attention.py` catches both."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """What a pattern's operation takes its numbers from."""

    value: float | None
    source_run: Tensor | None
    """Patterns of another run, of the edited one's shape."""


def _set(pattern: Tensor, edges: Tensor, weights: Weights) -> Tensor:
    assert weights.value is not None, "a set has a value"
    return pattern.masked_fill(edges, weights.value)


def _scale(pattern: Tensor, edges: Tensor, weights: Weights) -> Tensor:
    assert weights.value is not None, "a scale has a factor"
    return torch.where(edges, pattern * weights.value, pattern)


def _add(pattern: Tensor, edges: Tensor, weights: Weights) -> Tensor:
    assert weights.value is not None, "an addition has an amount"
    return torch.where(edges, pattern + weights.value, pattern)


def _share_equally(pattern: Tensor, edges: Tensor, weights: Weights) -> Tensor:
    """The weight that a query gives to the edges, shared equally among them."""
    del weights
    total = pattern.masked_fill(~edges, 0).sum(-1, keepdim=True)
    return torch.where(edges, total / edges.sum(-1, keepdim=True).clamp_min(1), pattern)


def _knock_out(pattern: Tensor, edges: Tensor, weights: Weights) -> Tensor:
    """As if the edges were masked: their weight goes to the query's other keys; a query without others writes zero."""
    del weights
    remaining = pattern.masked_fill(edges, 0)
    total = remaining.sum(-1, keepdim=True).clamp_min(torch.finfo(remaining.dtype).tiny)
    return torch.where(edges.any(-1, keepdim=True), remaining / total, pattern)


def _patch(pattern: Tensor, edges: Tensor, weights: Weights) -> Tensor:
    assert weights.source_run is not None, "a patch has a source run"
    return torch.where(edges, weights.source_run, pattern)


PATTERNS: Mapping[str, Callable[[Tensor, Tensor, Weights], Tensor]] = {
    "zero": lambda pattern, edges, _weights: pattern.masked_fill(edges, 0),
    "set": _set,
    "scale": _scale,
    "add": _add,
    "uniform": _share_equally,
    "knockout": _knock_out,
    "patch": _patch,
}
"""By operation, what becomes of patterns or scores (row, head, query, key) at `edges`, bool of the same shape."""
