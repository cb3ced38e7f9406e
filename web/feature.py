"""The page of a feature, the features that resemble it, and the small page for other people's sites."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from ..data.store.search import Embedder, stored_models
from ..data.store.search import similar as find_similar
from .feature_data import MOST_WINDOWS, WINDOWS, feature_data
from .lookup import find_feature
from .pages import Pages, pages, stores
from .stores import Stores

router = APIRouter()
ThePages = Annotated[Pages, Depends(pages)]
TheStores = Annotated[Stores, Depends(stores)]
SIMILAR = 10
"""Rows of a kind on the page of features that resemble one."""
EMBEDDED = 5
"""Windows on the small page."""


@router.get("/feature/{address:path}", summary="All that is known of a feature")
def feature(
    request: Request,
    address: str,
    pages: ThePages,
    stores: TheStores,
    explanation: int | None = None,
    n: Annotated[int, Query(ge=1, le=MOST_WINDOWS)] = WINDOWS,
) -> Response:
    """Show one feature: the row of `neuronaut show`, every explanation, and windows of every kind."""
    with stores.reading() as store:
        data = feature_data(store, find_feature(store, address), chosen=explanation, count=n)
        source = data["feature"].rpartition(":")[0]
        maps = [row for row in store.maps() if row["source"] == source and row["kind"] != "activations"]
    data |= {"maps": [{name: row[name] for name in ("kind", "method")} for row in maps]}
    return pages.answer(request, "feature.html", data | {"count": n, "most": MOST_WINDOWS})


@router.get("/similar/{address:path}", summary="Features that resemble one")
def similar(request: Request, address: str, pages: ThePages, stores: TheStores) -> Response:
    """List the features that fire on the same windows and, where vectors are stored, those explained alike."""
    with stores.reading() as store:
        chosen, models = find_feature(store, address), stored_models(store)
        embedder = Embedder(models[0]) if models else None
        found = find_similar(store, chosen, embedder=embedder, limit=SIMILAR, update=False)
    data = {"feature": str(chosen), "by_activation": found.by_activation, "by_explanation": found.by_explanation}
    return pages.answer(request, "similar.html", data)


@router.get("/embed/{address:path}", summary="A feature, small, for a frame on another page")
def embed(request: Request, address: str, pages: ThePages, stores: TheStores) -> Response:
    """Show the explanation of a feature and its strongest windows."""
    with stores.reading() as store:
        data = feature_data(store, find_feature(store, address), count=EMBEDDED)
    data["windows"] = [group for group in data["windows"] if group["kind"] == "top"]
    return pages.answer(request, "embed.html", data)
