"""The first page: what the database holds."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from .pages import Pages, pages, stores
from .stores import Stores

router = APIRouter()


@router.get("/", summary="What the database holds")
def home(
    request: Request, pages: Annotated[Pages, Depends(pages)], stores: Annotated[Stores, Depends(stores)]
) -> Response:
    """Show the sources."""
    with stores.reading() as store:
        sources = [
            {key: row[key] for key in ("source", "kind", "width", "alive", "explained", "corpus", "tokens")}
            for row in store.sources()
        ]
    return pages.answer(request, "home.html", {"sources": sources})
