"""Formats results for a terminal or a file: tables, scores, sparklines, highlighted text, the rows of causal verbs.

On a terminal a table fits its width and its last column is cut; in a file or a pipe nothing is cut.
Text from a corpus or a model may hold anything, so whatever does not print is spelled out before it
reaches the terminal.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import click

from ..subject.quoting import quoted as quoted
from ..subject.quoting import visible as visible

Row = Mapping[str, Any]

NOTHING = "–"
"""Stands for null in a table."""
ACTIVE = 0.25
"""From this fraction of the peak on, a token is marked as activating."""
_BLOCKS = "▁▂▃▄▅▆▇█"
_SHADES = ((64, 58, 28), (105, 88, 22), (158, 122, 16), (222, 164, 12))
"""Backgrounds of activating tokens, the weakest first."""


class Column(NamedTuple):
    """A column of a table."""

    header: str
    cell: Callable[[Row], str]
    right: bool = False


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


def in_colour() -> bool:
    """Whether stdout is a terminal that may be coloured (NO_COLOR unset)."""
    return on_terminal() and not os.environ.get("NO_COLOR")


def width() -> int:
    """Characters in a line of the terminal."""
    return shutil.get_terminal_size((100, 24)).columns


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Format rows as aligned columns under their headers; empty where there are no rows."""
    if not rows:
        return ""
    cells = [[column.header for column in columns], *([column.cell(row) for column in columns] for row in rows)]
    widths = [max(len(click.unstyle(line[i])) for line in cells) for i in range(len(columns))]
    return "\n".join(_join_cells(line, columns, widths) for line in cells)


def _join_cells(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    *fixed, last = [
        " " * (size - len(click.unstyle(cell))) + cell
        if column.right
        else cell + " " * (size - len(click.unstyle(cell)))
        for cell, column, size in zip(cells, columns, widths, strict=True)
    ]
    line = "".join(f"{cell}  " for cell in fixed)
    return (line + cut(last.rstrip(), len(click.unstyle(line)))).rstrip()


def cut(text: str, used: int = 0) -> str:
    """Cut the text, on a terminal, to the rest of a line of which `used` characters are taken."""
    room = max(width() - used, 12)
    if not on_terminal() or len(click.unstyle(text)) <= room:
        return text
    shortened, left = "", room - 1
    for piece in _STYLE.split(text):
        if _STYLE.fullmatch(piece):
            shortened += piece
        else:
            shortened, left = shortened + piece[:left], max(0, left - len(piece))
    return shortened + "…"


_STYLE = re.compile(r"(\x1b\[[\d;]*m)")


def plain_lines(text: str) -> str:
    """Spell out every character that does not print; line breaks and tabs stay."""
    return "\n".join(
        "".join(c if c.isprintable() or c == "\t" else visible(c) for c in line) for line in text.split("\n")
    )


def harmless(text: str) -> str:
    """Spell out, in text that may be styled, every other character that would command a terminal."""
    return "".join(piece if _STYLE.fullmatch(piece) else plain_lines(piece) for piece in _STYLE.split(text))


def number(value: float | None) -> str:
    """Format a number with three significant digits."""
    return NOTHING if value is None else f"{value:.3g}"


def hundredths(value: float | None) -> str:
    """Format a score without its interval."""
    return NOTHING if value is None else f"{value:.2f}"


def score(row: Row) -> str:
    """Format a score with its interval, `0.81 [0.72, 0.88]`."""
    ends = row["ci_low"], row["ci_high"]
    return hundredths(row["score"]) + ("" if None in (row["score"], *ends) else f" [{ends[0]:.2f}, {ends[1]:.2f}]")


def key(name: str, header: str | None = None, *, right: bool = False) -> Column:
    """Make a column that shows a key of the rows as it is."""
    return Column(header or name, lambda row: _format_cell(row[name]), right)


def _format_cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    return NOTHING if value is None else visible(str(value))


def features(rows: Sequence[Row]) -> list[Column]:
    """The address of each row's feature and, where any has one, its name."""
    return [key("feature"), *([key("name")] if any(row.get("name") for row in rows) else [])]


SCORE = Column("score", score)
BASELINE = Column("baseline", lambda row: hundredths(row["baseline"]), right=True)
EXPLANATION = Column("explanation", lambda row: _format_cell(row["headline"] or row["explanation"]))
"""The headline, or the whole text where it has none."""


def sparkline(counts: Sequence[int]) -> str:
    """Draw counts as bars whose height is their logarithm's share of the highest."""
    highest = max(counts, default=0).bit_length()
    if not highest:
        return ""
    return "".join(_BLOCKS[(count.bit_length() * (len(_BLOCKS) - 1)) // highest] if count else " " for count in counts)


def highlighted(tokens: Sequence[str], activations: Sequence[float], *, peak: float, room: int | None = None) -> str:
    """Mark the activating tokens of a window, in colour on a terminal, «like this» elsewhere.

    `room` is how many characters may be shown; they are taken around the strongest token.
    """
    shades = [_shade(activation, peak) for activation in activations]
    spelled = [visible(token) for token in tokens]
    first, last = _fit_around(spelled, max(range(len(tokens)), key=activations.__getitem__), room)
    text = "".join(_mark_active(zip(spelled[first:last], shades[first:last], strict=True)))
    return ("…" if first else "") + text + ("…" if last < len(tokens) else "")


def _mark_active(pieces: Iterator[tuple[str, int]]) -> Iterator[str]:
    if in_colour():
        for piece, shade in pieces:
            yield click.style(piece, fg="bright_white", bg=_SHADES[shade - 1]) if shade else piece
        return
    for active, run in groupby(pieces, lambda pair: pair[1] > 0):
        text = "".join(piece for piece, _ in run)
        word = text.lstrip(" ")
        yield f"{text[: len(text) - len(word)]}«{word}»" if active and word else text


def _shade(activation: float, peak: float) -> int:
    """0 for a token that is not marked, else 1 to 4."""
    share = activation / peak if peak > 0 else 0.0
    return 0 if share < ACTIVE else min(len(_SHADES), int((share - ACTIVE) / (1 - ACTIVE) * len(_SHADES)) + 1)


def _fit_around(pieces: Sequence[str], centre: int, room: int | None) -> tuple[int, int]:
    """Find the first and the last (exclusive) of the pieces that fit, two thirds of them before the centre."""
    if room is None:
        return 0, len(pieces)
    first, last, left = centre, centre + 1, room - 2 - len(pieces[centre])
    while first > 0 or last < len(pieces):
        backwards = first > 0 and (last == len(pieces) or 2 * (last - centre) > centre - first)
        size = len(pieces[first - 1] if backwards else pieces[last])
        if size > left:
            break
        left -= size
        first, last = (first - 1, last) if backwards else (first, last + 1)
    return first, last


def signed(value: float | None, digits: int = 3) -> str:
    """Format a difference with its sign."""
    return NOTHING if value is None else f"{value:+.{digits}f}"


def spanned(value: float | None, low: float | None, high: float | None, *, digits: int = 2) -> str:
    """Format a value beside its interval, `0.81 [0.72, 0.88]`."""
    if value is None:
        return NOTHING
    # Adding 0.0 takes the sign off a zero.
    centre, *span = (f"{round(part, digits) + 0.0:.{digits}f}" for part in (value, low, high) if part is not None)
    return f"{centre} [{span[0]}, {span[1]}]" if len(span) == 2 else centre


def spanned_column(name: str, header: str | None = None, *, digits: int = 2) -> Column:
    """Make a column of the key `name` of rows beside their ci_low and ci_high."""
    return Column(header or name, lambda row: spanned(row[name], row["ci_low"], row["ci_high"], digits=digits))


def reports(rows: Sequence[Row]) -> str:
    """Format the reports of edits, one line each."""
    columns = [
        key("edit"),
        key("fired", right=True),
        Column("positions", _format_positions),
        key("max_change", "largest change", right=True),
    ]
    return table(rows, columns)


def _format_positions(row: Mapping[str, dict[str, list[int]]]) -> str:
    from ..causal.edits import ranges

    places = list(row["places"].values())
    if all(positions == places[0] for positions in places):
        return ranges(places[0]) + (f" in {len(places)} prompts" if len(places) > 1 else "")
    return f"{sum(map(len, places))} in {len(places)} prompts"


def rank_table(rows: Sequence[Row], effect: str) -> str:
    """Format an effect's ranks, one line for each sort of controls; `effect` says what is compared."""
    columns = [
        key("controls", f"controls ({effect})"),
        *(key(name, header, right=True) for name, header in _RANKED.items()),
    ]
    return table(rows, columns)


_RANKED = {
    "n": "n",
    "silent": "silent",
    "effect": "edit",
    "median": "their median",
    "largest": "largest",
    "percentile": "percentile",
    "p": "p",
}


def trusts(rows: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Say in words how far each dictionary can be trusted."""
    return [_format_trust(name, row) for name, row in rows.items()]


def _format_trust(name: str, row: Mapping[str, float | None]) -> str:
    lost = row["unexplained"]
    share = "no variance to rebuild" if lost is None else f"{lost:.0%} of the variance is not rebuilt"
    loss, rebuilt = (number(row[key]) for key in ("loss", "rebuilt_loss"))
    return f"{name}: {share}; loss {loss}, with the reconstruction in place {rebuilt}"


def blocks(*parts: str) -> str:
    """Join the parts that are not empty, with empty lines between."""
    return "\n\n".join(part for part in parts if part)
