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
from typing import TYPE_CHECKING

import httpx2
from openai import APIConnectionError, APIError, APIStatusError, RateLimitError

from ...subject.errors import NeuronautError
from ..prices import estimate_chat
from ..tool_calls import spell_out_tools
from ..types import Chat, Probe, Reply, Request, request_key
from .connection import Connection
from .dialect import Dialect, TokenLimit
from .keys import hide_login
from .replies import count_tokens, decode_body, read_chat, read_probe
from .retrying import Flow, Malformed, describe_error, fatal_error, one_line, read_code, retry_policy
from .wire import Wire, find_endpoint, is_openai

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        token_limit: TokenLimit = "auto",
        tokenizer: str | None = None,
        prompt_logprobs: bool = False,
        attempts: int = 6,
        backoff: float = 1.0,
        longest_backoff: float = 60.0,
    ) -> None:
        """`base_url` and `api_key` default to OPENAI_BASE_URL and OPENAI_API_KEY.

        A key is missed at the first submit only. At most `in_flight` requests are with the server at once; one that
        takes over `timeout` seconds, to the last byte of its reply, is given up and retried. `thinking` tokens are
        allowed on top of each reply's; `temperature_fixed` is for models that take no temperature, and `token_limit`
        names the limit on tokens; both are learned where the server refuses what it is sent. With `prompt_logprobs`
        the server, vLLM, answers probes. `tokenizer` is a folder or id for transformers, by default the model's name.
        For `attempts`, `backoff` and `longest_backoff` see retry_policy.
        """
        self._address = find_endpoint(base_url)
        self._wire = Wire(
            model,
            hide_login(self._address),
            thinking=thinking,
            dialect=open_dialect(self._address, limit=token_limit, temperature_fixed=temperature_fixed),
        )
        self._variant = "".join(
            (
                f"+thinking={thinking}" * (thinking > 0),
                "+own-temperature" * temperature_fixed,
                "+no-limit" * (token_limit == "none"),
            )
        )
        self._api_key, self._timeout, self._width = api_key, timeout, in_flight
        self._tokenizer, self._prompt_logprobs = tokenizer, prompt_logprobs
        self._flow = Flow(in_flight)
        self._stopped = Event()
        self._retrying = retry_policy(
            attempts=attempts, backoff=backoff, longest_backoff=longest_backoff, stopped=self._stopped
        )
        self._pool = ThreadPoolExecutor(2 * in_flight, thread_name_prefix="llm")
        self._connecting = Lock()
        self._connection: Connection | None = None
        self._reached = False

    @property
    def model(self) -> str:
        """The model's name, and after a plus the settings that change its answers: so they are part of a request's key.

        For example `gpt-5-mini+thinking=500`.
        """
        return self._wire.model + self._variant

    @property
    def endpoint(self) -> str:
        """The server's base URL."""
        return self._wire.endpoint

    @property
    def in_flight(self) -> int:
        """How many requests the server bears at once, as measured so far."""
        return self._flow.limit

    @property
    def can_probe(self) -> bool:
        """Whether the server was said to have prompt_logprobs."""
        return self._prompt_logprobs

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's own tokenizer, from transformers; probes are assembled with it."""
        return self._loaded_tokenizer

    @cached_property
    def _loaded_tokenizer(self) -> "PreTrainedTokenizerBase":
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
        messages = spell_out_tools(request).messages
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
        return self._pool.submit(self._answer, self._connect(), request)

    def close(self) -> None:
        """Drop requests that are not begun or wait to be retried, await those at the server, and disconnect."""
        self._stopped.set()
        self._flow.close()
        self._pool.shutdown(cancel_futures=True)
        if self._connection:
            self._connection.close()

    def _connect(self) -> Connection:
        with self._connecting:
            self._connection = self._connection or Connection(
                self._address, api_key=self._api_key, timeout=self._timeout, width=self._width
            )
            return self._connection

    def _answer(self, connection: Connection, request: Request) -> Reply:
        """The reply, after retries; raises an error that every call would meet alike."""
        try:
            return self._retrying(self._attempt, connection, request)
        except (APIError, Malformed) as error:
            if read_code(error) in _FILTERED:
                return Reply("refused", reason=describe_error(error))
            if self._is_unreachable(error):
                raise NeuronautError(
                    f"{self.endpoint} cannot be reached ({describe_error(error)}); "
                    "start the server, or correct the base URL"
                ) from error
            if fatal := fatal_error(error, endpoint=self.endpoint, model=self.model):
                raise fatal from error
            return Reply("failed", reason=describe_error(error))

    def _attempt(self, connection: Connection, request: Request) -> Reply:
        with self._flow.place(throttled=RateLimitError):
            began = time.monotonic()
            text = self._ask(connection, request)
            self._reached = True
            body = decode_body(text)
            reply = read_probe(body, request) if isinstance(request, Probe) else read_chat(body)
        reply = count_tokens(reply, body, prompt=lambda: self.count(request))
        if self._wire.dialect.leaves_temperature and isinstance(request, Chat):
            reply = replace(reply, raw={**reply.raw, "temperature": "the model's own"})
        return replace(reply, seconds=time.monotonic() - began)

    def _ask(self, connection: Connection, request: Request) -> str:
        """The body that the server sends, asked again at once where it does not know a parameter by its name."""
        key = request_key(request, model=self.model, endpoint=self.endpoint)
        while True:
            # Another body needs another key: a server may answer an old one with the refusal that it gave.
            headers = {"Idempotency-Key": key + self._wire.dialect.learned}
            probe = isinstance(request, Probe)
            body = self._wire.probe(request) if isinstance(request, Probe) else self._wire.chat(request)
            try:
                return connection.post("/completions" if probe else "/chat/completions", body, headers=headers)
            except APIStatusError as error:
                if probe or not self._wire.dialect.learn(error, body):
                    raise

    def _is_unreachable(self, error: APIError | Malformed) -> bool:
        """Whether no connection ever stood, as where no server runs."""
        refused = isinstance(error, APIConnectionError) and isinstance(error.__cause__, httpx2.ConnectError)
        return refused and not self._reached


def open_dialect(endpoint: str, *, limit: TokenLimit, temperature_fixed: bool) -> Dialect:
    """The dialect to begin with: OpenAI's own server has a name of its own for the limit."""
    first: TokenLimit = "max_completion_tokens" if is_openai(endpoint) else "max_tokens"
    return Dialect(limit=limit, first=first, temperature_fixed=temperature_fixed)
