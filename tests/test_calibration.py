"""Judges are calibrated before they count: who follows the description passes, whoever does not is refused."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.data.judges import identify_judge, name_judge
from neuronaut.data.records import Judgements
from neuronaut.data.store.store import Store
from neuronaut.llm.client import LLMClient
from neuronaut.llm.openai.chat import OpenAIChat
from neuronaut.llm.types import Reply
from neuronaut.scorers.calibration import UNITS, AdmittedScorer, _cases, calibrate
from neuronaut.scorers.detection import Detection
from neuronaut.scorers.factory import ScorerOptions, make_scorers
from neuronaut.scorers.fuzzing import Fuzzing
from neuronaut.scorers.intruder import Intruder
from neuronaut.scorers.llm_simulation import LLMSimulator
from neuronaut.scorers.scorer import Scorer, measure
from neuronaut.scorers.simulation import RuleSimulator
from neuronaut.scorers.simulation_json import JsonBackend
from neuronaut.subject.errors import NeuronautError

Messages = Sequence[dict[str, Any]]
JUDGES: list[Scorer] = [Detection(), Fuzzing(), LLMSimulator(JsonBackend())]
CALLS = [6, 6, 12]
"""The two units of a set of sentences share the calls about each description, and those about none."""


def follow(messages: Messages) -> str:
    """Answers by the words between backticks of the description."""
    last = messages[-1]["content"]
    words = re.findall(r"`([^`]+)`", re.split(r"Excerpts:|The text has", last)[0])
    lines = re.findall(r"^(\d+)\t(.*)$", last, re.MULTILINE)
    if "The text has" in last:
        return json.dumps({"activations": [[int(n), 10 * (token in words)] for n, token in lines]})
    marked = any("«" in text for _, text in lines)
    return json.dumps({n: int(any((f"« {w[1:]}»" if marked else w) in text for w in words)) for n, text in lines})


def repeat(messages: Messages) -> str:
    """Says the worked example again."""
    return next(message["content"] for message in messages if message["role"] == "assistant")


def from_texts(messages: Messages) -> str:
    """Answers by the texts alone, whatever is described: by length, or a value for every long word."""
    last = messages[-1]["content"]
    lines = re.findall(r"^(\d+)\t(.*)$", last, re.MULTILINE)
    if "The text has" in last:
        return json.dumps({"activations": [[int(n), min(10, len(token))] for n, token in lines]})
    return json.dumps({n: int(len(text) % 2) for n, text in lines})


def chatter(_: Messages) -> str:
    return "The description is a good one, I should say."


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "calibration.db") as store:
        yield store


def with_server(
    store: Store, answer: Callable[[Messages], str], scorers: Sequence[Scorer], mode: Any = "live"
) -> tuple[list[Scorer], LLMClient, int]:
    """The scorers that may judge, the client, and how many requests there were."""
    with FaultServer(answer=answer) as server:
        llm = OpenAIChat("reader", base_url=server.url, api_key="k", backoff=0.01, longest_backoff=0.05)
        try:
            client = LLMClient(llm, store.calls, mode=mode)
            return calibrate(scorers, client), client, len(server.seen)
        finally:
            llm.close()


def unanswered(scorer: Scorer) -> list[Judgements]:
    """What a scorer makes of empty replies."""
    task = scorer.judge(next(_cases(6)))
    assert not isinstance(task, list)
    try:
        requests = next(task)
        task.send([Reply("empty")] * len(requests))
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it asks again")


@pytest.mark.parametrize(
    ("scorer", "calls"), list(zip(JUDGES, CALLS, strict=True)), ids=lambda x: getattr(x, "name", x)
)
def test_a_judge_that_follows_the_description_counts_and_says_so(scorer: Scorer, calls: int, store: Store) -> None:
    (admitted,), client, asked = with_server(store, follow, [scorer])
    assert isinstance(admitted, AdmittedScorer) and asked == client.spent.calls == calls
    assert (admitted.name, admitted.settings, admitted.prompts) == (scorer.name, scorer.settings, scorer.prompts)
    note: Any = measure(unanswered(admitted))[0].provenance["calibration"]
    assert note["explanation"] == 1.0 and note["shuffled"] < 0.1
    if scorer.name != "simulation":
        assert note == {"metric": "balanced_accuracy", "explanation": 1.0, "empty": 0.5, "shuffled": 0.0}


@pytest.mark.parametrize("scorer", JUDGES, ids=lambda x: x.name)
@pytest.mark.parametrize("answer", [repeat, from_texts, chatter])
def test_a_judge_that_does_not_is_refused_with_the_figures(
    scorer: Scorer, answer: Callable[[Messages], str], store: Store
) -> None:
    with pytest.raises(NeuronautError) as refused:
        with_server(store, answer, [scorer])
    line = str(refused.value)
    assert line.startswith("reader @ http://127.0.0.1:") and f"is refused as judge for {scorer.name}" in line
    assert ("repeats the prompt's example in 100% of its replies" in line) == (answer is repeat)
    figures = re.search(
        r"(\S+) with the true explanation of built-in units, (\S+) without any, (\S+) with a wrong", line
    )
    assert figures is not None and figures[1] == figures[2] == figures[3] and "\n" not in line
    assert scorer.name == "simulation" or figures[1] == "0.50"
    assert "another -m" in line and "--no-calibration" in line


def test_a_judge_is_paid_for_once(store: Store) -> None:
    scorers = [Detection(), RuleSimulator()]
    first, _, asked = with_server(store, follow, scorers)
    assert asked == 6 and isinstance(first[0], AdmittedScorer) and first[1] is scorers[1]
    with FaultServer(answer=follow) as server:
        llm = OpenAIChat("reader", base_url=server.url, api_key="k")
        client = LLMClient(llm, store.calls)
        calibrate(scorers, client)
        calibrate(scorers, client)
        assert len(server.seen) == 6
        llm.close()


def test_a_server_that_does_not_answer_is_no_bad_judge(store: Store) -> None:
    with FaultServer(answer=follow, faults=1.0, kinds=("500",)) as server:
        llm = OpenAIChat("reader", base_url=server.url, api_key="k", backoff=0.01, longest_backoff=0.02, attempts=2)
        with pytest.raises(NeuronautError, match="could not be calibrated as judge for detection: 6 calls failed"):
            calibrate([Detection()], LLMClient(llm, store.calls))
        llm.close()


def test_a_rehearsal_counts_the_calls_and_refuses_nobody(store: Store) -> None:
    (scorer, other), client, asked = with_server(store, chatter, [Detection(), Fuzzing()], "rehearsal")
    assert not isinstance(scorer, AdmittedScorer) and not isinstance(other, AdmittedScorer)
    assert (client.spent.calls, asked) == (12, 0) and 0 < client.spent.input_tokens < 12 * 1000


def test_what_the_units_cannot_ask_about_is_not_calibrated(store: Store) -> None:
    intruder = Intruder()
    assert with_server(store, chatter, [intruder, RuleSimulator()])[0][0] is intruder
    assert calibrate([intruder], None) == [intruder]


def test_a_user_can_let_any_judge_count() -> None:
    class Judge:
        can_probe = False

    options = ScorerOptions(llm=Judge(), calibrated=False)  # pyright: ignore[reportArgumentType]
    detection, rule = make_scorers("detection", options)
    assert isinstance(detection, AdmittedScorer) and isinstance(rule, RuleSimulator)
    assert calibrate([detection], None) == [detection]


def test_the_sentences_differ_in_the_marked_word_alone() -> None:
    for sides in json.loads(UNITS.read_text()):
        for side in sides:
            words = set(re.findall(r"`( \w+)`", side["explanation"]))
            marked = [re.findall("«([^»]*)»", text) for text in side["sentences"]]
            assert {f" {found[0]}" for found in marked} == words and all(len(found) == 1 for found in marked)
            assert {len(text.split()) for text in side["sentences"]} == {12}
            assert {
                text.split().index(f"«{found[0]}»") for text, found in zip(side["sentences"], marked, strict=True)
            } == {4}
        texts = [text for side in sides for text in side["sentences"]]
        assert len(set(texts)) == 12


def test_a_score_names_its_judge() -> None:
    assert identify_judge({"by": "rule"}) == ("rule", "code")
    assert identify_judge({"embedder": "minilm", "seed": 0}) == ("", "embedding minilm")
    stored = {"prompt": {"detection": "0123456789abcdef"}, "llm": "m", "endpoint": "http://x/v1", "logprobs": False}
    assert identify_judge(stored) == ("", "m @ http://x/v1 # 0123456789ab")
    assert identify_judge({**stored, "logprobs": True}).backend == "logprobs"
    assert identify_judge({**stored, "by": "probe"}) == ("probe", "m @ http://x/v1 # 0123456789ab")
    assert identify_judge({"prompt": {"detection": "0123"}, "calls": []}) == ("", "")
    two = [name_judge("m", "local", hashes) for hashes in (["a" * 16, "b" * 16], ["b" * 16, "a" * 16], ["a" * 16])]
    assert two[0] == two[1] != two[2] and re.fullmatch(r"m @ local # [0-9a-f]{12}", two[0])
