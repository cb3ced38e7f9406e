"""Choosing clauses on planted activations: what does not hold on tune is left out, and what is left is told whole."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from neuronaut.rules.affixes import families
from neuronaut.rules.choose import choose, predicts_better
from neuronaut.rules.english import count_words, describe, tell_headline
from neuronaut.rules.evaluate import TokenGrid, predict
from neuronaut.rules.ground import Ground
from neuronaut.rules.induce import induce
from neuronaut.rules.language import Clause, Condition, Regex, Rule, Token
from neuronaut.rules.sample import Sample, Windows
from neuronaut.rules.telling import HEADLINE, WORDS, can_be_told, shorten_to_tell
from neuronaut.rules.tree import Growth, grow

WORDS_OF = (" New", " Haven", " river", " dry", " bell", " storm", " red", "red", " Red", " walking", "ing", " sing")
VOCABULARY = (*WORDS_OF, " talking", " the", " a", " cat", " .", " it", " of", " in")
WIDTH, ROWS = 24, 240
Truth = Callable[[Sequence[str], int], float]


def windows(rows: int, seed: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(len(VOCABULARY), size=(rows, WIDTH), dtype=np.int32)


def sample(ids: NDArray[np.int32], truth: Truth, *, noise: float, seed: int) -> Sample:
    words = [[VOCABULARY[i] for i in row] for row in ids]
    values = np.array([[truth(row, at) for at in range(WIDTH)] for row in words], np.float32)
    values += np.random.default_rng(seed).normal(0, noise, values.shape).astype(np.float32)
    cut = len(ids) * 3 // 4
    back = np.repeat(np.arange(len(ids)) % 4 == 0, WIDTH)
    return Sample(
        Windows(VOCABULARY, ids[:cut]),
        Windows(VOCABULARY, ids[cut:]),
        values.ravel(),
        np.where(back, 0, 1).astype(np.float32),
        np.where(back, 1, 0).astype(np.float32),
        VOCABULARY,
    )


def ground(truth: Truth, *, tune_truth: Truth | None = None, noise: float = 0.05) -> tuple[Ground, Rule | None]:
    """Train and tune windows, eight to a document, and the long rule of the train ones."""
    train = sample(windows(ROWS, 1), truth, noise=noise, seed=3)
    tune = sample(windows(ROWS // 2, 2), tune_truth or truth, noise=noise, seed=4)
    documents = np.repeat(np.arange(ROWS) // 8, WIDTH), ROWS + np.repeat(np.arange(ROWS // 2) // 8, WIDTH)
    return Ground(train, tune, documents, families(VOCABULARY)), induce(train, grow(train, Growth()))


def either(words: Sequence[str], at: int) -> float:
    bigram = at > 0 and words[at] == " Haven" and words[at - 1] == " New"
    return 3.0 * bigram or 1.5 * (words[at] == " river")


def spelled(words: Sequence[str], at: int) -> float:
    return words[at].strip().lower() == "red"


def ending(words: Sequence[str], at: int) -> float:
    return words[at].endswith("ing")


def excepted(words: Sequence[str], at: int) -> float:
    return words[at] == " river" and " storm" not in words[:at]


def wrong(rule: Rule, truth: Truth) -> float:
    ids = windows(100, 9)
    words = [[VOCABULARY[i] for i in row] for row in ids]
    said = predict(rule, TokenGrid.of(words))
    return float((abs(said - [[truth(row, at) for at in range(WIDTH)] for row in words]) > 0.2).mean())


@pytest.mark.parametrize("truth", [either, spelled, ending, excepted], ids=lambda truth: truth.__name__)
def test_the_planted_clauses_are_chosen_and_no_more(truth: Truth) -> None:
    chosen = choose(*ground(truth))
    assert chosen is not None
    assert wrong(chosen.rule, truth) < 0.005, describe(chosen.rule)
    assert len(chosen.rule.any) == (2 if truth is either else 1)


def test_what_explains_most_comes_first() -> None:
    chosen = choose(*ground(either))
    assert chosen is not None
    assert chosen.rule.any[0].when == (Token(any=(" river",)),)
    assert [point.clauses for point in chosen.curve] == list(range(1, len(chosen.curve) + 1))
    assert chosen.curve[0].tune < chosen.curve[1].tune


def test_the_clause_that_alone_explains_most_is_the_headline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that finds it late does not put it behind the others."""
    planted, long = ground(either)
    found = choose(planted, long)
    assert found is not None and len(found.rule.any) > 1
    turned = iter(found.rule.any[::-1])
    monkeypatch.setattr("neuronaut.rules.choose._next", lambda *_: next(turned, None))
    again = choose(planted, long)
    assert again is not None and again.rule.any[0].when == found.rule.any[0].when
    assert {clause.when for clause in again.rule.any} == {clause.when for clause in found.rule.any}


def test_a_clause_that_does_not_hold_on_tune_is_not_chosen() -> None:
    def only_river(words: Sequence[str], at: int) -> float:
        return 1.5 * (words[at] == " river")

    chosen = choose(*ground(either, tune_truth=only_river))
    assert chosen is not None
    assert "Haven" not in describe(chosen.rule)
    assert choose(*ground(either, tune_truth=lambda _words, _at: 0.0)) is None


@pytest.mark.parametrize("size", [1, 2])
def test_so_many_clauses_as_are_asked_for(size: int) -> None:
    chosen = choose(*ground(either), size=size)
    assert chosen is not None and len(chosen.rule.any) == size


def test_noise_has_no_clause() -> None:
    assert choose(*ground(lambda _words, _at: 0.0, noise=1.0)) is None


def test_a_rule_is_short_enough_to_be_told() -> None:
    values = dict(zip(VOCABULARY, np.linspace(0.5, 3, len(VOCABULARY)), strict=True))
    chosen = choose(*ground(lambda words, at: values[words[at]]))
    assert chosen is not None
    assert count_words(tell_headline(chosen.rule)) <= HEADLINE
    assert count_words(describe(chosen.rule)) <= WORDS


def test_what_one_clause_excepts_no_other_says_as_strongly() -> None:
    near = Token(any=(" red",), within=4)
    first = Clause(when=(Token(any=(" river",)),), unless=(near,), value=2)
    told = [can_be_told(Rule(any=(first, Clause(when=(near,), value=value)))) for value in (0.5, 1.9)]
    assert told == [True, False]


def test_a_rule_that_is_too_long_is_told_from_its_first_clause_and_strongest_tokens_on() -> None:
    gains = {f" {letter}": float(place) for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    table = Clause(when=(Token(any=tuple(gains)),), value=13.0, gains=gains)
    pairs = [Clause(when=(Token(any=(f" {i}",)), Token(any=(" New",), at=-1)), value=9.0) for i in range(20)]
    assert not can_be_told(long := Rule(any=(table, *pairs)))
    told = shorten_to_tell(long)
    assert can_be_told(told) and describe(told).startswith("fires on ` z`, ` y`, ` x` and ` w`; less strongly on ` 0`")
    assert shorten_to_tell(short := Rule(any=tuple(pairs[:2]))) is short


def test_a_longer_rule_predicts_better_where_it_tells_more() -> None:
    made, _ = ground(either)
    river = Clause(when=(Token(any=(" river",)),), value=1.5)
    haven = Clause(when=(Token(any=(" Haven",)), Token(any=(" New",), at=-1)), value=3.0)
    assert predicts_better(made, Rule(any=(river, haven)), Rule(any=(river,)))
    assert not predicts_better(made, Rule(any=(river, haven)), Rule(any=(haven, river)))


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (Token(any=(" cat",)), {" cat"}),
        (Regex(pattern=r"(?i)^\s?red$"), {" red", "red", " Red"}),
        (Regex(pattern="ing$"), {" walking", "ing", " sing", " talking"}),
    ],
)
def test_a_family_member_is_a_condition_on_the_same_tokens(condition: Condition, holds: set[str]) -> None:
    made = [
        (family, member)
        for family in families(VOCABULARY)
        for member in range(len(family.members))
        if family.condition([family.members[member]], at=0) == condition
    ]
    assert made
    for family, member in made:
        of_family = {VOCABULARY[i] for i in np.flatnonzero(family.codes[:-1] == member)}
        assert of_family == holds
