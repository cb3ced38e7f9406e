"""OpenAI's protocol in both directions, the same for single calls and batches: requests as bodies, bodies as replies.

Servers differ in what they call the limit on tokens, models in whether they take a temperature. Probes need a
server with vLLM's `prompt_logprobs`. Its completion holds a list, per prompt token null (the first) or {token id
as a string: {"logprob", "rank", "decoded_token"}}: the tokens predicted for that place, the actual one always
among them. So the prediction after position p stands at p + 1.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from openai import OpenAI

from ...subject.errors import NeuronautError
from ..types import Chat, Message, Probe, Reply, Status, TokenLogprobs, ToolCall
from .retrying import Malformed, one_line

OPENAI = "https://api.openai.com/v1"

PROMPT_LOGPROBS = 20
"""Alternatives asked for at each prompt token; vLLM allows no more unless started with --max-logprobs."""


@dataclass(frozen=True, slots=True)
class Wire:
    """The form of requests to one model of one server."""

    model: str
    endpoint: str
    """The server's base URL."""
    thinking: int = 0
    """Tokens on top of a reply's, for the model's thinking beforehand."""
    temperature_fixed: bool = False
    """The model takes no temperature, so that none is sent."""

    def chat(self, chat: Chat) -> dict[str, Any]:
        """Body of POST /chat/completions."""
        sampling = chat.sampling
        limit = "max_completion_tokens" if is_openai(self.endpoint) else "max_tokens"
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_format_message(message) for message in chat.messages],
            limit: sampling.max_tokens + self.thinking,
        }
        if sampling.temperature is not None and not self.temperature_fixed:
            body["temperature"] = sampling.temperature
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        if chat.tools:
            body |= {"tools": [tool.function() for tool in chat.tools], "tool_choice": chat.tool_choice}
        return body

    def probe(self, probe: Probe) -> dict[str, Any]:
        """Body of POST /completions; a token follows the last position, so that its prediction is given too."""
        follows = () if max(probe.positions) + 1 < len(probe.ids) else probe.choices[:1]
        return {
            "model": self.model,
            "prompt": [*probe.ids, *follows],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": PROMPT_LOGPROBS,
        }

    def connect(self, *, api_key: str | None, timeout: float) -> OpenAI:
        """The package's client, without its own retries; a NeuronautError where OpenAI's server lacks a key."""
        key = api_key or os.environ.get("OPENAI_API_KEY") or ("" if is_openai(self.endpoint) else "none")
        if not key:
            raise NeuronautError(
                f"{self.endpoint} wants a key; set OPENAI_API_KEY, or OPENAI_BASE_URL for a server that wants none"
            )
        return OpenAI(api_key=key, base_url=self.endpoint, timeout=timeout, max_retries=0)


def find_endpoint(base_url: str | None) -> str:
    """The given URL, else that of OPENAI_BASE_URL, else OpenAI's."""
    return (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")


def is_openai(endpoint: str) -> bool:
    """Whether an endpoint is OpenAI's own server, whichever the region."""
    return (urlsplit(endpoint).hostname or "").endswith("api.openai.com")


def decode_body(text: str) -> Mapping[str, Any]:
    """Decode the JSON object in a body; Malformed where there is none."""
    try:
        body = json.loads(text)
    except ValueError as error:
        raise Malformed(f"the reply is not JSON ({error}): {one_line(text)}") from error
    if not isinstance(body, dict):
        raise Malformed(f"the reply is no JSON object: {one_line(text)}")
    return body


def read_chat(body: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion; Malformed where it has no choice of the usual form."""
    try:
        choice = body["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content") or "", message.get("refusal")
        logprobs = tuple(_read_token(token) for token in (choice.get("logprobs") or {}).get("content") or ())
        calls, broken = _read_calls(message.get("tool_calls") or [])
        status, reason = _read_status(text, refusal, finish, calls=calls, broken=broken)
        input_tokens, output_tokens = _read_usage(body)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Malformed(f"the reply has no choice with a message: {one_line(json.dumps(body))}") from error
    return Reply(
        status,
        text or refusal or "",
        reason,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        logprobs=logprobs,
        calls=calls,
        raw={"model": body.get("model"), "finish_reason": finish},
    )


def read_probe(body: Mapping[str, Any], probe: Probe) -> Reply:
    """The probabilities in a completion with prompt_logprobs; Malformed where it has none."""
    try:
        rows = [body["choices"][0]["prompt_logprobs"][position + 1] or {} for position in probe.positions]
        probabilities = tuple(tuple(_probability(row.get(str(choice))) for choice in probe.choices) for row in rows)
        input_tokens, output_tokens = _read_usage(body)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Malformed("the reply has no prompt_logprobs for every position; the server must be vLLM") from error
    return Reply(
        "ok",
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        probabilities=probabilities,
        raw={"model": body.get("model")},
    )


def _format_message(message: Message) -> dict[str, Any]:
    """A turn as a body holds it; one that only calls has no content, as in replies."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        functions = [(call.id, {"name": call.name, "arguments": call.arguments}) for call in message.calls]
        calls = [{"id": id, "type": "function", "function": function} for id, function in functions]
        turn |= {"content": message.content or None, "tool_calls": calls}
    return turn | ({"tool_call_id": message.answers} if message.answers else {})


def _read_calls(entries: Sequence[Any]) -> tuple[tuple[ToolCall, ...], str | None]:
    """The calls, or the fault of the first entry that is none."""
    calls = list[ToolCall]()
    for place, entry in enumerate(entries):
        function = entry.get("function") if isinstance(entry, dict) else None
        name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (0, 0)
        # Some servers give the arguments as the object itself, and calls without an id.
        arguments = json.dumps(arguments) if isinstance(arguments, dict) else arguments
        if not isinstance(name, str) or not isinstance(arguments, str):
            return (), f"tool call {place + 1} has no name with arguments: {one_line(json.dumps(entry))}"
        calls.append(ToolCall(name, arguments, str(entry.get("id") or f"call_{place}")))
    return tuple(calls), None


def _read_status(
    text: str, refusal: str | None, finish: str | None, *, calls: Sequence[ToolCall], broken: str | None
) -> tuple[Status, str | None]:
    """Status and reason: from the server's fields, never from the reply's words."""
    if refusal or finish == "content_filter":
        return "refused", f"declined: {one_line(refusal or 'the content filter')}"
    if finish == "length":
        return "truncated", "cut at the limit of tokens"
    if broken:
        return "failed", broken
    return ("ok", None) if text.strip() or calls else ("empty", "no text in the reply")


def _read_usage(body: Mapping[str, Any]) -> tuple[int, int]:
    usage = body.get("usage") or {}
    return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)


def _read_token(token: Mapping[str, Any]) -> TokenLogprobs:
    """A token; of several alternatives with the same string the likelier stands: they come in falling order."""
    top = {other["token"]: other["logprob"] for other in reversed(token.get("top_logprobs") or ())}
    return TokenLogprobs(token["token"], {token["token"]: token["logprob"]} | top)


def _probability(entry: Mapping[str, Any] | None) -> float | None:
    return None if entry is None else math.exp(entry["logprob"])
