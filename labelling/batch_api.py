"""Labels through a batch API at half the price: submit, leave, come back, collect.

A run with a deferred client goes as far as the log carries it and gathers its next requests; these become a batch.
When the batch is done, its replies go into the log, and the same run goes further: labelling takes two or three
rounds (explanations, judgements). The requests of a batch are stored before it is sent, and a batch that
was sent is found again by its content, so one that was interrupted is not paid twice.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """How many of these were answered so far."""
    collected: bool
    reason: str | None = None


def collect(client: LLMClient, api: BatchAPI) -> list[BatchReport]:
    """Put the replies of ended batches into the log; returns a report on each batch of this model."""
    return [_collect_batch(client, api, row) for row in client.log.batches(client.llm.model, client.llm.endpoint)]


def send(client: LLMClient, api: BatchAPI) -> BatchReport | None:
    """Send the requests that the client gathered as a batch; None where it gathered none that nobody else asks."""
    if not client.outbox:
        return None
    requests = [
        (key, chat.prompt, json.dumps(chat.as_dict(), ensure_ascii=False, sort_keys=True))
        for key, chat in sorted(client.outbox.items())
    ]
    batch, keys = client.log.begin_batch(client.llm.model, client.llm.endpoint, requests)
    return _submit(client, api, batch, {key: client.outbox[key] for key in keys}) if keys else None


def _submit(client: LLMClient, api: BatchAPI, batch: str, requests: dict[str, Chat]) -> BatchReport:
    remote = api.submit(dict(sorted(requests.items())))
    client.log.mark_sent(batch, json.dumps(remote))
    return BatchReport(tuple(remote), len(requests), 0, collected=False)


def _collect_batch(client: LLMClient, api: BatchAPI, row: dict[str, object]) -> BatchReport:
    batch, stored_requests = str(row["id"]), client.log.batch_requests(str(row["id"]))
    requests = {key: Chat.parse(json.loads(text), prompt=prompt) for key, (prompt, text) in stored_requests.items()}
    if row["remote"] is None:
        # It was stored, but maybe not sent; the server knows.
        return _submit(client, api, batch, requests)
    remote: Sequence[str] = json.loads(str(row["remote"]))
    states = [api.poll(name) for name in remote]
    done = sum(state.completed for state in states)
    if not all(state.ended for state in states):
        return BatchReport(tuple(remote), len(requests), done, collected=False)
    # A part that failed as a whole has no replies; its requests are sent anew.
    complete = [name for name, state in zip(remote, states, strict=True) if state.status != "failed"]
    replies = {key: reply for name in complete for key, reply in api.collect(name, requests)}
    calls = [_make_call(client, key, requests[key], reply) for key, reply in replies.items()]
    client.log.end_batch(batch, calls)
    reason = next((state.reason for state in states if state.reason), None)
    return BatchReport(tuple(remote), len(requests), len(calls), collected=True, reason=reason)


def _make_call(client: LLMClient, key: str, chat: Chat, reply: Reply) -> Call:
    llm = client.llm
    return to_call(
        chat, replace(reply, key=key), model=llm.model, endpoint=llm.endpoint, price=client.price, batch=True
    )
