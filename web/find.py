"""The page of `find`: which features fire on a text, or differ between two, and on which tokens."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from .compute import answer_page
from .operations.arguments import LONGEST_TEXT
from .pages import Pages, pages, stores, wants_json
from .stores import Stores

router = APIRouter()


@router.get("/find", summary="Which features fire on a text")
async def find(
    request: Request,
    pages: Annotated[Pages, Depends(pages)],
    stores: Annotated[Stores, Depends(stores)],
    text: Annotated[str, Query(max_length=LONGEST_TEXT)] = "",
    against: Annotated[str, Query(max_length=LONGEST_TEXT)] = "",
    model: Annotated[str, Query(max_length=300)] = "",
    token: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Show the features that fire on `text`, or on one `token` of it, or differ most between it and `against`.

    With `format=json` the rows of `neuronaut find --json`.
    """
    given = {"text": text, "against": against, "model": model, "token": token}
    if wants_json(request) and text:
        return await answer_page(request, "find", {name: value for name, value in given.items() if value})
    with stores.reading() as store:
        models = store.models()
    return pages.answer(request, "find.html", {**given, "models": models})
