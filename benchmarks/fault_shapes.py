"""Replies in the shapes in which servers send them, good and bad, made from a plain completion.

Each shape is a function of a completion, and of the prompt's last message where it needs another text: `GOOD` ones hold
an answer that can be read, `ODD` ones hold the answer beside something that makes no sense, `BAD` ones hold none.
`refusal` is the way in which a server refuses a parameter that it does not know.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Body = dict[str, Any]
Shape = Callable[[Body], Body | bytes]

BRACKETS = "[" * 200_000


def with_message(**fields: object) -> Shape:
    """The completion with other fields in its message."""
    return lambda reply: with_choice(message=_choice(reply)["message"] | fields)(reply)


def with_choice(**fields: object) -> Shape:
    """The completion with other fields in its choice."""
    return lambda reply: reply | {"choices": [_choice(reply) | fields]}


def with_text(change: Callable[[str], object]) -> Shape:
    """The completion with its text changed."""
    return lambda reply: with_message(content=change(_text(reply)))(reply)


def with_usage(usage: object) -> Shape:
    """The completion with another account of tokens."""
    return lambda reply: reply | {"usage": usage}


def _choice(reply: Body) -> Body:
    return reply["choices"][0]


def _text(reply: Body) -> str:
    return _choice(reply)["message"]["content"] or ""


def _draft(text: str) -> str:
    """What a model might think first: the same form with another content."""
    return re.sub(r"[01](?=[,}\]])", "0", text).replace("]:", "]: a draft, perhaps", 1)


def _verdicts(text: str, write: Callable[[dict[str, int]], str]) -> str:
    """A judge's verdicts written otherwise; any other text as it is."""
    try:
        verdicts = json.loads(text)
    except ValueError:
        return text
    return (
        write(verdicts) if isinstance(verdicts, dict) and all(value in (0, 1) for value in verdicts.values()) else text
    )


def _judged(write: Callable[[dict[str, int]], str]) -> Shape:
    return with_text(lambda text: _verdicts(text, write))


def _yes(verdict: int) -> str:
    return "yes" if verdict else "no"


def _only_thought(reply: Body) -> Body | bytes:
    return with_message(content=None, reasoning_content=_text(reply))(reply)


def _parts(text: str) -> list[Body]:
    """The text cut in two parts."""
    return [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]


def _thinking_parts(text: str) -> list[Body]:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": _draft(text)}]}
    return [{"type": "reasoning", "text": _draft(text)}, thought, *_parts(text)]


def _channels(text: str) -> str:
    opened = f"<|channel|>analysis<|message|>{_draft(text)}<|end|>"
    return f"{opened}<|start|>assistant<|channel|>final<|message|>{text}<|return|>"


GOOD: Mapping[str, Shape] = {
    "bools": _judged(lambda verdicts: json.dumps({key: bool(value) for key, value in verdicts.items()})),
    "yes-no": _judged(lambda verdicts: json.dumps({key: _yes(value) for key, value in verdicts.items()})),
    "listed": _judged(lambda verdicts: json.dumps([bool(value) for value in verdicts.values()])),
    "keyed-list": _judged(lambda verdicts: json.dumps({"answers": [*verdicts.values()]})),
    "entries": _judged(
        lambda verdicts: json.dumps([{"excerpt": int(k), "active": _yes(verdicts[k])} for k in verdicts])
    ),
    "objects": _judged(lambda verdicts: json.dumps([{key: bool(value)} for key, value in verdicts.items()])),
    "nested": _judged(lambda verdicts: json.dumps({key: {"active": bool(value)} for key, value in verdicts.items()})),
    "lines": _judged(lambda verdicts: "\n".join(f"{key}: {_yes(value)}" for key, value in verdicts.items())),
    "bare-words": _judged(
        lambda verdicts: f"{{{', '.join(f'{key}: {_yes(value)}' for key, value in verdicts.items())}}}"
    ),
    "parts": with_text(_parts),
    "thinking-parts": with_text(_thinking_parts),
    "thoughts-alone": _only_thought,
    "think": with_text(lambda text: f"<think>\n{_draft(text)}\n</think>\n\n{text}"),
    "reasoning-tag": with_text(lambda text: f"<reasoning>{_draft(text)}</reasoning>{text}"),
    "think-brackets": with_text(lambda text: f"[THINK]{_draft(text)}[/THINK]{text}"),
    "think-unopened": with_text(lambda text: f"{_draft(text)}\n</think>\n{text}"),
    "channels": with_text(_channels),
    "channels-bare": with_text(lambda text: f"analysis{_draft(text)}assistantfinal{text}"),
    "channel-thought": with_text(lambda text: f"<|channel>thought\n{_draft(text)}<channel|>{text}"),
    "fenced": with_text(lambda text: f"Sure:\n```\n{text}\n```\nHope this helps!"),
    "no-finish": with_choice(finish_reason=None),
}
ODD: Mapping[str, Shape] = {
    "usage-missing": lambda reply: {name: value for name, value in reply.items() if name != "usage"},
    "usage-zero": with_usage({"prompt_tokens": 0, "completion_tokens": 0}),
    "usage-text": with_usage({"prompt_tokens": "many", "completion_tokens": "some"}),
    "usage-a-text": with_usage("many"),
    "usage-infinite": with_usage({"prompt_tokens": float("inf"), "completion_tokens": float("nan")}),
    "usage-huge": with_usage({"prompt_tokens": 10**30, "completion_tokens": 10**30}),
    "usage-negative": with_usage({"prompt_tokens": -5, "completion_tokens": -1e30}),
    "usage-nested": with_usage({"prompt_tokens": [[1]], "completion_tokens": {}}),
    "usage-digits": lambda reply: (
        json.dumps(with_usage({"prompt_tokens": 7})(reply)).replace("7}", "7" * 5000 + "}").encode()
    ),
    "model-nested": lambda reply: reply | {"model": [{"a": [None]}]},
    "logprobs-null": with_choice(logprobs=None),
    "logprobs-odd": with_choice(logprobs={"content": [{"token": 3, "logprob": "low", "top_logprobs": 5}]}),
}
BAD: Mapping[str, Shape] = {
    "brackets-body": lambda _: BRACKETS.encode(),
    "brackets-inside": lambda reply: json.dumps(with_message(content="X")(reply)).replace('"X"', BRACKETS).encode(),
    "brackets-content": with_text(lambda _: BRACKETS),
    "error-inside": lambda _: {"error": {"message": "planted: the model is gone", "code": "model_gone"}},
    "error-beside": with_choice(error={"message": "planted: the model is gone", "code": 418}),
    "error-nested": lambda _: {"error": {"message": [["planted"]], "code": {"a": []}}},
    "error-finish": with_choice(finish_reason="error"),
    "list": lambda reply: json.dumps([reply]).encode(),
    "choices-text": lambda reply: reply | {"choices": "many"},
    "choices-empty": lambda reply: reply | {"choices": []},
    "choice-text": lambda reply: reply | {"choices": ["one"]},
    "message-text": with_choice(message="hello"),
    "content-number": with_text(lambda _: 3),
    "content-object": with_text(lambda _: {"a": 1}),
    "calls-number": with_message(content=None, tool_calls=7),
}
ENDS_EARLY: Mapping[str, Shape] = {
    "ends-early": with_text(lambda text: text[: text.rindex("`")] if "`" in text else text[: len(text) // 2]),
    "ends-in-fence": with_text(lambda text: f"```\n{text}"),
}
"""Cut, with finish_reason stop."""
SHAPES: Mapping[str, Shape] = {**GOOD, **ODD, **BAD, **ENDS_EARLY}


def refusal(body: Body, refuses: Mapping[str, str]) -> Body | None:
    """The error about the first parameter of the body that the server does not take; None where it takes all.

    By parameter the way to say it: "code" as OpenAI and Azure do, "detail" as FastAPI does, "words" in words alone;
    "value" is a refusal of the value, which the parameter's other name would meet, too.
    """
    name = next((name for name in refuses if name in body), None)
    if name is None:
        return None
    if refuses[name] == "detail":
        return {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]}
    if refuses[name] == "value":
        large = f"{name} is too large: {body[name]}. This model supports at most 4096 completion tokens."
        return {"error": {"message": large, "type": "invalid_request_error", "param": name, "code": "invalid_value"}}
    told: Body = {"message": f"Unsupported parameter: '{name}' is not supported with this model."}
    if refuses[name] == "words":
        return {"error": told | {"type": "invalid_request_error", "param": None, "code": None}}
    return {"error": told | {"type": "invalid_request_error", "param": name, "code": "unsupported_parameter"}}
