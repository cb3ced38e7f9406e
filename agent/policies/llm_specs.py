"""Tools as a language model is told of them: a line each, and the whole on request.

The line has the arguments with their defaults and a few words. What the arguments mean, what they may be, and the rest
is the answer to `help`, which also comes with a faulty call. All tools are called through one, `run`, since a schema
for each would take most of a prompt; and nothing here depends on what is known so far, so that a prompt's beginning
stays the same: names of rivals and the like are checked when they come.
"""

import json
import re
from collections.abc import Mapping, Sequence
from inspect import cleandoc
from typing import Any

from ...llm.types import ToolSpec
from ..loop.experiments import AnyTool

RUN, HELP = "run", "help"
MEANINGS: Mapping[str, str] = {
    "windows": "w1, w2, ... as shown; none: the tool chooses",
    "purpose": "why, in a few words, for the report",
    "expects": 'by hypothesis without a rule, the level that it predicts: {"H5": "silent"}',
}
_FREE: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": True}
_LINE: Mapping[str, Any] = {"type": "string"}
_SHARED = ("windows", "about", "expect", "seed", "draw")
"""Arguments that many tools take alike; the prompt says once what they are."""


def action_specs(kind: str, actions: Sequence[str]) -> tuple[ToolSpec, ...]:
    """What may be called in this phase: experiments through `run`, and the other actions that are open."""
    claim = '"nodes": {}'
    if kind == "feature":
        claim = '"rule": {} or "o1" (its learned rule), "promotes": [], "suppresses": [], "reads": []'
    ends = {"reason": _LINE}
    specs = {
        "use_tools": ToolSpec(
            RUN,
            "Run one tool; several calls in a reply are one plan.",
            _object({"tool": _LINE, "args": _FREE, "purpose": _LINE, "expects": _FREE}, "tool"),
        ),
        "propose": ToolSpec(
            "propose",
            f'Put up rivals, each as {{"text": "a sentence or two that stand alone", {claim}, "parent": "H3"}}; what '
            "does not apply is left out.",
            _object({"hypotheses": _list(_FREE)}, "hypotheses"),
        ),
        "submit": ToolSpec(
            "submit",
            "End the search: name the hypothesis that stands, or say open or no_explanation.",
            _object({"answer": _LINE, **ends}, "answer"),
        ),
        "concede": ToolSpec(
            "concede", "End the challenge: the claim is broken, or nothing is left that could break it.", _object(ends)
        ),
    }
    about = (
        "Free, twice a decision, alone: more of one tool (its name), result (o3), hypothesis (H3), or of rules (rule)."
    )
    asking = ToolSpec(HELP, about, _object({"about": _list(_LINE)}, "about"))
    return (*(specs[action] for action in actions if action in specs), asking)


def tool_line(tool: AnyTool) -> str:
    """Name, arguments with their defaults (of choices with all, the default first), and a few words."""
    own = [f"{name}={_default(part)}" for name, part in _properties(tool).items() if name not in _SHARED]
    shared = [name for name in ("windows", "about", "expect") if name in _properties(tool)]
    # To the first stop or colon; three dots are none.
    few = re.split(r"(?<!\.)[.:](?:\s|$)", _about(tool))[0]
    return f"- {tool.name}({', '.join([*own, *shared])}): {few}"


def tool_help(tool: AnyTool) -> str:
    """All there is to know of a tool: what it does, and a line for each argument."""
    common = [f"{key}: {MEANINGS[key]}" for key in ("purpose", "expects")[: 2 - tool.survey]]
    own = [f"{key}={_default(part)}: {_meaning(key, part)}" for key, part in _properties(tool).items()]
    kind = "Survey. " if tool.survey else ""
    return "\n".join([f"{tool.name}: {kind}{_about(tool)}", *(f"- {text}" for text in (*own, *common))])


def _about(tool: AnyTool) -> str:
    return " ".join(cleandoc(type(tool).__doc__ or tool.name).split())


def _properties(tool: AnyTool) -> Mapping[str, Mapping[str, Any]]:
    return tool.args.model_json_schema().get("properties", {})


def _default(part: Mapping[str, Any]) -> str:
    default = part.get("default")
    choices = [default, *(choice for choice in part.get("enum", ()) if choice != default)]
    return "|".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _meaning(name: str, part: Mapping[str, Any]) -> str:
    """What an argument is, and how small, large or long it may be."""
    low, high = part.get("minimum", part.get("minItems")), part.get("maximum", part.get("maxItems"))
    bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
    return MEANINGS.get(name, part.get("description", "")) + (f" ({', '.join(bounds)})" if bounds else "")


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(required)}
