"""Any OpenAI-compatible server as a language model: OpenAI, vLLM, Ollama, llama.cpp, `transformers serve`.

A request runs on a thread of its own and passes `Flow` for every attempt, so that waiting for a retry holds up
nobody else. Each call carries its own parameters and an idempotency key that is the hash of the request: a
server that honours such keys charges it once, however often it is asked, also after a kill -9.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from threading import Event, Lock
from typing import Any

from openai import APIConnectionError, APIError, APITimeoutError, OpenAI, RateLimitError

from ...subject.errors import NeuronautError
from ..prices import estimate, estimate_chat
from ..tool_calls import spelled
from ..types import Chat, Probe, Reply, Request, request_key
from .retrying import Flow, Malformed, one_line, reason, retry_policy, spoiling
from .wire import Wire, decoded, endpoint_of, read_chat, read_probe

_FILTERED = frozenset({"content_filter", "content_policy_violation"})
"""Codes of errors with which a filter declines a request."""


class OpenAIChat:
    """A model of an OpenAI-compatible server."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        in_flight: int = 64,
        timeout: float = 120.0,
        thinking: int = 0,
        temperature_fixed: bool = False,
        tokenizer: str | None = None,
        prompt_logprobs: bool = False,
        attempts: int = 6,
        backoff: float = 1.0,
        longest_backoff: float = 60.0,
    ) -> None:
        """`base_url` and `api_key` default to OPENAI_BASE_URL and OPENAI_API_KEY; a key is missed at the first
        submit only. At most `in_flight` requests are with the server at once; one that takes over `timeout`
        seconds is given up and retried. `thinking` tokens are allowed on top of each reply's; `temperature_fixed` is
        for models that take no temperature. With `prompt_logprobs` the server, vLLM, answers probes.
        `tokenizer` is a folder or id for transformers, by default the model's name. For `attempts`, `backoff` and
        `longest_backoff` see retry_policy."""
        self._wire = Wire(model, endpoint_of(base_url), thinking=thinking, temperature_fixed=temperature_fixed)
        self._variant = f"+thinking={thinking}" * (thinking > 0) + "+own-temperature" * temperature_fixed
        self._api_key, self._timeout = api_key, timeout
        self._tokenizer, self._prompt_logprobs = tokenizer, prompt_logprobs
        self._flow = Flow(in_flight)
        self._stopped = Event()
        self._retrying = retry_policy(
            attempts=attempts, backoff=backoff, longest_backoff=longest_backoff, stopped=self._stopped
        )
        self._pool = ThreadPoolExecutor(2 * in_flight, thread_name_prefix="llm")
        self._connecting = Lock()
        self._client: OpenAI | None = None
        self._reached = False

    @property
    def model(self) -> str:
        """The model's name, and after a plus how it is asked where that changes what it answers: so it is part of what
        an answer is known by."""
        return self._wire.model + self._variant

    @property
    def endpoint(self) -> str:
        """The server's base URL."""
        return self._wire.endpoint

    @property
    def in_flight(self) -> int:
        """How many requests the server bears at once, as found so far."""
        return self._flow.limit

    @property
    def can_probe(self) -> bool:
        """Whether the server was said to have prompt_logprobs."""
        return self._prompt_logprobs

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer, from transformers; probes are assembled with it."""
        from transformers import AutoTokenizer

        name = self._tokenizer or self._wire.model
        try:
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise NeuronautError(
                f"no tokenizer {name} ({one_line(error)}); name a folder or Hugging Face id that has {self.model}'s"
            ) from error

    def count(self, request: Request) -> int:
        """Tokens of the prompt: exact for probes, by the tokenizer where one was named, else an estimate."""
        if isinstance(request, Probe):
            return len(request.ids)
        messages = spelled(request).messages
        if self._tokenizer is None:
            return estimate_chat(messages)
        if self.tokenizer.chat_template:
            turns = [{"role": message.role, "content": message.content} for message in messages]
            return len(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
        return sum(len(self.tokenizer.encode(message.content)) for message in messages)

    def submit(self, request: Request) -> Future[Reply]:
        """Begin to answer. Raises a NeuronautError at once where no key is set, or a probe cannot be answered."""
        if isinstance(request, Probe) and not self.can_probe:
            raise NeuronautError(
                f"{self.endpoint} was not said to answer probes; use a server with prompt_logprobs (vLLM) and say so"
            )
        return self._pool.submit(self._answer, self._connected(), request)

    def close(self) -> None:
        """Drop what is not begun or waits to be retried, await what the server is at, and disconnect."""
        self._stopped.set()
        self._flow.close()
        self._pool.shutdown(cancel_futures=True)
        if self._client:
            self._client.close()

    def _connected(self) -> OpenAI:
        with self._connecting:
            self._client = self._client or self._wire.connect(api_key=self._api_key, timeout=self._timeout)
            return self._client

    def _answer(self, client: OpenAI, request: Request) -> Reply:
        """The reply, after retries; raises what spoils every call alike."""
        try:
            return self._retrying(self._attempt, client, request)
        except (APIError, Malformed) as error:
            if getattr(error, "code", None) in _FILTERED:
                return Reply("refused", reason=reason(error))
            if self._unreachable(error):
                raise NeuronautError(
                    f"{self.endpoint} cannot be reached ({reason(error)}); start the server, or correct the base URL"
                ) from error
            if spoilt := spoiling(error, endpoint=self.endpoint, model=self.model):
                raise spoilt from error
            return Reply("failed", reason=reason(error))

    def _attempt(self, client: OpenAI, request: Request) -> Reply:
        key = request_key(request, model=self.model, endpoint=self.endpoint)
        with self._flow.place(throttled=RateLimitError):
            began = time.monotonic()
            text = self._call(client, request, headers={"Idempotency-Key": key})
            self._reached = True
            body = decoded(text)
            reply = read_probe(body, request) if isinstance(request, Probe) else read_chat(body)
        reply = replace(reply, seconds=time.monotonic() - began)
        return reply if body.get("usage") else self._estimated(request, reply)

    def _call(self, client: OpenAI, request: Chat | Probe, *, headers: dict[str, str]) -> str:
        """The body that the server sends."""
        if isinstance(request, Probe):
            body = self._wire.probe(request)
            create = client.completions.with_raw_response.create
            return create(model=self.model, prompt=body["prompt"], extra_body=body, extra_headers=headers).text
        body = self._wire.chat(request)
        create = client.chat.completions.with_raw_response.create
        return create(model=self.model, messages=body["messages"], extra_body=body, extra_headers=headers).text

    def _estimated(self, request: Request, reply: Reply) -> Reply:
        """The reply with tokens estimated, from a server that does not count them."""
        return replace(
            reply,
            input_tokens=self.count(request),
            output_tokens=estimate(reply.text) + sum(estimate(call.name + call.arguments) for call in reply.calls),
            raw={**reply.raw, "usage": "estimated"},
        )

    def _unreachable(self, error: APIError | Malformed) -> bool:
        """Whether no connection ever stood, as where no server runs."""
        return not self._reached and isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError)
