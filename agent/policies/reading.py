"""From a model's calls to an action, or to what is wrong with them.

A call is taken as it is or refused with the exact fault; nothing is mended, guessed or read from prose. Rules come on
the scale from 0 to 10, windows by the names that the prompt gives them, and characters as it spells them: all are
translated here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ...explainers.ask import in_units
from ...explainers.evaluate import TokenGrid, predict
from ...explainers.llm.calling import called
from ...explainers.llm.values import Reply, ToolCall, ToolSpec
from ...explainers.render import unspelled
from ...explainers.rules import Rule, fault_of
from ..investigation.actions import Action, Call, Concede, Propose, Submit, UseTools
from ..investigation.experiments import Tool
from ..investigation.hypotheses import Hypothesis, Said, Words
from ..investigation.view import View
from .offering import answers, described, offered
from .tried import window_names

JOIN = " + "
"""Between nodes that are cut together."""
_UNANSWERED: Mapping[str, str] = {
    "refused": "You declined ({reason}). Nothing but the analysis of a model is asked for here.",
    "truncated": "The reply was cut at the limit of tokens. Be shorter.",
    "empty": "The reply was empty.",
    "failed": "There was no reply: {reason}.",
}
_REFUSED, _HELD = "Not carried out: ", "Not carried out, because of another call."

Part = Call | Propose | Submit | Concede
M = TypeVar("M", bound=BaseModel)


class Claim(Said, frozen=True):
    """A hypothesis about a feature, as a model puts it up."""

    text: Words
    rule: Rule | None = None
    promotes: tuple[str, ...] = Field((), max_length=20)
    suppresses: tuple[str, ...] = Field((), max_length=20)
    reads: tuple[str, ...] = Field((), max_length=20)
    parent: str | None = None


class Nodes(Said, frozen=True):
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
    tools: Mapping[str, Tool[Any]]
    """By name; none where experiments are not open."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What the model may call."""
        return offered(self.view, self.actions, self.tools)

    @property
    def open(self) -> str:
        """Names of what may be called."""
        return ", ".join(spec.name for spec in self.specs)

    def read(self, reply: Reply) -> Action | Misread:
        """The action that a reply's calls come to."""
        found = called(reply)
        if not found.calls:
            why = _UNANSWERED.get(reply.status, "").format(reason=(reply.reason or "").rstrip("."))
            why = why or f"The reply calls no tool: {found.reason}."
            return Misread(why, (f"{why} Call one of: {self.open}.",))
        parts: list[Part] = []
        told: list[str] = []
        for call in found.calls:
            try:
                parts.append(self._part(call))
                told.append(_HELD)
            except ValueError as error:
                told.append(f"{_REFUSED}{error}.")
        if len(parts) == len(told):
            try:
                return _joined(parts)
            except ValueError as error:
                told = [f"{_REFUSED}{error}."] * len(told)
        reason = next(one for one in told if one.startswith(_REFUSED)).removeprefix(_REFUSED).removesuffix(".")
        told[-1] += " Call again whatever you want to be done, corrected."
        return Misread(reason, tuple(told))

    def _part(self, call: ToolCall) -> Part:
        """What one call asks for; ValueError says what is wrong with it."""
        what, said = f"the arguments of {call.name}", _arguments(call)
        if call.name in self.tools:
            return self._call(self.tools[call.name], said, what)
        if call.name == "propose" and "propose" in self.actions:
            return self._proposal(said, what)
        if call.name == "concede" and "concede" in self.actions:
            return _valid(Concede, said, what)
        if call.name == "submit" and "submit" in self.actions:
            found = _valid(Submit, said, what)
            if found.answer not in answers(self.view):
                raise ValueError(f"the answer {found.answer!r} is none of {', '.join(answers(self.view))}")
            return found
        raise ValueError(f"there is no tool {call.name!r} now; there are {self.open}")

    def _call(self, tool: Tool[Any], said: dict[str, Any], what: str) -> Call:
        about = {key: said[key] for key in ("purpose", "expects") if key in said}
        args = {key: value for key, value in said.items() if key not in about}
        if isinstance(windows := args.get("windows"), list):
            names = window_names(self.view)
            args["windows"] = [names.get(name, name) if isinstance(name, str) else name for name in windows]
        _valid(tool.args, args, what)
        found = _valid(Call, {"tool": tool.name, "args": args, **about}, what)
        missing = [] if tool.survey else [name for name in described(self.view) if name not in found.expects]
        if missing:
            raise ValueError(f"{what}: {missing[0]} has no rule, so say in `expects` which level it predicts")
        return found

    def _proposal(self, said: dict[str, Any], what: str) -> Propose:
        listed = said.get("hypotheses")
        if not isinstance(listed, list) or len(said) > 1:
            raise ValueError(f"{what}: wanted `hypotheses`, a list, and nothing else")
        make = self._circuit if self.view.kind == "behaviour" else self._claim
        made = [make(claim, f"hypothesis {number}") for number, claim in enumerate(listed, start=1)]
        return _valid(Propose, {"hypotheses": made}, what)

    def _claim(self, said: object, what: str) -> Hypothesis:
        claim = _valid(Claim, said, what)
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

    def _circuit(self, said: object, what: str) -> Hypothesis:
        found = _valid(Nodes, said, what)
        self._check_parent(found.parent, what)
        known = self.view.about["nodes"]
        if unknown := [node for joined in found.nodes for node in joined.split(JOIN) if node not in known]:
            raise ValueError(f"{what}: {unknown[0]!r} is none of the nodes; name them as they are listed")
        return Hypothesis(**dict(found), kind="circuit")

    def _check_parent(self, parent: str | None, what: str) -> None:
        names = [rival.name for rival in self.view.rivals]
        if parent is not None and parent not in names:
            raise ValueError(f"{what}: its parent {parent!r} is no rival that was put up; leave it out")


def _joined(parts: Sequence[Part]) -> Action:
    """Several experiments are one plan, several proposals are one; all else stands alone."""
    calls = [part for part in parts if isinstance(part, Call)]
    proposals = [part for part in parts if isinstance(part, Propose)]
    if len(calls) == len(parts):
        return _valid(UseTools, {"calls": calls}, "the plan")
    if len(proposals) == len(parts):
        every = [hypothesis for proposal in proposals for hypothesis in proposal.hypotheses]
        return _valid(Propose, {"hypotheses": every}, "the proposals together")
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
        return [_unspelled(one) for one in value]
    return {unspelled(key): _unspelled(one) for key, one in value.items()} if isinstance(value, dict) else value


def _valid(kind: type[M], said: object, what: str) -> M:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        raise ValueError(fault_of(error, what=what)) from None
