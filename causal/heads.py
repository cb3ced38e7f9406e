"""Head scores: how much of a head's attention goes where a known kind of head sends it.

    previous    to the token before the query
    duplicate   to earlier occurrences of the query's own token, all together
    induction   to the tokens right after those occurrences, before the query, all together
    first       to the row's first token

A row's score is the mean over the queries that have such a key (and that are not the row's first token, nor its
second for `previous`, where the token before is also the first). On random tokens repeated with period T, all
different within a period, `duplicate` is the mean of the diagonal -T and `induction` of the diagonal -(T - 1) over the
second half (Olsson et al., "In-context learning and induction heads", 2022; formulas of notes/interventions.md). A
head's score is the mean over rows with its bootstrap interval. It says where a head looks, not what that is for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..subject.attention import patterns
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .measures import Mean, mean
from .prompts import Batch

Kind = Literal["previous", "duplicate", "induction", "first"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ROWS = 4
"""Rows whose patterns, of all layers, are in memory at once."""


class HeadScore(NamedTuple):
    """One head's score of one kind."""

    kind: Kind
    layer: int
    head: int
    score: Mean
    """Share of attention, 0 to 1; `n` counts the rows that have such keys at all."""

    @property
    def unit(self) -> str:
        """The head as edits name it."""
        return f"head.{self.layer}:{self.head}"


def repeated_tokens(subject: Subject, *, rows: int = 8, period: int | None = None, seed: int = 0) -> Batch:
    """Rows of BOS and a random sequence twice, its tokens drawn without replacement from the whole vocabulary.

    `period` is by default 50, or what fits the subject's context and vocabulary.
    """
    allowed = torch.tensor([id for id in range(len(subject.vocabulary)) if id != subject.bos])
    most = min((subject.context - len(subject.bos_prefix)) // 2, len(allowed))
    period = min(50, most) if period is None else period
    if not 2 <= period <= most or rows < 1:
        raise NeuronautError(
            f"{rows} rows of period {period} cannot be made; {subject.name} takes 1 or more rows of period 2 to {most}"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([allowed[torch.randperm(len(allowed), generator=generator)[:period]] for _ in range(rows)])
    tokens = torch.cat([torch.tensor([subject.bos_prefix] * rows, dtype=torch.long), drawn, drawn], dim=1)
    return Batch(tokens, torch.full((rows,), tokens.shape[1]))


def head_scores(
    subject: Subject, batch: Batch, *, layers: Iterable[int] | None = None, kinds: Sequence[Kind] = KINDS, seed: int = 0
) -> tuple[HeadScore, ...]:
    """Every head's scores on the batch, kind by kind, the highest first. Takes one forward for ROWS rows.

    `seed` is the bootstrap's. Raises NeuronautError where no row has a key of a kind, such as a repeated token.

    >>> from neuronaut.causal.heads import repeated_tokens
    >>> scores = head_scores(subject, repeated_tokens(subject, rows=2), layers=[3], kinds=["induction"])
    >>> sorted(score.unit for score in scores)
    ['head.3:0', 'head.3:1', 'head.3:2', 'head.3:3']
    """
    wrong = [kind for kind in kinds if kind not in _KEYS]
    chosen = range(subject.n_layers) if layers is None else sorted({*layers})
    if wrong or not kinds or not chosen:
        raise NeuronautError(
            f"no head score of kind {', '.join(wrong) or 'none'} in layers {list(chosen)}; kinds are {', '.join(_KEYS)}"
        )
    keys = {kind: _KEYS[kind](batch.tokens) & batch.real[:, :, None] for kind in kinds}
    rows = {kind: keys[kind].any(-1).any(-1) for kind in kinds}
    if missing := next((kind for kind in kinds if not rows[kind].any()), None):
        raise NeuronautError(
            f"no row has a query with a key for the {missing} score; give longer text, or repeated_tokens()"
        )

    def measure(part: slice) -> dict[Kind, Tensor]:
        layer_patterns = patterns(subject, batch.tokens[part], chosen)
        stacked = torch.stack([layer_patterns[layer] for layer in chosen], dim=1).float().cpu()
        return {kind: _measure_shares(stacked, keys[kind][part]) for kind in kinds}

    parts = [*subject.batching.batches(len(batch), ROWS, measure, work="rows of patterns")]
    shares = {kind: torch.cat([part[kind] for part in parts])[rows[kind]] for kind in kinds}
    return tuple(score for kind in kinds for score in _rank_heads(kind, shares[kind], list(chosen), seed))


def _measure_shares(pattern: Tensor, keys: Tensor) -> Tensor:
    """Each row's mean over its queries: (row, layer, head, query, key), (row, query, key) -> (row, layer, head)."""
    onto = torch.einsum("rlhqk,rqk->rlh", pattern, keys.to(pattern.dtype))
    return onto / keys.any(-1).sum(-1).clamp_min(1)[:, None, None]


def _rank_heads(kind: Kind, shares: Tensor, layers: list[int], seed: int) -> list[HeadScore]:
    """From (row, layer, head)."""
    scores = [
        HeadScore(kind, layer, head, mean(shares[:, index, head], seed=seed))
        for index, layer in enumerate(layers)
        for head in range(shares.shape[2])
    ]
    return sorted(scores, key=lambda score: -score.score.value)


def _steps_back(tokens: Tensor) -> Tensor:
    """From each query to each key: (query, key)."""
    place = torch.arange(tokens.shape[1])
    return place[:, None] - place


def _mark_previous(tokens: Tensor) -> Tensor:
    not_first = torch.arange(tokens.shape[1]) > 0
    return ((_steps_back(tokens) == 1) & not_first).expand(len(tokens), -1, -1)


def mark_duplicate(tokens: Tensor) -> Tensor:
    """From (row, position) ids, the earlier occurrences of each query's own token: (row, query, key), bool."""
    return (tokens[:, :, None] == tokens[:, None]) & (_steps_back(tokens) > 0)


def _mark_induction(tokens: Tensor) -> Tensor:
    """The duplicates, one step on; what rolls round to the first key is no earlier than it."""
    return mark_duplicate(tokens).roll(1, dims=2) & (_steps_back(tokens) > 0)


def _mark_first(tokens: Tensor) -> Tensor:
    keys = _steps_back(tokens) > 0
    keys[:, 1:] = False
    return keys.expand(len(tokens), -1, -1)


_KEYS: Mapping[Kind, Callable[[Tensor], Tensor]] = {
    "previous": _mark_previous,
    "duplicate": mark_duplicate,
    "induction": _mark_induction,
    "first": _mark_first,
}
"""From tokens (row, position) to the keys that count: (row, query, key), bool."""
