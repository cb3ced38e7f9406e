"""Minimal pairs: small edits near a pivot, never a window that is there already."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.data.counterfactual import REACH, Pair, minimal_pairs
from neuronaut.data.records import Example, Kind

PIVOT = 7
"""The token on which the planted feature fires, unless STOP stands before it."""
STOP = 3
CORPUS = np.arange(1, 20).reshape(1, -1)


def example(ids: list[int], number: int, *, kind: Kind = "top") -> Example:
    tokens = np.array(ids)
    before = np.concatenate([[0], tokens[:-1]])
    activations = np.where((tokens == PIVOT) & (before != STOP), 2.0, 0.0).astype(np.float32)
    return Example(tuple(map(str, ids)), tokens, activations, kind, "holdout", f"doc-{number}", f"window-{number}")


def evidence(seed: int, *, active: int = 4, silent: int = 3, length: int = 20) -> list[Example]:
    """Windows in which the feature fires, and windows in which STOP keeps it silent."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(active + silent):
        ids = rng.choice(np.setdiff1d(np.arange(1, 30), [PIVOT, STOP]), length)
        at = rng.integers(1, length)
        ids[at] = PIVOT
        if number >= active:
            ids[at - 1] = STOP
        found.append(example(ids.tolist(), number, kind="top" if number < active else "near_miss"))
    return found


def made(examples: list[Example], *, count: int = 40, seed: int = 0) -> list[Pair]:
    return minimal_pairs(examples, peak=2.0, corpus=CORPUS, count=count, seed=seed)


def is_insertion(original: np.ndarray, edited: np.ndarray, pivot: int) -> bool:
    """Whether one, two or four tokens were put in before the pivot, and as many taken away at the beginning."""
    return any(
        (edited[: end - n] == original[n:end]).all() and (edited[end:] == original[end:]).all()
        for n in (1, 2, 4)
        for end in range(max(n, pivot - REACH), pivot + 1)
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(2, 30))
def test_every_edit_is_minimal_and_new(seed: int, length: int) -> None:
    examples = evidence(seed, length=length)
    pairs = made(examples, seed=seed)
    assert pairs
    originals = {e.ids.tobytes() for e in examples}
    assert len({pair.tokens.tobytes() for pair in pairs} - originals) == len(pairs), "none twice, none an original"
    for pair in pairs:
        original = examples[pair.example].ids
        assert pair.tokens.shape == original.shape
        assert 0 <= pair.pivot < length
        assert original[pair.pivot] == PIVOT
        changed = np.flatnonzero(pair.tokens != original)
        near = changed.min() >= pair.pivot - REACH and changed.max() <= pair.pivot
        assert near or is_insertion(original, pair.tokens, pair.pivot)
        assert not near or pair.pivot not in changed or len(changed) == 1, "the pivot is changed alone"


def test_pairs_of_all_kinds_are_made_and_flip_the_feature_both_ways() -> None:
    examples = evidence(0)
    pairs = made(examples, count=200)
    pivot_changed, shifted, fires, falls = 0, 0, 0, 0
    for pair in pairs:
        original = examples[pair.example]
        was = original.activations[pair.pivot] > 1
        now = example(pair.tokens.tolist(), 0).activations[pair.pivot] > 1
        pivot_changed += pair.tokens[pair.pivot] != PIVOT
        shifted += (pair.tokens != original.ids).sum() > REACH
        fires += now and not was
        falls += was and not now and pair.tokens[pair.pivot] == PIVOT
    assert pivot_changed > 10
    assert shifted > 10
    assert fires > 10, "the exception was taken away"
    assert falls > 10, "the exception was transplanted before a token that fires"


def test_pairs_depend_on_the_seed_alone() -> None:
    def said(pairs: list[Pair]) -> list[tuple[int, bytes, int]]:
        return [(pair.example, pair.tokens.tobytes(), pair.pivot) for pair in pairs]

    assert said(made(evidence(1), seed=5)) == said(made(evidence(1), seed=5))
    assert said(made(evidence(1), seed=5)) != said(made(evidence(1), seed=6))


@pytest.mark.parametrize("count", [1, 7, 40])
def test_no_more_pairs_than_asked_for(count: int) -> None:
    assert len(made(evidence(2), count=count)) <= count


def test_every_example_gets_its_share() -> None:
    pairs = made(evidence(3), count=35)
    counts = np.bincount([pair.example for pair in pairs], minlength=7)
    assert counts.min() >= 2


def test_without_an_active_window_there_is_no_pair() -> None:
    assert made(evidence(4, active=0)) == []


def test_a_pivot_at_the_beginning_has_nothing_before_it() -> None:
    pairs = made([example([PIVOT, 5, 6, 8], 0), example([PIVOT, 9, 6, 8], 1)])
    assert pairs
    assert all((pair.tokens[1:] == [5, 6, 8]).all() or (pair.tokens[1:] == [9, 6, 8]).all() for pair in pairs)


def test_the_originals_are_left_as_they_were() -> None:
    examples = evidence(5)
    before = [e.ids.copy() for e in examples]
    made(examples)
    assert all((e.ids == ids).all() for e, ids in zip(examples, before, strict=True))


def test_where_tokens_read_both_sides_every_other_edit_is_behind_the_pivot() -> None:
    """Read backwards, an edit behind the pivot is one before it."""
    examples = evidence(0)
    both = minimal_pairs(examples, peak=2.0, corpus=CORPUS, count=60, seed=0, causal=False)
    sides = {"before": 0, "at": 0, "behind": 0}
    for pair in both:
        changed = np.flatnonzero(pair.tokens != examples[pair.example].ids)
        side = "before" if changed.max() < pair.pivot else "behind" if changed.min() > pair.pivot else "at"
        assert side != "at" or changed.tolist() == [pair.pivot]
        sides[side] += 1
    assert min(sides.values()) >= 5
    assert len({pair.tokens.tobytes() for pair in both}) == len(both)
