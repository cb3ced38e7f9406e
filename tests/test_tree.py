"""Growing a tree and inducing a rule from it, on synthetic activations of which the condition is known."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuronaut.rules.evaluate import TokenGrid, clause_matches, predict
from neuronaut.rules.induce import induce
from neuronaut.rules.language import Clause, Condition, Position, Rule, Token
from neuronaut.rules.sample import BOOLEAN, BOTH_SIDES, Sample, Windows
from neuronaut.rules.tree import Growth, Leaf, grow

VOCABULARY = (" New", " Haven", " river", " dry", " bell", " storm", " red", " 7", ' "', " the", " a", " cat", " .")
ROWS, OWN, WIDTH = 300, 40, 24
Truth = Callable[[Sequence[str], int], float]
"""From the tokens of a window and a position to the activation there."""


def ids(rows: int, *, seed: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(len(VOCABULARY), size=(rows, WIDTH), dtype=np.int32)


def spelled(windows: NDArray[np.int32]) -> list[list[str]]:
    return [[VOCABULARY[i] for i in row] for row in windows]


def activations(truth: Truth, windows: NDArray[np.int32]) -> NDArray[np.float32]:
    return np.array([[truth(words, at) for at in range(WIDTH)] for words in spelled(windows)], np.float32)


def sample_of(truth: Truth, *, seed: int = 0, noise: float = 0.0) -> Sample:
    """Windows of uniformly random tokens; every fourth is kept from fitting, and the own ones weigh double."""
    windows = ids(ROWS + OWN, seed=seed)
    activation = activations(truth, windows)
    activation = activation + np.random.default_rng(seed).normal(0, noise, activation.shape).astype(np.float32)
    weight = np.repeat(np.array([1.0] * ROWS + [2.0] * OWN, np.float32), WIDTH)
    back = np.repeat(np.arange(ROWS + OWN) % 4 == 0, WIDTH)
    return Sample(
        Windows(VOCABULARY, windows[:ROWS]),
        Windows(VOCABULARY, windows[ROWS:]),
        activation.ravel(),
        np.where(back, 0, weight).astype(np.float32),
        np.where(back, weight, 0).astype(np.float32),
        VOCABULARY,
    )


def learned(truth: Truth, *, seed: int = 0, noise: float = 0.0, growth: Growth | None = None) -> Rule | None:
    sample, growth = sample_of(truth, seed=seed, noise=noise), growth or Growth()
    return induce(sample, grow(sample, growth))


def miss(rule: Rule, truth: Truth, *, seed: int = 99) -> float:
    """Share of the tokens of fresh windows on which the rule is more than a tenth off."""
    windows = ids(200, seed=seed)
    said = predict(rule, TokenGrid.of(spelled(windows)))
    return float((abs(said - activations(truth, windows)) > 0.1).mean())


def token_set(words: Sequence[str], at: int) -> float:
    return words[at] in (" river", " cat")


def graded(words: Sequence[str], at: int) -> float:
    return {" river": 1.0, " cat": 0.5}.get(words[at], 0.0)


def bigram(words: Sequence[str], at: int) -> float:
    return at > 0 and words[at] == " Haven" and words[at - 1] == " New"


def exception(words: Sequence[str], at: int) -> float:
    return words[at] == " river" and not (at > 0 and words[at - 1] == " dry")


def periodic(_: Sequence[str], at: int) -> float:
    return float(at % 3 == 1)


def position(_: Sequence[str], at: int) -> float:
    return 5 <= at <= 8


def within(words: Sequence[str], at: int) -> float:
    return words[at] == " bell" and " storm" in words[max(0, at - 4) : at]


def anywhere(words: Sequence[str], at: int) -> float:
    return words[at] in (" bell", " red") and " storm" in words[:at]


def not_near(words: Sequence[str], at: int) -> float:
    return words[at] in (" bell", " red") and " storm" not in words[max(0, at - 4) : at]


def not_anywhere(words: Sequence[str], at: int) -> float:
    return words[at] in (" bell", " red") and " storm" not in words[:at]


def quoted(words: Sequence[str], at: int) -> float:
    return words[:at].count(' "') % 2 == 1


def repeated(words: Sequence[str], at: int) -> float:
    return words[at] in words[:at]


def token_late(words: Sequence[str], at: int) -> float:
    return words[at] == " red" and at >= 12


def quoted_token(words: Sequence[str], at: int) -> float:
    return words[at] in (" cat", " a") and quoted(words, at)


def either(words: Sequence[str], at: int) -> float:
    return 2.0 * bigram(words, at) or token_set(words, at)


def raised(words: Sequence[str], at: int) -> float:
    return 3.0 + 2.0 * (words[at] == " storm")


TRUTHS: tuple[Truth, ...] = (
    token_set,
    graded,
    bigram,
    exception,
    position,
    periodic,
    within,
    anywhere,
    not_near,
    not_anywhere,
    quoted,
    repeated,
    token_late,
    quoted_token,
    either,
    raised,
)


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_condition_is_found(truth: Truth, seed: int) -> None:
    rule = learned(truth, seed=seed)
    assert rule is not None
    assert miss(rule, truth) <= 0.005, rule.to_json()


@pytest.mark.parametrize("truth", [token_set, bigram, exception, within, repeated])
def test_it_is_found_under_noise(truth: Truth) -> None:
    rule = learned(truth, noise=0.2)
    assert rule is not None
    assert miss(rule, truth) <= 0.01, rule.to_json()


FORMS: tuple[tuple[Truth, set[Condition], set[Condition]], ...] = (
    (bigram, {Token(any=(" Haven",)), Token(any=(" New",), at=-1)}, set()),
    (exception, {Token(any=(" river",))}, {Token(any=(" dry",), at=-1)}),
    (position, {Position(span=(5, 8))}, set()),
    (periodic, {Position(span=(1, None), every=3)}, set()),
    (within, {Token(any=(" bell",)), Token(any=(" storm",), within=4)}, set()),
    (anywhere, {Token(any=(" bell", " red")), Token(any=(" storm",), within="any")}, set()),
    (not_near, {Token(any=(" bell", " red"))}, {Token(any=(" storm",), within=4)}),
    (not_anywhere, {Token(any=(" bell", " red"))}, {Token(any=(" storm",), within="any")}),
)


@pytest.mark.parametrize(("truth", "when", "unless"), FORMS, ids=lambda part: getattr(part, "__name__", ""))
def test_the_rule_says_no_more_than_the_condition(truth: Truth, when: set[Condition], unless: set[Condition]) -> None:
    rule = learned(truth)
    assert rule is not None
    (clause,) = rule.any
    assert (set(clause.when), set(clause.unless), clause.gains) == (when, unless, {})
    assert clause.value == pytest.approx(1.0, abs=0.05) and rule.floor == pytest.approx(0.0, abs=0.02)


def test_tokens_have_their_own_strengths_and_the_rest_a_level() -> None:
    strengths = learned(graded)
    assert strengths is not None
    (clause,) = strengths.any
    assert clause.when == (Token(any=(" river", " cat")),)
    assert clause.gains == pytest.approx({" river": 1.0, " cat": 0.5}, abs=0.03)
    level = learned(raised)
    assert level is not None
    assert (level.floor, level.any[0].value) == (pytest.approx(3.0, abs=0.05), pytest.approx(5.0, abs=0.05))


@given(
    chosen=st.sets(st.sampled_from(VOCABULARY), min_size=1, max_size=4),
    gain=st.floats(0.01, 100),
    seed=st.integers(0, 5),
)
@settings(max_examples=15, deadline=None)
def test_any_set_of_tokens_is_found_whatever_the_unit(chosen: set[str], gain: float, seed: int) -> None:
    rule = learned(lambda words, at: gain * (words[at] in chosen), seed=seed)
    assert rule is not None
    # A set that is all of a class may be told as the class: what counts is where the rule fires.
    said = predict(rule, TokenGrid.of([[word] for word in VOCABULARY]))[:, 0]
    assert {word for word, value in zip(VOCABULARY, said, strict=True) if value > gain / 2} == chosen


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_rule(seed: int) -> None:
    assert learned(lambda _words, _at: 0.0, seed=seed, noise=1.0) is None


@pytest.mark.parametrize("level", [0.0, 2.0])
def test_a_constant_has_no_rule(level: float) -> None:
    assert learned(lambda _words, _at: level) is None


def test_the_same_sample_gives_the_same_rule() -> None:
    first, second = (learned(either, noise=0.1) for _ in range(2))
    assert first is not None and second is not None
    assert first.to_json() == second.to_json()


def written_out(leaf: Leaf, sample: Sample) -> Clause:
    """A leaf as a clause, nothing left out."""
    tokens = [VOCABULARY[i] for i in sample.tokens[0][leaf.at]]
    gains = dict(zip(tokens, leaf.predicted.tolist(), strict=True)) if leaf.named else {}
    return Clause(when=leaf.when, unless=leaf.unless, value=float(leaf.predicted[0]), gains=gains)


@pytest.mark.parametrize("truth", TRUTHS)
def test_leaves_cover_the_sample_once_and_predict_what_their_conditions_say(truth: Truth) -> None:
    sample = sample_of(truth, noise=0.05)
    leaves = grow(sample, Growth())
    grid = TokenGrid(VOCABULARY, np.concatenate([sample.background.ids, sample.own.ids]))
    clauses = [written_out(leaf, sample) for leaf in leaves]
    for leaf, clause in zip(leaves, clauses, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(clause_matches(clause, grid)), np.sort(leaf.at))
    np.testing.assert_array_equal(np.sort(np.concatenate([leaf.at for leaf in leaves])), np.arange(grid.codes.size))
    tree = np.empty(grid.codes.size, np.float32)
    for leaf in leaves:
        tree[leaf.at] = leaf.predicted
    np.testing.assert_allclose(predict(Rule(any=tuple(clauses)), grid).ravel(), tree, rtol=1e-6)


SEVERAL: tuple[Condition, ...] = (
    Token(any=("Fabius", "self")),
    Token(any=("Fabius", "self"), at=-1),
    Token(any=("Fabius", "self"), within=4),
    Token(any=("Fabius", "self"), within="any"),
    Position(span=(3, 7)),
    *BOOLEAN,
)


@pytest.mark.parametrize("truth", TRUTHS[:2])
def test_conditions_on_some_tokens_and_on_parts_of_the_windows_are_those_on_all(truth: Truth) -> None:
    sample = sample_of(truth)
    halves = [Windows(VOCABULARY, part) for part in np.array_split(sample.own.ids, 2)]
    parted = replace(sample, own=halves[0] + halves[1])
    named = VOCABULARY[sample.own.ids[0, 0]], VOCABULARY[sample.own.ids[0, 1]]
    at = np.flatnonzero(np.random.default_rng(0).random(len(sample.activation)) < 0.3)
    for condition in SEVERAL:
        asked = condition.model_copy(update={"any": named}) if isinstance(condition, Token) else condition
        whole = sample.mask(asked)
        np.testing.assert_array_equal(sample.holds(asked, at), whole[at], err_msg=str(asked))
        np.testing.assert_array_equal(parted.holds(asked, at), whole[at], err_msg=str(asked))
        np.testing.assert_array_equal(parted.mask(asked), whole, err_msg=str(asked))
    values = np.random.default_rng(1).random((len(at), 2)).astype(np.float32)
    naive = np.stack([values[sample.holds(condition, at)].sum(axis=0) for condition in BOOLEAN])
    np.testing.assert_allclose(sample.boolean_sums(at, values), naive, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(parted.firsts, sample.firsts)


def test_growth_bounds_the_leaves_and_the_tokens_of_a_set() -> None:
    leaves = grow(sample_of(either), Growth(leaves=3, set_size=1))
    assert 2 <= len(leaves) <= 3
    sets = [c for leaf in leaves for c in (*leaf.when, *leaf.unless) if isinstance(c, Token) and c.within is None]
    assert sets and all(len(condition.any) == 1 for condition in sets)


def test_what_only_holds_in_the_fitted_documents_is_not_learned() -> None:
    windows = sample_of(token_set)
    fitted = windows.weight > 0
    flipped = np.where(fitted, windows.activation, 1 - windows.activation).astype(np.float32)
    sample = Sample(windows.background, windows.own, flipped, windows.weight, windows.check, VOCABULARY)
    assert induce(sample, grow(sample, Growth())) is None


def test_tokens_without_weight_do_not_count() -> None:
    whole = sample_of(token_set)
    padding = np.tile(np.arange(WIDTH) >= 20, ROWS + OWN)
    weight, check = (np.where(padding, 0, part).astype(np.float32) for part in (whole.weight, whole.check))
    wrong = np.where(padding, 50.0, whole.activation).astype(np.float32)
    rule = induce(
        sample := Sample(whole.background, whole.own, wrong, weight, check, VOCABULARY), grow(sample, Growth())
    )
    assert rule is not None
    assert miss(rule, token_set) == 0.0


def ahead(sample: Sample) -> Sample:
    """The sample of a model whose tokens read both sides."""
    background, own = (Windows(VOCABULARY, part.ids, offsets=BOTH_SIDES) for part in (sample.background, sample.own))
    return replace(sample, background=background, own=own)


def test_conditions_on_tokens_behind_are_those_of_the_grid() -> None:
    sample = ahead(sample_of(token_set))
    padded = sample.own.ids.copy()
    padded[::3, 15:] = -1
    sample = replace(sample, own=Windows(VOCABULARY, padded, offsets=BOTH_SIDES))
    drawn = np.random.default_rng(0).random(len(sample.activation)) < 0.3
    at = np.flatnonzero(drawn & (sample.tokens[0] < len(VOCABULARY)))
    places: tuple[dict[str, Any], ...] = (
        {"at": 1},
        {"at": 4},
        {"after": 4},
        {"after": "any"},
        {"at": -4},
        {"within": 3},
    )
    for condition in (*(Token(any=(" cat", " a"), **place) for place in places), *sample.conditions):
        np.testing.assert_array_equal(sample.holds(condition, at), sample.mask(condition)[at], err_msg=str(condition))
    tokens = sample.own.ids
    naive = [i >= 0 and i not in row[at + 1 :] for row in tokens.tolist() for at, i in enumerate(row)]
    np.testing.assert_array_equal(sample.own.last, naive)


@pytest.mark.parametrize(
    ("truth", "condition"),
    [
        (
            lambda words, at: float(words[at] == " red" and words[at + 1 : at + 2] == [" cat"]),
            Token(any=(" cat",), at=1),
        ),
        (
            lambda words, at: float(words[at] == " red" and " cat" in words[at + 1 : at + 5]),
            Token(any=(" cat",), after=4),
        ),
        (lambda words, at: float(words[at] == " red" and " cat" in words[at + 1 :]), Token(any=(" cat",), after="any")),
    ],
)
def test_a_cause_behind_the_token_is_learned_where_tokens_read_both_sides(truth: Truth, condition: Condition) -> None:
    sample = sample_of(truth)
    rule = induce(both := ahead(sample), grow(both, Growth()))
    assert rule is not None and condition in rule.any[0].when and miss(rule, truth) < 0.01
    blind = induce(sample, grow(sample, Growth()))
    assert blind is None or not blind.looks_ahead
