"""The base of scorers that ask a language model for verdicts: questions, prompts, replies, predictions by role.

A judge lays out a quiz from the holdout: numbered lines of text, questions about them, and the truth. The same
prompts are asked with the explanation and, where the feature's controls are wanted (controls.py), with none and with
another feature's, all of them together. A reply that is no answer, and a verdict that cannot be read or is not one of
the choices, leaves its items without a prediction, counted by reason.
"""

import copy
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..data.records import Judgements, Role
from ..llm.prompt import Prompt
from ..llm.render import fenced
from ..llm.tasks import LLMTask
from ..llm.types import Chat, Reply, Sampling
from .controls import ALL, SAMPLE, Controls, judged_texts
from .holdout import Holdout
from .pairs import FEWEST, LENGTH
from .reading import ReadValue, distribution_at, read_choice, read_values
from .scorer import Case

NOTHING = "(none is given)"
"""Stands where the explanation would, for the role "empty"."""
ALTERNATIVES = 20
"""Alternatives asked for at each token of the reply, where probabilities are wanted; the most that servers give."""


@dataclass(frozen=True, slots=True, eq=False)
class Quiz:
    """The questions of a judge about one feature, and the truth."""

    questions: Sequence[tuple[str, ...]]
    """The lines of text that each question is about."""
    rounds: Sequence[tuple[int, ...]]
    """Indices of the questions that share a prompt, in their order there; each question once."""
    true: NDArray[np.float32]
    """(unit, item), 0 or 1; flat, the items stand in the order of the questions."""
    windows: tuple[str, ...]
    """Digests of all windows that any part is shown of."""
    shortage: Mapping[str, int] = field(default_factory=dict)
    """Why nothing is asked, from `format_shortage`; empty where something is."""


def empty_quiz(count: int, what: str) -> Quiz:
    """Make a quiz without a question, since there is too little to ask about."""
    return Quiz((), (), np.empty((0, 1), np.float32), (), format_shortage(count, what))


def format_shortage(count: int, what: str) -> dict[str, int]:
    """Write the reason for which nothing is asked, as judgements have it under `missing`."""
    return {f"only {count} {what}, {FEWEST} are wanted": count}


class Verdict(NamedTuple):
    """The answer of a reply to one question."""

    predicted: Mapping[int, float]
    """Probability of each choice."""
    missing: str | None = None
    """Why there is no answer."""


class QuizScorer(ABC):
    """Asks a language model for verdicts on excerpts of holdout windows."""

    name: ClassVar[str]
    """Name of the scorer, and of the prompt file."""
    examples: ClassVar[str]
    choices: ClassVar[tuple[int, ...]] = (0, 1)
    """The possible answers to a question."""
    scored: ClassVar[tuple[int, ...]] = (1,)
    """Choices whose probabilities are the items of a question."""
    keeps_judgements = True
    compares = False

    def __init__(
        self,
        *,
        prompt: Prompt | None = None,
        count: int = 10,
        seed: int = 0,
        logprobs: bool = False,
        controls: Controls = SAMPLE,
    ) -> None:
        """`count` is the most pairs or groups; `controls` says for which features the controls are asked, too.

        With `logprobs` predictions are probabilities instead of 0 and 1, from a model that gives log-probabilities.
        """
        self._prompt = prompt or Prompt.load(Path(__file__).with_name(f"{self.name}.md"))
        self._count, self._seed = count, seed
        self._logprobs, self._controls = logprobs, controls

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The one prompt that the judge fills."""
        return (self._prompt,)

    @property
    def settings(self) -> dict[str, object]:
        """All that, beside the case, determines a judgement."""
        return {**self._provenance, "controls": self._controls.mode, "version": 2}

    @abstractmethod
    def quiz(self, holdout: Holdout) -> Quiz:
        """Lay out the questions about a feature; none where there are too few windows."""

    def keys(self, count: int) -> tuple[str, ...]:
        """The keys under which a reply answers the `count` questions of a prompt."""
        return tuple(str(number) for number in range(1, count + 1))

    def chats(self, quiz: Quiz, explanation: str) -> list[Chat]:
        """Write the prompts of a quiz for one explanation, which is on one line."""
        return [self._chat([quiz.questions[i] for i in group], explanation) for group in quiz.rounds]

    def for_calibration(self) -> tuple[Self, int]:
        """The same judge with all controls, and how many windows of either kind it is calibrated on."""
        judge = copy.copy(self)
        judge._controls = ALL
        return judge, self._count

    def judge(self, case: Case) -> LLMTask[list[Judgements]]:
        """Judge the explanation and its controls; an explanation without text gets no judgement."""
        texts = judged_texts(case, controls=self._controls, nothing=NOTHING)
        if not texts:
            return []
        quiz = self.quiz(case.holdout)
        if not quiz.questions:
            return [self._judgements(quiz, "explanation", ())]
        replies = yield [chat for text in texts.values() for chat in self.chats(quiz, text)]
        n = len(quiz.rounds)
        return [self._judgements(quiz, role, replies[i * n : (i + 1) * n]) for i, role in enumerate(texts)]

    @property
    def _provenance(self) -> dict[str, object]:
        return {
            "prompt": {self._prompt.name: self._prompt.hash},
            "count": self._count,
            "length": LENGTH,
            "seed": self._seed,
            "logprobs": self._logprobs,
        }

    def _chat(self, questions: Sequence[tuple[str, ...]], explanation: str) -> Chat:
        lines = [line for question in questions for line in question]
        keys = self.keys(len(questions))
        places = {
            "explanation": explanation,
            "excerpts": fenced([f"{number}\t{line}" for number, line in enumerate(lines, start=1)]),
            "count": str(len(lines)),
        }
        return Chat(
            self._prompt.render(places),
            Sampling(max_tokens=200 + 10 * len(keys), top_logprobs=ALTERNATIVES if self._logprobs else 0),
            sample=json.dumps(dict.fromkeys(keys, self.choices[0])),
            prompt=self._prompt.name,
        )

    def _judgements(self, quiz: Quiz, role: Role, replies: Sequence[Reply]) -> Judgements:
        predicted = np.full((len(quiz.questions), len(self.scored)), np.nan, np.float32)
        missing: Counter[str] = Counter(quiz.shortage)
        for group, reply in zip(quiz.rounds, replies, strict=True):
            for question, verdict in zip(group, self._verdicts(reply, len(group)), strict=True):
                if verdict.missing is None:
                    predicted[question] = [verdict.predicted.get(choice, 0.0) for choice in self.scored]
                else:
                    missing[verdict.missing] += len(self.scored)
        return Judgements(
            scorer=self.name,
            examples=self.examples,
            role=role,
            kind="class",
            true=quiz.true,
            predicted=predicted.reshape(quiz.true.shape),
            threshold=0.5,
            windows=quiz.windows,
            missing=dict(missing),
            provenance={**self._provenance, "calls": [reply.key for reply in replies]},
        )

    def _verdicts(self, reply: Reply, count: int) -> list[Verdict]:
        if reply.status != "ok":
            return [Verdict({}, reply.status)] * count
        return [self._verdict(reply, value) for value in read_values(reply.text, self.keys(count))]

    def _verdict(self, reply: Reply, answer: ReadValue | None) -> Verdict:
        said = None if answer is None else read_choice(answer.value, self.choices)
        if answer is None or said is None:
            return Verdict({}, "unparsed")
        if not self._logprobs:
            return Verdict({said: 1.0})
        probabilities = distribution_at(reply, answer.offset) or {}
        weights = _weigh_choices(probabilities, self.choices)
        total = sum(weights.values())
        if total == 0:
            return Verdict({}, "no log-probabilities")
        return Verdict({choice: weight / total for choice, weight in weights.items()})


def _weigh_choices(probabilities: Mapping[str, float], choices: Sequence[int]) -> dict[int, float]:
    """By choice the probability of all tokens that write it, whatever punctuation they end with."""
    weights = dict.fromkeys(choices, 0.0)
    for token, probability in probabilities.items():
        choice = read_choice(token.rstrip("\"',}] \n"), choices)
        if choice is not None:
            weights[choice] += probability
    return weights
