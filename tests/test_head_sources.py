"""Heads as features: what they write by hand, and what they look at by the model's own patterns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.records import Attended, Example
from neuronaut.data.store.store import Store
from neuronaut.labelling.inspect import describe
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.attention import patterns
from neuronaut.subject.directions import branch, logit_effect, pass_norm
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.head_norms import HeadNorms
from neuronaut.subject.head_writes import HeadWrites
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
    looks = describe(store, Feature.parse(f"{family}:head.1@norm:0"))["looks_at"]
    places = ("itself", "the token before", "farther back", "BOS")
    assert sum(looks[name] for name in places) == pytest.approx(1, abs=0.01)
    assert looks["n"] == len(examples_of(store, subject, 0))
    other = Store(str(tmp_path / "b.db"))
    other.merge(str(tmp_path / "a.db"))
    assert [e.attended for e in examples_of(other, subject, 0)] == [e.attended for e in examples_of(store, subject, 0)]


def test_where_patterns_are_refused_the_harvest_says_why() -> None:
    subject = Subject(tiny("falcon"), tiny_subject().tokenizer, name="falcon")
    store = collect(subject)
    assert [example.attended for example in examples_of(store, subject, 0)[:2]] == [None, None]
    reasons = store.sources()[0]["provenance"]["no_source_tokens"]
    assert "calls softmax" in reasons["falcon:head.1@norm"]


# --- along a direction ----------------------------------------------------------------------------


def along(subject: Subject, place: str) -> HeadWrites:
    source = open_source(subject, SourceId(subject.name, "head.1", "way"), path=f"along:{place}")
    assert isinstance(source, HeadWrites)
    return source


@every_family
def test_what_heads_write_along_a_token_is_their_direct_effect_on_its_logit(family: str) -> None:
    """By the functions of direct logit attribution, which take each head's write through the norms."""
    subject = tiny_subject(family)
    token = subject.vocabulary[7]
    source, z = along(subject, f"token:{json.dumps(token)}"), subject.read(TOKENS, ["head.1"])["head.1"].flatten(0, 1)
    _, norm = branch(subject, "head.1")
    written = writes(subject, z[:3])
    for row, head in ((0, 0), (1, 3), (2, 2)):
        vector = written[row, head]
        effect = logit_effect(subject, vector if norm is None else pass_norm(norm, vector))
        wanted = effect[7] - effect[: len(subject.vocabulary)].mean()
        torch.testing.assert_close(source.encode(z[:3])[row, head], wanted, rtol=1e-3, atol=1e-4)
    assert source.rescales is (norm is not None)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_what_heads_write_along_a_vector_of_a_file(tmp_path: Path, suffix: str) -> None:
    subject, vector, path = tiny_subject("llama"), torch.arange(24.0) - 5, tmp_path / f"way{suffix}"
    if suffix == ".npy":
        np.save(path, vector.numpy())
    else:
        save_file({"way": vector}, path)
    source, z = along(subject, str(path)), subject.read(TOKENS, ["head.1"])["head.1"].flatten(0, 1)
    torch.testing.assert_close(source.encode(z), writes(subject, z) @ vector / vector.norm(), rtol=1e-4, atol=1e-5)
    chosen = torch.tensor([3, 1])
    edited = source.edit(z, chosen, torch.tensor([[2.0, -1.0]]).expand(len(z), -1))
    torch.testing.assert_close(source.encode(edited)[0, [3, 1]], torch.tensor([2.0, -1.0]))
    assert torch.equal(edited.unflatten(-1, (HEADS, -1))[:, [0, 2]], z.unflatten(-1, (HEADS, -1))[:, [0, 2]])
    added = source.encode(source.directions(chosen))
    torch.testing.assert_close(added, torch.eye(HEADS)[chosen])


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("token:nowhere", "has no token 'nowhere'"),
        ("nowhere.npy", "is no direction; wanted"),
        ("FILE", "wanted one vec"),
    ],
)
def test_what_is_no_direction_is_refused(tmp_path: Path, place: str, says: str) -> None:
    np.save(tmp_path / "FILE.npy", np.ones(5))
    with pytest.raises(NeuronautError, match=says):
        along(tiny_subject("llama"), place.replace("FILE", str(tmp_path / "FILE.npy")))
