"""How much work there is, how much of it is done, and the end of its time.

Work is counted in tokens that ran through all of a subject's layers, a pass with gradients as three. Tokens that begin
in the middle count as the share of the layers they ran, and logits as the share of the layers' weights that theirs
are, and what is made of them (`cost_of`). Hooks count whatever runs within `counted`.
"""

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..subject.model import Subject
from .runs import blocks_of

GRADIENT = 3
"""What a token costs with gradients, in tokens without."""
BESIDE = 600
"""What softmax and divergence of a logit cost, in weights; measured on a CPU."""


class OutOfTime(Exception):
    """The time is over."""


class Work:
    """Counts tokens, tells of them, and raises OutOfTime within the forward in which its time is over.

    Attributes: `done` and `expected` (tokens), `doing` (in words), `on_progress` (is told of it at
    every forward once something was begun).
    """

    def __init__(self, *, minutes: float | None = None) -> None:
        """The time begins now; None: there is no end to it."""
        self.done, self.expected, self.doing = 0.0, 0.0, ""
        self.on_progress: Callable[[Work], None] | None = None
        self._seconds, self._started, self._share = minutes and 60 * minutes, time.monotonic(), 1.0

    def begin(self, doing: str, *, left: float | None = None, share: float = 1.0) -> None:
        """Say what comes next, how many tokens there are about left, and by which share of the time it must end.

        Where `left` is None, there are as many as were expected before.
        """
        self.doing, self._share = doing, share
        self.expected = self.expected if left is None else self.done + left
        self._tell()

    @property
    def most(self) -> float | None:
        """Seconds until its time is over; None where there is no end to it."""
        return None if self._seconds is None else self._started + self._seconds - time.monotonic()

    @contextmanager
    def counted(self, subject: Subject) -> Generator[None]:
        """Within the block, all runs of the subject count."""
        blocks, per_logit = blocks_of(subject), cost_of(subject, 0, logits=1)

        def count(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any], __: object) -> None:
            if self._seconds is not None and time.monotonic() - self._started > self._share * self._seconds:
                raise OutOfTime
            self._add(args[0] if args else options["hidden_states"], 1 / len(blocks))

        def count_logits(_: nn.Module, args: tuple[Any, ...], __: object) -> None:
            self._add(args[0], per_logit)

        with ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_hook(count, with_kwargs=True).remove)
            hooks.callback(subject.unembedding.register_forward_hook(count_logits).remove)
            yield

    def _add(self, vectors: Tensor, each: float) -> None:
        """Count vectors, (..., width)."""
        self.done += vectors.shape[:-1].numel() * each * (GRADIENT if torch.is_grad_enabled() else 1)
        self._tell()

    def _tell(self) -> None:
        if self.on_progress is not None and self.doing:
            self.on_progress(self)


def cost_of(subject: Subject, tokens: float, *, logits: float = 0.0) -> float:
    """The cost of runs of so many tokens, of which so many get logits, in tokens that get none."""
    weights, read = (
        sum(weight.numel() for weight in module.parameters()) for module in (blocks_of(subject), subject.unembedding)
    )
    return tokens + logits * (read + BESIDE * len(subject.vocabulary)) / weights
