"""When a feature is not explained at all: it never fires, fires too rarely to tell why, or fires everywhere.

Every explainer asks this first, so that what is counted as unexplained does not depend on who explains, and
no language model is asked about a feature that has no answer.
"""

from dataclasses import dataclass

from ..data.records import Explanation
from .batch import TrainEvidence


@dataclass(frozen=True, slots=True)
class Limits:
    """When an explainer abstains. Fractions of corpus tokens or of the feature's peak."""

    min_windows: int = 5
    """Fewer active training windows than this are too rare to explain."""
    dense: float = 0.5
    """A feature above a third of its peak on more than this fraction of tokens is dense."""


def abstention(evidence: TrainEvidence, *, explainer: str, limits: Limits) -> Explanation | None:
    """An explanation without text, with status "dead", "too_rare" or "dense" and a reason; None where there is
    something to explain."""
    statistics = evidence.statistics
    active = {e.window for e in evidence.examples if e.kind in ("top", "quantile") and e.peak > 0}
    strong = float((evidence.background > statistics.peak / 3).mean()) if statistics.peak > 0 else 0.0
    if statistics.peak <= 0:
        status, reason = "dead", f"never active on {statistics.tokens:,} tokens"
    elif len(active) < limits.min_windows:
        status = "too_rare"
        reason = (
            f"active in {len(active)} training windows of {statistics.tokens:,} tokens; {limits.min_windows} are needed"
        )
    elif strong > limits.dense:
        status, reason = "dense", f"above a third of its peak on {strong:.0%} of tokens"
    else:
        return None
    return Explanation(evidence.feature, None, explainer, reason=reason, status=status)
