"""Reading the last token of rows that begin alike, against running every row by itself."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.data.harvest.activations import ROWS, Row, read_columns, read_last, read_own, read_pivots, with_bos
from neuronaut.subject.address import SourceId
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons
from tests.families import VOCABULARY, tiny_subject

CHOSEN = [3, 0, 11]


@cache
def subject(family: str) -> Subject:
    return tiny_subject(family)


def neurons(of: Subject) -> Neurons:
    return Neurons(SourceId(of.name, "mlp.1"), of.width("mlp.1"))


def one_by_one(of: Subject, rows: list[Row]) -> np.ndarray:
    return np.stack([read_columns(of, neurons(of), np.array([row]), CHOSEN)[0, -1] for row in rows])


@st.composite
def scans(draw: st.DrawFn) -> list[Row]:
    """Rows of a few carriers, each with other tokens put in at some offset, in any order, some of them twice."""
    tokens = st.integers(3, VOCABULARY - 1)
    rows: list[Row] = []
    for _ in range(draw(st.integers(1, 3))):
        carrier = draw(st.lists(tokens, min_size=1, max_size=20))
        for back in draw(st.lists(st.integers(1, len(carrier)), min_size=1, max_size=3)):
            for token in draw(st.lists(tokens, min_size=1, max_size=8)):
                rows.append((*carrier[: len(carrier) - back], token, *carrier[len(carrier) - back + 1 :]))
    return draw(st.permutations(rows))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@given(rows=scans())
@settings(max_examples=40, deadline=None)
def test_the_last_tokens_of_rows_that_begin_alike_are_read_as_row_by_row(family: str, rows: list[Row]) -> None:
    of = subject(family)
    np.testing.assert_allclose(read_last(of, neurons(of), rows, CHOSEN), one_by_one(of, rows), rtol=1e-4, atol=1e-4)


def test_more_rows_than_one_forward_takes() -> None:
    of = subject("gpt2")
    scan = [(5, 6, 7, 8, token) for token in range(3, VOCABULARY)]
    apart = [(token, 9, 9, 9) for token in range(3, 3 + 2 * ROWS)]
    rows = [row for pair in zip(scan, [*apart, *scan], strict=False) for row in pair]
    np.testing.assert_allclose(read_last(of, neurons(of), rows, CHOSEN), one_by_one(of, rows), rtol=1e-4, atol=1e-4)


def test_a_position_that_does_not_count_is_silent_whether_its_beginning_is_shared_or_not() -> None:
    tiny, rows = subject("gpt2"), [(5, 6, 7, 8, token) for token in range(3, 40)]
    resid = {row: norm for row, norm in zip(rows, _norms(tiny, rows), strict=True)}
    # Between two norms, so that no rounding decides.
    limit = float(np.mean(np.sort(list(resid.values()))[len(rows) // 2 :][:2]))
    special = replace(tiny.convention, special_tokens=True, norm_limits={"resid_pre.1": limit})
    of = tiny.with_convention(special)
    counted = np.array([norm <= limit and row[-1] not in of.special_ids for row, norm in resid.items()])
    assert 0 < counted.sum() < len(rows)
    together = read_last(of, neurons(of), rows, CHOSEN)
    assert (np.abs(together).sum(axis=1) > 0).tolist() == counted.tolist()
    np.testing.assert_allclose(together, one_by_one(of, rows), rtol=1e-4, atol=1e-4)


def _norms(of: Subject, rows: list[Row]) -> np.ndarray:
    vectors = of.read(with_bos(of, np.array(rows)), ["resid_pre.1"])["resid_pre.1"]
    return vectors[:, -1].norm(dim=-1).numpy()


def test_a_beginning_is_run_once() -> None:
    of, tokens = subject("gpt2"), list[int]()
    handle = of.model.transformer.wte.register_forward_pre_hook(lambda _, args: tokens.append(args[0].numel()))
    read_last(of, neurons(of), [(*range(10, 25), token) for token in range(30, 130)], CHOSEN)
    handle.remove()
    assert sum(tokens) == 15 + (of.bos is not None) + 100


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pivots_of_windows_of_several_features_are_read_as_whole_windows(family: str) -> None:
    of, rng = subject(family), np.random.default_rng(0)
    tokens = rng.integers(3, VOCABULARY, (40, 24))
    tokens[::2, :9] = tokens[0, :9]
    pivots, features = rng.integers(24, size=40), rng.choice(CHOSEN, 40)
    tokens[np.arange(24) > pivots[:, None] + 2] = -1
    whole = read_own(of, neurons(of), tokens, features)[np.arange(40), pivots]
    np.testing.assert_allclose(read_pivots(of, neurons(of), tokens, pivots, features), whole, rtol=1e-4, atol=1e-5)


def test_no_rows() -> None:
    of, none = subject("gpt2"), np.empty(0, np.int64)
    assert read_last(of, neurons(of), [], CHOSEN).shape == (0, 3)
    assert read_pivots(of, neurons(of), np.empty((0, 24), np.int64), none, none).shape == (0,)
