"""The policy that asks a language model what to do next.

Each decision is one chat made from the view alone: no history, so that its size does not grow, and the same view is
asked about in the same words. What does not change comes first, so that servers need not read it again. Experiments
and the other actions are tools, and only calls of tools are read. A reply that only asks for help is answered; one of
which nothing can be read is answered once with the exact faults; what is then still no action is none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ...explainers.ask import rule_language
from ...llm.client import LLMClient
from ...llm.prompt import Prompt
from ...llm.render import STEPS
from ...llm.tasks import LLMTask
from ...llm.tool_calls import answer_calls
from ...llm.types import Chat, Reply, Sampling
from ..loop.experiments import AnyTool
from ..loop.hypotheses import CALLS, Action
from ..loop.judging import HITS, ODDS, RESOLVED, SILENCES
from ..loop.levels import EDGES
from ..loop.planning import QUOTA
from ..loop.policy import NoActionError, OutOfBudgetError
from ..loop.view import View
from .llm_prompt import places
from .llm_specs import RUN, tool_line
from .llm_tools import HELPS, Misread, Turn

TOKENS = 6_000
"""A chat has at most so many, roughly, its tools included, whatever a view holds; help and a repair add what is said.
"""
REPLY = 2_500
"""Room for a reply."""
_ECHO = 2_000
"""Characters of a faulty reply's text that are shown to the model again."""
_AIM = {
    "feature": "what one feature of a language model responds to",
    "behaviour": "which parts of a language model bring about one of its behaviours",
}
_TWIN = {"feature": "a rule", "behaviour": "the nodes that bring it about"}
_HITS = {
    "feature": f"right on {HITS:.0%} of the items whether they are strong, strong ones and others weighing the same "
    "(how strongly is a second question)",
    "behaviour": f"the right level on {HITS:.0%} of the items, every level weighing the same",
}
_LABEL = {"feature": " A label that has a rule is put up as well: doubt it, say what else fits.", "behaviour": ""}
_CLOSING = {"feature": " Code then tests what came too late.", "behaviour": ""}
_TOKEN = {"feature": "the current token", "behaviour": "the last token"}


class LLMPolicy:
    """Decides as a language model says, as the proposer and, without knowing of the former, as the challenger."""

    name = "llm"

    def __init__(self, client: LLMClient, *, temperature: float | None = 0.0) -> None:
        """`temperature` None leaves it to the server."""
        self._client, self._temperature = client, temperature
        self._asked: list[Reply] = []

    @property
    def settings(self) -> Mapping[str, object]:
        """Hashes of all prompts, the language model, and how it is sampled."""
        llm = self._client.llm
        return {
            "prompts": {name: prompt.hash for name, prompt in self._prompts.items()},
            "model": llm.model,
            "endpoint": llm.endpoint,
            "temperature": self._temperature,
            "reply": REPLY,
            "version": 3,
        }

    @property
    def asked(self) -> Sequence[Reply]:
        """All replies of the last decision; more than one where there was a repair."""
        return tuple(self._asked)

    def decide(self, view: View, actions: Sequence[str], tools: Sequence[AnyTool]) -> Action:
        """See Policy."""
        self._asked = []
        action = self._client.ask(self._asking(self.turn(view, actions, tools)))
        if action is None:
            raise OutOfBudgetError(self._client.stopped or "the language model is not asked any more")
        return action

    def turn(self, view: View, actions: Sequence[str], tools: Sequence[AnyTool]) -> Turn:
        """The decision that is to be made."""
        usable = {tool.name: tool for tool in tools if tool.target == view.kind} if "use_tools" in actions else {}
        return Turn(view, actions, usable)

    def chat(self, turn: Turn) -> Chat:
        """The chat that asks for a decision."""
        prompt = self._prompts["investigate_challenge" if turn.view.phase == "challenge" else "investigate_explore"]
        kind = turn.view.kind
        filled = {
            **places(turn.view, turn.tools),
            "about": self._about(kind),
            "aim": _AIM[kind],
            "twin": _TWIN[kind],
            "token": _TOKEN[kind],
            "tools": _tool_lines(turn),
            "open": turn.open,
            "most": str(CALLS),
            "quota": f"{QUOTA:.0%}",
            "resolved": str(RESOLVED),
            "silences": str(SILENCES),
            "odds": f"{ODDS:g}",
            "hits": _HITS[kind],
            "label": _LABEL[kind],
            "closing": _CLOSING[kind],
        }
        return Chat(
            prompt.render(filled),
            Sampling(temperature=self._temperature, max_tokens=REPLY),
            sample=_sample(turn),
            prompt=prompt.name,
            tools=turn.specs,
            tool_choice="required",
        )

    def _asking(self, turn: Turn) -> LLMTask[Action]:
        chat = self.chat(turn)
        left = {"help": HELPS, "repair": 1}
        while isinstance(action := (yield from self._once(turn, chat)), Misread):
            reply, need = self._asked[-1], "help" if action.asks else "repair"
            if reply.status == "failed" or not left[need]:
                raise NoActionError(" ".join(action.reason.split()), repairs=1 - left["repair"])
            left[need] -= 1
            echo = replace(reply, text=reply.text[:_ECHO], calls=reply.calls if reply.status == "ok" else ())
            chat = replace(chat, messages=(*chat.messages, *answer_calls(echo, action.answers)))
        return action

    def _once(self, turn: Turn, chat: Chat) -> LLMTask[Action | Misread]:
        (reply,) = yield [chat]
        self._asked.append(reply)
        return turn.read(reply)

    @cached_property
    def _prompts(self) -> dict[str, Prompt]:
        names = [f"investigate_{name}.md" for name in ("explore", "challenge", "feature", "behaviour")]
        own = [Prompt.load(Path(__file__).with_name(name)) for name in names]
        # The language in full is an answer to `help`.
        return {prompt.name: prompt for prompt in (*own, rule_language())}

    def _about(self, kind: str) -> str:
        """What a target of this kind is, and how hypotheses about it are written."""
        factor = STEPS if kind == "feature" else 1
        edges = [f"{edge * factor:g}" for edge in EDGES]
        filled = dict(zip(("reversed", "weak", "strong"), edges, strict=True))
        if kind == "feature":  # whose responses below zero are of the other tail
            del filled["reversed"]
        return self._prompts[f"investigate_{kind}"].render({**filled})[-1].content


def _tool_lines(turn: Turn) -> str:
    """The experiments, then the surveys."""
    experiments, surveys = (
        [tool_line(tool) for tool in turn.tools.values() if tool.survey == survey] for survey in (False, True)
    )
    return "\n".join([*experiments, *(["Surveys:", *surveys] if surveys else [])])


def _sample(turn: Turn) -> str:
    """A call of the usual length, for estimates."""
    name = turn.specs[0].name
    why = "to see whether it fires there although the leader says that it does not"
    claim = {"text": f"A claim about {turn.view.target} in a sentence, with an exception that it names."}
    arguments = {
        RUN: {"tool": next(iter(turn.tools), ""), "purpose": why},
        "propose": {"hypotheses": [claim] * 4},
        "submit": {"answer": "open"},
        "concede": {"reason": why},
    }
    return json.dumps({"name": name, "arguments": arguments[name]})
