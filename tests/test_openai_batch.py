"""The Batch API's client, against a real HTTP server."""

from collections import Counter

import pytest

from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.llm.openai.batch import BatchAPI
from neuronaut.llm.types import Chat, Message, Sampling
from neuronaut.subject.errors import NeuronautError

REQUESTS = {f"key-{n}": Chat((Message("user", f"request {n}"),), Sampling(max_tokens=100 + n)) for n in range(5)}


def server(**options: object) -> FaultServer:
    return FaultServer(answer=lambda messages: f"reply to {messages[-1]['content']}", **options)  # type: ignore[arg-type]


def client(server: FaultServer, **options: object) -> BatchAPI:
    return BatchAPI("planted", **{"base_url": server.url, "backoff": 0.01, **options})  # type: ignore[arg-type]


def test_submit_leave_come_back_collect() -> None:
    with server(polls=2) as there:
        first = client(there)
        (batch,) = first.submit(REQUESTS)
        first.close()
        later = client(there)
        states = [later.poll(batch) for _ in range(3)]
        assert [state.ended for state in states] == [False, False, True]
        assert (states[-1].status, states[-1].total, states[-1].completed, states[-1].failed) == ("completed", 5, 5, 0)
        replies = dict(later.collect(batch, REQUESTS))
        later.close()
    assert {key: (reply.status, reply.text) for key, reply in replies.items()} == {
        key: ("ok", f"reply to {chat.messages[0].content}") for key, chat in REQUESTS.items()
    }
    assert all((reply.input_tokens, reply.output_tokens) == there.paid[key] for key, reply in replies.items())


def test_lines_that_err_expire_or_are_declined_have_their_reasons() -> None:
    with server(script=["ok", "400", "expired", "refusal", "truncated"], polls=0) as there:
        api = client(there)
        (batch,) = api.submit(REQUESTS)
        state, replies = api.poll(batch), dict(api.collect(batch, REQUESTS))
        api.close()
    assert (state.status, state.ended, state.completed, state.failed) == ("expired", True, 3, 2)
    assert [replies[key].status for key in REQUESTS] == ["ok", "failed", "failed", "refused", "truncated"]
    assert replies["key-1"].reason == "context_length_exceeded: planted: context_length_exceeded"
    assert replies["key-2"].reason == "batch_expired: not executed before the window expired"


def test_a_batch_that_fails_as_a_whole_says_why() -> None:
    with server(script=["invalid"], polls=0) as there:
        api = client(there)
        (batch,) = api.submit(REQUESTS)
        assert api.poll(batch).reason == "line 1 is not JSON"
        with pytest.raises(NeuronautError, match="line 1 is not JSON"):
            list(api.collect(batch, REQUESTS))
        assert api.submit(REQUESTS) != (batch,)
        api.close()


def test_a_batch_under_way_cannot_be_collected() -> None:
    with server(polls=9) as there:
        api = client(there)
        (batch,) = api.submit(REQUESTS)
        with pytest.raises(NeuronautError, match="is in_progress"):
            list(api.collect(batch, REQUESTS))
        api.close()


def test_the_same_requests_are_one_batch_however_often_submitted() -> None:
    with server(polls=3) as there:
        api = client(there)
        ids = {api.submit(REQUESTS) for _ in range(3)}
        others = api.submit(dict(list(REQUESTS.items())[:2]))
        api.close()
        assert len(ids) == 1
        assert others not in ids
        assert len(there.batches) == 2


def test_a_batch_made_although_the_answer_was_lost_is_not_made_again() -> None:
    """Calls in order: list, upload (503, retried), list, create (its answer is dropped), list."""
    with server(housekeeping=["ok", "503", "ok", "ok", "drop", "ok"]) as there:
        api = client(there)
        ids = api.submit(REQUESTS)
        api.close()
    assert ids == tuple(there.batches)
    assert len(ids) == 1


@pytest.mark.parametrize(("limits", "sizes"), [({"most_requests": 2}, [2, 2, 1]), ({"most_bytes": 450}, [2, 2, 1])])
def test_many_requests_are_several_batches(limits: dict[str, int], sizes: list[int]) -> None:
    with server(polls=0) as there:
        api = client(there, **limits)
        ids = api.submit(REQUESTS)
        replies = [dict(api.collect(batch, REQUESTS)) for batch in ids]
        api.close()
    assert [len(part) for part in replies] == sizes
    assert Counter(key for part in replies for key in part) == Counter(list(REQUESTS))


def test_a_server_without_batches_is_an_error() -> None:
    with server(housekeeping=["404"]) as there:
        api = client(there)
        with pytest.raises(NeuronautError, match="404"):
            api.submit(REQUESTS)
        api.close()
