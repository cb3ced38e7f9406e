"""Direct logit attribution: a logit as the exact sum of what every part of the subject writes.

    x       = sum of all parts p of the final residual stream           w = W_U[token] - W_U[against]
    logit   = final_norm(x) . w + b_U  =  sum of p . r, and a bias      r = center(gain * w) / d

where d is the norm's denominator at that very position, known because the run has happened; so nothing is folded and
nothing approximated, and the sum is the logit (or difference) before the soft-cap (Elhage et al., "A mathematical
framework for transformer circuits", 2021; formula `c_i` of notes/interventions.md).

What reads a part in the residual stream, r, is carried back through whatever stands before it: the norm behind a
branch, again with its own denominator, and the branch's projection. There it reads heads, neurons or the features
of a dictionary one by one, so that no unit is ever expanded to d_model. Biases are components of their own, and so
is what a dictionary leaves out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..subject.claims import ROUNDING
from ..subject.conformance import unembed
from ..subject.dictionary import Dictionary
from ..subject.directions import apply, branch, final_norm, takes_mean_out
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import require_one_site, require_vectorwise
from .measures import LOGITS
from .prompts import Batch, where


class LogitAttribution(NamedTuple):
    """The logits at some places, taken apart. Tensors are float32 on the CPU."""

    components: tuple[str, ...]
    """`embed`, `attn_out.L`, `mlp_out.L`, or the units that they were split into, as `SITE[@DICTIONARY]:INDEX`
    beside `... bias` and `... error`; last `bias`, of the final norm and the unembedding."""
    values: Tensor
    """(place, component): logits, before a soft-cap. They sum to `total`."""
    places: Tensor
    """(place, 2): row and position."""
    total: Tensor
    """(place,): the token's logit, or its difference to the other's, before a soft-cap."""
    logit: Tensor
    """(place,): the same as the subject says it, after a soft-cap."""

    def ranked(self) -> list[tuple[str, float]]:
        """Components with their mean over the places, the largest first whatever its sign."""
        means = self.values.mean(0)
        order = means.abs().argsort(descending=True, stable=True)
        return [(self.components[index], float(means[index])) for index in order]


class _Part(NamedTuple):
    names: tuple[str, ...]
    values: Tensor
    """(place, component)."""


class _Norm(NamedTuple):
    """A norm as the linear map that it is, its denominator at each place being known."""

    gain: Tensor
    """(place, d_model): the gain over the denominator."""
    centres: bool
    bias: Tensor
    """(d_model,)."""

    @classmethod
    def at(cls, norm: nn.Module, vectors: Tensor) -> "_Norm":
        """Of vectors (place, d_model). The denominator is read off what the norm makes of them."""
        width = vectors.shape[1]
        centres, bias = takes_mean_out(norm, width), apply(norm, torch.zeros_like(vectors[:1]))[0]
        if type(norm) is nn.LayerNorm and norm.weight is not None:
            gain = norm.weight.float()
        else:
            # Two vectors without a mean: an odd width leaves one coordinate at zero, another one in each.
            signs = torch.ones_like(vectors[0])
            signs[1::2] = -1
            signs[width - width % 2 :] = 0
            both = torch.stack([signs, signs.roll(1)])
            gains = (apply(norm, 100.0 * both) - bias) * both * signs.square().mean().sqrt()
            gain = gains.sum(0) / both.abs().sum(0)
        linear = (vectors - vectors.mean(-1, keepdim=True) if centres else vectors) * gain
        normed = apply(norm, vectors) - bias
        shrunk = (normed * linear).sum(-1, keepdim=True) / linear.square().sum(-1, keepdim=True).clamp_min(1e-30)
        return cls(gain * shrunk, centres, bias)

    def carry_back(self, reader: Tensor) -> Tensor:
        """What reads the input as `reader` (place, d_model) reads the output, but for the bias."""
        scaled = reader * self.gain
        return scaled - scaled.mean(-1, keepdim=True) if self.centres else scaled


class _Reader(NamedTuple):
    """What turns a site's vectors into logits."""

    vectors: Tensor
    """(place, width of the site)."""
    weights: Tensor
    """(place, width of the site)."""
    bias: Tensor
    """(place,): what is written between the site and the residual stream whatever the vectors are."""


@torch.inference_mode(False)
def logit_attribution(
    subject: Subject,
    batch: Batch,
    *,
    token: Tensor | int,
    against: Tensor | int | None = None,
    positions: str = "last",
    split: Sequence[str | Dictionary] = (),
) -> LogitAttribution:
    """Take apart the logit of `token`, or its difference to that of `against` (ids, one or one a row).

    `positions` is a rule as edits have it. Each of `split` takes the place of what it explains: `head.L` (by head)
    that of `attn_out.L`, `mlp.L` (by neuron) that of `mlp_out.L`, a dictionary that of its site (at the residual
    stream, of all that was written before), by active feature.
    Raises NeuronautError where two of them explain the same, and where the sum is not the logit within rounding.

    >>> batch = Batch.of(subject, ["def __init__(self, name): self.name ="])
    >>> parts = logit_attribution(subject, batch, token=subject.encode(" name")[0])
    >>> bool(abs(parts.values.sum() - parts.total.sum()) < 1e-3)
    True
    """
    mask = where(subject, batch, positions)
    places = mask.nonzero()
    part_names = _list_parts(subject)
    spans = _map_spans(subject, split, part_names)
    final = f"resid_post.{subject.n_layers - 1}"
    sites = ["resid_pre.0", *part_names[1:], final, *(_site(unit) for unit in split)]
    sites += [unit.id.site for unit in split if isinstance(unit, Dictionary)]
    recorded = subject.read(batch.tokens, [*dict.fromkeys(sites)])
    vectors = {site: tensor[mask.to(tensor.device)].float() for site, tensor in recorded.items()}
    vectors["embed"] = vectors["resid_pre.0"]
    weights, offset = _unembed_difference(subject, token, against, places[:, 0])
    norm = _Norm.at(final_norm(subject), vectors[final])
    reader = norm.carry_back(weights)
    total = (apply(final_norm(subject), vectors[final]) * weights).sum(-1) + offset
    parts: list[_Part] = []
    for index, name in enumerate(part_names):
        unit, first = spans.get(index, (None, index))
        if unit is None:
            parts.append(_Part((name,), (vectors[name] * reader).sum(-1, keepdim=True)))
        elif first == index:
            at_unit = _carry_reader(subject, _site(unit), vectors[_site(unit)], reader)
            inputs = vectors[unit if isinstance(unit, str) else unit.id.site]
            parts += _split_unit(subject, unit, at_unit, inputs)
    parts.append(_Part(("bias",), ((norm.bias * weights).sum(-1) + offset)[:, None]))
    values = torch.cat([part.values for part in parts], dim=1)
    size = sum((vectors[name].abs() * reader.abs()).sum(-1) for name in part_names) + values.abs().sum(-1)
    _check_sum(subject, values.sum(-1), total, size)
    components = tuple(name for part in parts for name in part.names)
    logit = _read_logit(subject, vectors[final], token, against, places[:, 0])
    return LogitAttribution(components, values.cpu(), places, total.cpu(), logit.cpu())


def _list_parts(subject: Subject) -> list[str]:
    """What the final residual stream is the sum of."""
    return ["embed", *(f"{kind}.{layer}" for layer in range(subject.n_layers) for kind in ("attn_out", "mlp_out"))]


def _site(unit: str | Dictionary) -> str:
    """The site whose vectors it takes apart."""
    if isinstance(unit, str):
        return unit
    require_vectorwise(unit, "the attribution of a logit")
    return require_one_site(unit, "the attribution of a logit")


_Spans = dict[int, tuple[str | Dictionary, int]]
"""By the index of each part that is taken apart: into what, and the first of the parts that go with it."""


def _map_spans(subject: Subject, split: Sequence[str | Dictionary], parts: list[str]) -> _Spans:
    spans: _Spans = {}
    for unit in split:
        kind, _, layer = _site(unit).partition(".")
        if isinstance(unit, str) and kind not in ("head", "mlp"):
            raise NeuronautError(f"{unit} has no units to attribute to; split head.L, mlp.L or a dictionary")
        subject.width(_site(unit))  # An unknown or refused site is an error that says so.
        first = 1 + 2 * int(layer or 0)
        attention, mlp = range(first, first + 1), range(first + 1, first + 2)
        spans_of = {
            "head": attention,
            "attn_out": attention,
            "mlp": mlp,
            "mlp_out": mlp,
            "embed": range(1),
            "resid_pre": range(first),
            "resid_mid": range(first + 1),
            "resid_post": range(first + 2),
        }
        if (covered := spans_of.get(kind)) is None:
            raise NeuronautError(
                f"{_site(unit)} is no part of the residual stream to take apart; split head.L, mlp.L or a dictionary "
                "that writes to it"
            )
        if taken := [parts[index] for index in covered if index in spans]:
            raise NeuronautError(f"{', '.join(taken)} would be split twice; leave {_site(unit)} or the other out")
        spans |= {index: (unit, covered.start) for index in covered}
    return spans


def _unembed_difference(
    subject: Subject, token: Tensor | int, against: Tensor | int | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of the unembedding, (place, d_model), and their biases, (place,): token less against."""
    head = subject.unembedding
    assert isinstance(head, nn.Linear), "every family unembeds by a linear map"
    factor = subject.architecture.logit_factor(subject.model.config)

    def rows_of(chosen: Tensor | int) -> tuple[Tensor, Tensor]:
        ids = _tokens_of_places(subject, chosen, rows)
        weights = head.weight[ids].float() * factor
        return weights, weights.new_zeros(len(ids)) if head.bias is None else head.bias[ids].float() * factor

    weights, bias = rows_of(token)
    if against is None:
        return weights, bias
    other, other_bias = rows_of(against)
    return weights - other, bias - other_bias


def _tokens_of_places(subject: Subject, chosen: Tensor | int, rows: Tensor) -> Tensor:
    """The token of each place."""
    ids = torch.as_tensor(chosen)
    ids = (ids[rows] if ids.ndim else ids.expand(len(rows))).to(subject.device)
    count = subject.model.config.vocab_size
    if bool(((ids < 0) | (ids >= count)).any()):
        raise NeuronautError(f"token {chosen} is outside the vocabulary of {subject.name}, 0 to {count - 1}")
    return ids


def _read_logit(
    subject: Subject, residual: Tensor, token: Tensor | int, against: Tensor | int | None, rows: Tensor
) -> Tensor:
    wanted = [_tokens_of_places(subject, ids, rows) for ids in (token, against) if ids is not None]
    columns = torch.stack(wanted, dim=1)
    size = max(1, LOGITS // len(subject.vocabulary))
    read = [
        unembed(subject.model, subject.architecture, part.to(subject.model.dtype)).float().gather(1, ids)
        for part, ids in zip(residual.split(size), columns.split(size), strict=True)
    ]
    chosen, *others = torch.cat(read).unbind(1)
    return chosen - others[0] if others else chosen


def _carry_reader(subject: Subject, site: str, vectors: Tensor, reader: Tensor) -> _Reader:
    """Carry what reads the residual stream back to a site."""
    projection, norm = branch(subject, site)
    bias = reader.new_zeros(len(reader))
    if norm is not None:
        assert projection is not None, "a norm stands behind a projection"
        frozen = _Norm.at(norm, apply(projection, vectors))
        bias = bias + (frozen.bias * reader).sum(-1)
        reader = frozen.carry_back(reader)
    if projection is not None:
        bias = bias + (apply(projection, torch.zeros_like(vectors[:1])) * reader).sum(-1)
        reader = _carry_through(projection, vectors, reader)
    return _Reader(vectors, reader, bias)


def _split_unit(subject: Subject, unit: str | Dictionary, reader: _Reader, inputs: Tensor) -> list[_Part]:
    site = _site(unit)
    kind, _, layer = site.partition(".")
    behind = {"head": f"attn_out.{layer} bias", "mlp": f"mlp_out.{layer} bias"}.get(kind)
    bias = [_Part((behind,), reader.bias[:, None])] if behind else []
    if isinstance(unit, Dictionary):
        return [*_split_features(unit, reader, inputs), *bias]
    products = reader.vectors * reader.weights
    values = products.unflatten(-1, (subject.n_heads, -1)).sum(-1) if kind == "head" else products
    return [_Part(tuple(f"{site}:{index}" for index in range(values.shape[1])), values), *bias]


def _split_features(dictionary: Dictionary, reader: _Reader, inputs: Tensor) -> list[_Part]:
    """Each active feature's decoder vector, the bias (with what norm and skip path put back), and the error."""
    activations = dictionary.encode(inputs)
    empty = dictionary.decode(torch.zeros_like(activations), vectors=inputs)
    rebuilt = dictionary.decode(activations, vectors=inputs)
    scale = dictionary.scale(inputs)
    active = activations.any(0).nonzero()[:, 0]
    values = activations[:, active] * scale * (reader.weights @ dictionary.W_dec[active].T)
    name = f"{dictionary.id.site}@{dictionary.id.dictionary}"
    rest = torch.stack([empty, reader.vectors - rebuilt], dim=1) * reader.weights[:, None]
    return [
        _Part(tuple(f"{name}:{index}" for index in active.tolist()), values),
        _Part((f"{name} bias", f"{name} error"), rest.sum(-1)),
    ]


def _carry_through(projection: nn.Module, vectors: Tensor, reader: Tensor) -> Tensor:
    """What reads a projection's input as `reader` reads its output, whichever way round its weights lie."""
    with torch.enable_grad():
        inputs = vectors.to(next(projection.parameters()).dtype, copy=True).requires_grad_()
        written = projection(inputs)
    return torch.autograd.grad(written, inputs, reader.to(written.dtype))[0].float()


def _check_sum(subject: Subject, parts_sum: Tensor, total: Tensor, size: Tensor) -> None:
    allowed = ROUNDING * torch.finfo(subject.model.dtype).eps
    error = float(((parts_sum - total).abs() / size.clamp_min(1e-30)).max())
    if not error <= allowed:
        raise NeuronautError(
            f"the parts of {subject.name} miss its logit by {error:.2g} of their sizes (allowed {allowed:.2g}); "
            "something after the last layer is edited: take that away, and look again"
        )
