"""Fuzzing: a language model is asked whether the marked tokens of an excerpt are those of the explanation.

After Paulo et al. 2024, with pairs: each excerpt whose truly active tokens are marked has a partner, marked at the
same places, where the feature is silent; so a guess from the marks' number and places is right on exactly one of
the two. In turn the partner is an excerpt in which the feature fires at other tokens, which only knowing the tokens
tells apart, and one in which it is silent. One prompt asks about all excerpts. A unit of the bootstrap is a pair.
"""

import numpy as np

from ..llm.render import marked
from .holdout import Holdout
from .pairs import FEWEST, ExcerptPool, choose_pairs, shuffle_items
from .quiz import Quiz, QuizScorer, empty_quiz

TOO_FEW = "pairs of rightly and wrongly marked excerpts"


class Fuzzing(QuizScorer):
    """Shows excerpts with marked tokens and asks where the marks fit.

    >>> Fuzzing(count=20).name
    'fuzzing'
    """

    name = "fuzzing"
    examples = "marks"

    def quiz(self, holdout: Holdout) -> Quiz:
        """Lay out questions about rightly and wrongly marked excerpts, as many of either."""
        pool = ExcerptPool(holdout, seed=self._seed)
        pairs = choose_pairs(pool, count=self._count, fits=pool.unfit, preferences=(pool.fires, pool.silent))
        if len(pairs) < FEWEST:
            return empty_quiz(len(pairs), TOO_FEW)
        marked_excerpts = [(excerpt, pair.marks) for pair in pairs for excerpt in pair.excerpts]
        windows = tuple(excerpt.example.window for excerpt, _ in marked_excerpts)
        return Quiz(
            [(marked(excerpt, marks),) for excerpt, marks in marked_excerpts],
            [shuffle_items(windows, holdout, seed=self._seed)],
            np.tile(np.array([1, 0], np.float32), (len(pairs), 1)),
            windows,
        )
