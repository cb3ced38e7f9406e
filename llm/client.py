"""The client: answers the requests of tasks with a language model, each request once.

A request is looked up in the log first, and only one that is not answered there goes to the model, within the
budget; every reply is recorded before anyone uses it, and reads the same from the log as it came. Many tasks are
open at a time, as many as keep the model busy, so that one task's waiting is another's work. The budget is checked
before each call: a run spends more than it by no more than the calls in flight.

Two processes may ask through one log. A request is claimed in it before it is sent. One that another process has
claimed is neither sent nor charged, but waits for the other's reply, also where that is no answer. Only where none
comes, because the other failed or is gone, it is sent after all.

A rehearsal answers from the log, or with the request's own sample, and spends nothing: it is a dry run's
estimate. With `deferred`, requests that are not answered yet are gathered for a batch instead, as long as their
estimated cost is within the budget. There a reply that is no answer stands, since a task that waited for a
better one would never be done; only failed requests are sent again, `TRIES` times in all.
"""

import json
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

from ..data.store.calls import Call, CallLog
from ..data.store.database import TELL_SECONDS
from ..data.store.writing import clean, now
from ..subject.errors import NeuronautError
from .prices import Budget, Price, cost, find_price
from .tasks import LLMTask, Task
from .types import LLM, Chat, Message, Probe, Reply, Request, Status, TokenLogprobs, ToolCall, request_key

T = TypeVar("T")
Mode = Literal["live", "rehearsal", "deferred"]
HOPELESS = 8
"""When so many calls have failed and none went well, the run stops."""
TRIES = 3
"""How often a batch sends a request that failed, for example because it expired."""
LOOK_SECONDS = 0.25
"""How often another process's replies are looked for."""
TELL_AGAIN_SECONDS = 30.0
_log = logging.getLogger(__name__)


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
    estimated: int = 0
    """Replies whose tokens the server did not count, or not credibly."""
    own_temperature: int = 0
    """Replies at the model's own temperature, since the server takes no other."""
    begun: float = field(default_factory=time.monotonic)

    @property
    def minutes(self) -> float:
        """Minutes since the run began."""
        return (time.monotonic() - self.begun) / 60


@dataclass(slots=True)
class _Task(Generic[T]):
    """A task that waits for the replies of its round."""

    steps: Task[T]
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
        self._began, self._asked = now(), set[str]()

    def run(self, tasks: Iterable[Task[T] | None], *, at_work: int | None = None) -> Iterator[T]:
        """The results of the tasks as they are done. Tasks that the budget or a batch leaves open give none.

        None among the tasks: the next can be begun only when another is done. Of tasks that wait for work elsewhere so
        many are `at_work` at a time, by default `ahead`.
        """
        return _Run(self, tasks, at_work or self.ahead).results()

    def ask(self, task: LLMTask[T]) -> T | None:
        """The result of one task; None where the budget or a batch left it open."""
        return next(self.run([task]), None)

    def rehearsal(self) -> "LLMClient":
        """A client that counts what the same tasks would cost, and asks nobody."""
        return LLMClient(self.llm, self.log, price=self.price, mode="rehearsal", ahead=self.ahead)

    def key(self, request: Request) -> str:
        """The key of a request in the log."""
        return request_key(request, model=self.llm.model, endpoint=self.llm.endpoint)

    def logged_replies(self, requests: Sequence[Request]) -> dict[str, Reply]:
        """Good answers that are in the log, by key, and the replies that stand without being one."""
        keys = [self.key(request) for request in requests]
        replies = {key: to_reply(call) for key, call in self.log.answers(keys).items()}
        if self.mode != "rehearsal" and len(replies) < len(keys):
            for key, (call, tries) in self.log.unanswered(keys).items():
                if self._stands(call, tries):
                    replies[key] = to_reply(call)
        return replies

    def _stands(self, call: Call, tries: int) -> bool:
        """Whether a reply that is no answer is not asked for again.

        With `deferred` it stands; else one that another process got while this run was under way.
        """
        if self.mode == "deferred":
            return call.status != "failed" or tries >= TRIES
        return call.status != "failed" and call.created >= self._began and call.key not in self._asked

    def claim(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Claim the requests of these keys; returns those that are not to be sent, each with why."""
        return self.log.claim(keys) if self.mode == "live" else {}

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

    def paid_elsewhere(self, key: str) -> bool:
        """Whether what the log has of a request came from another client; not of what is only rehearsed."""
        return self.mode != "rehearsal" and key not in self._asked

    def call(self, request: Request) -> Future[Reply]:
        """Send a request; its reply is in the log before the future is done with."""
        with self._lock:
            self.spent.calls += 1
        self._asked.add(self.key(request))
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
            self.log.release([self.key(request)])
            future.set_exception(error)
        else:
            future.set_result(reply)

    def _account(self, reply: Reply) -> None:
        with self._lock:
            self.spent.answered += 1
            self.spent.failed += reply.status == "failed"
            self.spent.estimated += "usage" in reply.raw
            self.spent.own_temperature += "temperature" in reply.raw
            self._spend(reply.input_tokens, reply.output_tokens, batch=False)

    def _spend(self, input_tokens: int, output_tokens: int, *, batch: bool) -> None:
        self.spent.input_tokens += input_tokens
        self.spent.output_tokens += output_tokens
        self.spent.usd += cost(self.price, input_tokens, output_tokens, batch=batch) if self.price else 0.0


class _Waiting(NamedTuple, Generic[T]):
    """A request that is to be answered."""

    request: Request
    key: str
    task: _Task[T]
    place: int
    """Of its reply among the task's."""


class _Run(Generic[T]):
    """One run of the client over tasks."""

    def __init__(self, client: LLMClient, tasks: Iterable[Task[T] | None], most_at_work: int) -> None:
        self._client, self._tasks, self._most_at_work = client, iter(tasks), most_at_work
        self._waiting: deque[_Waiting[T]] = deque()
        self._in_flight: dict[Future[Reply], str] = {}
        self._waiting_for: dict[str, list[_Waiting[T]]] = {}
        """By key in flight, the requests that its reply answers."""
        self._elsewhere = _Elsewhere[T]()
        self._at_work: dict[Future[Any], _Task[T]] = {}
        self._open = 0
        self._done: deque[T] = deque()
        self._more, self._depends = True, False

    def results(self) -> Iterator[T]:
        """The results of the tasks as they are done."""
        while True:
            self._send()
            while self._done:
                yield self._done.popleft()
            if self._more and self._wants_tasks():
                self._begin_next()
            elif self._in_flight or self._at_work or self._elsewhere.requests:
                self._collect()
            elif not self._waiting or self._client.stopped:
                break

    def _wants_tasks(self) -> bool:
        if self._depends:
            return False
        if self._client.mode != "rehearsal" and not self._client.may_call():
            self._more = False
            return False
        if len(self._at_work) >= self._most_at_work:
            return False
        busy = len(self._waiting) + len(self._in_flight) >= self._client.llm.in_flight
        return not busy or self._open < max(self._client.ahead, self._most_at_work)

    def _begin_next(self) -> None:
        for steps in self._tasks:
            self._depends = steps is None
            if steps is not None:
                self._open += 1
                self._advance(_Task(steps), None)
            return
        self._more = False

    def _advance(self, task: _Task[T], replies: list[Reply] | None) -> None:
        """Let a task go on, as far as it comes with the replies in the log."""
        try:
            requests = next(task.steps) if replies is None else task.steps.send(replies)
        except StopIteration as stop:
            self._open -= 1
            self._depends = False
            self._done.append(stop.value)
            return
        if isinstance(requests, Future):
            self._at_work[requests] = task
            return
        client = self._client
        keys, logged = [client.key(request) for request in requests], client.logged_replies(requests)
        client.spent.cached += sum(key in logged for key in keys)
        task.replies = [logged.get(key) for key in keys]
        task.missing = task.replies.count(None)
        for place, (request, key) in enumerate(zip(requests, keys, strict=True)):
            if key not in logged:
                self._waiting.append(_Waiting(request, key, task, place))
        if task.missing == 0:
            self._advance(task, [reply for reply in task.replies if reply is not None])

    def _send(self) -> None:
        """Send, rehearse or set aside the waiting requests, as many at a time as there is room for."""
        client = self._client
        while self._waiting and (room := self._count_room()) > 0:
            batch = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            keys = list(dict.fromkeys(waiting.key for waiting in batch if waiting.key not in self._waiting_for))
            held = client.claim(keys)
            try:
                for number, waiting in enumerate(batch):
                    if not self._place(waiting, held):
                        self._waiting.extendleft(reversed(batch[number:]))
                        return
            finally:
                client.log.release(set(keys) - held.keys() - self._waiting_for.keys())

    def _count_room(self) -> int:
        client = self._client
        return client.llm.in_flight - len(self._in_flight) if client.mode == "live" else len(self._waiting)

    def _place(self, waiting: _Waiting[T], held: Mapping[str, str]) -> bool:
        """Answer a request, or bring it on its way; false where the budget does not allow it.

        `held` are those not to be sent, each with why.
        """
        client, key = self._client, waiting.key
        if key in client.outbox:
            return True
        if key in self._waiting_for:
            self._waiting_for[key].append(waiting)
        elif logged := client.logged_replies([waiting.request]):
            # An equal request was answered while this one waited, here or by another process.
            client.spent.cached += client.paid_elsewhere(key)
            self._deliver(logged[key], waiting)
        elif key in held:
            self._elsewhere.add(waiting, held[key])
        elif client.mode == "rehearsal":
            self._deliver(client.rehearse(waiting.request), waiting)
        elif not client.may_call():
            return False
        elif client.mode == "deferred":
            client.set_aside(waiting.request, key)
        else:
            self._in_flight[client.call(waiting.request)] = key
            self._waiting_for[key] = [waiting]
        return True

    def _collect(self) -> None:
        """Wait for a reply, and hand every one that has come to the tasks that wait for it; so with work elsewhere."""
        if not self._in_flight and not self._at_work:
            self._elsewhere.tell()
            time.sleep(LOOK_SECONDS)
        patience = LOOK_SECONDS if self._elsewhere.requests else None
        ended, _ = wait([*self._in_flight, *self._at_work], timeout=patience, return_when=FIRST_COMPLETED)
        for future in ended & self._at_work.keys():
            self._advance(self._at_work.pop(future), [])
        for future in ended & self._in_flight.keys():
            reply = future.result()
            for waiting in self._waiting_for.pop(self._in_flight.pop(future)):
                self._deliver(reply, waiting)
        # These are looked up, or claimed, before any new one.
        self._waiting.extendleft(reversed(self._elsewhere.take()))

    def _deliver(self, reply: Reply, waiting: _Waiting[T]) -> None:
        task = waiting.task
        task.replies[waiting.place] = reply
        task.missing -= 1
        if task.missing == 0:
            self._advance(task, [reply for reply in task.replies if reply is not None])


class _Elsewhere(Generic[T]):
    """Requests that wait for another process: for its reply or, while it writes to the log, for their claim."""

    def __init__(self) -> None:
        self.requests: list[_Waiting[T]] = []
        self._who: Counter[str] = Counter()
        self._looked = 0.0
        self._tell_at: float | None = None

    def add(self, waiting: _Waiting[T], who: str) -> None:
        """Let a request wait."""
        self.requests.append(waiting)
        self._who[who] += 1

    def take(self) -> list[_Waiting[T]]:
        """The requests, when it is time to look again."""
        if time.monotonic() < self._looked + LOOK_SECONDS:
            return []
        self._looked = time.monotonic()
        taken, self.requests = self.requests, []
        self._who.clear()
        if not taken:
            self._tell_at = None
        return taken

    def tell(self) -> None:
        """Say what is waited for, where it has lasted; called while nothing else is to be done."""
        when = time.monotonic()
        self._tell_at = self._tell_at or when + TELL_SECONDS
        if when >= self._tell_at:
            self._tell_at = when + TELL_AGAIN_SECONDS
            parts = (f"{count:,} {'reply' if count == 1 else 'replies'} {who}" for who, count in self._who.items())
            _log.warning("waits for %s", ", and ".join(parts))


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
