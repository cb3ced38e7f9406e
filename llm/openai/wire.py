"""Requests as bodies of OpenAI's protocol, the same for single calls and batches; replies.py reads the answers.

Servers differ in what they call the limit on tokens, models in whether they take a temperature: that is the dialect,
which a server's own refusals teach (dialect.py).
"""

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..types import Chat, Message, Probe
from .dialect import Dialect

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
    dialect: Dialect = field(default_factory=Dialect)

    def chat(self, chat: Chat) -> dict[str, Any]:
        """Body of POST /chat/completions."""
        sampling = chat.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_format_message(message) for message in chat.messages],
            **self.dialect.parameters(limit=sampling.max_tokens + self.thinking, temperature=sampling.temperature),
        }
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


def find_endpoint(base_url: str | None) -> str:
    """The given URL, else that of OPENAI_BASE_URL, else OpenAI's."""
    return (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")


def is_openai(endpoint: str) -> bool:
    """Whether an endpoint is OpenAI's own server, whichever the region."""
    return (urlsplit(endpoint).hostname or "").endswith("api.openai.com")


def _format_message(message: Message) -> dict[str, Any]:
    """A turn as a body holds it; one that only calls has no content, as in replies."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        functions = [(call.id, {"name": call.name, "arguments": call.arguments}) for call in message.calls]
        calls = [{"id": id, "type": "function", "function": function} for id, function in functions]
        turn |= {"content": message.content or None, "tool_calls": calls}
    return turn | ({"tool_call_id": message.answers} if message.answers else {})
