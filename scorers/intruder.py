"""Intruder: of five excerpts with marked tokens four belong together; which does not?

The four are active excerpts with their truly active tokens marked; the intruder is a silent excerpt, marked at the
places that are active in an excerpt of another group. Asked with no explanation (role "empty") this is the
intruder score as published: how interpretable the examples are by themselves. With the explanation it asks whether
that names what they share. A group is one prompt, so that no group tells of another, and one unit of the
bootstrap. The intruder stands equally often at each of the five places, as far as the number of groups allows.
"""

from typing import NamedTuple

import numpy as np

from ..llm.prompt import Prompt
from ..llm.render import Excerpt, marked
from .holdout import Holdout
from .judge import Judge, Quiz, too_few
from .pairs import FEWEST, Ground, Mask, partner, spread

SIZE = 5
"""Excerpts in a group."""
TOO_FEW = f"groups of {SIZE - 1} active excerpts and an intruder"


class Marked(NamedTuple):
    """An excerpt and the tokens of it that are marked."""

    part: Excerpt
    marks: Mask


class Intruder(Judge):
    """Shows groups of excerpts with marked tokens and asks which one does not belong."""

    name = "intruder"
    examples = "groups"
    choices = tuple(range(1, SIZE + 1))
    scored = choices

    def __init__(
        self,
        *,
        prompt: Prompt | None = None,
        count: int = 10,
        seed: int = 0,
        logprobs: bool = False,
        controls: bool = True,
    ) -> None:
        """As for every judge; `count` groups at most, each a prompt of its own."""
        super().__init__(prompt=prompt, count=count, per_prompt=1, seed=seed, logprobs=logprobs, controls=controls)

    def keys(self, count: int) -> tuple[str, ...]:  # noqa: ARG002
        """One question, one key."""
        return ("intruder",)

    def quiz(self, holdout: Holdout) -> Quiz:
        """A question for each group."""
        ground = Ground(holdout, seed=self._seed)
        groups = _groups(ground, count=self._count)
        if len(groups) < FEWEST:
            return too_few(len(groups), TOO_FEW)
        places = ground.rng.permutation(np.arange(len(groups)) % SIZE)
        ordered = [
            [*active[:place], odd, *active[place:]] for (odd, *active), place in zip(groups, places, strict=True)
        ]
        return Quiz(
            [tuple(marked(part, marks) for part, marks in group) for group in ordered],
            [(i,) for i in range(len(groups))],
            (np.arange(SIZE) == places[:, None]).astype(np.float32),
            tuple(part.example.window for group in ordered for part, _ in group),
        )


def _groups(ground: Ground, *, count: int) -> list[list[Marked]]:
    """Groups of excerpts, the intruder first; no window is shown twice."""
    each = SIZE - 1
    wanted = each * min(count, len(ground.firing) // each)
    spread_out = [ground.firing[i] for i in spread(len(ground.firing), wanted)[:wanted]]
    active = ground.rng.permutation(np.array(spread_out, np.int64))
    free = np.ones(len(ground.examples), bool)
    free[active] = False
    found = []
    for start in range(0, wanted, each):
        others = np.concatenate([active[:start], active[start + each :]])
        odd = _intruder(ground, [int(window) for window in ground.rng.permutation(others)], free)
        if odd is not None:
            found.append([odd, *(_marked(ground, int(window)) for window in active[start : start + each])])
    return found


def _intruder(ground: Ground, models: list[int], free: Mask) -> Marked | None:
    """A silent excerpt marked as the excerpt of the first of `models` that has one at the same place."""

    def silent(start: int, marks: Mask) -> Mask:  # noqa: ARG001
        return ground.silent(start)

    for model in models:
        beside = partner(ground, model, free=free, fits=silent, wish=ground.silent)
        if beside is not None:
            start, window = beside
            free[window] = False
            return Marked(ground.excerpt(window, start), ground.marks(model, start))
    return None


def _marked(ground: Ground, window: int) -> Marked:
    start = ground.starts(window)[0]
    return Marked(ground.excerpt(window, start), ground.marks(window, start))
