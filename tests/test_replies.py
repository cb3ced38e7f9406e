"""Replies in every shape that servers send, over real HTTP: what can be read is read, once; the rest is one failure."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.benchmarks.fault_shapes import BAD, BRACKETS, ENDS_EARLY, GOOD, ODD, SHAPES
from neuronaut.data.records import Score
from neuronaut.data.store.store import Store
from neuronaut.explainers.answer import read_answer
from neuronaut.llm.client import LLMClient, to_call
from neuronaut.llm.openai.chat import OpenAIChat
from neuronaut.llm.openai.connection import MOST_BYTES
from neuronaut.llm.openai.keys import KnownKeys, hide_keys, hide_login
from neuronaut.llm.openai.replies import MOST_TOKENS, count_tokens, decode_body, read_chat, read_probe
from neuronaut.llm.openai.retrying import Malformed
from neuronaut.llm.tasks import LLMTask
from neuronaut.llm.thought import blank_thought, without_thought
from neuronaut.llm.tool_calls import read_calls
from neuronaut.llm.types import Chat, Message, Probe, Reply, Sampling
from neuronaut.scorers.detection import Detection
from neuronaut.scorers.intruder import Intruder
from neuronaut.scorers.reading import read_values
from neuronaut.scorers.simulation_json import JsonBackend, parse
from neuronaut.subject.errors import NeuronautError

KEY = "sk-planted-0123456789-secret"
EXPLANATION = "[EXPLANATION]: the negation ` not` after a verb, and more weakly ` never`"
VERDICTS = '{"1": 1, "2": 0, "3": 1}'
ASKED = Chat((Message("user", "What is it?"),), Sampling(max_tokens=4000, top_logprobs=2), prompt="p")


def served(*script: str, answer: str = "hello there", **options: Any) -> FaultServer:
    return FaultServer(script=script, answer=lambda _: answer, **options)


def open_chat(server: FaultServer, **options: Any) -> OpenAIChat:
    return OpenAIChat(
        "planted", **{"base_url": server.url, "api_key": KEY, "backoff": 0.01, "longest_backoff": 0.05, **options}
    )


def ask(server: FaultServer, chat: Chat = ASKED, **options: Any) -> Reply:
    """One request by a client of its own."""
    llm = open_chat(server, **options)
    try:
        return llm.submit(chat).result(timeout=600)
    finally:
        llm.close()


def one_round(*chats: Chat) -> LLMTask[list[Reply]]:
    return list((yield chats))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "replies.db") as store:
        yield store


# --- good replies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*GOOD, *ODD])
def test_an_explanation_is_read_in_every_shape_and_asked_for_once(shape: str) -> None:
    with served(shape, answer=EXPLANATION) as server:
        reply = ask(server)
    assert (reply.status, reply.reason) == ("ok", None)
    answer = read_answer(reply.text)
    assert (answer.status, answer.text) == ("explained", EXPLANATION.partition(": ")[2])
    assert sum(server.attempts.values()) == 1
    assert 0 < reply.input_tokens < 100 and 0 < reply.output_tokens < 1000


@pytest.mark.parametrize("shape", [*GOOD, *ODD])
def test_verdicts_are_read_in_every_shape(shape: str) -> None:
    with served(shape, answer=VERDICTS) as server:
        reply = ask(server)
    verdicts = Detection()._verdicts(reply, 3)
    assert [verdict.predicted for verdict in verdicts] == [{1: 1.0}, {0: 1.0}, {1: 1.0}]
    assert sum(server.attempts.values()) == 1


@pytest.mark.parametrize("shape", ODD)
def test_what_the_server_does_not_count_credibly_is_estimated_and_said(shape: str, store: Store) -> None:
    """A paid answer is stored whatever its account looks like, and read from the log afterwards."""
    with served(shape) as server:
        llm = open_chat(server)
        client = LLMClient(llm, store.calls)
        first, again = client.ask(one_round(ASKED)), LLMClient(llm, store.calls).ask(one_round(ASKED))
        llm.close()
        assert len(server.seen) == 1
    assert first is not None and first == again and first[0].text == "hello there"
    estimated = shape.startswith("usage")
    assert client.spent.estimated == estimated
    assert (first[0].raw.get("usage") == "estimated") == estimated
    assert client.spent.input_tokens == first[0].input_tokens > 0
    assert client.spent.output_tokens == first[0].output_tokens > 0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>b", "b"),
        ("<thought>a</thought>\nb", "\nb"),
        ("[THINK]a[/THINK]b", "b"),
        ("◁think▷a◁/think▷b", "b"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "b"),
        ("<|channel|>analysis<|message|>a", ""),
        ("<|channel|>final<|message|>b", "b"),
        ("a<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("<reasoning>never closed", ""),
        ("the tags `<think>` and [THINK] in prompts", "the tags `<think>` and [THINK] in prompts"),
        ("analysis of the word", "analysis of the word"),
        ("<answer>b</answer>", "b"),
    ],
)
def test_thinking_is_no_part_of_the_answer(text: str, answer: str) -> None:
    assert without_thought(text) == answer
    assert len(blank_thought(text)) == len(text) and blank_thought(text).strip() == answer.strip()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"1": "Yes.", "2": "no", "3": TRUE}', [1, 0, 1]),
        ('{"1": 1.0, "2": 0.0, "3": 0.5}', [1, 0, None]),
        ('[{"1": 1}, {"2": 0}, {"3": 1}]', [1, 0, 1]),
        ('{"1": 1}\n{"2": 0}\n{"3": 1}', [1, 0, 1]),
        ('{"1": 0}, {"1": 1, "2": 0, "3": 1}', [1, 0, 1]),
        ('{"1": 1, "2": 0, "3": 1} so {"excerpts": 3, "active": 1}', [1, 0, 1]),
        ('{"excerpts": [1, 2, 3], "answers": [1, 0, 1]}', [None] * 3),
        ('{"excerpts": [1, 2, 3]}', [1, None, None]),
        ("**1**: yes\n**2**: no\n- 3: yes", [1, 0, 1]),
        ("Excerpt 1: yes\nExcerpt 2: no", [None] * 3),
        ('{"1": {"active": true, "why": "x"}, "2": {"active": false}, "3": {"active": true}}', [1, 0, 1]),
        ('{"1": ' + "1" * 5000 + "}", [None] * 3),
    ],
)
def test_judges_say_yes_and_no_in_many_ways(text: str, wanted: list[int | None]) -> None:
    verdicts = Detection()._verdicts(Reply("ok", text), 3)
    assert [next(iter(verdict.predicted), None) for verdict in verdicts] == wanted


def test_true_is_no_choice_among_five() -> None:
    (verdict,) = Intruder()._verdicts(Reply("ok", '{"intruder": true}'), 1)
    assert verdict.missing == "unparsed"


def test_an_answer_among_the_thoughts_alone_is_marked() -> None:
    with served("thoughts-alone") as server:
        assert ask(server).raw["answer"] == "among the thoughts"


def test_a_reply_that_only_thinks_is_empty() -> None:
    with served(answer="<think>hm</think>") as server:
        reply = ask(server)
    assert (reply.status, reply.reason) == ("empty", "nothing but thinking in the reply")


@pytest.mark.parametrize("shape", ENDS_EARLY)
def test_what_ends_early_is_no_explanation_although_the_server_says_stop(shape: str) -> None:
    with served(shape, answer=EXPLANATION) as server:
        reply = ask(server)
    assert (reply.status, reply.raw["finish_reason"]) == ("ok", "stop")
    answer = read_answer(reply.text)
    assert answer.status == "failed" and (answer.reason or "").startswith("cut: ")


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("names of rivers.\nHope this helps!", "names of rivers."),
        ("names of rivers\nLet me know if you need more.\nI am happy to help", "names of rivers"),
        ("names of rivers,\nlong ones above all", "names of rivers, long ones above all"),
        ("words of goodbye:\n`Hope this helps!`", "words of goodbye: `Hope this helps!`"),
    ],
)
def test_courtesies_on_the_next_line_are_no_part_of_an_explanation(said: str, read: str) -> None:
    assert read_answer(f"[EXPLANATION]: {said}").text == read


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("the negation ` not` after a", False),
        ("the negation ` no", False),
        ("the word (as in", False),
        ("names of rivers,", False),
        ("the article the", True),
        ("an opening bracket ` (` in calls", True),
        ("an opening bracket (", True),
        ("the backtick ` itself.", True),
        ("names of rivers, in headings", True),
        ("the letter a", True),
    ],
)
def test_half_a_sentence_is_told_from_a_whole_one(text: str, whole: bool) -> None:
    assert (read_answer(f"[EXPLANATION]: {text}").status == "explained") == whole


@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_every_name_for_the_limit_is_known(finish: str) -> None:
    reply = read_chat({"choices": [{"finish_reason": finish, "message": {"content": "half"}}]})
    assert (reply.status, reply.text) == ("truncated", "half")


# --- bad replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [shape for shape in BAD if shape != "brackets-content"])
def test_what_cannot_be_read_is_one_failed_reply_and_the_run_goes_on(shape: str, store: Store) -> None:
    with served(shape) as server:
        llm = open_chat(server)
        client = LLMClient(llm, store.calls)
        replies = client.ask(one_round(ASKED)), client.ask(one_round(ASKED))
        llm.close()
        assert sum(server.attempts.values()) == 2
    (bad,), (good,) = (list(reply or ()) for reply in replies)
    assert (bad.status, good.status) == ("failed", "ok")
    assert bad.reason and "\n" not in bad.reason and len(bad.reason) < 500
    assert client.spent.failed == 1
    assert [row["status"] for row in store.calls.rows()] == ["ok", "failed"]


def test_brackets_without_end_as_content_are_unparsed() -> None:
    with served("brackets-content") as server:
        reply = ask(server)
    assert read_answer(reply.text).status == "failed"
    assert [verdict.missing for verdict in Detection()._verdicts(reply, 3)] == ["unparsed"] * 3
    assert JsonBackend().read(reply, tokens=2).missing == {"unparsed": 2}
    assert not read_calls(reply).calls
    assert read_answer(f'[EXPLANATION]: the word\n[RULE]: {{"any": {BRACKETS}').rule_error


@pytest.mark.parametrize("code", [429, 502, "rate_limit_exceeded"])
def test_an_error_inside_a_200_that_may_pass_is_asked_again(code: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with served("error-inside") as server:
        monkeypatch.setitem(SHAPES, "error-inside", lambda _: {"error": {"message": "busy", "code": code}})  # type: ignore[arg-type]
        assert ask(server).status == "ok"
    assert sum(server.attempts.values()) == 2


@pytest.mark.parametrize("fault", ["drip", "drip-head"])
def test_the_time_limit_is_that_of_the_whole_request(fault: str) -> None:
    with served(fault) as server:
        reply = ask(server, timeout=1.2, attempts=1)
    assert (reply.status, reply.reason) == ("failed", "no reply within the time limit")


def test_a_reply_without_end_is_given_up_at_the_cap() -> None:
    with served("flood") as server:
        reply = ask(server)
        flooded = server.flooded
    assert reply.status == "failed" and reply.reason == "the reply has over 32 MB; given up"
    assert flooded < 3 * MOST_BYTES
    assert sum(server.attempts.values()) == 1


def test_a_compressed_reply_is_not_unpacked() -> None:
    with served("gzip") as server:
        reply = ask(server)
    assert reply.status == "failed" and "compressed" in (reply.reason or "")


def test_redirects_are_followed_within_the_host_only() -> None:
    with served("redirect", "moved") as server:
        away, within = ask(server), ask(server)
    assert away.status == "failed"
    assert (away.reason or "").startswith(f"307: redirected to http://localhost:{server.port}, which is not followed")
    assert (within.status, within.text) == ("ok", "hello there")
    assert [seen.fault for seen in server.seen] == ["redirect", "moved", "ok"]


# --- what a server calls its parameters ---------------------------------------------------------------


@pytest.mark.parametrize("how", ["code", "detail", "words"])
@pytest.mark.parametrize(
    ("refused", "sent"),
    [
        (["max_tokens"], {"max_completion_tokens", "temperature"}),
        (["temperature"], {"max_tokens"}),
        (["max_tokens", "temperature"], {"max_completion_tokens"}),
    ],
)
def test_a_server_teaches_its_parameters_once(how: str, refused: list[str], sent: set[str], store: Store) -> None:
    with served(refuses=dict.fromkeys(refused, how)) as server:
        llm = open_chat(server)
        client = LLMClient(llm, store.calls)
        for text in ("a", "b", "c"):
            replies = client.ask(one_round(Chat((Message("user", text),))))
            assert replies and replies[0].status == "ok"
        llm.close()
        bodies = [seen.body for seen in server.seen]
        faults = [seen.fault for seen in server.seen]
    assert faults == ["refused"] * len(refused) + ["ok"] * 3
    assert all(body.keys() - {"model", "messages"} == sent for body in bodies[-3:])
    assert client.spent.own_temperature == 3 * ("temperature" in refused)


def test_the_name_of_the_limit_can_be_fixed() -> None:
    with served() as server:
        for limit in ("max_tokens", "max_completion_tokens", "none"):
            assert ask(server, token_limit=limit).status == "ok"
        names = [seen.body.keys() & {"max_tokens", "max_completion_tokens"} for seen in server.seen]
    assert names == [{"max_tokens"}, {"max_completion_tokens"}, set()]
    with served(refuses={"max_tokens": "code"}) as server, pytest.raises(NeuronautError, match="--token-limit"):
        ask(server, token_limit="max_tokens")


def test_a_server_that_takes_neither_name_is_asked_with_each_once() -> None:
    with served(refuses={"max_tokens": "code", "max_completion_tokens": "code"}) as server:
        with pytest.raises(NeuronautError, match="--token-limit none"):
            ask(server)
        assert len(server.seen) == 2


def test_a_refusal_of_another_kind_teaches_nothing() -> None:
    """A limit that is too high is named, too; without it the reply would be as long as the model likes."""
    with served(refuses={"max_tokens": "value"}) as server:
        reply = ask(server)
        assert len(server.seen) == 1
    assert reply.status == "failed" and "too large" in (reply.reason or "")


# --- keys -------------------------------------------------------------------------------------------


def hidden(text: str) -> bool:
    return not any(KEY[start : start + 8] in text for start in range(len(KEY) - 7))


def test_a_key_that_the_server_echoes_is_neither_kept_nor_shown(store: Store) -> None:
    with served("echo", answer=f"I saw {KEY}, or {KEY[:12]}…") as server:
        llm = open_chat(server)
        client = LLMClient(llm, store.calls)
        first, second = client.ask(one_round(ASKED)), client.ask(one_round(ASKED))
        llm.close()
    assert first and second and (first[0].status, second[0].status) == ("failed", "ok")
    assert "planted: Bearer [key]" in (first[0].reason or "") and "I saw [key]" in second[0].text
    assert hidden(repr(first) + repr(second) + repr(store.calls.rows()))


def test_nor_is_it_in_an_error_or_its_traceback() -> None:
    with served("echo-401") as server, pytest.raises(NeuronautError, match="401") as caught:
        ask(server)
    errors: list[BaseException] = [caught.value]
    while cause := errors[-1].__cause__ or errors[-1].__context__:
        errors.append(cause)
    assert len(errors) > 1 and all(hidden(f"{error} {vars(error)}") for error in errors)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Incorrect API key provided: sk-abcd********wxyz.", "Incorrect API key provided: [key]"),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer [key]"),
        ('{"api-key": "0123456789abcdef"}', '{"api-key": "[key]"}'),
        ("no route https://me:secret@host/v1?api-key=0123abcd&v=1", "no route https://[key]@host/v1?api-key=[key]&v=1"),
        ("max_tokens: 5000 is too large for the token budget", "max_tokens: 5000 is too large for the token budget"),
    ],
)
def test_what_looks_like_a_key_is_hidden_in_errors(text: str, shown: str) -> None:
    assert hide_keys(text) == shown


def test_a_known_key_is_hidden_in_parts_and_other_spellings_too() -> None:
    keys = KnownKeys.of("https://me:pass+word+long@host/v1", "0123456789abcdef")
    for text in ("x 0123456789abcdef y", "x 01234567… y", "x …89abcdef y", "x bWU6cGFzcyt3b3JkK2xvbmc= y"):
        assert "[key]" in keys.hide(text)
    assert keys.hide("x pass+word+long pass%2Bword%2Blong y") == "x [key] [key] y"
    assert keys.hide("0123 and none") == "0123 and none"
    assert KnownKeys.of("http://host/v1", "none").hide("none") == "none"


def test_the_login_in_a_url_is_no_part_of_the_endpoint() -> None:
    assert hide_login("https://me:secret@host:8000/v1") == "https://host:8000/v1"
    assert OpenAIChat("m", base_url="https://me:secret@host/v1").endpoint == "https://host/v1"


# --- said in the result -------------------------------------------------------------------------------


def test_a_score_says_that_no_log_probabilities_came() -> None:
    score = Score("simulation", "top_random", "correlation", 0.5, provenance={"sampled": 1.0})
    assert score.doubt == "point values: no log-probabilities came for 100% of the tokens"
    assert Score("simulation", "top_random", "correlation", 0.5, provenance={"sampled": 0.0}).doubt is None
    assert Score("detection", "windows", "balanced_accuracy", 0.5, coverage=0.5).doubt == "only 50% was answered"


# --- any reply ----------------------------------------------------------------------------------------

ODDITIES: list[Any] = [
    None,
    True,
    0,
    -1,
    3.5,
    1e308,
    float("nan"),
    10**30,
    "",
    "x",
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    [None],
]
ODDITIES += [{"text": 3}, {"type": ["text"]}, {"code": {}}, "<think>", "[" * 3000, '{"1": 1', EXPLANATION, VERDICTS]
SPICE = ["[", "]", "{", "}", '"', ",", ":", "1e999", "null", "\\", "\\ud800", "-", "9" * 5000, "NaN", "[" * 2000]


def completion(text: str) -> dict[str, Any]:
    token = {"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "b", "logprob": -2.0}]}
    function = {"name": "look", "arguments": '{"text": "a"}'}
    message = {
        "content": text,
        "refusal": None,
        "reasoning_content": None,
        "tool_calls": [{"id": "c", "function": function}],
    }
    choice = {"finish_reason": "stop", "message": message, "logprobs": {"content": [token]}}
    choice["prompt_logprobs"] = [None, {"5": {"logprob": -1.0}}]
    return {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "error": None}


def spoil(value: Any, dice: random.Random) -> Any:
    """The value with an oddity in some place."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        return value | {key: spoil(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.9:
        place = dice.randrange(len(value))
        return [*value[:place], spoil(value[place], dice), *value[place + 1 :]]
    return dice.choice(ODDITIES)


def random_body(dice: random.Random) -> str:
    body: Any = completion(dice.choice([EXPLANATION, VERDICTS, "<think>a</think>b", '{"activations": [[0,1]]}']))
    for _ in range(dice.randrange(4)):
        body = spoil(body, dice)
    text = json.dumps(body)
    for _ in range(dice.choice([0, 0, 0, 0, 0, 0, 1, 3])):
        place = dice.randrange(len(text) + 1)
        text = text[:place] + dice.choice(SPICE) + text[place + dice.randrange(3) :]
    return text


def test_any_of_ten_thousand_bodies_is_a_reply_or_a_reason() -> None:
    dice, outcomes = random.Random(11), dict[str, int]()
    probe = Probe((1, 2), (0,), (5,))
    for _ in range(10_000):
        try:
            body = decode_body(random_body(dice))
            replies = [read_chat(body), read_probe(body, probe)]
        except Malformed as error:
            assert str(error) and "\n" not in str(error)
            outcomes["malformed"] = outcomes.get("malformed", 0) + 1
            continue
        for request, reply in zip((ASKED, probe), replies, strict=True):
            check_reply(request, count_tokens(reply, body, prompt=lambda: 9))
        outcomes[replies[0].status] = outcomes.get(replies[0].status, 0) + 1
    assert all(outcomes[kind] > 100 for kind in ("ok", "failed", "malformed")), outcomes
    assert outcomes.keys() >= {"refused", "empty"}


def check_reply(request: Chat | Probe, reply: Reply) -> None:
    """A reply has a reason or is good, can be stored, and can be read by all who read replies."""
    assert (reply.reason is None) == (reply.status == "ok")
    assert 0 <= reply.input_tokens <= MOST_TOKENS and 0 <= reply.output_tokens <= MOST_TOKENS
    call = to_call(request, reply, model="m", endpoint="e", price=None)
    json.dumps(call.detail, allow_nan=False)
    call.reply.encode()
    assert read_answer(reply.text).status in ("explained", "no_pattern", "failed")
    assert len(read_values(reply.text, ["1", "2"])) == 2
    parse(reply.text)
    read_calls(reply)
