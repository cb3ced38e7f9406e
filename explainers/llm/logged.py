"""Requests and replies as the log of calls keeps them, and back; a reply reads the same before and after."""

import json
from dataclasses import asdict, astuple, replace
from typing import cast

from ...data.calls import Call
from ...data.writing import clean
from .prices import Price, cost
from .values import Reply, Request, Status, TokenLogprobs, ToolCall


def as_logged(reply: Reply) -> Reply:
    """The reply as the log will give it: what is asked next must not depend on where it was read."""
    calls = tuple(ToolCall(*(clean(part) or "" for part in astuple(call))) for call in reply.calls)
    return replace(reply, text=clean(reply.text) or "", calls=calls)


def call_of(
    request: Request, reply: Reply, *, model: str, endpoint: str, price: Price | None, batch: bool = False
) -> Call:
    """A request and its reply as the log keeps them."""
    reply = as_logged(reply)
    detail = {
        "logprobs": [[token.token, dict(token.top)] for token in reply.logprobs],
        "probabilities": reply.probabilities,
        "calls": [asdict(call) for call in reply.calls],
        "raw": dict(reply.raw),
    }
    spent = cost(price, reply.input_tokens, reply.output_tokens, batch=batch) if price else None
    return Call(
        reply.key, model, endpoint, request.prompt, json.dumps(request.says(), ensure_ascii=False), reply.status,
        reply.text, reply.reason, reply.input_tokens, reply.output_tokens, reply.seconds, spent, detail,
    )  # fmt: skip


def reply_of(call: Call) -> Reply:
    """A reply as it came."""
    return Reply(
        cast("Status", call.status), call.reply, call.reason, call.input_tokens, call.output_tokens, call.seconds,
        tuple(TokenLogprobs(token, top) for token, top in call.detail["logprobs"]),
        tuple(tuple(row) for row in call.detail["probabilities"]),
        # Logs of before there were tools have no calls.
        tuple(ToolCall(**one) for one in call.detail.get("calls", ())), call.key, call.detail["raw"],
    )  # fmt: skip
