"""Pages of interventions: an edit swept over a grid, a circuit whose nodes can be cut, and doses of steering."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .compute import answer_page
from .operations.arguments import LONGEST_TEXT
from .operations.running import Metric
from .pages import Pages, pages, stores, wants_json
from .stores import Stores

router = APIRouter()

TASKS = ("induction", "brackets", "variable", "ioi")
SWEEPS: Mapping[str, tuple[str, str]] = {
    "Heads at the last token": ("head=patch@last", "layers,units"),
    "Heads at all tokens": ("head=patch", "layers,units"),
    "Residual stream by token": ("resid_post=patch", "layers,positions"),
    "Attention by token": ("attn_out=patch", "layers,positions"),
    "MLPs by token": ("mlp_out=patch", "layers,positions"),
}
"""By name, an edit and what it is repeated over."""
AXES = ("layers,units", "layers,positions", "units,positions", "layers", "units", "positions")
"""What a table of two sides can show."""
STRENGTHS = "-4,-2,-1,-0.5,0,0.5,1,2,4"
LONGEST_PAIRS = 20_000
"""Characters of pairs in an address."""


MAYBE_EMPTY = BeforeValidator(lambda text: None if text == "" else text)
"""Of what a form may leave empty."""


class _Query(BaseModel):
    """What an address asks for; what is empty is left to the operation."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    model: Annotated[str, Field(max_length=300)] = ""

    def given(self, *names: str) -> dict[str, Any]:
        """These values, without those that are empty."""
        return {name: value for name in names if (value := getattr(self, name)) not in ("", None, [])}


class PairsQuery(_Query):
    """Pairs of prompts, in one of three ways."""

    task: Annotated[str, Field(max_length=40)] = ""
    rows: Annotated[Annotated[int, Field(ge=1, le=64)] | None, MAYBE_EMPTY] = None
    clean: Annotated[str, Field(max_length=LONGEST_TEXT)] = ""
    corrupted: Annotated[str, Field(max_length=LONGEST_TEXT)] = ""
    answer: Annotated[str, Field(max_length=200)] = ""
    wrong: Annotated[str, Field(max_length=200)] = ""
    pairs: Annotated[str, Field(max_length=LONGEST_PAIRS)] = ""
    metric: Metric = "logit_difference"
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0

    @property
    def asked(self) -> bool:
        """Whether there is anything to compute on."""
        return bool(self.task or self.clean or self.pairs)

    def arguments(self) -> dict[str, Any]:
        """The arguments that operations on pairs share; a 400 where lines of pairs are no JSON."""
        texts = () if self.task or self.pairs else ("clean", "corrupted", "answer", "wrong")
        drawn = ("task", "rows") if self.task else ()
        given = self.given(*drawn, *texts, "model") | {"metric": self.metric, "seed": self.seed}
        return given | ({"pairs": _read_lines(self.pairs)} if self.pairs and not self.task else {})


def _read_lines(text: str) -> list[Any]:
    """The objects of JSON lines, which the operation checks."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            example = '{"clean": "x = [1, 2", "corrupted": "x = (1, 2", "answer": "]", "wrong": ")"}'
            raise HTTPException(400, f"line {number} of the pairs is no JSON ({error}); wanted {example}") from error
    return rows


class SweepQuery(PairsQuery):
    """A sweep over pairs."""

    edit: Annotated[str, Field(max_length=500)] = "head=patch@last"
    over: Literal["layers,units", "layers,positions", "units,positions", "layers", "units", "positions"] = (
        "layers,units"
    )


class CircuitQuery(PairsQuery):
    """A search for a circuit."""

    nodes: Annotated[str, Field(max_length=1000)] = "head mlp"
    given_nodes: Annotated[str, Field(max_length=4000, alias="given")] = ""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.9
    ablation: Literal["corrupted", "mean", "zero"] = "corrupted"
    controls: Annotated[Annotated[int, Field(ge=0, le=200)] | None, MAYBE_EMPTY] = None
    roles: Literal["yes", "no"] = "yes"


class DoseQuery(_Query):
    """An edit at several strengths."""

    prompt: Annotated[str, Field(max_length=LONGEST_TEXT)] = ""
    edit: Annotated[str, Field(max_length=500)] = ""
    strengths: Annotated[str, Field(max_length=300)] = STRENGTHS
    answer: Annotated[str, Field(max_length=200)] = ""
    wrong: Annotated[str, Field(max_length=200)] = ""
    metric: Annotated[list[Metric], Field(max_length=6)] = ["log_probability", "kl"]
    tokens: Annotated[int, Field(ge=0, le=64)] = 12
    controls: Annotated[int, Field(ge=0, le=50)] = 10
    text_rows: Annotated[int, Field(ge=1, le=64)] = 8

    @property
    def asked(self) -> bool:
        """Whether there is anything to compute on."""
        return bool(self.prompt and self.edit)


def _read_numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise HTTPException(400, f"strengths {text[:80]!r} are no numbers; wanted for example -1,0,1,2") from None


PagesOf = Annotated[Pages, Depends(pages)]
StoresOf = Annotated[Stores, Depends(stores)]


@router.get("/causal/sweep", summary="An edit at every layer, head or token, on pairs of prompts")
async def sweep(request: Request, pages: PagesOf, stores: StoresOf, query: Annotated[SweepQuery, Query()]) -> Response:
    """Show a sweep; with `format=json` the rows that `neuronaut sweep` prints with --json."""
    arguments = query.arguments() | {"edits": query.edit.split(), "over": query.over.split(",")}
    more = {"presets": SWEEPS, "axes": AXES, "tasks": TASKS}
    return await _answer(request, pages, stores, "sweep", arguments, query=query, more=more)


@router.get("/causal/circuit", summary="The parts that do a task, and what is left without some of them")
async def circuit(
    request: Request, pages: PagesOf, stores: StoresOf, query: Annotated[CircuitQuery, Query()]
) -> Response:
    """Show a circuit; with `format=json` what `neuronaut circuit` prints with --json."""
    arguments = query.arguments() | query.given("threshold", "ablation", "controls")
    arguments |= {"nodes": query.nodes.split(), "given": query.given_nodes.split(), "roles": query.roles == "yes"}
    return await _answer(request, pages, stores, "circuit", arguments, query=query, more={"tasks": TASKS})


@router.get("/causal/dose", summary="An edit at several strengths: what the answer does, and what it costs elsewhere")
async def dose(request: Request, pages: PagesOf, stores: StoresOf, query: Annotated[DoseQuery, Query()]) -> Response:
    """Show dose and response; with `format=json` the rows of `neuronaut steer --json`, metric by metric."""
    feature = query.edit.removesuffix("-")
    with stores.reading() as store:
        named = feature.partition(":")[0] in store.models()
    arguments = query.given("answer", "wrong", "model") | {
        "prompts": [query.prompt],
        "edit": feature if "=" in feature else f"{feature}+=1q",
        "strengths": _read_numbers(query.strengths),
        "metrics": query.metric,
        "tokens": query.tokens,
        "controls": query.controls,
        "text_rows": query.text_rows,
    }
    if named and not query.model:
        arguments["model"] = feature.partition(":")[0]
    return await _answer(request, pages, stores, "steer", arguments, query=query, more={})


async def _answer(
    request: Request,
    pages: Pages,
    stores: Stores,
    operation: str,
    arguments: Mapping[str, Any],
    *,
    query: PairsQuery | DoseQuery,
    more: Mapping[str, Any],
) -> Response:
    if wants_json(request) and query.asked:
        return await answer_page(request, operation, arguments)
    with stores.reading() as store:
        models = store.models()
    view = request.url.path.rpartition("/")[2]
    data = {"view": view, "models": models, "query": query.model_dump(), "asked": query.asked}
    return pages.answer(request, f"{view}.html", data | dict(more) | {"operation": operation, "arguments": arguments})
