"""Matching pursuit SAEs: the encoder against one written row by row, their format, and SAELens itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.formats import load_dictionary, save_dictionary
from neuronaut.subject.gate import check
from neuronaut.subject.pursuit import Pursuit, pursue
from neuronaut.subject.randomize import randomize_dictionary

from .test_formats import ID, D, F, saelens, write

WIDE = 40


def one_by_one(row: np.ndarray, W_dec: np.ndarray, until: Pursuit) -> np.ndarray:
    """One row's activations, a step at a time."""
    rest, activations = row.copy(), np.zeros(len(W_dec))
    for _ in range(until.steps):
        products = W_dec @ rest
        best = int(products.argmax())
        step, known = max(products[best], 0.0), set(np.flatnonzero(activations))
        activations[best] += step
        rest = rest - step * W_dec[best]
        if until.stop_at_repeat and set(np.flatnonzero(activations)) == known:
            break
        if until.tolerance > 0 and np.sqrt(rest @ rest) < until.tolerance:
            break
    return activations


# Whole numbers, of which sums are exact in both precisions, so that no rounding decides between two features.
@given(
    rows=st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=5),
    matrix=st.lists(st.lists(st.integers(-1, 1), min_size=3, max_size=3), min_size=1, max_size=6),
    until=st.builds(Pursuit, st.integers(1, 6), st.sampled_from([0.0, -1.0, 1.3, 2.7]), st.booleans()),
)
def test_each_row_is_encoded_as_if_alone(rows: list[list[int]], matrix: list[list[int]], until: Pursuit) -> None:
    W_dec = np.array(matrix, float)
    wanted = np.stack([one_by_one(np.array(row, float), W_dec, until) for row in rows])
    found = pursue(torch.tensor(rows, dtype=torch.float32), torch.tensor(matrix, dtype=torch.float32), until)
    np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    W_dec = torch.nn.functional.normalize(torch.randn(WIDE, D, generator=generator), dim=1)
    return {"W_dec": W_dec, "b_dec": torch.randn(D, generator=generator)}


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(20, D, generator=torch.Generator().manual_seed(1)) * 2


def config(**more: Any) -> dict[str, Any]:
    ends = {"residual_threshold": 0.5, "max_iterations": None, "stop_on_duplicate_support": True}
    return saelens("matching_pursuit", d_sae=WIDE) | ends | more


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("ends", [{}, {"stop_on_duplicate_support": False}, {"max_iterations": 3}])
def test_the_format(
    tmp_path: Path, tensors: dict[str, torch.Tensor], vectors: torch.Tensor, subtract: bool, ends: dict[str, Any]
) -> None:
    written = config(apply_b_dec_to_input=subtract, **ends)
    write(tmp_path, tensors, written)
    dictionary = load_dictionary(tmp_path, id=ID, d_site=D)
    until = Pursuit(written["max_iterations"] or D, 0.5, written["stop_on_duplicate_support"])
    W_dec, b_dec = tensors["W_dec"].double().numpy(), tensors["b_dec"].double().numpy() * subtract
    wanted = np.stack([one_by_one(row, W_dec, until) for row in vectors.double().numpy() - b_dec])
    assert 1 < np.count_nonzero(wanted) / len(wanted) < WIDE / 2
    np.testing.assert_allclose(dictionary.encode(vectors).numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(dictionary.reconstruct(vectors).numpy(), wanted @ W_dec + b_dec, atol=1e-5)
    assert torch.equal(
        dictionary.encode(vectors, torch.tensor([5, 0])), dictionary.encode(vectors)[:, torch.tensor([5, 0])]
    )
    save_dictionary(dictionary, tmp_path / "again", dtype=torch.float32)
    assert load_dictionary(tmp_path / "again", id=ID, d_site=D).revision == dictionary.revision


def test_an_edit_keeps_what_the_pursuit_left(
    tmp_path: Path, tensors: dict[str, torch.Tensor], vectors: torch.Tensor
) -> None:
    dictionary = load_dictionary(write(tmp_path, tensors, config()), id=ID, d_site=D)
    chosen = torch.tensor([3, 7])
    own = dictionary.encode(vectors, chosen)
    assert torch.equal(dictionary.edit(vectors, chosen, own), vectors)
    moved = dictionary.edit(vectors, chosen, own + torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(moved - vectors, (2 * tensors["W_dec"][3] - tensors["W_dec"][7]).expand(20, D))


def test_where_it_ends_is_part_of_its_revision(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    dictionary = load_dictionary(write(tmp_path, tensors, config()), id=ID, d_site=D)
    assert dictionary.pursuit is not None
    other = replace(dictionary, pursuit=dictionary.pursuit._replace(tolerance=0.4))
    assert other.revision != dictionary.revision
    drawn = randomize_dictionary(dictionary, 1)
    assert torch.equal(drawn.W_enc, drawn.W_dec.T)
    assert not torch.equal(drawn.W_dec, dictionary.W_dec)


FAULTS: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "sign": lambda W_dec, b_dec: (-W_dec, b_dec),
    "in the other memory order": lambda W_dec, b_dec: (W_dec.T.reshape(W_dec.shape), b_dec),
    "four times as long": lambda W_dec, b_dec: (W_dec * 4, b_dec),
    "bias missing": lambda W_dec, b_dec: (W_dec, torch.zeros_like(b_dec)),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_gate_admits_what_fits_and_nothing_else(tmp_path: Path, fault: str | None) -> None:
    """Vectors that are sums of three features, and a pursuit of at most three steps."""
    generator, d, width = torch.Generator().manual_seed(3), 96, 128
    W_dec = torch.nn.functional.normalize(torch.randn(width, d, generator=generator), dim=1)
    b_dec = torch.randn(d, generator=generator)
    active = torch.rand(2000, width, generator=generator).topk(3, dim=1).indices
    sizes = torch.zeros(2000, width).scatter(1, active, 1 + 3 * torch.rand(2000, 3, generator=generator))
    matrix, bias = FAULTS[fault](W_dec, b_dec) if fault else (W_dec, b_dec)
    folder = write(tmp_path, {"W_dec": matrix, "b_dec": bias}, config(d_in=d, d_sae=width, max_iterations=3))
    gate = check(load_dictionary(folder, id=ID, d_site=d), sizes @ W_dec + b_dec, force=True)
    assert (gate.admitted and not gate.doubts) == (fault is None), gate


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"max_iterations": 0}, "max_iterations is 0; wanted a whole number"),
        ({"residual_threshold": "small"}, "residual_threshold is 'small'; wanted a number"),
        ({"d_sae": F}, f"d_sae is {WIDE}; wanted {F}"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, "centred vectors.*import --evidence"),
        ({"rescale_acts_by_decoder_norm": True}, "units of the decoder's norms.*import --evidence"),
    ],
)
def test_what_a_pursuit_cannot_be_is_one_line(
    tmp_path: Path, tensors: dict[str, torch.Tensor], more: dict[str, Any], reason: str
) -> None:
    write(tmp_path, tensors, config(**more))
    with pytest.raises(NeuronautError, match=reason):
        load_dictionary(tmp_path, id=ID, d_site=D)


@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm", "expected_average_only_in"])
@pytest.mark.parametrize("subtract", [True, False])
def test_saelens_itself_agrees(
    tmp_path: Path, tensors: dict[str, torch.Tensor], vectors: torch.Tensor, norm: str, subtract: bool
) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    write(tmp_path, tensors, config(normalize_activations=norm, apply_b_dec_to_input=subtract))
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    scale = 0.25 if norm == "expected_average_only_in" else None
    if scale:
        theirs.fold_activation_norm_scaling_factor(scale)
    ours = load_dictionary(tmp_path, id=ID, d_site=D, norm_scale=scale)
    with torch.no_grad():
        activations = theirs.encode(vectors)
        rebuilt = theirs.decode(activations)
    torch.testing.assert_close(ours.encode(vectors), activations, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.reconstruct(vectors), rebuilt, atol=1e-5, rtol=1e-5)
