"""HTML elements as values: what is not made by `el` is escaped, so that no text of a corpus or a model is markup."""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from .citations import PARTS, runs, visible

PLOTS_CSS = Path(__file__).with_name("plots.css")
"""The style sheet of plots and shaded text."""


class Html(str):
    """Markup that needs no escaping: what `el` and `join` make, and the style sheet."""

    __slots__ = ()

    def __html__(self) -> str:
        """Itself: template engines ask for this before they escape."""
        return self


Part = Html | str | float | None
TICKED = re.compile("`([^`]*)`")
"""Splits a description into what stands outside of backticks and within, in turns."""

_VOID = ("meta", "line", "rect", "circle", "path", "polyline", "polygon")


def el(tag: str, *parts: Part, **attributes: str | float | None) -> Html:
    """An element. Text in it is escaped, None is left out; `class_` is the attribute class, `aria_label` aria-label."""
    present = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None)
    markup = "".join(f' {name}="{escape(_as_text(value))}"' for name, value in present)
    if tag in _VOID:
        return Html(f"<{tag}{markup}/>")
    return Html(f"<{tag}{markup}>{join(parts)}</{tag}>")


def join(parts: Iterable[Part]) -> Html:
    """Parts one after the other."""
    return Html(
        "".join(part if isinstance(part, Html) else escape(_as_text(part)) for part in parts if part is not None)
    )


def described(text: str) -> Html:
    """A description on one line, the tokens that stand in backticks as code."""
    pieces = TICKED.split(visible(text))
    return join(el("code", piece) if place % 2 else piece for place, piece in enumerate(pieces))


def _as_text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def cites(sources: Iterable[str]) -> Html:
    """Where a number or a quote comes from, as links to its place on the page."""
    links = (el("a", name, href=f"#{_place(name)}") for name in runs(sources))
    return el("sup", *links, class_="cite")


def _place(name: str) -> str:
    return name if name in PARTS else name.partition("-")[0]


def table(header: Sequence[Part], rows: Iterable[Sequence[Part]], *, class_: str | None = None) -> Html:
    """A table that scrolls sideways where it is too wide."""
    body = [el("tr", *(el("td", cell) for cell in row)) for row in rows]
    head = el("thead", el("tr", *(el("th", cell) for cell in header)))
    return el("div", el("table", head, el("tbody", *body), class_=class_), class_="wide")


def section(name: str, title: str, *parts: Part, note: str | None = None) -> Html:
    """A part of the page that can be linked to."""
    return el("section", el("h2", title), note and el("p", note, class_="note"), *parts, id=name)


def folded(title: str, value: object) -> Html:
    """JSON that opens."""
    return el("details", el("summary", title), el("div", el("pre", json.dumps(value, ensure_ascii=False, indent=1))))


def window(tokens: Sequence[str], activations: Sequence[float], *, peak: float) -> Html:
    """Text whose tokens have a background as strong as their activation."""
    spans = []
    for token, activation in zip(tokens, activations, strict=True):
        heat = heat_class(activation, peak=peak)
        spans.append(el("span", visible(token), class_=heat, title=f"{activation:.3g}" if heat else None))
    return el("div", *spans, class_="window")


HEATS = 20
"""Shades that a style sheet has for activations, h1 to h20."""


def heat_class(activation: float, *, peak: float) -> str | None:
    """The class of a shade as strong as an activation; None where it is hardly above zero."""
    share = min(1.0, max(0.0, activation / peak)) if peak > 0 else 0.0
    return f"h{round(HEATS * share)}" if round(HEATS * share) else None
