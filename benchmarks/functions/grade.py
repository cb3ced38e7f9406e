"""Grades explanations of functions: by unit tests on text that no explainer saw, and as planted units are.

A unit test is a sentence or two, a quarter of whose words of every kind never stood in the corpus. A rule passes it if
at every token it is on the function's side of half the scale. Of each function's tests half are texts in which it is
active, and half are texts in which it is silent: one of these with one word changed, where that silences it. An
abstention passes none.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Self

import numpy as np

from ...data.store.store import Store
from ...rules.evaluate import TokenGrid, predict
from ...rules.language import Rule
from ..suite.grade import Grade, Grader
from ..suite.oneshot import holdout_windows
from ..suite.truth import Unit
from ..suite.world import World
from .texts import sentence

TESTS = 40
"""Of each function."""
_TRIES = 40


class FunctionGrader(Grader):
    """Grades rules; the same tests for every explainer."""

    def __init__(self, world: World, windows: Sequence[Sequence[str]], *, seed: str) -> None:
        super().__init__(world.subject.vocabulary[256:], windows)
        self._subject, self._test_seed = world.subject, seed
        self._tests: dict[str, list[tuple[str, ...]]] = {}

    @classmethod
    def of(cls, world: World, store: Store, *, seed: str) -> Self:
        """Grades by windows of the holdout of a world that was harvested into the store."""
        return cls(world, holdout_windows(world, store), seed=seed)

    def grade(self, unit: Unit, rule: Rule | str | None, **claims: object) -> Grade:
        """Grade a rule (None: an abstention). There are no claims about functions."""
        del claims
        rule = Rule.parse(rule) if isinstance(rule, str) else rule
        return replace(super().grade(unit, rule), tests=0.0 if rule is None else self._share_passed(unit, rule))

    def _share_passed(self, unit: Unit, rule: Rule) -> float:
        tests = self.tests(unit)
        predicted = predict(rule, TokenGrid.of(tests))
        passed = [
            all((np.array(unit.truth(tokens)) > unit.half) == (row[: len(tokens)] > unit.half))
            for tokens, row in zip(tests, predicted, strict=True)
        ]
        return sum(passed) / len(passed)

    def tests(self, unit: Unit) -> list[tuple[str, ...]]:
        """The texts of the function's unit tests, half of them active."""
        if unit.name not in self._tests:
            rng = random.Random(f"unit tests {self._test_seed} {unit.name}")
            active = list(islice((tokens for tokens in self._texts(rng) if _is_active(unit, tokens)), TESTS // 2))
            self._tests[unit.name] = [*active, *(self._silence(unit, tokens, rng) for tokens in active)]
        return self._tests[unit.name]

    def _texts(self, rng: random.Random) -> Iterator[tuple[str, ...]]:
        while True:
            text = "".join(sentence(rng, whole=True) for _ in range(rng.randint(1, 2)))
            yield self._subject.decode_tokens(self._subject.encode(text))

    def _silence(self, unit: Unit, tokens: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
        """The text with one word changed such that the function is silent; another silent text where that fails."""
        peak, silencing = int(np.argmax(unit.truth(tokens))), [f" {word}" for e in unit.exceptions for word in e.before]
        for _ in range(_TRIES):
            changed = list(tokens)
            if silencing and rng.random() < 0.5:
                changed[max(0, peak - 1)] = rng.choice(silencing)
            else:
                changed[max(0, peak - rng.choice((0, 0, 1, 2)))] = rng.choice(self._vocabulary)
            if not _is_active(unit, changed):
                return tuple(changed)
        return next(other for other in self._texts(rng) if not _is_active(unit, other))


def _is_active(unit: Unit, tokens: Sequence[str]) -> bool:
    return max(unit.truth(tokens)) > unit.half
