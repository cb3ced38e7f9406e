"""The client for OpenAI-compatible servers, against a real HTTP server that misbehaves as told."""

import re
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier

import pytest

from neuronaut.benchmarks.fault_answers import pieces, predict
from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.llm.openai.chat import OpenAIChat, open_dialect
from neuronaut.llm.openai.retrying import Flow
from neuronaut.llm.openai.wire import Wire
from neuronaut.llm.prices import estimate, find_price
from neuronaut.llm.types import Chat, Message, Probe, Reply, Request, Sampling, request_key
from neuronaut.subject.errors import NeuronautError

PLANTED = "the neuron fires on colons"


def chat(text: str = "What does it fire on?", **sampling: object) -> Chat:
    return Chat((Message("system", "Answer in a line."), Message("user", text)), Sampling(**sampling))  # type: ignore[arg-type]


def client(server: FaultServer, **options: object) -> OpenAIChat:
    return OpenAIChat("planted", **{"base_url": server.url, "backoff": 0.01, "longest_backoff": 0.05, **options})  # type: ignore[arg-type]


def ask(server: FaultServer, request: Request | None = None, **options: object) -> Reply:
    """One request by a client of its own."""
    llm = client(server, **options)
    try:
        return llm.submit(request or chat()).result(timeout=600)
    finally:
        llm.close()


def scripted(*script: str, **options: object) -> FaultServer:
    return FaultServer(script=script, answer=lambda _: PLANTED, hang=600, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["408", "409", "429", "429:0", "429:20ms", "500", "503", "hang", "drop", "malformed"])
def test_a_passing_fault_is_retried(fault: str) -> None:
    with scripted(fault) as server:
        reply = ask(server, timeout=3 if fault == "hang" else 600)
    assert (reply.status, reply.text, reply.reason) == ("ok", PLANTED, None)
    assert [seen.fault for seen in server.seen if seen.fault != "hang"] == [fault] * (fault != "hang") + ["ok"]
    assert len(server.paid) == 1


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("refusal", "refused", "declined: I cannot"),
        ("empty", "empty", "no text"),
        ("truncated", "truncated", "cut at the limit"),
        ("400", "failed", "400: planted: context_length_exceeded"),
        ("422", "failed", "422: planted"),
    ],
)
def test_what_is_final_is_asked_once(fault: str, status: str, reason: str) -> None:
    with scripted(fault) as server:
        reply = ask(server)
    assert reply.status == status
    assert reply.reason and reply.reason.startswith(reason)
    assert sum(server.attempts.values()) == 1


def test_a_good_reply_about_an_error_is_good() -> None:
    with scripted("error-word") as server:
        reply = ask(server)
    assert (reply.status, reply.reason) == ("ok", None)
    assert reply.text == f"Without error:\n{PLANTED}"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "500: planted"),
        ("429", "429: planted"),
        ("hang", "no reply within"),
        ("malformed", "the reply is not JSON"),
    ],
)
def test_after_all_attempts_the_reply_has_failed(fault: str, reason: str) -> None:
    with scripted(*[fault] * 3) as server:
        reply = ask(server, attempts=3, timeout=1 if fault == "hang" else 600)
        assert (reply.status, sum(server.attempts.values())) == ("failed", 3)
    assert reply.reason and reply.reason.startswith(reason)


@pytest.mark.parametrize(
    ("fault", "advice"),
    [("401", "set OPENAI_API_KEY"), ("403", "another model"), ("404", "name a model"), ("quota", "add credit")],
)
def test_what_spoils_every_call_is_an_error_at_once(fault: str, advice: str) -> None:
    with scripted(fault) as server, pytest.raises(NeuronautError, match=advice) as caught:
        ask(server)
    assert "\n" not in str(caught.value)
    assert sum(server.attempts.values()) == 1


def test_a_server_that_is_not_there_is_an_error() -> None:
    with scripted() as server:
        pass
    with pytest.raises(NeuronautError, match="cannot be reached"):
        ask(server, attempts=2)


@pytest.mark.parametrize(
    ("fault", "least", "most"), [("429:1", 1.0, 2.0), ("503:300ms", 0.3, 1.0), ("429:date", 0.9, 3.0)]
)
def test_the_server_says_how_long_to_wait(fault: str, least: float, most: float) -> None:
    with scripted(fault) as server:
        assert ask(server).status == "ok"
    first, second = (seen.at for seen in server.seen)
    assert least <= second - first < most


def test_a_wait_of_hours_is_not_waited() -> None:
    with scripted("429:7200") as server:
        assert ask(server).status == "failed"
    assert sum(server.attempts.values()) == 1


def test_openai_itself_wants_a_key_at_the_first_submit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    llm = OpenAIChat("gpt-4o-mini")
    assert llm.endpoint == "https://api.openai.com/v1"
    assert llm.count(chat()) > 0
    with pytest.raises(NeuronautError, match="set OPENAI_API_KEY"):
        llm.submit(chat())
    llm.close()


def test_what_is_sent() -> None:
    request = chat(temperature=0.7, max_tokens=55, top_logprobs=3, seed=4)
    with scripted() as server:
        reply = ask(server, request, thinking=1000)
        ask(server, chat(temperature=None))
        ask(server, chat(temperature=0.0), temperature_fixed=True)
    first, *others = (seen.body for seen in server.seen)
    assert first == {
        "model": "planted",
        "messages": [
            {"role": "system", "content": "Answer in a line."},
            {"role": "user", "content": "What does it fire on?"},
        ],
        "max_tokens": 1055,
        "temperature": 0.7,
        "seed": 4,
        "logprobs": True,
        "top_logprobs": 3,
    }
    assert all(body.keys() == {"model", "messages", "max_tokens"} for body in others)
    assert server.seen[0].key == request_key(request, model="planted+thinking=1000", endpoint=server.url)
    assert [token.token for token in reply.logprobs] == pieces(PLANTED)
    assert dict(reply.logprobs[0].top) == {"the": -0.1, "the~1": -3.0, "the~2": -4.0}
    assert (reply.input_tokens, reply.output_tokens) == server.paid[server.seen[0].key]


def test_openai_has_its_own_name_for_the_limit() -> None:
    for endpoint, limit in (("https://api.openai.com/v1", "max_completion_tokens"), ("http://x/v1", "max_tokens")):
        dialect = open_dialect(endpoint, limit="auto", temperature_fixed=False)
        assert Wire("m", endpoint, dialect=dialect).chat(chat())[limit] == 300


def test_parameters_of_requests_side_by_side_stay_apart() -> None:
    wanted = {f"request {n}": 10 + n for n in range(100)}
    with scripted(delay=0.01) as server:
        llm = client(server)
        replies = [llm.submit(chat(text, max_tokens=most)) for text, most in wanted.items()]
        assert all(reply.result().status == "ok" for reply in replies)
        llm.close()
    assert {seen.body["messages"][1]["content"]: seen.body["max_tokens"] for seen in server.seen} == wanted


def test_a_limit_of_tokens_cuts_only_its_own_reply() -> None:
    with scripted() as server:
        llm = client(server)
        short, long = llm.submit(chat(max_tokens=2)), llm.submit(chat(max_tokens=200))
        assert (short.result().status, short.result().text) == ("truncated", "the neuron")
        assert long.result().text == PLANTED
        llm.close()


def test_64_in_flight_and_never_more() -> None:
    """How near this comes to what the server allows is measured by benchmarks/throughput.py."""
    with FaultServer(delay=1.5) as server:
        llm = client(server)
        replies = [llm.submit(chat(f"request {n}")) for n in range(128)]
        assert all(reply.result().status == "ok" for reply in replies)
        llm.close()
    assert server.most_busy == 64


def test_one_in_five_fails_and_all_is_answered_and_paid_once() -> None:
    kinds = ("429", "429:20ms", "500", "503", "drop", "malformed", "refusal", "empty", "truncated", "error-word")
    with FaultServer(faults=0.2, kinds=kinds, seed=1, delay=0.02) as server:
        llm = client(server, attempts=12)
        requests = [chat(f"request {n}") for n in range(200)]
        replies = [reply.result() for reply in [llm.submit(request) for request in requests]]
        llm.close()
        for request, reply in zip(requests, replies, strict=True):
            key = request_key(request, model="planted", endpoint=server.url)
            said = {"refused": "refusal", "empty": "empty", "truncated": "truncated"}
            assert said.get(reply.status, "error-word" if "error" in reply.text else "ok") == next(
                seen.fault for seen in reversed(server.seen) if seen.key == key
            )
            assert server.good[key] == 1
            assert server.paid[key] == (reply.input_tokens, reply.output_tokens)
    assert {reply.status for reply in replies} == {"ok", "refused", "empty", "truncated"}


def test_a_flow_halves_once_per_round_trip_and_widens_again() -> None:
    flow = Flow(64)

    def round_trip(count: int, *, throttled: bool) -> int:
        """The limit after so many requests that are all under way before the first ends."""
        together = Barrier(count)

        def one(_: int) -> None:
            with suppress(KeyError), flow.place(throttled=KeyError):
                together.wait(timeout=600)
                if throttled:
                    raise KeyError

        with ThreadPoolExecutor(count) as pool:
            list(pool.map(one, range(count)))
        return flow.limit

    assert [round_trip(flow.limit, throttled=True) for _ in range(7)] == [32, 16, 8, 4, 2, 1, 1]
    widths = [round_trip(flow.limit, throttled=False) for _ in range(12)]
    assert widths == sorted(widths)
    assert widths[0] > 1
    assert widths[-1] == 64


def test_the_client_narrows_on_429_and_widens_on_success() -> None:
    with scripted(*["429:10ms"] * 3) as server:
        llm = client(server, in_flight=16)
        assert llm.in_flight == 16
        llm.submit(chat()).result()
        narrowed = llm.in_flight
        for n in range(30):
            llm.submit(chat(f"request {n}")).result()
        assert narrowed < 5
        assert llm.in_flight > narrowed
        llm.close()


def test_who_waits_for_a_retry_holds_up_nobody() -> None:
    with scripted(*["503:30"] * 4) as server:
        llm = client(server, in_flight=4)
        stuck = [llm.submit(chat(f"stuck {n}")) for n in range(4)]
        while len(server.seen) < 4:
            time.sleep(0.01)
        assert llm.submit(chat("free")).result(timeout=600).status == "ok"
        llm.close()
    for future in stuck:
        with pytest.raises(CancelledError):
            future.result(timeout=600)


def test_closing_awaits_what_is_with_the_server_and_drops_the_rest() -> None:
    with scripted(delay=0.5) as server:
        llm = client(server, in_flight=2)
        futures = [llm.submit(chat(f"request {n}")) for n in range(10)]
        while server.busy < 2:
            time.sleep(0.01)
        llm.close()
    assert [future.done() and not future.cancelled() and future.exception() is None for future in futures].count(
        True
    ) == 2
    assert sum(server.attempts.values()) == 2


def test_probes_through_prompt_logprobs() -> None:
    probe = Probe(ids=(5, 1, 7, 2), positions=(1, 3), choices=(0, 3, 10, 500))
    with FaultServer() as server:
        reply = ask(server, probe, prompt_logprobs=True)
    assert reply.status == "ok"
    assert reply.input_tokens == 5
    for row, prefix in zip(reply.probabilities, ([5, 1], [5, 1, 7, 2]), strict=True):
        told = predict(prefix)
        assert row[:3] == pytest.approx([2.718281828459045 ** told[choice] for choice in (0, 3, 10)])
        assert row[3] is None


def test_probes_want_a_server_that_answers_them() -> None:
    with FaultServer() as server, pytest.raises(NeuronautError, match="prompt_logprobs"):
        ask(server, Probe((1, 2), (1,), (0,)))


def test_usage_is_estimated_where_the_server_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted() as server:
        told = server.chat
        monkeypatch.setattr(server, "chat", lambda *args: {k: v for k, v in told(*args).items() if k != "usage"})
        reply = ask(server)
    assert reply.raw["usage"] == "estimated"
    assert reply.output_tokens == estimate(PLANTED)
    assert reply.input_tokens > 10


def test_an_estimate_of_english_is_near_a_quarter_of_its_letters() -> None:
    prose = " ".join(re.findall(r"[^|`#\n]+", (Path(__file__).parents[1] / "README.md").read_text()))
    prose = " ".join(word for word in prose.split() if word.strip(".,;:()").isalpha())
    assert 0.8 < estimate(prose) / (len(prose) / 4) < 1.2


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("the cat sat.", 4), ("123456", 2), ("(self, x)", 4), ("\n" * 30, 2), ('{"12": 1}', 6)],
)
def test_estimates(text: str, tokens: int) -> None:
    assert estimate(text) == tokens


def test_a_named_tokenizer_counts() -> None:
    llm = OpenAIChat(
        "planted", base_url="http://localhost:1/v1", tokenizer=str(Path(__file__).parents[1] / "data/demo")
    )
    text = "def __init__(self):\n    return None\n"
    assert llm.count(chat(text)) == sum(len(llm.tokenizer.encode(said)) for said in ("Answer in a line.", text))
    llm.close()


def test_how_a_model_is_asked_is_part_of_its_name() -> None:
    """Room to think and a temperature of its own change what is answered, so they change what an answer is known by."""
    with FaultServer() as server:
        plain, thinking, fixed = client(server), client(server, thinking=500), client(server, temperature_fixed=True)
        names = {llm.model for llm in (plain, thinking, fixed)}
        assert len(names) == 3
        for llm in (plain, thinking, fixed):
            llm.submit(chat()).result()
            llm.close()
        assert len({one.key for one in server.seen}) == 3
        assert len({one.body["model"] for one in server.seen}) == 1
    assert find_price("gpt-5-mini+thinking=500", "https://api.openai.com/v1") == find_price(
        "gpt-5-mini", "https://api.openai.com/v1"
    )
