"""A map as one picture, whatever its number of points: a path for each colour, each point a line of no length."""

from collections.abc import Mapping
from typing import Any

from ..agent.report.drawing import svg
from ..agent.report.markup import Html, el

_SIZES = ((300, 8.0), (3000, 5.0), (20_000, 3.0))
"""Up to so many points, how thick they are."""
_SMALLEST = 2.0


def map_picture(drawn: Mapping[str, Any]) -> Html:
    """The picture of a map as the page's JSON tells it."""
    view, points, total = drawn["view"], drawn["points"], drawn["total"]
    across = [f"{view['left'] + view['scale'] * x:.1f}" for x in points["x"]]
    down = [f"{view['top'] - view['scale'] * y:.1f}" for y in points["y"]]
    size = next((size for most, size in _SIZES if total <= most), _SMALLEST)
    paths = [
        el("path", d="".join(f"M{across[n]} {down[n]}h0" for n in group["points"]), class_=group["css"])
        for group in drawn["colours"]
    ]
    marks = []
    if (own := drawn["marked"]) is not None:
        ring = el("circle", cx=across[own], cy=down[own], r=9, class_="marked")
        marks.append(el("g", el("title", f"{drawn['source']}:{points['index'][own]}"), ring))
    counted = ", ".join(f"{group['n']:,} {group['name'].replace('_', ' ')}" for group in drawn["colours"])
    label = f"Map of {drawn['of']} by {drawn['method'].upper()}: {counted or 'no points'}"
    dots = el("g", *paths, stroke_width=size)
    return svg(view["width"], view["height"], label, dots, *marks, class_="plot dots")
