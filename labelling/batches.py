"""Bulk labelling through a batch API at half the price: submit, leave, come back, collect.

A run with a deferred client goes as far as the log carries it and gathers what it would ask next; that becomes a batch.
When the batch is done, its replies go into the log, and the same run goes further: labelling takes two or three
rounds (explanations, judgements). What a batch holds is written down before it is sent, and a batch that
was sent is found again by its content, so one that was interrupted is not paid twice.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..data.codec import content_digest
from ..data.store.calls import Call
from ..llm.client import LLMClient, to_call
from ..llm.openai.batch import BatchAPI
from ..llm.types import Chat, Reply


@dataclass(frozen=True, slots=True)
class BatchReport:
    """A batch that is under way, or was just collected."""

    remote: tuple[str, ...]
    """The server's names for it."""
    requests: int
    answered: int
    """Of these so far."""
    collected: bool
    reason: str | None = None


def collect(client: LLMClient, api: BatchAPI) -> list[BatchReport]:
    """Put what ended batches brought into the log; a report on each batch of this model."""
    return [_collected(client, api, row) for row in client.log.batches(client.llm.model, client.llm.endpoint)]


def send(client: LLMClient, api: BatchAPI) -> BatchReport | None:
    """Send what the client gathered as a batch; None where it gathered nothing."""
    if not client.outbox:
        return None
    requests = [
        (key, chat.prompt, json.dumps(chat.as_dict(), ensure_ascii=False, sort_keys=True))
        for key, chat in sorted(client.outbox.items())
    ]
    batch = content_digest(*(key for key, _, _ in requests))[:32]
    client.log.begin_batch(batch, client.llm.model, client.llm.endpoint, requests)
    return _sent(client, api, batch, dict(client.outbox))


def _sent(client: LLMClient, api: BatchAPI, batch: str, requests: dict[str, Chat]) -> BatchReport:
    remote = api.submit(dict(sorted(requests.items())))
    client.log.mark_sent(batch, json.dumps(remote))
    return BatchReport(tuple(remote), len(requests), 0, collected=False)


def _collected(client: LLMClient, api: BatchAPI, row: dict[str, object]) -> BatchReport:
    batch, asked = str(row["id"]), client.log.batch_requests(str(row["id"]))
    requests = {key: Chat.parse(json.loads(text), prompt=prompt) for key, (prompt, text) in asked.items()}
    if row["remote"] is None:
        # It was written down, but nobody knows whether it was sent; the server tells.
        return _sent(client, api, batch, requests)
    remote: Sequence[str] = json.loads(str(row["remote"]))
    states = [api.poll(one) for one in remote]
    done = sum(state.completed for state in states)
    if not all(state.ended for state in states):
        return BatchReport(tuple(remote), len(requests), done, collected=False)
    # What failed as a whole has no replies; its requests are asked anew.
    whole = [one for one, state in zip(remote, states, strict=True) if state.status != "failed"]
    replies = {key: reply for one in whole for key, reply in api.collect(one) if key in requests}
    calls = [_call(client, key, requests[key], reply) for key, reply in replies.items()]
    client.log.end_batch(batch, calls)
    reason = next((state.reason for state in states if state.reason), None)
    return BatchReport(tuple(remote), len(requests), len(calls), collected=True, reason=reason)


def _call(client: LLMClient, key: str, chat: Chat, reply: Reply) -> Call:
    llm = client.llm
    return to_call(
        chat, replace(reply, key=key), model=llm.model, endpoint=llm.endpoint, price=client.price, batch=True
    )
