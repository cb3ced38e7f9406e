"""A local Hugging Face model, in this process, as a language model that answers requests.

Requests stand in a queue. One worker thread takes a batch from it, answers it, settles its futures and looks again,
so that there is never more than one batch at work, and the next is made of all requests that came meanwhile. A batch
that does not fit into memory is halved, and later ones have half as many tokens.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Condition, Lock, Thread
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ...subject.memory import run_if_it_fits
from ..types import Reply, Request
from .engine import ENDPOINT, Engine, Job

_SETTLING = 0.01
"""Seconds that an idle worker leaves to other requests to join the first."""

_FULL = "memory has no room for this request, even alone; ask a smaller model, or load it with dtype=bfloat16"
_log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    job: Job
    future: Future[Reply]


class LocalLLM:
    """Any local causal language model, chat or base, loaded when it is first needed.

    Chats are sampled at their temperature, from the whole distribution; None takes the temperature of the
    model's generation_config where that samples, else the likeliest token. The output tokens of a reply include
    the one that ended it. The form for a base model, and where its reply ends, are in chat_format.py.
    """

    endpoint = ENDPOINT
    can_probe = True
    in_flight = 256

    def __init__(
        self,
        path: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_tokens: int = 8192,
        name: str | None = None,
    ) -> None:
        """`path` is a folder, a Hugging Face id or `demo`; `name` replaces its last part, or the id, in `model`.

        The device is by default the first GPU, or else the CPU; the dtype float32 on a CPU, else bfloat16.
        """
        self._path, self._device, self._dtype, self._name = path, device, dtype, name
        self._batch_tokens, self._lowered = batch_tokens, False
        self._opened: Engine | None = None
        # A tokenizer takes one thread at a time, and a model is loaded once.
        self._lock = Lock()
        self._queue, self._wake, self._closed = list[_Waiting](), Condition(), False
        self._worker: Thread | None = None

    @property
    def model(self) -> str:
        """The folder's base name or the id, and eight digits of a hash of the weights: tiny@1f2e3d4c."""
        with self._lock:
            return self._engine().model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own, from which probes are built."""
        with self._lock:
            return self._engine().tokenizer

    def count(self, request: Request) -> int:
        """Tokens of the prompt; of its plain form where the chat template takes no such conversation."""
        with self._lock:
            return self._engine().count(request)

    def submit(self, request: Request) -> Future[Reply]:
        """Put the request into the queue."""
        future: Future[Reply] = Future()
        with self._lock:
            job = self._engine().prepare(request)
        if isinstance(job, Reply):
            future.set_result(job)
            return future
        with self._wake:
            if self._closed:
                future.cancel()
                return future
            self._queue.append(_Waiting(job, future))
            if self._worker is None:
                self._worker = Thread(target=self._work, name="local model", daemon=True)
                self._worker.start()
            self._wake.notify()
        return future

    def close(self) -> None:
        """Finish the batch at work, drop the rest of the queue and end the worker."""
        with self._wake:
            self._closed = True
            dropped, self._queue = self._queue, []
            self._wake.notify()
        for waiting in dropped:
            waiting.future.cancel()
        if self._worker is not None:
            self._worker.join()

    def _engine(self) -> Engine:
        if self._opened is None:
            self._opened = Engine.load(self._path, device=self._device, dtype=self._dtype, name=self._name)
        return self._opened

    def _work(self) -> None:
        while batch := self._take():
            self._settle([waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()])

    def _take(self) -> list[_Waiting]:
        """The next batch, as soon as there is one; none once the client is closed."""
        with self._wake:
            if not self._queue and not self._closed:
                self._wake.wait_for(lambda: self._queue or self._closed)
                self._wake.wait_for(lambda: self._closed, timeout=_SETTLING)
            if not self._queue:
                return []
            jobs = [waiting.job for waiting in self._queue]
            chosen = set(self._engine().next_batch(jobs, batch_tokens=self._batch_tokens))
            batch = [waiting for place, waiting in enumerate(self._queue) if place in chosen]
            self._queue = [waiting for place, waiting in enumerate(self._queue) if place not in chosen]
            return batch

    def _settle(self, batch: Sequence[_Waiting]) -> None:
        """Answer a batch and settle its futures."""
        if not batch:
            return
        try:
            fitting = run_if_it_fits(self._engine().answer, [waiting.job for waiting in batch])
        except RuntimeError as error:
            fitting = [[Reply("failed", reason=str(error).partition("\n")[0])] * len(batch)]
        # Whatever it is: those who wait have to hear of it, and this thread goes on for others.
        except BaseException as error:
            for waiting in batch:
                waiting.future.set_exception(error)
            return
        if fitting is None and len(batch) > 1:
            self._lower(batch)
            middle = len(batch) // 2
            self._settle(batch[:middle])
            self._settle(batch[middle:])
            return
        replies = [Reply("failed", reason=_FULL)] if fitting is None else fitting[0]
        for waiting, reply in zip(batch, replies, strict=True):
            waiting.future.set_result(reply)

    def _lower(self, batch: Sequence[_Waiting]) -> None:
        """Let later batches have half as many tokens as this one, which did not fit."""
        rows, longest = len(batch), max(waiting.job.length for waiting in batch)
        self._batch_tokens = max(1, rows * longest // 2)
        if not self._lowered:
            self._lowered = True
            _log.warning("%d requests at once do not fit into memory: batches are smaller from now on", rows)
