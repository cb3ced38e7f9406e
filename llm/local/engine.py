"""A local model that answers batches of requests: it checks them, groups them and makes replies of its output.

A batch is of one kind: chats of about equal length, or probes in the order of their ids, so that those that begin
alike stand together and share that beginning. Its padded tokens are bounded. An answer does not depend on the
batch it came in, but for the rounding of another order of summation.
"""

import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Generator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...subject.loading import load, quiet, weights_digest
from ...subject.vocabulary import token_strings
from ..types import Chat, Probe, Reply, Request, Status, TokenLogprobs, request_key
from .chat_format import ChatFormat, Refused
from .forward import Forward, Writing

ENDPOINT = "local"
LOGITS = 2**28
"""Logits that one batch of probes has at most: 1 GiB in single precision."""
EXPANSION = 8
"""With the prefix that they share, probes take up to this many times the tokens of a batch in the cache."""


class Job(NamedTuple):
    """A request that can be answered."""

    request: Request
    ids: tuple[int, ...]
    """Of the prompt."""

    @property
    def length(self) -> int:
        """Positions it needs at most."""
        request = self.request
        return len(self.ids) + request.sampling.max_tokens if isinstance(request, Chat) else max(request.positions) + 1


class Engine:
    """A loaded model with the form of its chats.

    Attributes: `model` (its name, @, eight digits of a hash of its weights), `tokenizer`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
        self.model, self.tokenizer = f"{name}@{weights_digest(model)[:8]}", tokenizer
        self._forward = Forward(model, name=name)
        config = model.generation_config
        eos = getattr(config, "eos_token_id", None)
        ends = [*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id]
        self._format = ChatFormat(tokenizer, stops=[id for id in ends if isinstance(id, int)])
        samples = config is not None and config.do_sample
        self._temperature = float(config.temperature or 1.0) if config is not None and samples else 0.0
        """The temperature where a chat leaves it to the model."""

    @classmethod
    def load(cls, path: str, *, device: str | None, dtype: str | None, name: str | None) -> Self:
        """Load a folder, a Hugging Face id or `demo`; see LocalLLM for the defaults."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        loaded = load(path, device=device, dtype=dtype, any_family=True)
        with quiet():
            return cls(loaded.model, loaded.tokenizer, name=name or loaded.name)

    def count(self, request: Request) -> int:
        """Tokens of the prompt; of its plain form where the chat template takes no such conversation."""
        if isinstance(request, Probe):
            return len(request.ids)
        try:
            return len(self._format.chat_ids(request))
        except Refused:
            return len(self._format.plain_ids(request))

    def prepare(self, request: Request) -> Job | Reply:
        """The request made ready, or at once the reply to one that cannot be answered."""
        if isinstance(request, Probe):
            reason = self._fault_in_probe(request)
            if reason is None and not request.positions:
                return Reply("ok", input_tokens=len(request.ids))
            return Reply("failed", reason=reason) if reason else Job(request, request.ids)
        try:
            ids = tuple(self._format.chat_ids(request))
        except Refused as refusal:
            return Reply("failed", reason=str(refusal))
        if request.sampling.max_tokens < 1:
            return Reply("failed", reason=f"max_tokens is {request.sampling.max_tokens}, wanted at least 1")
        reason = self._too_long(len(ids) + 1)
        return Reply("failed", reason=reason) if reason else Job(request, ids)

    def next_batch(self, jobs: Sequence[Job], *, batch_tokens: int) -> list[int]:
        """Which of the waiting jobs to run next: of the first one's kind, and at least one."""
        kind = type(jobs[0].request)
        places = [place for place, job in enumerate(jobs) if type(job.request) is kind]
        places.sort(key=lambda place: jobs[place].length if kind is Chat else jobs[place].ids)
        batch, longest, before, logits = list[int](), 0, math.inf, 0
        for place in places:
            job, rows = jobs[place], len(batch) + 1
            longest = max(longest, job.length)
            shared = 0
            if isinstance(job.request, Probe):
                before, logits = min(before, *job.request.positions), logits + len(job.request.positions)
                shared = self._forward.shared_length(jobs[places[0]].ids, job.ids, before=int(before))
            if batch and (
                rows * (longest - shared) > batch_tokens
                or rows * longest > EXPANSION * batch_tokens
                or logits * self._forward.width > LOGITS
            ):
                break
            batch.append(place)
        return batch

    def answer(self, jobs: Sequence[Job]) -> list[Reply]:
        """Replies to jobs of one kind, as one batch."""
        start = time.perf_counter()
        chats = [(job.request, job.ids) for job in jobs if isinstance(job.request, Chat)]
        probes = [job.request for job in jobs if isinstance(job.request, Probe)]
        if probes:
            probabilities = self._forward.probabilities(probes)
            seconds = time.perf_counter() - start
            return [self._probe_reply(probe, rows, seconds) for probe, rows in zip(probes, probabilities, strict=True)]
        rows = [self._begin_writing(chat, ids) for chat, ids in chats]
        self._forward.write(rows)
        seconds = time.perf_counter() - start
        return [self._chat_reply(row, seconds) for row in rows]

    def _begin_writing(self, chat: Chat, ids: tuple[int, ...]) -> Writing:
        sampling, context = chat.sampling, self._forward.context
        temperature = self._temperature if sampling.temperature is None else sampling.temperature
        # The seed is a field of the request, so it is part of its key.
        generator = Generator().manual_seed(int(request_key(chat, model=self.model, endpoint=ENDPOINT)[:15], 16))
        limit = sampling.max_tokens if context is None else min(sampling.max_tokens, context - len(ids))
        return Writing(
            prompt=ids,
            limit=limit,
            is_over=self._format.is_over,
            temperature=temperature,
            generator=generator,
            alternatives=sampling.top_logprobs,
        )

    def _chat_reply(self, row: Writing, seconds: float) -> Reply:
        text, length = self._format.text(row.written), self._format.count_text(row.written)
        logprobs = tuple(
            TokenLogprobs(self._strings[id], self._by_string(top))
            for id, top in zip(row.written[:length], row.top, strict=False)
        )
        status, reason = self._status(row, text)
        return Reply(
            status=status,
            text=text,
            reason=reason,
            input_tokens=len(row.prompt),
            output_tokens=len(row.written),
            seconds=seconds,
            logprobs=logprobs,
        )

    def _status(self, row: Writing, text: str) -> tuple[Status, str | None]:
        """Status and reason of a reply."""
        if row.broken:
            return "failed", self._not_finite
        if not row.ended:
            return "truncated", f"cut at {row.limit} tokens"
        return ("ok", None) if text.strip() else ("empty", "the reply has no text")

    def _by_string(self, top: dict[int, float]) -> dict[str, float]:
        """Log-probabilities by string; of two ids with one string, the likelier one counts."""
        return {self._strings[id]: value for id, value in reversed(top.items())}

    def _probe_reply(self, probe: Probe, rows: list[list[float]], seconds: float) -> Reply:
        if not all(map(math.isfinite, (value for row in rows for value in row))):
            return Reply("failed", reason=self._not_finite, input_tokens=len(probe.ids), seconds=seconds)
        return Reply("ok", input_tokens=len(probe.ids), seconds=seconds, probabilities=tuple(map(tuple, rows)))

    @property
    def _not_finite(self) -> str:
        return f"the model's logits are not finite in {self._forward.model.dtype}; load it as float32"

    def _fault_in_probe(self, probe: Probe) -> str | None:
        width, length = self._forward.width, len(probe.ids)
        if unknown := [id for id in (*probe.ids, *probe.choices) if not 0 <= id < width]:
            return f"token id {unknown[0]} is outside the vocabulary, 0 to {width - 1}"
        if outside := [at for at in probe.positions if not 0 <= at < length]:
            return f"position {outside[0]} is outside the prompt of {length} tokens"
        return self._too_long(length)

    def _too_long(self, length: int) -> str | None:
        context = self._forward.context
        if context is None or length <= context:
            return None
        return f"the prompt needs {length} positions, the model has {context}"

    @cached_property
    def _strings(self) -> tuple[str, ...]:
        return token_strings(self.tokenizer, count=self._forward.width)
