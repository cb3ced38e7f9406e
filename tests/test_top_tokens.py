"""The tokens that every feature of a source raises and lowers the most: as one feature at a time, and kept."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import sleep
from typing import NoReturn

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from neuronaut.cli.main import main
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.harvest.watch import Told
from neuronaut.data.store.store import Store
from neuronaut.labelling.inspect import describe
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.directions import TopTokens, directions, find_top_tokens, promoted, reaches_logits
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons
from tests.encoders import tiny_encoder_subject
from tests.families import FAMILIES, tiny_subject
from tests.stored import harvest_result

COUNT = 4
FEATURE = Feature.parse("demo:mlp.2:1")


@pytest.fixture(params=[5, 10_000])
def stretch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is taken from stretches of tokens, the last of them left out, and from all tokens."""
    monkeypatch.setattr("neuronaut.subject.directions._STRETCH", request.param)


@pytest.mark.usefixtures("stretch")
@pytest.mark.parametrize("family", FAMILIES)
def test_all_at_once_are_what_one_by_one_are(family: str) -> None:
    subject = tiny_subject(family)
    source = Neurons(SourceId(subject.name, "mlp.1"), subject.width("mlp.1"))
    found = find_top_tokens(subject, source, count=COUNT)
    for index in range(source.width):
        own = promoted(subject, source, Feature(source.id, index), count=COUNT)
        values = [effect.value for effect in (*own.top, *own.bottom)]
        assert found.effects[index] == pytest.approx(values, rel=1e-4, abs=1e-5)
        assert found.spread[index] == pytest.approx(own.spread, rel=1e-4)
        # Of effects that are equal to within rounding either order is right.
        if np.abs(np.diff(np.sort(values))).min() > 1e-5:
            tokens = [subject.vocabulary[token] for token in found.ids[index]]
            assert tokens == [effect.token for effect in (*own.top, *own.bottom)]


class _Written(Neurons):
    """Neurons that write what they are told to."""

    rows: torch.Tensor

    def directions(self, features: torch.Tensor) -> torch.Tensor:
        return self.rows[features]


@pytest.mark.usefixtures("stretch")
def test_equal_effects_are_in_the_order_of_tokens_and_what_writes_nothing_has_none() -> None:
    subject = tiny_subject("llama")
    head = subject.unembedding.weight
    with torch.no_grad():
        head[7:20] = head[7]
    source = _Written(SourceId(subject.name, "resid_post.2"), 3)
    rows = torch.zeros(3, subject.d_model)
    rows[1], rows[2] = head[7].detach(), -head[7].detach()
    object.__setattr__(source, "rows", rows)
    found = find_top_tokens(subject, source, count=COUNT)
    assert found.spread[0] == 0 and not found.effects[0].any()
    assert found.ids[1, :COUNT].tolist() == [7, 8, 9, 10] == found.ids[2, COUNT:].tolist()
    chosen = find_top_tokens(subject, source, np.array([2]), count=COUNT)
    assert chosen.spread.tolist() == pytest.approx([0, 0, found.spread[2]]) and not chosen.spread[:2].any()
    assert (chosen.ids[2] == found.ids[2]).all()


def test_what_stays_inside_a_branch_and_encoders_have_no_tokens() -> None:
    subject = tiny_subject("gpt2")
    sites = {site: Neurons(SourceId(subject.name, site), subject.width(site)) for site in ("mlp_in.1", "mlp.1")}
    assert {site: reaches_logits(subject, source) for site, source in sites.items()} == {
        "mlp_in.1": False,
        "mlp.1": True,
    }
    encoder = tiny_encoder_subject("bert")
    assert not reaches_logits(encoder, Neurons(SourceId(encoder.name, "mlp.1"), encoder.width("mlp.1")))
    rows = directions(subject, sites["mlp.1"], [3, 1])
    assert rows.vector.shape == (2, subject.d_model)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store(":memory:") as opened:
        yield opened


def harvested(spread: float = 2.0):  # noqa: ANN201
    """A harvest whose features raise token 10 + index, and lower 20 + index."""
    result = harvest_result("demo:mlp.2")
    width = result.sources[0].width
    ids = np.array([[10 + index, 0, 20 + index, 1] for index in range(width)], np.int32)
    effects = np.tile(np.array([4, 3, -6, -1], np.float32), (width, 1))
    tokens = TopTokens(ids, effects, np.full(width, spread, np.float32))
    return replace(result, sources=(replace(result.sources[0], top_tokens=tokens),))


def test_they_are_kept_and_the_negative_tail_has_them_turned(store: Store) -> None:
    store.write_harvest(harvest_result("demo:mlp.2"))
    assert store.top_tokens(FEATURE) is None and "promoted" not in describe(store, FEATURE)
    # The same harvest again, of a version that knows them, adds them and changes nothing else.
    store.write_harvest(harvested())
    store.write_harvest(harvested(spread=99.0))
    row = describe(store, FEATURE)
    assert row["promoted"] == [
        {"token": " t11", "value": 4.0, "deviations": 2.0},
        {"token": " t0", "value": 3.0, "deviations": 1.5},
    ]
    assert [own["token"] for own in row["suppressed"]] == [" t21", " t1"]
    below = describe(store, Feature.parse("demo:mlp.2:1-"))
    assert [(own["token"], own["value"]) for own in below["promoted"]] == [(" t21", 6.0), (" t1", 1.0)]
    assert [(own["token"], own["value"]) for own in below["suppressed"]] == [(" t11", -4.0), (" t0", -3.0)]


def test_a_merge_brings_them(tmp_path: Path) -> None:
    with Store(tmp_path / "other.db") as other:
        other.write_harvest(harvested())
    with Store(tmp_path / "own.db") as own:
        own.merge(tmp_path / "other.db")
        own.merge(tmp_path / "other.db")
        shifts = own.top_tokens(FEATURE)
        assert shifts is not None and [shift.id for shift in shifts.promoted] == [11, 0]


def test_show_tells_them(tmp_path: Path) -> None:
    database = str(tmp_path / "own.db")
    with Store(database) as own:
        own.write_harvest(harvested())
    shown = CliRunner().invoke(main, ["show", str(FEATURE), "-d", database]).stdout
    assert 'promotes   " t11" +2.0  " t0" +1.5\nsuppresses " t21" -3.0  " t1" -0.5' in shown
    (row,) = json.loads(CliRunner().invoke(main, ["show", str(FEATURE), "-d", database, "--json"]).stdout)
    assert row["promoted"][0] == {"token": " t11", "value": 4.0, "deviations": 2.0}


def test_a_harvest_finds_them_of_what_fired(store: Store) -> None:
    subject = Subject.load("demo")
    result = harvest(subject, ["mlp.2", "mlp_in.2"], Corpus.load("stdlib"), store, tokens=2000)
    source = Neurons(SourceId.parse("demo:mlp.2"), subject.width("mlp.2"))
    index = int(np.flatnonzero(result.sources[0].count)[0])
    own, shifts = promoted(subject, source, Feature(source.id, index)), store.top_tokens(Feature(source.id, index))
    assert shifts is not None
    assert [subject.vocabulary[shift.id] for shift in shifts.promoted] == [effect.token for effect in own.top]
    assert shifts.suppressed[0].deviations == pytest.approx(own.bottom[0].value / own.spread, rel=1e-4)
    assert result.sources[1].top_tokens is None


def test_tokens_are_sought_while_the_rest_is_written_and_no_longer_where_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sought, ended = Event(), Event()

    def seek(_subject: object, _sources: object, _results: object, progress: Told) -> NoReturn:
        sought.set()
        try:
            for done in range(6000):
                progress(done, 6000)
                sleep(0.01)
        finally:
            ended.set()
        raise AssertionError("the harvest has given up, and its tokens are still sought")

    def write(*_: object, **__: object) -> None:
        assert sought.wait(60)
        raise NeuronautError("the disk is full")

    monkeypatch.setattr("neuronaut.data.harvest.ending.rank_tokens", seek)
    monkeypatch.setattr("neuronaut.data.store.writing.write_shared_windows", write)
    with Store(str(tmp_path / "full.db")) as store:
        with pytest.raises(NeuronautError, match="the disk is full"):
            harvest(Subject.load("demo"), ["mlp.2"], Corpus.load("stdlib"), store, tokens=5_000)
        assert ended.is_set() and store.sources() == []
