"""The one-pass simulator: aligned whatever the tokenizer and the tokens, and equal to asking token by token."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from neuronaut.data.records import Example, Explanation, Judgements
from neuronaut.llm.local.local import LocalLLM
from neuronaut.llm.prompt import Prompt
from neuronaut.llm.types import Message, Probe, Reply
from neuronaut.scorers.controls import NONE
from neuronaut.scorers.holdout import Baselines, Holdout
from neuronaut.scorers.llm_simulation import LLMSimulator
from neuronaut.scorers.scorer import Case, measure
from neuronaut.scorers.simulation_probe import PROMPT, ProbeBackend
from neuronaut.subject.address import Feature
from neuronaut.subject.errors import NeuronautError
from tests import golden
from tests.families import byte_tokenizer

DEMO = Path(__file__).parent.parent / "data" / "demo"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
)


def demo() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO)


def byte_bpe() -> PreTrainedTokenizerBase:
    """Bytes alone, so `10` is two tokens; with chat markup, special and not."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = CHATML
    return tokenizer


def sentencepiece_like() -> PreTrainedTokenizerBase:
    """As Llama 2's: `▁` for spaces and before every text, bytes for what is no piece, tabs and newlines among them."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(33, 127))]
    words = ["10", "unknown", "\u2581unknown", "\u2581the", "\u2581self", "ing", "def", "start", "end"]
    model = models.Unigram(
        [(piece, -8.0) for piece in pieces] + [(word, -6.0) for word in words], unk_id=0, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def characters() -> PreTrainedTokenizerBase:
    """A token per character of ASCII; `10` is two, and everything else is unknown."""
    vocabulary = {c: i for i, c in enumerate(["<unk>", "<eos>", "\t", "\n", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "demo": demo,
    "bytes": byte_bpe,
    "sentencepiece": sentencepiece_like,
    "characters": characters,
}
EVERY = pytest.mark.parametrize("name", TOKENIZERS)
PLANTED = "line breaks, and more weakly chat markup"
TOPS = {"demo": 10, "bytes": 9, "sentencepiece": 10, "characters": 9}
AWKWARD = (
    "",
    " ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    " \t\n",
    "\t\tunknown\n",
    "unknown",
    "10",
    " 10",
    "\t3\n",
    "😀",
    "\\xf0\\x9f",
    "<|im_end|>",
    "<|im_start|>system\n",
    "<|<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "<s>",
    "</s>",
    "<unk>",
    "<start>",
    "<end>",
    "é",
    "\u2581",
    "\u2581the",
    "\ue000explanation\ue001",
    "\ue0002\ue001",
    "\u2028",
    "\x00",
    " self",
    "ing",
)
WINDOWS = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=6), max_size=24)


@lru_cache
def made(name: str) -> tuple[PreTrainedTokenizerBase, ProbeBackend]:
    tokenizer = TOKENIZERS[name]()
    return tokenizer, ProbeBackend(tokenizer)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids))
    assert isinstance(text, str)
    return text


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


@EVERY
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tokens=WINDOWS, explanation=st.sampled_from(AWKWARD) | st.text(max_size=30))
def test_every_token_has_one_position_in_order(name: str, tokens: list[str], explanation: str) -> None:
    tokenizer, backend = made(name)
    start = len(backend.request(explanation, ()).ids)
    probe = backend.request(explanation, tokens)
    empty = backend.request(explanation, [""] * len(tokens))
    assert len(probe.positions) == len(tokens)
    assert probe.ids[:start] == backend.request(explanation, ()).ids
    lines = [0, *(np.array(probe.positions) + 1 - start)]
    tab_and_rest = empty.ids[start:][: (len(empty.ids) - start) // max(len(tokens), 1)]
    tab = empty.positions[0] - start + 1 if tokens else 0
    ends = tab_and_rest[tab:]
    area = probe.ids[start:]
    for token, (line, end), at in zip(tokens, zip(lines, lines[1:], strict=False), probe.positions, strict=True):
        segment = area[line + (len(ends) if line else 0) : end]
        assert segment[len(segment) - tab :] == tab_and_rest[:tab]
        assert at == start + end - 1
        assert area[end : end + len(ends)] == ends
        if name in ("demo", "bytes"):
            assert text_of(tokenizer, segment) == f"{token}\t"
    markup = {id for id, t in tokenizer.added_tokens_decoder.items() if t.content.strip()} - {
        ids_of(tokenizer, str(tokenizer.unk_token))[0]
    }
    assert not markup & set(area)


@EVERY
def test_the_scale_is_what_the_tokenizer_can_write(name: str) -> None:
    tokenizer, backend = made(name)
    probe = backend.request("anything", ("a",))
    assert backend.top == TOPS[name]
    assert len(set(probe.choices)) == len(probe.choices) == backend.top + 1
    assert [text_of(tokenizer, [id]).strip() for id in probe.choices] == [str(v) for v in range(backend.top + 1)]
    said = text_of(tokenizer, probe.ids)
    assert ("10" in said) == (backend.top == 10)


@EVERY
def test_the_worked_examples_are_written_in_the_same_ids(name: str) -> None:
    """After a tab stands a value or `unknown`, in the very ids that are asked for, and nothing else."""
    _, backend = made(name)
    one = backend.request("", ("a",))
    start = len(backend.request("", ()).ids)
    tab = one.ids[one.positions[0]]
    unknown = one.ids[one.positions[0] + 1]
    following = [b for a, b in zip(one.ids[:start], one.ids[1:start], strict=False) if a == tab]
    values = [id for id in following if id in one.choices]
    lines = [line.rpartition("\t")[2] for line in PROMPT.read_text().splitlines() if "\t" in line]
    assert len(following) == len(lines)
    assert set(following) - {unknown} == set(values)
    assert following.count(unknown) == lines.count("unknown")
    assert values.count(one.choices[-1]) == lines.count("$top")


def test_a_tokenizer_without_tabs_is_refused() -> None:
    pieces = ("[UNK]", "a", "unknown", "10", *"0123456789")
    words = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(NeuronautError, match="has no tab and no newline, so it cannot simulate in one pass"):
        ProbeBackend(tokenizer)


def test_the_users_tokenizer_is_left_as_it_was() -> None:
    tokenizer = byte_bpe()
    backend = ProbeBackend(tokenizer)
    before = tokenizer.encode("<|im_end|> x")
    backend.request("<|im_end|>", ("<|im_end|>", "x"))
    assert tokenizer.encode("<|im_end|> x") == before and len(before) == 3


@pytest.mark.parametrize(("template", "system"), [(CHATML, "system\n"), (NO_SYSTEM, "[user]"), (STRICT, "[user]")])
def test_chat_formats_with_and_without_a_system_turn(template: str, system: str) -> None:
    tokenizer = byte_bpe()
    tokenizer.chat_template = template
    probe = ProbeBackend(tokenizer).request("rain", ("a",))
    said = text_of(tokenizer, probe.ids)
    assert said.startswith((f"<|im_start|>{system}We study", f"{system}We study"))
    assert said.count("We study") == 1 and "\ue000" not in said
    assert "Explanation:\nrain" in said
    assert re.search(r"\]?assistant[]\n]Activations:\n<start>\na\tunknown\n$", said)
    if template == CHATML:
        markup = ids_of(tokenizer, "<|im_start|>")
        assert len(markup) == 1 and probe.ids.count(markup[0]) == 9


def test_a_prompt_without_worked_examples_or_place_is_refused() -> None:
    with pytest.raises(NeuronautError, match="has no worked example"):
        ProbeBackend(byte_bpe(), Prompt("mine", "## user\n$explanation\n"))
    with pytest.raises(NeuronautError, match=r"has no place \$explanation"):
        ProbeBackend(byte_bpe(), Prompt("mine", "## user\nx\n## assistant\n<start>\na\t1\n## user\nhello\n"))


def test_the_prompt() -> None:
    tokenizer = demo()
    probe = ProbeBackend(tokenizer).request("the word self", ("def", " run", "(", "self", "\n", "\t", "<|endoftext|>"))
    golden.check("simulate_all", [Message("user", text_of(tokenizer, probe.ids))])
    assert probe.prompt == "simulate_all"


# What is read


def test_missing_probabilities_are_missing_values() -> None:
    _, backend = made("demo")
    half = (0.25, *(None,) * 9, 0.25)
    reading = backend.read(Reply("ok", probabilities=(half, (None,) * 11, (0.0,) * 11)), tokens=3)
    assert reading.values[0] == 5 and np.isnan(reading.values[1:]).all()
    assert reading.missing == {"no digit": 2}
    assert reading.notes == {"digit_mass": pytest.approx(0.5 / 3)}
    assert backend.read(Reply("failed"), tokens=3).missing == {"failed": 3}
    assert backend.read(Reply("ok", probabilities=(half,)), tokens=3).missing == {"malformed": 3}


def case(tokens: Sequence[Sequence[str]], activations: np.ndarray, vocabulary: tuple[str, ...]) -> Case:
    """A case of these windows, of which the first half are the top ones."""
    feature = Feature.parse("demo:mlp.2:17")
    examples = [
        Example(
            tuple(row),
            np.array([vocabulary.index(t) for t in row]),
            own.astype(np.float32),
            "top" if i < len(tokens) // 2 else "random",
            "holdout",
            "doc",
            f"w{i}",
        )
        for i, (row, own) in enumerate(zip(tokens, activations, strict=True))
    ]
    flat = np.zeros(len(vocabulary), np.float32)
    holdout = Holdout(feature, float(activations.max()), vocabulary, {}, tuple(examples))
    return Case(Explanation(feature, PLANTED, "oneshot"), holdout, Baselines(flat, flat, None))


def judged(backend: ProbeBackend, case: Case, answer: Callable[[Sequence[Probe]], list[Reply]]) -> list[Judgements]:
    asking = LLMSimulator(backend, controls=NONE).judge(case)
    requests = [request for request in next(asking) if isinstance(request, Probe)]
    with pytest.raises(StopIteration) as stop:
        asking.send([replace(reply, key=str(i)) for i, reply in enumerate(answer(requests))])
    return stop.value.value


@EVERY
def test_one_that_knows_the_tokens_scores_one_on_every_tokenizer(name: str) -> None:
    """It reads each token back from the ids before its position, so a shift of one would show."""
    _, backend = made(name)
    vocabulary = ("\t", "\n", " the", "😀", "<|im_end|>", "", "rain")
    draw = np.random.default_rng(0)
    tokens = [[vocabulary[i] for i in draw.integers(0, len(vocabulary), 16)] for _ in range(10)]
    truth = np.array([[9.0 if t == "\n" else 4.0 if t == "<|im_end|>" else 0.0 for t in row] for row in tokens])
    tail = backend.request("", ("",))
    step = len(tail.ids) - tail.positions[0] - 1
    lines = {t: backend.request("x", (t,)) for t in vocabulary}
    start, first = len(backend.request("x", ()).ids), len(backend.request(PLANTED, ()).ids)
    known = {probe.ids[start : probe.positions[0] + 1]: t for t, probe in lines.items()}
    assert len(known) == len(vocabulary)

    def answer(probes: Sequence[Probe]) -> list[Reply]:
        replies = []
        for probe in probes:
            begins = [first, *(p + 1 + step for p in probe.positions)]
            rows = []
            for begin, position in zip(begins, probe.positions, strict=False):
                token = known[probe.ids[begin : position + 1]]
                value = 9 if token == "\n" else 4 if token == "<|im_end|>" else 0
                rows.append(tuple(float(value == v) for v in range(backend.top + 1)))
            replies.append(Reply("ok", probabilities=tuple(rows)))
        return replies

    scores = {(s.examples, s.metric): s for s in measure(judged(backend, case(tokens, truth, vocabulary), answer))}
    for examples in ("top_random", "random"):
        assert scores[examples, "correlation"].value == pytest.approx(1.0)
        assert scores[examples, "correlation"].provenance["scale"] == TOPS[name]
        assert scores[examples, "correlation"].provenance["digit_mass"] == 1.0


def test_a_real_model_gives_what_asking_token_by_token_gives(tmp_path: Path) -> None:
    """LocalLLM in one pass against one forward per token in double precision, with a softmax over the digits alone."""
    tokenizer = demo()
    torch.manual_seed(0)
    # Larger weights spread the values, but from about 0.6 single precision alone is off by more than 1e-5.
    config = GPT2Config(
        vocab_size=2048,
        n_positions=1024,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    vocabulary = ("def", " self", "(", "\n", "\t", "😀", "<|endoftext|>", "", " return")
    draw = np.random.default_rng(1)
    tokens = [[vocabulary[i] for i in draw.integers(0, len(vocabulary), 12)] for _ in range(4)]
    llm = LocalLLM(str(tmp_path / "tiny"))
    backend = ProbeBackend(llm.tokenizer)
    asked: list[Probe] = []

    def answer(probes: Sequence[Probe]) -> list[Reply]:
        asked.extend(probes)
        return [future.result() for future in [llm.submit(probe) for probe in probes]]

    judgements = judged(backend, case(tokens, draw.random((4, 12)), vocabulary), answer)
    llm.close()
    own = next(j for j in judgements if j.role == "explanation" and j.examples == "top_random")
    exact = model.double()
    digits = [tokenizer.encode(str(value))[0] for value in range(11)]
    for row, probe in enumerate(asked[:4]):
        for column, position in enumerate(probe.positions):
            with torch.inference_mode():
                logits = exact(torch.tensor([probe.ids[: position + 1]])).logits[0, -1, digits]
            chances = logits.softmax(-1)
            expected = float(sum(value * chances[value] for value in range(11)))
            assert own.predicted[row, column] == pytest.approx(expected, abs=1e-5)
    assert own.predicted.std() > 0.1 and own.provenance["windows"] == 4
