"""What a dry run says comes true, and it leaves nothing behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest import estimate as module
from neuronaut.data.harvest.activations import neurons
from neuronaut.data.harvest.estimate import Estimate, estimate
from neuronaut.data.harvest.harvest import collect, harvest
from neuronaut.data.harvest.state import save_state
from neuronaut.data.splits import assign
from neuronaut.data.store.store import Store
from neuronaut.subject.address import SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons, Source

TOKENS = 24_000


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.load("demo")


@pytest.fixture(scope="module")
def sources(subject: Subject) -> list[Source]:
    return neurons(subject, ["mlp.1", "resid_post.3"])


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    documents = [document.text for _, document in Corpus.load("stdlib").head(400_000)]
    return Corpus.of("some", documents)


@pytest.fixture(scope="module")
def told(subject: Subject, sources: list[Source], corpus: Corpus) -> Estimate:
    return estimate(subject, sources, corpus, tokens=TOKENS)


def test_the_database_grows_as_it_was_told(
    told: Estimate, subject: Subject, sources: list[Source], corpus: Corpus, tmp_path: Path
) -> None:
    with Store(tmp_path / "real.db") as store:
        result = harvest(subject, sources, corpus, store, tokens=TOKENS)
        assert told.database == pytest.approx(store.size, rel=0.1)
    assert told.tokens == pytest.approx(result.tokens, rel=0.1)
    lists = sum(part.activations.nbytes for source in result.sources for part in source.lists.values())
    assert told.memory["lists"] + told.memory["mined"] > 0.9 * lists
    assert told.memory["lists"] + told.memory["statistics"] <= told.checkpoint, "no more than all lists full"
    assert told.memory["statistics"] == sum(8 * 2 + 4 * 2 + 8 * 64 for _ in range(sum(s.width for s in sources)))
    assert set(told.sources) == {source.source for source in result.sources}


def test_the_checkpoint_has_the_size_that_was_told(
    told: Estimate, subject: Subject, sources: list[Source], corpus: Corpus, tmp_path: Path
) -> None:
    state, path = collect(subject, sources, corpus, assign(corpus), tokens=TOKENS), tmp_path / "state.npz"
    save_state(path, state, about={})
    assert told.checkpoint == pytest.approx(path.stat().st_size, rel=0.05)


def test_a_dry_run_leaves_the_subject_as_it_was(told: Estimate, subject: Subject) -> None:
    assert not subject.convention.norm_limits
    assert told.peak == sum(told.memory.values())
    assert told.disk >= told.checkpoint + 2 * told.database


def test_a_corpus_smaller_than_the_sample_is_counted_whole(subject: Subject, sources: list[Source]) -> None:
    short = Corpus.of("short", [f"import os{number}\n" * 9 for number in range(12)])
    told = estimate(subject, sources, short, tokens=None)
    result = collect(subject, sources, short, assign(short))
    assert told.tokens == result.tokens


def test_text_takes_no_time_beside_the_model(told: Estimate) -> None:
    slow = replace(told, seconds={**told.seconds, "text": 5.0, "model": 8.0}, overlap=True)
    rest = sum(part for name, part in told.seconds.items() if name not in ("text", "model"))
    assert slow.total_seconds() == pytest.approx(rest + 8.0)
    assert replace(slow, overlap=False).total_seconds() == pytest.approx(rest + 13.0)
    assert slow.total_seconds(2.0) == pytest.approx(rest + 16.0 + told.seconds["mining"])


def test_filling_the_lists_is_counted_as_often_as_it_happens() -> None:
    growth = module._Growth(128, 10.0, np.array([50, 20, 30]))
    first, second = [2.0] * 4, [1.0] * 4
    assert growth.seconds(second, second) == pytest.approx(40.0)
    assert 40.0 < growth.seconds(first, second) < 80.0
    assert module._records(10) == pytest.approx(20), "every one of a few windows enters both lists"
    assert module._records(1280) < 10 * module._records(128)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not say how much memory is free")
def test_a_harvest_without_memory_for_it_is_refused(subject: Subject, corpus: Corpus) -> None:
    endless = [Neurons(SourceId("demo", "mlp.1"), 10**9)]
    with pytest.raises(NeuronautError, match="GB are free; harvest fewer sites at once"):
        estimate(subject, endless, corpus, tokens=TOKENS)
