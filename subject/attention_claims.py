"""The proof of `query.L`, `key.L` and `value.L`: attention makes `head.L` of them, and each does what its name says.

They are what the projections give, heads side by side: before rotary embedding, query/key norms and clipping, as
TransformerLens' `hook_q`, `hook_k` and `hook_v`; with grouped queries, keys and values have the key/value heads, each
of which serves a group of neighbouring query heads.

One forward pass proves them in all layers. It runs on other tokens than those that were recorded, but every layer is
given the recorded queries, keys and values, in some rows with the sign of a single head turned (which keeps the size
that a norm over all heads divides by):

1. as they were, they give the recorded head.L: attention takes nothing else from the stream;
2. a query turned at one token changes that head there, and nothing else;
3. a key turned at one token changes its own group of heads, at other tokens too, and nothing else;
4. a value turned everywhere turns its group of heads and leaves the others; and where all tokens have one value, a
   head's output points there, whatever its weights (where these add up to 1, as without a sink, it is that value).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .architecture import Architecture, kv_heads
from .claims import Claim, distance
from .forward import forward
from .hooks import Point, attach, record

KINDS = ("query", "key", "value")
_TURNED = 4
"""The token at which queries and keys are turned."""


def attention_claims(
    model: PreTrainedModel,
    architecture: Architecture,
    points: Mapping[str, Point],
    values: Mapping[str, Tensor],
    tokens: Tensor,
) -> Iterator[Claim]:
    """The claims of all layers, from one forward pass.

    `points` and `values` are of the sites recorded on `tokens` (row, position), of which the first row is used.
    """
    config = model.config
    heads = _Heads(config.num_attention_heads, kv_heads(config))
    layers = range(config.num_hidden_layers)
    known = [layer for layer in layers if all(f"{kind}.{layer}" in values for kind in (*KINDS, "head"))]
    turned = {f"{kind}.{layer}": _turn(values[f"{kind}.{layer}"][0], kind, heads) for layer in known for kind in KINDS}
    outputs = _run(model, points, turned, tokens, causal=architecture.is_causal(config))
    for layer in layers:
        yield from _layer_claims(layer, outputs, values, heads)


class _Heads(NamedTuple):
    query: int
    kv: int

    @property
    def rows(self) -> dict[str, slice]:
        """The rows in which queries, keys and values are turned, a head in each.

        In row 0 all is as it was, in row 1 all tokens have the value of the first.
        """
        ends = (2, 2 + self.query, 2 + self.query + self.kv, 2 + self.query + 2 * self.kv)
        return {kind: slice(*ends[i : i + 2]) for i, kind in enumerate(KINDS)}


def _turn(vectors: Tensor, kind: str, heads: _Heads) -> Tensor:
    """One recorded row, in every row of the experiment. (position, width) -> (row, position, width)."""
    rows, count = heads.rows[kind], heads.query if kind == "query" else heads.kv
    signs = vectors.new_ones(heads.rows["value"].stop, len(vectors), count, 1)
    positions = slice(None) if kind == "value" else slice(_TURNED, _TURNED + 1)
    signs[rows, positions] -= 2 * torch.eye(count, device=vectors.device, dtype=vectors.dtype)[:, None, :, None]
    turned = (vectors.unflatten(-1, (count, -1)) * signs).flatten(-2)
    if kind == "value":
        turned[1] = vectors[0]
    return turned


def _run(
    model: PreTrainedModel, points: Mapping[str, Point], turned: Mapping[str, Tensor], tokens: Tensor, *, causal: bool
) -> dict[str, Tensor]:
    """What heads put out on other tokens with these queries, keys and values. -> head.L: (row, position, width)."""
    if not turned:
        return {}
    other = (tokens[:1].flip(1) + 1) % model.config.vocab_size
    rows = len(next(iter(turned.values())))
    heads = {f"head.{site.partition('.')[2]}" for site in turned}
    with ExitStack() as hooks:
        for site, vectors in turned.items():
            hooks.enter_context(attach(points[site], lambda _, vectors=vectors: vectors))
        run = record(lambda: forward(model, other.expand(rows, -1), causal=causal), [points[head] for head in heads])
    passed = dict(run)
    return {head: passed[points[head]] for head in heads}


def _layer_claims(
    layer: int, outputs: Mapping[str, Tensor], values: Mapping[str, Tensor], heads: _Heads
) -> Iterator[Claim]:
    query, key, value = sites = tuple(f"{kind}.{layer}" for kind in KINDS)
    head = f"head.{layer}"

    def check_known() -> None:
        if missing := [site for site in (*sites, head) if site not in values]:
            raise KeyError(missing[0])

    def split(vectors: Tensor, count: int) -> Tensor:
        return vectors.unflatten(-1, (count, -1)).float()

    def find_outputs(kind: str) -> tuple[Tensor, Tensor]:
        """(row, position, head, d_head) of the rows of a kind, and (position, head, d_head) where none is turned."""
        check_known()
        found = split(outputs[head], heads.query)
        return found[heads.rows[kind]], found[0]

    def query_error() -> float:
        found, plain = find_outputs("query")
        own = torch.eye(heads.query, dtype=torch.bool, device=found.device)[:, None, :, None]
        here = (torch.arange(found.shape[1], device=found.device) == _TURNED)[None, :, None, None]
        return _leak(found - plain, own & here, plain)

    def key_error() -> float:
        found, plain = find_outputs("key")
        change = found - plain
        elsewhere = change[:, torch.arange(change.shape[1]) != _TURNED].any()
        return _leak(change, _groups(found), plain) if elsewhere else float("nan")

    def value_error() -> float:
        found, plain = find_outputs("value")
        return distance(found, torch.where(_groups(found), -plain, plain))

    def one_value_error() -> float:
        check_known()
        one = values[value][:1, :1].expand(1, outputs[head].shape[1], -1)
        return pointing_error(outputs[head][1:2], one, heads=heads.query, kv=heads.kv)

    def _groups(found: Tensor) -> Tensor:
        """Which query heads a key/value head serves, (key/value head, 1, head, 1)."""
        own = torch.eye(heads.kv, dtype=torch.bool, device=found.device)
        return own.repeat_interleave(heads.query // heads.kv, 1)[:, None, :, None]

    def head_error() -> float:
        check_known()
        return distance(outputs[head][0], values[head][0])

    yield Claim(f"{head} follows from {query}, {key} and {value}", sites, head_error)
    yield Claim(f"a head of {query} changes that head of {head} at its own token alone", (query,), query_error)
    yield Claim(f"a head of {key} changes its group of {head} alone", (key,), key_error)
    yield Claim(f"{head} turns with its heads of {value}", (value,), value_error)
    yield Claim(f"{head} points where {value} does", (value,), one_value_error)


def _leak(change: Tensor, own: Tensor, plain: Tensor) -> float:
    """The largest change outside of where it belongs, relative to the largest value; NaN where there is none inside."""
    if not change.masked_fill(~own, 0).any():
        return float("nan")
    return float(change.masked_fill(own, 0).abs().max() / plain.abs().max())


def pointing_error(outputs: Tensor, values: Tensor, *, heads: int, kv: int) -> float:
    """How far outputs are from pointing where values do, head by head; 0 where all point the same way.

    outputs: (row, position, heads * d_head), values: (row, position, kv * d_head).
    """
    own = outputs.float().unflatten(-1, (heads, -1))
    wanted = values.float().unflatten(-1, (kv, -1)).repeat_interleave(heads // kv, 2)
    return distance(*(torch.nn.functional.normalize(vectors, dim=-1) for vectors in (own, wanted)))
