"""Finding features by text: planted neurons come out on the words they were planted for, against plain reading."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch

from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest import histogram
from neuronaut.data.harvest.activations import neurons as open_neurons
from neuronaut.data.harvest.activations import read_columns
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.store.store import Store
from neuronaut.data.texts import WINDOW, cut_texts, limit_norms, read_texts
from neuronaut.labelling.find import find, find_positions, find_separating, share_above
from neuronaut.subject.address import SourceId
from neuronaut.subject.direction_matrix import Directions
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons
from tests import planted
from tests.families import tiny_subject

RIVER = 3
"""The neuron that fires on `river`, except directly after `dry`."""


class World(NamedTuple):
    subject: Subject
    neurons: Neurons
    store: Store


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    model, tokenizer, texts, _ = planted.build(documents=60)
    subject = Subject(model, tokenizer, name="planted")
    with Store(":memory:") as store:
        harvest(subject, ["mlp.2"], Corpus.of("planted", texts), store, tokens=8_000, window=32)
        yield World(subject, Neurons(SourceId("planted", "mlp.2"), subject.width("mlp.2")), store)


def read_plainly(world: World, text: str) -> np.ndarray:
    """(token, neuron)."""
    ids = np.array([world.subject.encode(text)])
    return read_columns(world.subject, world.neurons, ids, range(world.neurons.width))[0]


def test_the_neuron_of_a_word_is_found_on_it(world: World) -> None:
    text = "Anna saw the old river ."
    subject, neurons, store = world
    hits = find(subject, [neurons], text, token="river", store=store, count=5)
    assert hits[0].feature.index == RIVER and not hits[0].feature.negative
    assert (hits[0].token.strip(), hits[0].position) == ("river", 4)
    plain = read_plainly(world, text)
    statistics = store.statistics(neurons.id)
    assert statistics is not None
    for hit in find(subject, [neurons], text, store=store, count=50):
        values = (-1 if hit.feature.negative else 1) * plain[:, hit.feature.index]
        assert hit.activation == pytest.approx(float(values.max()), abs=1e-4) and hit.activation > 0
        assert values[hit.position] == pytest.approx(hit.activation, abs=1e-4)
        largest = max(statistics.peak[hit.feature.index], -statistics.trough[hit.feature.index])
        assert hit.relative == pytest.approx(hit.activation / largest, abs=1e-4)
        assert (hit.share is None) is hit.feature.negative


def test_what_an_exception_turns_off_is_what_differs(world: World) -> None:
    subject, neurons, store = world
    (first, *_) = find(subject, [neurons], "the dry river .", against="the old river .", store=store)
    assert first.feature.index == RIVER and first.difference is not None and first.difference < -0.3
    assert first.against is not None and first.against > first.activation and first.token.strip() == "river"


def texts_with(word: str) -> list[str]:
    return [
        f"{a} {b} the {word} near a {c} ."
        for a in ("Anna", "Boris")
        for b in ("saw", "liked")
        for c in ("hill", "bird")
    ]


def test_what_tells_two_sets_apart_comes_first_with_its_figures(world: World) -> None:
    subject, neurons, store = world
    positive, negative = texts_with("river"), texts_with("house")
    found = find_separating(subject, [neurons], positive, negative, store=store, count=1000)
    best = next(row for row in found.rows if row.feature.index == RIVER and not row.feature.negative)
    assert found.rows.index(best) < 5
    assert found.length == 0.5 and found.length_p == 1 and best.difference is not None and best.difference > 0.3
    assert best.auroc == 1 and best.q < 0.05 and best.ci_low < 1 and best.ci_high == 1
    assert len(found.rows) == found.tested <= 2 * neurons.width
    highest = [[read_plainly(world, text).max(0) for text in texts] for texts in (positive, negative)]
    for row in found.rows:
        if not row.feature.negative:
            first, second = ([values[row.feature.index] for values in part] for part in highest)
            pairs = [float(a > b) + float(a == b) / 2 for a in first for b in second]
            assert row.auroc == pytest.approx(sum(pairs) / len(pairs), abs=0.05)  # batches round
    assert [abs(row.auroc - 0.5) for row in found.rows] == sorted(
        (abs(r.auroc - 0.5) for r in found.rows), reverse=True
    )


def test_that_lengths_differ_is_told(world: World) -> None:
    subject, neurons, store = world
    longer = [f"{text} the river" for text in texts_with("house")]
    found = find_separating(subject, [neurons], longer, texts_with("hill"), store=store)
    assert found.length == 1 and found.length_p < 0.01


def test_of_two_halves_of_the_same_texts_nothing_is_discovered(world: World) -> None:
    subject, neurons, store = world
    texts = [*texts_with("river"), *texts_with("hill")]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    halves = [texts[i] for i in order[::2]], [texts[i] for i in order[1::2]]
    assert find_separating(subject, [neurons], *halves, store=store).discovered == 0


def test_the_mean_of_a_text_has_one_tail_and_is_over_its_tokens(world: World) -> None:
    subject, neurons, store = world
    found = find_separating(
        subject, [neurons], texts_with("river"), texts_with("house"), by="mean", store=store, count=1000
    )
    assert not any(row.feature.negative for row in found.rows)
    row = next(row for row in found.rows if row.feature.index == RIVER)
    means = sorted(float(read_plainly(world, text).mean(0)[RIVER]) for text in texts_with("river"))
    assert row.positive == pytest.approx(means[(len(means) - 1) // 2], abs=1e-4)


def test_both_tails_of_directions_are_found(world: World) -> None:
    subject = world.subject
    row = torch.zeros(2, subject.width("mlp.2"))
    row[0, RIVER], row[1, RIVER] = 1, -1
    source = Directions(id=SourceId("planted", "mlp.2", "both"), rows=row)
    up, down = find(subject, [source], "the old river .", token="river")
    assert {str(up.feature), str(down.feature)} == {"planted:mlp.2@both:0", "planted:mlp.2@both:1-"}
    assert up.activation == down.activation and up.relative is None and up.share is None


def test_the_share_is_that_of_the_tokens_at_least_as_high() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=(3, 5000))).astype(np.float32)
    counts = np.stack([np.bincount(histogram.bins(row), minlength=histogram.BINS) for row in values])
    asked = np.array([0.3, 1.0, 2.2], np.float32)
    found = share_above(counts, asked, 5000)
    edges = histogram.edges()
    for row, value, share in zip(values, asked, found, strict=True):
        low, high = edges[edges <= value].max(), edges[edges > value].min()
        assert ((row >= high).sum() + 1) / 5001 <= share <= ((row >= low).sum() + 1) / 5001
    assert np.isnan(share_above(counts, np.zeros(3, np.float32), 5000)).all()


def test_long_texts_are_cut_and_every_token_is_read_once() -> None:
    subject = tiny_subject("gpt2")
    window = min(WINDOW, subject.context - len(subject.bos_prefix))
    texts = [" ".join(f"w{number % 50}" for number in range(count)) for count in (3, 2 * window + 1)]
    counts = [len(subject.encode(text)) for text in texts]
    rows = cut_texts(subject, texts)
    subject = limit_norms(subject, ["mlp.1"], rows)
    (source,) = open_neurons(subject, ["mlp.1"])
    parts = [part[source.id] for part in read_texts(subject, [source], rows)]
    owners = torch.cat([part.owners for part in parts])
    positions = torch.cat([part.positions for part in parts])
    assert [int((owners == text).sum()) for text in (0, 1)] == counts
    assert positions[owners == 1].tolist() == list(range(counts[1]))


def test_what_cannot_be_found_is_said(world: World) -> None:
    subject, neurons, _ = world
    with pytest.raises(NeuronautError, match="the text has no token boat; it has 0:' the' 1:"):
        find(subject, [neurons], "the river", token="boat")
    with pytest.raises(NeuronautError, match="the text has no token 7"):
        find(subject, [neurons], "the river", token="7")
    assert find_positions(subject, "the river the", "the") == {0, 2} and find_positions(subject, "the river", "-1") == {
        1
    }
    with pytest.raises(NeuronautError, match="2 and 8 texts are too few; wanted 5"):
        find_separating(subject, [neurons], ["the river", "a river"], texts_with("house"))
    with pytest.raises(NeuronautError, match="is given twice"):
        find_separating(subject, [neurons], texts_with("house"), texts_with("house"))
    with pytest.raises(NeuronautError, match="text 1 has no tokens"):
        find(subject, [neurons], "")
