"""The table of features: filters, sorting, and pages by keyset."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from ..data.store.listing import SORTS, STATUSES, Conditions, Sort
from .lookup import find_feature, find_source
from .pages import Pages, pages, stores
from .stores import Stores

router = APIRouter()
SIZE, LARGEST = 50, 500
"""Rows of a page."""
Status = Literal["", "explained", "weak", "dead", "too_rare", "dense", "no_pattern", "failed", "unlabelled"]
Number = Annotated[str, Query(pattern=r"^$|^-?[0-9.]{1,12}$")]
"""A number, or what an empty field of a form sends."""


@router.get("/features", summary="A table of features")
def features(
    request: Request,
    pages: Annotated[Pages, Depends(pages)],
    stores: Annotated[Stores, Depends(stores)],
    source: str = "",
    status: Status = "",
    min_score: Number = "",
    max_score: Number = "",
    beats_baseline: bool = False,
    sort: Sort = "feature",
    size: Annotated[int, Query(ge=1, le=LARGEST)] = SIZE,
    after: str = "",
) -> Response:
    """List features with their explanations and scores; `after` is the last feature of the page before."""
    conditions: Conditions = {
        "status": status or None,
        "min_score": _number(min_score),
        "max_score": _number(max_score),
        "beats_baseline": beats_baseline,
    }
    with stores.reading() as store:
        known = find_source(store, source)
        last = find_feature(store, after) if after else None
        rows = store.list_rows(known, limit=size + 1, sort=sort, after=last, **conditions)
        sources = [row["source"] for row in store.sources()]
    data: dict[str, Any] = {
        "features": rows[:size],
        "first": last is None,
        "after": rows[size - 1]["feature"] if len(rows) > size else None,
        "asked": {"source": known, "sort": sort, "size": size, **conditions},
        "sources": sources,
        "statuses": STATUSES,
        "sorts": tuple(SORTS),
    }
    return pages.answer(request, "features.html", data)


def _number(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
