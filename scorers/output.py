"""Scores explanations of the output side: a language model is asked which tokens, and which steered continuations, are
the feature's and which a random rival's.

Each question shows two of a kind, A and B: one is the feature's, the other a rival's, made in the same way. A rival is
another feature of the source, of the same tail, held so high that it writes as much into the residual stream (in
norm) as the feature does at a multiple of its peak, so that strength tells nothing.

One prompt holds questions about one rival only, each about other tokens or another beginning. So the two
features play the same part in it, and the one that is asked about stands first in exactly half of the questions:
whatever is concluded from the texts alone is right half of the time on average. (With several rivals in one prompt,
what comes up in every question would be the feature's.)

Items are questions; the questions about one rival are one unit of the bootstrap, since a judge that has made up its
mind about the two answers all of them alike. Each rival takes one prompt about tokens and one about continuations, in
every role.
"""

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..causal.clamp import Clamp, steer
from ..data.records import Example, Judgements, Role
from ..explainers.output import LENGTH, STRENGTH, WRITTEN, quoted
from ..llm.prompt import Prompt
from ..llm.render import fenced
from ..llm.tasks import LLMTask
from ..llm.types import Chat, Reply, Sampling
from ..subject.address import Feature, SourceId
from ..subject.directions import direction, promoted
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .controls import SAMPLE, Controls, judged_texts
from .holdout import Holdout
from .quiz import NOTHING
from .reading import read_numbered
from .scorer import Case

LISTS, LISTED = 2, 8
"""Token questions about a rival, and the tokens in each list: the highest ones, dealt out in turn."""
BEGINNINGS = 4
"""Continuation questions about a rival, each of another holdout window's beginning."""
SETTINGS = {
    "strength": STRENGTH,
    "lists": LISTS,
    "listed": LISTED,
    "beginnings": BEGINNINGS,
    "length": LENGTH,
    "written": WRITTEN,
}


@dataclass(frozen=True, slots=True)
class Sheet:
    """The questions of one prompt, all about one rival."""

    questions: tuple[tuple[str, ...], ...]
    """The lines of each question."""
    first: tuple[int, ...]
    """1 where A is the feature's, 0 where B is."""


class Sheets(NamedTuple):
    """The questions of one set of examples, a sheet for each rival."""

    sheets: Sequence[Sheet] = ()
    windows: tuple[str, ...] = ()
    """Digests of the windows whose beginnings are continued."""
    shortage: Mapping[str, int] = {}
    """Why nothing is asked: how many there are of what there is too little of."""


class _Writer(NamedTuple):
    """A feature that writes something."""

    feature: Feature
    norm: float
    """Norm of its direction in the residual stream."""
    lists: list[str]
    """Its promoted tokens in LISTS lists of equal rank."""


def make_sheets(subject: Subject, source: Source, holdout: Holdout, *, rivals: int, seed: int) -> dict[str, Sheets]:
    """Make the questions about the "tokens" and the "continuations" of a feature; no sheet, and why, without any.

    Forwards: 12 * ceil((rivals + 2) / 4), of 16 short rows each.
    """
    rng = np.random.default_rng([seed, zlib.crc32(str(holdout.feature).encode())])
    own = _make_writer(subject, source, holdout.feature) if holdout.peak > 0 else None
    if own is None:
        return dict.fromkeys(("tokens", "continuations"), Sheets(shortage={"the feature writes nothing": 0}))
    others = list(islice(_draw_rivals(subject, source, holdout.feature, rng), rivals))
    if not others:
        return dict.fromkeys(("tokens", "continuations"), Sheets(shortage={"other features that write": 0}))
    tokens = [_make_sheet([()] * LISTS, own.lists, other.lists, rng) for other in others]
    held = [Clamp(other.feature, STRENGTH * holdout.peak * own.norm / other.norm) for other in others]
    clamps = [Clamp(own.feature, STRENGTH * holdout.peak), *held]
    return {"tokens": Sheets(tokens), "continuations": _continuation_sheets(subject, source, clamps, holdout, rng)}


def _continuation_sheets(
    subject: Subject, source: Source, clamps: Sequence[Clamp], holdout: Holdout, rng: np.random.Generator
) -> Sheets:
    """Make the questions about continued beginnings of holdout windows; the first clamp is the feature's."""
    beginnings = _choose_beginnings(holdout)
    if not beginnings:
        return Sheets(shortage={"holdout windows (2 are wanted)": len(holdout.examples)})
    steered = steer(subject, source, clamps, [e.ids[:LENGTH].tolist() for e in beginnings], tokens=WRITTEN).steered
    own, *others = ([quoted("".join(subject.decode_tokens(row))) for row in rows] for rows in steered)
    heads = [(quoted("".join(example.tokens[:LENGTH])),) for example in beginnings]
    return Sheets(
        [_make_sheet(heads, own, other, rng) for other in others], tuple(example.window for example in beginnings)
    )


def _choose_beginnings(holdout: Holdout) -> list[Example]:
    """Choose an even number of windows, so that the feature can stand first in half of them; random ones first."""
    windows = sorted(holdout.examples, key=lambda example: (example.kind != "random", example.window))
    return windows[: min(BEGINNINGS, len(windows)) // 2 * 2]


def _draw_rivals(subject: Subject, source: Source, feature: Feature, rng: np.random.Generator) -> Iterator[_Writer]:
    """Draw other features that write something, in random order."""
    for index in rng.permutation(source.width).tolist():
        if index != feature.index:
            rival = _make_writer(subject, source, Feature(feature.source, index, feature.negative))
            if rival is not None:
                yield rival


def _make_writer(subject: Subject, source: Source, feature: Feature) -> _Writer | None:
    """Look up what a feature writes; None where that is nothing."""
    tokens = promoted(subject, source, feature, count=LISTS * LISTED)
    if not tokens.top:
        return None
    quoted_tokens = [quoted(effect.token) for effect in tokens.top]
    norm = float(direction(subject, source, feature).vector.norm())
    return _Writer(feature, norm, [" ".join(quoted_tokens[start::LISTS]) for start in range(LISTS)])


def _make_sheet(
    heads: Sequence[tuple[str, ...]], own: Sequence[str], other: Sequence[str], rng: np.random.Generator
) -> Sheet:
    """Make questions in which the feature stands first exactly half of the time."""
    first = tuple(int(flag) for flag in rng.permutation(np.arange(len(own)) % 2))
    sides = [(a, b) if flag else (b, a) for flag, a, b in zip(first, own, other, strict=True)]
    return Sheet(tuple((*head, f"A: {a}", f"B: {b}") for head, (a, b) in zip(heads, sides, strict=True)), first)


_CHOICES = {"A": 1.0, "B": 0.0}


class OutputScorer:
    """Asks a language model which tokens and continuations are the feature's."""

    name = "output"
    keeps_judgements = True
    compares = False

    def __init__(
        self,
        subject: Subject,
        sources: Mapping[SourceId, Source],
        *,
        tokens: Prompt | None = None,
        continuations: Prompt | None = None,
        rivals: int = 4,
        seed: int = 0,
        controls: Controls = SAMPLE,
    ) -> None:
        """`sources` are those of the features that will be judged.

        `tokens` and `continuations` are prompts in place of the built-in ones. `controls` says for which features
        the controls are asked, too.
        """
        self._subject, self._sources = subject, sources
        self._rivals, self._seed, self._controls = rivals, seed, controls
        self._prompts = {
            "tokens": tokens or Prompt.load(Path(__file__).with_name("output_tokens.md")),
            "continuations": continuations or Prompt.load(Path(__file__).with_name("output_text.md")),
        }

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompt about token lists, and the one about continuations."""
        return tuple(self._prompts.values())

    @property
    def settings(self) -> dict[str, object]:
        """All that, beside the case, determines a judgement."""
        return {**self._provenance, "controls": self._controls.mode, "version": 1}

    @property
    def _provenance(self) -> dict[str, object]:
        hashes = {prompt.name: prompt.hash for prompt in self.prompts}
        return {"prompt": hashes, "rivals": self._rivals, "seed": self._seed, **SETTINGS}

    def judge(self, case: Case) -> LLMTask[list[Judgements]]:
        """Judge on "tokens" and on "continuations"; an explanation without text gets no judgement."""
        texts = judged_texts(case, controls=self._controls, nothing=NOTHING)
        if not texts:
            return []
        feature = case.holdout.feature
        source = self._source(feature)
        sheets_by_set = make_sheets(self._subject, source, case.holdout, rivals=self._rivals, seed=self._seed)
        rounds: list[tuple[str, Role, str, Sheets]] = [
            (examples, role, text, sheets)
            for examples, sheets in sheets_by_set.items()
            for role, text in texts.items()
            if sheets.sheets or role == "explanation"
        ]
        chats = [[self._chat(examples, sheet, text) for sheet in sheets.sheets] for examples, _, text, sheets in rounds]
        requests = [chat for round_chats in chats for chat in round_chats]
        replies = iter((yield requests) if requests else ())
        return [
            self._judgements(examples, role, sheets, [next(replies) for _ in sheets.sheets])
            for examples, role, _, sheets in rounds
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
        places = {"explanation": explanation, "questions": fenced(lines), "count": str(count)}
        sample = json.dumps({str(number): "A" for number in range(1, count + 1)})
        return Chat(prompt.render(places), Sampling(max_tokens=200 + 10 * count), sample=sample, prompt=prompt.name)

    def _judgements(self, examples: str, role: Role, sheets: Sheets, replies: Sequence[Reply]) -> Judgements:
        missing = Counter(sheets.shortage)
        answers = [
            _read_reply(reply, len(sheet.first), missing) for sheet, reply in zip(sheets.sheets, replies, strict=True)
        ]
        shape = (len(sheets.sheets), len(sheets.sheets[0].first) if sheets.sheets else 1)
        true = np.array([sheet.first for sheet in sheets.sheets], np.float32).reshape(shape)
        predicted = np.array(answers, np.float32).reshape(shape)
        provenance = {**self._provenance, "calls": [reply.key for reply in replies]}
        return Judgements(
            scorer=self.name,
            examples=examples,
            role=role,
            kind="class",
            true=true,
            predicted=predicted,
            threshold=0.5,
            windows=sheets.windows,
            missing=dict(missing),
            provenance=provenance,
        )


def _read_reply(reply: Reply, count: int, missing: Counter[str]) -> list[float]:
    """Read 1 for A, 0 for B, NaN for whatever else, with its reason counted in `missing`."""
    if reply.status != "ok":
        missing[reply.status] += count
        return [np.nan] * count
    answers = [_CHOICES.get(str(value).strip().upper(), np.nan) for value in read_numbered(reply.text, count)]
    if unparsed := int(np.isnan(answers).sum()):
        missing["unparsed"] += unparsed
    return answers
