"""Bodies of OpenAI's protocol as replies, in every shape in which servers send them.

Nothing that comes is trusted to have the type that it should. What can be read is read: a text that comes as a list of
parts, an answer that stands among the thoughts alone, a reply whose accounting or log-probabilities make no sense. What
cannot is one failed reply with its reason. Only an error that may pass, and a body that is not JSON, are `Malformed`.

Probes need a server with vLLM's `prompt_logprobs`. Its completion holds a list, per prompt token null (the first) or
{token id as a string: {"logprob", "rank", "decoded_token"}}: the tokens predicted for that place, the actual one always
among them. So the prediction after position p stands at p + 1.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..prices import estimate
from ..thought import without_thought
from ..types import Probe, Reply, Status, TokenLogprobs, ToolCall
from .retrying import Malformed, one_line, passes

MOST_TOKENS = 10_000_000
"""A count above it, of a single request, is none: no model reads or writes so much at once."""
_DEEPEST = 8
"""How far parts of a content may lie within one another."""
_THINKING = frozenset({"reasoning", "thinking", "redacted_thinking", "reasoning_text", "summary_text"})
"""Types of parts that are no part of the answer."""
_LENGTH: tuple[Status, str] = ("truncated", "cut at the limit of tokens")
_FILTER: tuple[Status, str] = ("refused", "declined: the content filter")
_ENDS: Mapping[object, tuple[Status, str]] = {
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), _LENGTH),
    **dict.fromkeys(("content_filter", "safety", "recitation", "prohibited_content"), _FILTER),
    "error": ("failed", "the server says that an error ended the reply"),
}
"""Reasons to finish, of OpenAI's and others' servers, that leave no answer."""


def decode_body(text: str) -> Mapping[str, Any]:
    """Decode the JSON object in a body; Malformed where there is none."""
    try:
        body = json.loads(text, parse_int=_parse_int)
    except RecursionError as error:
        raise Malformed(f"the reply is nested too deeply: {one_line(text[:60])}", passing=False) from error
    except ValueError as error:
        raise Malformed(f"the reply is not JSON ({error}): {one_line(text)}", passing=True) from error
    if not isinstance(body, dict):
        raise Malformed(f"the reply is no JSON object: {one_line(text)}", passing=False)
    return body


def read_chat(body: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion; Malformed where it tells of an error instead."""
    choice = _first_choice(body)
    _raise_told(body, choice)
    message = _fields(choice.get("message"))
    content, finish = message.get("content"), _text(choice.get("finish_reason"))
    if not message or not isinstance(content, str | list | None):
        what = "choice with a message" if not message else "text as content"
        return Reply("failed", reason=f"the reply has no {what}: {one_line(body)}", raw=_read_raw(body, finish))
    text, refusal = _join(content), _text(message.get("refusal")) or _refusal(content)
    calls, broken = _read_calls(message.get("tool_calls"))
    thoughts = _join(message.get("reasoning_content") or message.get("reasoning")) or _join(content, thoughts=True)
    alone = bool(thoughts and not text.strip() and not calls and not refusal)
    status, reason = _read_status(thoughts if alone else text, refusal, finish, calls=calls, broken=broken)
    return Reply(
        status,
        (thoughts if alone else text) or refusal,
        reason,
        logprobs=() if alone else _read_logprobs(choice.get("logprobs")),
        calls=calls,
        raw=_read_raw(body, finish) | ({"answer": "among the thoughts"} if alone else {}),
    )


def read_probe(body: Mapping[str, Any], probe: Probe) -> Reply:
    """The probabilities in a completion with prompt_logprobs; failed where they are not there for every position."""
    choice = _first_choice(body)
    _raise_told(body, choice)
    given = choice.get("prompt_logprobs")
    rows = given if isinstance(given, list) else []
    if len(rows) <= max(probe.positions) + 1:
        reason = "the reply has no prompt_logprobs for every position; the server must be vLLM"
        return Reply("failed", reason=reason, raw=_read_raw(body, ""))
    places = [_fields(rows[position + 1]) for position in probe.positions]
    probabilities = tuple(tuple(_probability(row.get(str(choice))) for choice in probe.choices) for row in places)
    return Reply("ok", probabilities=probabilities, raw=_read_raw(body, ""))


def count_tokens(reply: Reply, body: Mapping[str, Any], *, prompt: Callable[[], int]) -> Reply:
    """The reply with the tokens that the server counted.

    A count that is missing, or cannot be true, is estimated, and `raw` says so; `prompt` gives the prompt's. Nothing
    is estimated for a reply that failed.
    """
    usage = _fields(body.get("usage"))
    given, said = _read_count(usage.get("prompt_tokens")), _read_count(usage.get("completion_tokens"))
    if reply.status == "failed":
        return replace(reply, input_tokens=given or 0, output_tokens=said or 0)
    if reply.status == "ok" and not said:
        # Something was said, or probed, whatever the count.
        said = None if _length(reply) else said
    estimated = {} if given and said is not None else {"usage": "estimated"}
    return replace(
        reply,
        input_tokens=given or prompt(),
        output_tokens=_length(reply) if said is None else said,
        raw={**reply.raw, **estimated},
    )


def _length(reply: Reply) -> int:
    """Tokens of what the reply says, roughly."""
    return estimate(reply.text) + sum(estimate(call.name + call.arguments) for call in reply.calls)


def describe_told(error: object) -> tuple[object, str]:
    """The code and the message of an error that stands in a body."""
    fields = _fields(error)
    code, message = fields.get("code"), fields.get("message") or fields.get("detail") or error
    return code if isinstance(code, str | int) else None, one_line(message)


def _raise_told(body: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
    """Raise the error that a body tells of, although its status is 200."""
    if error := body.get("error") or choice.get("error"):
        code, message = describe_told(error)
        raise Malformed(
            f"an error in a reply with status 200, {one_line(code)}: {message}", passing=passes(code), code=code
        )


def _parse_int(digits: str) -> int | float:
    """Python refuses thousands of digits, and SQLite takes 19."""
    return int(digits) if len(digits) < 19 else float(digits)


def _fields(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _first_choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = body.get("choices")
    return _fields(choices[0]) if isinstance(choices, list) and choices else {}


def _join(content: object, *, thoughts: bool = False, depth: int = 0) -> str:
    """The text of a content: a string, or parts of which those that are text, or those that are thoughts, count."""
    if isinstance(content, str):
        return "" if thoughts else content
    if depth > _DEEPEST:
        return ""
    if isinstance(content, list):
        return "".join(_join(part, thoughts=thoughts, depth=depth + 1) for part in content)
    fields = _fields(content)
    if (_text(fields.get("type")) in _THINKING) != thoughts:
        return ""
    # Within a part that is thought, all is.
    inside = next((fields[name] for name in ("text", "value", "thinking", "summary") if fields.get(name)), "")
    return _join(inside, depth=depth + 1)


def _refusal(content: object) -> str:
    """The refusal among the parts of a content."""
    parts = map(_fields, content) if isinstance(content, list) else ()
    return next((_text(part.get("refusal")) for part in parts if part.get("refusal")), "")


def _read_raw(body: Mapping[str, Any], finish: str) -> dict[str, object]:
    raw: dict[str, object] = {"model": one_line(_text(body.get("model")))}
    return raw | ({"finish_reason": one_line(finish)} if finish else {})


def _read_calls(entries: object) -> tuple[tuple[ToolCall, ...], str | None]:
    """The calls, or the fault of the first entry that is none."""
    if not entries:
        return (), None
    if not isinstance(entries, list):
        return (), f"the tool calls are no list: {one_line(entries)}"
    calls = list[ToolCall]()
    for place, entry in enumerate(entries):
        fields = _fields(entry)
        function = _fields(fields.get("function"))
        name, arguments = function.get("name"), _spell(function.get("arguments"))
        if not isinstance(name, str) or not isinstance(arguments, str):
            return (), f"tool call {place + 1} has no name with arguments: {one_line(entry)}"
        # Some servers give calls without an id.
        calls.append(ToolCall(name, arguments, _text(fields.get("id")) or f"call_{place}"))
    return tuple(calls), None


def _spell(arguments: object) -> object:
    """Arguments as JSON where a server gives the object itself."""
    try:
        return json.dumps(arguments) if isinstance(arguments, dict) else arguments
    except RecursionError:
        return None


def _read_status(
    text: str, refusal: str, finish: str, *, calls: Sequence[ToolCall], broken: str | None
) -> tuple[Status, str | None]:
    """Status and reason: from the server's fields, never from the reply's words."""
    if refusal:
        return "refused", f"declined: {one_line(refusal)}"
    if finish.lower() in _ENDS:
        return _ENDS[finish.lower()]
    if broken:
        return "failed", broken
    if calls or without_thought(text).strip():
        return "ok", None
    return "empty", "nothing but thinking in the reply" if text.strip() else "no text in the reply"


def _number(value: object) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def _read_count(value: object) -> int | None:
    """A number of tokens; None where it is none that can be true."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9:
        return int(value)
    number = _number(value)
    return None if number is None or not 0 <= number <= MOST_TOKENS or number % 1 else int(number)


def _read_logprobs(value: object) -> tuple[TokenLogprobs, ...]:
    """The tokens with their log-probabilities; none where any of them cannot be read."""
    entries = _fields(value).get("content")
    tokens = [_read_token(entry) for entry in entries] if isinstance(entries, list) else []
    read = tuple(token for token in tokens if token is not None)
    return read if len(read) == len(tokens) else ()


def _read_token(entry: object) -> TokenLogprobs | None:
    """A token; of several alternatives with the same string the likelier stands: they come in falling order."""
    fields = _fields(entry)
    others = fields.get("top_logprobs")
    found = [_read_alternative(other) for other in (reversed(others) if isinstance(others, list) else ())]
    own = _read_alternative(fields)
    return own and TokenLogprobs(own[0], dict([own, *filter(None, found)]))


def _read_alternative(entry: object) -> tuple[str, float] | None:
    token, logprob = _fields(entry).get("token"), _read_logprob(_fields(entry).get("logprob"))
    return (token, logprob) if isinstance(token, str) and logprob is not None else None


def _read_logprob(value: object) -> float | None:
    number = _number(value)
    return None if number is None else min(float(number), 0.0)


def _probability(entry: object) -> float | None:
    logprob = _read_logprob(_fields(entry).get("logprob"))
    return None if logprob is None else math.exp(logprob)
