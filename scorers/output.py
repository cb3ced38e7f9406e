"""The output side: given the explanation, which tokens, and which steered continuations, are the feature's?

A question is right half of the time by chance (output_questions.py says why). Items are questions; the questions
about one rival are one unit of the bootstrap, since a judge that has made up its mind about the two answers
all of them alike. Each rival takes one prompt about tokens and one about continuations, in every role.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.records import Judgements, Role
from ..explainers.llm.asking import Asking
from ..explainers.llm.values import Chat, Reply, Sampling
from ..explainers.prompt import Prompt
from ..explainers.render import fenced
from ..subject.address import Feature, SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .judge import NOTHING, wordings
from .output_questions import SETTINGS, Sheet, Sheets, sheets
from .reading import numbered
from .scorer import Case

_CHOICES = {"A": 1.0, "B": 0.0}


class OutputScorer:
    """Asks a language model which tokens and continuations are the feature's."""

    name = "output"
    stored = True

    def __init__(
        self,
        subject: Subject,
        sources: Mapping[SourceId, Source],
        *,
        tokens: Prompt | None = None,
        continuations: Prompt | None = None,
        rivals: int = 4,
        seed: int = 0,
        controls: bool = True,
    ) -> None:
        """`sources` are those of the features that will be judged. `tokens` and `continuations` are prompts in place
        of the built-in ones. `controls` asks for the roles empty and shuffled as well."""
        self._subject, self._sources = subject, sources
        self._rivals, self._seed, self._controls = rivals, seed, controls
        self._prompts = {
            "tokens": tokens or Prompt.load(Path(__file__).with_name("output_tokens.md")),
            "continuations": continuations or Prompt.load(Path(__file__).with_name("output_text.md")),
        }

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """One about token lists, one about continuations."""
        return tuple(self._prompts.values())

    @property
    def settings(self) -> dict[str, object]:
        """What, beside the case, determines a judgement."""
        return {**self._asked, "controls": self._controls, "version": 1}

    @property
    def _asked(self) -> dict[str, object]:
        hashes = {prompt.name: prompt.hash for prompt in self.prompts}
        return {"prompt": hashes, "rivals": self._rivals, "seed": self._seed, **SETTINGS}

    def judge(self, case: Case) -> Asking[list[Judgements]]:
        """Judgements on "tokens" and on "continuations"; none of an explanation without text."""
        texts = wordings(case, controls=self._controls, nothing=NOTHING)
        if not texts:
            return []
        feature = case.holdout.feature
        source = self._source(feature)
        made = sheets(self._subject, source, case.holdout, rivals=self._rivals, seed=self._seed)
        parts: list[tuple[str, Role, str, Sheets]] = [
            (examples, role, text, found)
            for examples, found in made.items()
            for role, text in texts.items()
            if found.sheets or role == "explanation"
        ]
        chats = [[self._chat(examples, sheet, text) for sheet in found.sheets] for examples, _, text, found in parts]
        requests = [chat for part in chats for chat in part]
        replies = iter((yield requests) if requests else ())
        return [
            self._judgements(examples, role, found, [next(replies) for _ in found.sheets])
            for examples, role, _, found in parts
        ]

    def _source(self, feature: Feature) -> Source:
        if feature.source not in self._sources:
            raise NeuronautError(
                f"the output scorer lacks {feature.source}, the source of {feature}; "
                f"give it beside: {', '.join(map(str, self._sources)) or 'none'}"
            )
        return self._sources[feature.source]

    def _chat(self, examples: str, sheet: Sheet, explanation: str) -> Chat:
        prompt, count = self._prompts[examples], len(sheet.questions)
        lines = [
            f"{number}. {line}" if place == 0 else f"   {line}"
            for number, question in enumerate(sheet.questions, start=1)
            for place, line in enumerate(question)
        ]
        places = {"explanation": " ".join(explanation.split()), "questions": fenced(lines), "count": str(count)}
        sample = json.dumps({str(number): "A" for number in range(1, count + 1)})
        return Chat(prompt.render(places), Sampling(max_tokens=200 + 10 * count), sample=sample, prompt=prompt.name)

    def _judgements(self, examples: str, role: Role, found: Sheets, replies: Sequence[Reply]) -> Judgements:
        missing = Counter(found.shortage)
        read = [_read(reply, len(sheet.first), missing) for sheet, reply in zip(found.sheets, replies, strict=True)]
        shape = (len(found.sheets), len(found.sheets[0].first) if found.sheets else 1)
        true = np.array([sheet.first for sheet in found.sheets], np.float32).reshape(shape)
        predicted = np.array(read, np.float32).reshape(shape)
        provenance = {**self._asked, "calls": [reply.key for reply in replies]}
        return Judgements(
            self.name, examples, role, "class", true, predicted, 0.5, found.windows, dict(missing), provenance
        )  # fmt: skip


def _read(reply: Reply, count: int, missing: Counter[str]) -> list[float]:
    """1 for A, 0 for B, NaN for whatever else, its reason counted."""
    if reply.status != "ok":
        missing[reply.status] += count
        return [np.nan] * count
    answers = [_CHOICES.get(str(value).strip().upper(), np.nan) for value in numbered(reply.text, count)]
    if unparsed := int(np.isnan(answers).sum()):
        missing["unparsed"] += unparsed
    return answers
