"""Work that does not fit into memory is done in smaller batches.

Work on many rows is cut into batches where it is formed, and each batch is one call that may be made again: it begins
from nothing, and counts only when it is whole. Where there is no memory for one, its tensors are let go, it is halved
and done again, and later batches of that work on this subject stay as small. A forward pass itself is never cut,
because its hooks count calls and hold tensors of all its rows.

A smaller batch gives the same numbers but for rounding: matrix products round by the number of rows.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from .errors import NeuronautError

_log = logging.getLogger(__name__)
T = TypeVar("T")
Part = TypeVar("Part")

_UNTYPED = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the messages of errors that torch raises as plain RuntimeErrors: those of MPS, of a CPU and of cuBLAS."""

ADVICE = "take shorter windows or prompts, a smaller dtype (--dtype bfloat16), or fewer sources at once"


class DoesNotFitError(NeuronautError):
    """Not even the smallest batch of some work fits into memory."""


class Batching:
    """How many rows of each kind of work fit into memory, as far as larger batches were seen not to."""

    def __init__(self) -> None:
        self._most: dict[str, int] = {}
        self.tokens: int | None = None
        """Tokens of a batch, where they are to be more than what suits a CPU."""

    def rows(self, usual: int, length: int) -> int:
        """Rows of so many tokens in a batch: the `usual` number, or as many as fill it."""
        return usual if self.tokens is None else max(usual, self.tokens // length)

    def together(self, each: int) -> int:
        """How many are measured together, of each of which a batch takes so many tokens; one where that is not said."""
        return max(1, (self.tokens or 0) // each)

    def most(self, work: str, wanted: int) -> int:
        """Rows in a batch of this work: those `wanted`, or those that fit."""
        return min(wanted, self._most.get(work, wanted))

    def batches(
        self, count: int, most: int, run: Callable[[slice], T], *, work: str, per: int = 1, least: int = 1
    ) -> Iterator[T]:
        """What `run` gives for consecutive batches of `count` items, of at most `most` rows; an item has `per` rows.

        `work` names the rows, in the plural: what fits is kept by it, and said with it on the log where it shrinks.
        `least` is how many items must stay together. Raises DoesNotFitError where these do not fit.
        """
        done, refused = 0, 0
        while done < count:
            items = max(least, self.most(work, most) // per)
            part = slice(done, min(done + items, count))
            size = part.stop - part.start
            fitting = run_if_it_fits(run, part)
            if fitting is not None:
                if refused:
                    _log.warning("%d %s at once do not fit into memory: it goes on with %d", refused, work, size * per)
                done, refused = part.stop, 0
                yield fitting.pop()
                continue
            if size <= least:
                raise DoesNotFitError(f"memory has no room for {size * per} {work}, and fewer cannot be run; {ADVICE}")
            refused = refused or size * per
            self._most[work] = max(least, size // 2) * per


def run_if_it_fits(run: Callable[[Part], T], part: Part) -> list[T] | None:
    """What `run` gives for a part, in a list of its own; None where there is no memory for it, and it holds none."""
    try:
        return [run(part)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler, where the exception no longer holds the tensors of the call.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory, on a device or in the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | DoesNotFitError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _UNTYPED)
