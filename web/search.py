"""Search over explanations: by words, and by meaning where vectors are stored and the server may compute."""

import threading
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from ..data.store.search import Embedder, semantic_search, stored_models
from ..data.store.store import Store
from ..subject.errors import NeuronautError
from .lookup import find_source
from .pages import Pages, pages, settings, stores
from .settings import Settings
from .stores import Stores

router = APIRouter()
MARKERS = ("\ue000", "\ue001")
"""Around the words that matched; a template turns them into marks."""
_embedders: dict[str, Embedder] = {}
_one_at_a_time = threading.Lock()


@router.get("/search", summary="Search the explanations")
def search(
    request: Request,
    pages: Annotated[Pages, Depends(pages)],
    stores: Annotated[Stores, Depends(stores)],
    settings: Annotated[Settings, Depends(settings)],
    q: str = "",
    by: str = "words",
    source: str = "",
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Response:
    """Find explanations that hold the words of a query ("in quotes": together), or are near it in meaning."""
    with stores.reading() as store:
        known = find_source(store, source)
        models = stored_models(store) if settings.allow_compute else []
        rows: list[dict[str, Any]] = []
        if q.strip():
            if by == "meaning":
                rows = _by_meaning(store, q, models, known, limit)
            else:
                rows = store.search_rows(q, source=known, limit=limit, markers=MARKERS)
        sources = [row["source"] for row in store.sources()]
        opens = _named(store, q.strip())
    if request.query_params.get("format") == "json":
        rows = [{key: _unmarked(value) for key, value in row.items()} for row in rows]
    data = {
        "q": q,
        "by": by,
        "source": known,
        "results": rows,
        "sources": sources,
        "by_meaning": bool(models),
        "opens": opens,
    }
    return pages.answer(request, "search.html", data)


def _named(store: Store, text: str) -> str | None:
    """The feature whose address a query is; None where it is none."""
    if ":" not in text:
        return None
    try:
        return str(store.feature(text))
    except NeuronautError:
        return None


def _by_meaning(store: Store, q: str, models: list[str], source: str | None, limit: int) -> list[dict[str, Any]]:
    if not models:
        raise NeuronautError(
            "search by meaning needs stored vectors and a server that may compute; make the vectors with: neuronaut "
            "search --semantic WORDS, and start the server with --allow-compute"
        )
    with _one_at_a_time:
        embedder = _embedders.setdefault(models[0], Embedder(models[0]))
        return semantic_search(store, q, embedder=embedder, source=source, limit=limit, update=False)


def _unmarked(value: Any) -> Any:
    return value.replace(MARKERS[0], "").replace(MARKERS[1], "") if isinstance(value, str) else value
