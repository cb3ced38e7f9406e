"""Pictures of results: heat maps, curves with their intervals, values with theirs, and distributions.

Drawn by matplotlib, which only the extra `plots` installs, without its global state: every picture is a figure of its
own and goes to a file whose suffix decides the format. Colours are symmetric about zero, so that a colour's sense is
a sign's; what has no value is grey and crossed out, never a colour that stands for a number.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..subject.errors import NeuronautError
from .measures import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Values = Sequence[Sequence[float | None]]
"""Rows of cells; None where a value is withheld."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which people with any colour vision tell apart."""
DASHES = ("-", "--", ":", "-.")
LETTER = 0.065
"""Inches that a letter in a cell is wide."""
ANNOTATED = 400
"""Cells up to which a heat map has its numbers written in."""
TICKS = 48
"""Labels that an axis has at most."""


def heat_map(
    values: Values,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    path: str | Path,
    unit: str = "",
    x_label: str = "",
    texts: Sequence[Sequence[str]] | None = None,
) -> None:
    """Draw cells as colours; `unit` says what they are, beside the scale. `texts` are written in instead of numbers."""
    written = None if texts is None else {title: texts}
    heat_maps(
        {title: values}, rows=rows, columns=columns, title="", path=path, unit=unit, x_label=x_label, texts=written
    )


def heat_maps(
    panels: Mapping[str, Values],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    path: str | Path,
    unit: str = "",
    x_label: str = "",
    texts: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> None:
    """Heat maps beside each other, by name, with one scale and the same rows and columns.

    `texts`, by name too, are written into the cells instead of their numbers.
    """
    grids = {name: _array(values, len(rows), len(columns)) for name, values in panels.items()}
    finite = np.concatenate([grid[np.isfinite(grid)] for grid in grids.values()])
    if not finite.size:
        raise NeuronautError(f"there is nothing to draw in {path}: every value is withheld")
    peak = float(np.abs(finite).max()) or 1.0
    longest = max((len(text) for panel in (texts or {}).values() for row in panel for text in row), default=0)
    width = min(24.0, 1.8 + max(2.6, max(0.42, LETTER * longest) * len(columns)) * len(grids))
    figure = _figure(width, min(24.0, 1.4 + max(1.6, 0.32 * len(rows))), title)
    image: AxesImage | None = None
    places = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
    for axes, (name, grid) in zip(places, grids.items(), strict=True):
        axes.set_facecolor("#BBBBBB")
        image = axes.imshow(np.ma.masked_invalid(grid), cmap="RdBu_r", vmin=-peak, vmax=peak, aspect="auto")
        axes.set_title(name, fontsize=9, parse_math=False)
        axes.set_xlabel(x_label)
        _label_ticks(axes.xaxis, columns, rotation=90 if max(map(len, columns)) > 3 else 0)
        _write_in(axes, grid, peak, None if texts is None else texts[name])
    _label_ticks(places[0].yaxis, rows)
    assert image is not None, "there is a panel"
    scale = figure.colorbar(image, ax=list(places), label=unit)
    if finite.min() >= 0:
        scale.ax.set_ylim(0, peak)
    _save(figure, path)


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    x_label: str,
    y_label: str,
    title: str,
    path: str | Path,
    intervals: Mapping[str, Sequence[Interval | None]] | None = None,
) -> None:
    """Curves over `x`, by name, such as doses and responses; a curve's `intervals` are drawn as a band."""
    figure = _figure(6.4, 4.2, title)
    axes = figure.subplots()
    axes.axhline(0, color="#999999", lw=0.8)
    for number, (name, values) in enumerate(series.items()):
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        y = _array([values], 1, len(x))[0]
        axes.plot(x, y, dashes, color=colour, marker="o", markersize=3, label=name)
        if intervals is not None and name in intervals:
            low, high = _bounds(intervals[name])
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def points(
    panels: Mapping[str, Sequence[float | None]],
    *,
    labels: Sequence[str],
    title: str,
    path: str | Path,
    intervals: Mapping[str, Sequence[Interval | None]] | None = None,
    unit: str = "",
) -> None:
    """Values with their intervals, one line each, by name beside each other."""
    figure = _figure(2.0 + 3.4 * len(panels), min(24.0, 1.4 + 0.22 * len(labels)), title)
    places = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    y = np.arange(len(labels))
    for axes, (name, values) in zip(places, panels.items(), strict=True):
        axes.axvline(0, color="#999999", lw=0.8)
        axes.plot(_array([values], 1, len(labels))[0], y, "o", color=COLOURS[0], markersize=4)
        if intervals is not None and name in intervals:
            axes.hlines(y, *_bounds(intervals[name]), color=COLOURS[0], lw=1.2)
        axes.set_title(name, fontsize=9, parse_math=False)
        axes.set_xlabel(unit)
    _label_ticks(places[0].yaxis, labels)
    places[0].invert_yaxis()
    _save(figure, path)


def bars(
    series: Mapping[str, Sequence[float]], *, labels: Sequence[str], title: str, path: str | Path, unit: str = ""
) -> None:
    """Values as bars, one group for each label, one colour for each of the series, by name."""
    figure = _figure(6.4, min(24.0, 1.4 + (0.12 + 0.14 * len(series)) * len(labels)), title)
    axes, thick = figure.subplots(), 0.8 / len(series)
    axes.axvline(0, color="#999999", lw=0.8)
    for number, (name, values) in enumerate(series.items()):
        y = np.arange(len(labels)) + (number - (len(series) - 1) / 2) * thick
        axes.barh(
            y, _array([values], 1, len(labels))[0], height=thick, color=COLOURS[number % len(COLOURS)], label=name
        )
    _label_ticks(axes.yaxis, labels)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def distributions(
    panels: Mapping[str, Mapping[str, Sequence[float]]], *, title: str, path: str | Path, x_label: str
) -> None:
    """Empirical distributions of numbers from -1 to 1, by panel and by curve.

    The height at x is the share of values of at most x, so that of two curves the one further right is the higher
    one. A dot marks the median.
    """
    if not any(len(values) for curves in panels.values() for values in curves.values()):
        raise NeuronautError(f"there is nothing to draw in {path}: no value was measured")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(max(6.0, 4.1 * columns), 0.9 + 3.2 * rows, title)
    places = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for axes, (panel, curves) in zip(places, panels.items(), strict=False):
        _draw_distributions(axes, curves, names)
        axes.set_title(panel, fontsize=9, parse_math=False)
        axes.set_xlabel(x_label, fontsize=9)
        axes.set_ylabel("share of features at or below", fontsize=9)
    for axes in places[len(panels) :]:
        axes.axis("off")
    handles = {text.get_label(): text for axes in places for text in axes.get_legend_handles_labels()[0]}
    figure.legend(handles=[handles[name] for name in names], loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def _draw_distributions(axes: "Axes", curves: Mapping[str, Sequence[float]], names: Sequence[str]) -> None:
    axes.axhline(0.5, color="#cccccc", lw=0.8, zorder=0)
    for row, (name, given) in enumerate(curves.items()):
        number, values = names.index(name), np.sort(given)
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        share = np.arange(1, len(values) + 1) / max(len(values), 1)
        axes.step([-1, *values, 1], [0, *share, 1], where="post", color=colour, ls=dashes, lw=1.8, label=name)
        if len(values):
            middle = float(np.median(values))
            axes.plot(middle, 0.5, "o", color=colour, ms=6, mec="white", zorder=3)
            place = (0.04, 0.9 - 0.09 * row)
            axes.text(*place, f"median {middle:.2f}", color=colour, transform=axes.transAxes, fontsize=9)
    axes.set_xlim(-0.2, 1.02)
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelbottom=True)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float, title: str) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NeuronautError(
            "pictures need matplotlib, which is not installed; run: pip install 'neuronaut[plots]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _save(figure: "Figure", path: str | Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise NeuronautError(f"the picture {path} cannot be written: {error}; name a .png, .svg or .pdf") from error


def _array(values: Values, rows: int, columns: int) -> np.ndarray:
    """As floats, with NaN for what is withheld: (row, column)."""
    sizes = {len(row) for row in values}
    if len(values) != rows or sizes != {columns}:
        raise NeuronautError(f"{len(values)} rows of {sorted(sizes)} values do not fill {rows} rows of {columns}")
    return np.array([[np.nan if value is None else value for value in row] for row in values], dtype=float)


def _bounds(intervals: Sequence[Interval | None]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array([(np.nan, np.nan) if interval is None else interval for interval in intervals], dtype=float).T
    return low, high


def _label_ticks(axis: "Axis", labels: Sequence[str], *, rotation: int = 0) -> None:
    """Every label, or every so many where they are too many to read."""
    step = -(-len(labels) // TICKS)
    axis.set_ticks(range(0, len(labels), step), labels[::step], fontsize=7)
    # A token may hold a dollar sign, which is no formula.
    for label in axis.get_ticklabels():
        label.set(rotation=rotation, parse_math=False)


def _write_in(axes: "Axes", grid: np.ndarray, peak: float, texts: Sequence[Sequence[str]] | None) -> None:
    """Cross out what has no value, and write the others, or their texts, in where there is room."""
    for (row, column), value in np.ndenumerate(grid):
        if np.isnan(value):
            axes.text(column, row, "×", ha="center", va="center", fontsize=7, color="#555555")
        elif grid.size <= ANNOTATED:
            colour = "white" if abs(value) > 0.6 * peak else "black"
            # Adding 0.0 takes the sign off a zero.
            text = f"{round(float(value), 2) + 0.0:.2f}" if texts is None else texts[int(row)][int(column)]
            axes.text(column, row, text, ha="center", va="center", fontsize=5.5, color=colour, parse_math=False)
