"""The causal page: what the commands lens, attribute, heads and run find out about a prompt, as tables and pictures."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import Response

from .compute import answer_page
from .operations.arguments import LONGEST_TEXT
from .pages import Pages, pages, stores, wants_json
from .stores import Stores

router = APIRouter()

VIEWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lens": ("A prediction takes shape: the logit lens at every layer and token", {"positions": "all", "top": 5}),
    "attribute": ("What wrote the answer's logit: direct logit attribution", {"top": 30}),
    "inputs": ("Which tokens of the prompt the answer rests on", {"inputs": "integrated"}),
    "attention": ("Where a head attends", {"whole": True}),
    "heads": ("Heads by where they attend on the prompt", {"top": 8}),
    "run": ("What the model says next, before and after an edit", {"top": 10}),
}
"""By name: what is shown, and the arguments of its operation that are always the same."""
_OPERATIONS = {"inputs": "attribute"}
"""Operations that are not called as the view is."""


@router.get("/causal", summary="What a prompt does in the model")
async def causal(
    request: Request,
    pages: Annotated[Pages, Depends(pages)],
    stores: Annotated[Stores, Depends(stores)],
    view: str = "lens",
    prompt: Annotated[str, Query(max_length=LONGEST_TEXT)] = "",
    answer: Annotated[str, Query(max_length=200)] = "",
    wrong: Annotated[str, Query(max_length=200)] = "",
    head: Annotated[str, Query(max_length=30)] = "head.0:0",
    edit: Annotated[str, Query(max_length=500)] = "",
    split: Annotated[str, Query(max_length=200)] = "",
    model: Annotated[str, Query(max_length=300)] = "",
) -> Response:
    """Show a view of a prompt; with `format=json` the rows that the command of that name prints with --json."""
    if view not in VIEWS:
        raise HTTPException(400, f"there is no view {view[:40]!r}; wanted one of {', '.join(VIEWS)}")
    given = {"answer": answer, "wrong": wrong, "head": head, "edit": edit, "split": split, "model": model}
    operation, arguments = read_view(view, prompt, given)
    if wants_json(request) and prompt:
        return await answer_page(request, operation, arguments)
    with stores.reading() as store:
        models = store.models()
    data = {"view": view, "views": {name: title for name, (title, _) in VIEWS.items()}, "prompt": prompt, **given}
    asked = {"operation": operation, "arguments": arguments, "models": models}
    return pages.answer(request, "causal.html", data | asked)


def read_view(view: str, prompt: str, given: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The operation of a view and its arguments, without those that are empty."""
    arguments: dict[str, Any] = dict(VIEWS[view][1])
    if view == "attention":
        arguments |= {"prompt": prompt, "head": given["head"]}
    else:
        arguments["prompts"] = [prompt]
    if view in ("attribute", "inputs", "run"):
        arguments |= {name: given[name] for name in ("answer", "wrong") if given[name]}
    if view == "lens" and given["answer"]:
        arguments["target"] = given["answer"]
    if view == "attribute" and given["split"]:
        arguments["split"] = given["split"].split()
    if view == "run" and given["edit"]:
        arguments["edits"] = given["edit"].split()
    if given["model"]:
        arguments["model"] = given["model"]
    return _OPERATIONS.get(view, view), arguments
