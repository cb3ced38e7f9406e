"""The compiled scan, the one in PyTorch and a plain loop over numbers agree bit by bit."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.data.harvest import histogram, scan
from neuronaut.data.harvest.lists import Lists
from neuronaut.data.harvest.scan import SUM_UNIT, Rows, Scanner, SourceState, priority, window_hash
from neuronaut.subject.errors import NeuronautError

TOP, QUANTILE = (3, 1, 2), (2, 2, 1)

needs_compiler = pytest.mark.skipif(scan._compiled_kernel() is None, reason="no C compiler")
SCANNERS = [pytest.param(True, marks=needs_compiler, id="compiled"), pytest.param(False, id="torch")]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows(windows: int, positions: int, *, first: int = 0) -> Rows:
    """Windows of documents of four windows each; every document is its own group.

    Every seventh window counts nowhere, of the others beyond the third a fifth of the positions does not.
    """
    number = np.arange(first, first + windows)
    uid = (number // 4 << 20) + number % 4
    window = number[:, None]
    counted = (window < 3) | (((3 * window + np.arange(positions)) % 5 > 0) & (window % 7 > 0))
    return Rows(uid, number // 4, (number // 4 % 3).astype(np.int8), window_hash(uid), counted)


def tile(kind: str, windows: int, positions: int, features: int, *, seed: int = 0) -> torch.Tensor:
    """Activations of one kind, (window, position, feature)."""
    x = torch.randn(windows, positions, features, generator=torch.Generator().manual_seed(seed))
    return {
        "random": x,
        "tied": (x * 1.5).round(),
        "sparse": (x - 2.5).relu(),
        "negative": -x.abs(),
        "silent": torch.zeros_like(x),
        "spread": x.sign() * torch.exp2(6 * x),
        "mixed": torch.where(torch.arange(positions)[:, None] % 20 < 11, (x - 2.5).relu(), x),
    }[kind]


def state(features: int, positions: int, *, signed: bool = True) -> SourceState:
    return SourceState.empty(features, positions, signed=signed, top=TOP, quantile=QUANTILE)


def scanned(
    whole: torch.Tensor, *, compiled: bool, signed: bool = True, windows: int = 8, features: int = 1 << 30
) -> SourceState:
    """Scanned in tiles of so many windows and features."""
    scanner, found = Scanner(compiled=compiled), state(whole.shape[2], whole.shape[1], signed=signed)
    for start in range(0, len(whole), windows):
        part = whole[start : start + windows]
        for first in range(0, whole.shape[2], features):
            identity = rows(*part.shape[:2], first=start)
            scanner.scan(part[:, :, first : first + features], identity, found, first_feature=first)
    return found


def looped(whole: torch.Tensor) -> SourceState:
    """The scan as one would write it on paper."""
    found = state(whole.shape[2], whole.shape[1])
    names = rows(*whole.shape[:2])
    values = np.where(names.counted[:, :, None], whole.numpy(), 0)
    edges = histogram.edges()
    for f in range(whole.shape[2]):
        offers: dict[str, list[tuple[float, int, int, int]]] = {"top": [], "quantile": [], "bottom": []}
        for w in range(len(whole)):
            own = values[w, :, f]
            found.count[f] += int((own > 0).sum())
            found.sum[f] += round(math.fsum(float(v) for v in own) * SUM_UNIT)
            found.peak[f], found.trough[f] = max(found.peak[f], own.max()), min(found.trough[f], own.min())
            for v in own[own > 0]:
                found.histogram[f, min(max(np.searchsorted(edges, v, side="right") - 1, 0), histogram.BINS - 1)] += 1
            uid, group = int(names.uid[w]), int(names.group[w])
            if own.max() > 0:
                chance = float(priority(names.hash[w : w + 1], np.array([f]))[0])
                offers["top"].append((-float(own.max()), uid, group, w))
                offers["quantile"].append((-chance, uid, uid, w))
            if own.min() < 0:
                offers["bottom"].append((float(own.min()), uid, group, w))
        for name, offered in offers.items():
            _fill(getattr(found, name), f, sorted(offered), names.split, values)
    return found


def _fill(
    lists: Lists, f: int, offered: list[tuple[float, int, int, int]], split: np.ndarray, values: np.ndarray
) -> None:
    for s in range(3):
        slots, groups = list(range(int(lists.offsets[s]), int(lists.offsets[s + 1]))), set()
        for score, uid, group, w in offered:
            if slots and split[w] == s and group not in groups:
                slot = slots.pop(0)
                groups.add(group)
                lists.score[f, slot], lists.uid[f, slot], lists.group[f, slot] = -score, uid, group
                lists.activations[f, slot] = values[w, :, f].clip(-65504, 65504).astype(np.float16)
        lists.worst[f, s] = lists.score[f, int(lists.offsets[s]) : int(lists.offsets[s + 1])].min()


def same(a: SourceState, b: SourceState) -> bool:
    """Whether every number is the same, to the last bit."""
    arrays = all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes()
        for name in ("count", "sum", "peak", "trough", "histogram")
    )
    return arrays and all(
        entries(getattr(a, name)) == entries(getattr(b, name)) for name in ("top", "quantile", "bottom")
    )


def entries(lists: Lists | None) -> list[bytes]:
    """What a list holds, best first; within a split the slots themselves are in no order."""
    if lists is None:
        return []
    feature, slot = lists.ordered()
    columns = (lists.score, lists.uid, lists.group, lists.activations)
    return [feature.tobytes(), lists.worst.tobytes(), *(column[feature, slot].tobytes() for column in columns)]


@pytest.mark.parametrize("compiled", SCANNERS)
@pytest.mark.parametrize("kind", ["random", "tied", "sparse", "negative", "silent", "spread", "mixed"])
@pytest.mark.parametrize("shape", [(30, 7, 21), (5, 300, 66)])
def test_the_scan_is_the_plain_loop(kind: str, shape: tuple[int, int, int], compiled: bool) -> None:
    whole = tile(kind, *shape)
    assert same(scanned(whole, compiled=compiled), looped(whole))


@needs_compiler
def test_a_tile_may_have_more_rows_than_sixteen_bits_count() -> None:
    whole = tile("random", 800, 150, 3)
    assert same(scanned(whole, compiled=True, windows=800), scanned(whole, compiled=False, windows=800))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(("random", "tied", "sparse")),
    features=st.integers(1, 150),
    positions=st.integers(1, 9),
    windows=st.integers(1, 30),
    batch=st.integers(5, 9),
    width=st.integers(33, 150),
    signed=st.booleans(),
)
@needs_compiler
def test_both_scans_agree_for_all_shapes_and_tilings(
    kind: str, features: int, positions: int, windows: int, batch: int, width: int, signed: bool
) -> None:
    whole = tile(kind, windows, positions, features)
    once = scanned(whole, compiled=True, signed=signed, windows=windows)
    assert same(once, scanned(whole, compiled=True, signed=signed, windows=batch, features=width))
    assert same(once, scanned(whole, compiled=False, signed=signed, windows=batch, features=width))


@pytest.mark.parametrize("compiled", SCANNERS)
def test_a_tile_may_be_a_view_that_leaves_bos_out(compiled: bool) -> None:
    buffer = tile("random", 12, 9, 70)
    assert same(scanned(buffer[:, 1:], compiled=compiled), scanned(buffer[:, 1:].contiguous(), compiled=compiled))
    across = buffer.transpose(1, 2).contiguous().transpose(1, 2)
    assert across.stride(2) != 1
    assert same(scanned(across, compiled=compiled), scanned(buffer, compiled=compiled))


@needs_compiler
@pytest.mark.parametrize("features", [256, 300, 1000])
def test_two_threads_give_what_one_gives(features: int) -> None:
    whole = tile("tied", 20, 5, features)
    with threads(1):
        alone = scanned(whole, compiled=True)
    with threads(2):
        shared = scanned(whole, compiled=True)
    assert same(alone, shared)


@pytest.mark.parametrize("compiled", SCANNERS)
def test_order_and_shards_do_not_matter(compiled: bool) -> None:
    whole = tile("tied", 24, 5, 40)
    scanner, parts = Scanner(compiled=compiled), [state(40, 5) for _ in range(3)]
    for start in reversed(range(0, 24, 4)):
        scanner.scan(
            whole[start : start + 4], rows(4, whole.shape[1], first=start), parts[start // 4 % 3], first_feature=0
        )
    for a, b, c in ((0, 1, 2), (2, 0, 1)):
        merged = state(40, 5)
        for part in (a, b, c):
            merged.absorb(parts[part])
        assert same(merged, scanned(whole, compiled=compiled))


@pytest.mark.parametrize("compiled", SCANNERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_an_error(bad: float, compiled: bool) -> None:
    whole = tile("sparse", 4, 5, 70)
    whole[2, 3, 66] = bad
    with pytest.raises(NeuronautError, match="1 windows of features 0 to 69 hold NaN or infinite"):
        scanned(whole, compiled=compiled)


@pytest.mark.parametrize("compiled", SCANNERS)
def test_what_float16_cannot_hold_is_its_largest_number(compiled: bool) -> None:
    whole = torch.tensor([[[1e6], [-1e6], [2.0]]])
    found = scanned(whole, compiled=compiled)
    assert found.peak[0] == np.float32(1e6)
    assert found.top.activations[0, 0].tolist() == [65504, -65504, 2]


@pytest.mark.parametrize("compiled", SCANNERS)
def test_sums_are_exact_where_floats_are_not(compiled: bool) -> None:
    whole = torch.full((64, 50, 1), 0.1)
    whole[0, 0] = 2.0**20
    found = scanned(whole, compiled=compiled)
    values = whole.numpy()[..., 0] * rows(64, 50).counted
    assert int(found.sum[0]) == sum(round(math.fsum(map(float, window)) * SUM_UNIT) for window in values)


@pytest.mark.parametrize("compiled", SCANNERS)
def test_half_precision_is_read_as_it_is(compiled: bool) -> None:
    whole = tile("random", 6, 4, 10)
    assert same(scanned(whole.bfloat16(), compiled=compiled), scanned(whole.bfloat16().float(), compiled=compiled))


def test_priorities_are_uniform_and_differ_between_features() -> None:
    chance = priority(window_hash(np.arange(4000))[:, None], np.arange(8)[None])
    assert chance.min() >= 0
    assert chance.max() < 1
    assert np.abs(np.quantile(chance, np.linspace(0, 1, 11), axis=0).T - np.linspace(0, 1, 11)).max() < 0.03
    assert np.abs(np.corrcoef(chance.T) - np.eye(8)).max() < 0.06


def test_without_a_compiler_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_compiled_kernel", lambda: None)
    assert not Scanner().compiled
    with pytest.raises(NeuronautError, match="no C compiler"):
        Scanner(compiled=True)
