"""Where an investigation stands, as the scripted policy reads it off a view.

A call is settled when it was run, or refused alone. Of a plan of several calls that was refused no one knows which
of them was at fault, so each is asked for again by itself; but where no place was found for one of them, the same
holds for all that ask for such places, and the others are asked for together.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...rules.language import Rule
from ..loop.hypotheses import Call, Hypothesis, UseTools
from ..loop.judging import telling
from ..loop.levels import forecast, levels_of
from ..loop.planning import QUOTA
from ..loop.view import Done, Rival, View

APART = 0.25
"""How far a value is at least from what was expected, beside being of another level, to count as a surprise."""
EVEN = (0.25,) * 4
LEARN = "learn_rule"
WANT_OF_SILENCE = "predict silence for only"
"""In the reason for which a plan is refused that asks too much where the leader says yes."""


@dataclass(frozen=True)
class PolicyState:
    """A view, and the names of the tools."""

    view: View
    tools: frozenset[str]

    def use(self, calls: Iterable[Call]) -> UseTools | None:
        """Those of the calls that may be run, as one plan; one alone where a plan with it was refused."""
        left = [call for call in calls if call.tool in self.tools and not self.settled(call)]
        left = [call for call in left if not self.hopeless(call) and not self.postponed(call)]
        doubtful = [call for call in left if any(call in plan for plan, why in self._refused if not _of_places(why))]
        return UseTools(calls=tuple(doubtful[:1] or left[:8])) if left else None

    def settled(self, call: Call) -> bool:
        """Whether a call was run, or refused by itself."""
        if any(done.tool == call.tool and _within(call.args, done.args) for done in self.view.done):
            return True
        return any(plan == [call] and WANT_OF_SILENCE not in reason for plan, reason in self._refused)

    def postponed(self, call: Call) -> bool:
        """Whether a plan with it was refused for want of silence, and there is still too little."""
        return not self.room and any(call in plan and WANT_OF_SILENCE in reason for plan, reason in self._refused)

    def hopeless(self, call: Call) -> bool:
        """Whether it is known that there is no place for a call."""
        carriers = call.args.get("carriers")
        return carriers is not None and any(f"no {carriers} place" in reason for _, reason in self._refused)

    @cached_property
    def room(self) -> bool:
        """Whether one more experiment may expect activity."""
        tried = [done for done in self.view.done if not done.survey]
        return sum(done.of_silence for done in tried) >= QUOTA * (len(tried) + 1)

    @property
    def misses(self) -> int:
        """Decisions in a row that were just refused."""
        steps = {refused.step for refused in self.view.refused}
        return next(back for back in range(len(steps) + 1) if self.view.step - 1 - back not in steps)

    @cached_property
    def _refused(self) -> list[tuple[list[Call], str]]:
        asked = [(refused.action or {}, refused.reason) for refused in self.view.refused]
        return [([Call.model_validate(c) for c in action["calls"]], why) for action, why in asked if "calls" in action]

    def proposed(self, rule: Rule) -> bool:
        """Whether a rule that says the same was put up."""
        known = (rival.hypothesis.rule for rival in self.view.rivals if rival.hypothesis.rule is not None)
        return any(_canonical(one) == _canonical(rule) for one in known)

    def alike(self, one: Rival, other: Rival) -> bool:
        """Whether the two never predicted otherwise than each other on what was measured."""
        both = [(d.expected.get(one.name), d.expected.get(other.name)) for d in self.responses]
        said = [(a, b) for a, b in both if a is not None and b is not None]
        if any(set(a) == {None} or set(b) == {None} for a, b in said):
            return False
        return not any(telling(forecast(a, EVEN), forecast(b, EVEN)).any() for a, b in said)

    def inseparable(self, one: Rival, other: Rival) -> bool:
        """Whether edits on which the two differ were looked for, and none found."""
        names = (f"{one.name} and {other.name} predict the same", f"{other.name} and {one.name} predict the same")
        return any(name in reason for _, reason in self._refused for name in names)

    @cached_property
    def learned(self) -> tuple[Done, ...]:
        """The rules that were learned, in order."""
        return tuple(done for done in self.view.done if done.tool == LEARN and done.measured is not None)

    @cached_property
    def since(self) -> tuple[Done, ...]:
        """The responses that were measured since a rule was learned last."""
        last = max((i for i, done in enumerate(self.view.done) if done.tool == LEARN), default=-1)
        return tuple(d for d in self.view.done[last + 1 :] if d.measured is not None and _response(d))

    @cached_property
    def best(self) -> Rival | None:
        """The rule to work on: the latest revision while nothing contradicted it, else the likeliest rule."""
        live = [r for r in self.view.rivals if r.status == "live" and r.hypothesis.kind == "rule"]
        live = [rival for rival in live if not claiming(rival.hypothesis)]
        revised = [r for r in live if r.hypothesis.parent is not None and not self.surprises(r.name, self.responses)]
        return max(revised, key=lambda rival: int(rival.name[1:]), default=live[0] if live else None)

    def others(self, best: Rival) -> list[Rival]:
        """The live rivals of a rule that say something else of when the feature fires."""
        live = (rival for rival in self.view.rivals if rival.status == "live" and not claiming(rival.hypothesis))
        return [rival for rival in live if rival.name != best.name]

    def surprises(self, name: str, among: Sequence[Done]) -> int:
        """How many measured items a rival had wrong."""
        return sum(wrong for done in among for wrong in _wrong(done, name))

    @cached_property
    def responses(self) -> tuple[Done, ...]:
        """All experiments on responses that were measured."""
        return tuple(done for done in self.view.done if done.measured is not None and _response(done))

    def made(self, tool: str) -> int:
        """How many experiments of a tool were run."""
        return sum(done.tool == tool for done in self.view.done)

    def found(self, tool: str) -> Mapping[str, Any] | None:
        """What a survey found; None where it was not run or failed."""
        return next((d.measured.found for d in self.view.done if d.tool == tool and d.measured is not None), None)


def claiming(hypothesis: Hypothesis) -> bool:
    """Whether it says what the feature writes or reads."""
    return bool(hypothesis.promotes or hypothesis.suppresses or hypothesis.reads)


def _response(done: Done) -> bool:
    return not done.survey and done.design.readout == "response"


def _wrong(done: Done, name: str) -> Iterator[bool]:
    """Of every item that a rival predicted, whether it came out otherwise."""
    expected = done.expected.get(name)
    if expected is None or done.measured is None:
        return
    pairs = [(e, v) for e, v in zip(expected, done.measured.values, strict=True) if e is not None]
    said, seen = levels_of([e for e, _ in pairs]), levels_of([v for _, v in pairs])
    for (value, true), one, other in zip(pairs, said, seen, strict=True):
        yield bool(one != other) and abs(value - true) > APART


def _canonical(rule: Rule) -> str:
    """The rule without the order of what has none."""

    def ordered(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: ordered(one) for key, one in sorted(value.items())}
        if isinstance(value, list) and not all(isinstance(one, int) or one is None for one in value):
            return sorted((ordered(one) for one in value), key=json.dumps)
        return value

    return json.dumps(ordered(json.loads(rule.to_json())))


def _of_places(reason: str) -> bool:
    """Whether a plan was refused for calls that are known to be hopeless."""
    return " place with " in reason


def _within(asked: Mapping[str, Any], args: Mapping[str, Any]) -> bool:
    """Whether a call with these arguments was that one."""
    return all(name in args and _plain(args[name]) == _plain(value) for name, value in asked.items())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
