"""The parts that rows share: the ends of an interval, what an edit did, how it stands among controls."""

from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..controls import Ranked
    from ..intervene import Report
    from ..measures import Interval

Row = dict[str, Any]


def ends(interval: "Interval | None") -> Row:
    """The ends of an interval by their keys in JSON, null where there is none."""
    low, high = interval or (None, None)
    return {"ci_low": low, "ci_high": high}


def report_row(report: "Report") -> Row:
    """The row of an edit's report."""
    return {
        "edit": str(report.edit),
        "fired": report.fired,
        "max_change": report.max_change,
        "places": {str(row): list(places) for row, places in report.places.items()},
    }


def rank_row(sort: str, ranked: "Ranked", *, metric: str) -> Row:
    """The row of an effect's rank among controls of one sort; null where there is nothing to rank it among.

    `effect` and those of the controls are of one `metric`, over all prompts or pairs together.
    """
    rank = ranked.rank
    others = rank.controls if rank else ()
    return {
        "controls": sort,
        "metric": metric,
        "n": len(others),
        "silent": ranked.silent,
        "effect": ranked.effect,
        "median": median(others) if others else None,
        "largest": max(others, key=abs) if others else None,
        "percentile": rank and rank.percentile,
        "p": rank and rank.p,
    }
