"""Head scores: the planted heads, the built-in subject's card, and a naive count."""

import pytest
import torch

from neuronaut.causal.heads import KINDS, HeadScore, Kind, head_scores, repeated_tokens
from neuronaut.causal.prompts import Batch
from neuronaut.subject.attention import patterns
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.circuits import gate, induction
from tests.families import tiny_subject


def best(scores: tuple[HeadScore, ...], kind: Kind) -> HeadScore:
    return next(score for score in scores if score.kind == kind)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_heads_of_the_induction_circuit_are_found(family: str) -> None:
    subject = induction(family).subject  # pyright: ignore[reportArgumentType]
    scores = head_scores(subject, repeated_tokens(subject))
    previous, looked_back, rested = (best(scores, kind) for kind in ("previous", "induction", "first"))
    assert (previous.unit, looked_back.unit, rested.unit) == ("head.0:0", "head.1:0", "head.1:0")
    assert previous.score.value > 0.99 and looked_back.score.value > 0.99
    assert [score.kind for score in scores] == [kind for kind in KINDS for _ in range(4)]
    runner_up = [score for score in scores if score.kind == "induction"][1]
    assert runner_up.score.value < 0.15


def test_the_built_in_subject_has_the_heads_that_its_card_names() -> None:
    subject = Subject.load("demo")
    scores = head_scores(subject, repeated_tokens(subject, rows=6))
    previous, looked_back = best(scores, "previous"), best(scores, "induction")
    assert previous.unit == "head.2:0" and looked_back.unit == "head.3:1"
    assert previous.score.value == pytest.approx(0.86, abs=0.05)
    assert looked_back.score.value == pytest.approx(0.98, abs=0.02)
    for score in (previous, looked_back):
        assert score.score.interval is not None and score.score.n == 6
        low, high = score.score.interval
        assert low <= score.score.value <= high < low + 0.1


def naive(pattern: torch.Tensor, ids: list[int], kind: Kind) -> float | None:
    """By the definition, query by query."""
    shares = []
    for query in range(1, len(ids)):
        keys = {
            "previous": [query - 1] if query > 1 else [],
            "first": [0],
            "duplicate": [key for key in range(query) if ids[key] == ids[query]],
            "induction": [key for key in range(1, query) if ids[key - 1] == ids[query]],
        }[kind]
        if keys:
            shares.append(sum(float(pattern[query, key]) for key in keys))
    return sum(shares) / len(shares) if shares else None


def test_scores_of_a_text_are_the_naive_ones_whatever_the_padding() -> None:
    subject = tiny_subject("mistral")
    ids = [[0, 5, 6, 5, 5, 6, 7, 5], [0, 9, 8], [0, 3, 3, 3, 4, 3], [0, 4, 5, 4, 5, 6], [0, 7, 7, 6, 7, 6, 5]]
    batch = Batch.of(subject, ids)
    scores = head_scores(subject, batch, layers=[2, 0])
    seen = [patterns(subject, torch.tensor([row]), [0, 2]) for row in ids]
    assert {(score.layer, score.head) for score in scores} == {(layer, head) for layer in (0, 2) for head in range(4)}
    for kind, layer, head, score in scores:
        rows = [naive(one[layer][0, head], row, kind) for one, row in zip(seen, ids, strict=True)]
        known = [value for value in rows if value is not None]
        assert score.n == len(known) == (5 if kind in ("previous", "first") else 4)
        assert score.value == pytest.approx(sum(known) / len(known), abs=1e-6)
    for kind in KINDS:
        values = [score.score.value for score in scores if score.kind == kind]
        assert values == sorted(values, reverse=True)


def test_repeated_tokens_differ_within_a_period() -> None:
    subject = tiny_subject("gpt2")
    batch = repeated_tokens(subject, rows=3, period=20, seed=1)
    tokens = batch.tokens
    assert tokens.shape == (3, 41) and (tokens[:, 0] == 0).all() and torch.equal(tokens[:, 1:21], tokens[:, 21:])
    assert all(len({*row}) == 20 and 0 not in row for row in tokens[:, 1:21].tolist())
    assert repeated_tokens(subject).tokens.shape == (8, 1 + 2 * 31)


def test_one_row_has_no_interval_and_no_key_is_an_error() -> None:
    circuit = gate("and")
    alone = Batch(circuit.clean[:1], torch.tensor([4]))
    (top, *_) = head_scores(circuit.subject, alone, kinds=["first"])
    assert top.score.n == 1 and top.score.interval is None
    with pytest.raises(NeuronautError, match="no row has a query with a key for the duplicate score"):
        head_scores(circuit.subject, Batch(torch.tensor([[0, 1, 2]]), torch.tensor([3])))
    with pytest.raises(NeuronautError, match="period 9 cannot be made; and takes 1 or more rows of period 2 to 3"):
        repeated_tokens(circuit.subject, period=9)
    with pytest.raises(NeuronautError, match="no head score of kind backup"):
        head_scores(circuit.subject, alone, kinds=["backup"])  # pyright: ignore[reportArgumentType]
