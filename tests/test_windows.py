import random
import threading
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from neuronaut.data import stdlib
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest import windows as module
from neuronaut.data.harvest.windows import Given, WindowBatch, windows
from neuronaut.data.padding import PADDING
from neuronaut.data.splits import Splits, assign
from neuronaut.subject.convention import Convention, TextReader, choose_convention
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject

MODULES = [text for _, text in stdlib.modules() if 3_000 < len(text) < 40_000][:20]


@dataclass
class Reader(TextReader):
    """As much of a subject as windows need."""

    tokenizer: PreTrainedTokenizerFast
    convention: Convention
    context: int = 128


@cache
def subject() -> Subject:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(MODULES[:20], vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", model_max_length=128
    )
    return cast("Subject", Reader(tokenizer, choose_convention(tokenizer, "gpt2", name="tiny")))


@cache
def corpus() -> Corpus:
    return Corpus.of("modules", [*MODULES, "too short", MODULES[0]])


@cache
def splits() -> Splits:
    return assign(corpus())


def count(batch: WindowBatch) -> int:
    """Tokens without padding."""
    return int((batch.tokens >= 0).sum())


def together(**options: object) -> WindowBatch:
    return module.join_batches(list(windows(corpus(), subject(), splits(), **options)))


def test_windows_are_the_consecutive_runs_of_each_document_and_what_is_left():
    given = Given()
    batch = together(window=50, given=given)
    expected, uids, tokens = [], [], 0
    for ordinal, document in corpus():
        ids = subject().tokenizer.encode(document.text, add_special_tokens=False, verbose=False)
        runs = [ids[start : start + 50] for start in range(0, len(ids), 50)]
        expected += [run + [PADDING] * (50 - len(run)) for run in runs]
        uids += [ordinal * 2**20 + number for number in range(len(runs))]
        tokens += len(ids)
    assert batch.tokens.tolist() == expected
    assert batch.uid.tolist() == uids
    assert (batch.tokens >= 0).sum() == tokens
    assert given == Given(tokens=tokens)
    assert [values.dtype.name for values in batch] == ["int64", "int64", "int64", "int8"]


def test_a_window_carries_its_documents_cluster_and_split():
    found = whole(None)
    ordinals = found.uid >> 20
    assert (found.cluster == splits().clusters[ordinals]).all()
    assert (found.split == splits().splits[ordinals]).all()
    copy = ordinals == len(MODULES) + 1
    assert copy.any()
    assert set(found.cluster[copy].tolist()) == {0}


def test_batches_have_their_size_but_for_the_last():
    sizes = [len(batch.uid) for batch in windows(corpus(), subject(), splits(), rows=7)]
    assert set(sizes[:-1]) == {7}
    assert 1 <= sizes[-1] <= 7


@cache
def whole(tokens: int | None) -> WindowBatch:
    return together(tokens=tokens)


def equal(left: WindowBatch, right: WindowBatch) -> bool:
    left, right = (WindowBatch(*(values[np.argsort(batch.uid)] for values in batch)) for batch in (left, right))
    return all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))


@settings(max_examples=8, deadline=None)
@given(
    rows=st.integers(1, 300),
    count=st.integers(1, 5),
    tokens=st.sampled_from([None, 3_000, 50_000, 10**9]),
    group=st.sampled_from([1, 20_000, 1 << 20]),
)
def test_neither_batch_size_nor_sharding_changes_the_windows(rows: int, count: int, tokens: int | None, group: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GROUP", group)
        parts = [
            batch
            for index in range(count)
            for batch in windows(corpus(), subject(), splits(), tokens=tokens, shard=(index, count), rows=rows)
        ]
    assert equal(module.join_batches(parts), whole(tokens))


def test_documents_are_read_one_group_ahead_and_no_further(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "GROUP", 1)
    read: list[int] = []
    modules = Corpus.of("modules", MODULES)
    watched = modules.map(lambda text: read.append(len(text)) or text)
    parts = windows(watched, subject(), assign(modules), rows=1)
    next(parts)
    before = threading.active_count()
    parts.close()
    assert 1 <= len(read) <= 3
    assert threading.active_count() == before - 1, "the thread ends with the windows"


def test_an_error_while_documents_are_read_ahead_is_raised(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "GROUP", 1)
    modules = Corpus.of("modules", MODULES[:6])
    grown = Corpus.of("modules", [*MODULES[:6], MODULES[6]])
    parts = windows(grown, subject(), assign(modules))
    with pytest.raises(NeuronautError, match="grew while it was being read"):
        list(parts)


def test_a_budget_takes_about_as_many_tokens_from_everywhere():
    everything = whole(None)
    total = count(everything)
    for part in (0.1, 0.3, 0.7):
        batch = together(tokens=round(part * total))
        assert count(batch) == pytest.approx(part * total, rel=0.04)
        assert np.isin(batch.uid, everything.uid).all()
        halves = np.histogram(batch.uid, [0, np.median(everything.uid), everything.uid[-1]])[0]
        assert halves[0] == pytest.approx(halves[1], rel=0.15)


def test_a_budget_above_the_corpus_takes_all_of_it():
    everything = whole(None)
    assert equal(everything, together(tokens=2 * count(everything)))


def test_a_small_budget_tokenises_a_small_part_of_a_large_corpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "DOCUMENTS", 20)
    rng = random.Random(0)
    many = Corpus.of("many", [" ".join(rng.choices(MODULES[0].split(), k=300)) for _ in range(1500)])
    assigned = assign(many)
    given, everything = Given(), Given()
    batch = module.join_batches(list(windows(many, subject(), assigned, tokens=20_000, given=given)))
    total = count(module.join_batches(list(windows(many, subject(), assigned, given=everything))))
    assert total > 30 * 20_000
    assert count(batch) == pytest.approx(20_000, rel=0.05)
    assert given.tokens < 0.7 * everything.tokens


@pytest.mark.parametrize("window", [0, 128, 500])
def test_a_window_that_does_not_fit_is_an_error_before_anything_is_read(window: int):
    with pytest.raises(NeuronautError, match=rf"{window} tokens and BOS do not fit 128 .*--window 1 to 127"):
        windows(corpus(), subject(), splits(), window=window)


def test_the_largest_window_fits():
    assert together(window=127).tokens.shape[1] == 127


def test_a_budget_below_one_window_is_an_error():
    with pytest.raises(NeuronautError, match="a budget of 10 tokens is less than one window of 64"):
        windows(corpus(), subject(), splits(), tokens=10)


def test_a_document_of_too_many_windows_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "NUMBERS", 8)
    with pytest.raises(NeuronautError, match="cut it into several"):
        together(window=2)


def test_a_corpus_that_grew_between_passes_is_an_error():
    grown = Corpus.of("modules", [*(document.text for _, document in corpus()), "one more"])
    with pytest.raises(NeuronautError, match="grew while it was being read"):
        list(windows(grown, subject(), splits()))


def test_short_documents_are_windows_that_end_in_padding():
    given = Given()
    short = Corpus.of("short", ["one line", "two lines", "three more words"])
    batch = module.join_batches(list(windows(short, subject(), assign(short), tokens=1000, given=given)))
    assert batch.tokens.shape == (3, 64)
    assert given.tokens == count(batch)
    assert [subject().tokenizer.decode(row[row >= 0]) for row in batch.tokens] == [d.text for _, d in short]


def test_a_documents_own_bos_is_left_out_and_special_tokens_are_text():
    texts = ["<|endoftext|>one line", "<|endoftext|><|endoftext|>two lines", "three<|endoftext|>words", "four"]
    own, given = Corpus.of("own", texts), Given()
    assert subject().bos == subject().tokenizer.bos_token_id, "GPT-2 is read with BOS, so the rows have it already"
    batch = module.join_batches(list(windows(own, subject(), assign(own), given=given)))
    assert (given.own_bos, given.spelled) == (2, 1)
    assert not np.isin(batch.tokens, list(subject().special_ids)).any()
    read = [subject().tokenizer.decode(row[row >= 0]) for row in batch.tokens]
    assert read == ["one line", "two lines", "three<|endoftext|>words", "four"]
