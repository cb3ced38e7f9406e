"""Detection: from the explanation alone, does the feature fire in this excerpt?

After Paulo et al. 2024 ("Automatically Interpreting Millions of Features"), with changes: the windows are holdout
only, active and silent excerpts are paired by place (pairs.py), and half of the silent ones are tempting, that
is, hold a token on which the feature peaks elsewhere, where there are such. A unit of the bootstrap is an excerpt.
"""

import numpy as np

from ..llm.render import marked
from .holdout import Holdout
from .judge import Judge, Quiz, too_few
from .pairs import FEWEST, Ground, Mask, Pair, decks, pairs

TOO_FEW = "pairs of an active and a silent excerpt"


class Detection(Judge):
    """Shows plain excerpts and asks in which the feature fires."""

    name = "detection"
    examples = "windows"

    def quiz(self, holdout: Holdout) -> Quiz:
        """Questions about active and silent excerpts, as many of either."""
        ground = Ground(holdout, seed=self._seed)
        found = detectable(ground, count=self._count)
        if len(found) < FEWEST:
            return too_few(len(found), TOO_FEW)
        parts = [part for pair in found for part in pair.excerpts]
        return Quiz(
            [(marked(part, [False] * len(part.tokens)),) for part in parts],
            decks(len(found), size=self._per_prompt, rng=ground.rng),
            np.tile(np.array([[1], [0]], np.float32), (len(found), 1)),
            tuple(part.example.window for part in parts),
        )


def detectable(ground: Ground, *, count: int) -> list[Pair]:
    """Pairs of an active excerpt and one silent throughout, which is in turn from a random window and tempting."""

    def silent(start: int, marks: Mask) -> Mask:  # noqa: ARG001
        return ground.silent(start)

    return pairs(ground, count=count, fits=silent, wishes=(ground.random, ground.tempting))
