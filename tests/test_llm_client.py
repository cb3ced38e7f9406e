"""The client: the log answers first, a budget is kept, what is asked twice is paid once, no task waits for another."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from neuronaut.benchmarks.fault_answers import pieces
from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.data.store.store import Store
from neuronaut.llm.client import HOPELESS, LLMClient
from neuronaut.llm.openai.chat import OpenAIChat
from neuronaut.llm.prices import Budget, Price
from neuronaut.llm.tasks import LLMTask, gather
from neuronaut.llm.types import Chat, Message, Probe, Reply, Sampling
from neuronaut.subject.errors import NeuronautError


def chat(text: str, *, seed: int | None = None) -> Chat:
    return Chat(
        (Message("user", text),), Sampling(max_tokens=50, seed=seed), sample="a reply of six words here", prompt="p"
    )


def questions(*texts: str) -> LLMTask[list[Reply]]:
    """Ask all at once."""
    return list((yield [chat(text) for text in texts]))


def chain(*texts: str) -> LLMTask[list[str]]:
    """Ask one after the other, each with the reply before it."""
    said: list[str] = []
    for text in texts:
        (reply,) = yield [chat(text + (said[-1] if said else ""))]
        said.append(reply.text)
    return said


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "client.db") as store:
        yield store


def open_chat(server: FaultServer, **options: object) -> OpenAIChat:
    return OpenAIChat("planted", base_url=server.url, backoff=0.02, longest_backoff=0.05, **options)  # pyright: ignore[reportArgumentType]


def test_together_keeps_rounds_and_order() -> None:
    asking = gather([chain("a", "b", "c"), chain("d"), chain("e", "f")])
    rounds, replies = [], None
    while True:
        try:
            requests = next(asking) if replies is None else asking.send(replies)
        except StopIteration as stop:
            result = stop.value
            break
        texts = [request.messages[0].content for request in requests if isinstance(request, Chat)]
        rounds.append(texts)
        replies = [Reply("ok", text.upper()) for text in texts]
    assert rounds == [["a", "d", "e"], ["bA", "fE"], ["cBA"]]
    assert result == [["A", "BA", "CBA"], ["D"], ["E", "FE"]]


def test_what_the_log_answers_is_not_asked(store: Store) -> None:
    with FaultServer() as server:
        for turn in range(2):
            llm = open_chat(server)
            client = LLMClient(llm, store.calls, price=Price(1.0, 2.0))
            results = list(client.run(questions(f"one {i}", f"two {i}") for i in range(5)))
            assert sorted(len(replies) for replies in results) == [2] * 5
            assert {reply.status for replies in results for reply in replies} == {"ok"}
            assert (client.spent.calls, client.spent.cached) == ((10, 0) if turn == 0 else (0, 10))
            llm.close()
        assert len(server.seen) == 10
    assert store.calls.statistics()[0]["ok"] == 10
    assert store.calls.statistics()[0]["cost"] == pytest.approx(
        sum((row["input_tokens"] + 2 * row["output_tokens"]) / 1e6 for row in store.calls.rows())
    )


def test_equal_requests_in_flight_are_one_call(store: Store) -> None:
    with FaultServer(delay=0.2) as server:
        llm = open_chat(server)
        results = list(LLMClient(llm, store.calls).run(questions("same", "same") for _ in range(4)))
        llm.close()
        assert len(server.seen) == 1
    assert len({reply.text for replies in results for reply in replies}) == 1


def test_another_draw_is_another_request(store: Store) -> None:
    def draws() -> LLMTask[int]:
        replies = yield [chat("same", seed=1), chat("same", seed=2)]
        return len(replies)

    with FaultServer() as server:
        llm = open_chat(server)
        assert LLMClient(llm, store.calls).ask(draws()) == 2
        llm.close()
        assert len(server.seen) == 2


@pytest.mark.parametrize("fault", ["refusal", "empty", "truncated"])
def test_what_is_no_answer_is_kept_and_asked_again(store: Store, fault: str) -> None:
    with FaultServer(script=[fault]) as server:
        statuses = []
        for _ in range(2):
            llm = open_chat(server)
            (replies,) = LLMClient(llm, store.calls).run([questions("x")])
            statuses.append(replies[0].status)
            llm.close()
    assert statuses[0] != "ok" and statuses[1] == "ok"
    assert [row["status"] for row in store.calls.rows()] == ["ok", statuses[0]]


def test_the_calls_of_a_budget_are_not_exceeded(store: Store) -> None:
    with FaultServer(delay=0.01) as server:
        llm = open_chat(server, in_flight=4)
        client = LLMClient(llm, store.calls, budget=Budget(calls=7))
        done = list(client.run(questions(f"q {i}") for i in range(20)))
        llm.close()
        assert len(server.seen) == 7 == len(done)
    assert client.stopped == "the budget of calls is spent"


@pytest.mark.parametrize("budget", [Budget(tokens=200), Budget(usd=0.002)])
def test_a_budget_is_exceeded_by_the_calls_in_flight_at_most(store: Store, budget: Budget) -> None:
    price, in_flight = Price(10.0, 10.0), 3
    with FaultServer(delay=0.02) as server:
        llm = open_chat(server, in_flight=in_flight)
        client = LLMClient(llm, store.calls, price=price, budget=budget)
        list(client.run(questions(f"some words that count {i}") for i in range(50)))
        llm.close()
    rows = store.calls.rows()
    largest = max(row["input_tokens"] + row["output_tokens"] for row in rows)
    used = client.spent.input_tokens + client.spent.output_tokens
    limit = budget.tokens if budget.tokens is not None else (budget.usd or 0.0) * 1e6 / 10
    assert limit <= used <= limit + in_flight * largest
    assert len(rows) < 50 and client.stopped


def test_a_dollar_budget_without_a_price_is_refused_before_any_call(store: Store) -> None:
    with FaultServer() as server:
        llm = open_chat(server)
        with pytest.raises(NeuronautError, match="--price in=0.15,out=0.60"):
            LLMClient(llm, store.calls, budget=Budget(usd=1.0))
        llm.close()
        assert not server.seen


def test_a_run_that_only_fails_stops(store: Store) -> None:
    with FaultServer(faults=1.0, kinds=["500"]) as server:
        llm = open_chat(server, in_flight=2, attempts=1)
        with pytest.raises(NeuronautError, match=r"the first \d+ calls to planted .* all failed"):
            list(LLMClient(llm, store.calls).run(questions(f"q {i}") for i in range(100)))
        llm.close()
        assert len(server.seen) <= HOPELESS + 4


def test_one_slow_task_holds_up_no_other(store: Store) -> None:
    """Chains of three calls each overlap: all six are with the server at once."""
    with FaultServer(delay=0.3) as server:
        llm = open_chat(server)
        done = list(LLMClient(llm, store.calls).run(chain(f"{i}a", f"{i}b", f"{i}c") for i in range(6)))
        llm.close()
        assert server.most_busy == 6
    assert len(done) == 6


def test_a_rehearsal_asks_nobody_and_uses_the_log(store: Store) -> None:
    with FaultServer() as server:
        llm = open_chat(server)
        list(LLMClient(llm, store.calls).run([questions("known")]))
        client = LLMClient(llm, store.calls, mode="rehearsal", price=Price(1.0, 1.0))
        (replies,) = client.run([questions("known", "new")])
        assert [reply.text for reply in replies][1] == "a reply of six words here"
        assert (client.spent.calls, client.spent.cached) == (1, 1)
        assert client.spent.output_tokens == pytest.approx(len(pieces("a reply of six words here")), abs=2)
        llm.close()
        assert len(server.seen) == 1
    assert len(store.calls.rows()) == 1


def test_a_deferred_run_goes_as_far_as_the_log_and_gathers_the_rest(store: Store) -> None:
    def two_rounds() -> LLMTask[str]:
        (first,) = yield [chat("first")]
        (second,) = yield [chat("second " + first.text)]
        return second.text

    with FaultServer() as server:
        llm = open_chat(server)
        client = LLMClient(llm, store.calls, mode="deferred")
        assert list(client.run([two_rounds()])) == [] and len(client.outbox) == 1
        list(LLMClient(llm, store.calls).run([questions("first")]))
        client = LLMClient(llm, store.calls, mode="deferred")
        assert list(client.run([two_rounds()])) == []
        (waiting,) = client.outbox.values()
        assert waiting.messages[0].content.startswith("second ")
        llm.close()


def test_probabilities_come_back_from_the_log_as_they_were(store: Store) -> None:
    probe = Probe((1, 2, 3), (0, 2), (0, 5, 10))

    def ask() -> LLMTask[Sequence[Reply]]:
        return (yield [probe])

    with FaultServer() as server:
        llm = open_chat(server, prompt_logprobs=True)
        first, again = (LLMClient(llm, store.calls).ask(ask()) for _ in range(2))
        llm.close()
        assert len(server.seen) == 1
    assert first is not None and again is not None
    assert first[0].probabilities == again[0].probabilities and len(first[0].probabilities) == 2


def test_an_equal_request_that_waited_is_not_paid_again(store: Store) -> None:
    """With one call in flight at a time, the second of two equal requests is sent after the first was answered."""
    with FaultServer(delay=0.02) as server:
        llm = open_chat(server, in_flight=1)
        client = LLMClient(llm, store.calls)
        list(client.run(questions("same", f"own {i}") for i in range(4)))
        llm.close()
        assert len(server.seen) == 5 == client.spent.calls
