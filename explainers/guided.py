"""Explains with a language model and code together: code measures and checks, the model says it in words and as a rule.

For every feature code first learns a rule (`rule.py`) and runs a fixed battery of experiments (`battery/`). One call
shows both beside contrasting windows and asks for a headline, a text and a rule. Code runs that rule on windows of the
training and the tune side, and shows once, in a second call that goes on from the first, where it went wrong: tokens
that it names and that are silent, and tokens that it misses, the token whose errors weigh most first. The three drafts
(the learned rule's own explanation, the first and the second answer) are compared on `select` by labelling/guided.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.padding import pad_activations, pad_ids
from ..data.records import Example, Explanation
from ..llm.prompt import Prompt
from ..llm.render import ACTIVE, STEPS, Excerpt, active, excerpt, fenced, marked, quantised, spelled
from ..llm.tasks import LLMTask
from ..llm.types import Chat, Message
from ..rules.evaluate import TokenGrid, predict
from ..rules.language import Clause, Rule, Token, parse_rule
from ..subject.address import Feature
from ..subject.model import Subject
from .ask import Asked, PromptExplainer, PromptFill, in_steps
from .battery.battery import Findings, run_battery
from .contrastive import NONE_FOUND
from .examples import Extent, active_windows, background_example, silent_windows
from .explainer import TrainBatch, TrainEvidence
from .highlight import active_lines
from .rule import RuleExplainer

COUNTEREXAMPLES = 4
"""Errors of each of the two kinds that are shown."""
NAMED = 8
"""Tokens that are named of those that keep the activation, break it, or stand before."""
LEARNED_RULE = 500
"""Characters of a learned rule's JSON that are shown at most; of a longer one only the text is."""
TRIED = 256
"""Background windows of each side that a rule is tried on, beside the examples."""


class Drafts(NamedTuple):
    """What there is to choose from for one feature."""

    learned: Explanation
    """The rule explainer's."""
    first: Explanation
    second: Explanation | None
    """The answer to the counterexamples; None where the first has no text."""


class Prepared(NamedTuple):
    """What code found of the features of a batch, before anyone was asked."""

    learned: Mapping[Feature, Explanation]
    """The rule explainer's explanation of every feature."""
    findings: Mapping[Feature, Findings]
    """Those of the battery, of the features that can be explained."""


class Preparation:
    """Learns rules and runs batteries for a batch, and keeps the results until another batch comes."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.rules = RuleExplainer(subject)
        self._batch: TrainBatch | None = None
        self._prepared = Prepared({}, {})

    def of(self, batch: TrainBatch) -> Prepared:
        """What code finds of all features of a batch."""
        if self._batch is not batch:
            learned = {explanation.feature: explanation for explanation in self.rules.explain(batch)}
            explainable = [
                part for part in batch.features if learned[part.feature].status in ("explained", "no_pattern")
            ]
            self._prepared = Prepared(learned, run_battery(self.subject, batch, explainable))
            self._batch = batch
        return self._prepared


class Guided(PromptExplainer):
    """Explains from windows, experiments and a learned rule; `drafts` also has the answer to counterexamples."""

    name = "guided"
    extent = Extent(top=5, quantile=4, near_misses=5, silent=2, before=20, after=3)

    def __init__(
        self,
        subject: Subject,
        *,
        prompt: Prompt | None = None,
        check: Prompt | None = None,
        temperature: float | None = 0.0,
        draw: int = 0,
        language: Prompt | None = None,
        extent: Extent | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        """`check` shows the counterexamples. Several draws may share one `preparation`."""
        super().__init__(prompt=prompt, temperature=temperature, draw=draw, language=language, extent=extent)
        self._check = check or Prompt.load(Path(__file__).with_name("guided_check.md"))
        self._preparation = preparation or Preparation(subject)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The chat, the description of the rule language, and the message with the counterexamples."""
        return (*super().prompts, self._check)

    @property
    def settings(self) -> dict[str, object]:
        """The settings of every prompt explainer, and those of the rule explainer."""
        return {**super().settings, "rule": self._preparation.rules.settings}

    def fill(self, evidence: TrainEvidence, batch: TrainBatch) -> PromptFill:
        """Fill in windows, near misses, silent windows, findings and the learned rule."""
        prepared = self._preparation.of(batch)
        learned, findings = prepared.learned[evidence.feature], prepared.findings[evidence.feature]
        extent = self._extent
        examples = active_windows(evidence, top=extent.top, quantile=extent.quantile)
        silent = silent_windows(evidence, batch, examples, extent)
        highest = max(example.peak for example in examples)
        places = {
            "windows": fenced(active_lines(examples, extent)),
            "near_misses": fenced(silent.lines(silent.near_misses)) if silent.near_misses else NONE_FOUND,
            "silent": fenced(silent.lines(silent.others)) if silent.others else NONE_FOUND,
            "experiments": fenced(tell_findings(findings, batch.vocabulary)),
            "learned": _tell_learned(learned, highest),
        }
        windows = [e.window for e in (*examples, *silent.examples)]
        return PromptFill(places, tuple(dict.fromkeys([*windows, *learned.seen])), highest)

    def drafts(self, batch: TrainBatch) -> LLMTask[list[Drafts]]:
        """Explain every feature, in order; the second calls are asked together, after the first ones."""
        # Taken before the first question: other batches are prepared while it is answered.
        learned = self._preparation.of(batch).learned
        asked = yield from self.ask(batch)
        checks = {
            place: (evidence, *self._counterexamples(one, evidence, batch))
            for place, (one, evidence) in enumerate(zip(asked, batch.features, strict=True))
            if one.explanation.text is not None
        }
        chats = [self._second_chat(asked[place], shown) for place, (_, shown, _) in checks.items()]
        replies = (yield chats) if chats else ()
        second = {}
        for (place, (evidence, _, digests)), reply in zip(checks.items(), replies, strict=True):
            one = asked[place]
            fill = one.fill._replace(windows=tuple(dict.fromkeys([*one.fill.windows, *digests])))
            second[place] = self.read(evidence, fill, reply, earlier=one.keys)
        return [
            Drafts(learned[evidence.feature], one.explanation, second.get(place))
            for place, (one, evidence) in enumerate(zip(asked, batch.features, strict=True))
        ]

    def sample_rule(self, evidence: TrainEvidence, batch: TrainBatch, fill: PromptFill) -> Rule:
        """A rule of the usual length that fires: the learned one, or one that names the token of the highest peak."""
        learned = self._preparation.of(batch).learned[evidence.feature]
        if learned.rule is not None and len(learned.rule) <= LEARNED_RULE:
            return in_steps(parse_rule(learned.rule), fill.highest)
        top = max(evidence.examples, key=lambda example: example.peak)
        return Rule(any=(Clause(when=(Token(any=(top.tokens[int(top.activations.argmax())],)),), value=9.0),))

    def _second_chat(self, one: Asked, counterexamples: str) -> Chat:
        assert one.chat is not None and one.reply is not None
        question = self._check.render({"counterexamples": counterexamples})
        return replace(
            one.chat,
            messages=(*one.chat.messages, Message("assistant", one.reply.text.strip()), *question),
            prompt=self._check.name,
        )

    def _counterexamples(self, one: Asked, evidence: TrainEvidence, batch: TrainBatch) -> tuple[str, list[str]]:
        """What the check shows of an answer, and the digests of the windows that are shown."""
        rule = None if one.explanation.rule is None else parse_rule(one.explanation.rule)
        errors = find_errors(rule, evidence, batch, one.fill.highest)
        lines = [_tell_error(error, one.fill.highest) for error in errors]
        told = fenced(lines) if lines else "(nowhere: say it more simply where you can)"
        fault = one.explanation.provenance.get("rule_error")
        if rule is None:
            why = f"it could not be used: {spelled(str(fault))}" if fault else "there is none"
            told = f"Without a rule everything is predicted 0 ({why}).\n{told}"
        return told, [error.example.window for error in errors]


class Error(NamedTuple):
    """A token on which a rule is wrong."""

    example: Example
    position: int
    predicted: float
    """In the source's units, as the activation."""
    named: str
    """The token, by which errors are grouped."""


def find_errors(rule: Rule | None, evidence: TrainEvidence, batch: TrainBatch, highest: float) -> list[Error]:
    """The tokens on which a rule is most wrong on the training and the tune side, of either kind as many.

    Missed: marked as active where `highest` is shown as 10, and predicted below it. Wrongly named: predicted so, and
    below a tenth. Errors of one token are one, told where they are largest, and weigh the sum of their squares.
    """
    windows = _windows_to_try(evidence, batch)
    width = max(len(example.ids) for example in windows)
    true = pad_activations([example.activations for example in windows], width=width)
    ids = pad_ids([example.ids for example in windows], width=width)
    grid = TokenGrid(batch.vocabulary, ids)
    predicted = np.zeros(true.shape, np.float32) if rule is None else np.asarray(predict(rule, grid), np.float32)
    limit = ACTIVE * highest / STEPS
    missed = (true >= limit) & (predicted < limit)
    wrong = (true < highest / STEPS) & (predicted >= limit) & (ids >= 0)
    return [error for kind in (missed, wrong) for error in _worst(kind, windows, true, predicted)[:COUNTEREXAMPLES]]


def _worst(kind: np.ndarray, windows: Sequence[Example], true: np.ndarray, predicted: np.ndarray) -> list[Error]:
    """Of every token its largest error of a kind, the token whose errors weigh most first."""
    rows, positions = np.nonzero(kind)
    places = [
        (windows[row].tokens[at], float(true[row, at] - predicted[row, at]) ** 2, row, at)
        for row, at in zip(rows.tolist(), positions.tolist(), strict=True)
    ]
    groups = [list(group) for _, group in groupby(sorted(places), key=lambda place: place[0])]
    groups.sort(key=lambda group: -sum(place[1] for place in group))
    largest = (max(group, key=lambda place: place[1]) for group in groups)
    return [Error(windows[row], at, float(predicted[row, at]), token) for token, _, row, at in largest]


def _windows_to_try(evidence: TrainEvidence, batch: TrainBatch) -> list[Example]:
    """The examples and a part of the background of both sides, each window once."""
    windows = [e for e in (*evidence.examples, *evidence.tune) if e.kind != "bottom"]
    windows += [background_example(evidence, batch, row) for row in range(min(TRIED, len(batch.background.ids)))]
    if batch.tune is not None and evidence.tune_background is not None:
        rows = range(min(TRIED, len(batch.tune.ids)))
        windows += [background_example(evidence, batch, row, tune=True) for row in rows]
    return list({example.window: example for example in windows}.values())


def _tell_error(error: Error, highest: float) -> str:
    """A line: what it is, what the rule says, and the text with the token marked as it is."""
    part: Excerpt = excerpt(error.example, before=16, after=1, pivot=error.position)
    is_active = active(part.activations, highest)
    meant = np.arange(part.first, part.last) == error.position
    (was,) = quantised(error.example.activations[error.position : error.position + 1], highest)
    # Rounded, so that a rule's 9 reads as the 9 that was written.
    said = round(STEPS * min(error.predicted / highest, 1.0))
    return f"is {was}, the rule says {said}: {marked(part, is_active, silent=meant)}"


def tell_findings(findings: Findings, vocabulary: tuple[str, ...]) -> list[str]:
    """The findings in lines of words, tokens spelled."""

    def name(tokens: Sequence[int]) -> str:
        return " ".join(f"`{spelled(vocabulary[token])}`" for token in tokens[:NAMED]) or "none"

    lines = []
    for place, needed in findings.pruned:
        text = "".join(spelled(vocabulary[token]) for token in place.ids[place.pivot + 1 - needed : place.pivot])
        lines.append(f"enough to fire, whatever stands before: {text}«{spelled(vocabulary[place.token])}»")
    for place, keeps, breaks in findings.scanned:
        before = spelled(vocabulary[place.ids[place.pivot - 1]])
        instead = f"for `{before}` before «{spelled(vocabulary[place.token])}»"
        lines.append(f"put {instead}, it stays active with {name(keeps)}; falls silent with {name(breaks)}")
    for token, fires, quiet in findings.before:
        if quiet:
            of = f"«{spelled(vocabulary[token])}»"
            lines.append(f"{of} is often active after {name(fires)}, and never after {name(quiet)}")
    return list(dict.fromkeys(lines)) or ["(nothing was found)"]


def _tell_learned(learned: Explanation, highest: float) -> str:
    """The learned explanation, and its rule where that is short."""
    if learned.text is None:
        return "(it found none)"
    lines = [spelled(learned.text)]
    if learned.rule is not None and len(learned.rule) <= LEARNED_RULE:
        lines.append(in_steps(parse_rule(learned.rule), highest).to_json())
    return fenced(lines)
