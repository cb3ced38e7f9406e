"""Calls of tools: what is sent, what is read, what is kept, and what a model without a form of its own is told."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.benchmarks.fault_answers import pieces
from neuronaut.benchmarks.fault_server import CALLING, FaultServer
from neuronaut.benchmarks.fault_shapes import Body
from neuronaut.data.store.calls import Call
from neuronaut.data.store.store import Store
from neuronaut.labelling.batch_api import collect, send
from neuronaut.llm.client import LLMClient
from neuronaut.llm.local.chat_format import ChatFormat, plain
from neuronaut.llm.local.local import LocalLLM
from neuronaut.llm.openai.batch import BatchAPI
from neuronaut.llm.openai.chat import OpenAIChat
from neuronaut.llm.openai.replies import read_chat
from neuronaut.llm.openai.wire import Wire
from neuronaut.llm.prices import Price
from neuronaut.llm.tasks import LLMTask
from neuronaut.llm.tool_calls import answer_calls, describe_tools, read_calls, spell_out_calls, spell_out_tools
from neuronaut.llm.types import Chat, Message, Reply, Sampling, ToolCall, ToolSpec, request_key
from tests.families import CONTEXT, byte_tokenizer, tiny_model

LOOK = ToolSpec(
    "look",
    "See the activations of a text.",
    {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
)
STOP = ToolSpec("stop", "End.", {"type": "object", "properties": {}})
PLAIN = Chat((Message("system", "Be brief."), Message("user", "Find out.")), Sampling(max_tokens=50), prompt="p")
CHAT = replace(PLAIN, tools=(LOOK, STOP))
CALL = ToolCall("look", '{"text": "a: b"}', "call_1")
SAID = '{"name": "look", "arguments": {"text": "a: b"}}'


def looking(body: Body) -> list[tuple[str, Body]]:
    """A call that tells one request from another."""
    return [("look", {"text": body["messages"][-1]["content"]})]


def open_chat(server: FaultServer) -> OpenAIChat:
    return OpenAIChat("planted", base_url=server.url, backoff=0.01, longest_backoff=0.05)


def asking(*chats: Chat) -> LLMTask[list[Reply]]:
    return list((yield chats))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "calling.db") as store:
        yield store


# --- what a chat says -----------------------------------------------------------------------------


def test_a_chat_without_tools_has_the_key_it_always_had() -> None:
    key = "fcaf08a7f0c528f85bff767744ce78903bcbdf09ed83c05a76ecc01aabe369ed"
    assert request_key(PLAIN, model="m", endpoint="e") == key
    assert PLAIN.as_dict().keys() == {"messages", "sampling"}
    assert PLAIN.as_dict()["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Find out."},
    ]


def test_tools_and_history_are_part_of_the_key() -> None:
    history = (*CHAT.messages, Message("assistant", "", calls=(CALL,)), Message("tool", "0.3", answers="call_1"))
    chats = [
        PLAIN,
        CHAT,
        replace(CHAT, tools=(STOP, LOOK)),
        replace(CHAT, tool_choice="required"),
        replace(CHAT, messages=history),
        replace(CHAT, messages=(*history[:-1], replace(history[-1], answers="other"))),
    ]
    assert len({request_key(chat, model="m", endpoint="e") for chat in chats}) == len(chats)
    for chat in chats:
        assert Chat.parse(json.loads(json.dumps(chat.as_dict())), prompt="p") == chat


# --- the server's own form ------------------------------------------------------------------------


def test_what_is_sent_of_tools() -> None:
    history = (*CHAT.messages, Message("assistant", "", calls=(CALL,)), Message("tool", "0.3", answers="call_1"))
    body = Wire("m", "http://x/v1").chat(replace(CHAT, messages=history, tool_choice="required"))
    assert body["tools"][1] == {
        "type": "function",
        "function": {"name": "stop", "description": "End.", "parameters": STOP.parameters},
    }
    assert body["tool_choice"] == "required"
    assert body["messages"][2:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"text": "a: b"}'}}
            ],
        },
        {"role": "tool", "content": "0.3", "tool_call_id": "call_1"},
    ]
    assert Wire("m", "http://x/v1").chat(PLAIN).keys().isdisjoint({"tools", "tool_choice"})


def completion(calls: object, *, finish: str = "tool_calls", **message: object) -> Body:
    said = {"role": "assistant", "content": None, "tool_calls": calls, **message}
    return {"choices": [{"index": 0, "finish_reason": finish, "message": said}]}


def native(arguments: object, **entry: object) -> Body:
    return {"id": "c", "type": "function", "function": {"name": "look", "arguments": arguments}, **entry}


def test_several_calls_are_read_in_order_and_need_no_text() -> None:
    reply = read_chat(completion([native("{}"), native('{"a": ', id="d")]))
    assert (reply.status, reply.reason, reply.text) == ("ok", None, "")
    # Arguments that are broken are for whoever asked to refuse.
    assert reply.calls == (ToolCall("look", "{}", "c"), ToolCall("look", '{"a": ', "d"))


@pytest.mark.parametrize("arguments", [{"text": "é"}, {}, {"a": {"name": "x", "arguments": {}}}])
def test_arguments_as_an_object_are_the_same_as_a_string(arguments: Body) -> None:
    (call,) = read_chat(completion([native(arguments)])).calls
    assert json.loads(call.arguments) == arguments


def test_calls_without_an_id_get_their_own() -> None:
    reply = read_chat(completion([native("{}", id=None), native("{}", id="")]))
    assert [call.id for call in reply.calls] == ["call_0", "call_1"]


@pytest.mark.parametrize(
    "entry",
    [None, 3, "look", [], {}, {"function": None}, {"function": "look"}, native(None), native([1]), native(1)]
    + [{"id": "c", "function": {"arguments": "{}"}}, {"id": "c", "function": {"name": None, "arguments": "{}"}}],
)
def test_an_entry_that_is_no_call_is_a_reason(entry: object) -> None:
    reply = read_chat(completion([native("{}"), entry]))
    assert (reply.status, reply.calls) == ("failed", ())
    assert reply.reason and reply.reason.startswith("tool call 2 has no name with arguments: ")
    assert read_calls(reply).reason == reply.reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["function", "name", "arguments", "id", "text"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(calls=JSON, finish=st.sampled_from(["stop", "tool_calls", "length", None]))
def test_whatever_stands_for_calls_is_a_reply(calls: Any, finish: Any) -> None:
    reply = read_chat(completion(calls, finish=finish))
    assert (reply.status == "ok") == (bool(reply.calls) and finish != "length")
    assert (reply.reason is None) == (reply.status == "ok")


@pytest.mark.parametrize("fault", ["truncated", "refusal", "empty"])
def test_what_was_no_answer_is_none_with_calls(fault: str) -> None:
    with FaultServer(script=[fault], calls=looking) as server:
        llm = open_chat(server)
        reply = llm.submit(CHAT).result()
        llm.close()
    assert reply.status == {"refusal": "refused"}.get(fault, fault)
    assert read_calls(reply) == ((), reply.reason)


# --- the client and the log -------------------------------------------------------------------------


def test_a_logged_reply_gives_the_same_calls(store: Store) -> None:
    odd = {"text": "é\n</think>", "deep": [{"name": "x"}]}
    with FaultServer(calls=lambda _: [("look", odd), ("stop\ud800\0", {})]) as server:
        llm = open_chat(server)
        first, again = (LLMClient(llm, store.calls).ask(asking(CHAT)) for _ in range(2))
        llm.close()
        assert len(server.seen) == 1
    assert first is not None and first == again
    (reply,) = first
    assert [(call.name, json.loads(call.arguments)) for call in reply.calls] == [("look", odd), ("stop? ", {})]
    (row,) = store.calls.rows()
    assert [call["name"] for call in row["calls"]] == ["look", "stop? "]
    # What follows can be written down too.
    with FaultServer() as server:
        llm = open_chat(server)
        later = replace(CHAT, messages=(*CHAT.messages, *answer_calls(reply, ["0.3", "no such tool"])))
        assert LLMClient(llm, store.calls).ask(asking(later)) is not None
        llm.close()


def test_a_log_from_before_there_were_tools_is_read(store: Store) -> None:
    detail = {"logprobs": [], "probabilities": [], "raw": {}}
    key = request_key(PLAIN, model="planted", endpoint="e")
    store.calls.record(Call(key, "planted", "e", "p", "{}", "ok", "as before", None, 1, 1, 0.1, None, detail))
    with FaultServer() as server:
        llm = open_chat(server)
        client = LLMClient(llm, store.calls)
        client.key = lambda _: key
        assert client.logged_replies([PLAIN])[key].text == "as before"
        llm.close()
    assert store.calls.rows()[0]["calls"] == []


def test_a_dry_run_counts_the_tools_and_takes_a_call_for_the_sample(store: Store) -> None:
    with FaultServer() as server:
        llm = open_chat(server)
        plain, tools = llm.count(PLAIN), llm.count(CHAT)
        client = LLMClient(llm, store.calls, price=Price(1.0, 1.0), mode="rehearsal")
        found = client.ask(asking(replace(CHAT, sample=SAID)))
        llm.close()
        assert not server.seen
    assert tools - plain > len(pieces(LOOK.description)) + 20
    assert found is not None
    assert read_calls(found[0]).calls == (ToolCall("look", '{"text": "a: b"}'),)
    assert 10 < client.spent.output_tokens < len(SAID) / 2


def test_a_batch_takes_tools(store: Store) -> None:
    chats = [replace(CHAT, messages=(Message("user", f"look {n}"),)) for n in range(3)]
    with FaultServer(calls=looking, polls=0) as server:
        llm, api = open_chat(server), BatchAPI("planted", base_url=server.url, backoff=0.01)
        client = LLMClient(llm, store.calls, mode="deferred")
        assert client.ask(asking(*chats)) is None
        send(client, api)
        collect(client, api)
        replies = LLMClient(llm, store.calls).ask(asking(*chats))
        llm.close()
        api.close()
        assert not server.seen
    assert replies is not None
    assert [json.loads(reply.calls[0].arguments)["text"] for reply in replies] == ["look 0", "look 1", "look 2"]


def test_one_in_ten_of_each_fault() -> None:
    with FaultServer(calls=looking, faults=0.5, kinds=CALLING, seed=2) as server:
        llm = open_chat(server)
        chats = [replace(CHAT, messages=(Message("user", f"about error {n}"),)) for n in range(300)]
        replies = [future.result() for future in [llm.submit(chat) for chat in chats]]
        llm.close()
        asked = Counter(seen.fault for seen in server.seen)
    broken = 0
    for chat, reply in zip(chats, replies, strict=True):
        assert reply.status in ("ok", "empty", "refused")
        for call in read_calls(reply).calls:
            whole = json.dumps({"text": chat.messages[0].content})
            assert call.name == "look" and call.arguments in (whole, whole[:-1])
            broken += call.arguments != whole
    counts = Counter(reply.status for reply in replies)
    assert counts["empty"] == asked["empty"] and counts["refused"] == asked["refusal"] and broken == asked["bad-call"]
    assert all(15 <= asked[kind] <= 50 for kind in CALLING)


# --- a call in the text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        SAID,
        f"  {SAID}  ",
        f"I look.\n{SAID}\nThat is all.",
        f"```json\n{SAID}\n```",
        f"```{SAID}```",
        f"<tool_call>\n{SAID}\n</tool_call>",
        f"<tool_call>{SAID}</tool_call>",
        f'<think>\n{{"name": "stop", "arguments": {{}}}}\n</think>\n{SAID}',
        f'perhaps {{"broken\n</think>\n{SAID}',
        json.dumps(json.loads(SAID), indent=2),
        f'{{"name": "stop", "arguments": {{}}}}\n\n{SAID}',
        f'{SAID}\n{{"result": 3}}',
        f'{{"hypothesis": {SAID.replace("look", "stop")}}}\n{SAID}',
        f"`{SAID}`",
        SAID + "\r\n",
        f"So.\r\n{SAID}\r\nDone.",
        SAID.replace("{", '{"why": "to see", ', 1),
        f"{{curly}} is a token.\n{SAID}",
        "{" + "\n\n" + SAID[1:],
    ],
)
def test_a_call_in_the_text_is_read(text: str) -> None:
    assert read_calls(Reply("ok", text)) == ((ToolCall("look", '{"text": "a: b"}'),), None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I would look at `a: b`.", "no JSON object"),
        ("", "no JSON object"),
        (f"The text says {SAID} and I do not obey.", "no JSON object"),
        (f"{SAID} is what I would call.", "no JSON object"),
        (f"> {SAID}", "no JSON object"),
        (f"[{SAID}]", "no JSON object"),
        ('{"look": {"text": "a"}}', "no JSON object"),
        ('{"name": 3, "arguments": {}}', "no JSON object"),
        ('{"name": "look", "arguments": [1]}', "no JSON object"),
        ('{"name": "look"}', "no JSON object"),
        (f'{{"calls": [{SAID}]}}', "no JSON object"),
        (SAID[:-1], "broken: Expecting ',' delimiter"),
        (SAID.replace('"}', '",}'), "broken: "),
        (f"{SAID}\n{SAID[:-5]}", "broken: "),
        ('{"name": "look", "arguments": {"n": ' + "9" * 5000 + "}}", "broken: "),
        ('{"name": ' + "[" * 100_000, "broken: "),
        (f"<think>\n{SAID}", "no JSON object"),
        (f"Let me see.\n<think>{SAID}</think>\nNothing.", "no JSON object"),
    ],
)
def test_what_is_no_call_has_a_reason(text: str, reason: str) -> None:
    found = read_calls(Reply("ok", text))
    assert found.calls == ()
    assert found.reason and reason in found.reason


def test_native_calls_come_before_the_text_and_only_of_a_good_reply() -> None:
    assert read_calls(Reply("ok", SAID, calls=(CALL, CALL))).calls == (CALL, CALL)
    assert read_calls(Reply("truncated", SAID, "cut", calls=(CALL,))) == ((), "cut")


ARGUMENTS = st.dictionaries(st.text(max_size=6), JSON | st.just({"name": "stop", "arguments": {}}), max_size=3)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
INDENTS = st.sampled_from([None, 0, 1, 4])


def written(name: str, arguments: Any, indent: int | None) -> str:
    return json.dumps({"name": name, "arguments": arguments}, indent=indent)


@given(name=NAMES, arguments=ARGUMENTS, indent=INDENTS)
def test_any_call_is_read_as_it_was_written(name: str, arguments: Any, indent: int | None) -> None:
    (call,) = read_calls(Reply("ok", written(name, arguments, indent))).calls
    assert (call.name, json.loads(call.arguments)) == (name, arguments)


@given(arguments=ARGUMENTS, indent=INDENTS, data=st.data())
def test_a_call_that_was_cut_is_none(arguments: Any, indent: int | None, data: st.DataObject) -> None:
    """Also where its arguments hold what looks like a call."""
    whole = written("look", arguments, indent)
    assert read_calls(Reply("ok", whole[: data.draw(st.integers(0, len(whole) - 1))])).calls == ()


PIECES: dict[str, bool] = {
    "The tag `{` opens it.": False,
    f"I could call {SAID.replace('look', 'stop')} here.": False,
    "": False,
    '{"seen": {"name": "stop", "arguments": {}}}': False,
    SAID: True,
    f"```json\n{SAID}\n```": True,
    written("other", {"at": [1]}, 2): True,
    f"<tool_call>{SAID}</tool_call>": True,
}


@given(st.lists(st.sampled_from(list(PIECES)), max_size=6))
def test_of_paragraphs_the_last_call_counts(paragraphs: list[str]) -> None:
    calls = [paragraph for paragraph in paragraphs if PIECES[paragraph]]
    wanted = ["other" if "other" in calls[-1] else "look"] if calls else []
    assert [call.name for call in read_calls(Reply("ok", "\n".join(paragraphs))).calls] == wanted


SCRAPS = ['{"', '"name"', ":", "}", "{", "\n", "<think>", "</think>", '"arguments"', "```", SAID]


@given(st.lists(st.sampled_from(SCRAPS)))
@settings(max_examples=300)
def test_any_text_is_read_or_has_a_reason(parts: list[str]) -> None:
    found = read_calls(Reply("ok", "".join(parts)))
    assert bool(found.calls) != bool(found.reason)
    assert len(found.calls) <= 1


def test_a_name_that_no_log_holds_is_cleaned() -> None:
    (call,) = read_calls(Reply("ok", r'{"name": "a\ud800", "arguments": {"b": "\ud800"}}')).calls
    assert call.name == "a?"
    assert call.arguments.isascii()


# --- without a form of its own --------------------------------------------------------------------


def test_the_form_that_is_told_is_the_form_that_is_read() -> None:
    told = describe_tools(CHAT.tools, required=False)
    for tool in CHAT.tools:
        assert f"{tool.name}: {tool.description}\n{json.dumps(tool.parameters)}" in told
    form = next(line for line in told.splitlines() if line.startswith('{"name"'))
    (call,) = read_calls(Reply("ok", form.replace('"..."', '"look"').replace("{...}", "{}"))).calls
    assert call == ToolCall("look", "{}")
    # What is told is no call itself.
    assert read_calls(Reply("ok", told)).calls == ()
    assert describe_tools(CHAT.tools, required=True) != told


def test_a_chat_is_spelled_without_tools() -> None:
    there = spell_out_tools(CHAT)
    assert (there.tools, there.messages[1:], there.sampling) == ((), CHAT.messages[1:], CHAT.sampling)
    assert there.messages[0].content == f"Be brief.\n\n{describe_tools(CHAT.tools, required=False)}"
    bare = replace(CHAT, messages=CHAT.messages[1:], tool_choice="required")
    assert [message.role for message in spell_out_tools(bare).messages] == ["system", "user"]
    assert spell_out_tools(bare).messages[0].content == describe_tools(CHAT.tools, required=True)
    assert spell_out_tools(PLAIN) == PLAIN


def test_a_history_of_calls_in_words() -> None:
    history = [
        Message("user", "Go."),
        Message("assistant", "Two.", calls=(CALL, ToolCall("stop", "{}", "call_2"))),
        Message("tool", "0.3", answers="call_1"),
        Message("tool", "ended", answers="call_2"),
        Message("user", "On."),
        Message("assistant", "", calls=(CALL,)),
        Message("tool", "0.4", answers="call_1"),
    ]
    said = spell_out_calls(history)
    assert [message.role for message in said] == ["user", "assistant", "user", "assistant", "user"]
    assert said[1].content == f'Two.\n{SAID}\n{{"name": "stop", "arguments": {{}}}}'
    assert (said[2].content, said[3].content) == ("0.3\n\nended\n\nOn.", SAID)
    assert spell_out_calls(said) == said


def test_a_reply_is_answered_in_its_own_form() -> None:
    both = Reply("ok", "Hm.", calls=(CALL, ToolCall("stop", "{}", "call_2")))
    assert answer_calls(both, ["0.3", "ended"]) == (
        Message("assistant", "Hm.", calls=both.calls),
        Message("tool", "0.3", answers="call_1"),
        Message("tool", "ended", answers="call_2"),
    )
    assert answer_calls(Reply("ok", SAID), ["0.3"]) == (Message("assistant", SAID), Message("user", "0.3"))
    assert answer_calls(Reply("empty", ""), ["Call a tool."])[0] == Message("assistant", "(nothing)")


@pytest.mark.parametrize("arguments", ['{"text": "a', "", "[]", "null", "{'a': 1}"])
def test_broken_arguments_are_shown_as_text(arguments: str) -> None:
    """Servers that parse the history would refuse it with these."""
    reply = Reply("ok", "Hm.", calls=(CALL, ToolCall("look", arguments, "call_2")))
    said, answer = answer_calls(reply, ["it is no JSON object"])
    assert (said.role, said.calls) == ("assistant", ())
    assert said.content == f'Hm.\n{SAID}\n{{"name": "look", "arguments": {arguments}}}'
    assert answer == Message("user", "it is no JSON object")


# --- chat templates -------------------------------------------------------------------------------

TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ CALLS }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}[assistant]{% endif %}"
FORM = '{"name": <name>, "arguments": <object>}\n'
HEARD = "{% if tools %}[tools]{% for t in tools %}{{ t | tojson }}\n{% endfor %}" + FORM + "{% endif %}"
TAGGED = (
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
NAMED = TAGGED.replace('"arguments":', '"parameters":')
JOINED = "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %}"


def template(calls: str, *, heard: str = HEARD) -> str:
    return heard + TURNS.replace("{{ CALLS }}", calls) + OPEN


def rendered(text: str | None, chat: Chat) -> str:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = text
    return str(tokenizer.decode(ChatFormat(tokenizer, stops=[]).chat_ids(chat)))


def test_a_template_whose_calls_are_read_is_given_the_tools() -> None:
    text = rendered(template(TAGGED), CHAT)
    heard = "".join(json.dumps(tool.function()) + "\n" for tool in CHAT.tools)
    assert text == f"[tools]{heard}{FORM}[system]Be brief.[user]Find out.[assistant]"
    assert rendered(template(TAGGED), PLAIN) == "[system]Be brief.[user]Find out.[assistant]"


@pytest.mark.parametrize("other", [template(NAMED), template(JOINED), template(""), template(TAGGED, heard="")])
def test_any_other_template_is_told_in_words(other: str) -> None:
    told = describe_tools(CHAT.tools, required=False)
    assert rendered(other, CHAT) == f"[system]Be brief.\n\n{told}[user]Find out.[assistant]"


def test_a_base_model_is_told_in_words() -> None:
    told = describe_tools(CHAT.tools, required=False)
    assert rendered(None, CHAT) == f"System: Be brief.\n\n{told}\n\nUser: Find out.\n\nAssistant:"


@pytest.mark.parametrize("text", [template(TAGGED), template(""), None])
def test_a_history_of_calls_is_text_to_any_model(text: str | None) -> None:
    history = (*CHAT.messages, Message("assistant", "", calls=(CALL,)), Message("tool", "0.3", answers="call_1"))
    assert f"{SAID}" in rendered(text, replace(CHAT, messages=history))
    assert "tool_call" not in rendered(template(TAGGED), replace(CHAT, messages=history))


def test_a_local_model_takes_tools(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    llm = LocalLLM(str(tmp_path))
    said = replace(CHAT, messages=(Message("user", "?"),))
    length = len(llm.tokenizer.encode(plain(spell_out_tools(said).messages)))
    assert llm.count(said) == length > llm.count(replace(said, tools=()))
    reply = llm.submit(said).result(timeout=600)
    assert reply.reason == f"the prompt needs {length + 1} positions, the model has {CONTEXT}"
    llm.close()
