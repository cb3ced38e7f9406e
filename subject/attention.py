"""Attention patterns, the weights that each query gives to each key, and the scores that they are the softmax of.

Both are read and edited where the model computes them. Scores are what the softmax takes: scaled, soft-capped, with
biases and mask, as TransformerLens' `hook_attn_scores`. No module of a Hugging Face model puts out its attention
weights in such a way that editing them changes anything, so the softmax is caught instead: the model runs with its
eager attention, a torch function mode is on, and the one softmax over four dimensions that is called while an
attention module runs is given the edited scores, and its result is edited. The model's
attention implementation is put back afterwards; compare an edited run with a plain one under `eager` only, because
implementations round differently.

Nothing is taken on trust. Before a layer's patterns are first used, `prove` reads the pattern A, wants it to be the
softmax of the scores, writes the identity matrix, which makes head.L show the values V that the heads attend to, and
wants A @ V to be the head.L of the plain run: then what is read is what the model uses, and what is written lands. A
layer without that proof is refused.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .claims import ROUNDING
from .errors import NeuronautError
from .model import Subject

Watch = Callable[[Tensor, Tensor], Tensor]
"""From a pattern (row, head, query, key), and where the model's mask allows attention, to the pattern that counts; or
from scores to the scores that count."""
_MASKED = -1e30
"""Below this, or half of the least number of a narrower dtype, scores are masked (a family may divide by its scale
after it has masked)."""

_SOFTMAXES = frozenset({nn.functional.softmax, torch.softmax, Tensor.softmax})
_proven: WeakKeyDictionary[Subject, set[int]] = WeakKeyDictionary()
"""The layers whose patterns are proven. A failure is not kept: it may be due to edits that are in force meanwhile."""


def patterns(subject: Subject, tokens: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
    """Attention weights of layers, from one forward pass. (row, position) ids -> layer: (row, head, query, key)."""
    wanted, recorded = _proven_layers(subject, layers), dict[int, Tensor]()
    with watch_patterns(subject, {layer: _recorder(recorded, layer) for layer in wanted}):
        subject.read(tokens, [f"head.{wanted[-1]}"])
    return recorded


def scores(subject: Subject, tokens: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
    """What the patterns of layers are the softmax of, masked ones minus infinity. As `patterns`."""
    wanted, recorded = _proven_layers(subject, layers), dict[int, Tensor]()
    watches = {layer: _recorder(recorded, layer, masked=-torch.inf) for layer in wanted}
    with watch_patterns(subject, {}, scores=watches):
        subject.read(tokens, [f"head.{wanted[-1]}"])
    return recorded


def _proven_layers(subject: Subject, layers: Iterable[int]) -> list[int]:
    wanted = sorted(set(layers))
    if not wanted:
        raise NeuronautError(f"no layer to read patterns of; {subject.name} has 0 to {subject.n_layers - 1}")
    for layer in wanted:
        prove(subject, layer)
    return wanted


def _recorder(recorded: dict[int, Tensor], layer: int, *, masked: float | None = None) -> Watch:
    def keep(weights: Tensor, allowed: Tensor) -> Tensor:
        recorded[layer] = weights if masked is None else weights.masked_fill(~allowed, masked)
        return weights

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
def watch_patterns(
    subject: Subject, watches: Mapping[int, Watch], *, scores: Mapping[int, Watch] = MappingProxyType({})
) -> Generator[None]:
    """Within the block, the patterns of these layers pass through their watches, once in each forward pass.

    So do the scores of those of `scores`, before their patterns are computed.
    """
    mode = _Softmax()
    with eager(subject), ExitStack() as hooks:
        for layer in dict.fromkeys((*watches, *scores)):
            module = _find_attention(subject, layer)
            both = (scores.get(layer, _pass_on), watches.get(layer, _pass_on))
            hooks.enter_context(module.register_forward_pre_hook(mode.make_opening_hook(both)))
            # Also after an exception: a read that stops inside the attention leaves it that way.
            hooks.enter_context(module.register_forward_hook(mode.close, always_call=True))
        hooks.enter_context(mode)
        yield


class _Softmax(TorchFunctionMode):
    """Hands the arguments and the results of softmaxes inside an attention module to its watches."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: tuple[Watch, Watch] | None = None

    def make_opening_hook(self, watches: tuple[Watch, Watch]) -> Callable[..., None]:
        def set_watches(*_: object) -> None:
            self._watches = watches

        return set_watches

    def close(self, *_: object) -> None:
        self._watches = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        found = (args[0] if args else options["input"]) if self._watches and func in _SOFTMAXES else None
        if found is None or found.ndim != 4 or self._watches is None:
            return func(*args, **options)
        on_scores, on_pattern = self._watches
        # Eager attention masks by adding the smallest number of the dtype.
        allowed = found > max(torch.finfo(found.dtype).min / 2, _MASKED)
        changed = on_scores(found, allowed).to(found.dtype)
        result = func(changed, *args[1:], **options) if args else func(**options | {"input": changed})
        return on_pattern(result, allowed).to(result.dtype)


def _pass_on(weights: Tensor, allowed: Tensor) -> Tensor:
    del allowed
    return weights


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
    site, captured, logits = f"head.{layer}", [], dict[int, Tensor]()

    def plain(pattern: Tensor, allowed: Tensor) -> Tensor:
        captured.append(pattern)
        return pattern.masked_fill(~allowed, 0)

    def identity(pattern: Tensor, allowed: Tensor) -> Tensor:
        del allowed
        return torch.eye(pattern.shape[-1], device=pattern.device, dtype=pattern.dtype).expand_as(pattern)

    with watch_patterns(subject, {layer: plain}, scores={layer: _recorder(logits, layer, masked=-torch.inf)}):
        z = subject.read(tokens, [site])[site]
    if len(captured) != 1 or captured[0].shape != (2, subject.n_heads, 8, 8):
        shapes = [tuple(pattern.shape) for pattern in captured]
        return (
            f"its attention calls softmax {len(captured)} times in one forward pass, shapes {shapes}; "
            "wanted one pattern"
        )
    with watch_patterns(subject, {layer: identity}):
        values = subject.read(tokens, [site])[site].unflatten(-1, (subject.n_heads, -1)).transpose(1, 2)
    allowed = ROUNDING * torch.finfo(z.dtype).eps
    error = float((logits[layer].float().softmax(-1) - captured[0].float()).abs().max())
    if not error <= allowed:
        return f"softmax of score.{layer} = pattern.{layer} is off by {error:.2g} (allowed {allowed:.2g})"
    mixed = (captured[0].float() @ values.float()).transpose(1, 2).flatten(2)
    error = float((mixed - z.float()).abs().max() / z.float().abs().max().clamp_min(1e-30))
    # Written so that a NaN fails.
    return (
        None if error <= allowed else f"pattern @ values = head.{layer} is off by {error:.2g} (allowed {allowed:.2g})"
    )


def _find_attention(subject: Subject, layer: int) -> nn.Module:
    """The module that computes the pattern."""
    subject.width(f"head.{layer}")  # An unknown or refused layer is an error that says so.
    row = subject.architecture
    return subject.model.base_model.get_submodule(f"{row.layers}.{layer}.{row.heads_module}")
