"""The page of maps: what `neuronaut map` stored, drawn with each point's status and score of now."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from ..data.store.maps import KINDS, METHODS, TOKEN_KINDS, Kind, Map, Method
from ..data.store.store import Store
from ..subject.address import Feature, SourceId
from .drawing import STATUS_ORDER
from .features import Status
from .lookup import NotHere, find_feature, find_source
from .pages import Pages, pages, stores
from .stores import Stores

router = APIRouter()
WIDTH, HEIGHT, MARGIN = 960, 560, 14
"""Of the drawing."""
BINS = ("below 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 and above")
NO_SCORE = "no score"
_BACK = ("unlabelled", "dead")
"""Statuses that are drawn below the others."""


@router.get("/map", summary="Features, or tokens, as points in the plane")
def show_map(
    request: Request,
    pages: Annotated[Pages, Depends(pages)],
    stores: Annotated[Stores, Depends(stores)],
    source: str = "",
    of: Kind | None = None,
    method: Method | None = None,
    colour: Literal["status", "score"] = "status",
    status: Status = "",
    feature: str = "",
) -> Response:
    """Show a stored map, of those that fit one of decoders and of most points; where none fits, the command for it."""
    with stores.reading() as store:
        marked = find_feature(store, feature) if feature else None
        known = find_source(store, source) or (None if marked is None else str(marked.source))
        every, sources = store.maps(), [row["source"] for row in store.sources()]
        asked = {"source": known, "kind": of, "method": method}
        order = sorted(every, key=lambda row: (KINDS.index(row["kind"]), -row["n"]))
        chosen = next((row for row in order if all(row[key] == own for key, own in asked.items() if own)), None)
        drawn = None if chosen is None else _read(store, chosen)
        shown = None if drawn is None else _tell(store, drawn, colour=colour, status=status, marked=marked)
    row = chosen or {
        "source": known or next(iter(sources), None),
        "kind": of or KINDS[0],
        "method": method or METHODS[0],
    }
    asked = {"source": row["source"], "of": row["kind"], "method": row["method"], "colour": colour, "status": status}
    data: dict[str, Any] = {
        "maps": every,
        "sources": sources,
        "asked": asked | {"feature": None if marked is None else str(marked)},
        "kinds": KINDS,
        "methods": METHODS,
        "statuses": STATUS_ORDER,
        "map": shown,
    }
    return pages.answer(request, "map.html", data)


def _read(store: Store, row: Mapping[str, Any]) -> Map:
    drawn = store.map(SourceId.parse(row["source"]), row["kind"], row["method"])
    if drawn is None:
        raise NotHere("the map was removed while it was read; load the page again")
    return drawn


class _Group(NamedTuple):
    """Points of one colour."""

    name: str
    css: str
    rows: NDArray[np.int64]
    """Numbers of its points."""


def _tell(store: Store, drawn: Map, *, colour: str, status: str, marked: Feature | None) -> dict[str, Any]:
    """A map with its points as columns, those that are left by the status, and how they are coloured and placed."""
    if drawn.tokens:
        rows = np.arange(len(drawn.members))
        own = [drawn.tokens[number] for number in drawn.members.tolist()]
        columns: dict[str, list[Any]] = {name: [point[i] for point in own] for i, name in enumerate(own[0]._fields)}
        groups = _group_names(columns["kind"], TOKEN_KINDS, "token")
    else:
        labels = store.labels(drawn.source)
        told = [labels[index] for index in drawn.members.tolist()]
        rows = np.array([place for place, row in enumerate(told) if status in ("", row[0])], np.int64)
        told = [told[place] for place in rows.tolist()]
        columns = {"index": drawn.members[rows].tolist()}
        columns |= {name: [row[i] for row in told] for i, name in enumerate(("status", "score", "headline"))}
        if colour == "score":
            groups = _group_names([_bin(score) for score in columns["score"]], (NO_SCORE, *BINS), "score")
        else:
            order = sorted(STATUS_ORDER, key=lambda name: name not in _BACK)
            groups = _group_names(columns["status"], order, "status")
    view = _fit(drawn.places)
    return {
        "source": str(drawn.source),
        "of": drawn.kind,
        "method": drawn.method,
        "created": drawn.created,
        "provenance": drawn.provenance,
        "total": len(drawn.members),
        "points": {**columns, **{axis: _round(drawn.places[rows, i]) for i, axis in enumerate("xy")}},
        "colours": [{"name": name, "css": css, "n": len(own), "points": own.tolist()} for name, css, own in groups],
        "view": view,
        "marked": _find_marked(drawn, rows, marked),
    }


def _group_names(values: Sequence[str], order: Sequence[str], what: str) -> list[_Group]:
    """The points by the name of their colour, in this order, without empty ones."""
    numbers = {name: number for number, name in enumerate(order)}
    own = np.array([numbers[value] for value in values], np.int64)
    groups = [_Group(name, f"{what}-{number}", np.flatnonzero(own == number)) for name, number in numbers.items()]
    return [group for group in groups if len(group.rows)]


def _bin(score: float | None) -> str:
    return NO_SCORE if score is None else BINS[min(max(int(score * len(BINS)), 0), len(BINS) - 1)]


def _fit(places: NDArray[np.float32]) -> dict[str, float]:
    """How coordinates are drawn, both axes alike: left + scale x, top - scale y."""
    low, high = places.min(axis=0).astype(float), places.max(axis=0).astype(float)
    room = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    scale = float((room / np.maximum(high - low, 1e-30)).min())
    middle = (low + high) / 2
    view = {"scale": scale, "left": WIDTH / 2 - scale * middle[0], "top": HEIGHT / 2 + scale * middle[1]}
    return {**{name: float(value) for name, value in view.items()}, "width": WIDTH, "height": HEIGHT}


def _find_marked(drawn: Map, rows: NDArray[np.int64], marked: Feature | None) -> int | None:
    """The number of the point of a feature, among those that are shown."""
    if marked is None or drawn.tokens or marked.source != drawn.source:
        return None
    found = np.flatnonzero(drawn.members[rows] == marked.index)
    return int(found[0]) if len(found) else None


def _round(values: NDArray[np.float32]) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
