"""A harvest is what brute force over one big forward finds, whatever its batches, shards and interruptions."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import islice, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest import harvest as module
from neuronaut.data.harvest import histogram
from neuronaut.data.harvest import state as state_module
from neuronaut.data.harvest.activations import TILE_ROWS, neurons, tiles, with_bos
from neuronaut.data.harvest.ending import finish
from neuronaut.data.harvest.harvest import collect, harvest
from neuronaut.data.harvest.mining import CAPACITY, PEAK_TOKENS, SILENCE
from neuronaut.data.harvest.scan import priority, window_hash
from neuronaut.data.harvest.state import QUANTILE, TOP, HarvestState, find_stopped
from neuronaut.data.harvest.watch import Watch
from neuronaut.data.harvest.windows import WindowBatch, windows
from neuronaut.data.records import ExampleList, HarvestResult, SourceResult, TokenCounts
from neuronaut.data.splits import Splits, assign
from neuronaut.data.store.store import Store
from neuronaut.labelling.opening import pass_gate
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Source
from tests.families import D_MODEL, tiny_subject

WINDOW = 32
WORDS = [
    "abacus",
    "beacon",
    "cobalt",
    "dragon",
    "ember",
    "falcon",
    "granite",
    "harbor",
    "island",
    "jasmine",
    "kernel",
    "lagoon",
]


@cache
def corpus(documents: int = 48) -> Corpus:
    """Random words; every sixth document is the one before it with a word changed."""
    texts: list[str] = []
    for number in range(documents):
        rng = random.Random(number)
        words = [f"{rng.choice(WORDS)}{rng.randrange(20)}" for _ in range(rng.randint(5, 40))]
        if number % 6 == 5:
            words = [*texts[-1].split()[:-1], "changed"]
        texts.append(" ".join(words))
    return Corpus.of("words", texts)


@cache
def splits(documents: int = 48) -> Splits:
    return assign(corpus(documents))


@cache
def subject(family: str = "gpt2") -> Subject:
    return tiny_subject(family)


def dictionary(kind: str, *, width: int = 40, bias: float = -6.0) -> Dictionary:
    g = torch.Generator().manual_seed(width)
    return Dictionary(
        id=SourceId("gpt2", "resid_post.1", kind),
        kind="topk" if kind == "topk" else "standard",
        W_enc=torch.randn(width, D_MODEL, generator=g).T,
        W_dec=torch.randn(width, D_MODEL, generator=g),
        b_enc=bias * torch.rand(width, generator=g),
        b_dec=torch.randn(D_MODEL, generator=g) / 10,
        k=3 if kind == "topk" else 0,
    )


@cache
def sources() -> tuple[Source, ...]:
    """Neurons, a site's coordinates, and dictionaries of which one is not separable."""
    return (*neurons(subject(), ["mlp.1", "resid_post.0"]), dictionary("relu", bias=-16.0), dictionary("topk"))


def harvested(**options: Any) -> HarvestResult:
    state = collect(subject(), sources(), corpus(), splits(), window=WINDOW, **options)
    return finish(subject(), sources(), corpus(), state)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On models this small threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def result() -> HarvestResult:
    return harvested()


def content(value: object) -> object:
    """Everything that a value says, arrays with every bit, in a form that can be compared."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if is_dataclass(value):
        return {part.name: content(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, dict):
        return {key: content(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [content(part) for part in value]
    return value


class Truth:
    """All windows of the corpus in one forward, and what follows from that."""

    def __init__(self) -> None:
        self.batch = next(windows(corpus(), subject(), splits(), window=WINDOW, rows=1 << 20))
        tokens = with_bos(subject(), self.batch.tokens)
        self.read = subject().read(tokens, list(dict.fromkeys(source.id.site for source in sources())))

    @staticmethod
    def of(of: Subject, batch: WindowBatch, source: Source) -> np.ndarray:
        """(window, position, feature) of a subject whose rows have no BOS."""
        return of.read(with_bos(of, batch.tokens), [source.id.site])[source.id.site].numpy()

    def activations(self, source: Source) -> np.ndarray:
        """(window, position, feature)"""
        vectors = self.read[source.id.site][:, 1:]
        flat = source.encode(vectors.reshape(-1, vectors.shape[2])).view(len(vectors), WINDOW, -1)
        return flat.masked_fill(torch.from_numpy(self.batch.tokens < 0)[:, :, None], 0).numpy()


@cache
def truth() -> Truth:
    return Truth()


def best(
    scores: np.ndarray, groups: np.ndarray, batch: WindowBatch, capacities: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """(feature, uid) of the best windows in the order of an ExampleList; scores (window, feature), -inf is no offer."""
    for feature in range(scores.shape[1]):
        for split, capacity in enumerate(capacities):
            seen: set[int] = set()
            for w in np.lexsort((batch.uid, -scores[:, feature])):
                if batch.split[w] == split and np.isfinite(scores[w, feature]) and groups[w] not in seen:
                    seen.add(int(groups[w]))
                    if len(seen) <= capacity:
                        yield feature, int(batch.uid[w])


def named(batch: WindowBatch, found: HarvestResult) -> np.ndarray:
    """The uid of every window of the result; documents are named by their ordinals."""
    rows = {(batch.tokens[w].tobytes(), f"words:{uid >> 20}"): uid for w, uid in enumerate(batch.uid)}
    names = zip(found.windows.astype(np.int64), found.documents, strict=True)
    return np.array([rows[tokens.tobytes(), document] for tokens, document in names])


@pytest.mark.parametrize("number", range(4), ids=["mlp", "resid", "relu", "topk"])
def test_it_is_what_brute_force_finds(result: HarvestResult, number: int) -> None:
    source, batch = sources()[number], truth().batch
    found, x = result.sources[number], truth().activations(source)
    assert result.tokens == found.tokens == (batch.tokens >= 0).sum()
    assert (batch.tokens[:, -1] < 0).any(), "some windows are shorter"
    assert (found.source, found.width, found.signed) == (str(source.id), source.width, source.signed)
    assert (found.count == (x > 0).sum((0, 1))).all()
    assert np.allclose(found.mean, x.sum((0, 1), dtype=np.float64) / found.tokens, atol=1e-6)
    assert np.allclose(found.peak, x.max((0, 1)).clip(0), rtol=1e-5, atol=1e-6)
    assert np.allclose(found.trough, x.min((0, 1)).clip(None, 0), rtol=1e-5, atol=1e-6)
    assert (found.histogram.sum(1) == found.count).all()
    for feature in range(0, source.width, 7):
        own = x[:, :, feature]
        expected = np.histogram(own[own > 0].clip(*histogram.edges()[[0, -2]]), histogram.edges())[0]
        assert np.abs(found.histogram[feature] - expected).sum() <= 2, "no more than one token at an edge"
    high, low = x.max(1), x.min(1)
    chance = priority(window_hash(batch.uid)[:, None], np.arange(source.width)[None])
    offers = {
        "top": (np.where(high > 0, high, -np.inf), batch.cluster, TOP),
        "quantile": (np.where(high > 0, chance, -np.inf), batch.uid, QUANTILE),
        "bottom": (np.where(low < 0, -low, -np.inf), batch.cluster, TOP),
    }
    uid = named(batch, result)
    row = {int(name): w for w, name in enumerate(batch.uid)}
    for kind, (scores, groups, capacities) in offers.items():
        if kind == "bottom" and not source.signed:
            assert kind not in found.lists
            continue
        examples = found.lists[kind]
        expected = list(best(scores, groups, batch, capacities))
        assert list(zip(examples.features.tolist(), uid[examples.windows].tolist(), strict=True)) == expected
        own = np.stack([x[row[name], :, feature] for feature, name in expected])
        assert np.allclose(examples.activations, own, rtol=1e-3, atol=1e-6)


def test_a_document_and_its_near_duplicates_give_one_top_example(result: HarvestResult) -> None:
    assert len(set(splits().clusters)) == 40, "of 48 documents, 8 repeat the one before"
    for source in result.sources:
        for kind in {"top", "bottom"} & source.lists.keys():
            features, rows, *_ = source.lists[kind]
            clusters = [splits().cluster(int(result.documents[row].split(":")[1])) for row in rows]
            assert len(set(zip(features.tolist(), clusters, strict=True))) == len(rows)


@pytest.mark.parametrize("rows", [1, 7, 32, 100])
def test_the_batch_size_changes_no_bit(result: HarvestResult, rows: int) -> None:
    assert content(harvested(rows=rows)) == content(result)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_merged_in_any_order_change_no_bit(result: HarvestResult, shards: int) -> None:
    states = [
        collect(subject(), sources(), corpus(), splits(), window=WINDOW, shard=(n, shards), rows=5)
        for n in range(shards)
    ]
    for order in permutations(states):
        merged = HarvestState.empty(sources(), window=WINDOW)
        for state in order:
            merged.absorb(state)
        assert content(finish(subject(), sources(), corpus(), merged)) == content(result)


def test_the_scan_in_pytorch_changes_no_bit(result: HarvestResult) -> None:
    assert content(harvested(compiled=False)) == content(result)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_window_has_the_same_bits_in_every_batch(family: str) -> None:
    """In these, a forward of one row is rounded otherwise than one of many."""
    model = subject(family)
    source = neurons(model, ["mlp.2"])
    tokens = np.random.default_rng(0).integers(1, 300, (50, WINDOW))
    whole = torch.cat([tile.activations.clone() for tile in tiles(model, source, tokens)])
    for rows in (1, 3, 31, 33):
        parts = [tokens[start : start + rows] for start in range(0, len(tokens), rows)]
        assert torch.equal(
            torch.cat([t.activations.clone() for part in parts for t in tiles(model, source, part)]), whole
        )


def test_tiles_cover_every_window_and_feature_once() -> None:
    wide = dictionary("relu", width=5000)
    tokens = np.random.default_rng(0).integers(1, 300, (TILE_ROWS + 5, 11))
    covered = np.zeros((len(tokens), wide.width), int)
    vectors = subject().read(with_bos(subject(), tokens), [wide.id.site])[wide.id.site][:, 1:]
    expected = wide.encode(vectors.reshape(-1, D_MODEL)).view(len(tokens), 11, -1)
    for tile in tiles(subject(), [wide], tokens):
        features = slice(tile.first_feature, tile.first_feature + tile.activations.shape[2])
        covered[tile.rows, features] += 1
        assert torch.allclose(tile.activations, expected[tile.rows, :, features], rtol=1e-4, atol=1e-4)
    assert (covered == 1).all()


# Silent windows and near misses


@pytest.mark.parametrize("number", [2, 3], ids=["relu", "topk"])
def test_silent_windows_are_silent_and_near_misses_hold_a_peak_token(result: HarvestResult, number: int) -> None:
    found, batch, uid = result.sources[number], truth().batch, named(truth().batch, result)
    x = truth().activations(sources()[number])
    row = {int(name): w for w, name in enumerate(batch.uid)}
    peak_tokens = _peak_tokens(found, result)
    for kind in ("silent", "near_miss"):
        examples = found.lists[kind]
        assert len(examples.features) > 20, "something is tested"
        for feature, window, stored in zip(*examples[:3], strict=True):
            actual = x[row[int(uid[window])], :, feature]
            assert actual.max() < SILENCE * found.peak[feature]
            assert np.allclose(stored, actual, rtol=1e-3, atol=1e-5)
            near = peak_tokens[feature] & set(result.windows[window].tolist())
            assert bool(near) == (kind == "near_miss")
        counts = np.zeros((found.width, 3), int)
        np.add.at(counts, (examples.features, result.splits[examples.windows]), 1)
        assert (counts <= CAPACITY[kind]).all()
        assert len(set(zip(examples.features.tolist(), examples.windows.tolist(), strict=True))) == len(
            examples.features
        )


def _peak_tokens(found: SourceResult, result: HarvestResult) -> list[set[int]]:
    """The tokens on which each feature's best training examples peak."""
    tokens: list[list[int]] = [[] for _ in range(found.width)]
    for feature, window, activations in zip(*found.lists["top"][:3], strict=True):
        if result.splits[window] == 0 and len(tokens[feature]) < PEAK_TOKENS:
            tokens[feature].append(int(result.windows[window][activations.argmax()]))
    return [set(own) for own in tokens]


def test_a_dead_feature_has_no_examples() -> None:
    dead = dictionary("relu", width=6, bias=-1e4)
    state = collect(subject(), [dead], corpus(), splits(), window=WINDOW)
    found = finish(subject(), [dead], corpus(), state).sources[0]
    assert not found.count.any()
    assert found.lists == {}


# Interruptions


def kill_yourself(folder: str) -> None:
    """A harvest that is killed after its sixth batch; run in a process of its own."""
    import os

    torch.set_num_threads(1)
    module.CHECKPOINT_SECONDS = 0.0
    batches = -1  # the first call tells what was read before

    def progress(_tokens: int) -> None:
        nonlocal batches
        batches += 1
        if batches == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    with Store(":memory:") as store:
        harvest(
            subject(),
            sources(),
            corpus(240),
            store,
            window=WINDOW,
            checkpoint=Path(folder) / "state",
            watch=Reader(progress),
        )


def test_a_killed_harvest_goes_on_to_the_same_result(tmp_path: Path) -> None:
    call = f"from tests.test_harvest import kill_yourself; kill_yourself({str(tmp_path)!r})"
    assert subprocess.run([sys.executable, "-c", call], cwd=Path(__file__).parents[1]).returncode == -signal.SIGKILL
    (kept,) = tmp_path.glob("state-*.npz")
    reported: list[int] = []
    with Store(":memory:") as store:
        again = harvest(
            subject(),
            sources(),
            corpus(240),
            store,
            window=WINDOW,
            checkpoint=tmp_path / "state",
            watch=Reader(reported.append),
        )
        assert not kept.exists()
        whole = harvest(subject(), sources(), corpus(240), store, window=WINDOW)
    assert reported[:2] == [progress_after(n, corpus(240)) for n in (6, 7)], "a batch is kept before it is told of"
    assert content(again) == content(whole)


class Reader(Watch):
    """Calls a function with the tokens read so far."""

    def __init__(self, call: Callable[[int], object]) -> None:
        self._call = call

    def read(self, tokens: int) -> None:
        self._call(tokens)


def progress_after(batches: int, of: Corpus) -> int:
    """Tokens of the first batches of a corpus."""
    parts = islice(windows(of, subject(), assign(of), window=WINDOW, rows=TILE_ROWS), batches)
    return sum(int((part.tokens >= 0).sum()) for part in parts)


class Stopped(Exception):
    pass


def checkpointed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    """The file that a harvest leaves behind when it stops after two batches."""
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)

    batches = iter([None, None, None])  # the first call tells what was read before

    def progress(_tokens: int) -> None:
        if next(batches, "no more") == "no more":
            raise Stopped

    with Store(":memory:") as store, pytest.raises(Stopped):
        harvest(
            subject(),
            sources()[:1],
            corpus(96),
            store,
            checkpoint=tmp_path / "state",
            watch=Reader(progress),
            **options,
        )
    return max(tmp_path.glob("state-*.npz"), key=lambda path: path.stat().st_mtime_ns)


def test_checkpoints_that_take_long_are_written_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = 0.0, []

    def save(*_: object, **__: object) -> None:
        nonlocal clock
        written.append(clock)
        clock += 3.0  # a state of gigabytes

    def progress(_tokens: int) -> None:
        nonlocal clock
        clock += 20.0

    with monkeypatch.context() as patch:  # of the module's name alone
        patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock))
        patch.setattr(module, "save_state", save)
        collect(
            subject(),
            sources()[:1],
            corpus(240),
            assign(corpus(240)),
            window=WINDOW,
            rows=4,
            checkpoint=tmp_path / "state",
            progress=progress,
        )
    waits = np.diff(written) - 3.0
    assert written[0] == 80.0 and len(waits) > 1 and all(3 * 60 <= wait <= 3 * 60 + 20 for wait in waits)


def test_what_is_interrupted_after_the_last_batch_keeps_all_that_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    read: list[int] = []

    def progress(tokens: int) -> None:
        read.append(tokens)
        if len(read) == 3:  # no checkpoint comes after this one
            monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 1e9)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "conclude", interrupted)
    with Store(":memory:") as store, pytest.raises(KeyboardInterrupt):
        harvest(
            subject(),
            sources()[:1],
            corpus(240),
            store,
            window=WINDOW,
            checkpoint=tmp_path / "state",
            watch=Reader(progress),
        )
    (stopped,) = find_stopped(tmp_path / "state")
    assert len(read) > 4 and stopped.tokens == read[-1]


@pytest.mark.parametrize("damage", ["half", "empty", "text", "other"])
def test_a_damaged_checkpoint_is_an_error_of_one_line(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpointed(tmp_path, monkeypatch, window=WINDOW)
    data = path.read_bytes()
    if damage == "other":
        np.savez(path, tokens=3, batches=1)
    else:
        path.write_bytes({"half": data[: len(data) // 2], "empty": b"", "text": b"hello"}[damage])
    with Store(":memory:") as store, pytest.raises(NeuronautError, match="not a whole harvest checkpoint") as caught:
        harvest(subject(), sources()[:1], corpus(96), store, window=WINDOW, checkpoint=tmp_path / "state")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {checkpointed(tmp_path, monkeypatch, window=WINDOW)}
    for options in ({"window": WINDOW, "seed": 1}, {"window": 30}):
        path = checkpointed(tmp_path, monkeypatch, **options)
        assert path not in kept
        kept.add(path)
    changed = Corpus.of("words", [*(document.text for _, document in corpus(96)), "one more document"])
    reported: list[int] = []
    with Store(":memory:") as store:
        harvest(
            subject(),
            sources()[:1],
            changed,
            store,
            window=WINDOW,
            checkpoint=tmp_path / "state",
            watch=Reader(reported.append),
        )
    assert reported[:2] == [0, progress_after(1, changed)], "it began at the beginning"
    assert set(tmp_path.glob("state-*.npz")) == kept


class Events(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def begins(self, done: int, of: int) -> None:
        self.told.append(("begins", done))
        assert done <= of

    def read(self, tokens: int) -> None:
        self.told.append(("read", tokens))

    def mined(self, windows: int, of: int) -> None:
        self.told.append(("mined", windows))
        assert windows <= of

    def writes(self) -> None:
        self.told.append(("writes", 0))


@pytest.mark.parametrize("tokens", [800, 2500])
def test_a_stopped_harvest_serves_a_smaller_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """It is ended as soon as it has so many tokens: at once, or after some more."""
    path = checkpointed(tmp_path, monkeypatch, window=WINDOW)
    (stopped,) = find_stopped(tmp_path / "state")
    assert (stopped.path, stopped.sources, stopped.corpus, stopped.budget) == (path, ("gpt2:mlp.1",), "words", None)
    events = Events()
    with Store(":memory:") as store:
        result = harvest(
            subject(),
            sources()[:1],
            corpus(96),
            store,
            window=WINDOW,
            tokens=tokens,
            checkpoint=tmp_path / "state",
            watch=events,
        )
    read = [number for kind, number in events.told if kind == "read"]
    assert result.tokens == (read[-1] if read else stopped.tokens)
    assert all(number < tokens for number in [stopped.tokens, *read][:-1])
    assert result.tokens >= tokens
    assert result.provenance["stopped_at"] == {"tokens": result.tokens, "budget": None}
    assert not path.exists()


def test_a_stopped_harvest_can_be_closed_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpointed(tmp_path, monkeypatch, window=WINDOW)
    (stopped,) = find_stopped(tmp_path / "state")
    events = Events()
    with Store(":memory:") as store:
        arguments = {"window": WINDOW, "checkpoint": tmp_path / "state", "close": True, "watch": events}
        result = harvest(subject(), sources()[:1], corpus(96), store, **arguments)
        assert result.tokens == stopped.tokens < result.counts.given + 1
        assert store.sources()[0]["tokens"] == stopped.tokens
        with pytest.raises(NeuronautError, match="no stopped harvest of these sites"):
            harvest(subject(), sources()[:1], corpus(96), store, **arguments)
    assert [kind for kind, _ in events.told if kind == "read"] == []
    assert [kind for kind, _ in events.told][-1] == "writes"
    assert "mined" in {kind for kind, _ in events.told}, "it says what it does after the last token"
    assert not path.exists()


def test_a_larger_budget_begins_anew_and_leaves_the_stopped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpointed(tmp_path, monkeypatch, window=WINDOW, tokens=4000)
    with Store(":memory:") as store:
        result = harvest(
            subject(), sources()[:1], corpus(96), store, window=WINDOW, tokens=4500, checkpoint=tmp_path / "state"
        )
        fresh = harvest(subject(), sources()[:1], corpus(96), store, window=WINDOW, tokens=4500)
    assert content(result) == content(fresh)
    assert path.exists()


# Memory and errors


def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [dictionary("relu", width=2)]
    monkeypatch.setattr(state_module, "POOL", 32)
    held: list[int] = []
    scan = module.scan_batch

    def watched(model: Subject, found: Sequence[Source], batch: WindowBatch, scanner: Any, state: HarvestState) -> None:
        scan(model, found, batch, scanner, state)
        held.append(len(state.table.uid) + sum(len(part.uid) for part in state.unsaved))

    monkeypatch.setattr(module, "scan_batch", watched)
    sizes = []
    for documents in (40, 360):
        state = collect(subject(), small, corpus(documents), splits(documents), window=8, rows=1 + TILE_ROWS // 8)
        sizes.append((state.tokens, len(state.table.uid), sum(part.nbytes for part in _arrays(state))))
    (few, _, size), (many, kept, big) = sizes
    assert many > 8 * few
    listed = sum(TOP) + sum(QUANTILE)
    assert kept <= 32 + 2 * listed
    assert max(held) <= 2 * 64 * (1 + TILE_ROWS // 8) + TILE_ROWS
    assert big == size


def _arrays(state: HarvestState) -> list[np.ndarray]:
    """What a state holds beside its window table."""
    found: list[np.ndarray] = []
    for source in state.sources.values():
        for part in fields(source):
            value = getattr(source, part.name)
            found += [value] if isinstance(value, np.ndarray) else []
            found += [getattr(value, inner.name) for inner in fields(value)] if is_dataclass(value) else []
    return found


def test_shards_of_other_sources_do_not_merge() -> None:
    one, other = (HarvestState.empty([source], window=WINDOW) for source in sources()[:2])
    with pytest.raises(NeuronautError, match="shards of different sources: gpt2:mlp.1 and gpt2:resid_post.0"):
        one.absorb(other)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_short_documents_are_read_as_if_each_were_alone(family: str) -> None:
    """300 documents of 1 to 60 tokens: nothing is lost, and padding changes nothing."""
    of, rng = subject(family), random.Random(5)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 7))) + str(number) for number in range(300)]
    short = Corpus.of("short", texts)
    state = collect(of, neurons(of, ["mlp.1"]), short, assign(short), window=60)
    alone = [of.read(torch.tensor([of.row(text)]), ["mlp.1"])["mlp.1"][0, len(of.bos_prefix) :] for text in texts]
    total = torch.cat(alone)
    (own,) = state.sources.values()
    assert state.tokens == state.given.tokens == len(total)
    # A value within rounding of zero may fall on either side of it.
    assert np.abs(own.count - (total > 0).sum(0).numpy()).max() <= 1
    assert np.allclose(own.sum / 2**20, total.double().sum(0), rtol=1e-4, atol=1e-3)
    assert np.allclose(own.peak, total.amax(0).clip(min=0), rtol=1e-4, atol=1e-5)
    with Store(":memory:") as store:
        harvest(of, ["mlp.1"], short, store, window=60)
        for index in range(0, of.width("mlp.1"), 9):
            evidence = store.evidence(Feature.parse(f"{of.name}:mlp.1:{index}"))
            for example in (*evidence.train, *evidence.holdout):
                document = int(example.document.split(":")[1])
                assert "".join(example.tokens) == texts[document]
                assert np.allclose(example.activations, alone[document][:, index], rtol=2e-3, atol=1e-4)


class Sink(Subject):
    """A subject whose first token and whose `MARK` have a hundred times the usual norm from layer 1 on."""

    mark = -1

    def read(self, tokens: torch.Tensor, sites: Sequence[str]) -> dict[str, torch.Tensor]:
        scale = torch.ones(*tokens.shape, 1)
        scale[:, 0] = scale[tokens == self.mark] = 100.0
        return {site: value * scale.to(value) for site, value in super().read(tokens, sites).items()}


def test_massive_positions_are_in_no_statistic_and_no_example_and_are_counted() -> None:
    tiny = tiny_subject("llama")
    of = Sink(tiny.model, tiny.tokenizer, name="sink", bos="never")
    of.mark = of.encode(" tax")[0]
    state = collect(of, neurons(of, ["resid_post.1", "mlp.2"]), corpus(), splits(), window=WINDOW)
    batch = next(windows(corpus(), of, splits(), window=WINDOW, rows=1 << 20))
    massive = (batch.tokens == of.mark) & (batch.tokens >= 0)
    massive[:, 0] = True
    assert set(state.convention.norm_limits) == {"resid_post.1", "resid_pre.2"}
    for name, own in state.sources.items():
        assert own.uncounted.tolist() == [massive.sum()], name
    plain = Truth.of(of, batch, neurons(of, ["resid_post.1"])[0])
    plain[massive | (batch.tokens < 0)] = 0
    own = state.sources["sink:resid_post.1"]
    assert np.allclose(own.peak, plain.max((0, 1)), rtol=1e-4, atol=1e-5)
    result = finish(of, neurons(of, ["resid_post.1", "mlp.2"]), corpus(), state)
    assert {source.tokens for source in result.sources} == {result.tokens - massive.sum()}
    assert result.counts == TokenCounts(result.tokens, 0, 0)


def test_special_tokens_count_nowhere_where_they_are_read_as_tokens() -> None:
    texts = [f"{text[:60]}<|endoftext|>{text[60:]}" for text in (document.text for _, document in corpus())]
    marked = Corpus.of("marked", texts)
    as_text = collect(subject(), neurons(subject(), ["mlp.1"]), marked, assign(marked), window=WINDOW)
    assert as_text.special == 0
    assert as_text.sources["gpt2:mlp.1"].uncounted.tolist() == [0]
    of = subject().with_convention(replace(subject().convention, special_tokens=True))
    as_tokens = collect(of, neurons(of, ["mlp.1"]), marked, assign(marked), window=WINDOW)
    assert as_tokens.special == len(texts)
    assert as_tokens.sources["gpt2:mlp.1"].uncounted.tolist() == [len(texts)]
    assert as_tokens.tokens < as_text.tokens
    with pytest.raises(NeuronautError, match="shards of different conventions"):
        as_text.absorb(as_tokens)


@pytest.mark.parametrize("special", [False, True])
def test_a_corpus_of_special_tokens_alone_is_an_error(special: bool) -> None:
    of = subject().with_convention(replace(subject().convention, special_tokens=special))
    nothing = Corpus.of("marks", [str(of.tokenizer.bos_token) * count for count in range(1, 7)])
    with pytest.raises(NeuronautError, match="holds no text but special tokens"):
        collect(of, neurons(of, ["mlp.1"]), nothing, assign(nothing), window=WINDOW)
    with pytest.raises(NeuronautError, match="holds no text but special tokens"):
        list(pass_gate(of, [dictionary("relu")], nothing, window=WINDOW, force=True))


def test_a_budget_that_takes_nothing_is_an_error() -> None:
    state = HarvestState.empty(sources(), window=WINDOW)
    with pytest.raises(NeuronautError, match="took no window of the corpus 'words'"):
        finish(subject(), sources(), corpus(), state)


def test_activations_that_are_not_finite_stop_the_harvest() -> None:
    class Broken(Dictionary):
        def encode(
            self, vectors: torch.Tensor, features: Any = None, *, out: torch.Tensor | None = None
        ) -> torch.Tensor:
            encoded = super().encode(vectors, features, out=out)
            encoded[0, 0] = torch.nan
            return encoded.roll(40, 0) if out is None else out.copy_(encoded.roll(40, 0))

    source = dictionary("relu")
    broken = Broken(**{part.name: getattr(source, part.name) for part in fields(source)})
    with pytest.raises(NeuronautError, match="NaN or infinite"):
        collect(subject(), [broken], corpus(), splits(), window=WINDOW)


def test_a_list_of_examples_is_sorted(result: HarvestResult) -> None:
    def order(examples: ExampleList) -> list[tuple[int, int]]:
        return list(zip(examples.features.tolist(), result.splits[examples.windows].tolist(), strict=True))

    for source in result.sources:
        for examples in source.lists.values():
            assert order(examples) == sorted(order(examples))
