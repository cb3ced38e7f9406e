"""What an investigation must not end without: a challenge of its leader, and experiments on those put up late.

Code itself asks for these, once, and within the reserve that exploring leaves of every limit. A hypothesis of which
nothing is measured even then is told as untested.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest

from .hypotheses import CALLS, NULLS, Call
from .run import RivalState
from .view import Rival

ENOUGH = 3
"""Predictions that have to be resolved for a hypothesis to have been tested."""
EDIT, COUNT = "edit_at_random", 24


def last_calls(state: RivalState, *, most: float) -> tuple[Call, ...]:
    """The calls that are missing, the most needed first; at most so many, and none where no rule leads."""
    leader = next((rival for rival in state.rivals if rival.status == "live"), None)
    if leader is None or leader.hypothesis.rule is None or leader.hypothesis.kind in NULLS:
        return ()
    asked = [() if _is_challenged(state) else tuple(_challenge())]
    late, rules = _newcomers(state.rivals), [r for r in state.rivals if r.status == "live" and r.hypothesis.rule]
    # One that leads is held against the next.
    against = [rival for rival in (*late, *(rules[1:2] if leader in late else ())) if rival is not leader]
    asked += [tuple(_trial(leader, rival)) for rival in {rival.name: rival for rival in against}.values()]
    calls = (call for group in zip_longest(*asked) for call in group if call is not None)
    return tuple(islice(calls, max(0, int(min(CALLS, most)))))


def _newcomers(rivals: Sequence[Rival]) -> list[Rival]:
    """Live rules of which fewer than ENOUGH predictions are resolved."""
    live = (rival for rival in rivals if rival.status == "live" and rival.hypothesis.kind not in NULLS)
    return [rival for rival in live if rival.hypothesis.rule is not None and rival.resolved < ENOUGH]


def _is_challenged(state: RivalState) -> bool:
    return any(e.role == "challenger" and not e.survey for e in state.experiments)


def _challenge() -> Iterator[Call]:
    purpose = "whether the leader holds at its own boundary, since nobody challenged it"
    yield Call(tool=EDIT, args={"boundary": True, "seed": 901, "count": COUNT}, purpose=purpose)
    yield Call(tool=EDIT, args={"seed": 902, "count": COUNT}, purpose="edits that know of no rule")


def _trial(leader: Rival, rival: Rival) -> Iterator[Call]:
    pair = {"aimed": True, "rivals": [leader.name, rival.name], "count": COUNT}
    purpose = f"whether {leader.name} or {rival.name} is right, since that was not tested"
    for seed, expect in enumerate(("silence", "activity"), start=903):
        yield Call(tool=EDIT, args={**pair, "expect": expect, "seed": seed}, purpose=purpose)
