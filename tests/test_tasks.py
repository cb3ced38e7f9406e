"""Tasks: what the generators draw, what a file may hold, and whether the subject does it at all."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from neuronaut.causal.circuits.tasks import (
    GENERATORS,
    Row,
    Task,
    baseline,
    generate,
    next_token,
    open_task,
    read_task,
    row_of,
)
from neuronaut.causal.prompts import single_token
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.circuits import induction
from tests.families import tiny_model, tiny_subject


@pytest.fixture(scope="module")
def demo() -> Subject:
    return Subject.load("demo")


def wordy(words: str) -> Subject:
    """A random subject whose tokens are words between spaces."""
    vocabulary = {word: id for id, word in enumerate(["<bos>", *dict.fromkeys(words.split())])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<bos>")
    model = tiny_model("gpt2")
    assert isinstance(model, GPT2LMHeadModel)
    return Subject(model, fast, name="wordy")


def texts(subject: Subject, task: Task) -> list[tuple[str, str]]:
    sides = (task.pairs.clean.ids(), task.pairs.corrupted.ids())
    one, other = (["".join(subject.decode_tokens(row)) for row in side] for side in sides)
    return list(zip(one, other, strict=True))


# --- generators --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["induction", "brackets", "variable"])
def test_the_built_in_subject_does_the_generators_tasks(demo: Subject, name: str) -> None:
    task = generate(demo, name, rows=48, seed=7)
    found = baseline(demo, task)
    assert found.accuracy > 0.85 and found.corrupted_accuracy > 0.85
    assert found.clean.interval is not None and found.clean.interval.low > 1.5 > 0 > found.corrupted.value
    again, other = (generate(demo, name, rows=48, seed=seed) for seed in (7, 8))
    assert texts(demo, again) == texts(demo, task) != texts(demo, other)
    assert len(set(texts(demo, task))) == 48


def test_an_induction_row_changes_two_places_and_what_follows(demo: Subject) -> None:
    task = generate(demo, "induction", rows=20)
    pairs = task.pairs
    for clean, corrupted, answer, wrong in zip(
        pairs.clean.ids(), pairs.corrupted.ids(), pairs.answers.tolist(), pairs.wrong.tolist(), strict=True
    ):
        places = [place for place, two in enumerate(zip(clean, corrupted, strict=True)) if two[0] != two[1]]
        assert len(places) == 2 and max(places) <= 20 and clean[-1] == corrupted[-1]
        assert clean[clean.index(clean[-1]) + 1] == answer
        assert corrupted[corrupted.index(corrupted[-1]) + 1] == wrong != answer
        assert clean[1:11] == clean[21:] and clean[0] == demo.bos


def test_brackets_close_what_is_open(demo: Subject) -> None:
    closes = {"(": ")", "[": "]", "{": "}"}
    task = generate(demo, "brackets", rows=30)
    for (clean, corrupted), answer, wrong in zip(
        texts(demo, task), task.pairs.answers.tolist(), task.pairs.wrong.tolist(), strict=True
    ):
        for text, close in ((clean, answer), (corrupted, wrong)):
            (bracket,) = [sign for sign in text if sign in closes]
            assert demo.vocabulary[close] == closes[bracket]


def test_ioi_asks_for_the_one_who_does_not_hand_it_over() -> None:
    names = "Alice Anna Bob David Emma Frank George Henry Jack James Jane John Kate Laura Mark Mary Paul Peter Sarah"
    subject = wordy(f"{names} Tom When After While and walked met were to at in the handed sent passed a book")
    task = generate(subject, "ioi", rows=12)
    pairs = task.pairs
    for clean, corrupted, answer, wrong in zip(
        pairs.clean.ids(), pairs.corrupted.ids(), pairs.answers.tolist(), pairs.wrong.tolist(), strict=True
    ):
        assert (clean.count(answer), clean.count(wrong)) == (1, 2) == (corrupted.count(wrong), corrupted.count(answer))


def test_a_generator_whose_words_are_split_refuses(demo: Subject) -> None:
    with pytest.raises(NeuronautError, match=r"of 80 prompts drawn for ioi, 0 .* tokens of demo, wanted 4; .*JSONL"):
        generate(demo, "ioi", rows=4)
    with pytest.raises(NeuronautError, match="there is no task 'iou'; there are induction, brackets"):
        generate(demo, "iou", rows=4)


def test_the_hand_built_circuit_does_the_generated_induction() -> None:
    subject = induction("gpt2").subject
    assert baseline(subject, generate(subject, "induction", rows=16)).accuracy == 1.0


# --- files -------------------------------------------------------------------------------------

GOOD = {"clean": "    x = (a, b", "corrupted": "    x = [a, b", "answer": ")", "wrong": "]"}


def written(path: Path, *rows: Mapping[str, object] | str) -> Path:
    file = path / "pairs.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_a_file_of_pairs_is_a_task(demo: Subject, tmp_path: Path) -> None:
    longer = {**GOOD, "clean": "    value = name(a, b", "corrupted": "    value = name[a, b"}
    file = written(tmp_path, GOOD, "", longer)
    task = open_task(demo, str(file))
    assert (task.name, len(task)) == ("pairs.jsonl", 2)
    assert texts(demo, task)[1] == ("<|endoftext|>    value = name(a, b", "<|endoftext|>    value = name[a, b")
    assert demo.decode_tokens(task.pairs.answers.tolist()) == (")", ")")
    last = task.take([1])
    assert texts(demo, last) == texts(demo, task)[1:]


BAD = (
    ({**GOOD, "corrupted": "    x = [a, b, c"}, r"line 2 of .*jsonl: not aligned: .* 10 corrupted; from position \d+"),
    ({**GOOD, "answer": ") and more"}, r"line 2 of .*: answer '\) and more' is \d tokens"),
    ({**GOOD, "wrong": None}, r"line 2 of .*: wanted an object with the texts clean, corrupted, answer, wrong; came"),
    ({**GOOD, "corrupted": GOOD["clean"]}, "line 2 of .*: clean and corrupted, and answer and wrong, must differ"),
    ("{clean}", "line 2 of .*: this is no JSON"),
)


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_bad_line_is_named(demo: Subject, tmp_path: Path, row: Mapping[str, object] | str, message: str) -> None:
    with pytest.raises(NeuronautError, match=message):
        read_task(demo, written(tmp_path, GOOD, row))


def test_what_is_no_task_is_refused(demo: Subject, tmp_path: Path) -> None:
    with pytest.raises(NeuronautError, match="has no pairs; wanted one JSON object a line"):
        read_task(demo, written(tmp_path, ""))
    with pytest.raises(NeuronautError, match=f"no task or file 'nowhere'; give {', '.join(GENERATORS)}"):
        open_task(demo, "nowhere")


def test_an_answer_is_the_token_that_follows_its_prompt() -> None:
    """Alone it gets a space in front, as SentencePiece does it, and is another token."""
    vocabulary = {token: id for id, token in enumerate(("▁", "a", "(", ")", "▁)"))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", ")")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    subject = Subject(tiny_model("gpt2"), PreTrainedTokenizerFast(tokenizer_object=tokenizer), name="spaced")
    assert single_token(subject, ")") == vocabulary["▁)"]
    assert next_token(subject, "a(a", ")") == vocabulary[")"]
    assert row_of(subject, ("a(a", "a)a", ")", "(")) == Row([0, 1, 2, 1], [0, 1, 3, 1], 3, 2)


# --- whether it is done ------------------------------------------------------------------------


def test_a_task_that_the_subject_does_not_do_is_refused_with_the_figure() -> None:
    subject = tiny_subject()
    task = generate(subject, "induction", rows=40)
    right = 0
    for ids, answer, wrong in zip(task.pairs.clean.ids(), task.pairs.answers, task.pairs.wrong, strict=True):
        logits = subject.logits(torch.tensor([ids]))[0, -1]
        right += bool(logits[answer] > logits[wrong])
    assert right < 32
    with pytest.raises(NeuronautError, match=f"gpt2 does not do induction: .* in {right / 40:.0%} of 40 clean prompts"):
        baseline(subject, task)


def test_a_corruption_that_leaves_the_answer_is_refused(demo: Subject) -> None:
    rows = [("    x = (a, lines", "    x = (a, files", ")", "]"), ("    x = (b, path", "    x = (b, name", ")", "]")]
    task = Task.of(
        demo, "idle", [row_of(demo, row) for row in [*rows, *(tuple(reversed(r[:2])) + r[2:] for r in rows)]]
    )
    with pytest.raises(NeuronautError, match="corrupting idle does not lower the answer: .* over 4 pairs"):
        baseline(demo, task)
