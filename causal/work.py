"""How much a search has worked, how much is left, and the end of its time.

Work is counted in rows that ran through all of a subject's layers, a pass with gradients as three; a row that begins
in the middle counts as the share of the layers it ran. Hooks on the blocks count whatever runs within `counted`.
"""

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ...subject.model import Subject
from ..runs import blocks_of

GRADIENT = 3
"""What a row costs with gradients, in rows without."""


class OutOfTime(Exception):
    """A search's time is over."""


class Work:
    """Counts rows, tells of them, and raises OutOfTime within the forward in which it is over.

    Attributes: `done` and `expected` (rows), `doing` (in words), `on_progress` (is told of it).
    """

    def __init__(self, *, minutes: float | None = None) -> None:
        """The time begins now; None: there is no end to it."""
        self.done, self.expected, self.doing = 0.0, 0.0, ""
        self.on_progress: Callable[[Work], None] | None = None
        self._seconds, self._started, self._share = minutes and 60 * minutes, time.monotonic(), 1.0

    def begin(self, doing: str, *, left: float, share: float = 1.0) -> None:
        """Say what comes next, how many rows there are about left, and by which share of the time it must end."""
        self.doing, self.expected, self._share = doing, self.done + left, share
        self._tell()

    @contextmanager
    def counted(self, subject: Subject) -> Generator[None]:
        """Within the block, all runs of the subject count."""
        blocks = blocks_of(subject)

        def count(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any], __: object) -> None:
            if self._seconds is not None and time.monotonic() - self._started > self._share * self._seconds:
                raise OutOfTime
            rows = len(args[0] if args else options["hidden_states"])
            self.done += rows * (GRADIENT if torch.is_grad_enabled() else 1) / len(blocks)
            self._tell()

        with ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_hook(count, with_kwargs=True).remove)
            yield

    def _tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self)
