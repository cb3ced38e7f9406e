"""Directions that are found: planted in clouds of texts, principal components against numpy, files that grow."""

from pathlib import Path

import numpy as np
import pytest
import torch

from neuronaut.causal.edits import Edit
from neuronaut.causal.intervene import Materials, apply
from neuronaut.causal.prompts import Batch
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.activations import read_columns
from neuronaut.labelling.concepts import (
    METHODS,
    FoundDirection,
    Position,
    add_to_file,
    fit_direction,
    list_file,
    principal_components,
    token_directions,
)
from neuronaut.subject.address import SourceId
from neuronaut.subject.direction_matrix import Directions
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons
from tests import planted

SITE = "resid_post.2"


@pytest.fixture(scope="module")
def subject() -> Subject:
    model, tokenizer, _, _ = planted.build(documents=1)
    return Subject(model, tokenizer, name="planted")


def texts_with(*words: str) -> list[str]:
    """Texts that differ in more than the word, so that none is another's near-duplicate."""
    names, verbs = ("Anna", "Boris", "Clara", "David"), ("saw", "left", "liked", "found", "forgot")
    return [
        f"{name} {verb} {words[(i + j) % len(words)]} ." for i, name in enumerate(names) for j, verb in enumerate(verbs)
    ]


def source_of(found: FoundDirection) -> Directions:
    id = SourceId("planted", SITE, "found")
    return Directions(id=id, rows=found.row[None], offsets=torch.tensor([found.offset]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("position", ["mean", "all"])
def test_a_planted_difference_is_found(subject: Subject, method: str, position: Position) -> None:
    cities, colours = texts_with("Paris", "Cairo", "Lima"), texts_with("red", "green", "blue")
    fitted = fit_direction(
        subject, cities, colours, site=SITE, name="city", method=method, position=position, shuffles=30
    )
    assert fitted.probe.auroc.value == 1 and fitted.probe.control.p < 0.05
    about = fitted.found.provenance
    assert (about["trained"], about["tested"], about["method"]) == (28, 12, method)
    source = source_of(fitted.found)
    values = [
        [
            float(source.encode(subject.read(torch.tensor([subject.row(text)]), [SITE])[SITE][0, 1:]).mean())
            for text in set_
        ]
        for set_ in (cities, colours)
    ]
    # 0 lies between the sets, and one unit is what they are apart.
    assert min(values[0]) > 0 > max(values[1])
    assert np.mean(values[0]) - np.mean(values[1]) == pytest.approx(1, abs=0.1)


def test_a_unit_of_the_direction_moves_a_text_across(subject: Subject) -> None:
    found = fit_direction(
        subject,
        texts_with("Paris", "Lima"),
        texts_with("red", "blue"),
        site=SITE,
        name="x",
        position="last",
        shuffles=5,
    ).found
    source, batch = source_of(found), Batch.of(subject, texts_with("green"))
    before = source.encode(subject.read(batch.tokens, [SITE])[SITE].flatten(0, 1))
    with apply(
        subject, batch, [Edit.parse(f"{SITE}@found:0+=1@every")], materials=Materials(sources={f"{SITE}@found": source})
    ):
        after = source.encode(subject.read(batch.tokens, [SITE])[SITE].flatten(0, 1))
    assert torch.allclose(after - before, torch.ones_like(before), atol=1e-3)


def test_shuffled_texts_are_told_apart_no_better_than_shuffled_labels(subject: Subject) -> None:
    texts = texts_with("Paris", "red", "Lima", "blue", "Cairo")
    fitted = fit_direction(subject, texts[::2], texts[1::2], site="resid_pre.0", name="x", shuffles=60)
    assert fitted.probe.control.p > 0.1


def test_near_duplicates_are_on_one_side(subject: Subject) -> None:
    alike = [f"{' '.join(['Anna saw the old river near a quiet garden'] * 3)} {end}" for end in "0123456789"]
    with pytest.raises(NeuronautError, match="10 examples are true, 1 when near-duplicates count once"):
        fit_direction(subject, alike, texts_with("red"), site=SITE, name="x")
    with pytest.raises(NeuronautError, match="'Anna saw red .' is given twice"):
        fit_direction(subject, texts_with("red"), texts_with("red"), site=SITE, name="x")
    with pytest.raises(NeuronautError, match="no method 'svm'; wanted one of diff-means, logistic, lda"):
        fit_direction(subject, texts_with("red"), texts_with("blue"), site=SITE, name="x", method="svm")


def test_near_duplicates_count_once_and_few_distinct_texts_are_told(
    subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("river", "garden", "hill", "bird", "house", "road", "boat", "tree", "Paris", "Lima")
    texts = [
        f"{f'Anna saw the {word} near a quiet {word} and {word} left {word} ' * 3} {n}"
        for word in words
        for n in "0123"
    ]
    found = fit_direction(subject, texts[:20], texts[20:], site=SITE, name="x", shuffles=20)
    about = found.found.provenance
    assert (about["tested"], about["distinct"], about["tested_distinct"]) == (8, 10, 2)
    assert (found.probe.auroc.n, found.probe.accuracy.n) == (2, 2)
    assert "of 40 texts 10 are distinct, near-duplicates counted once, and 2 of these are the test" in caplog.text
    caplog.clear()
    about = fit_direction(subject, texts_with("Paris"), texts_with("red"), site=SITE, name="x").found.provenance
    assert (about["tested"], about["distinct"], about["tested_distinct"]) == (12, 40, 12) and not caplog.text


def test_components_are_those_of_the_vectors(subject: Subject) -> None:
    corpus = Corpus.of("mine", texts_with("Paris", "red", "Lima"))
    found = principal_components(subject, corpus, site=SITE, count=3)
    ids = [np.array([subject.encode(document.text)]) for _, document in corpus]
    coordinates = Neurons(SourceId("planted", SITE), subject.width(SITE))
    vectors = np.concatenate([read_columns(subject, coordinates, row, range(coordinates.width))[0] for row in ids])
    centred = (vectors - vectors.mean(0)).astype(np.float64)
    _, sizes, right = np.linalg.svd(centred, full_matrices=False)
    for number, row in enumerate(found):
        assert abs(float(row.row.double() @ torch.from_numpy(right[number]))) == pytest.approx(1, abs=1e-4)
        assert row.provenance["variance"] == pytest.approx(sizes[number] ** 2 / (sizes**2).sum(), rel=1e-3)
        assert float(row.row.norm()) == pytest.approx(1, abs=1e-5) and float(row.row[row.row.abs().argmax()]) > 0
        projected = vectors @ row.row.numpy() + row.offset
        assert projected.mean() == pytest.approx(0, abs=1e-3 * float(np.abs(projected).max()))
    with pytest.raises(NeuronautError, match="400 components were asked for"):
        principal_components(subject, corpus, site=SITE, count=400)


def test_tokens_have_directions_in_the_residual_stream_alone(subject: Subject) -> None:
    first, second = token_directions(subject, ["Paris", "red"], site="resid_post.2")
    assert (first.name, first.offset, second.name) == ("token Paris", 0.0, "token red")
    with pytest.raises(NeuronautError, match="'Paris red' is 2 tokens"):
        token_directions(subject, ["Paris red"], site=SITE)
    with pytest.raises(NeuronautError, match="mlp.2 is not of the residual stream"):
        token_directions(subject, ["Paris"], site="mlp.2")


def test_a_file_grows_and_a_row_of_the_same_name_gives_way(subject: Subject, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    paris, red = token_directions(subject, ["Paris", "red"], site=SITE)
    assert add_to_file(file, subject, SITE, [paris]) == [0]
    assert add_to_file(file, subject, SITE, [red]) == [1]
    again = FoundDirection("token Paris", 2 * paris.row, 1.0, {})
    assert add_to_file(file, subject, SITE, [again]) == [0]
    one, other = list_file(file)
    assert torch.equal(one.row, 2 * paris.row) and one.offset == 1 and other.provenance == red.provenance
    with pytest.raises(NeuronautError, match="holds directions of resid_post.2, not of resid_post.1"):
        add_to_file(file, subject, "resid_post.1", [paris])
    add_to_file(file, subject, SITE, [FoundDirection("other", red.row, 0.0, {"revision": "of-others"})])
    with pytest.raises(NeuronautError, match="holds 'other' of weights of-others"):
        add_to_file(file, subject, SITE, [paris])
