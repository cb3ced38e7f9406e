"""Fuzzing: some tokens of an excerpt are marked; are they the ones that the explanation speaks of?

After Paulo et al. 2024, with pairs: each excerpt whose truly active tokens are marked has a partner, marked at the
same places, where the feature is silent; so a guess from the marks' number and places is right on exactly one of
the two. In turn the partner is an excerpt in which the feature fires at other tokens, which only knowing the tokens
tells apart, and one in which it is silent. A unit of the bootstrap is a pair.
"""

import numpy as np

from ..llm.render import marked
from .holdout import Holdout
from .judge import Judge, Quiz, too_few
from .pairs import FEWEST, Ground, decks, pairs

TOO_FEW = "pairs of rightly and wrongly marked excerpts"


class Fuzzing(Judge):
    """Shows excerpts with marked tokens and asks where the marks fit."""

    name = "fuzzing"
    examples = "marks"

    def quiz(self, holdout: Holdout) -> Quiz:
        """Questions about rightly and wrongly marked excerpts, as many of either."""
        ground = Ground(holdout, seed=self._seed)
        found = pairs(ground, count=self._count, fits=ground.unfit, wishes=(ground.fires, ground.silent))
        if len(found) < FEWEST:
            return too_few(len(found), TOO_FEW)
        parts = [(part, pair.marks) for pair in found for part in pair.excerpts]
        return Quiz(
            [(marked(part, marks),) for part, marks in parts],
            decks(len(found), size=self._per_prompt, rng=ground.rng),
            np.tile(np.array([1, 0], np.float32), (len(found), 1)),
            tuple(part.example.window for part, _ in parts),
        )
