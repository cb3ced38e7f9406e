"""OpenAI's Batch API: half the price, an answer within 24 hours. Submit, leave, come back, collect.

A batch is named, in its metadata, by the hash of its requests, and is looked for before it is made. So a process that
is killed between making a batch and recording its id finds it again and pays once.
"""

import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, TypeVar

from openai import APIError, AsyncOpenAI
from openai.types import Batch

from ...subject.errors import NeuronautError
from ..prices import estimate_chat
from ..tool_calls import spell_out_tools
from ..types import Chat, Reply
from .chat import open_dialect
from .connection import Connection
from .dialect import TokenLimit
from .keys import hide_login
from .replies import count_tokens, decode_body, describe_told, read_chat
from .retrying import Malformed, describe_error, fatal_error, one_line, retry_policy
from .wire import Wire, find_endpoint

T = TypeVar("T")

MOST_REQUESTS, MOST_BYTES = 50_000, 180_000_000
"""Of one batch; OpenAI takes up to 200 MB."""

_MOST_REPLIED = 4_000_000_000
"""Bytes of the replies to one batch."""

_NAME = "neuronaut"
"""Where a batch's metadata holds the hash of its requests."""

_REMEMBERED = 2 * 24 * 3600.0
"""Seconds back that a batch with the same requests is looked for."""

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True)
class BatchState:
    """How far a batch is."""

    status: str
    """In OpenAI's words: validating, in_progress, finalizing, completed, failed, expired, cancelling or cancelled."""
    total: int
    completed: int
    failed: int
    reason: str | None = None
    """Why the batch as a whole failed."""

    @property
    def ended(self) -> bool:
        """Whether it can be collected: nothing more will come."""
        return self.status in _ENDED


class BatchAPI:
    """Batches for one model."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 3600.0,
        thinking: int = 0,
        temperature_fixed: bool = False,
        token_limit: TokenLimit = "auto",
        most_requests: int = MOST_REQUESTS,
        most_bytes: int = MOST_BYTES,
        attempts: int = 6,
        backoff: float = 1.0,
        longest_backoff: float = 60.0,
    ) -> None:
        """All as for OpenAIChat; a batch holds at most `most_requests` and `most_bytes`.

        Its requests are sent in one way, from which nothing is learned before they come back.
        """
        address = find_endpoint(base_url)
        dialect = open_dialect(address, limit=token_limit, temperature_fixed=temperature_fixed)
        self._wire = Wire(model, hide_login(address), thinking=thinking, dialect=dialect)
        self._connection = Connection(address, api_key=api_key, timeout=timeout, most_bytes=_MOST_REPLIED)
        self._most_requests, self._most_bytes = most_requests, most_bytes
        self._retrying = retry_policy(
            attempts=attempts, backoff=backoff, longest_backoff=longest_backoff, stopped=Event()
        )

    def submit(self, requests: Mapping[str, Chat]) -> tuple[str, ...]:
        """Send requests, by key, as batches; returns their ids, of those under way already where they are the same."""
        lines = (self._format_line(key, chat) for key, chat in requests.items())
        return tuple(self._find_or_create(b"".join(part)) for part in self._split(lines))

    def poll(self, batch_id: str) -> BatchState:
        """How far a batch is."""
        batch = self._call(lambda client: client.batches.retrieve(batch_id))
        counts, errors = batch.request_counts, batch.errors and batch.errors.data
        return BatchState(
            batch.status,
            total=counts.total if counts else 0,
            completed=counts.completed if counts else 0,
            failed=counts.failed if counts else 0,
            reason=one_line(errors[0].message) if errors else None,
        )

    def collect(self, batch_id: str, requests: Mapping[str, Chat]) -> Iterator[tuple[str, Reply]]:
        """Replies, by key, to those of the requests that a batch which has ended answers.

        One that expired or erred is "failed" with its reason.

        Raises a NeuronautError for a batch that has not ended, or failed as a whole.
        """
        batch = self._call(lambda client: client.batches.retrieve(batch_id))
        if batch.status not in _ENDED:
            raise NeuronautError(f"batch {batch_id} is {batch.status}; collect it once it has ended")
        if batch.status == "failed":
            raise NeuronautError(
                f"batch {batch_id} failed ({self.poll(batch_id).reason}); mend that and submit it again"
            )
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                content = self._call(lambda client, file_id=file_id: client.files.content(file_id)).content
                yield from _read_lines(content.splitlines(), requests)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()

    def _format_line(self, key: str, chat: Chat) -> bytes:
        request = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": self._wire.chat(chat)}
        return json.dumps(request).encode() + b"\n"

    def _split(self, lines: Iterable[bytes]) -> Iterator[Sequence[bytes]]:
        """The lines in runs that each fit a batch."""
        part, size = [], 0
        for line in lines:
            if part and (len(part) == self._most_requests or size + len(line) > self._most_bytes):
                yield part
                part, size = [], 0
            part.append(line)
            size += len(line)
        if part:
            yield part

    def _find_or_create(self, content: bytes) -> str:
        """The id of the batch of this content."""
        name = hashlib.sha256(content).hexdigest()
        if batch := self._call(lambda client: _find(client, name)):
            return batch.id
        upload = ("requests.jsonl", content, "application/jsonl")
        file = self._call(lambda client: client.files.create(file=upload, purpose="batch"))
        return self._call(lambda client: _create(client, name, file.id)).id

    def _call(self, ask: Callable[[AsyncOpenAI], Awaitable[T]]) -> T:
        try:
            return self._retrying(lambda: self._connection.run(ask))
        except (APIError, Malformed) as error:
            endpoint, model = self._wire.endpoint, self._wire.model
            raise fatal_error(error, endpoint=endpoint, model=model) or NeuronautError(
                f"the Batch API of {endpoint} failed ({describe_error(error)}); run the same command again to go on"
            ) from error


async def _create(client: AsyncOpenAI, name: str, file_id: str) -> Batch:
    """Create a batch; looks for it first, since an earlier attempt may have got through whose answer was lost."""
    return await _find(client, name) or await client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", metadata={_NAME: name}
    )


async def _find(client: AsyncOpenAI, name: str) -> Batch | None:
    """A recent batch of that name that has replies, or will have."""
    async for batch in client.batches.list(limit=100):
        if batch.created_at < time.time() - _REMEMBERED:
            return None
        if (batch.metadata or {}).get(_NAME) == name and _has_replies(batch):
            return batch
    return None


def _has_replies(batch: Batch) -> bool:
    """Whether a batch has replies, or will have."""
    if batch.status == "completed":
        return bool(batch.request_counts and batch.request_counts.completed)
    return batch.status in ("validating", "in_progress", "finalizing")


def _read_lines(lines: Iterable[bytes], requests: Mapping[str, Chat]) -> Iterator[tuple[str, Reply]]:
    """The lines of an output or error file that answer a request; the others have no key."""
    for line in lines:
        try:
            result = decode_body(line.decode("utf-8", "replace"))
        except Malformed:
            continue
        key = result.get("custom_id")
        if isinstance(key, str) and key in requests:
            yield key, _read_result(result, requests[key])


def _read_result(result: Mapping[str, Any], chat: Chat) -> Reply:
    """The reply in a line: {custom_id, response: {status_code, body} | null, error | null}."""
    response = result.get("response")
    response = response if isinstance(response, dict) else {}
    body = response.get("body")
    body = body if isinstance(body, dict) else {}
    if error := result.get("error") or body.get("error"):
        code, message = describe_told(error)
        return Reply("failed", reason=f"{one_line(code or response.get('status_code'))}: {message}")
    try:
        reply = read_chat(body)
    except Malformed as malformed:
        return Reply("failed", reason=str(malformed))
    return count_tokens(reply, body, prompt=lambda: estimate_chat(spell_out_tools(chat).messages))
