"""Edits at the boundary of a rule: one of its conditions is broken at a time, or an exception is brought about.

At a training place where a clause holds, the tokens that meet one condition are replaced by some that do not: by any,
and by one of the same class that the rule does not list. A token that the rule excludes is put in, and one of the
same class that it does not exclude. Since a rule may name what hardly occurs, its clauses are also written into places
of other tokens, every token that they name once, without and with each exception. Conditions on quotations, positions
and repeats are left to other tools.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np

from ...explainers.evaluate import TokenGrid, clause_matches
from ...explainers.phrases import visible
from ...explainers.rules import CLASSES, Class, Condition, Regex, Rule, Token
from ..investigation.lab import FeatureLab
from .places import Place, common_tokens, special_tokens, training

WINDOWS = 600
"""Training windows, the examples first, that are searched for places where a clause holds."""
PLACES, MOST = 4, 24
"""Places of each clause, and how many it is written into at most."""

OnToken = Token | Class | Regex


class Broken(NamedTuple):
    """A place, and what is changed in it."""

    place: Place
    tokens: dict[int, int]
    """By position."""
    label: str
    group: str


def broken(lab: FeatureLab, rule: Rule, rng: np.random.Generator) -> list[Broken]:
    """The edits of every clause of a rule."""
    windows = training(lab)
    ids, values = windows.ids[:WINDOWS], windows.values[:WINDOWS]
    grid = TokenGrid(lab.vocabulary, ids)
    found: list[Broken] = []
    for clause in rule.any:
        rows, positions = np.nonzero(clause_matches(clause, grid))
        drawn = rng.permutation(len(rows))[:PLACES].tolist()
        for row, pivot in ((int(rows[i]), int(positions[i])) for i in drawn):
            place = Place(tuple(ids[row].tolist()), pivot, float(values[row, pivot]))
            for condition in clause.when:
                found += _broken_at(lab, place, condition, rng)
            for exception in (*clause.unless, *rule.unless):
                found += _excepted_at(lab, place, exception, rng)
    return found


def brought_about(lab: FeatureLab, rule: Rule, rng: np.random.Generator) -> Iterator[Broken]:
    """Every clause written into random places, without and with an exception to it."""
    windows = training(lab)
    for clause in rule.any:
        causes = [(condition, _pool(lab, condition)) for condition in clause.when if _on_token(condition)]
        excepted = [(c, _pool(lab, c)) for c in (*clause.unless, *rule.unless) if _on_token(c)]
        for exception in (None, *excepted):
            conditions = [*causes, *([exception] if exception else [])]
            pools = [pool for _, pool in conditions]
            if not causes or not all(pools):
                continue
            for number in range(min(MOST, max(PLACES, *map(len, pools)))):
                row, pivot = (int(rng.integers(size)) for size in windows.ids.shape)
                place = Place(tuple(windows.ids[row].tolist()), pivot, float(windows.values[row, pivot]))
                at = [_positions(place, condition) for condition, _ in conditions]
                if all(at):
                    put = [(int(rng.choice(p)), pool[number % len(pool)]) for p, pool in zip(at, pools, strict=True)]
                    # What is excluded must not be written over what is required, so the last one gives way.
                    yield _put(
                        lab, place, dict(reversed(put)), "an exception written" if exception else "a cause written"
                    )


def _pool(lab: FeatureLab, condition: OnToken) -> list[int]:
    """All tokens of which a condition on a token holds."""
    holds, special = _holds(condition), special_tokens(lab)
    return [token for token, text in enumerate(lab.vocabulary) if token not in special and holds(text)]


def _broken_at(lab: FeatureLab, place: Place, condition: Condition, rng: np.random.Generator) -> Iterator[Broken]:
    """The condition's tokens replaced by others: any, and some of the same class."""
    if not _on_token(condition):
        return
    holds = _holds(condition)
    at = [p for p in _positions(place, condition) if holds(lab.vocabulary[place.ids[p]])]
    others = [token for token in common_tokens(lab) if not holds(lab.vocabulary[token])]
    alike = _alike(lab, [place.ids[p] for p in at], others)
    for group, pool in (("a condition broken", others), ("an unlisted token of the same class", alike)):
        if at and pool:
            yield _put(lab, place, dict(zip(at, rng.choice(pool, size=len(at)).tolist(), strict=True)), group)


def _excepted_at(lab: FeatureLab, place: Place, exception: Condition, rng: np.random.Generator) -> Iterator[Broken]:
    """A token that is excluded put in, and one of the same class that is not."""
    if not _on_token(exception) or not (at := list(_positions(place, exception))):
        return
    holds, tokens = _holds(exception), common_tokens(lab)
    inside = [token for token in tokens if holds(lab.vocabulary[token])]
    outside = [token for token in tokens if not holds(lab.vocabulary[token])]
    alike = _alike(lab, inside, outside)
    for group, pool in (("an excluded token put in", inside), ("a token like the excluded ones put in", alike)):
        if pool:
            yield _put(lab, place, {int(rng.choice(at)): int(rng.choice(pool))}, group)


def _put(lab: FeatureLab, place: Place, tokens: dict[int, int], group: str) -> Broken:
    return Broken(place, tokens, differences(lab, place.ids, place.change(tokens), place.pivot), group)


def differences(lab: FeatureLab, was: Sequence[int], now: Sequence[int], pivot: int) -> str:
    """In words, which tokens an edited window has instead of which, by offset from the pivot."""
    changed = [position for position, (old, new) in enumerate(zip(was, now, strict=True)) if old != new]
    if len(changed) > 3:
        return f"{len(changed)} tokens changed from {changed[0] - pivot} to {changed[-1] - pivot}"
    return ", ".join(
        f"{visible(lab.vocabulary[now[p]])} for {visible(lab.vocabulary[was[p]])} at {p - pivot}" for p in changed
    )


def _on_token(condition: Condition) -> TypeGuard[OnToken]:
    return isinstance(condition, Token | Class) or (isinstance(condition, Regex) and condition.of == "token")


def _holds(condition: OnToken) -> Callable[[str], bool]:
    match condition:
        case Token():
            return set(condition.any).__contains__
        case Class():
            return CLASSES[condition.name]
        case Regex():
            search = re.compile(condition.pattern).search
            return lambda token: search(token) is not None


def _positions(place: Place, condition: OnToken) -> range:
    """Where in the window the condition looks."""
    if condition.within is not None:
        return range(max(0, place.pivot - condition.within), place.pivot)
    at = place.pivot + condition.at
    return range(at, at + 1) if at >= 0 else range(0)


def _alike(lab: FeatureLab, members: Sequence[int], others: Sequence[int]) -> list[int]:
    """Those of the others that are of every class that all members are of."""
    shared = [holds for holds in CLASSES.values() if members and all(holds(lab.vocabulary[t]) for t in members)]
    return [t for t in others if shared and all(holds(lab.vocabulary[t]) for holds in shared)]
