"""Intruder: of five excerpts with marked tokens four belong together, and a language model is asked which does not.

The four are active excerpts with their truly active tokens marked; the intruder is a silent excerpt, marked at the
places that are active in an excerpt of another group. Asked with no explanation (role "empty") this is the
intruder score as published: how interpretable the examples are by themselves. With the explanation it asks whether
that names what they share. A group is one prompt, so that no group tells of another, and one unit of the
bootstrap. The intruder stands equally often at each of the five places, as far as the number of groups allows.
"""

from typing import NamedTuple

import numpy as np

from ..llm.render import Excerpt, marked
from .holdout import Holdout
from .pairs import FEWEST, ExcerptPool, Mask, find_partner, spread_evenly
from .quiz import Quiz, QuizScorer, empty_quiz

SIZE = 5
"""Excerpts in a group."""
TOO_FEW = f"groups of {SIZE - 1} active excerpts and an intruder"


class MarkedExcerpt(NamedTuple):
    """An excerpt and the tokens of it that are marked."""

    excerpt: Excerpt
    marks: Mask


class Intruder(QuizScorer):
    """Shows groups of excerpts with marked tokens and asks which one does not belong.

    >>> Intruder(count=5).name
    'intruder'
    """

    name = "intruder"
    examples = "groups"
    choices = tuple(range(1, SIZE + 1))
    scored = choices

    def keys(self, count: int) -> tuple[str, ...]:  # noqa: ARG002
        """The one key of the one question."""
        return ("intruder",)

    def quiz(self, holdout: Holdout) -> Quiz:
        """Lay out a question about each group."""
        pool = ExcerptPool(holdout, seed=self._seed)
        groups = _make_groups(pool, count=self._count)
        if len(groups) < FEWEST:
            return empty_quiz(len(groups), TOO_FEW)
        places = pool.rng.permutation(np.arange(len(groups)) % SIZE)
        ordered = [
            [*active[:place], intruder, *active[place:]]
            for (intruder, *active), place in zip(groups, places, strict=True)
        ]
        return Quiz(
            [tuple(marked(excerpt, marks) for excerpt, marks in group) for group in ordered],
            [(i,) for i in range(len(groups))],
            (np.arange(SIZE) == places[:, None]).astype(np.float32),
            tuple(excerpt.example.window for group in ordered for excerpt, _ in group),
        )


def _make_groups(pool: ExcerptPool, *, count: int) -> list[list[MarkedExcerpt]]:
    """Make groups of excerpts, the intruder first; no window is shown twice."""
    size = SIZE - 1
    wanted = size * min(count, len(pool.firing) // size)
    spread = [pool.firing[i] for i in spread_evenly(len(pool.firing), wanted)[:wanted]]
    active = pool.rng.permutation(np.array(spread, np.int64))
    unused = np.ones(len(pool.examples), bool)
    unused[active] = False
    groups = []
    for start in range(0, wanted, size):
        others = np.concatenate([active[:start], active[start + size :]])
        intruder = _make_intruder(pool, [int(window) for window in pool.rng.permutation(others)], unused)
        if intruder is not None:
            groups.append([intruder, *(_mark_active(pool, int(window)) for window in active[start : start + size])])
    return groups


def _make_intruder(pool: ExcerptPool, models: list[int], unused: Mask) -> MarkedExcerpt | None:
    """Mark a silent excerpt as the excerpt of the first of `models` that has one at the same place."""

    def silent(start: int, marks: Mask) -> Mask:  # noqa: ARG001
        return pool.silent(start)

    for model in models:
        partner = find_partner(pool, model, unused=unused, fits=silent, preference=pool.silent)
        if partner is not None:
            start, window = partner
            unused[window] = False
            return MarkedExcerpt(pool.excerpt(window, start), pool.marks(model, start))
    return None


def _mark_active(pool: ExcerptPool, window: int) -> MarkedExcerpt:
    start = pool.starts(window)[0]
    return MarkedExcerpt(pool.excerpt(window, start), pool.marks(window, start))
