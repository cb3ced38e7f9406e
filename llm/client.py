"""The client: answers the requests of tasks with a language model, each request once.

A request is looked up in the log first, and only one that is not answered there goes to the model, within the
budget; every reply is recorded before anyone uses it, and reads the same from the log as it came. Many tasks are
open at a time, as many as keep the model busy, so that one task's waiting is another's work. The budget is checked
before each call: a run spends more than it by no more than the calls in flight.

A rehearsal answers from the log, or with the request's own sample, and spends nothing: it is a dry run's
estimate. With `deferred`, requests that are not answered yet are gathered for a batch instead, as long as their
estimated cost is within the budget. There a reply that is no answer stands, since a task that waited for a
better one would never be done; only failed requests are sent again, `TRIES` times in all.
"""

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Generic, Literal, TypeVar, cast

from ..data.store.calls import Call, CallLog
from ..data.store.writing import clean
from ..subject.errors import NeuronautError
from .prices import Budget, Price, cost, find_price
from .tasks import LLMTask
from .types import LLM, Chat, Message, Probe, Reply, Request, Status, TokenLogprobs, ToolCall, request_key

T = TypeVar("T")
Mode = Literal["live", "rehearsal", "deferred"]
HOPELESS = 8
"""When so many calls have failed and none went well, the run stops."""
TRIES = 3
"""How often a batch sends a request that failed, for example because it expired."""


@dataclass(slots=True)
class Spent:
    """The cost of a run so far; answers from the log cost nothing."""

    calls: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    answered: int = 0
    failed: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def minutes(self) -> float:
        """Minutes since the run began."""
        return (time.monotonic() - self.begun) / 60


@dataclass(slots=True)
class _Task(Generic[T]):
    """A task that waits for the replies of its round."""

    steps: LLMTask[T]
    replies: list[Reply | None] = field(default_factory=list)
    missing: int = 0
    """How many of the replies have not come yet."""


class LLMClient:
    """Answers tasks through a log, a budget and a language model.

    >>> llm = open_llm("openai:gpt-4o-mini")
    >>> client = LLMClient(llm, store.calls, price=Price(0.15, 0.60), budget=Budget(usd=1.0))
    >>> client.spent.calls
    0
    """

    def __init__(
        self,
        llm: LLM,
        log: CallLog,
        *,
        price: Price | None = None,
        budget: Budget | None = None,
        mode: Mode = "live",
        ahead: int = 4,
    ) -> None:
        """Without a `price`, that of the model is taken where it is known.

        A budget in dollars is refused where no price is known. At least `ahead` tasks are begun before any is
        waited for.
        """
        price = find_price(llm.model, llm.endpoint, price)
        if budget is not None and budget.usd is not None and price is None:
            raise NeuronautError(
                f"--budget usd={budget.usd:g} needs a price, and none is known for {llm.model} at {llm.endpoint}; "
                "say it in dollars per million tokens: --price in=0.15,out=0.60"
            )
        self.llm, self.log, self.price, self.mode = llm, log, price, mode
        self.budget, self.spent, self.outbox = budget or Budget(), Spent(), dict[str, Chat]()
        self.stopped: str | None = None
        """Why no further call is made, where that is so."""
        self.ahead, self._lock = ahead, Lock()
        self._rehearsed: dict[str, Reply] = {}

    def run(self, tasks: Iterable[LLMTask[T]]) -> Iterator[T]:
        """The results of the tasks as they are done. Tasks that the budget or a batch leaves open give none."""
        return _Run(self, tasks).results()

    def ask(self, task: LLMTask[T]) -> T | None:
        """The result of one task; None where the budget or a batch left it open."""
        return next(self.run([task]), None)

    def key(self, request: Request) -> str:
        """The key of a request in the log."""
        return request_key(request, model=self.llm.model, endpoint=self.llm.endpoint)

    def logged_replies(self, requests: Sequence[Request]) -> dict[str, Reply]:
        """Good answers that are in the log, by key; with `deferred` also the replies that stand without being one."""
        keys = [self.key(request) for request in requests]
        replies = {key: to_reply(call) for key, call in self.log.answers(keys).items()}
        if self.mode == "deferred" and len(replies) < len(keys):
            for key, (call, tries) in self.log.unanswered(keys).items():
                if call.status != "failed" or tries >= TRIES:
                    replies[key] = to_reply(call)
        return replies

    def may_call(self) -> bool:
        """Whether another call is within the budget."""
        spent, limit = self.spent, self.budget
        used = {
            "usd": (spent.usd, limit.usd),
            "tokens": (spent.input_tokens + spent.output_tokens, limit.tokens),
            "calls": (spent.calls, limit.calls),
            "minutes": (spent.minutes, limit.minutes),
        }
        over = [name for name, (value, bound) in used.items() if bound is not None and value >= bound]
        if over:
            self.stopped = f"the budget of {' and '.join(over)} is spent"
        if HOPELESS <= spent.failed == spent.answered:
            raise NeuronautError(
                f"the first {spent.failed} calls to {self.llm.model} at {self.llm.endpoint} all failed; "
                "see why with: neuronaut llm log --status failed"
            )
        return not over

    def call(self, request: Request) -> Future[Reply]:
        """Send a request; its reply is in the log before the future is done with."""
        with self._lock:
            self.spent.calls += 1
        future: Future[Reply] = Future()
        self.llm.submit(request).add_done_callback(partial(self._record, request, future))
        return future

    def rehearse(self, request: Request) -> Reply:
        """A dry run's stand-in for the reply; equal requests count once, as they are sent once."""
        key = self.key(request)
        if key in self._rehearsed:
            return self._rehearsed[key]
        if isinstance(request, Probe):
            share = 1 / max(len(request.choices), 1)
            probabilities = ((share,) * len(request.choices),) * len(request.positions)
            reply = Reply("ok", input_tokens=len(request.ids), probabilities=probabilities)
        else:
            tokens = self.llm.count(request), self._count_sample(request)
            reply = Reply("ok", request.sample, input_tokens=tokens[0], output_tokens=tokens[1])
        self._account(reply)
        self.spent.calls += 1
        self._rehearsed[key] = replace(reply, key=key)
        return self._rehearsed[key]

    def set_aside(self, request: Request, key: str) -> None:
        """Keep a request for a batch; its estimated cost counts as spent."""
        if isinstance(request, Probe):
            raise NeuronautError("a batch takes chats only; use -s simulation:json, or leave --batch away")
        self.outbox[key] = request
        self.spent.calls += 1
        self._spend(self.llm.count(request), self._count_sample(request), batch=True)

    def _count_sample(self, request: Chat) -> int:
        """Tokens of the sample reply."""
        return self.llm.count(_as_chat(request.sample)) - self.llm.count(_as_chat(""))

    def _record(self, request: Request, future: Future[Reply], replied: Future[Reply]) -> None:
        """Record the reply, then hand it on; runs in the thread that got it."""
        try:
            reply = as_logged(replace(replied.result(), key=self.key(request)))
            self._account(reply)
            self.log.record(to_call(request, reply, model=self.llm.model, endpoint=self.llm.endpoint, price=self.price))
        # Whatever it is: who waits for the future has to hear of it, and nobody waits for this thread.
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(reply)

    def _account(self, reply: Reply) -> None:
        with self._lock:
            self.spent.answered += 1
            self.spent.failed += reply.status == "failed"
            self._spend(reply.input_tokens, reply.output_tokens, batch=False)

    def _spend(self, input_tokens: int, output_tokens: int, *, batch: bool) -> None:
        self.spent.input_tokens += input_tokens
        self.spent.output_tokens += output_tokens
        self.spent.usd += cost(self.price, input_tokens, output_tokens, batch=batch) if self.price else 0.0


class _Run(Generic[T]):
    """One run of the client over tasks."""

    def __init__(self, client: LLMClient, tasks: Iterable[LLMTask[T]]) -> None:
        self._client, self._tasks = client, iter(tasks)
        self._waiting: deque[tuple[Request, str, _Task[T], int]] = deque()
        self._in_flight: dict[Future[Reply], str] = {}
        self._waiting_for: dict[str, list[tuple[_Task[T], int]]] = {}
        """By key in flight, the tasks that wait for its reply, and its place among theirs."""
        self._open = 0
        self._done: deque[T] = deque()
        self._more = True

    def results(self) -> Iterator[T]:
        """The results of the tasks as they are done."""
        while True:
            self._send()
            while self._done:
                yield self._done.popleft()
            if self._more and self._wants_tasks():
                self._begin_next()
            elif self._in_flight:
                self._collect()
            elif not self._waiting or self._client.stopped:
                break

    def _wants_tasks(self) -> bool:
        if self._client.mode != "rehearsal" and not self._client.may_call():
            self._more = False
            return False
        busy = len(self._waiting) + len(self._in_flight) >= self._client.llm.in_flight
        return not busy or self._open < self._client.ahead

    def _begin_next(self) -> None:
        steps = next(self._tasks, None)
        if steps is None:
            self._more = False
            return
        self._open += 1
        self._advance(_Task(steps), None)

    def _advance(self, task: _Task[T], replies: list[Reply] | None) -> None:
        """Let a task go on, as far as it comes with the replies in the log."""
        try:
            requests = next(task.steps) if replies is None else task.steps.send(replies)
        except StopIteration as stop:
            self._open -= 1
            self._done.append(stop.value)
            return
        client = self._client
        keys, logged = [client.key(request) for request in requests], client.logged_replies(requests)
        client.spent.cached += sum(key in logged for key in keys)
        task.replies = [logged.get(key) for key in keys]
        task.missing = task.replies.count(None)
        for place, (request, key) in enumerate(zip(requests, keys, strict=True)):
            if key not in logged:
                self._waiting.append((request, key, task, place))
        if task.missing == 0:
            self._advance(task, [reply for reply in task.replies if reply is not None])

    def _send(self) -> None:
        """Send, rehearse or set aside the waiting requests."""
        client = self._client
        while self._waiting and (client.mode != "live" or len(self._in_flight) < client.llm.in_flight):
            request, key, task, place = self._waiting.popleft()
            if key in client.outbox:
                continue
            if key in self._waiting_for:
                self._waiting_for[key].append((task, place))
            elif logged := client.logged_replies([request]):
                # An equal request was answered while this one waited.
                self._deliver(logged[key], task, place)
            elif client.mode == "rehearsal":
                self._deliver(client.rehearse(request), task, place)
            elif not client.may_call():
                self._waiting.appendleft((request, key, task, place))
                return
            elif client.mode == "deferred":
                client.set_aside(request, key)
            else:
                self._waiting_for[key] = [(task, place)]
                self._in_flight[client.call(request)] = key

    def _collect(self) -> None:
        """Wait for a reply, and hand every one that has come to the tasks that wait for it."""
        replied, _ = wait(self._in_flight, return_when=FIRST_COMPLETED)
        for future in replied:
            reply = future.result()
            for task, place in self._waiting_for.pop(self._in_flight.pop(future)):
                self._deliver(reply, task, place)

    def _deliver(self, reply: Reply, task: _Task[T], place: int) -> None:
        task.replies[place] = reply
        task.missing -= 1
        if task.missing == 0:
            self._advance(task, [reply for reply in task.replies if reply is not None])


def _as_chat(text: str) -> Chat:
    return Chat((Message("assistant", text),))


def as_logged(reply: Reply) -> Reply:
    """The reply as the log will give it: later requests must not depend on where it was read."""
    calls = tuple(ToolCall(*(clean(part) or "" for part in astuple(call))) for call in reply.calls)
    return replace(reply, text=clean(reply.text) or "", calls=calls)


def to_call(
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
        key=reply.key,
        model=model,
        endpoint=endpoint,
        prompt=request.prompt,
        request=json.dumps(request.as_dict(), ensure_ascii=False),
        status=reply.status,
        reply=reply.text,
        reason=reply.reason,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        seconds=reply.seconds,
        cost=spent,
        detail=detail,
    )


def to_reply(call: Call) -> Reply:
    """The reply of a call in the log, as it came."""
    return Reply(
        status=cast("Status", call.status),
        text=call.reply,
        reason=call.reason,
        input_tokens=call.input_tokens,
        output_tokens=call.output_tokens,
        seconds=call.seconds,
        logprobs=tuple(TokenLogprobs(token, top) for token, top in call.detail["logprobs"]),
        probabilities=tuple(tuple(row) for row in call.detail["probabilities"]),
        # Logs of before there were tools have no calls.
        calls=tuple(ToolCall(**tool_call) for tool_call in call.detail.get("calls", ())),
        key=call.key,
        raw=call.detail["raw"],
    )
