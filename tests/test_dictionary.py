"""The canonical dictionary against plain loops, and the gate against seeded corruptions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.subject.address import SourceId
from neuronaut.subject.dictionary import EXTRAS, NORMS, Dictionary, Kind, Norm
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.gate import check, estimate_norm_scale, sweep
from neuronaut.subject.pursuit import Pursuit
from neuronaut.subject.sources import Source

from .test_pursuit import one_by_one

ID = SourceId("toy", "resid_post.1", "sae")
KINDS: tuple[Kind, ...] = tuple(EXTRAS)
PLACES: dict[Kind, int] = {"topk": 5, "abstopk": 5, "groupmax": 6}
"""How many of the 24 features are active, or groups of them."""


def random_dictionary(kind: Kind, *, norm: Norm = "none", subtract: bool = True, seed: int = 0) -> Dictionary:
    """A dictionary of 24 features over 10 dimensions with nothing special about it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    extras = {"threshold": draw(24), "b_mag": draw(24), "r_mag": draw(24) / 4}
    W_enc, W_dec = draw(24, 10).T, draw(24, 10)
    pursuit = Pursuit(6, 0.5, stop_at_repeat=True) if kind == "matching_pursuit" else None
    if pursuit:
        W_dec = torch.nn.functional.normalize(W_dec, dim=1)
        W_enc = W_dec.T
    return Dictionary(
        id=ID,
        kind=kind,
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=draw(24),
        b_dec=draw(10),
        norm=norm,
        subtract_b_dec=subtract,
        k=PLACES.get(kind, 0),
        pursuit=pursuit,
        **{name: extras[name] for name in EXTRAS[kind]},
    )


def reference(dictionary: Dictionary, vectors: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Activations and reconstruction of one row at a time, one feature at a time, in float64."""
    weights = {name: tensor.double().numpy() for name, tensor in dictionary.tensors().items()}
    all_activations, all_rebuilt = [], []
    for row in vectors.double().numpy():
        scale, mean, normal = 1.0, 0.0, row
        if dictionary.norm == "constant_norm_rescale":
            scale = math.sqrt(sum(x * x for x in row)) / math.sqrt(len(row))
            normal = row / scale
        if dictionary.norm == "layer_norm":
            mean = sum(row) / len(row)
            scale = math.sqrt(sum((x - mean) ** 2 for x in row) / (len(row) - 1))
            normal = (row - mean) / (scale + 1e-5)
        normal = normal - weights["b_dec"] if dictionary.subtract_b_dec else normal
        linear = [float(normal @ weights["W_enc"][:, f]) for f in range(dictionary.width)]
        if dictionary.kind != "gated":
            linear = [value + weights["b_enc"][f] for f, value in enumerate(linear)]
        activations = [one_activation(dictionary, weights, linear, f) for f in range(dictionary.width)]
        if dictionary.pursuit:
            activations = one_by_one(normal, weights["W_dec"], dictionary.pursuit)
        rebuilt = sum(a * weights["W_dec"][f] for f, a in enumerate(activations)) + weights["b_dec"]
        all_activations.append(activations)
        all_rebuilt.append(rebuilt * scale + mean)
    return np.array(all_activations), np.array(all_rebuilt)


def one_activation(dictionary: Dictionary, weights: dict[str, np.ndarray], linear: list[float], f: int) -> float:
    """The activation of feature f, given the linear part of all of them."""
    if dictionary.kind == "topk":
        return max(linear[f], 0.0) if linear[f] in sorted(linear)[-dictionary.k :] else 0.0
    if dictionary.kind == "abstopk":
        return linear[f] if linear[f] in sorted(linear, key=abs)[-dictionary.k :] else 0.0
    if dictionary.kind == "groupmax":
        first = f - f % (len(linear) // dictionary.k)
        return max(linear[f], 0.0) if linear[f] == max(linear[first : first + len(linear) // dictionary.k]) else 0.0
    if dictionary.kind == "jumprelu":
        return max(linear[f], 0.0) if linear[f] > weights["threshold"][f] else 0.0
    if dictionary.kind == "gated":
        magnitude = max(linear[f] * math.exp(weights["r_mag"][f]) + weights["b_mag"][f], 0.0)
        return magnitude if linear[f] + weights["b_enc"][f] > 0 else 0.0
    return max(linear[f], 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subtract", [True, False])
def test_encode_and_decode_are_the_formulas(kind: Kind, norm: Norm, subtract: bool) -> None:
    dictionary = random_dictionary(kind, norm=norm, subtract=subtract)
    vectors = torch.randn(30, 10, generator=torch.Generator().manual_seed(1)) * 3 + 1
    activations, rebuilt = reference(dictionary, vectors)
    assert np.abs(dictionary.encode(vectors).numpy() - activations).max() < 1e-5
    assert np.abs(dictionary.reconstruct(vectors).numpy() - rebuilt).max() < 1e-4
    assert 0 < np.count_nonzero(activations) < activations.size


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    features=st.one_of(
        st.none(),
        st.tuples(st.integers(0, 23), st.integers(1, 24)).map(lambda ends: slice(min(ends), max(ends) + 1)),
        st.lists(st.integers(0, 23), min_size=1, max_size=30).map(torch.tensor),
    ),
    buffered=st.booleans(),
)
def test_any_choice_of_features_is_the_same_columns(
    kind: Kind, features: slice | torch.Tensor | None, buffered: bool
) -> None:
    source: Source = random_dictionary(kind)
    vectors = torch.randn(7, 10, generator=torch.Generator().manual_seed(2))
    everything = source.encode(vectors)
    wanted = everything if features is None else everything[:, features]
    out = torch.full(wanted.shape, torch.nan) if buffered else None
    got = source.encode(vectors, features, out=out)
    assert got is out or not buffered
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_topk_keeps_k_features_even_where_all_are_equal() -> None:
    flat = replace(random_dictionary("topk"), W_enc=torch.zeros(10, 24), b_enc=torch.ones(24))
    assert (flat.encode(torch.randn(6, 10)) > 0).sum(dim=1).tolist() == [5] * 6


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_a_buffer_is_all_the_room_that_encoding_takes(kind: Kind) -> None:
    dictionary = random_dictionary(kind)
    vectors, out = torch.randn(4096, 10), torch.empty(4096, 24)
    with torch.profiler.profile(profile_memory=True) as profile:
        dictionary.encode(vectors, slice(0, 24), out=out)
    largest = max(event.cpu_memory_usage for event in profile.events() or ())
    assert largest < out.nbytes / 2


def test_a_slice_of_features_is_not_copied() -> None:
    dictionary = random_dictionary("standard")
    assert dictionary.W_enc.T[3:9].data_ptr() == dictionary.W_enc[:, 3:].data_ptr()
    assert dictionary.W_enc.T[3:9].is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_an_edit_changes_the_chosen_features_and_keeps_the_error(kind: Kind, norm: Norm) -> None:
    dictionary = random_dictionary(kind, norm=norm)
    vectors = torch.randn(9, 10) * 2
    features, values = torch.tensor([3, 11]), torch.rand(9, 2) * 4
    activations = dictionary.encode(vectors)
    edited = activations.clone()
    edited[:, features] = values
    wanted = vectors + dictionary.decode(edited, vectors=vectors) - dictionary.decode(activations, vectors=vectors)
    torch.testing.assert_close(dictionary.edit(vectors, features, values), wanted, atol=1e-4, rtol=1e-4)
    unchanged = dictionary.edit(vectors, features, activations[:, features])
    torch.testing.assert_close(unchanged, vectors, atol=2e-5, rtol=0)
    assert dictionary.edit(vectors.half(), features, values).dtype == torch.float16


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_vectors(kind: Kind) -> None:
    torch.manual_seed(0)
    dictionary = random_dictionary(kind)
    vectors = torch.randn(5, 10, requires_grad=True)
    activations = dictionary.encode(vectors)
    activations.sum().backward()
    step = torch.randn(5, 10) * 1e-3
    gain = (dictionary.encode((vectors + step).detach()) - activations.detach()).double().sum()
    assert vectors.grad is not None
    assert abs(float(gain) - float((vectors.grad * step).double().sum())) < 1e-3


def test_the_revision_is_of_all_that_counts_and_nothing_else() -> None:
    dictionary = random_dictionary("jumprelu")
    assert dictionary.threshold is not None
    again = replace(random_dictionary("jumprelu"), id=SourceId("other", "mlp_out.3", "b"))
    assert again.revision == dictionary.revision
    assert replace(dictionary, W_enc=dictionary.W_enc.contiguous()).revision == dictionary.revision
    for change in (
        {"W_dec": dictionary.W_dec + 1e-3},
        {"threshold": dictionary.threshold + 1e-3},
        {"subtract_b_dec": False},
        {"norm": "layer_norm"},
    ):
        assert replace(dictionary, **change).revision != dictionary.revision


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b_enc": torch.zeros(7)}, r"b_enc .* \(7,\); wanted \(24,\)"),
        ({"W_dec": torch.zeros(10, 24)}, r"W_dec .* \(10, 24\); wanted \(24, 10\)"),
        ({"threshold": None}, "threshold .* is missing"),
        ({"b_dec": torch.full((10,), torch.nan)}, "b_dec .* NaN or infinite"),
        ({"kind": "topk"}, "k=0; wanted 1 to 24"),
    ],
)
def test_what_cannot_be_a_dictionary_is_refused(change: dict[str, object], message: str) -> None:
    dictionary = random_dictionary("jumprelu")
    with pytest.raises(NeuronautError, match=message):
        replace(dictionary, **change)  # pyright: ignore[reportArgumentType]


# ---- the gate --------------------------------------------------------------------------------


SIDE = 32
OFFSET = 6.0


def planted(seed: int = 0, *, k: int = 3, width: int = SIDE) -> Dictionary:
    """A TopK dictionary of orthogonal directions around an offset, exact on the vectors that `made_of` makes."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator)).Q[:width]
    offset = OFFSET * torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator)).Q[0]
    return Dictionary(
        id=ID, kind="topk", W_enc=directions.T, W_dec=directions, b_enc=torch.zeros(width), b_dec=offset, k=k
    )


def made_of(dictionary: Dictionary, *, rows: int = 2048, noise: float = 0.05, seed: int = 5) -> torch.Tensor:
    """Vectors that are sums of k of the dictionary's directions, its offset, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, dictionary.width, generator=generator).topk(dictionary.k, dim=1).indices
    amounts = torch.zeros(rows, dictionary.width).scatter_(1, chosen, 1 + torch.rand(rows, 3, generator=generator))
    return dictionary.decode(amounts) + noise * torch.randn(rows, SIDE, generator=generator)


def test_a_clean_dictionary_passes_the_gate() -> None:
    dictionary = planted()
    gate = check(dictionary, made_of(dictionary))
    assert gate.fvu < 0.05
    assert gate.l0 == 3
    assert gate.dead_share == 0
    assert gate.decoder_norm_median == pytest.approx(1, abs=1e-5)
    assert gate.gain == pytest.approx(1, abs=0.05)
    assert gate.doubts == ()
    assert str(gate).startswith("toy:resid_post.1@sae: FVU 0.0")
    assert "\n" not in str(gate)


def test_the_gate_measures_what_it_says() -> None:
    dictionary = random_dictionary("jumprelu")
    vectors = torch.randn(700, 10, generator=torch.Generator().manual_seed(3))
    activations, rebuilt = reference(dictionary, vectors)
    true = vectors.double().numpy()
    gate = check(dictionary, vectors, force=True)
    assert gate.fvu == pytest.approx(((true - rebuilt) ** 2).sum() / ((true - true.mean(0)) ** 2).sum(), rel=1e-4)
    assert gate.l0 == pytest.approx((activations > 0).sum(1).mean())
    assert gate.dead_share == pytest.approx((activations.max(0) == 0).mean())


SQUARE = planted()
CORRUPTIONS = {
    "transposed encoder": replace(SQUARE, W_enc=SQUARE.W_enc.T),
    "transposed decoder": replace(SQUARE, W_dec=SQUARE.W_dec.T),
    "input scale missing": replace(SQUARE, b_dec=SQUARE.b_dec / 4),
    "decoder rescaled": replace(SQUARE, W_dec=SQUARE.W_dec * 1.5),
    "b_dec not subtracted": replace(SQUARE, subtract_b_dec=False),
    "features shuffled": replace(SQUARE, W_enc=SQUARE.W_enc.roll(1, dims=1)),
    "another site": planted(seed=9),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_dictionary_is_refused_or_doubted(name: str) -> None:
    vectors = made_of(SQUARE)
    try:
        gate = check(CORRUPTIONS[name], vectors)
    except NeuronautError as error:
        assert "FVU" in str(error)
        assert "--force" in str(error)
    else:
        assert gate.doubts


def test_a_missing_input_scale_is_doubted_and_its_estimate_mends_it() -> None:
    """Trained on vectors of mean norm sqrt(d), read without that factor: a threshold no longer fits."""
    clean = planted()
    vectors = made_of(clean)
    scale = estimate_norm_scale(vectors)
    assert float(vectors.norm(dim=1).mean()) * scale == pytest.approx(math.sqrt(SIDE))
    trained = replace(clean, b_dec=clean.b_dec * scale)
    folded = replace(trained, W_enc=trained.W_enc * scale, W_dec=trained.W_dec / scale, b_dec=trained.b_dec / scale)
    assert check(folded, vectors).doubts == ()
    assert check(trained, vectors, force=True).doubts


@pytest.mark.parametrize("shift", ["resid_post.0", "resid_post.2"])
def test_the_sweep_finds_the_layer_that_a_shifted_dictionary_belongs_to(shift: str) -> None:
    """Three layers that each add to the one before: neighbours pass the gate, the sweep tells them apart."""
    dictionary = planted()
    right = made_of(dictionary)
    generator = torch.Generator().manual_seed(8)
    turn = 0.3 * torch.randn(SIDE, SIDE, generator=generator) / math.sqrt(SIDE)
    sites = {"resid_post.0": right - right @ turn, "resid_post.1": right, "resid_post.2": right + right @ turn}
    clean = sweep(dictionary, sites)
    assert clean.best == "resid_post.1"
    assert clean.warning is None
    shifted = sweep(replace(dictionary, id=replace(ID, site=shift)), sites)
    assert check(dictionary, sites[shift]).fvu < 0.8
    assert shifted.warning is not None
    assert shifted.warning.startswith("resid_post.1 is rebuilt better")


def test_the_sweep_keeps_the_declared_site_on_a_tie_and_leaves_other_widths_out() -> None:
    dictionary = planted()
    vectors = made_of(dictionary)
    same = {"resid_pre.2": vectors, "resid_post.1": vectors, "mlp.1": torch.randn(8, 4 * SIDE)}
    found = sweep(dictionary, same)
    assert found.best == "resid_post.1"
    assert set(found.fvu) == {"resid_pre.2", "resid_post.1"}
    with pytest.raises(NeuronautError, match=r"no vectors of resid_post\.1"):
        sweep(dictionary, {"resid_pre.2": vectors})


@pytest.mark.parametrize("vectors", [torch.ones(5, SIDE), torch.full((5, SIDE), torch.nan)])
def test_vectors_without_variance_or_not_finite_are_refused(vectors: torch.Tensor) -> None:
    with pytest.raises(NeuronautError, match="FVU nan"):
        check(planted(), vectors)
    assert math.isnan(check(planted(), vectors, force=True).fvu)
