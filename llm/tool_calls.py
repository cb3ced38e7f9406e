"""Calls of tools, for models that have a form of their own for them and for those that have none.

A server with tool calls gives them apart from the text, and they are taken as they are. Any other model is told of
the tools in words, and writes its call into the text as one JSON object on lines of its own,

    {"name": "...", "arguments": {...}}

alone or in a fence or tag, after any block of thought. The last such object counts. Nothing is guessed: an object
within a sentence is a mention, one within another object is a part of that, and one that is broken ends the reading
with its error, since what follows might be its inside.

What a model thinks aloud before it replies, and how it is told from the reply.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from ..data.store.writing import clean
from .types import Chat, Message, Reply, ToolCall, ToolSpec

_START = re.compile(r'^[ \t]*(?:<(?!think)\w+>|`{1,3}\w*)?[ \t]*(?=\{\s*")', re.M)
_END = re.compile(r"[ \t]*(?:</\w+>|`{1,3})?[ \t\r]*$", re.M)
_FORM = '{"name": "...", "arguments": {...}}'


class Called(NamedTuple):
    """The calls that a reply makes."""

    calls: tuple[ToolCall, ...]
    reason: str | None = None
    """Why there is none, in words for the model too."""


def called(reply: Reply) -> Called:
    """The calls of a reply: those of the server's form, else the one in its text, else none."""
    if reply.status != "ok":
        return Called((), reply.reason)
    return Called(reply.calls) if reply.calls else _in_text(without_thought(reply.text))


def answered(reply: Reply, answers: Sequence[str]) -> tuple[Message, ...]:
    """The turns that go on from a reply: what it said, and an answer for each of its calls, or at least one.

    Calls whose arguments are no JSON object are shown as text, since many servers refuse a history that holds them.
    """
    if reply.calls and all(_is_object(call.arguments) for call in reply.calls):
        told = zip(reply.calls, answers, strict=True)
        return (
            Message("assistant", reply.text, calls=reply.calls),
            *(Message("tool", answer, answers=call.id) for call, answer in told),
        )
    said = _written(reply.text, reply.calls).strip() or "(nothing)"
    return Message("assistant", said), Message("user", "\n\n".join(answers))


def spelled(chat: Chat) -> Chat:
    """The same chat for a model without tool calls: the tools told at the end of the system message, calls and answers
    as text."""
    messages = in_words(chat.messages)
    if chat.tools:
        told = told_of(chat.tools, required=chat.tool_choice == "required")
        first, rest = (messages[:1], messages[1:]) if messages[0].role == "system" else ((), messages)
        messages = (Message("system", "\n\n".join([*(message.content for message in first), told])), *rest)
    return replace(chat, messages=messages, tools=(), tool_choice="auto")


def told_of(tools: Iterable[ToolSpec], *, required: bool) -> str:
    """What a model without tool calls is told of its tools, and of how to call one."""
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


def in_words(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages with calls as text, and their answers as the user's turn together with what the user says next."""
    turns = list[Message]()
    for _, group in groupby(messages, key=lambda message: message.role in ("user", "tool")):
        joined = list(group)
        if any(message.role == "tool" for message in joined):
            joined = [Message("user", "\n\n".join(message.content for message in joined))]
        turns += [Message(message.role, _written(message.content, message.calls)) for message in joined]
    return tuple(turns)


def _in_text(text: str) -> Called:
    found, position = Called((), f"the reply holds no JSON object {_FORM} on lines of its own"), 0
    while start := _START.search(text, position):
        rest = text[start.end() :]
        try:
            value, length = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError) as error:
            return Called((), f"the JSON object in the reply is broken: {error}")
        position = start.end() + length
        if _END.match(text, position) and (call := _call(value)):
            found = Called((call,))
    return found


def _call(value: dict[str, object]) -> ToolCall | None:
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict | str):
        return None
    # Escapes can spell what neither the log nor a server's JSON can hold.
    return ToolCall(clean(name) or "", json.dumps(arguments) if isinstance(arguments, dict) else clean(arguments) or "")


def _written(text: str, calls: Iterable[ToolCall]) -> str:
    """The text, and each call in the form for text; arguments that are broken are shown as they are."""
    lines = [f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in calls]
    return "\n".join([*([text] if text or not lines else []), *lines])


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


_THOUGHT = re.compile(r"\A\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|\A.*^\s*</think(?:ing)?>", re.S | re.M | re.I)
"""A block of thought, also one that is not closed, or whose beginning a chat template has swallowed."""


def without_thought(text: str) -> str:
    """The reply without the block of thought that it begins with; nothing of one that is never closed."""
    return _THOUGHT.sub("", text, count=1)
