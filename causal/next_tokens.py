"""What the subject would say next, before and after an edit: the most probable tokens of either."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .prompts import Batch
from .runs import logits_at


class NextToken(NamedTuple):
    """A token that may come next."""

    token: str
    id: int
    before: float
    """Its probability, 0 to 1."""
    after: float | None
    """As `before`, with the edits; None where there are none."""


@torch.inference_mode()
def last_logits(subject: Subject, batch: Batch) -> Tensor:
    """Logits at the last position of each row: (row, token)."""
    return logits_at(subject, batch.tokens, batch.last)


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
