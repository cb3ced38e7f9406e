"""Directions as sources: against hand arithmetic, as edits of real models, and through their files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.direction_matrix import Directions, holds_directions, load_directions, save_directions
from neuronaut.subject.directions import direction, logit_effect, unembedding
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.opening import load_source
from tests.families import FAMILIES, tiny_subject, tiny_tokens

ID = SourceId("gpt2", "resid_post.1", "mine")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(rows: int = 4, width: int = 16) -> Directions:
    return Directions(id=ID, rows=draw(rows, width), offsets=draw(rows, seed=1))


def test_an_activation_is_the_projection_at_the_files_own_scale() -> None:
    source, vectors = matrix(), draw(5, 16, seed=2)
    wanted = torch.stack([torch.stack([x @ row for row in source.rows]) for x in vectors]) + source.offsets
    assert torch.allclose(source.encode(vectors), wanted, atol=1e-5)
    chosen = torch.tensor([2, 0])
    assert torch.allclose(source.encode(vectors, chosen), wanted[:, chosen], atol=1e-5)
    buffer = torch.empty(5, 2)
    assert source.encode(vectors, slice(1, 3), out=buffer).data_ptr() == buffer.data_ptr()
    assert torch.allclose(buffer, wanted[:, 1:3], atol=1e-5)
    assert source.signed and float(wanted.min()) < 0 < float(wanted.max())


@pytest.mark.parametrize("features", [[1], [3, 0], [0, 1, 2, 3]])
def test_an_edit_sets_the_chosen_activations_and_moves_nothing_across_them(features: list[int]) -> None:
    source, vectors, chosen = matrix(), draw(5, 16, seed=2), torch.tensor(features)
    values = draw(5, len(features), seed=3)
    edited = source.edit(vectors, chosen, values)
    assert torch.allclose(source.encode(edited, chosen), values, atol=1e-4)
    basis = torch.linalg.qr(source.rows[chosen].T).Q
    across = torch.eye(16) - basis @ basis.T
    assert torch.allclose(edited @ across, vectors @ across, atol=1e-4)
    assert torch.equal(source.edit(vectors, chosen, source.encode(vectors, chosen)), vectors)


def test_a_unit_of_activation_is_what_directions_add() -> None:
    source, vectors = matrix(), draw(5, 16, seed=2)
    added = vectors + source.directions(torch.tensor([2]))
    change = source.encode(added, torch.tensor([2])) - source.encode(vectors, torch.tensor([2]))
    assert torch.allclose(change, torch.ones(5, 1), atol=1e-4)


def test_directions_that_depend_on_each_other_are_not_set_apart() -> None:
    rows = draw(3, 16)
    source = Directions(id=ID, rows=torch.cat([rows, rows[:1] + rows[1:2]]))
    values = torch.zeros(5, 3)
    source.edit(draw(5, 16), torch.tensor([0, 1, 2]), values)
    with pytest.raises(NeuronautError, match="3 chosen directions of .* depend on each other"):
        source.edit(draw(5, 16), torch.tensor([0, 1, 3]), values)


@pytest.mark.parametrize("site", ["resid_post.1", "mlp.1", "head.1"])
def test_an_edit_in_the_model_moves_the_residual_stream_along_the_direction(site: str) -> None:
    subject = tiny_subject("gpt2")
    source = Directions(id=SourceId("gpt2", site, "mine"), rows=draw(2, subject.width(site)))
    chosen, tokens = torch.tensor([1]), tiny_tokens()

    def raised(vectors: Tensor) -> Tensor:
        flat = vectors.reshape(-1, vectors.shape[-1])
        return source.edit(flat, chosen, source.encode(flat, chosen) + 0.5).view_as(vectors)

    before = subject.read(tokens, ["resid_post.1"])["resid_post.1"]
    with subject.editing({site: raised}):
        after = subject.read(tokens, ["resid_post.1"])["resid_post.1"]
    written = direction(subject, source, Feature(source.id, 1))
    assert written.exact
    if site != "head.1":  # what a head writes goes through the MLP too
        assert torch.allclose((after - before) / 0.5, written.vector.expand_as(after), atol=5e-4)
    assert float((after - before).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unembedding_direction_is_the_transpose_of_the_logit_effect(family: str) -> None:
    subject = tiny_subject(family)
    ids = [3, 7, 20]
    rows = unembedding(subject, ids)
    for seed in range(3):
        vector = draw(subject.d_model, seed=seed)
        effect = logit_effect(subject, vector)[: len(subject.vocabulary)]
        assert torch.allclose(rows @ vector, (effect - effect.mean())[ids], atol=2e-3)


# Files


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    file, source = tmp_path / "mine.safetensors", matrix()
    about = [{"method": "lda", "auroc": [0.9, 0.8, 1.0]}, {}, {}, {}]
    save_directions(
        file, source.rows, site=ID.site, offsets=source.offsets, names=["a", "b b", "ü", "d"], provenance=about
    )
    assert holds_directions(file)
    loaded = load_directions(file, id=ID, d_site=16)
    assert isinstance(loaded, Directions)
    assert loaded.revision == source.revision and loaded.names == ("a", "b b", "ü", "d")
    assert list(loaded.provenance) == about and loaded.name(2) == "ü"
    assert "4 directions as the file has them, lengths" in loaded.scale


def test_bare_arrays_of_one_or_many_directions_are_read(tmp_path: Path) -> None:
    one, many = np.arange(1, 17, dtype=np.float64), draw(3, 16)
    np.save(tmp_path / "one.npy", one)
    save_file({"probe.weight": many}, tmp_path / "many.safetensors")
    loaded = load_directions(tmp_path / "one.npy", id=ID, d_site=16)
    assert loaded.width == 1 and loaded.rows.tolist() == [one.tolist()] and loaded.offsets is None
    assert torch.equal(load_directions(tmp_path / "many.safetensors", id=ID, d_site=16).rows, many)
    assert loaded.revision != load_directions(tmp_path / "many.safetensors", id=ID, d_site=16).revision


def test_a_dictionary_is_no_file_of_directions(tmp_path: Path) -> None:
    save_file({"W_enc": draw(16, 4), "W_dec": draw(4, 16)}, tmp_path / "sae.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 4)
    assert not any(map(holds_directions, (tmp_path / "sae.safetensors", tmp_path / "torn.safetensors", tmp_path)))


def test_what_is_no_matrix_of_directions_is_said(tmp_path: Path) -> None:
    def refused(match: str, rows: Tensor, metadata: dict[str, str] | None = None, **tensors: Tensor) -> None:
        save_file({"directions": rows, **tensors}, tmp_path / "x.safetensors", metadata)
        with pytest.raises(NeuronautError, match=match):
            load_directions(tmp_path / "x.safetensors", id=ID, d_site=16)

    refused("direction 1 of .* is zero or not finite", torch.cat([draw(1, 16), torch.zeros(1, 16)]))
    refused("direction 0 of .* is zero or not finite", torch.full((2, 16), torch.nan))
    refused(r"shape \(2, 8\); wanted \(n, 16\), the width of resid_post.1", draw(2, 8))
    refused(r"holds directions \(2, 2, 8\)", draw(2, 2, 8))
    refused("2 directions and 3 offsets", draw(2, 16), offsets=draw(3))
    refused("2 directions and 1 names", draw(2, 16), {"names": json.dumps(["a"])})
    refused("its names are no JSON list", draw(2, 16), {"names": "a,b"})
    refused("directions of mlp_out.0, but resid_post.1 is asked for", draw(2, 16), {"site": "mlp_out.0"})
    save_file({"directions": draw(2, 16)}, tmp_path / "x.safetensors")
    with pytest.raises(NeuronautError, match="leave --norm-scale out"):
        load_source(tiny_subject(), ID, str(tmp_path / "x.safetensors"), norm_scale=2.0)
    with pytest.raises(NeuronautError, match="would draw directions again"):
        load_directions(tmp_path / "x.safetensors", id=SourceId("gpt2", "mlp.1", "mine~random-0"), d_site=16)
    with pytest.raises(NeuronautError, match="end it in .safetensors"):
        save_directions(tmp_path / "x.npy", draw(2, 16), site="mlp.1")
