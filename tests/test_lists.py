"""Bounded lists keep the exact best: whatever the order, the batches, the shards and the ties."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.data.harvest import histogram
from neuronaut.data.harvest import lists as module
from neuronaut.data.harvest.lists import NO_UID, Lists

WIDTH, POSITIONS = 3, 2
CAPACITIES = (3, 1, 2)


class Offer(NamedTuple):
    feature: int
    score: float
    uid: int
    group: int
    split: int

    @property
    def activations(self) -> np.ndarray:
        return np.array([self.score, self.uid % 97], np.float16)


def offers(*, groups: int) -> st.SearchStrategy[list[Offer]]:
    """Few scores and few groups, so that ties are the rule. A document decides its group and its split."""
    window = st.tuples(st.integers(0, groups - 1), st.integers(0, 5))
    pair = st.tuples(st.integers(0, WIDTH - 1), window)
    scored = st.dictionaries(pair, st.sampled_from((0.5, 1.0, 1.5)), max_size=60)
    return scored.flatmap(
        lambda found: st.permutations(
            [Offer(f, score, 8 * g + number, g, g % 3) for (f, (g, number)), score in sorted(found.items())]
        )
    )


def give(lists: Lists, batch: Sequence[Offer]) -> None:
    if batch:
        lists.offer(
            np.array([o.feature for o in batch]),
            np.array([o.split for o in batch]),
            np.array([o.score for o in batch], np.float32),
            np.array([o.uid for o in batch]),
            np.array([o.group for o in batch]),
            np.stack([o.activations for o in batch]),
        )


def made(batches: Sequence[Sequence[Offer]]) -> Lists:
    lists = Lists.empty(WIDTH, POSITIONS, CAPACITIES)
    for batch in batches:
        give(lists, batch)
    return lists


def content(lists: Lists) -> list[tuple[object, ...]]:
    feature, slot = lists.ordered()
    rows = zip(
        feature,
        lists.score[feature, slot],
        lists.uid[feature, slot],
        lists.group[feature, slot],
        lists.activations[feature, slot],
        strict=True,
    )
    return [(int(f), float(s), int(u), int(g), a.tobytes()) for f, s, u, g, a in rows]


def brute_force(found: Sequence[Offer]) -> list[tuple[object, ...]]:
    """The best of every group, then the best of those, per feature and split."""
    kept: list[tuple[object, ...]] = []
    for feature in range(WIDTH):
        for split, capacity in enumerate(CAPACITIES):
            own = sorted(
                (o for o in found if (o.feature, o.split) == (feature, split)), key=lambda o: (-o.score, o.uid)
            )
            firsts = [o for i, o in enumerate(own) if o.group not in {earlier.group for earlier in own[:i]}]
            kept += [(o.feature, o.score, o.uid, o.group, o.activations.tobytes()) for o in firsts[:capacity]]
    return kept


@settings(max_examples=150, deadline=None)
@given(found=offers(groups=14), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_any_partition_keeps_the_brute_force_best(found: list[Offer], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(found)) for cut in cuts), len(found)]
    lists = made([found[start:stop] for start, stop in zip(edges, edges[1:], strict=False)])
    assert content(lists) == brute_force(found)
    for feature in range(WIDTH):
        for split in range(3):
            span = slice(int(lists.offsets[split]), int(lists.offsets[split + 1]))
            assert lists.worst[feature, split] == lists.score[feature, span].min()
    empty = lists.uid == NO_UID
    assert np.isneginf(lists.score[empty]).all()
    assert not lists.activations[empty].any()


@settings(max_examples=100, deadline=None)
@given(found=offers(groups=14), owners=st.lists(st.integers(0, 3), min_size=60, max_size=60), data=st.data())
def test_any_tree_of_merges_keeps_the_brute_force_best(
    found: list[Offer], owners: list[int], data: st.DataObject
) -> None:
    shards = [made([[o for o, owner in zip(found, owners, strict=False) if owner == n]]) for n in range(4)]
    while len(shards) > 1:
        first, second = data.draw(st.permutations(range(len(shards))))[:2]
        shards[first].absorb(shards[second])
        del shards[second]
    assert content(shards[0]) == brute_force(found)


@settings(max_examples=50, deadline=None)
@given(found=offers(groups=6))
def test_an_offer_made_twice_counts_once(found: list[Offer]) -> None:
    assert content(made([found, found[::-1]])) == brute_force(found)


def test_an_evicted_group_comes_back_by_a_better_window_only() -> None:
    low, high = Offer(0, 1.0, 7, 1, 1), Offer(0, 2.0, 20, 2, 1)
    lists = made([[low], [high], [low]])
    assert [row[2] for row in content(lists)] == [20]
    give(lists, [Offer(0, 3.0, 8, 1, 1)])
    assert [row[2] for row in content(lists)] == [8]


def test_a_split_without_capacity_keeps_nothing() -> None:
    lists = Lists.empty(1, POSITIONS, (1, 0, 1))
    give(lists, [Offer(0, 1.0, uid, uid, uid % 3) for uid in range(6)])
    assert {row[2] for row in content(lists)} == {0, 2}


@given(st.lists(st.floats(2.0**-20, 2.0**18, width=32), min_size=1, max_size=50))
def test_bins_are_those_between_the_edges(values: list[float]) -> None:
    array = np.array(values, np.float32)
    expected = (np.searchsorted(histogram.edges(), array, side="right") - 1).clip(0, histogram.BINS - 1)
    assert (histogram.bins(array) == expected).all()


@given(st.lists(st.floats(2.0**-10, 2.0**10, width=32), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_right_to_within_a_bin(values: list[float], q: float) -> None:
    array = np.array(values, np.float32)
    found = histogram.quantile(np.bincount(histogram.bins(array), minlength=histogram.BINS), q)
    exact = float(np.quantile(array, q, method="inverted_cdf"))
    assert found is not None
    assert exact / 1.5 <= found <= exact * 1.5


def test_no_activation_has_no_quantile() -> None:
    assert histogram.quantile(np.zeros(histogram.BINS, np.int64), 0.5) is None


@settings(max_examples=100, deadline=None)
@given(found=offers(groups=14), chunk=st.integers(1, 3))
def test_draining_gives_the_entries_in_order_in_the_lists_own_memory(found: list[Offer], chunk: int) -> None:
    lists, memory = made([found]), made([found])
    expected, own = content(lists), memory.activations
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DRAINED", chunk)
        feature, uid, activations = memory.drain()
    drained = zip(feature.tolist(), uid.tolist(), (row.tobytes() for row in activations), strict=True)
    assert list(drained) == [(entry[0], entry[2], entry[4]) for entry in expected]
    assert np.shares_memory(activations, own) or not len(activations)
    assert not memory.activations.size, "the lists hold nothing any more"
