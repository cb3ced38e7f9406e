"""What this server may do, and the page that asks for its token."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from .pages import Pages, as_json, pages, settings
from .safety import is_token, let_in, read_form
from .settings import Settings

router = APIRouter()


@router.get("/capabilities", summary="What this server may do")
def capabilities(
    request: Request, pages: Annotated[Pages, Depends(pages)], settings: Annotated[Settings, Depends(settings)]
) -> Response:
    """Tell version, database, what is allowed, the pages there are, and the CSRF token of requests that change."""
    told: dict[str, Any] = {
        "version": version("neuronaut"),
        "database": Path(settings.database).name,
        "compute": settings.allow_compute,
        "write": settings.allow_write,
        "language_model": None if settings.language is None else settings.language.name,
        "token": settings.token is not None,
        "pages": {entry.label.lower(): entry.path for entry in pages.navigation()},
        "csrf": request.app.state.csrf,
    }
    return as_json(told)


@router.get("/enter", summary="The form for the token", include_in_schema=False)
def enter(request: Request, pages: Annotated[Pages, Depends(pages)], to: str = "/") -> Response:
    """Ask for the token."""
    return pages.answer(request, "enter.html", {"to": to, "refused": False})


@router.post("/enter", include_in_schema=False)
def let_in_by_form(
    request: Request,
    pages: Annotated[Pages, Depends(pages)],
    settings: Annotated[Settings, Depends(settings)],
    form: Annotated[Mapping[str, str], Depends(read_form)],
) -> Response:
    """Take the token from the form."""
    if is_token(settings, form.get("token", "")):
        return let_in(settings, form.get("to", "/"))
    return pages.answer(request, "enter.html", {"to": form.get("to", "/"), "refused": True}, status=403)
