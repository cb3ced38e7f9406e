"""The server's application: routers, pages, stores and the guard around them.

A part of the explorer is a router in a module of its own, named in ROUTERS; its entry in the navigation appears
with its page.
"""

import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ..agent.report.markup import PLOTS_CSS
from ..subject.errors import NeuronautError
from . import (
    about,
    causal,
    compare,
    compute,
    feature,
    features,
    find,
    home,
    interventions,
    investigations,
    maps,
    search,
    writing,
)
from .lookup import NotHere
from .pages import HERE, Pages
from .safety import Guard, check_csrf, new_csrf
from .settings import Settings
from .spending import Allowance, read_spent
from .stores import Stores

ROUTERS: tuple[APIRouter, ...] = (
    about.router,
    home.router,
    features.router,
    feature.router,
    search.router,
    maps.router,
    compare.router,
    writing.router,
    compute.router,
    find.router,
    causal.router,
    interventions.router,
    investigations.router,
)
"""In the order in which a request is held against them."""


def create_app(settings: Settings) -> FastAPI:
    """Make the explorer of a database; an error where there is none."""
    stores = Stores(settings.database)
    with stores.reading() as store:
        language = settings.language
        allowance = None if language is None else Allowance(language, read_spent(store))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        threading.Thread(target=_read_ahead, args=(stores,), daemon=True, name="home").start()
        yield
        if app.state.compute is not None:
            app.state.compute.close()
        stores.close()

    app = FastAPI(
        title="Neuronaut",
        version=version("neuronaut"),
        description="Every page answers `?format=json`. A request that changes something wants the header "
        "`X-CSRF-Token`, whose value `/capabilities` gives.",
        dependencies=[Depends(check_csrf)],
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.settings, app.state.stores, app.state.csrf = settings, stores, new_csrf()
    app.state.stopping = lambda: False
    app.state.compute = compute.Compute(settings, allowance) if settings.allow_compute else None
    app.state.pages = Pages(app, settings, csrf=app.state.csrf)
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/static/plots.css", lambda: FileResponse(PLOTS_CSS), include_in_schema=False)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_exception_handler(NeuronautError, _tell_error)
    app.add_exception_handler(HTTPException, _tell_http_error)
    app.add_exception_handler(RequestValidationError, _tell_wrong_values)
    app.add_middleware(Guard, settings=settings)
    return app


def _read_ahead(stores: Stores) -> None:
    """Read what the first page shows before it is asked for; what is wrong with it is told to who asks."""
    with suppress(NeuronautError):
        home.read_home(stores)


async def _tell_error(request: Request, error: Exception) -> Response:
    """Show what a user can mend as a page; what is not in the database is a 404."""
    return _show(request, 404 if isinstance(error, NotHere) else 400, str(error))


async def _tell_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _show(request, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _tell_wrong_values(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = (f"{_name_of(part['loc'])}: came {part.get('input')!a:.80}; {part['msg']}" for part in error.errors())
    return _show(request, 422, "; ".join(wrong))


def _name_of(place: Sequence[int | str]) -> str:
    """The name of a value, also where it is one of several."""
    return next((part for part in reversed(place) if isinstance(part, str)), "the request")


def _show(request: Request, status: int, message: str) -> Response:
    pages: Pages = request.app.state.pages
    return pages.answer(request, "error.html", {"status": status, "error": message}, status=status)
