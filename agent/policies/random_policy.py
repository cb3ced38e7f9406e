"""A policy that decides by lot: what any other has to beat.

What it does is well formed and means nothing: rivals are sets of tokens that occur in the examples, or nodes with
shares, and experiments have arguments drawn from what their schemas allow. It knows nothing of the odds.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ...llm.render import spelled
from ...llm.types import Reply
from ...rules.language import Clause, Rule, Token
from ..loop.experiments import AnyTool
from ..loop.hypotheses import Action, Call, Concede, Hypothesis, Propose, Submit, UseTools
from ..loop.levels import LEVELS, Level
from ..loop.policy import NoActionError
from ..loop.view import View
from .llm_tools import described_rivals, possible_answers

RIVALS, CALLS, PARTS = 3, 3, 4
"""Rivals of one proposal, tools of one plan, and tokens or nodes of a rival, at most."""
STEPS = 5
"""Decisions for each round, at most."""
CONCEDES = 0.3
"""How often a challenger concedes."""
NEAR = 4
"""Whole numbers are drawn so near to their defaults, or up to twice those, since some of them say what is spent."""


class RandomPolicy:
    """Draws every decision from the view and a seed."""

    name = "random"

    def __init__(self, *, seed: int = 0, rounds: int = 12) -> None:
        """Submits when so many `rounds` were run, or STEPS times as many decisions taken."""
        self._seed, self._rounds = seed, rounds

    @property
    def settings(self) -> Mapping[str, object]:
        """The seed and the number of rounds."""
        return {"seed": self._seed, "rounds": self._rounds, "version": 1}

    @property
    def asked(self) -> Sequence[Reply]:
        """Nobody is asked."""
        return ()

    def decide(self, view: View, actions: Sequence[str], tools: Sequence[AnyTool]) -> Action:
        """Draws one of the open actions; see Policy."""
        # With the step, so that what was refused once is not tried for ever.
        rng = random.Random(f"{self._seed} {view.round} {view.step}")
        usable = [tool for tool in tools if tool.target == view.kind]
        if "concede" in actions and (not usable or rng.random() < CONCEDES):
            return Concede()
        if "submit" in actions and (not usable or view.round >= self._rounds or view.step >= STEPS * self._rounds):
            return Submit(answer=rng.choice(possible_answers(view)))
        # After a refusal more often, since other rivals may make the same experiments acceptable.
        share = 0.6 if view.rejected else 0.2
        if "propose" in actions and ("use_tools" not in actions or rng.random() < share):
            return Propose(hypotheses=tuple(_draw_rival(view, rng) for _ in range(RIVALS)))
        if "use_tools" in actions and usable:
            chosen = [rng.choice(usable) for _ in range(rng.randint(1, CALLS))]
            return UseTools(calls=tuple(_draw_call(tool, view, rng) for tool in chosen))
        raise NoActionError(f"of {', '.join(actions)} nothing can be done without tools")


def _draw_rival(view: View, rng: random.Random) -> Hypothesis:
    if view.kind == "behaviour":
        nodes = rng.sample(list(view.about["nodes"]), min(rng.randint(1, PARTS), len(view.about["nodes"])))
        shares = {node: round(rng.random(), 2) for node in nodes}
        return Hypothesis(text=f"brought about by {', '.join(nodes)}", kind="circuit", nodes=shares)
    occurring = sorted({token for example in view.examples for token in example.tokens})
    tokens = tuple(rng.sample(occurring, min(rng.randint(1, PARTS), len(occurring))))
    at = rng.choice((0, 0, -1))
    rule = Rule(any=(Clause(when=(Token(any=tokens, at=at),), value=view.scale),))
    names = ", ".join(f"`{spelled(token)}`" for token in tokens)
    return Hypothesis(text=f"fires on {names}" if at == 0 else f"fires directly after {names}", rule=rule)


def _draw_call(tool: AnyTool, view: View, rng: random.Random) -> Call:
    expects: dict[str, Level] = {} if tool.survey else {name: rng.choice(LEVELS) for name in described_rivals(view)}
    return Call(tool=tool.name, args=_draw_arguments(tool, rng), purpose="drawn by lot", expects=expects)


def _draw_arguments(tool: AnyTool, rng: random.Random) -> dict[str, Any]:
    """Some of the arguments that are numbers, choices or switches; all others are left at their defaults."""
    drawn = {
        name: value
        for name, schema in tool.args.model_json_schema().get("properties", {}).items()
        if rng.random() < 0.5 and (value := _draw_value(schema, rng)) is not None
    }
    try:
        tool.args.model_validate(drawn)
    except ValidationError:  # what is allowed alone need not be together
        return {}
    return drawn


def _draw_value(schema: Mapping[str, Any], rng: random.Random) -> Any:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind, default = schema.get("type"), schema.get("default")
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "integer" and isinstance(default, int):
        low, high = default - NEAR, max(2 * default, default + NEAR)
        return rng.randint(max(low, schema.get("minimum", low)), min(high, schema.get("maximum", high)))
    return None
