"""Attention patterns: the weights that each query gives to each key, read and edited where the model computes them.

No module of a Hugging Face model puts out its attention weights in such a way that editing them changes anything, so
the softmax is caught instead: the model runs with its eager attention, a torch function mode is on, and the one
softmax over four dimensions that is called while an attention module runs is given the edit's result. The model's
attention implementation is put back afterwards; compare an edited run with a plain one under `eager` only, because
implementations round differently.

Nothing is taken on trust. Before a layer's patterns are first used, `prove` reads the pattern A, writes the identity
matrix, which makes head.L show the values V that the heads attend to, and wants A @ V to be the head.L of the plain
run: then what is read is what the model uses, and what is written lands. A layer without that proof is refused.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..subject.conformance import ROUNDING
from ..subject.errors import NeuronautError
from ..subject.model import Subject

Watch = Callable[[Tensor, Tensor], Tensor]
"""From a pattern (row, head, query, key), and where the model's mask allows attention, to the pattern that counts."""

_SOFTMAXES = frozenset({nn.functional.softmax, torch.softmax, Tensor.softmax})
_proven: WeakKeyDictionary[Subject, set[int]] = WeakKeyDictionary()
"""The layers whose patterns are proven. A failure is not kept: it may be due to edits that are in force meanwhile."""


def patterns(subject: Subject, tokens: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
    """Attention weights of layers, from one forward pass. (row, position) ids -> layer: (row, head, query, key)."""
    wanted = sorted(set(layers))
    if not wanted:
        raise NeuronautError(f"no layer to read patterns of; {subject.name} has 0 to {subject.n_layers - 1}")
    for layer in wanted:
        prove(subject, layer)
    recorded: dict[int, Tensor] = {}
    with watch_patterns(subject, {layer: _record_pattern(recorded, layer) for layer in wanted}):
        subject.read(tokens, [f"head.{wanted[-1]}"])
    return recorded


def _record_pattern(recorded: dict[int, Tensor], layer: int) -> Watch:
    def keep(pattern: Tensor, allowed: Tensor) -> Tensor:
        del allowed
        recorded[layer] = pattern
        return pattern

    return keep


@contextmanager
def eager(subject: Subject) -> Generator[None]:
    """Within the block the model runs its eager attention, whose softmax is PyTorch's own."""
    previous: Any = subject.model.config._attn_implementation
    subject.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        subject.model.set_attn_implementation(previous)


@contextmanager
def watch_patterns(subject: Subject, watches: Mapping[int, Watch]) -> Generator[None]:
    """Within the block, the patterns of these layers pass through their watches, once in each forward pass."""
    mode = _Softmax()
    with eager(subject), ExitStack() as hooks:
        for layer, watch in watches.items():
            module = _find_attention(subject, layer)
            hooks.enter_context(module.register_forward_pre_hook(mode.make_opening_hook(watch)))
            # Also after an exception: a read that stops inside the attention leaves it that way.
            hooks.enter_context(module.register_forward_hook(mode.close, always_call=True))
        hooks.enter_context(mode)
        yield


class _Softmax(TorchFunctionMode):
    """Hands the results of softmaxes inside an attention module to its watch."""

    def __init__(self) -> None:
        super().__init__()
        self._watch: Watch | None = None

    def make_opening_hook(self, watch: Watch) -> Callable[..., None]:
        def set_watch(*_: object) -> None:
            self._watch = watch

        return set_watch

    def close(self, *_: object) -> None:
        self._watch = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._watch is None or func not in _SOFTMAXES or result.ndim != 4:
            return result
        scores = args[0] if args else (kwargs or {})["input"]
        # Eager attention masks by adding the smallest number of the dtype.
        allowed = scores > torch.finfo(scores.dtype).min / 2
        return self._watch(result, allowed).to(result.dtype)


def prove(subject: Subject, layer: int) -> None:
    """Raise NeuronautError unless this layer's patterns are what the model uses; two short forward passes, once."""
    proven = _proven.setdefault(subject, set())
    if layer in proven:
        return
    if failure := _find_failure(subject, layer):
        raise NeuronautError(f"site pattern.{layer} of {subject.name} is refused: {failure}")
    proven.add(layer)


@torch.inference_mode()
def _find_failure(subject: Subject, layer: int) -> str | None:
    tokens = torch.randint(subject.model.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0))
    site, captured = f"head.{layer}", []

    def plain(pattern: Tensor, allowed: Tensor) -> Tensor:
        captured.append(pattern)
        return pattern.masked_fill(~allowed, 0)

    def identity(pattern: Tensor, allowed: Tensor) -> Tensor:
        del allowed
        return torch.eye(pattern.shape[-1], device=pattern.device, dtype=pattern.dtype).expand_as(pattern)

    with watch_patterns(subject, {layer: plain}):
        z = subject.read(tokens, [site])[site]
    if len(captured) != 1 or captured[0].shape != (2, subject.n_heads, 8, 8):
        shapes = [tuple(pattern.shape) for pattern in captured]
        return (
            f"its attention calls softmax {len(captured)} times in one forward pass, shapes {shapes}; "
            "wanted one pattern"
        )
    with watch_patterns(subject, {layer: identity}):
        values = subject.read(tokens, [site])[site].unflatten(-1, (subject.n_heads, -1)).transpose(1, 2)
    mixed = (captured[0].float() @ values.float()).transpose(1, 2).flatten(2)
    error = float((mixed - z.float()).abs().max() / z.float().abs().max().clamp_min(1e-30))
    allowed = ROUNDING * torch.finfo(z.dtype).eps
    # Written so that a NaN fails.
    return (
        None if error <= allowed else f"pattern @ values = head.{layer} is off by {error:.2g} (allowed {allowed:.2g})"
    )


def _find_attention(subject: Subject, layer: int) -> nn.Module:
    """The module that holds the output projection, and so computes the pattern."""
    subject.width(f"head.{layer}")  # An unknown or refused layer is an error that says so.
    row = subject.architecture
    path = f"{row.layers}.{layer}.{row.attention}".rpartition(".")[0]
    return subject.model.base_model.get_submodule(path)


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
    "uniform": _share_equally,
    "knockout": _knock_out,
    "patch": _patch,
}
"""By operation, what becomes of patterns (row, head, query, key) at `edges`, bool of the same shape."""
