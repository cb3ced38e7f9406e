import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.data import stdlib
from neuronaut.data.corpus import Corpus
from neuronaut.data.records import SPLITS
from neuronaut.data.splits import Splits, assign, chance, signature
from neuronaut.subject.errors import NeuronautError

MODULES = [text for _, text in stdlib.modules() if text.strip()]


def edited(text: str, rng: random.Random, part: float = 0.05) -> str:
    """The text with a part of its words replaced by new ones."""
    return re.sub(r"\w+", lambda word: f"new{rng.randrange(10**6)}" if rng.random() < part else word[0], text)


def prose(rng: random.Random, words: int) -> str:
    return " ".join(f"word{rng.randrange(5000)}" for _ in range(words))


def by_text(texts: list[str], splits: Splits) -> tuple[dict[str, int], set[frozenset[str]]]:
    """Split of each text, and the clusters as sets of texts."""
    clusters: dict[int, set[str]] = {}
    for ordinal, text in enumerate(texts):
        clusters.setdefault(splits.cluster(ordinal), set()).add(text)
    return {text: splits.split(i) for i, text in enumerate(texts)}, {frozenset(c) for c in clusters.values()}


def test_signatures_estimate_the_share_of_common_runs():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(3000)]
    for part in (0.1, 0.3, 0.5, 0.8):
        other = [word if place < part * 3000 else f"other{rng.randrange(10**9)}" for place, word in enumerate(words)]
        agree = float((signature(" ".join(words)) == signature(" ".join(other))).mean())
        assert agree == pytest.approx(part / (2 - part), abs=0.11)


def test_signatures_see_words_not_case_or_spacing():
    text = "The quick_brown fox, jumps over the lazy dog; again and again."
    same = signature(text)
    assert (signature("  THE quick_brown   fox jumps\nover (the) lazy dog again and again") == same).all()
    assert (signature(text.replace("quick", "quiet")) == same).mean() < 0.9
    assert (signature("...") == signature("!!")).all()


def test_chinese_and_japanese_characters_are_words():
    text = "".join(chr(0x4E00 + random.Random(1).randrange(2000) + i) for i in range(400))
    changed = text[:200] + "人" + text[201:]
    assert (signature(text) == signature(changed)).mean() > 0.9


def test_long_documents_are_hashed_in_pieces_alike():
    rng = random.Random(3)
    text = prose(rng, 60_000)
    assert len(text) > 1 << 18
    assert (signature(text) == signature("a few words before " + text)).mean() > 0.97


def test_planted_near_duplicates_fall_into_one_cluster_and_split():
    rng = random.Random(0)
    originals = [text for text in MODULES if len(text) > 1000][:150]
    copies = [edited(text, rng) for text in originals]
    splits = assign(Corpus.of("planted", originals + copies))
    joined = splits.clusters[:150] == splits.clusters[150:]
    assert joined.mean() > 0.98
    assert (splits.splits[:150] == splits.splits[150:])[joined].all()


def test_a_chain_of_revisions_is_one_cluster():
    rng = random.Random(4)
    versions = [prose(rng, 500)]
    for _ in range(12):
        versions.append(edited(versions[-1], rng))
    assert (signature(versions[0]) == signature(versions[-1])).mean() < 0.3
    splits = assign(Corpus.of("chain", [*versions, *(prose(rng, 500) for _ in range(20))]))
    assert set(splits.clusters[:13].tolist()) == {0}
    assert len(set(splits.clusters[13:].tolist())) == 20


def test_the_standard_library_is_not_joined():
    corpus = Corpus.of("modules", MODULES)
    splits = assign(corpus)
    _, sizes = np.unique(splits.clusters, return_counts=True)
    assert sizes.max() <= 0.01 * len(MODULES)
    assert (sizes == 1).sum() > 0.9 * len(MODULES)
    share = np.bincount(splits.splits, minlength=3) / len(MODULES)
    assert share == pytest.approx([0.5, 0.2, 0.3], abs=0.06)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(3, 150), order=st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(seed: int, count: int, order: random.Random):
    rng = random.Random(seed)
    texts = [prose(rng, 60) for _ in range(count)]
    texts += [edited(text, rng) for text in texts[: count // 3]]
    texts += texts[:3]
    shuffled = order.sample(texts, len(texts))
    assert by_text(texts, assign(Corpus.of("a", texts))) == by_text(shuffled, assign(Corpus.of("b", shuffled)))


def test_exact_duplicates_stay_together_and_the_cluster_is_its_first_document():
    rng = random.Random(2)
    texts = [prose(rng, 30) for _ in range(50)]
    splits = assign(Corpus.of("twice", texts + texts))
    assert splits.clusters.tolist() == list(range(50)) * 2
    assert (splits.splits[:50] == splits.splits[50:]).all()


def test_a_text_keeps_its_split_when_the_corpus_grows():
    rng = random.Random(5)
    texts = [prose(rng, 40) for _ in range(400)]
    small, large = assign(Corpus.of("small", texts[:200])), assign(Corpus.of("large", texts))
    assert (small.splits == large.splits[:200]).all()
    assert small.digest != large.digest


def test_the_seed_changes_the_splits_and_nothing_else():
    texts = [prose(random.Random(i), 40) for i in range(300)]
    first, again, other = (assign(Corpus.of("x", texts), seed=seed) for seed in (1, 1, 2))
    assert (first.splits == again.splits).all()
    assert 0.2 < (first.splits != other.splits).mean() < 0.9
    assert (first.clusters == other.clusters).all()
    assert (first.digest, first.sample) == (other.digest, other.sample)


@given(count=st.integers(3, 120), seed=st.integers(-5, 5))
@settings(max_examples=40, deadline=None)
def test_every_split_has_documents_however_few_there_are(count: int, seed: int):
    splits = assign(Corpus.of("few", [prose(random.Random(i), 10) for i in range(count)]), seed=seed)
    numbers = np.bincount(splits.splits, minlength=len(SPLITS))
    assert numbers.min() >= 1
    assert numbers[0] >= numbers[1]


def test_fewer_than_three_different_documents_are_an_error():
    with pytest.raises(NeuronautError, match=r"'two' has 2 document.*train, select, holdout need at least 3"):
        assign(Corpus.of("two", ["one text", "another text", "one text"]))


def test_the_sample_and_the_lengths_describe_the_corpus():
    texts = [letter * 1024 * (2 if letter == "c" else 1) for letter in "abcd" for _ in range(200)]
    splits = assign(Corpus.of("x", [text + str(number) for number, text in enumerate(texts)]))
    assert splits.characters.sum() == sum(map(len, texts)) + 10 + 2 * 90 + 3 * 700
    assert len(splits.sample) == 256
    whole = [passage[0] for passage in splits.sample if len(passage) == 1024]
    assert whole.count("c") == pytest.approx(2 * whole.count("a"), rel=0.35)
    assert whole.count("a") == pytest.approx(whole.count("b"), rel=0.5)


def test_chance_is_uniform_and_its_seeds_are_independent():
    draws = np.stack([chance(np.arange(20_000), seed=seed) for seed in (0, 1, -1)])
    assert ((draws >= 0) & (draws < 1)).all()
    assert np.histogram(draws[0], 10, (0, 1))[0] == pytest.approx(2000, rel=0.1)
    assert np.corrcoef(draws)[np.triu_indices(3, 1)] == pytest.approx(0, abs=0.03)
