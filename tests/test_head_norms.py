"""Heads as features: what they write by hand, and what they look at by the model's own patterns."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.records import Attended, Example
from neuronaut.data.store.store import Store
from neuronaut.labelling.inspect import describe
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.attention import patterns
from neuronaut.subject.directions import branch
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.head_norms import HeadNorms
from neuronaut.subject.model import Subject
from neuronaut.subject.opening import open_source
from tests.families import FAMILIES, HEADS, tiny_subject, tiny_tokens
from tests.test_architectures import tiny

TOKENS = tiny_tokens()
SENTENCE = "the cat sat on a mat and dogs ran to see it under old trees by rivers while birds sang songs"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[(i * step) % len(WORDS)] for i in range(1, 30)) for step in range(1, 16)]
every_family = pytest.mark.parametrize("family", FAMILIES)


def heads_of(subject: Subject, layer: int = 1) -> HeadNorms:
    source = open_source(subject, SourceId(subject.name, f"head.{layer}", "norm"))
    assert isinstance(source, HeadNorms)
    return source


def writes(subject: Subject, z: Tensor) -> Tensor:
    """What each head alone makes the output projection give, beyond its bias: (row, head, d_model)."""
    projection, _ = branch(subject, "head.1")
    assert projection is not None
    parts = []
    with torch.no_grad():
        for head in range(HEADS):
            alone = torch.zeros_like(z).unflatten(-1, (HEADS, -1))
            alone[:, head] = z.unflatten(-1, (HEADS, -1))[:, head]
            parts.append(projection(alone.flatten(-2)) - projection(torch.zeros_like(z)))
    return torch.stack(parts, 1)


@every_family
def test_an_activation_is_the_length_of_what_the_head_writes(family: str) -> None:
    subject = tiny_subject(family)
    source, z = heads_of(subject), subject.read(TOKENS, ["head.1"])["head.1"].flatten(0, 1)
    wanted = writes(subject, z).norm(dim=-1)
    torch.testing.assert_close(source.encode(z), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(source.encode(z, torch.tensor([2, 0])), wanted[:, [2, 0]], rtol=1e-4, atol=1e-5)
    assert source.width == HEADS


def test_an_edit_sets_the_length_and_nothing_else() -> None:
    subject = tiny_subject("llama")
    source, z = heads_of(subject), subject.read(TOKENS, ["head.1"])["head.1"].flatten(0, 1)
    edited = source.edit(z, torch.tensor([3, 1]), torch.tensor([[2.0, 0.0]]).expand(len(z), -1))
    before, after = writes(subject, z), writes(subject, edited)
    torch.testing.assert_close(after[:, 3], 2 * before[:, 3] / before[:, 3].norm(dim=-1, keepdim=True))
    assert not after[:, 1].any() and torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    for vectors, value in ((z, -1.0), (0 * z, 1.0)):
        with pytest.raises(NeuronautError, match="is a length"):
            source.edit(vectors, torch.tensor([0]), torch.full((len(z), 1), value))
    with pytest.raises(NeuronautError, match="has no directions"):
        source.directions(torch.tensor([0]))


@pytest.mark.parametrize("site", ["mlp.1", "query.1", "resid_post.1"])
def test_lengths_are_of_heads_alone(site: str) -> None:
    with pytest.raises(NeuronautError, match="is of no heads"):
        open_source(tiny_subject("llama"), SourceId("llama", site, "norm"))


def collect(subject: Subject, path: Path | str = ":memory:") -> Store:
    store = Store(str(path))
    harvest(subject, [heads_of(subject)], Corpus.of("words", TEXTS), store, window=16)
    return store


def examples_of(store: Store, subject: Subject, head: int) -> list[Example]:
    return [e for e in store.evidence(Feature.parse(f"{subject.name}:head.1@norm:{head}")).examples if e.kind == "top"]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_an_example_keeps_the_token_that_its_peak_looks_at(family: str, tmp_path: Path) -> None:
    subject = tiny_subject(family)
    store, skip = collect(subject, tmp_path / "a.db"), len(subject.bos_prefix)
    seen: set[int] = set()
    for head in range(HEADS):
        examples = examples_of(store, subject, head)
        assert examples
        for example in examples:
            row = torch.tensor([[*subject.bos_prefix, *example.ids]])
            weights = patterns(subject, row, [1])[1][0, head, int(example.activations.argmax()) + skip]
            assert example.attended is not None
            assert weights[example.attended.position + skip] == weights.max()
            assert example.attended.weight == pytest.approx(float(weights.max()), abs=1e-3)
            seen.add(example.attended.position)
    assert len(seen) > 1
    shown = describe(store, Feature.parse(f"{family}:head.1@norm:0"), count=1)["examples"][0]
    first = max(examples_of(store, subject, 0), key=lambda example: (example.peak, example.window))
    assert shown["attended"]["weight"] == round((first.attended or Attended(0, 0)).weight, 3)
    other = Store(str(tmp_path / "b.db"))
    other.merge(str(tmp_path / "a.db"))
    assert [e.attended for e in examples_of(other, subject, 0)] == [e.attended for e in examples_of(store, subject, 0)]


def test_where_patterns_are_refused_the_harvest_says_why() -> None:
    subject = Subject(tiny("falcon"), tiny_subject().tokenizer, name="falcon")
    store = collect(subject)
    assert [example.attended for example in examples_of(store, subject, 0)[:2]] == [None, None]
    reasons = store.sources()[0]["provenance"]["no_source_tokens"]
    assert "calls softmax" in reasons["falcon:head.1@norm"]
