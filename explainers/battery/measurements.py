"""Measurements on the subject that labelling and investigations share: what to run, and what the results say.

Context pruning: ever shorter contexts before a pivot, in two ways. Filled: what is taken away is replaced by other
corpus text, in which the feature is silent at that position, so the pivot stays where it was. Cut: the rest moves to
the window's start. A length is needed when from it on half of the activation is left.

Scan: which tokens to put at one offset from the pivot, so that exceptions and further causes show.

Near misses: what stands before active and before silent places of the tokens on which the feature fires.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.nn.functional import normalize

from .places import ACTIVE, Place, TrainingSide, common_tokens, special_tokens

LENGTHS = (1, 2, 3, 4, 5, 6, 9, 17, 33, 65, 129)
"""Tokens that are kept, the pivot included; the whole context is always tried too."""
LEFT = 0.5
"""Share of the whole context's activation that must be left."""
KNOWN = 20
"""Tokens that stand at the offset before active places, whose neighbours in the embedding are tried first."""


def fill_context(place: Place, length: int, filling: Sequence[int]) -> tuple[int, ...]:
    """The place's window, of which the last `length` tokens up to the pivot are kept and those before replaced."""
    start = place.pivot + 1 - length
    return (*filling[:start], *place.ids[start:])


def cut_context(place: Place, length: int) -> tuple[int, ...]:
    """The place's window, of which the last `length` tokens up to the pivot move to the start.

    What stands after the pivot cannot matter, so that the window's own text may end it.
    """
    start = place.pivot + 1 - length
    return (*place.ids[start:], *place.ids[:start])


def median_by_length(measured: Iterable[tuple[int, float]]) -> dict[int, float]:
    """By length, the median of its values: any one filling may happen to hold a cause."""
    by_length: dict[int, list[float]] = {}
    for length, value in measured:
        by_length.setdefault(length, []).append(value)
    return {length: float(np.median(group)) for length, group in by_length.items()}


def needed_length(curve: Mapping[int, float]) -> int:
    """The shortest length from which on half of the whole context's activation is left."""
    enough = LEFT * curve[max(curve)]
    shortest = max(curve)
    for length in sorted(curve, reverse=True):
        if curve[length] < enough:
            break
        shortest = length
    return shortest


class Choice(NamedTuple):
    """Tokens to try, by id."""

    tokens: list[int]
    left_out: int
    every: int
    """All tokens that stand for text."""


def choose_tokens(side: TrainingSide, back: int, *, most: int, named: Sequence[int] = ()) -> Choice:
    """Tokens to put `back` tokens before the pivot: all, or of a larger vocabulary `most` of four kinds.

    These are those `named`, the nearest to those that stand there at active places, the most frequent ones, and an even
    sample of the rest.
    """
    special = special_tokens(side)
    every = [token for token, text in enumerate(side.vocabulary) if token not in special and text]
    if len(every) <= most:
        return Choice(every, 0, len(every))
    allowed = set(every)
    shares = (named, nearest_tokens(side, back, allowed), common_tokens(side))
    chosen: dict[int, None] = {}
    for number, part in enumerate(shares, start=1):
        room = most * number // 4
        for token in part:
            if len(chosen) >= room:
                break
            if token in allowed:
                chosen.setdefault(token)
    rest = [token for token in every if token not in chosen]
    even = np.linspace(0, len(rest) - 1, most - len(chosen)).round().astype(int)
    tokens = sorted({*chosen, *(rest[i] for i in even)})
    return Choice(tokens, len(every) - len(tokens), len(every))


def nearest_tokens(side: TrainingSide, back: int, allowed: set[int]) -> list[int]:
    """Tokens by the cosine of their input embedding with the nearest of those that stand there at active places.

    None where no model is there that embeds them, or where no token stands there: every active place begins its window.
    """
    causes = tokens_before_active(side, back)[:KNOWN]
    if not side.subject.inside or not causes:
        return []
    table: Any = side.subject.model.get_input_embeddings()
    vectors = normalize(table.weight.detach().float(), dim=1)
    likeness = (vectors @ vectors[causes].T).amax(dim=1)
    return [token for token in likeness.argsort(descending=True, stable=True).tolist() if token in allowed]


def tokens_before_active(side: TrainingSide, back: int) -> list[int]:
    """The tokens that stand `back` tokens before active places, the most frequent first."""
    windows = side.windows
    rows, positions = np.nonzero(windows.values[:, back:] >= ACTIVE)
    counts = np.bincount(windows.ids[rows, positions])
    return np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()


class Preceding(NamedTuple):
    """What stands before the places of one token, in the whole training side."""

    token: int
    active: Counter[int]
    """How often each token stands before an active place of it, by id."""
    silent: Counter[int]
    """The same, of places that are not active."""


def preceding(side: TrainingSide, *, most: int) -> list[Preceding]:
    """For the tokens on which the feature fires, the most reliable first, what stands before them."""
    windows = side.windows
    here, before, values = windows.ids[:, 1:], windows.ids[:, :-1], windows.values[:, 1:]
    return [
        Preceding(
            token,
            *(Counter(before[(here == token) & chosen].tolist()) for chosen in (values >= ACTIVE, values < ACTIVE)),
        )
        for token in list(side.fires_on)[:most]
    ]
