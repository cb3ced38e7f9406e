"""What a feature writes: its direction in the residual stream, and the tokens that this direction promotes.

At the residual stream or at a branch's output a feature writes its decoder vector. At the input of a branch's
output projection (`head.L`, `mlp.L`) that projection carries the vector to the residual stream, its bias left out,
because the bias is written whatever the feature does. Norms are taken as they are in direct logit attribution: all of
a norm is linear (LayerNorm takes the mean out, then comes the gain) but its division by the size of the
vector at each position; the division is left out, which changes a direction's length and never its sense. So what
is left out is one positive factor at each position, the same for every token and every coordinate.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from .address import Feature
from .errors import NeuronautError
from .model import ModellessSubject, Subject
from .sources import Source, split_vectors

_CELLS, _FEATURES = 2**21, 64
"""Logits that are held at a time where those of many features are computed (8 MiB, for a CPU's cache), and the fewest
features at a time, so that the unembedding is not read for a few."""
_STRETCH = 64
"""Logits in a row of which the extreme is taken first."""
_LARGE = 100.0
"""Size (root mean square) at which a vector is put through a norm, so that the norm's epsilon is lost in rounding."""


class Direction(NamedTuple):
    """What a unit of a feature's activation adds to the residual stream."""

    vector: Tensor
    """(d_model,), float32; of many features a row each."""
    exact: bool
    """False where each position multiplies the vector by a positive factor of its own: 1 / (the size of the branch's
    output) in families that norm it, the size of the vector for dictionaries that norm their inputs."""


class TokenEffect(NamedTuple):
    """How much a direction raises a token's logit."""

    token: str
    value: float
    """Logits per unit of activation, above the vocabulary's mean (all logits shifted alike change nothing), times the
    final norm's denominator at the position, before a soft-cap."""


class Promoted(NamedTuple):
    """The tokens that a feature's direction raises and lowers the most; none where it writes nothing."""

    top: tuple[TokenEffect, ...]
    """Highest first."""
    bottom: tuple[TokenEffect, ...]
    """Lowest first."""
    spread: float
    """Standard deviation of the value over the vocabulary; 0 where the feature writes nothing that is read."""


class LogitEffects(NamedTuple):
    """What a feature's direct path does to the logits of all tokens, in the units of `TokenEffect`."""

    promoted: Promoted
    heights: list[int]
    """Tokens of the vocabulary in each bar, even ones from the lowest value to the highest; none without an effect."""
    values: list[float]
    """The middle of each bar."""


class TopTokens(NamedTuple):
    """Of many features, the tokens that each raises and lowers the most, in the units of `TokenEffect`."""

    ids: NDArray[np.int32]
    """(feature, 2 * count): the highest first, then the lowest first."""
    effects: NDArray[np.float32]
    """Of the same shape."""
    spread: NDArray[np.float32]
    """(feature,): standard deviation over the vocabulary; 0 where the feature writes nothing that is read."""


_INSIDE = frozenset({"mlp_in", "query", "key", "value", "score"})
"""Families of sites that only a branch itself reads: directly, nothing there is added to the residual stream."""


_RESIDUAL = ("resid", "embed")


def direction(subject: Subject, source: Source, feature: Feature) -> Direction:
    """What a unit of the feature's activation adds to the residual stream; the negative tail's sign is flipped.

    Of a feature that writes several sites, what stands in the residual stream behind the last of them.
    """
    rows, exact = directions(subject, source, [checked_index(source, feature)])
    return Direction(-rows[0] if feature.negative else rows[0], exact)


@torch.inference_mode()
def directions(subject: Subject, source: Source, indices: Sequence[int]) -> Direction:
    """The same of many features at once: the vector is (feature, d_model)."""
    chosen = torch.tensor(list(indices), dtype=torch.long, device=subject.device)
    written = split_vectors(source.directions(chosen).float(), source.writes)
    total, exact = torch.zeros(len(chosen), subject.d_model, device=subject.device), not source.rescales
    for site in sorted(written, key=subject.sites.index):
        part = _to_residual(subject, site, written[site])
        # The residual stream at a site holds what was added before it.
        before = 0.0 if site.startswith(_RESIDUAL) else total
        total, exact = before + part.vector, exact and part.exact
    return Direction(total, exact)


def _to_residual(subject: Subject, site: str, vectors: Tensor) -> Direction:
    """What vectors (row, d_site) that are added at a site add to the residual stream, (row, d_model)."""
    if site.partition(".")[0] in _INSIDE:
        return Direction(torch.zeros(len(vectors), subject.d_model, device=subject.device), exact=True)
    projection, norm = branch(subject, site)
    if projection is not None:
        vectors = without_bias(projection, vectors)
    if norm is not None:
        vectors = pass_norm(norm, vectors)
    if projection is not None:
        vectors = vectors * subject.architecture.branch_factor(subject.model.config)
    return Direction(vectors, exact=norm is None)


def reaches_logits(subject: Subject, source: Source) -> bool:
    """Whether the features of a source may change logits directly: not those of an encoder, or of what is no model.

    Of a source that only a branch itself reads (`mlp_in.L`, a head's queries) none does either.
    """
    outside = any(site.partition(".")[0] not in _INSIDE for site in source.writes)
    return outside and not isinstance(subject, ModellessSubject) and subject.causal


@torch.inference_mode()
def logit_effect(subject: Subject, vector: Tensor) -> Tensor:
    """Direct logit attribution: what parts of the final residual stream add to the logits.

    (..., d_model) -> (..., token).

    Divided by the final norm's denominator at a position, these add up over all parts of the residual stream, and
    with what the norm's and the unembedding's biases give, to the logits there before a soft-cap.
    """
    head = subject.unembedding
    normed = pass_norm(final_norm(subject), vector)
    return without_bias(head, normed) * subject.architecture.logit_factor(subject.model.config)


@torch.inference_mode()
def unembedding(subject: Subject, tokens: Sequence[int]) -> Tensor:
    """What the final residual stream is projected on for tokens' logits, above the mean of all: (token, d_model).

    The transpose of `logit_effect`: a vector times a row is the token's logit, less the vocabulary's mean, times the
    final norm's denominator at the position, biases and soft-cap left out.
    """
    head, norm = subject.unembedding, final_norm(subject)
    weight = head.get_parameter("weight").float()[: len(subject.vocabulary)]
    rows = torch.stack([pull_back(norm, row) for row in weight[list(tokens)] - weight.mean(0)])
    return rows * subject.architecture.logit_factor(subject.model.config)


def final_norm(subject: Subject) -> nn.Module:
    """The norm before the unembedding, which every subject with logits has."""
    path = subject.architecture.final_norm
    assert path is not None, "a subject with logits has a final norm"
    return subject.model.base_model.get_submodule(path)


def promoted(subject: Subject, source: Source, feature: Feature, *, count: int = 10) -> Promoted:
    """The `count` tokens that the feature's direct path to the logits raises the most, and lowers the most."""
    return _find_promoted(subject, _effects(subject, source, feature), count=count)


@torch.inference_mode()
def logit_effects(subject: Subject, source: Source, feature: Feature, *, count: int, bars: int) -> LogitEffects:
    """As `promoted`, with a histogram over the vocabulary."""
    effect = _effects(subject, source, feature)
    found = _find_promoted(subject, effect, count=count)
    if not found.spread:
        return LogitEffects(found, [], [])
    low, high = (float(bound) for bound in effect.aminmax())
    step = (high - low) / bars
    heights = effect.float().cpu().histc(bars, low, high).long().tolist()
    return LogitEffects(found, heights, [low + (bar + 0.5) * step for bar in range(bars)])


def _effects(subject: Subject, source: Source, feature: Feature) -> Tensor:
    """What the feature adds to each logit, above the vocabulary's mean: (token,)."""
    return _above_mean(subject, direction(subject, source, feature).vector)


def _above_mean(subject: Subject, vectors: Tensor) -> Tensor:
    """What vectors add to each logit, above the vocabulary's mean: (..., d_model) -> (..., token)."""
    effect = logit_effect(subject, vectors)[..., : len(subject.vocabulary)]
    return effect - effect.mean(-1, keepdim=True)


@torch.inference_mode()
def find_top_tokens(
    subject: Subject,
    source: Source,
    features: NDArray[np.integer] | None = None,
    *,
    count: int = 10,
    progress: Callable[[int], None] | None = None,
) -> TopTokens:
    """The tokens that `promoted` finds, `count` on each side, of the chosen features of a source, or of all.

    Rows are those of the whole source; of features that were not chosen the spread is 0. `progress` is told of how many
    features they were found so far.
    """
    features = np.arange(source.width) if features is None else features
    count = min(count, len(subject.vocabulary))
    ids = np.zeros((source.width, 2 * count), np.int32)
    effects, spread = np.zeros(ids.shape, np.float32), np.zeros(source.width, np.float32)
    step = max(_FEATURES, _CELLS // len(subject.vocabulary))
    for start in range(0, len(features), step):
        rows = features[start : start + step]
        if progress is not None:
            progress(start)
        effect = _above_mean(subject, directions(subject, source, rows.tolist()).vector)
        # The standard deviation of what has a mean of 0.
        spread[rows] = (effect.norm(dim=-1) / effect.shape[-1] ** 0.5).cpu().numpy()
        if not (writing := spread[rows] > 0).all():
            effect, rows = effect[torch.from_numpy(writing).to(effect.device)], rows[writing]
        for side, highest in ((slice(count), True), (slice(count, None), False)):
            ids[rows, side], effects[rows, side] = _take_extreme(effect, count, highest=highest)
    return TopTokens(ids, effects, spread)


def _take_extreme(effect: Tensor, count: int, *, highest: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and values (row, count) of the highest or lowest in each row (row, token); of equal ones the lowest ids."""
    # As many stretches hold an extreme beyond the bar, so that all that are wanted are beyond it, and few others.
    bars, stretches = effect, effect.shape[1] // _STRETCH
    if stretches >= count:
        cut = effect[:, : stretches * _STRETCH].unflatten(1, (stretches, _STRETCH))
        bars = cut.amax(2) if highest else cut.amin(2)
    last = bars.topk(count, largest=highest).values[:, -1:]
    rows, ids = (effect >= last if highest else effect <= last).nonzero(as_tuple=True)
    values = effect[rows, ids]
    rows, ids, values = rows.cpu().numpy(), ids.cpu().numpy(), values.float().cpu().numpy()
    order = np.lexsort((ids, -values if highest else values, rows))
    starts = np.searchsorted(rows[order], np.arange(len(effect)))
    chosen = order[starts[:, None] + np.arange(count)]
    return ids[chosen], values[chosen]


def _find_promoted(subject: Subject, effect: Tensor, *, count: int) -> Promoted:
    spread = float(effect.std(correction=0))
    if not spread > 0:
        return Promoted((), (), 0.0)

    def take_first(order: Tensor) -> tuple[TokenEffect, ...]:
        return tuple(TokenEffect(subject.vocabulary[i], float(effect[i])) for i in order[:count].tolist())

    return Promoted(
        take_first(effect.argsort(descending=True, stable=True)), take_first(effect.argsort(stable=True)), spread
    )


def checked_index(source: Source, feature: Feature) -> int:
    """The feature's index in the source, or an error where it is none of the source's."""
    if feature.source != source.id or not 0 <= feature.index < source.width:
        raise NeuronautError(
            f"{feature} is no feature of {source.id}; wanted {source.id}:0 to {source.id}:{source.width - 1}"
        )
    return feature.index


def branch(subject: Subject, site: str) -> tuple[nn.Module | None, nn.Module | None]:
    """The projection and the norm that stand between a site and the residual stream, where there are any."""
    architecture = subject.architecture
    kind, _, layer = site.partition(".")
    projection, norm = {
        "head": (architecture.attention, architecture.attention_norm),
        "mlp": (architecture.mlp, architecture.mlp_norm),
    }.get(kind, (None, None))
    subject.width(site)  # An unknown or refused site is an error that says so.

    def module(path: str | None) -> nn.Module | None:
        inside = subject.model.base_model
        return None if path is None else inside.get_submodule(f"{architecture.layers}.{layer}.{path}")

    return module(projection), module(norm)


def pass_norm(norm: nn.Module, vector: Tensor) -> Tensor:
    """What a norm makes of a part of its input but for the division: the mean out of a LayerNorm's, times the gain.

    (..., width) -> (..., width)
    """
    part = vector - vector.mean(-1, keepdim=True) if takes_mean_out(norm, vector.shape[-1]) else vector
    size = part.square().mean(-1, keepdim=True).sqrt()
    unit = part * torch.where(size > 0, _LARGE / size, 0.0)
    return torch.where(size > 0, without_bias(norm, unit) * size, part)


@torch.inference_mode()
def pull_back(norm: nn.Module, direction: Tensor) -> Tensor:
    """The direction before a norm of which this is the direction behind it, but for the division: its transpose.

    What a part x of the norm's input gives along `direction`, (width,), is x · pull_back(direction).
    """
    signs = torch.ones_like(direction)
    signs[1::2] = -1  # Their mean is zero, as the width is even, so that a norm that takes the mean out leaves them.
    pulled = pass_norm(norm, signs) * signs * direction
    return pulled - pulled.mean() if takes_mean_out(norm, len(direction)) else pulled


def takes_mean_out(norm: nn.Module, width: int) -> bool:
    """Whether a norm is one of differences to the mean, as LayerNorm: what is the same everywhere leaves it nothing."""
    flat, nothing = (apply(norm, torch.full((1, width), value, device=_device_of(norm))) for value in (_LARGE, 0.0))
    return bool((flat - nothing).abs().max() < 1e-3)


def apply(module: nn.Module, vectors: Tensor) -> Tensor:
    """What a module makes of vectors, float32. It computes in its own dtype, one without parameters in theirs."""
    return module(vectors.to(_dtype_of(module, vectors))).float()


def _dtype_of(module: nn.Module, vectors: Tensor) -> torch.dtype:
    return next((parameter.dtype for parameter in module.parameters()), vectors.dtype)


def _device_of(module: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in module.parameters()), None)


def without_bias(module: nn.Module, vector: Tensor) -> Tensor:
    """What a module makes of a vector, or of rows, float32, with its bias at zero. It computes in its own dtype."""
    dtype = _dtype_of(module, vector)
    bias = {name: torch.zeros_like(value) for name, value in module.named_parameters() if name == "bias"}
    return functional_call(module, bias, (vector[None].to(dtype),))[0].float()
