"""Labelling with a language model: a server that reads prompts answers over HTTP, the truth is planted."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.activations import neurons
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.store.calls import Call, CallLog
from neuronaut.data.store.store import Store
from neuronaut.explainers.highlight import Highlight
from neuronaut.explainers.oneshot import Oneshot
from neuronaut.labelling import inputs
from neuronaut.labelling.agenda import WorkerItem
from neuronaut.labelling.batch_api import collect, send
from neuronaut.labelling.estimate import estimate
from neuronaut.labelling.label import LabelJob, Outcome, Result, label, performing, score, score_from_stored
from neuronaut.labelling.processes import Processes
from neuronaut.labelling.refine import Refine
from neuronaut.labelling.reproduce import reproduce
from neuronaut.labelling.selection import BestOf
from neuronaut.llm.client import LLMClient
from neuronaut.llm.openai.batch import BatchAPI
from neuronaut.llm.openai.chat import OpenAIChat
from neuronaut.llm.prices import Price
from neuronaut.llm.tasks import LLMTask
from neuronaut.scorers.controls import ALL, NONE
from neuronaut.scorers.detection import Detection
from neuronaut.scorers.llm_simulation import LLMSimulator
from neuronaut.scorers.simulation import RuleSimulator
from neuronaut.scorers.simulation_json import JsonBackend
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.planted import LAYER, Planted, build

NAMES = ("day", "colour", "river", "price")
TRUE = {"day": " Monday", "colour": " red", "river": " river"}


@cache
def planted() -> Planted:
    return build(documents=60)


@cache
def subject() -> Subject:
    return Subject(planted().model, planted().tokenizer, name="planted")


def features(*names: str) -> list[Feature]:
    index = {neuron.name: neuron.index for neuron in planted().neurons}
    return [Feature(SourceId("planted", f"mlp.{LAYER}"), index[name]) for name in names or NAMES]


def reader(messages: Sequence[dict[str, Any]]) -> str:
    """Explains by the marked words, and judges and simulates by the words between backticks in an explanation."""
    system, last = messages[0]["content"], messages[-1]["content"]
    if "simulate one neuron" in system:
        words = re.findall(r"`([^`]+)`", last.partition("The text has")[0])
        lines = re.findall(r"^(\d+)\t(.*)$", last, re.MULTILINE)
        return json.dumps({"activations": [[int(n), 10 * (token in words)] for n, token in lines]})
    if "check a description" in system:
        words = re.findall(r"`([^`]+)`", last.partition("Excerpts:")[0])
        lines = re.findall(r"^(\d+)\t(.*)$", last, re.MULTILINE)
        return json.dumps({n: int(any(word in text for word in words)) for n, text in lines})
    if "test a hypothesis" in system:
        return "\n".join(["+ on Monday a red river"] * 3 + ["- the small house"] * 3)
    marked = Counter(re.findall(r"«([^»]*)»", last))
    words = [word for word, count in marked.most_common(8) if count > 1]
    return "[EXPLANATION]: the words " + " and ".join(f"`{word}`" for word in words)


@cache
def port() -> int:
    """A free port, the same for all servers: where a model is asked is part of what an answer is known by."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def served(**options: Any) -> FaultServer:
    return FaultServer(**{"answer": reader, "port": port()} | options)


def open_chat(server: FaultServer, **options: Any) -> OpenAIChat:
    return OpenAIChat("reader", base_url=server.url, backoff=0.02, longest_backoff=0.05, attempts=12, **options)


def scorers() -> list[Any]:
    return [LLMSimulator(JsonBackend(), windows=3, controls=ALL), Detection(controls=ALL), RuleSimulator(name="rule")]


def in_order(results: Iterable[Result]) -> list[Result]:
    """Results by the order of their features: those that wait for replies end in any order."""
    order = features()
    return sorted(results, key=lambda result: order.index(result.feature))


def run(
    store: Store, server: FaultServer, *, names: Sequence[str] = NAMES, explainer: Any = None, **options: Any
) -> list[Result]:
    llm = open_chat(server)
    try:
        client = LLMClient(llm, store.calls, price=Price(1.0, 2.0))
        made = explainer or Highlight()
        return in_order(
            label(features(*names), store, subject(), explainer=made, scorers=scorers(), client=client, **options)
        )
    finally:
        llm.close()


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    before = torch.get_num_threads(), inputs.BACKGROUND, inputs.RANDOM_WINDOWS
    torch.set_num_threads(1)
    inputs.BACKGROUND, inputs.RANDOM_WINDOWS = 96, 48
    yield
    torch.set_num_threads(before[0])
    inputs.BACKGROUND, inputs.RANDOM_WINDOWS = before[1:]


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llm") / "harvested.db"
    with Store(path) as store:
        harvest(subject(), [f"mlp.{LAYER}"], Corpus.of("planted", planted().corpus), store, window=32)
    return path


@pytest.fixture
def database(harvested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(harvested, tmp_path / "one.db"))


@pytest.fixture(scope="module")
def whole(harvested: Path) -> tuple[Path, list[Result]]:
    """Everything labelled by one call that nothing stopped."""
    path = Path(shutil.copy(harvested, harvested.with_name("whole.db")))
    with Store(path) as store, served() as server:
        return path, run(store, server)


def read_results(path: Path) -> list[list[tuple[object, ...]]]:
    """Explanations and scores, without row ids and times."""
    explanations = """SELECT feature_id, text, status, reason, rule, explainer, key, seen, provenance
        FROM explanations ORDER BY 1, 2"""
    scores = """SELECT feature_id, scorer, examples, metric, value, scores.reason, ci_low, n, coverage, baselines
        FROM scores JOIN explanations ON explanations.id = explanation_id ORDER BY 1, 2, 3, 4"""
    with Store(path) as store:
        return [[tuple(row) for row in store.db.execute(sql)] for sql in (explanations, scores)]


def test_planted_features_are_explained_and_scored(whole: tuple[Path, list[Result]]) -> None:
    results = dict(zip(NAMES, whole[1], strict=True))
    for name, word in TRUE.items():
        result = results[name]
        assert result.explanation.text is not None and f"`{word}`" in result.explanation.text
        by = {(s.scorer, s.examples, s.metric): s for s in result.scores}
        headline = by["simulation", "top_random", "correlation"]
        assert headline is result.score and headline.value is not None and headline.value > 0.6
        assert set(headline.baselines) == {"token_rule", "token_table", "empty", "shuffled"}
        judged = by["detection", "windows", "balanced_accuracy"]
        assert judged.value is not None and judged.value > 0.8
        assert judged.baselines["empty"] == 0.5 and (judged.baselines["shuffled"] or 0) < 0.75
        assert ("simulation", "top_random", "explained_variance") not in by
        assert headline.provenance["llm"] == "reader" and result.explanation.provenance["llm"] == "reader"


def test_a_second_run_asks_nothing(whole: tuple[Path, list[Result]], database: Path) -> None:
    shutil.copy(whole[0], database)
    with Store(database) as store, served() as server:
        assert run(store, server) == []
        again = run(store, server, redo=True)
        assert not server.seen
    assert [r.explanation.text for r in again] == [r.explanation.text for r in whole[1]]


def labelling_run(path: str, url: str, after: str) -> None:
    """A process that labels once it is told to; it dies when so many of its replies are in the log."""
    torch.set_num_threads(1)
    inputs.BACKGROUND, inputs.RANDOM_WINDOWS = 96, 48
    record, recorded = CallLog.record, 0

    def dying(self: CallLog, call: Call) -> None:
        nonlocal recorded
        record(self, call)
        recorded += 1
        if str(recorded) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    CallLog.record = dying
    subject()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    with Store(path) as store:
        llm = OpenAIChat("reader", base_url=url, in_flight=8, backoff=0.02, longest_backoff=0.05, attempts=12)
        client = LLMClient(llm, store.calls, price=Price(1.0, 2.0))
        list(label(features(), store, subject(), explainer=Highlight(), scorers=scorers(), client=client))
        llm.close()


@contextmanager
def runs(number: int, path: Path, server: FaultServer, *, after: str = "") -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes that begin to label at once; they are at their end when the block is."""
    call = f"labelling_run({str(path)!r}, {server.url!r}, {after!r})"
    command = [sys.executable, "-c", f"from tests.test_label_llm import labelling_run; {call}"]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        begun = [
            stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) for _ in range(number)
        ]
        for process in begun:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield begun
        for process in begun:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()


def read_log(path: Path) -> set[str]:
    """Keys of the good answers."""
    with Store(path) as store:
        return {row["key"] for row in store.calls.rows(status="ok")}


def test_killed_runs_end_like_an_undisturbed_one_and_pay_nothing_twice(
    whole: tuple[Path, list[Result]], database: Path
) -> None:
    in_log: list[tuple[int, set[str]]] = []
    with served(faults=0.2, kinds=("429", "500", "drop", "malformed"), hang=1) as server:
        for after in ("1", "3", "40"):
            with runs(1, database, server, after=after) as (process,):
                pass
            assert process.returncode == -signal.SIGKILL
            in_log.append((len(server.seen), read_log(database)))
        with Store(database) as store:
            run(store, server)
        for seen, keys in in_log:
            assert len(keys) > 0
            assert not {one.key for one in server.seen[seen:]} & keys, "what was in the log was asked again"
    assert read_results(database) == read_results(whole[0])


def test_two_runs_at_once_pay_each_call_once(whole: tuple[Path, list[Result]], database: Path) -> None:
    with served(delay=0.05) as server:
        with runs(2, database, server) as both:
            pass
        asked = Counter(one.key for one in server.seen)
    assert [process.returncode for process in both] == [0, 0]
    assert set(asked.values()) == {1} and asked.keys() == read_log(whole[0]) == read_log(database)
    assert read_results(database) == read_results(whole[0])


@pytest.mark.parametrize("after", [3, 30])
def test_of_two_runs_one_is_killed_and_the_other_ends_like_an_undisturbed_one(
    whole: tuple[Path, list[Result]], database: Path, after: int
) -> None:
    """One is killed as the server makes its reply of this number, to whichever of them."""
    numbers, under_way = count(1), set[str]()

    def answer(messages: Sequence[dict[str, Any]]) -> str:
        if next(numbers) == after:
            killed.send_signal(signal.SIGSTOP)
            with closing(sqlite3.connect(database)) as connection:
                claimed = connection.execute("SELECT key FROM llm_claims WHERE pid = ?", [killed.pid])
                under_way.update(key for (key,) in claimed)
            killed.kill()
        return reader(messages)

    with served(answer=answer, faults=0.2, kinds=("429", "500", "drop", "malformed"), hang=1, delay=0.05) as server:
        with runs(2, database, server) as (killed, other):
            pass
        good = Counter(one.key for one in server.seen if one.good)
    assert (killed.returncode, other.returncode) == (-signal.SIGKILL, 0)
    assert good.keys() == read_log(database) == read_log(whole[0])
    assert {key for key, times in good.items() if times > 1} <= under_way and max(good.values()) <= 2
    assert read_results(database) == read_results(whole[0])
    with Store(database) as store:
        assert store.db.execute("SELECT count(*) FROM llm_claims").fetchone()[0] == 0


@contextmanager
def asking_worker(path: str, url: str, marker: Path) -> Iterator[Callable[[WorkerItem], LLMTask[list[Outcome]]]]:
    """A worker whose judges ask; the first that has a reply to its second question dies of it."""
    torch.set_num_threads(1)
    inputs.BACKGROUND, inputs.RANDOM_WINDOWS = 96, 48
    llm = OpenAIChat("reader", base_url=url)
    with Store(path) as store:
        job = LabelJob(store, subject(), scorers(), LLMClient(llm, store.calls), {}, explainer=Highlight())
        perform, answered = performing(job), count()

        def dying(item: WorkerItem) -> LLMTask[list[Outcome]]:
            task, replies = perform(item), None
            while True:
                try:
                    requests = next(task) if replies is None else task.send(replies)
                except StopIteration as stop:
                    return stop.value
                replies = yield requests
                if next(answered) == 1 and not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

        yield dying
    llm.close()


def test_workers_ask_through_one_client_and_a_lost_one_costs_no_call(
    whole: tuple[Path, list[Result]], database: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "died"
    with served(faults=0.2, kinds=("429", "500", "drop", "malformed"), hang=1) as server, Store(database) as store:
        opener = partial(asking_worker, str(database), server.url, marker)
        with Processes(2, opener, threads=1) as workers:
            results = run(store, server, workers=workers)
        good = Counter(one.key for one in server.seen if one.good)
        assert len(store.calls.rows(status="ok")) == len(good)
    assert marker.exists() and len(results) == len(NAMES)
    assert set(good.values()) == {1} and good.keys() == read_log(whole[0])
    assert read_results(database) == read_results(whole[0])


@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
def test_a_dry_run_tells_the_cost_within_a_fifth(database: Path, names: Sequence[str]) -> None:
    with Store(database) as store, served() as server:
        llm = open_chat(server)
        client = LLMClient(llm, store.calls, price=Price(1.0, 2.0), mode="rehearsal")
        plan = estimate(features(*names), store, subject(), explainer=Highlight(), scorers=scorers(), client=client)
        llm.close()
        assert not server.seen and plan.left == len(names)
        run(store, server, names=names)
        rows = store.calls.rows()
    assert plan.calls == pytest.approx(len(rows), rel=0.2)
    assert plan.input_tokens == pytest.approx(sum(row["input_tokens"] for row in rows), rel=0.2)
    assert plan.usd == pytest.approx(sum(row["cost"] for row in rows), rel=0.2)


def test_metrics_come_again_from_stored_judgements(whole: tuple[Path, list[Result]], database: Path) -> None:
    shutil.copy(whole[0], database)
    with Store(database) as store:
        store.db.execute("DELETE FROM scores WHERE scorer IN ('simulation', 'detection')")
        again = list(score_from_stored(features(), store))
        for before, after in zip(whole[1], again, strict=True):
            kept = [s for s in before.scores if s.scorer != "rule"]
            assert [(s.scorer, s.metric, s.value, s.ci_low, s.baselines) for s in sorted(after.scores, key=str)] == [
                (s.scorer, s.metric, s.value, s.ci_low, s.baselines) for s in sorted(kept, key=str)
            ]
    assert read_results(database)[1] == read_results(whole[0])[1]


def test_what_was_asked_is_rebuilt_byte_for_byte(whole: tuple[Path, list[Result]], database: Path) -> None:
    shutil.copy(whole[0], database)
    (source,) = neurons(subject(), [f"mlp.{LAYER}"])
    with Store(database) as store:
        stored = store.best(features("river")[0])
        assert stored is not None
        reproduced = reproduce(store, subject(), source, stored, Highlight())
        (request,) = reproduced.requests
        (call,) = [row for row in store.calls.rows() if row["key"] == request.key]
        assert [{"role": m.role, "content": m.content} for m in request.messages] == json.loads(call["request"])[
            "messages"
        ]
        assert reproduced.same and reproduced.text == stored.explanation.text
        with pytest.raises(NeuronautError, match="is not in the log"):
            reproduce(store, subject(), source, stored, Highlight(temperature=0.5))


def test_one_feature_scored_alone_has_a_control_from_the_database(
    whole: tuple[Path, list[Result]], database: Path
) -> None:
    shutil.copy(whole[0], database)
    with Store(database) as store, served() as server:
        llm = open_chat(server)
        judge = Detection(seed=1, controls=ALL)
        (result,) = score(features("river"), store, subject(), scorers=[judge], client=LLMClient(llm, store.calls))
        llm.close()
    assert {"empty", "shuffled"} == set(result.scores[0].baselines)


def test_the_best_of_several_is_chosen_on_select(database: Path) -> None:
    answers = iter(
        ["[EXPLANATION]: the words `small`", "[EXPLANATION]: the words ` river`", "[EXPLANATION]: no pattern"]
    )

    def varying(messages: Sequence[dict[str, Any]]) -> str:
        return next(answers) if "find out what one unit" in messages[0]["content"] else reader(messages)

    with Store(database) as store, served(answer=varying) as server:
        chooser = Detection(controls=NONE)
        best = BestOf([Highlight(draw=draw, temperature=1.0) for draw in (1, 2, 3)], chooser)
        (result,) = run(store, server, names=("river",), explainer=best)
    assert result.explanation.text == "the words ` river`"
    candidates = result.explanation.provenance["candidates"]
    assert isinstance(candidates, list) and len(candidates) == 3
    values = {c["text"]: c["select"] for c in candidates}
    assert values["the words ` river`"] > 0.9 and values[None] is None
    assert values["the words `small`"] is None, "whoever answers no to everything has not judged"
    assert result.explanation.explainer == "best-of-3:highlight"


@pytest.mark.parametrize(("revision", "kept"), [(" river", True), (" small", False)])
def test_a_revision_is_kept_only_if_it_predicts_select_better(database: Path, revision: str, kept: bool) -> None:
    def revising(messages: Sequence[dict[str, Any]]) -> str:
        if "correct a description" in messages[0]["content"]:
            assert "expected active, was" in messages[-1]["content"]
            return f"[EXPLANATION]: the words `{revision}`"
        if "find out what one unit" in messages[0]["content"]:
            return "[EXPLANATION]: the words ` stones`"
        return reader(messages)

    with Store(database) as store, served(answer=revising) as server:
        refine = Refine(Highlight(), LLMSimulator(JsonBackend(), windows=5, controls=NONE), rounds=1)
        (result,) = run(store, server, names=("river",), explainer=refine)
    (record,) = result.explanation.provenance["rounds"]  # pyright: ignore[reportGeneralTypeIssues]
    assert record["kept"] == kept and record["tests"].endswith("of 6 as expected")
    assert result.explanation.text == (f"the words `{revision}`" if kept else "the words ` stones`")


def test_a_batch_is_sent_left_and_collected(whole: tuple[Path, list[Result]], database: Path) -> None:
    with Store(database) as store, served(polls=2) as server:
        llm, api = (
            open_chat(server),
            BatchAPI("reader", base_url=server.url, api_key="k", backoff=0.02, longest_backoff=0.05),
        )
        done: list[Result] = []
        for _ in range(12):
            client = LLMClient(llm, store.calls, price=Price(1.0, 2.0), mode="deferred")
            if all(report.collected for report in collect(client, api)):
                results = label(features(), store, subject(), explainer=Highlight(), scorers=scorers(), client=client)
                done += list(results)
                if send(client, api) is None:
                    break
        assert len(server.batches) == 2 and len(done) == len(NAMES)
        assert not [one for one in server.seen if one.path.startswith("/chat")]
        assert store.calls.statistics()[0]["cost"] > 0
        api.close()
        llm.close()
    assert [r.explanation.text for r in in_order(done)] == [r.explanation.text for r in whole[1]]
    assert read_results(database)[1] == read_results(whole[0])[1]


def test_without_a_language_model_it_is_asked_for(database: Path) -> None:
    with Store(database) as store, pytest.raises(NeuronautError, match="-m openai:MODEL"):
        list(label(features("river"), store, subject(), explainer=Oneshot(), scorers=[]))


def test_what_was_not_answered_lowers_the_coverage_and_flags_the_score(database: Path) -> None:
    speechless: list[str] = []

    def silent_on_detection(messages: Sequence[dict[str, Any]]) -> str:
        last = messages[-1]["content"]
        if "check a description" in messages[0]["content"] and "` river`" in last and not speechless:
            speechless.append(last)
            return json.dumps(json.loads(reader(messages)) | dict.fromkeys("12345", "I cannot tell."))
        return reader(messages)

    with Store(database) as store, served(answer=silent_on_detection) as server:
        (result,) = run(store, server, names=("river",))
    judged = next(s for s in result.scores if (s.scorer, s.metric) == ("detection", "auroc"))
    assert 0 < judged.coverage < 0.95 and judged.flagged
    assert judged.coverage == 0.75 and judged.provenance["missing"] == {"unparsed": 5}
    simulated = next(s for s in result.scores if s.scorer == "simulation")
    assert simulated.coverage == 1.0 and not simulated.flagged
