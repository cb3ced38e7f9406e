"""Claims and the spool: no request is sent twice by two processes, and no reply is lost to another's lock."""

import json
import logging
import multiprocessing
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.data.store import calls as calls_module
from neuronaut.data.store import claims
from neuronaut.data.store import database as database_module
from neuronaut.data.store.calls import Call, CallLog
from neuronaut.data.store.spool import Spool
from neuronaut.data.store.store import Store
from neuronaut.llm import client as client_module
from neuronaut.llm.client import LLMClient
from neuronaut.llm.openai.chat import OpenAIChat
from neuronaut.llm.prices import Budget
from neuronaut.llm.tasks import LLMTask
from neuronaut.llm.types import Chat, Message, Reply, Sampling
from neuronaut.subject.errors import NeuronautError
from tests.stored import explanation, harvest_result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store(tmp_path / "shared.db") as store:
        store.write_harvest(harvest_result())
    return tmp_path / "shared.db"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are given up at once, and looked at often."""
    monkeypatch.setattr(calls_module, "RECORD_SECONDS", 0.05)
    monkeypatch.setattr(database_module, "_TRY_SECONDS", 0.02)
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(client_module, "LOOK_SECONDS", 0.02)


def call(key: str, status: str = "ok", reply: str = "said") -> Call:
    return Call(
        key=key,
        model="m",
        endpoint="e",
        prompt="p",
        request="{}",
        status=status,
        reply=reply,
        reason=None if status == "ok" else status,
        input_tokens=3,
        output_tokens=2,
        seconds=0.5,
        cost=None,
        detail={"logprobs": [], "probabilities": [], "calls": [], "raw": {}},
    )


def chat(text: str) -> Chat:
    return Chat((Message("user", text),), Sampling(max_tokens=50), prompt="p")


def ask(*texts: str) -> LLMTask[list[Reply]]:
    return list((yield [chat(text) for text in texts]))


@contextmanager
def asking(path: Path, server: FaultServer, **options: Any) -> Iterator[LLMClient]:
    """A client with connections of its own, as another process has them."""
    attempts = options.pop("attempts", 6)
    llm = OpenAIChat("planted", base_url=server.url, backoff=0.02, longest_backoff=0.05, attempts=attempts)
    with Store(path) as store:
        try:
            yield LLMClient(llm, store.calls, **options)
        finally:
            llm.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another writer holds the database."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("COMMIT")
        other.close()


# Claims


def test_of_two_logs_one_has_the_claim_until_it_lets_go(path: Path) -> None:
    with Store(path) as one, Store(path) as two:
        assert one.calls.claim(["a", "b"]) == {} == one.calls.claim(["a"])
        wanted = f"that another process ({os.getpid()}) has asked for"
        assert two.calls.claim(["a", "b", "c"]) == {"a": wanted, "b": wanted}
        one.calls.release(["a", "c"])
        one.calls.record(call("b"))
        assert two.calls.claim(["a", "b"]) == {}
        assert one.calls.claim(["c"]).keys() == {"c"}


def test_a_lease_that_ran_out_is_free_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEW_SECONDS", 1e6)
    monkeypatch.setattr(claims, "LEASE_SECONDS", 0.0)
    with Store(path) as one, Store(path) as two:
        assert one.calls.claim(["a"]) == two.calls.claim(["a"]) == {}
        monkeypatch.setattr(claims, "LEASE_SECONDS", 60.0)
        assert two.calls.claim(["a"]) == {}
        assert one.calls.claim(["a"]).keys() == {"a"}
        # Who lost a claim cannot take it from the next one.
        one.calls.release(["a"])
        assert one.calls.claim(["a"]).keys() == {"a"}


def read_lease(path: Path, key: str) -> float:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT leased_until FROM llm_claims WHERE key = ?", [key]).fetchone()[0]


def test_a_lease_is_renewed_while_the_request_is_under_way(path: Path) -> None:
    with Store(path) as store:
        store.calls.claim(["a", "b"])
        first = read_lease(path, "a")
        waited = threading.Event()
        while read_lease(path, "a") == first:
            waited.wait(0.02)
        assert read_lease(path, "a") > first


def _claim_and_die(path: Path) -> None:
    Store(path).calls.claim(["a"])
    os._exit(9)


def test_the_claim_of_a_process_that_is_gone_is_free(path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_claim_and_die, args=(path,))
    process.start()
    process.join()
    with Store(path) as store:
        assert store.db.conn.execute("SELECT pid FROM llm_claims").fetchone()[0] == process.pid
        # On another machine a number of a process says nothing.
        store.db.conn.execute("UPDATE llm_claims SET machine = 'elsewhere 1'")
        assert "on elsewhere)" in store.calls.claim(["a"])["a"]
        store.db.conn.execute("UPDATE llm_claims SET machine = ?", [claims.Owner().machine])
        assert store.calls.claim(["a"]) == {}


def test_a_batch_leaves_out_what_others_ask(path: Path) -> None:
    requests = [(key, "p", "{}") for key in "abcd"]
    with Store(path) as one, Store(path) as two:
        one.calls.claim(["a"])
        batch, keys = two.calls.begin_batch("m", "e", requests[:3])
        assert keys == {"b", "c"} == two.calls.batch_requests(batch).keys()
        assert one.calls.begin_batch("m", "e", requests)[1] == {"a", "d"}
        assert one.calls.begin_batch("m", "e", requests)[1] == set()
        assert sum(row["requests"] for row in one.calls.batches("m", "e")) == 4
        assert two.calls.claim(["b"]) == {}


# Two clients


def test_two_clients_send_each_request_once_and_pay_for_their_own(path: Path) -> None:
    texts = [f"question {number}" for number in range(12)]
    replies: list[list[Reply]] = []

    def work(client: LLMClient, order: Sequence[str]) -> None:
        replies.extend(client.run(ask(text) for text in order))

    with FaultServer(delay=0.05) as server, asking(path, server) as one, asking(path, server) as two:
        threads = [threading.Thread(target=work, args=(client, texts)) for client in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.seen) == len(texts)
    assert one.spent.calls + two.spent.calls == len(texts) == one.spent.cached + two.spent.cached
    assert len(replies) == 2 * len(texts) and {reply.status for (reply,) in replies} == {"ok"}


@pytest.fixture
def held(path: Path) -> Iterator[tuple[Store, Chat]]:
    """A request that another process has claimed."""
    with Store(path) as other:
        yield other, chat("the one")


def run_beside(client: LLMClient, tasks: Sequence[LLMTask[list[Reply]]]) -> tuple[threading.Thread, list[list[Reply]]]:
    results: list[list[Reply]] = []
    thread = threading.Thread(target=lambda: results.extend(client.run(tasks)))
    thread.start()
    return thread, results


def test_who_waits_says_for_whom_and_is_not_charged(
    path: Path, held: tuple[Store, Chat], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "TELL_SECONDS", 0.05)
    other, request = held
    with FaultServer() as server, asking(path, server, budget=Budget(calls=1)) as client:
        other.calls.claim([client.key(request), client.key(chat("two"))])
        thread, results = run_beside(client, [ask("the one"), ask("two"), ask("my own")])
        told = f"waits for 2 replies that another process ({os.getpid()}) has asked for"
        pause = threading.Event()
        while told not in caplog.text:
            pause.wait(0.02)
        for text in ("the one", "two"):
            other.calls.record(call(client.key(chat(text)), reply=f"other: {text}"))
        thread.join()
        assert len(server.seen) == 1
    assert sorted(reply.text for (reply,) in results)[1:] == ["other: the one", "other: two"]
    assert (client.spent.calls, client.spent.cached) == (1, 2)
    assert caplog.text.count("waits for") == 1


@pytest.mark.parametrize("status", ["refused", "truncated", "empty"])
def test_the_reply_of_another_stands_also_where_it_is_no_answer(
    path: Path, held: tuple[Store, Chat], status: str
) -> None:
    other, request = held
    with FaultServer() as server, asking(path, server) as client:
        other.calls.claim([client.key(request)])
        thread, results = run_beside(client, [ask("the one")])
        other.calls.record(call(client.key(request), status))
        thread.join()
        assert not server.seen and results[0][0].status == status
    # The next command asks again, as ever.
    with FaultServer(port=server.port) as server, asking(path, server) as client:
        assert client.ask(ask("the one"))[0].status == "ok"  # pyright: ignore[reportOptionalSubscript]


@pytest.mark.parametrize("how", ["failed", "released", "gone"])
def test_where_the_other_has_no_reply_the_request_is_sent(path: Path, held: tuple[Store, Chat], how: str) -> None:
    other, request = held
    with FaultServer() as server, asking(path, server) as client:
        key = client.key(request)
        other.calls.claim([key])
        thread, results = run_beside(client, [ask("the one")])
        if how == "failed":
            other.calls.record(call(key, "failed"))
        elif how == "released":
            other.calls.release([key])
        else:
            other.db.conn.execute("UPDATE llm_claims SET leased_until = 0, owner = 'gone'")
        thread.join()
        assert len(server.seen) == 1 and results[0][0].status == "ok"
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM llm_claims").fetchone()[0] == 0


def test_what_is_claimed_and_not_sent_is_given_up(path: Path) -> None:
    with FaultServer() as server, asking(path, server, budget=Budget(calls=2)) as client:
        assert len(list(client.run(ask(str(number)) for number in range(9)))) == 2
    with FaultServer(script=["401", "401"]) as server, asking(path, server) as client:
        with pytest.raises(NeuronautError):
            client.ask(ask("x", "y"))
        client.llm.close()
        with Store(path) as store:
            assert store.db.conn.execute("SELECT count(*) FROM llm_claims").fetchone()[0] == 0


# The spool


def test_a_reply_that_cannot_be_written_waits_beside_the_database(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(str(path))
    with Store(path) as store:
        with locked(path):
            for key in "ab":
                store.calls.record(call(key))
            assert store.calls.claim(["x"]) == {"x": f"until another process has written to {path}"}
            assert store.calls.answers(["a", "b", "c"]).keys() == {"a", "b"}
            assert not store.calls.rows() and store.status()["spooled"] == 2
            # A command that cannot write them leaves them, and another log finds the answers.
            with Store(path) as other:
                assert other.calls.answers(["a"])["a"].reply == "said"
        assert caplog.text.count("replies wait in") == 1
        store.calls.record(call("c"))
        assert [row["key"] for row in store.calls.rows()] == ["c", "b", "a"]
        assert not spool.exists() and store.status()["spooled"] == 0


@pytest.mark.parametrize("status", ["ok", "refused"])
def test_the_next_command_writes_the_spool_once(path: Path, status: str) -> None:
    with locked(path), Store(path) as store:
        store.calls.record(call("a", status))
    spool = Spool(str(path))
    content = spool.path.read_bytes()
    with Store(path) as store:
        assert [row["status"] for row in store.calls.rows()] == [status] and not spool.exists()
        # A kill between the commit and the end of the file leaves it there.
        spool.path.write_bytes(content)
        store.calls.record(call("b"))
        assert [row["key"] for row in store.calls.rows()] == ["b", "a"]


def test_the_run_itself_writes_it_without_a_further_reply(path: Path) -> None:
    with Store(path) as store:
        store.calls.claim(["a"])
        with locked(path):
            store.calls.record(call("a"))
        pause = threading.Event()
        while Spool(str(path)).exists():
            pause.wait(0.02)
        assert [row["key"] for row in store.calls.rows()] == ["a"]


def test_a_line_that_a_kill_cut_off_is_left_out_and_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(str(path))
    with locked(path), Store(path) as store:
        store.calls.record(call("a"))
        with spool.path.open("ab") as file:
            file.write(spool.path.read_bytes()[:100])
        store.calls.record(call("b"))
        with spool.path.open("ab") as file:
            file.write(b'{"key": "c", "reply": "\xc3')
    with Store(path) as store:
        assert {row["key"] for row in store.calls.rows()} == {"a", "b"}
    assert "a kill had cut off and are left out: 2" in caplog.text


def test_a_reply_that_comes_after_the_end_is_kept(path: Path) -> None:
    with Store(path) as store:
        log = store.calls
    log.record(call("late"))
    with Store(path) as store:
        assert [row["key"] for row in store.calls.rows()] == ["late"]


def test_backup_and_merge_take_the_spool_along(path: Path, tmp_path: Path) -> None:
    copy, mine = tmp_path / "copy.db", tmp_path / "mine.db"
    with locked(path), Store(path) as store:
        store.calls.record(call("a"))
        store.backup(copy)
    assert Spool(str(copy)).exists() and Spool(str(path)).exists()
    with Store(mine) as store:
        assert store.merge(path)["llm_calls"] == 1
        assert store.merge(copy)["llm_calls"] == 0
    assert Spool(str(path)).exists()
    with Store(copy) as store:
        assert [row["key"] for row in store.calls.rows()] == ["a"]


def test_a_spool_that_cannot_be_written_is_one_line(path: Path) -> None:
    with Store(path) as store:
        Spool(str(path)).path.mkdir()
        with locked(path), pytest.raises(NeuronautError, match="cannot be written") as told:
            store.calls.record(call("a"))
        Spool(str(path)).path.rmdir()
    assert "\n" not in str(told.value)


def test_of_replies_that_arrive_together_one_waits_for_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a process that is killed while another holds the lock has its replies on the disk."""
    waited: list[float] = []
    real = calls_module.transaction

    def transaction(*args: Any, patience: float) -> Any:
        waited.append(patience)
        return real(*args, patience=patience)

    with Store(path) as store, locked(path):
        monkeypatch.setattr(calls_module, "transaction", transaction)
        threads = [threading.Thread(target=store.calls.record, args=(call(str(n)),)) for n in range(8)]
        with store.calls._lock:
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join()
        assert store.status()["spooled"] == 8
        assert waited.count(0) >= 7


def test_a_run_goes_on_under_the_lock_of_another_writer(path: Path) -> None:
    """The lock falls while the first reply is under way, and lifts once it is in the spool."""
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def answer(messages: Sequence[dict[str, Any]]) -> str:
        if messages[0]["content"] == "first":
            writer.execute("BEGIN IMMEDIATE")
        return "said: " + messages[0]["content"]

    def chain() -> LLMTask[list[str]]:
        (first,) = yield [chat("first")]
        (second,) = yield [chat("second " + first.text)]
        return [first.text, second.text]

    with FaultServer(answer=answer) as server, asking(path, server) as client:
        results: list[list[str]] = []
        thread = threading.Thread(target=lambda: results.extend(client.run([chain()])))
        thread.start()
        pause = threading.Event()
        while not Spool(str(path)).exists():
            pause.wait(0.02)
        assert json.loads(Spool(str(path)).path.read_text())["reply"] == "said: first"
        writer.execute("COMMIT")
        thread.join()
        assert len(server.seen) == 2
    writer.close()
    assert results == [["said: first", "said: second said: first"]]
    with Store(path) as store:
        assert [row["status"] for row in store.calls.rows()] == ["ok", "ok"]


def test_a_writer_waits_for_its_turn_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database_module, "TELL_SECONDS", 0.05)
    with Store(path) as store:
        with locked(path):
            thread = threading.Thread(target=lambda: store.add_explanation(explanation()))
            thread.start()
            pause = threading.Event()
            while f"waits for another process that is writing to {path}" not in caplog.text:
                pause.wait(0.02)
        thread.join()
        assert store.status()["explanations"] == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_log_in_memory_claims_and_spools_nothing() -> None:
    with Store(":memory:") as store:
        assert isinstance(store.calls, CallLog) and store.calls.claim(["a"]) == {}
        store.calls.record(call("a"))
        assert store.status()["spooled"] == 0
    assert not Path(":memory:-spool").exists()
