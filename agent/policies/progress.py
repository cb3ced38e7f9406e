"""What is left to do in an investigation, as the scripted policies read it off a view.

A call is settled when it was run, or refused. Of a plan that was refused as a whole no one knows which call was at
fault, so each is asked for again by itself; but where no place was found for one of them, the same holds for all that
ask for such places, and the others are asked for together.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...rules.language import Rule
from ..loop.experiments import Measured
from ..loop.hypotheses import Call, Hypothesis, UseTools
from ..loop.judging import differing_items
from ..loop.levels import forecast, levels_of
from ..loop.planning import QUOTA
from ..loop.rejections import Rejection
from ..loop.view import Done, Rival, View

APART = 0.25
"""How far a value is at least from what was expected, beside being of another level, to count as a surprise."""
EVEN = (0.25,) * 4
LEARN = "learn_rule"


@dataclass(frozen=True)
class PolicyState:
    """A view, and the names of the tools."""

    view: View
    tools: frozenset[str]

    def use(self, calls: Iterable[Call]) -> UseTools | None:
        """Those of the calls that may be run, as one plan; one alone where a plan with it was refused."""
        left = [call for call in calls if call.tool in self.tools and not self.settled(call)]
        left = [call for call in left if not self.hopeless(call) and not self.postponed(call)]
        unclear = [plan for plan, rejection in self._refused if rejection.code != "no_place"]
        doubtful = [call for call in left if any(call in plan for plan in unclear)]
        return UseTools(calls=tuple(doubtful[:1] or left[:8])) if left else None

    def has_run(self, call: Call) -> bool:
        """Whether a call with these arguments was run."""
        return any(done.tool == call.tool and _within(call.args, done.args) for done in self.view.done)

    def settled(self, call: Call) -> bool:
        """Whether a call was run, or refused by itself."""
        alone = (rejection for plan, rejection in self._refused if plan == [call])
        return self.has_run(call) or any(rejection.code != "silence_quota" for rejection in alone)

    def postponed(self, call: Call) -> bool:
        """Whether a plan with it was refused for want of silence, and there is still too little."""
        waiting = (plan for plan, rejection in self._refused if rejection.code == "silence_quota")
        return not self.room and any(call in plan for plan in waiting)

    def hopeless(self, call: Call) -> bool:
        """Whether it is known that there is no place for a call."""
        carriers = call.args.get("carriers")
        return carriers is not None and any(rejection.where == carriers for _, rejection in self._refused)

    @cached_property
    def room(self) -> bool:
        """Whether one more experiment may expect activity."""
        experiments = [done for done in self.view.done if not done.survey]
        return sum(done.of_silence for done in experiments) >= QUOTA * (len(experiments) + 1)

    @property
    def misses(self) -> int:
        """Decisions in a row that were just refused altogether."""
        steps = {refused.step for refused in self.view.refused if not refused.partial}
        return next(back for back in range(len(steps) + 1) if self.view.step - 1 - back not in steps)

    @cached_property
    def _refused(self) -> list[tuple[list[Call], Rejection]]:
        """The calls of every plan that was refused, and why it was."""
        actions = [(refused.action or {}, refused.rejection) for refused in self.view.refused]
        plans = [(action["calls"], rejection) for action, rejection in actions if "calls" in action]
        return [([Call.model_validate(call) for call in calls], rejection) for calls, rejection in plans]

    def proposed(self, rule: Rule) -> bool:
        """Whether a rule that says the same was put up."""
        rules = (rival.hypothesis.rule for rival in self.view.rivals if rival.hypothesis.rule is not None)
        return any(_canonical(old) == _canonical(rule) for old in rules)

    def alike(self, first: Rival, second: Rival) -> bool:
        """Whether the two never predicted otherwise than each other on what was measured."""
        pairs = [(done.expected.get(first.name), done.expected.get(second.name)) for done in self.responses]
        predicted = [(a, b) for a, b in pairs if a is not None and b is not None]
        if any(set(a) == {None} or set(b) == {None} for a, b in predicted):
            return False
        return not any(differing_items(forecast(a, EVEN), forecast(b, EVEN)).any() for a, b in predicted)

    def inseparable(self, first: Rival, second: Rival) -> bool:
        """Whether edits on which the two differ were looked for, and none found."""
        return any({*rejection.rivals} == {first.name, second.name} for _, rejection in self._refused)

    def results(self, tool: str) -> list[Measured]:
        """All that a tool measured, in order."""
        return [done.measured for done in self.view.done if done.tool == tool and done.measured is not None]

    @cached_property
    def learned(self) -> list[Measured]:
        """The rules that were learned, in order."""
        return self.results(LEARN)

    @cached_property
    def since(self) -> tuple[Done, ...]:
        """The responses that were measured since a rule was learned last."""
        last = max((i for i, done in enumerate(self.view.done) if done.tool == LEARN), default=-1)
        return tuple(d for d in self.view.done[last + 1 :] if d.measured is not None and _is_response(d))

    @cached_property
    def best(self) -> Rival | None:
        """The rule to work on: the latest revision while nothing contradicted it, else the likeliest rule."""
        live = [r for r in self.view.rivals if r.status == "live" and r.hypothesis.kind == "rule"]
        live = [rival for rival in live if not makes_claims(rival.hypothesis)]
        revised = [r for r in live if r.hypothesis.parent is not None and not self.surprises(r.name, self.responses)]
        return max(revised, key=lambda rival: int(rival.name[1:]), default=live[0] if live else None)

    def others(self, best: Rival) -> list[Rival]:
        """The live rivals of a rule that say something else of when the feature fires."""
        live = (rival for rival in self.view.rivals if rival.status == "live" and not makes_claims(rival.hypothesis))
        return [rival for rival in live if rival.name != best.name]

    def surprises(self, name: str, among: Sequence[Done]) -> int:
        """How many measured items a rival had wrong."""
        return sum(wrong for done in among for wrong in _wrong(done, name))

    @cached_property
    def responses(self) -> tuple[Done, ...]:
        """All experiments on responses that were measured."""
        return tuple(done for done in self.view.done if done.measured is not None and _is_response(done))

    def count(self, tool: str) -> int:
        """How many experiments of a tool were run."""
        return sum(done.tool == tool for done in self.view.done)

    def survey(self, tool: str) -> Mapping[str, Any]:
        """The tables of a survey; empty where it was not run or failed."""
        return next((measured.found for measured in self.results(tool)), {})


def makes_claims(hypothesis: Hypothesis) -> bool:
    """Whether it says what the feature writes or reads."""
    return bool(hypothesis.promotes or hypothesis.suppresses or hypothesis.reads)


def _is_response(done: Done) -> bool:
    return not done.survey and done.design.readout == "response"


def _wrong(done: Done, name: str) -> Iterator[bool]:
    """Of every item that a rival predicted, whether it came out otherwise."""
    expected = done.expected.get(name)
    if expected is None or done.measured is None:
        return
    pairs = [(e, v) for e, v in zip(expected, done.measured.values, strict=True) if e is not None]
    readout = done.design.readout
    predicted, observed = levels_of([e for e, _ in pairs], readout), levels_of([v for _, v in pairs], readout)
    for (e, v), level, true_level in zip(pairs, predicted, observed, strict=True):
        yield bool(level != true_level) and abs(e - v) > APART


def _canonical(rule: Rule) -> str:
    """The rule without the order of what has none."""

    def ordered(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: ordered(part) for key, part in sorted(value.items())}
        if isinstance(value, list) and not all(isinstance(part, int) or part is None for part in value):
            return sorted((ordered(part) for part in value), key=json.dumps)
        return value

    return json.dumps(ordered(json.loads(rule.to_json())))


def _within(some: Mapping[str, Any], args: Mapping[str, Any]) -> bool:
    """Whether a call with some arguments was the one with all of these."""
    return all(name in args and _as_lists(args[name]) == _as_lists(value) for name, value in some.items())


def _as_lists(value: Any) -> Any:
    """The value with lists in the place of tuples."""
    if isinstance(value, Mapping):
        return {key: _as_lists(part) for key, part in value.items()}
    return [_as_lists(part) for part in value] if isinstance(value, list | tuple) else value
