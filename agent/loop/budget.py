"""Hard limits of an investigation, and how much of each is left.

What is spent is in the journal's ledger, so limits hold across interruptions. Exploring stops when a share
`EXPLORE` of any limit is used; up to `RESERVE` what was put up late is tested and the leader challenged (closing.py);
the rest is kept for the holdout and the report.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from ...data.store.journal_values import Charge
from ...llm.prices import check_limits, parse_amounts

EXPLORE, RESERVE = 0.8, 0.95
"""Shares of every limit that may be used for exploring, and before the explanation is frozen."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that an investigation may use; None for no limit.

    >>> Limits.parse("experiments=40,minutes=10").experiments
    40
    """

    usd: float | None = None
    tokens: int | None = None
    """Of language models, input and output together."""
    calls: int | None = None
    fwd: int | None = None
    """Forward passes: prompts that are run through the subject, however many to a batch."""
    experiments: int | None = 60
    """Surveys are not counted."""
    minutes: float | None = None
    """Of work, over all runs together."""

    def __post_init__(self) -> None:
        check_limits(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `usd=1,tokens=200k,calls=50,fwd=50k,experiments=40,minutes=10`, any of them."""
        counts = ("tokens", "calls", "fwd", "experiments")
        usage = (
            "wanted any of usd, tokens, calls, fwd, experiments and minutes, as in fwd=50k,experiments=40,minutes=10"
        )
        return cls(**parse_amounts(text, whole=counts, parts=("usd", "minutes"), usage=usage))

    def used(self, spent: Charge) -> dict[str, tuple[float, float]]:
        """What was used and the limit, by each kind that has a limit."""
        values = {
            "usd": spent.usd,
            "tokens": spent.tokens,
            "calls": spent.calls,
            "fwd": spent.forwards,
            "experiments": spent.experiments,
            "minutes": spent.minutes,
        }
        return {kind: (values[kind], limit) for kind, limit in asdict(self).items() if limit is not None}

    def exhausted(self, spent: Charge, *, share: float = EXPLORE) -> str | None:
        """The kinds of which this share is used, in words; None where every one has room."""
        over = [kind for kind, (used, limit) in self.used(spent).items() if used >= share * limit]
        return " and ".join(over) or None

    def left(self, spent: Charge, *, share: float = EXPLORE) -> Mapping[str, float]:
        """What may still be used for exploring, by kind."""
        return {kind: max(0.0, share * limit - used) for kind, (used, limit) in self.used(spent).items()}
