"""Detection: a language model is asked, from the explanation alone, in which excerpts the feature fires.

After Paulo et al. 2024 ("Automatically Interpreting Millions of Features"), with changes: the windows are holdout
only, active and silent excerpts are paired by place (pairs.py), and, where there are such, half of the silent ones
are tempting: they hold a token on which the feature peaks elsewhere. One prompt asks about all excerpts. A unit of the
bootstrap is an excerpt.
"""

import numpy as np

from ..llm.render import marked
from .holdout import Holdout
from .pairs import FEWEST, ExcerptPool, Mask, Pair, choose_pairs, shuffle_items
from .quiz import Quiz, QuizScorer, empty_quiz

TOO_FEW = "pairs of an active and a silent excerpt"


class Detection(QuizScorer):
    """Shows plain excerpts and asks in which the feature fires.

    >>> Detection(count=20).name
    'detection'
    """

    name = "detection"
    examples = "windows"

    def quiz(self, holdout: Holdout) -> Quiz:
        """Lay out questions about active and silent excerpts, as many of either."""
        pool = ExcerptPool(holdout, seed=self._seed)
        pairs = choose_detection_pairs(pool, count=self._count)
        if len(pairs) < FEWEST:
            return empty_quiz(len(pairs), TOO_FEW)
        excerpts = [excerpt for pair in pairs for excerpt in pair.excerpts]
        windows = tuple(excerpt.example.window for excerpt in excerpts)
        return Quiz(
            [(marked(excerpt, [False] * len(excerpt.tokens)),) for excerpt in excerpts],
            [shuffle_items(windows, holdout, seed=self._seed)],
            np.tile(np.array([[1], [0]], np.float32), (len(pairs), 1)),
            windows,
        )


def choose_detection_pairs(pool: ExcerptPool, *, count: int) -> list[Pair]:
    """Pair active excerpts with silent ones, which are in turn preferred from random windows and tempting."""

    def silent(start: int, marks: Mask) -> Mask:  # noqa: ARG001
        return pool.silent(start)

    return choose_pairs(pool, count=count, fits=silent, preferences=(pool.random, pool.tempting))
