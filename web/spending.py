"""What sessions that ask a language model may cost: all that a server starts, together.

What was spent is read from the log of calls in the database, from the server's start on, so calls of other commands on
the same database count as well: what is left is never told too high. A session that waits or runs has its whole budget
set aside, and a call that is under way may go beyond it, as on the command line.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from fastapi import HTTPException

from ..data.store.store import Store
from ..llm.prices import Budget
from ..subject.errors import NeuronautError
from .jobs import Job
from .settings import LanguageModel

KINDS = ("usd", "tokens", "calls")
"""What a budget of a language model limits."""


Spent = Mapping[tuple[str, ...], Mapping[str, float | None]]
"""By model, endpoint and prompt, what calls have used of each kind; None of dollars where a price is not known."""


def read_spent(store: Store) -> Spent:
    """What all calls of the database have used."""
    return {
        (row["model"], row["endpoint"], row["prompt"]): {
            "usd": row["cost"],
            "tokens": (row["input_tokens"] or 0) + (row["output_tokens"] or 0),
            "calls": row["calls"],
        }
        for row in store.calls.statistics()
    }


class Allowance:
    """The budget of a server's language model, and what is left of it."""

    def __init__(self, language: LanguageModel, before: Spent) -> None:
        """`before` is what was spent when the server started (read_spent)."""
        self.language, self._before = language, before

    def left(self, store: Store, jobs: Iterable[Job]) -> dict[str, float]:
        """By kind that is limited, what no session has used and none has set aside; never below 0."""
        spent, aside = read_spent(store), [job.arguments.get("limits", {}) for job in jobs if not job.ended]
        return {
            kind: max(0.0, limit - _spent_since(self._before, spent, kind) - sum(of.get(kind, 0) for of in aside))
            for kind, limit in self.language.limits.items()
        }

    def grant(self, text: str, left: Mapping[str, float]) -> dict[str, float]:
        """Read a session's own budget, by default all that is left; a 400 where it is more than that."""
        if over := [f"{kind}={self.language.limits[kind]:g}" for kind, amount in left.items() if amount <= 0]:
            raise HTTPException(
                409, f"of the server's budget {' and '.join(over)} is spent or set aside; whoever runs it may give more"
            )
        try:
            asked = limits_of(Budget.parse(text)) if text else {}
        except NeuronautError as error:
            raise HTTPException(400, str(error)) from error
        if more := [
            f"{kind}={asked[kind]:g}, left {amount:g}" for kind, amount in left.items() if asked.get(kind, 0) > amount
        ]:
            raise HTTPException(400, f"the session's budget is more than the server has left: {'; '.join(more)}")
        return {**left, **asked}


def _spent_since(before: Spent, now: Spent, kind: str) -> float:
    """What was used of a kind; a NeuronautError where it is dollars and calls since have no price."""
    total = 0.0
    for group, used in now.items():
        earlier = before.get(group, {})
        if used["calls"] == earlier.get("calls"):
            continue
        value, first = used[kind], earlier.get(kind, 0.0)
        if value is None or first is None:
            raise NeuronautError(
                f"calls of {group[0]} have no price, so no budget in dollars holds; start the server with --price, or"
                " with --budget tokens=N"
            )
        total += value - first
    return total


def limits_of(budget: Budget) -> dict[str, float]:
    """By kind, the limits that there are."""
    return {kind: limit for kind, limit in asdict(budget).items() if kind in KINDS and limit is not None}


def as_budget(limits: Mapping[str, float]) -> str:
    """Limits as `--budget` takes them."""
    return ",".join(f"{kind}={limit:g}" if kind == "usd" else f"{kind}={int(limit)}" for kind, limit in limits.items())
