"""What visitors may write, where the server allows it: explanations and ratings."""

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse, Response

from ..data.store.people import written
from ..explainers.answer import headline_of
from .lookup import NotHere, find_feature
from .pages import settings, stores
from .safety import Refusal, read_form
from .settings import Settings
from .stores import Stores


def may_write(settings: Annotated[Settings, Depends(settings)]) -> None:
    """Refuse where the server was not started with --allow-write."""
    if not settings.allow_write:
        raise Refusal(403, "this server only reads; start it with --allow-write")


router = APIRouter(dependencies=[Depends(may_write)])
Form = Annotated[Mapping[str, str], Depends(read_form)]
TheStores = Annotated[Stores, Depends(stores)]


@router.post("/explanations", summary="Add an explanation by a person")
def add_explanation(form: Form, stores: TheStores) -> Response:
    """Store a person's explanation; fields of the form: `feature`, `text`, `author`, and `edits`, the id it is from."""
    text = form.get("text", "").strip()
    edits = form.get("edits", "")
    with stores.writing() as store:
        feature = find_feature(store, form.get("feature", ""))
        id = store.add_explanation(
            written(
                feature,
                text,
                author=form.get("author", ""),
                headline=headline_of(text),
                edits=int(edits) if edits.isdecimal() else None,
            )
        )
    return _back_to(str(feature), id)


@router.post("/explanations/{id}/rating", summary="Rate an explanation")
def rate(id: int, form: Form, stores: TheStores) -> Response:
    """Store a rating; fields of the form: `rating`, from 1 to 5, and `author`, whose earlier one it replaces."""
    rating = form.get("rating", "")
    with stores.writing() as store:
        stored = store.explanation(id)
        if stored is None:
            raise NotHere(f"there is no explanation {id}; the page of a feature lists its own")
        store.rate(id, int(rating) if rating.isdecimal() else 0, author=form.get("author", ""))
    return _back_to(str(stored.explanation.feature), id)


def _back_to(feature: str, id: int) -> Response:
    return RedirectResponse(f"/feature/{quote(feature, safe='/:@')}?explanation={id}#history", 303)
