"""What a language model may call at one step: every experiment as a tool, and the other actions beside them."""

from collections.abc import Callable, Mapping, Sequence
from inspect import cleandoc
from typing import Any, get_args

from ...explainers.llm.values import ToolSpec
from ..investigation.experiments import Tool
from ..investigation.levels import Level
from ..investigation.view import View

ENDS = ("open", "no_explanation")
"""What may be submitted beside a hypothesis."""


def offered(view: View, actions: Sequence[str], tools: Mapping[str, Tool[Any]]) -> tuple[ToolSpec, ...]:
    """The tools, and the other actions that are open."""
    others = [_OTHERS[action](view) for action in actions if action in _OTHERS]
    return (*(_experiment(tool, view) for tool in tools.values()), *others)


def described(view: View) -> list[str]:
    """Live rivals that are words only, so that whoever plans an experiment says what they predict."""
    return [r.name for r in view.rivals if r.status == "live" and r.hypothesis.kind == "described"]


def answers(view: View) -> list[str]:
    """What may be submitted."""
    return [*(rival.name for rival in view.rivals if rival.status == "live"), *ENDS]


def _experiment(tool: Tool[Any], view: View) -> ToolSpec:
    schema = _plain(tool.args.model_json_schema())
    properties = {**schema.get("properties", {}), "purpose": _text("why, in a few words")}
    if "windows" in properties:
        properties["windows"] = {**properties["windows"], "description": "w1, w2, ... as shown; none: the tool chooses"}
    required = [*schema.get("required", ()), "purpose"]
    if (names := described(view)) and not tool.survey:
        level = {"type": "string", "enum": list(get_args(Level))}
        properties["expects"] = {
            **_object(dict.fromkeys(names, level), names),
            "description": "the level that each hypothesis without a rule predicts",
        }
        required.append("expects")
    about = " ".join(cleandoc(type(tool).__doc__ or tool.name).split())
    said = {key: value for key, value in schema.items() if key != "description"}
    return ToolSpec(
        tool.name, f"Survey. {about}" if tool.survey else about,
        {**said, "type": "object", "properties": properties, "required": required},
    )  # fmt: skip


def _propose(view: View) -> ToolSpec:
    texts = {"type": "array", "items": {"type": "string"}}
    properties: dict[str, Any] = {"text": _text('the claim in a sentence or two that stand alone: not "as H3, but"')}
    if view.kind == "behaviour":
        properties["nodes"] = {"type": "object", "additionalProperties": {"type": "number"}}
    else:
        properties["rule"] = {"type": "object", "description": "in the rule language, with values from 0 to 10"}
        properties |= dict.fromkeys(("promotes", "suppresses", "reads"), texts)
    properties["parent"] = _text("name of the rival that this one revises, if any")
    claim = _object(properties, ["text", "nodes"] if view.kind == "behaviour" else ["text"])
    return ToolSpec(
        "propose", "Put up rival hypotheses.",
        _object({"hypotheses": {"type": "array", "items": claim}}, ["hypotheses"]),
    )  # fmt: skip


def _submit(view: View) -> ToolSpec:
    answer = {"type": "string", "enum": answers(view)}
    return ToolSpec(
        "submit", "End the search: name the hypothesis that stands, or say that none does.",
        _object({"answer": answer, "reason": _text("why, in a sentence")}, ["answer", "reason"]),
    )  # fmt: skip


def _concede(_: View) -> ToolSpec:
    return ToolSpec(
        "concede", "End the challenge: no experiment that could break the claim is left.",
        _object({"reason": _text("why, in a sentence")}, ["reason"]),
    )  # fmt: skip


_OTHERS: Mapping[str, Callable[[View], ToolSpec]] = {"propose": _propose, "submit": _submit, "concede": _concede}


def _text(description: str) -> dict[str, str]:
    return {"type": "string", "description": description}


def _object(properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(required), "additionalProperties": False}


def _plain(schema: Any) -> Any:
    """A schema without the titles that pydantic gives to everything."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    named = ("properties", "$defs")
    return {
        key: {name: _plain(part) for name, part in value.items()} if key in named else _plain(value)
        for key, value in schema.items()
        if key != "title"
    }
