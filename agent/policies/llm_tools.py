"""Tool calls of a language model: what it may call at one step, and how its calls become an action.

Every experiment is a call of `run` (one by the tool's own name is read, too), and the other actions are beside it. A
call is taken as it is or refused with the exact fault and what the tool takes; nothing is mended, guessed or read from
prose. What can be read of a reply is the action, and the faults go with it. Rules come on the scale from 0 to 10,
windows by the names that the prompt gives them, and characters as it spells them: all are translated here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ...explainers.ask import in_steps, in_units, rule_language
from ...llm.render import unspelled
from ...llm.tool_calls import read_calls
from ...llm.types import Reply, ToolCall, ToolSpec
from ...rules.evaluate import TokenGrid, predict
from ...rules.language import Rule, format_fault
from ..loop.behaviour_lab import JOIN
from ..loop.experiments import AnyTool
from ..loop.hypotheses import (
    CALLS,
    LIVE,
    Action,
    Call,
    Concede,
    Fault,
    Hypothesis,
    Propose,
    StrictModel,
    Submit,
    UseTools,
    Words,
)
from ..loop.view import View
from .llm_history import window_names
from .llm_prompt import whole
from .llm_specs import HELP, RUN, action_specs, tool_help
from .progress import LEARN

_NO_CALL: Mapping[str, str] = {
    "refused": "You declined ({reason}). Nothing but the analysis of a model is asked for here.",
    "truncated": "The reply was cut at the limit of tokens. Be shorter.",
    "empty": "The reply was empty.",
    "failed": "There was no reply: {reason}.",
}

HELPS = 2
"""Replies to one decision that may ask for help alone."""
_ONLY_HELP = f"only help was asked for, which is answered {HELPS} times a decision; call something else"
WHOLE = 1_200
"""Tokens of results and hypotheses that one call for help is answered with, roughly."""
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
    asks: bool = False
    """Whether it is no fault but a call for help, which is answered."""


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
        return action_specs(self.view.kind, [a for a in self.actions if self.tools or a != "use_tools"])

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
        parts: list[tuple[str, Part]] = []
        faults: list[Fault] = []
        answers: list[str] = []
        helped = False
        for call in reading.calls:
            name = self._tool_of(call)
            try:
                if name == HELP:
                    answers.append(self._help(_arguments(call)))
                    helped = True
                    continue
                parts.append((name, self._part(call, name)))
            except ValueError as error:
                faults.append(Fault(call=name, reason=str(error)))
                answers.append(f"Not carried out: {error}.{self._usage(name)}")
        if parts:
            alone = Fault(call=HELP, reason=f"{HELP}: it is answered where it stands alone")
            return _join_parts(parts, [*faults, *([alone] * helped)])
        if faults:
            answers[-1] += "\nCall again whatever you want to be done, corrected."
        return Misread(faults[0].reason if faults else _ONLY_HELP, tuple(answers), asks=not faults)

    def _tool_of(self, call: ToolCall) -> str:
        """The tool or action that a call is about."""
        if call.name != RUN:
            return call.name
        try:
            return str(_arguments(call).get("tool", RUN))
        except ValueError:
            return RUN

    def _usage(self, name: str) -> str:
        return f"\n{tool_help(self.tools[name])}" if name in self.tools else ""

    def _help(self, arguments: dict[str, Any]) -> str:
        """The whole of what was asked about."""
        about = arguments.get("about")
        names = [about] if isinstance(about, str) else about
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError('help wants names, as in {"about": ["scan_vocabulary", "o3"]}')
        asked = names[:CALLS]
        found = {name: self._whole(name, WHOLE // len(asked)) for name in asked}
        told = [text for text in found.values() if text is not None]
        if len(told) == len(found):
            return "\n\n".join(told)
        there = [*(["rule"] if self.view.kind == "feature" else []), *self.tools]
        there += [named.name for group in (self.view.done, self.view.rivals) for named in group]
        unknown = ", ".join(repr(name) for name, text in found.items() if text is None)
        fault = f"there is no {unknown} to tell of; there are {', '.join(there)}"
        if not told:
            raise ValueError(fault)
        return "\n\n".join([*told, f"Beside it {fault}."])

    def _whole(self, name: str, tokens: int) -> str | None:
        """All of a tool, the rule language, a result or a hypothesis; None where there is none of this name."""
        if name in self.tools:
            return tool_help(self.tools[name])
        if name == "rule" and self.view.kind == "feature":
            _, language = rule_language().render({})[-1].content.split("\n\n", 1)  # what comes first asks for a rule
            return language.replace("[RULE]: ", "")
        return whole(name, self.view, tokens)

    def _part(self, call: ToolCall, name: str) -> Part:
        """What one call asks for; ValueError says what is wrong with it."""
        what, arguments = f"the arguments of {name}", _arguments(call)
        if name in self.tools:
            return self._call(self.tools[name], _flat(arguments) if call.name == RUN else arguments, what)
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
        there = ", ".join((*self.tools, *(action for action in self.actions if action != "use_tools"), HELP))
        raise ValueError(f"there is no tool {name!r} now; there are {there}")

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
        hypotheses: list[Hypothesis] = []
        faults: list[Fault] = []
        for number, claim in enumerate(claims, start=1):
            try:
                hypotheses.append(make(claim, f"hypothesis {number}"))
            except ValueError as error:
                faults.append(Fault(call="propose", reason=str(error)))
        if faults and not hypotheses:
            raise ValueError("; ".join(fault.reason for fault in faults))
        return _validate(Propose, {"hypotheses": hypotheses, "faults": faults}, what)

    def _claim(self, arguments: object, what: str) -> Hypothesis:
        if isinstance(arguments, dict) and isinstance(name := arguments.get("rule"), str):
            arguments = {**arguments, "rule": self._learned(name, what)}
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

    def _learned(self, name: str, what: str) -> dict[str, Any]:
        """The rule of a result, as rules are written in replies."""
        found = {done.name: done.measured.found for done in self.view.done if done.tool == LEARN and done.measured}
        learned = {result: rule for result, tables in found.items() if (rule := tables.get("rule"))}
        if name not in learned:
            there = ", ".join(learned) or "none so far"
            raise ValueError(f"{what}: its rule {name!r} is no result of {LEARN}; there are {there}")
        return in_steps(Rule.model_validate(learned[name]), self.view.scale).model_dump(mode="json")

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


def _join_parts(parts: Sequence[tuple[str, Part]], faults: Sequence[Fault]) -> Action:
    """Proposals come first, as one, with experiments, as one plan; else an end. What has to wait joins the faults."""
    proposals = [part for _, part in parts if isinstance(part, Propose)]
    put_up = [hypothesis for part in proposals for hypothesis in part.hypotheses]
    calls = [part for _, part in parts if isinstance(part, Call)]
    ends = [(name, part) for name, part in parts if isinstance(part, Submit | Concede)]
    if not put_up and not calls:
        return ends[0][1]
    faults = [*faults, *(fault for part in proposals for fault in part.faults)]
    alone = "it stands alone; see first what the experiments show"
    faults += [Fault(call=name, reason=f"{name}: {alone}") for name, _ in ends]
    if any(hypothesis.kind == "described" for hypothesis in put_up):
        why = "a new hypothesis has no rule; call it again and say in `expects` what that one predicts"
        faults += [Fault(call=call.tool, reason=f"{call.tool}: {why}") for call in calls]
        calls = []
    faults += [Fault(call="propose", reason=f"propose: at most {LIVE} at once")] * (len(put_up) > LIVE)
    faults += [Fault(call=call.tool, reason=f"{call.tool}: a plan has at most {CALLS} calls") for call in calls[CALLS:]]
    plan = {"calls": tuple(calls[:CALLS]), "faults": tuple(faults)}
    return Propose(hypotheses=tuple(put_up[:LIVE]), **plan) if put_up else UseTools(**plan)


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `run` as those of the tool that it names."""
    args, rest = arguments.get("args") or {}, {k: v for k, v in arguments.items() if k not in ("tool", "args")}
    if not isinstance(args, dict):
        raise ValueError(f'the arguments of {RUN}: wanted "args" as an object; got {type(args).__name__}')
    return {**args, **rest}


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


def described_rivals(view: View) -> list[str]:
    """Live rivals that are words only, so that whoever plans an experiment says what they predict."""
    return [r.name for r in view.rivals if r.status == "live" and r.hypothesis.kind == "described"]


def possible_answers(view: View) -> list[str]:
    """Answers that may be submitted."""
    return [*(rival.name for rival in view.rivals if rival.status == "live"), *ENDS]
