"""Minimal pairs: windows and their smallest telling edits, to be run through the subject.

The edits know the evidence and nothing of any explanation. For a window with a pivot (the token of
its peak, or of a near miss) one of these is changed: the pivot token itself, one of the tokens
before it, or the run of tokens before it, which is replaced by the run before the same token in a
window where the feature behaved otherwise (a transplant: what an exception or a missing cause
answers to). A token may also be put in before the pivot, everything before it moving one step
back. Every other token stays, and so does the window's length.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .records import Example

REACH = 8
"""How many tokens before the pivot are candidates for an edit."""


class Pair(NamedTuple):
    """An edited window; the original is `examples[example]`."""

    example: int
    tokens: NDArray[np.int64]
    """Shape (position,)."""
    pivot: int
    """Position at which both windows are compared."""


class _Pivot(NamedTuple):
    example: int
    position: int
    active: bool


def minimal_pairs(
    examples: Sequence[Example], *, peak: float, unigrams: NDArray[np.int64], count: int, seed: int
) -> list[Pair]:
    """Up to `count` edits of the examples, cycling through the kinds of edit.

    `peak` is the feature's highest activation; a pivot is active above half of it. `unigrams` are
    corpus tokens to draw substitutes from, shape (token,).
    """
    rng = np.random.default_rng(seed)
    pivots = _pivots(examples, peak)
    if not pivots:
        return []
    pairs: list[Pair] = []
    seen = {example.ids.tobytes() for example in examples}
    edits = (_transplant, _substitute_pivot, _substitute_before, _transplant, _insert_before)
    for attempt in range(4 * count):
        pivot = pivots[attempt % len(pivots)]
        edit = edits[(attempt // len(pivots) + attempt) % len(edits)]
        tokens = edit(examples, pivots, pivot, unigrams, rng)
        if tokens is not None and tokens.tobytes() not in seen:
            seen.add(tokens.tobytes())
            pairs.append(Pair(pivot.example, tokens, pivot.position))
            if len(pairs) == count:
                break
    return pairs


def _pivots(examples: Sequence[Example], peak: float) -> list[_Pivot]:
    """The peak token of every active example, and the tokens of silent ones on which others peak."""
    active = [
        _Pivot(i, int(example.activations.argmax()), True)
        for i, example in enumerate(examples)
        if example.peak > peak / 2
    ]
    tokens = {int(examples[pivot.example].ids[pivot.position]) for pivot in active}
    silent = [
        _Pivot(i, int(position), False)
        for i, example in enumerate(examples)
        for position in np.flatnonzero(np.isin(example.ids, list(tokens)) & (example.activations < peak / 4))[:2]
    ]
    ordered: list[_Pivot] = []
    for i in range(max(len(active), len(silent))):
        ordered += active[i : i + 1] + silent[i : i + 1]
    return ordered


def _substitute_pivot(examples, pivots, pivot, unigrams, rng) -> NDArray[np.int64] | None:  # noqa: ANN001, ARG001
    """Another token at the pivot: half the time one on which the feature peaks elsewhere."""
    tokens = examples[pivot.example].ids.copy()
    donors = [p for p in pivots if p.active]
    if donors and rng.random() < 0.5:
        donor = donors[rng.integers(len(donors))]
        tokens[pivot.position] = examples[donor.example].ids[donor.position]
    else:
        tokens[pivot.position] = rng.choice(unigrams)
    return tokens


def _substitute_before(examples, pivots, pivot, unigrams, rng) -> NDArray[np.int64] | None:  # noqa: ANN001, ARG001
    """Another token at one of the positions before the pivot, the nearest ones most often."""
    if pivot.position == 0:
        return None
    tokens = examples[pivot.example].ids.copy()
    back = min(int(rng.geometric(0.4)), pivot.position, REACH)
    tokens[pivot.position - back] = rng.choice(unigrams)
    return tokens


def _insert_before(examples, pivots, pivot, unigrams, rng) -> NDArray[np.int64] | None:  # noqa: ANN001, ARG001
    """A token put in up to REACH tokens before the pivot; the window's first token makes room."""
    if pivot.position == 0:
        return None
    tokens = examples[pivot.example].ids.copy()
    at = pivot.position - min(int(rng.geometric(0.4)), pivot.position, REACH)
    tokens[:at] = tokens[1 : at + 1]
    tokens[at] = rng.choice(unigrams)
    return tokens


def _transplant(examples, pivots, pivot, unigrams, rng) -> NDArray[np.int64] | None:  # noqa: ANN001, ARG001
    """The tokens before the pivot, taken from before the same (or another) pivot that behaved otherwise."""
    tokens = examples[pivot.example].ids.copy()
    others = [p for p in pivots if p.active != pivot.active and p.position > 0]
    same = [p for p in others if examples[p.example].ids[p.position] == tokens[pivot.position]]
    donors = same or others
    if not donors or pivot.position == 0:
        return None
    donor = donors[rng.integers(len(donors))]
    run = min(int(rng.choice((1, 1, 2, 3, REACH))), pivot.position, donor.position)
    source = examples[donor.example].ids
    tokens[pivot.position - run : pivot.position] = source[donor.position - run : donor.position]
    return tokens
