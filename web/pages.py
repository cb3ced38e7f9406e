"""Every page is one dictionary, shown as HTML or, with `?format=json`, as it is.

A template sees the dictionary's values and nothing else of the store, so both forms tell the same. Whatever a
template prints is escaped, and what does not print is spelled out, by the environment itself: a template cannot
forget to.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.routing import Match

from . import drawing, drawing_maps
from .settings import Settings
from .stores import Stores
from .text import FILTERS as TEXT_FILTERS
from .text import shown

HERE = Path(__file__).parent

NAVIGATION: Mapping[str, tuple[str, str]] = {
    "/": ("Home", "h"),
    "/features": ("Features", "f"),
    "/search": ("Search", "s"),
    "/find": ("Find", "d"),
    "/map": ("Map", "m"),
    "/investigations": ("Investigations", "i"),
    "/compare": ("Compare", "c"),
    "/causal": ("Causal", "u"),
}
"""Entries by path, with the key that goes there after `g`; one is shown where the server has its page."""


FILTERS = {
    **TEXT_FILTERS,
    "address": lambda text: quote(text, safe="/:@"),
    "query": lambda text: quote(str(text), safe=""),
}
DRAWINGS = {
    function.__name__: function
    for function in (
        drawing.activation_histogram,
        drawing.counts_by_value,
        drawing.density_by_score,
        drawing.distributions,
        drawing.rule_curve,
        drawing.score_line,
        drawing.shaded,
        drawing.status_bar,
        drawing_maps.map_picture,
    )
} | {"ROLE_NAMES": drawing.ROLE_NAMES, "STATUS_ORDER": drawing.STATUS_ORDER}


class Entry(NamedTuple):
    """An entry of the navigation."""

    path: str
    label: str
    key: str


class Pages:
    """Answers requests with pages."""

    def __init__(self, app: FastAPI, settings: Settings, *, csrf: str) -> None:
        self._app, self._settings, self._csrf = app, settings, csrf
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=shown,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)
        self._templates.globals.update(DRAWINGS)

    def navigation(self) -> list[Entry]:
        """The entries whose pages there are."""
        return [Entry(path, *named) for path, named in NAVIGATION.items() if self._has(path)]

    def _has(self, path: str) -> bool:
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
        return any(route.matches(scope)[0] is Match.FULL for route in self._app.routes)

    def answer(self, request: Request, template: str, data: Mapping[str, Any], *, status: int = 200) -> Response:
        """The page of some data, as HTML, or as JSON where `format=json` asks for it."""
        if wants_json(request):
            return as_json(data, status=status)
        base = {
            "request_path": request.url.path,
            "navigation": self.navigation(),
            "settings": self._settings,
            "database": Path(self._settings.database).name,
            "csrf": self._csrf,
            "base_url": str(request.base_url),
        }
        return HTMLResponse(self._templates.get_template(template).render(**base, **data), status)


def wants_json(request: Request) -> bool:
    """Whether a request asks for JSON, as those do that are not for pages."""
    return request.query_params.get("format") == "json" or request.url.path.startswith(("/compute/", "/jobs/"))


def as_json(data: Any, *, status: int = 200) -> Response:
    """Data as JSON, in which no number is NaN or infinite."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, default=_plain)
    return Response(text, status, media_type="application/json")


def _plain(value: Any) -> Any:
    return value.tolist()


def pages(request: Request) -> Pages:
    """The server's pages, for `Depends`."""
    return request.app.state.pages


def stores(request: Request) -> Stores:
    """The server's stores, for `Depends`."""
    return request.app.state.stores


def settings(request: Request) -> Settings:
    """The server's settings, for `Depends`."""
    return request.app.state.settings
