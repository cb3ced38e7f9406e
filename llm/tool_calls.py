"""Calls of tools, for models that have a form of their own for them and for those that have none.

A server with tool calls gives them apart from the text, and they are taken as they are. For any other model the
prompt describes the tools in words, and it writes its call into the text as one JSON object on lines of its own,

    {"name": "...", "arguments": {...}}

alone or in a fence or tag, after any block of thought, which thought.py removes. The last such object counts.
Nothing is guessed: an object within a sentence is a mention, one within another object is a part of that, and one
that is broken ends the reading with its error, since the text after it might be its inside.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from ..data.store.writing import clean
from .thought import without_thought
from .types import Chat, Message, Reply, ToolCall, ToolSpec

_START = re.compile(r'^[ \t]*(?:<\w+>|`{1,3}\w*)?[ \t]*(?=\{\s*")', re.M)
_END = re.compile(r"[ \t]*(?:</\w+>|`{1,3})?[ \t\r]*$", re.M)
_FORM = '{"name": "...", "arguments": {...}}'


class ReplyCalls(NamedTuple):
    """The calls that a reply makes."""

    calls: tuple[ToolCall, ...]
    reason: str | None = None
    """Why there is none, in words that the model is shown, too."""


def read_calls(reply: Reply) -> ReplyCalls:
    """The calls of a reply: those of the server's form, else the one in its text, else none."""
    if reply.status != "ok":
        return ReplyCalls((), reply.reason)
    return ReplyCalls(reply.calls) if reply.calls else _read_text(without_thought(reply.text))


def answer_calls(reply: Reply, answers: Sequence[str]) -> tuple[Message, ...]:
    """The turns that go on from a reply: its text, and an answer for each of its calls, or at least one.

    Calls whose arguments are no JSON object are shown as text, since many servers refuse a history that holds them.
    """
    if reply.calls and all(_is_object(call.arguments) for call in reply.calls):
        return (
            Message("assistant", reply.text, calls=reply.calls),
            *(Message("tool", answer, answers=call.id) for call, answer in zip(reply.calls, answers, strict=True)),
        )
    text = _write_calls(reply.text, reply.calls).strip() or "(nothing)"
    return Message("assistant", text), Message("user", "\n\n".join(answers))


def spell_out_tools(chat: Chat) -> Chat:
    """The same chat for a model without tool calls.

    The tools are described at the end of the system message, calls and answers are text.
    """
    messages = spell_out_calls(chat.messages)
    if chat.tools:
        tools = describe_tools(chat.tools, required=chat.tool_choice == "required")
        first, rest = (messages[:1], messages[1:]) if messages[0].role == "system" else ((), messages)
        messages = (Message("system", "\n\n".join([*(message.content for message in first), tools])), *rest)
    return replace(chat, messages=messages, tools=(), tool_choice="auto")


def describe_tools(tools: Iterable[ToolSpec], *, required: bool) -> str:
    """Describe the tools, and how to call one, to a model without tool calls."""
    order = "Reply with a call of one of these tools:" if required else "To call one of these tools, reply with"
    listed = [f"{tool.name}: {tool.description}\n{json.dumps(tool.parameters)}" for tool in tools]
    return "\n\n".join(
        [
            "You have these tools. Under each stands the JSON schema of its arguments.",
            *listed,
            f"{order} one JSON object of this form, on lines of its own, with nothing after it:",
            _FORM,
        ]
    )


def spell_out_calls(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages with calls as text, and their answers as one user's turn together with the user's next message."""
    turns = list[Message]()
    for _, group in groupby(messages, key=lambda message: message.role in ("user", "tool")):
        joined = list(group)
        if any(message.role == "tool" for message in joined):
            joined = [Message("user", "\n\n".join(message.content for message in joined))]
        turns += [Message(message.role, _write_calls(message.content, message.calls)) for message in joined]
    return tuple(turns)


def _read_text(text: str) -> ReplyCalls:
    """The last call in a text."""
    last, position = ReplyCalls((), f"the reply holds no JSON object {_FORM} on lines of its own"), 0
    while start := _START.search(text, position):
        rest = text[start.end() :]
        try:
            value, length = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError) as error:
            return ReplyCalls((), f"the JSON object in the reply is broken: {error}")
        position = start.end() + length
        if _END.match(text, position) and (call := _parse_call(value)):
            last = ReplyCalls((call,))
    return last


def _parse_call(value: dict[str, object]) -> ToolCall | None:
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict | str):
        return None
    # Escapes can spell what neither the log nor a server's JSON can hold.
    return ToolCall(clean(name) or "", json.dumps(arguments) if isinstance(arguments, dict) else clean(arguments) or "")


def _write_calls(text: str, calls: Iterable[ToolCall]) -> str:
    """The text, and each call in the form for text; arguments that are broken are shown as they are."""
    lines = [f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in calls]
    return "\n".join([*([text] if text or not lines else []), *lines])


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
