"""The local language model against transformers itself: one by one, unbatched, without any sharing."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from transformers import MambaConfig, MambaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from neuronaut.llm.local.chat_format import ChatFormat, Refused, plain
from neuronaut.llm.local.engine import EXPANSION, Engine, Job
from neuronaut.llm.local.forward import Forward, Writing, _draw
from neuronaut.llm.local.local import LocalLLM
from neuronaut.llm.types import Chat, Message, Probe, Reply, Sampling
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.loading import weights_digest
from tests.families import CONTEXT, FAMILIES, VOCABULARY, byte_tokenizer, tiny_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
)
DEAF = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
EVERY = pytest.mark.parametrize("family", FAMILIES)
SHAPES = pytest.mark.parametrize("family", ["gpt2", "llama"])


def tokenizer_of(template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<tool>", "<other>"])
    tokenizer.chat_template = template
    return tokenizer


def folder_of(path: Path, family: str = "llama", *, template: str | None = CHATML, **generation: Any) -> Path:
    """A tiny random model with a tokenizer, saved; `generation` goes into its generation_config."""
    folder = path / f"tiny-{family}"
    model = tiny_model(family)
    for key, value in generation.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(folder)
    tokenizer_of(template).save_pretrained(folder)
    return folder


@pytest.fixture
def opened() -> Iterator[Callable[..., LocalLLM]]:
    """LocalLLM, closed after the test."""
    clients: list[LocalLLM] = []

    def open(path: Path, **options: Any) -> LocalLLM:
        clients.append(LocalLLM(str(path), **options))
        return clients[-1]

    yield open
    for client in clients:
        client.close()


@pytest.fixture
def llm(tmp_path: Path, opened: Callable[..., LocalLLM]) -> LocalLLM:
    return opened(folder_of(tmp_path))


def user(text: str, **sampling: Any) -> Chat:
    return Chat((Message("user", text),), Sampling(**sampling))


def answers(llm: LocalLLM, requests: Sequence[Chat | Probe]) -> list[Reply]:
    return [future.result(timeout=600) for future in [llm.submit(request) for request in requests]]


@torch.no_grad()
def plain_logits(model: Any, ids: Sequence[int]) -> Tensor:
    return model(torch.tensor([list(ids)]), use_cache=False).logits[0]


def plain_probabilities(model: Any, probe: Probe) -> Tensor:
    chances = plain_logits(model, probe.ids).double().softmax(-1)
    return chances[list(probe.positions)][:, list(probe.choices)]


def probe_with(prefix: Sequence[int], length: int, *, seed: int) -> Probe:
    """`prefix` and `length` random tokens, some positions after the prefix wanted."""
    luck = Generator().manual_seed(seed)
    rest = torch.randint(VOCABULARY, (length,), generator=luck).tolist()
    wanted = torch.randperm(length, generator=luck)[: max(1, length // 3)] + len(prefix)
    return Probe(
        (*prefix, *rest), tuple(wanted.tolist()), tuple(torch.randperm(VOCABULARY, generator=luck)[:7].tolist())
    )


def assert_same(found: list[list[list[float]]], model: Any, probes: Sequence[Probe]) -> None:
    for rows, probe in zip(found, probes, strict=True):
        # Absolute, as probabilities here are about 1 / VOCABULARY and less.
        torch.testing.assert_close(torch.tensor(rows).double(), plain_probabilities(model, probe), rtol=1e-4, atol=1e-6)


# --- probes -------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("prefix", [0, 1, 9, 30])
def test_probes_that_share_are_as_if_alone(family: str, prefix: int) -> None:
    model = tiny_model(family)
    forward = Forward(model, name=family)
    shared = torch.randint(VOCABULARY, (prefix,), generator=Generator().manual_seed(3)).tolist()
    probes = [probe_with(shared, length, seed=length) for length in (1, 5, 17, 17, 30)]
    assert_same(forward.probabilities(probes), model, probes)
    assert_same(forward.probabilities(probes[:1]), model, probes[:1])
    assert_same(forward.probabilities(probes[1:3]), model, probes[1:3])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), family=st.sampled_from(["gpt2", "llama", "gemma3_text"]))
def test_any_sequence_of_batches(data: st.DataObject, family: str) -> None:
    """The prefix that is kept between batches never tells, whatever came before."""
    model = tiny_model(family)
    forward = Forward(model, name=family)
    for _ in range(data.draw(st.integers(1, 4))):
        shared = [7] * data.draw(st.integers(0, 30)) + [8] * data.draw(st.integers(0, 4))
        lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
        probes = [probe_with(shared, length, seed=data.draw(st.integers(0, 99))) for length in lengths]
        assert_same(forward.probabilities(probes), model, probes)


def test_identical_probes_and_early_positions() -> None:
    model = tiny_model("llama")
    forward = Forward(model, name="llama")
    probe = Probe(tuple(range(40)), (39, 0, 12, 12), (5, 5, 299))
    assert_same(forward.probabilities([probe, probe]), model, [probe, probe])
    late = Probe(tuple(range(40)), (39,), (5,))
    assert_same(forward.probabilities([late, late, late]), model, [late] * 3)


def test_a_shared_prefix_runs_once() -> None:
    model = tiny_model("llama")
    forward = Forward(model, name="llama")
    shapes: list[tuple[int, ...]] = []
    embedding: Any = model.get_input_embeddings()
    embedding.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[:2])))
    shared = list(range(100, 140))
    first = [probe_with([*shared, 1], 6, seed=seed) for seed in range(5)]
    second = [probe_with([*shared, 2], 6, seed=seed) for seed in range(5)]
    for probes in (first, first, second, first):
        forward.probabilities(probes)
    prefixes = [positions for rows, positions in shapes if rows == 1]
    # The first batch runs what it shares, the third learns what both kinds share; nothing after is run twice.
    assert len(shapes) == 4 + len(prefixes)
    assert len(prefixes) == 2
    assert prefixes[0] >= 41
    assert prefixes[1] == 40
    assert all(positions <= 7 for rows, positions in shapes if rows == 5)


def test_only_the_wanted_positions_are_unembedded() -> None:
    model = tiny_model("gpt2")
    forward = Forward(model, name="gpt2")
    seen: list[tuple[int, ...]] = []
    head: Any = model.get_output_embeddings()
    head.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape)))
    forward.probabilities([Probe(tuple(range(30)), (20, 25), (1,)), Probe(tuple(range(1, 31)), (3,), (1,))])
    assert seen == [(1, 3, VOCABULARY)]


@SHAPES
def test_probes_through_the_queue(tmp_path: Path, opened: Callable[..., LocalLLM], family: str) -> None:
    llm = opened(folder_of(tmp_path, family), batch_tokens=64)
    shared = list(range(20))
    probes = [probe_with(shared[: seed % 3 * 10], 3 + seed % 9, seed=seed) for seed in range(25)]
    replies = answers(llm, probes)
    assert [reply.status for reply in replies] == ["ok"] * 25
    assert [reply.input_tokens for reply in replies] == [len(probe.ids) for probe in probes]
    assert_same([[list(row) for row in reply.probabilities] for reply in replies], tiny_model(family), probes)  # pyright: ignore


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (Probe((1, 2), (2,), (1,)), "position 2 is outside the prompt of 2 tokens"),
        (Probe((1, 2), (-1,), (1,)), "position -1 is outside"),
        (Probe((1, VOCABULARY), (0,), (1,)), "token id 300 is outside the vocabulary, 0 to 299"),
        (Probe((1, 2), (0,), (VOCABULARY,)), "token id 300 is outside"),
        (Probe((1,) * (CONTEXT + 1), (0,), (1,)), "the prompt needs 65 positions, the model has 64"),
    ],
)
def test_a_bad_probe_fails_alone(llm: LocalLLM, probe: Probe, reason: str) -> None:
    bad, good, none = answers(llm, [probe, Probe((1, 2), (1,), (3,)), Probe((1, 2), (), (3,))])
    assert (bad.status, bad.probabilities) == ("failed", ())
    assert reason in (bad.reason or "")
    assert good.status == none.status == "ok"
    assert none.probabilities == ()


def test_logits_that_are_not_finite_are_no_answer() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("nan")  # pyright: ignore
    engine = Engine(model, tokenizer_of(), name="broken")
    probe, chat = Probe((1, 2), (1,), (4,)), user("Hi")
    replies = [engine.answer([job])[0] for job in map(engine.prepare, (probe, chat)) if isinstance(job, Job)]
    assert [reply.status for reply in replies] == ["failed", "failed"]
    assert [reply.reason for reply in replies] == [
        "the model's logits are not finite in torch.float32; load it as float32"
    ] * 2


# --- chats --------------------------------------------------------------------------------------


@EVERY
def test_greedy_replies_are_those_of_generate(family: str) -> None:
    """Rows of different length and limit in one batch, against `generate` one by one."""
    model = tiny_model(family)
    prompts = [
        torch.randint(1, VOCABULARY, (length,), generator=Generator().manual_seed(length)) for length in (3, 20, 11)
    ]
    limits = (12, 7, 1)
    rows = [Writing(prompt.tolist(), limit, lambda _: False) for prompt, limit in zip(prompts, limits, strict=True)]
    Forward(model, name=family).write(rows)
    for row, prompt, limit in zip(rows, prompts, limits, strict=True):
        wanted = model.generate(prompt[None], max_new_tokens=limit, do_sample=False, eos_token_id=None)  # pyright: ignore
        assert row.written == wanted[0, len(prompt) :].tolist()


def test_a_reply_ends_at_any_of_the_ends(tmp_path: Path, opened: Callable[..., LocalLLM]) -> None:
    chat = user("Tell me.", max_tokens=12)
    free = opened(folder_of(tmp_path / "free"))
    written = Writing(free._engine()._format.ids(chat.messages), 12, lambda _: False)  # pyright: ignore
    free._engine()._forward.write([written])
    end = written.written[6]
    place = written.written.index(end)
    llm = opened(folder_of(tmp_path / "ended", eos_token_id=[2, end]))
    short, cut = answers(llm, [chat, user("Tell me.", max_tokens=place)])
    assert (short.status, short.reason, short.output_tokens) == ("ok", None, place + 1)
    assert (cut.status, cut.output_tokens) == ("truncated", place)
    assert cut.reason == f"cut at {place} tokens"
    assert short.text == cut.text == llm.tokenizer.decode(written.written[:place], skip_special_tokens=True)
    assert short.input_tokens == llm.count(chat) == len(written.prompt)


def test_company_does_not_change_the_luck(tmp_path: Path, opened: Callable[..., LocalLLM]) -> None:
    folder = folder_of(tmp_path)
    chats = [user("x" * n, temperature=1.0, max_tokens=4 + n, seed=n % 2) for n in range(9)]
    alone, together = opened(folder, batch_tokens=1), opened(folder)
    texts = [reply.text for reply in answers(alone, chats)]
    assert [reply.text for reply in answers(together, chats)] == texts
    assert [reply.text for reply in reversed(answers(together, chats[::-1]))] == texts
    others = [user("x" * n, temperature=1.0, max_tokens=4 + n, seed=7) for n in range(9)]
    assert sum(reply.text != text for reply, text in zip(answers(together, others), texts, strict=True)) >= 8


def test_draws_follow_the_temperature() -> None:
    scores = torch.tensor([0.0, 1.0, -float("inf"), 2.0])
    for temperature in (0.5, 1.0, 2.0):
        row = Writing([0], 1, lambda _: False, temperature, Generator().manual_seed(0))
        drawn = Counter(_draw(scores, row) for _ in range(4000))
        for id, chance in enumerate((scores / temperature).softmax(-1).tolist()):
            assert abs(drawn[id] / 4000 - chance) < 4 * (chance * (1 - chance) / 4000) ** 0.5 + 1e-9


def test_no_temperature_is_the_models_own(tmp_path: Path, opened: Callable[..., LocalLLM]) -> None:
    chat, greedy = user("Hello", temperature=None, max_tokens=10), user("Hello", max_tokens=10)
    llm = opened(folder_of(tmp_path / "greedy"))
    assert len({reply.text for reply in answers(llm, [chat, greedy])}) == 1
    llm = opened(folder_of(tmp_path / "hot", do_sample=True, temperature=5.0))
    hot = [user("Hello", temperature=None, max_tokens=10, seed=seed) for seed in range(4)]
    assert len({reply.text for reply in answers(llm, [*hot, greedy])}) == 5


@SHAPES
def test_alternatives_are_log_probabilities(tmp_path: Path, opened: Callable[..., LocalLLM], family: str) -> None:
    llm, model = opened(folder_of(tmp_path, family)), tiny_model(family)
    chat = user("What is it?", max_tokens=5, top_logprobs=4, temperature=0.7)
    reply, bare = answers(llm, [chat, user("Other", max_tokens=5)])
    assert bare.logprobs == ()
    ids = llm._engine()._format.ids(chat.messages)
    strings = llm._engine()._strings
    assert len(reply.logprobs) == 5
    for token in reply.logprobs:
        scores = plain_logits(model, ids)[-1].log_softmax(-1)
        values, best = scores.topk(4)
        assert set(token.top) == {strings[id] for id in best.tolist()}
        assert sorted(token.top.values(), reverse=True) == pytest.approx(values.tolist(), abs=1e-4)
        ids.append(strings.index(token.token))


def test_a_prompt_that_does_not_fit_fails(llm: LocalLLM) -> None:
    room = CONTEXT - llm.count(user(""))
    over, exact, nearly, fine = answers(llm, [user("x" * n, max_tokens=9) for n in (room + 9, room, room - 2, 3)])
    for reply, n in ((over, room + 9), (exact, room)):
        assert (reply.status, reply.text) == ("failed", "")
        assert reply.reason == f"the prompt needs {CONTEXT - room + n + 1} positions, the model has {CONTEXT}"
    assert (nearly.status, nearly.output_tokens) == ("truncated", 2)
    assert fine.output_tokens == 9
    (none,) = answers(llm, [user("x", max_tokens=0)])
    assert none.status == "failed"


# --- how a model is spoken to -------------------------------------------------------------------

TALK = (Message("system", " Be brief. "), Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "So\n"))


def test_the_template_is_the_models_own() -> None:
    tokenizer = tokenizer_of(CHATML)
    wanted = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in TALK], add_generation_prompt=True, return_dict=False
    )
    assert ChatFormat(tokenizer, stops=[]).ids(TALK) == wanted


MARKUP = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_<|im_end|>end|>", "<<|im_end|>|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, STRICT, None])
@given(parts=st.lists(st.sampled_from([*MARKUP, "<tool>", "a", " ", "\n", "\ue000", "<", "|>", "é"]), max_size=8))
def test_markup_in_a_message_stays_text(template: str | None, parts: list[str]) -> None:
    tokenizer = tokenizer_of(template)
    content = "a" + "".join(parts) + "a"
    ids = ChatFormat(tokenizer, stops=[]).ids([Message("user", content)])
    special = Counter(id for id in ids if id in tokenizer.all_special_ids)
    empty = Counter(
        id for id in ChatFormat(tokenizer, stops=[]).ids([Message("user", "")]) if id in tokenizer.all_special_ids
    )
    assert special == empty
    # Joined again, the prompt says the very same.
    assert content in tokenizer.decode(ids)


def test_added_tokens_are_markup_where_the_template_writes_them() -> None:
    tokenizer = tokenizer_of(CHATML + "<tool>")
    tool, other = (tokenizer.convert_tokens_to_ids(token) for token in ("<tool>", "<other>"))
    ids = ChatFormat(tokenizer, stops=[]).ids([Message("user", "<tool><other>")])
    assert (ids.count(tool), ids.count(other)) == (1, 1)


@pytest.mark.parametrize("template", [STRICT, DEAF])
def test_a_system_message_without_a_place_joins_the_user(template: str) -> None:
    tokenizer = tokenizer_of(template)
    text = tokenizer.decode(ChatFormat(tokenizer, stops=[]).ids(TALK))
    assert text == "[user] Be brief. \n\nHi[assistant]Yes?[user]So\n[assistant]"


def test_a_conversation_that_the_template_refuses(tmp_path: Path, opened: Callable[..., LocalLLM]) -> None:
    strange = Chat((Message("assistant", "I begin."),))
    with pytest.raises(Refused):
        ChatFormat(tokenizer_of(STRICT), stops=[]).ids(strange.messages)
    llm = opened(folder_of(tmp_path, template=STRICT))
    (reply,) = answers(llm, [strange])
    assert (reply.status, reply.reason) == ("failed", "the chat template takes no conversation of assistant")
    assert llm.count(strange) == len(llm.tokenizer.encode(plain(strange.messages)))


def test_a_base_model_continues_plain_turns() -> None:
    tokenizer = tokenizer_of()
    turns = ChatFormat(tokenizer, stops=[tokenizer.convert_tokens_to_ids("<|im_end|>")])
    text = tokenizer.decode(turns.ids(TALK))
    assert text == "System:  Be brief. \n\nUser: Hi\n\nAssistant: Yes?\n\nUser: So\n\n\nAssistant:"
    written = tokenizer.encode(" A reply.\nUser: Mr\n\nUser")
    ends = [turns.is_over(written[:count]) for count in range(1, len(written) + 1)]
    heading = len(tokenizer.encode(" A reply.\nUser:"))
    assert ends.index(True) == heading - 1
    assert turns.text(written[:heading]) == "A reply."
    assert tokenizer.decode(written[: turns.count_text(written[:heading])]) == " A reply."
    ended = tokenizer.encode(" A reply.<|im_end|>")
    assert turns.is_over(ended)
    assert turns.text(ended) == "A reply."
    assert turns.count_text(ended) == len(ended) - 1
    assert not turns.is_over(tokenizer.encode(" A reply.\nUsers"))


def test_a_text_opens_as_the_tokenizer_has_it() -> None:
    tokenizer = tokenizer_of()
    bos = tokenizer.bos_token_id
    assert ChatFormat(tokenizer, stops=[]).ids(TALK)[0] != bos
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    ids = ChatFormat(tokenizer, stops=[]).ids(TALK)
    assert (ids[0], ids.count(bos)) == (bos, 1)


# --- loading, batches and the worker ------------------------------------------------------------


def test_loading_is_lazy_and_names_the_weights(tmp_path: Path, opened: Callable[..., LocalLLM]) -> None:
    missing = opened(tmp_path / "nothing")
    assert (missing.endpoint, missing.can_probe) == ("local", True)
    for use in (lambda: missing.model, lambda: missing.count(user("")), lambda: missing.submit(user(""))):
        with pytest.raises(NeuronautError, match="there is no folder"):
            use()
    folder = folder_of(tmp_path)
    assert opened(folder).model == f"tiny-llama@{weights_digest(tiny_model('llama'))[:8]}"
    half = opened(folder, dtype="bfloat16", name="other").model
    assert half.startswith("other@")
    assert half[6:] != opened(folder).model[-8:]


def test_any_family_of_transformers_will_do(tmp_path: Path, opened: Callable[..., LocalLLM]) -> None:
    """OPT is no subject of ours; its positions follow from the attention mask."""
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
    torch.manual_seed(0)
    model = OPTForCausalLM(
        OPTConfig(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, word_embed_proj_dim=16, **sizes)
    )
    model.save_pretrained(tmp_path / "opt")
    tokenizer_of().save_pretrained(tmp_path / "opt")
    llm = opened(tmp_path / "opt")
    probes = [probe_with(range(9), length, seed=length) for length in (4, 7, 12)]
    replies = answers(llm, probes)
    assert_same([[list(row) for row in reply.probabilities] for reply in replies], model.eval(), probes)  # pyright: ignore


def test_a_past_that_is_more_than_attention_is_refused() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(NeuronautError, match="mamba is a MambaForCausalLM, whose past is not attention's") as caught:
        Forward(model, name="mamba")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_process_is_left_as_it_was(tmp_path: Path, opened: Callable[..., LocalLLM], family: str) -> None:
    folder = folder_of(tmp_path, family)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    llm = opened(folder)
    answers(llm, [user("Hi", temperature=1.0, max_tokens=4), Probe((1, 2, 3), (1, 2), (4,))])
    model = llm._engine()._forward.model
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (True, False)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert weights_digest(model) == weights_digest(tiny_model(family))
    llm.close()
    assert all(thread.name != "local model" for thread in threading.enumerate())


@given(
    sizes=st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(0, 30)), min_size=1, max_size=25),
    batch_tokens=st.integers(1, 300),
)
@settings(max_examples=60, deadline=None)
def test_batches_are_bounded_and_leave_none_out(sizes: list[tuple[bool, int, int]], batch_tokens: int) -> None:
    engine = ENGINE
    jobs: list[Job] = []
    for is_chat, length, shared in sizes:
        ids = (7,) * shared + tuple(range(length))
        probe = Probe(ids, (len(ids) - 1,), (1,))
        jobs.append(Job(user("", max_tokens=5) if is_chat else probe, ids))
    left = list(jobs)
    while left:
        batch = [left[place] for place in engine.next_batch(left, batch_tokens=batch_tokens)]
        assert len({type(job.request) for job in batch}) == 1
        assert type(batch[0].request) is type(left[0].request)
        longest = max(job.length for job in batch)
        if len(batch) > 1:
            assert len(batch) * longest <= EXPANSION * batch_tokens
        if len(batch) > 1 and isinstance(batch[0].request, Chat):
            assert len(batch) * longest <= batch_tokens
        for job in batch:
            left.remove(job)


ENGINE = Engine(tiny_model("llama"), tokenizer_of(), name="tiny")


def test_a_batch_that_memory_does_not_hold_is_halved(llm: LocalLLM) -> None:
    rows: list[int] = []

    def small(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        rows.append(len(kwargs["input_ids"]))
        if rows[-1] > 2:
            raise torch.OutOfMemoryError("full")

    chats = [user("x" * n, max_tokens=3) for n in range(1, 8)]
    wanted = [reply.text for reply in answers(llm, chats)]
    hook = llm._engine()._forward.model.register_forward_pre_hook(small, with_kwargs=True)
    assert [reply.text for reply in answers(llm, chats)] == wanted
    assert max(rows) > 2
    hook.remove()


def test_an_error_reaches_those_it_concerns(llm: LocalLLM) -> None:
    (before,) = answers(llm, [user("x", max_tokens=3)])
    for error, expected in ((RuntimeError("bad kernel\nlong story"), "failed"), (KeyError("a bug"), None)):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        hook = llm._engine()._forward.model.register_forward_pre_hook(fail)
        future = llm.submit(user("x", max_tokens=3))
        if expected:
            reply = future.result(timeout=600)
            assert (reply.status, reply.reason) == ("failed", "bad kernel")
        else:
            assert isinstance(future.exception(timeout=600), KeyError)
        hook.remove()
    assert answers(llm, [user("x", max_tokens=3)])[0].text == before.text


def test_many_threads_may_ask(llm: LocalLLM) -> None:
    chats = [user("x" * n, max_tokens=3) for n in range(16)]
    found: dict[int, str] = {}

    def ask(start: int) -> None:
        for place in range(start, 16, 4):
            found[place] = answers(llm, [chats[place]])[0].text

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
    assert [found[place] for place in range(16)] == [reply.text for reply in answers(llm, chats)]


def test_closing_drops_what_has_not_begun(llm: LocalLLM) -> None:
    llm.model  # noqa: B018
    begun, go = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        begun.set()
        assert go.wait(timeout=600)

    hook = llm._engine()._forward.model.register_forward_pre_hook(hold)
    first = llm.submit(user("x", max_tokens=2))
    assert begun.wait(timeout=600)
    second = llm.submit(user("y", max_tokens=2))
    threading.Timer(0.1, go.set).start()
    llm.close()
    hook.remove()
    assert first.result(timeout=600).output_tokens == 2
    assert second.cancelled()
    assert llm.submit(user("z")).cancelled()
