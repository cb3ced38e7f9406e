"""Tool calls of a language model: what it may call at one step, and how its calls become an action.

Every experiment is a tool, and the other actions are beside them. A call is taken as it is or refused with the exact
fault; nothing is mended, guessed or read from prose. Rules come on the scale from 0 to 10, windows by the names that
the prompt gives them, and characters as it spells them: all are translated here.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError

from ...explainers.ask import in_units
from ...llm.render import unspelled
from ...llm.tool_calls import read_calls
from ...llm.types import Reply, ToolCall, ToolSpec
from ...rules.evaluate import TokenGrid, predict
from ...rules.language import Rule, format_fault
from ..loop.behaviour_lab import JOIN
from ..loop.experiments import AnyTool
from ..loop.hypotheses import Action, Call, Concede, Hypothesis, Propose, StrictModel, Submit, UseTools, Words
from ..loop.levels import Level
from ..loop.view import View
from .llm_history import window_names

_NO_CALL: Mapping[str, str] = {
    "refused": "You declined ({reason}). Nothing but the analysis of a model is asked for here.",
    "truncated": "The reply was cut at the limit of tokens. Be shorter.",
    "empty": "The reply was empty.",
    "failed": "There was no reply: {reason}.",
}
_REFUSED, _HELD = "Not carried out: ", "Not carried out, because of another call."

Part = Call | Propose | Submit | Concede
M = TypeVar("M", bound=BaseModel)


class Claim(StrictModel, frozen=True):
    """A hypothesis about a feature, as a model puts it up."""

    text: Words
    rule: Rule | None = None
    promotes: tuple[str, ...] = Field((), max_length=20)
    suppresses: tuple[str, ...] = Field((), max_length=20)
    reads: tuple[str, ...] = Field((), max_length=20)
    parent: str | None = None


class Nodes(StrictModel, frozen=True):
    """A hypothesis about a behaviour, as a model puts it up."""

    text: Words
    nodes: dict[str, float] = Field(min_length=1, max_length=200)
    parent: str | None = None


class Misread(NamedTuple):
    """Why a reply is no action."""

    reason: str
    """The first fault, in one line."""
    answers: tuple[str, ...]
    """What is answered to each call, or to the reply where it makes none."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One decision that a model is to make: what is known and what is open."""

    view: View
    actions: Sequence[str]
    tools: Mapping[str, AnyTool]
    """By name; none where experiments are not open."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What the model may call."""
        return tool_specs(self.view, self.actions, self.tools)

    @property
    def open(self) -> str:
        """Names of what may be called."""
        return ", ".join(spec.name for spec in self.specs)

    def read(self, reply: Reply) -> Action | Misread:
        """The action that a reply's calls come to."""
        reading = read_calls(reply)
        if not reading.calls:
            why = _NO_CALL.get(reply.status, "").format(reason=(reply.reason or "").rstrip("."))
            why = why or f"The reply calls no tool: {reading.reason}."
            return Misread(why, (f"{why} Call one of: {self.open}.",))
        parts: list[Part] = []
        faults: list[str | None] = []
        for call in reading.calls:
            try:
                parts.append(self._part(call))
                faults.append(None)
            except ValueError as error:
                faults.append(str(error))
        if all(fault is None for fault in faults):
            try:
                return _join_parts(parts)
            except ValueError as error:
                faults = [str(error)] * len(faults)
        replies = [_HELD if fault is None else f"{_REFUSED}{fault}." for fault in faults]
        replies[-1] += " Call again whatever you want to be done, corrected."
        return Misread(next(fault for fault in faults if fault is not None), tuple(replies))

    def _part(self, call: ToolCall) -> Part:
        """What one call asks for; ValueError says what is wrong with it."""
        what, arguments = f"the arguments of {call.name}", _arguments(call)
        if call.name in self.tools:
            return self._call(self.tools[call.name], arguments, what)
        if call.name == "propose" and "propose" in self.actions:
            return self._proposal(arguments, what)
        if call.name == "concede" and "concede" in self.actions:
            return _validate(Concede, arguments, what)
        if call.name == "submit" and "submit" in self.actions:
            submission = _validate(Submit, arguments, what)
            if submission.answer not in possible_answers(self.view):
                raise ValueError(
                    f"the answer {submission.answer!r} is none of {', '.join(possible_answers(self.view))}"
                )
            return submission
        raise ValueError(f"there is no tool {call.name!r} now; there are {self.open}")

    def _call(self, tool: AnyTool, arguments: dict[str, Any], what: str) -> Call:
        about = {key: arguments[key] for key in ("purpose", "expects") if key in arguments}
        args = {key: value for key, value in arguments.items() if key not in about}
        if isinstance(windows := args.get("windows"), list):
            names = window_names(self.view)
            args["windows"] = [names.get(name, name) if isinstance(name, str) else name for name in windows]
        _validate(tool.args, args, what)
        call = _validate(Call, {"tool": tool.name, "args": args, **about}, what)
        missing = [] if tool.survey else [name for name in described_rivals(self.view) if name not in call.expects]
        if missing:
            raise ValueError(f"{what}: {missing[0]} has no rule, so say in `expects` which level it predicts")
        return call

    def _proposal(self, arguments: dict[str, Any], what: str) -> Propose:
        claims = arguments.get("hypotheses")
        if not isinstance(claims, list) or len(arguments) > 1:
            raise ValueError(f"{what}: wanted `hypotheses`, a list, and nothing else")
        make = self._circuit if self.view.kind == "behaviour" else self._claim
        hypotheses = [make(claim, f"hypothesis {number}") for number, claim in enumerate(claims, start=1)]
        return _validate(Propose, {"hypotheses": hypotheses}, what)

    def _claim(self, arguments: object, what: str) -> Hypothesis:
        claim = _validate(Claim, arguments, what)
        self._check_parent(claim.parent, what)
        if claim.rule is None:
            return Hypothesis(**dict(claim), kind="described")
        grid = TokenGrid.of([example.tokens for example in self.view.examples])
        if not (predict(claim.rule, grid) > 0).any():
            raise ValueError(
                f"{what}: its rule predicts 0 for every token of all windows that are shown; spell tokens as they are "
                "there, with the space before them"
            )
        return Hypothesis(**{**dict(claim), "rule": in_units(claim.rule, self.view.scale)}, kind="rule")

    def _circuit(self, arguments: object, what: str) -> Hypothesis:
        claim = _validate(Nodes, arguments, what)
        self._check_parent(claim.parent, what)
        nodes = self.view.about["nodes"]
        if unknown := [node for joined in claim.nodes for node in joined.split(JOIN) if node not in nodes]:
            raise ValueError(f"{what}: {unknown[0]!r} is none of the nodes; name them as they are listed")
        return Hypothesis(**dict(claim), kind="circuit")

    def _check_parent(self, parent: str | None, what: str) -> None:
        names = [rival.name for rival in self.view.rivals]
        if parent is not None and parent not in names:
            raise ValueError(f"{what}: its parent {parent!r} is no rival that was put up; leave it out")


def _join_parts(parts: Sequence[Part]) -> Action:
    """Several experiments are one plan, several proposals are one; all else stands alone."""
    calls = [part for part in parts if isinstance(part, Call)]
    proposals = [part for part in parts if isinstance(part, Propose)]
    if len(calls) == len(parts):
        return _validate(UseTools, {"calls": calls}, "the plan")
    if len(proposals) == len(parts):
        every = [hypothesis for proposal in proposals for hypothesis in proposal.hypotheses]
        return _validate(Propose, {"hypotheses": every}, "the proposals together")
    if len(parts) == 1 and not isinstance(parts[0], Call):
        return parts[0]
    raise ValueError("experiments may be called together, and nothing else beside them; do one thing at a time")


def _arguments(call: ToolCall) -> dict[str, Any]:
    """A call's arguments as an object that can be written down; ValueError where they are none."""
    try:
        value = json.loads(call.arguments or "{}")
        # Escapes can spell lone surrogates, and numbers infinity, which no journal takes.
        value = json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the arguments of {call.name} are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"the arguments of {call.name} are no JSON object")
    return _unspelled(value)


def _unspelled(value: Any) -> Any:
    """JSON with every character as it is, where a model copied it as the prompt spells it."""
    if isinstance(value, str):
        return unspelled(value)
    if isinstance(value, list):
        return [_unspelled(part) for part in value]
    return {unspelled(key): _unspelled(part) for key, part in value.items()} if isinstance(value, dict) else value


def _validate(kind: type[M], value: object, what: str) -> M:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(format_fault(error, what=what)) from None


ENDS = ("open", "no_explanation")
"""What may be submitted beside a hypothesis."""


def tool_specs(view: View, actions: Sequence[str], tools: Mapping[str, AnyTool]) -> tuple[ToolSpec, ...]:
    """The tools, and the other actions that are open."""
    others = [_OTHERS[action](view) for action in actions if action in _OTHERS]
    return (*(_experiment(tool, view) for tool in tools.values()), *others)


def described_rivals(view: View) -> list[str]:
    """Live rivals that are words only, so that whoever plans an experiment says what they predict."""
    return [r.name for r in view.rivals if r.status == "live" and r.hypothesis.kind == "described"]


def possible_answers(view: View) -> list[str]:
    """Answers that may be submitted."""
    return [*(rival.name for rival in view.rivals if rival.status == "live"), *ENDS]


def _experiment(tool: AnyTool, view: View) -> ToolSpec:
    schema = _without_titles(tool.args.model_json_schema())
    properties = {**schema.get("properties", {}), "purpose": _text("why, in a few words")}
    if "windows" in properties:
        properties["windows"] = {**properties["windows"], "description": "w1, w2, ... as shown; none: the tool chooses"}
    required = [*schema.get("required", ()), "purpose"]
    if (names := described_rivals(view)) and not tool.survey:
        level = {"type": "string", "enum": list(get_args(Level))}
        properties["expects"] = {
            **_object(dict.fromkeys(names, level), names),
            "description": "the level that each hypothesis without a rule predicts",
        }
        required.append("expects")
    about = " ".join(cleandoc(type(tool).__doc__ or tool.name).split())
    rest = {key: value for key, value in schema.items() if key != "description"}
    return ToolSpec(
        tool.name,
        f"Survey. {about}" if tool.survey else about,
        {**rest, "type": "object", "properties": properties, "required": required},
    )


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
        "propose",
        "Put up rival hypotheses.",
        _object({"hypotheses": {"type": "array", "items": claim}}, ["hypotheses"]),
    )


def _submit(view: View) -> ToolSpec:
    answer = {"type": "string", "enum": possible_answers(view)}
    return ToolSpec(
        "submit",
        "End the search: name the hypothesis that stands, or say that none does.",
        _object({"answer": answer, "reason": _text("why, in a sentence")}, ["answer", "reason"]),
    )


def _concede(_: View) -> ToolSpec:
    return ToolSpec(
        "concede",
        "End the challenge: no experiment that could break the claim is left.",
        _object({"reason": _text("why, in a sentence")}, ["reason"]),
    )


_OTHERS: Mapping[str, Callable[[View], ToolSpec]] = {"propose": _propose, "submit": _submit, "concede": _concede}


def _text(description: str) -> dict[str, str]:
    return {"type": "string", "description": description}


def _object(properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(required), "additionalProperties": False}


def _without_titles(schema: Any) -> Any:
    """A schema without the titles that pydantic gives to everything."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    by_name = ("properties", "$defs")
    return {
        key: {name: _without_titles(part) for name, part in value.items()} if key in by_name else _without_titles(value)
        for key, value in schema.items()
        if key != "title"
    }
