"""The table of features, and the page of one."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ..labelling.describe import describe
from .lookup import find_feature, find_source
from .pages import Pages, pages, stores
from .stores import Stores

router = APIRouter()


@router.get("/features", summary="A table of features")
def features(
    request: Request,
    pages: Annotated[Pages, Depends(pages)],
    stores: Annotated[Stores, Depends(stores)],
    source: str | None = None,
) -> Response:
    """List features with their explanations and scores."""
    with stores.reading() as store:
        rows = store.list_rows(find_source(store, source), limit=50)
    return pages.answer(request, "features.html", {"features": rows})


@router.get("/feature/{address:path}", summary="All that is known of a feature")
def feature(
    request: Request, address: str, pages: Annotated[Pages, Depends(pages)], stores: Annotated[Stores, Depends(stores)]
) -> Response:
    """Show one feature."""
    with stores.reading() as store:
        row = describe(store, find_feature(store, address))
    return pages.answer(request, "feature.html", row)
