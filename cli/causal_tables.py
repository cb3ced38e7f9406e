"""How the causal verbs' results look in a table, and which keys their parts have in JSON."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from . import display
from .common import Row

if TYPE_CHECKING:
    from ..causal.applying import Report
    from ..causal.controlled import Ranked
    from ..causal.measures import Interval


def quoted(text: str) -> str:
    """A text in quotes, so that its spaces are seen."""
    mark = "'" if '"' in text else '"'
    return f"{mark}{display.visible(text)}{mark}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference, with its sign."""
    return display.NOTHING if value is None else f"{value:+.{digits}f}"


def spanned(value: float | None, low: float | None, high: float | None, *, digits: int = 2) -> str:
    """A value beside its interval, `0.81 [0.72, 0.88]`."""
    if value is None:
        return display.NOTHING
    # Adding 0.0 takes the sign off a zero.
    shown, *span = (f"{round(part, digits) + 0.0:.{digits}f}" for part in (value, low, high) if part is not None)
    return f"{shown} [{span[0]}, {span[1]}]" if len(span) == 2 else shown


def spanned_column(name: str, header: str | None = None, *, digits: int = 2) -> display.Column:
    """The key `name` of rows beside their ci_low and ci_high."""
    return display.Column(
        header or name, lambda row: spanned(row[name], row["ci_low"], row["ci_high"], digits=digits)
    )  # fmt: skip


def ends(interval: "Interval | None") -> Row:
    """An interval's ends, null where there is none."""
    low, high = interval or (None, None)
    return {"ci_low": low, "ci_high": high}


def report_row(report: "Report") -> Row:
    """What an edit did."""
    return {
        "edit": str(report.edit), "fired": report.fired, "max_change": report.max_change,
        "places": {str(row): list(places) for row, places in report.places.items()},
    }  # fmt: skip


def reports(rows: Sequence[Row]) -> str:
    """What edits did, one line each."""
    columns = [
        display.key("edit"), display.key("fired", right=True), display.Column("positions", _positions),
        display.key("max_change", "largest change", right=True),
    ]  # fmt: skip
    return display.table(rows, columns)


def _positions(row: Mapping[str, dict[str, list[int]]]) -> str:
    from ..causal.edits import ranges

    places = list(row["places"].values())
    if all(one == places[0] for one in places):
        return ranges(places[0]) + (f" in {len(places)} prompts" if len(places) > 1 else "")
    return f"{sum(map(len, places))} in {len(places)} prompts"


def standing_row(sort: str, ranked: "Ranked") -> Row:
    """An effect among those of one sort of controls; null where there is nothing to rank it among."""
    standing = ranked.standing
    others = standing.controls if standing else ()
    return {
        "controls": sort, "n": len(others), "silent": ranked.silent, "effect": ranked.effect,
        "median": median(others) if others else None, "largest": max(others, key=abs) if others else None,
        "percentile": standing and standing.percentile, "p": standing and standing.p,
    }  # fmt: skip


def standings(rows: Sequence[Row], effect: str) -> str:
    """An effect among those of its controls, one line for each sort; `effect` says what is compared."""
    columns = [
        display.key("controls", f"controls ({effect})"),
        *(display.key(name, header, right=True) for name, header in _RANKED.items()),
    ]
    return display.table(rows, columns)


_RANKED = {
    "n": "n", "silent": "silent", "effect": "edit", "median": "their median", "largest": "largest",
    "percentile": "percentile", "p": "p",
}  # fmt: skip


def trusts(rows: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """How far each dictionary can be trusted, in words."""
    return [_trust(name, row) for name, row in rows.items()]


def _trust(name: str, row: Mapping[str, float | None]) -> str:
    lost = row["unexplained"]
    share = "no variance to rebuild" if lost is None else f"{lost:.0%} of the variance is not rebuilt"
    loss, rebuilt = (display.number(row[key]) for key in ("loss", "rebuilt_loss"))
    return f"{name}: {share}; loss {loss}, with the reconstruction in place {rebuilt}"


def blocks(*parts: str) -> str:
    """Parts with empty lines between, those left out that are empty."""
    return "\n\n".join(part for part in parts if part)
