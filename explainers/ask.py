"""The base of explainers that ask one question: a prompt is filled with training windows, and one reply is read.

A feature that cannot be explained (dead, too rare, dense) is not asked about. All questions of a batch are put at
once. Whatever goes wrong with a reply (refused, cut, empty, unreadable) is an explanation without text, with status
"failed" and the reason. The activations in a prompt run from 0 to 10, and a rule in the reply predicts on
that scale, so the rule is scaled back to the source's units; one that fires on no training window is left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, NamedTuple

from ..data.records import Explanation
from ..llm.prompt import Prompt
from ..llm.render import STEPS
from ..llm.tasks import LLMTask
from ..llm.types import Chat, Reply, Sampling
from ..rules.evaluate import TokenGrid, predict
from ..rules.language import Rule
from .answer import Answer, read_answer
from .examples import Extent
from .explainer import AbstentionLimits, TrainBatch, TrainEvidence, abstention

TEXT_TOKENS, RULE_TOKENS = 200, 500
"""Room for the reply's text, and for a rule beside it."""
_SAMPLE = (
    "[EXPLANATION]: the name ` self` directly after an opening parenthesis, in the parameter list of a method "
    "definition; weaker on other first parameters there, and silent on ` self` inside calls."
)
_SAMPLE_RULE = (
    '{"any": [{"when": [{"token": [" self", "self"]}, {"text": "(", "at": -1}], "value": 9}], '
    '"unless": [{"inside": "comment"}]}'
)


class PromptFill(NamedTuple):
    """The texts that fill a prompt for one feature, and the windows that they come from."""

    places: Mapping[str, str]
    """Text by the name of the place, `$rule` aside."""
    windows: tuple[str, ...]
    """Digests of all windows that any part is shown of."""
    highest: float
    """The activation that is shown as 10, in the source's units."""


NOTHING_ASKED = PromptFill({}, (), 0.0)


class Asked(NamedTuple):
    """What became of one feature."""

    explanation: Explanation
    fill: PromptFill = NOTHING_ASKED
    chat: Chat | None = None
    """None where the feature cannot be explained."""
    reply: Reply | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the calls that were made."""
        return () if self.reply is None else (self.reply.key,)


class PromptExplainer(ABC):
    """Fills one prompt for each feature, and reads text and rule from the reply."""

    name: ClassVar[str]
    """The explainer's name after `-e`, and the prompt file's name."""
    extent: ClassVar[Extent]
    """The extent unless the constructor is given another."""

    def __init__(
        self,
        *,
        prompt: Prompt | None = None,
        temperature: float | None = 0.0,
        draw: int = 0,
        rules: bool = True,
        language: Prompt | None = None,
        extent: Extent | None = None,
    ) -> None:
        """Another `draw` is another sample of the same question.

        `rules` invites a rule beside the text, in the words of `language`.
        """
        self._prompt = prompt or Prompt.load(Path(__file__).with_name(f"{self.name}.md"))
        self._language = (language or rule_language()) if rules else None
        self._temperature, self._draw, self._limits = temperature, draw, AbstentionLimits()
        self._extent = extent or self.extent

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The chat, and the description of the rule language where a rule is invited."""
        return (self._prompt,) if self._language is None else (self._prompt, self._language)

    @property
    def settings(self) -> dict[str, object]:
        """All that, beside the evidence and the language model, determines an explanation."""
        return {
            "prompt": self._hashes(),
            "temperature": self._temperature,
            "draw": self._draw,
            "extent": asdict(self._extent),
            "limits": asdict(self._limits),
            "version": 1,
        }

    @abstractmethod
    def fill(self, evidence: TrainEvidence, batch: TrainBatch) -> PromptFill:
        """Fill the places of the prompt, other than `$rule`."""

    def explain(self, batch: TrainBatch) -> LLMTask[list[Explanation]]:
        """Explain every feature, in order; all questions are asked at once."""
        return [asked.explanation for asked in (yield from self.ask(batch))]

    def ask(self, batch: TrainBatch) -> LLMTask[list[Asked]]:
        """Ask about every feature that can be explained, all at once, and read the replies."""
        abstentions = [abstention(evidence, explainer=self.name, limits=self._limits) for evidence in batch.features]
        fills = {i: self.fill(batch.features[i], batch) for i, given in enumerate(abstentions) if given is None}
        chats = {i: self._chat(fill, batch.features[i], batch) for i, fill in fills.items()}
        replies = (yield list(chats.values())) if chats else ()
        asked = {
            i: Asked(self.read(batch.features[i], fills[i], reply), fills[i], chats[i], reply)
            for i, reply in zip(fills, replies, strict=True)
        }
        return [Asked(given) if given is not None else asked[i] for i, given in enumerate(abstentions)]

    def sample_rule(self, evidence: TrainEvidence, batch: TrainBatch, fill: PromptFill) -> Rule:  # noqa: ARG002
        """A rule of the usual length, from which a dry run estimates."""
        return Rule.parse(_SAMPLE_RULE)

    def _chat(self, fill: PromptFill, evidence: TrainEvidence, batch: TrainBatch) -> Chat:
        rule = "" if self._language is None else "\n\n" + self._language.render({})[-1].content
        sample = f"{_SAMPLE} ({evidence.feature}/{self._draw})"
        if self._language is not None:
            sample += f"\n[RULE]: {self.sample_rule(evidence, batch, fill).to_json()}"
        room = TEXT_TOKENS + (RULE_TOKENS if self._language else 0)
        return Chat(
            self._prompt.render({**fill.places, "rule": rule}),
            Sampling(temperature=self._temperature, max_tokens=room, seed=self._draw or None),
            # Texts differ between features, and so do the questions that are asked about them.
            sample=sample,
            prompt=self._prompt.name,
        )

    def read(
        self, evidence: TrainEvidence, fill: PromptFill, reply: Reply, *, earlier: Sequence[str] = ()
    ) -> Explanation:
        """Read a reply; `earlier` are the keys of calls that led to its question."""
        answer = read_answer(reply.text) if reply.status == "ok" else Answer("failed", reason=_failure_reason(reply))
        provenance: dict[str, object] = {"calls": [*earlier, reply.key], "prompt": self._hashes()}
        rule, error = None, answer.rule_error
        if answer.rule is not None:
            rule = in_units(answer.rule, fill.highest)
            error = None if fires(rule, evidence) else "the rule fires on no training window"
        if error is not None:
            provenance["rule_error"] = error
        return Explanation(
            feature=evidence.feature,
            text=answer.text,
            headline=answer.headline,
            explainer=self.name,
            reason=answer.reason,
            status=answer.status,
            rule=rule.to_json() if rule is not None and error is None else None,
            seen=fill.windows,
            provenance=provenance,
        )

    def _hashes(self) -> dict[str, str]:
        return {prompt.name: prompt.hash for prompt in self.prompts}


def rule_language() -> Prompt:
    """Load the description of the rule language, written for a language model."""
    return Prompt.load(Path(__file__).with_name("rule_language.md"))


def in_units(rule: Rule, highest: float) -> Rule:
    """Scale a rule that predicts from 0 to 10 to one that predicts from 0 to `highest`; values outside are clipped."""
    return rescale(rule, lambda value: min(max(value, 0.0), STEPS) * highest / STEPS)


def in_steps(rule: Rule, highest: float) -> Rule:
    """Scale a rule that predicts from 0 to `highest` to one that predicts from 0 to 10, to two significant digits."""
    return rescale(rule, lambda value: float(f"{value * STEPS / highest:.2g}"))


def rescale(rule: Rule, scale: Callable[[float], float]) -> Rule:
    """Scale every value of a rule; its conditions stay."""
    clauses = (
        clause.model_copy(
            update={"value": scale(clause.value), "gains": {token: scale(g) for token, g in clause.gains.items()}}
        )
        for clause in rule.any
    )
    return rule.model_copy(update={"any": tuple(clauses), "floor": scale(rule.floor)})


def fires(rule: Rule, evidence: TrainEvidence) -> bool:
    """Whether the rule predicts more than 0 anywhere in the feature's training windows."""
    return bool((predict(rule, TokenGrid.of([example.tokens for example in evidence.examples])) > 0).any())


def _failure_reason(reply: Reply) -> str:
    return f"{reply.status}: {reply.reason}" if reply.reason else reply.status
