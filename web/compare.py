"""Two features, two explanations of one, or two sources, side by side."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ..data.store.store import Store
from ..data.store.summary import separation
from ..subject.address import Feature
from ..subject.errors import NeuronautError
from .feature_data import feature_data
from .home import overview_data
from .lookup import find_feature, find_source
from .pages import Pages, pages, stores
from .stores import Stores

router = APIRouter()
WINDOWS = 6
"""Windows of a kind on each side."""


@router.get("/compare", summary="Two features, explanations or sources, side by side")
def compare(
    request: Request,
    pages: Annotated[Pages, Depends(pages)],
    stores: Annotated[Stores, Depends(stores)],
    a: str = "",
    b: str = "",
    explanation_a: int | None = None,
    explanation_b: int | None = None,
) -> Response:
    """Lay two features (each with the explanation of an id, or its best), or two sources, beside each other."""
    with stores.reading() as store:
        data: dict[str, Any] = {"a": a, "b": b, "sources": [row["source"] for row in store.sources()], "sides": []}
        if a.strip() and b.strip():
            kinds = {_is_feature(text) for text in (a, b)}
            if len(kinds) > 1:
                raise NeuronautError(f"{a} and {b} are a feature and a source; wanted two of one kind")
            chosen = ((a, explanation_a), (b, explanation_b))
            data |= _features(store, chosen) if kinds == {True} else _sources(store, a, b)
    return pages.answer(request, "compare.html", data)


def _is_feature(text: str) -> bool:
    try:
        Feature.parse(text.strip())
    except NeuronautError:
        return False
    return True


def _features(store: Store, chosen: tuple[tuple[str, int | None], ...]) -> dict[str, Any]:
    sides = [feature_data(store, find_feature(store, text.strip()), chosen=id, count=WINDOWS) for text, id in chosen]
    shared = {w["window"] for w in _top(sides[0])} & {w["window"] for w in _top(sides[1])}
    return {"kind": "features", "sides": sides, "scores": _pair_scores(sides), "shared": sorted(shared)}


def _pair_scores(sides: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The scores of both explanations by scorer, examples, metric and judge; None where one was not judged so."""
    names = ("scorer", "examples", "metric", "judge")
    by_key = [
        {tuple(score[name] for name in names): score for score in (side["shown"]["scores"] if side["shown"] else [])}
        for side in sides
    ]
    keys = dict.fromkeys(key for own in by_key for key in own)
    return [dict(zip(names, key, strict=True)) | {"pair": [own.get(key) for own in by_key]} for key in keys]


def _top(side: dict[str, Any]) -> list[dict[str, Any]]:
    return [window for group in side["windows"] if group["kind"] == "top" for window in group["windows"]]


def _sources(store: Store, a: str, b: str) -> dict[str, Any]:
    sides = [overview_data(store, find_source(store, text.strip())) for text in (a, b)]
    scores = [{(own["scorer"], own["metric"]): own for own in side["scores"]} for side in sides]
    both = [
        {
            "scorer": kind[0],
            "metric": kind[1],
            "values": [own[kind]["values"] for own in scores],
            "auroc": _auroc(*(own[kind]["values"] for own in scores)),
        }
        for kind in scores[0]
        if kind in scores[1]
    ]
    return {"kind": "sources", "sides": sides, "both": both}


def _auroc(first: list[float], second: list[float]) -> dict[str, Any] | None:
    """The chance that a feature of the first source scores above one of the second."""
    found = separation(first, second)
    return None if found is None else found._asdict()
