"""Readouts of a run, one number for each row: the answer's metrics, a set of tokens, a feature further on.

A readout runs the subject as it is at that moment, edited or not, over rows of any number, and then makes numbers of
what this run and the plain one gave for a batch's rows. `next_tokens` reads out the most probable tokens instead,
before and after an edit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..subject.address import Feature
from ..subject.directions import checked_index
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .measures import Question, metric
from .prompts import Batch
from .runs import logits_at


@dataclass(frozen=True, eq=False, slots=True)
class Readout:
    """One number for each row."""

    name: str
    formula: str
    """The id of its formula, with its unit."""
    run: Callable[[Subject, Batch], Tensor]
    """A forward pass over rows: (row, ...)."""
    read: Callable[[Tensor, Tensor], Tensor]
    """From what a run gave for a batch, and a plain run of it, (row, ...) each, to (row,), float32."""


@torch.inference_mode()
def last_logits(subject: Subject, batch: Batch) -> Tensor:
    """Logits at the last position of each row: (row, token)."""
    return logits_at(subject, batch.tokens, batch.last)


def answers(name: str, ids: Sequence[int] = (), *, wrong: Sequence[int] | None = None) -> Readout:
    """A metric of `measures` at the rows' last positions; one answer for each row, which only `kl` does without."""
    chosen_metric = metric(name)
    wanted = torch.tensor(list(ids), dtype=torch.long)
    against = None if wrong is None else torch.tensor(list(wrong), dtype=torch.long)

    def read(logits: Tensor, plain: Tensor) -> Tensor:
        sides = [side for side in (wanted, against) if side is not None and (len(side) or name != "kl")]
        if any(side.shape != (len(logits),) for side in sides):
            raise NeuronautError(
                f"metric {name} has {len(wanted)} answers for {len(logits)} prompts; give an answer to each, and a "
                "wrong one or none to each"
            )
        return chosen_metric(logits, Question(wanted, against, plain))

    return Readout(name, chosen_metric.formula, last_logits, read)


def token_set(ids: Sequence[int]) -> Readout:
    """The log-probability, in nats, that one of these tokens comes after the row."""
    chosen = sorted(set(ids))
    if not chosen:
        raise NeuronautError("the set of tokens is empty; give at least one token id")

    def run(subject: Subject, batch: Batch) -> Tensor:
        if not 0 <= chosen[0] <= chosen[-1] < len(subject.vocabulary):
            raise NeuronautError(
                f"token ids {chosen} are not all among the {len(subject.vocabulary)} of {subject.name}"
            )
        return last_logits(subject, batch)

    def read(logits: Tensor, plain: Tensor) -> Tensor:
        del plain
        return logits.float().log_softmax(-1)[:, chosen].logsumexp(-1)

    return Readout("log_probability_of_set", "ln sum p[set]/1", run, read)


def activation(source: Source, feature: Feature) -> Readout:
    """A feature's activation at the rows' last positions, counted as its tail counts it."""
    index, sign = checked_index(source, feature), -1.0 if feature.negative else 1.0

    def run(subject: Subject, batch: Batch) -> Tensor:
        read = subject.read(batch.tokens, source.reads)
        vectors = source.join(read)[torch.arange(len(batch)), batch.last]
        return source.encode(vectors, torch.tensor([index], device=vectors.device))

    def read(values: Tensor, plain: Tensor) -> Tensor:
        del plain
        return sign * values[:, 0].float()

    return Readout(f"activation of {feature}", "activation at last/1", run, read)


class NextToken(NamedTuple):
    """A token that may come next."""

    token: str
    id: int
    before: float
    """Its probability, 0 to 1."""
    after: float | None
    """As `before`, with the edits; None where there are none."""


def next_tokens(subject: Subject, before: Tensor, after: Tensor | None, *, top: int) -> list[NextToken]:
    """The `top` tokens of either of one row's logits, (token,) each; the one that is likeliest in one of them first."""
    if not 0 < top <= len(subject.vocabulary):
        raise NeuronautError(f"cannot show the top {top} tokens; wanted 1 to {len(subject.vocabulary)}")
    parts = [part.float().softmax(-1).cpu() for part in (before, after) if part is not None]
    chosen = torch.cat([part.topk(top).indices for part in parts]).unique()
    likeliest = torch.stack(parts)[:, chosen].amax(0)
    order = chosen[likeliest.argsort(descending=True, stable=True)].tolist()
    return [
        NextToken(subject.vocabulary[id], id, float(parts[0][id]), None if after is None else float(parts[1][id]))
        for id in order
    ]
