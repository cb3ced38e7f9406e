"""Explains a feature by its output side: what it writes, not what it fires on.

The prompt shows the tokens that the feature's direction raises and lowers the most (subject/directions.py), and a few
neutral beginnings of training text, continued by the subject as it is and with the feature held at twice its peak
(causal/clamp.py). All features of a batch are steered together, on the same beginnings: for F features
and the defaults here that takes 12 * ceil((F + 1) / 4) forwards of 16 short rows.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..causal.clamp import Clamp, Continuations, steer
from ..data.records import Explanation
from ..llm.prompt import Prompt
from ..llm.render import ACTIVE_MARKS, fenced, spelled
from ..llm.tasks import LLMTask
from ..subject.address import Feature
from ..subject.directions import Promoted, TokenEffect, direction, promoted
from ..subject.model import Subject
from .ask import PromptExplainer, PromptFill
from .examples import Extent
from .explainer import Background, TrainBatch, TrainEvidence, abstention

STRENGTH = 2.0
"""A feature is held at this multiple of its peak."""
BEGINNINGS, LENGTH = 4, 12
"""How many beginnings are continued, and their tokens."""
WRITTEN = 12
"""Tokens of a continuation."""
LISTED, LEAST = 10, 1.0
"""Tokens that are listed as raised, and as lowered, at most; those that are moved by so many standard deviations."""
USUAL, STRONG = 3.0, 5.0
"""Standard deviations up to which an effect is weak, and from which on it is strong."""
SETTINGS = {
    "strength": STRENGTH,
    "beginnings": BEGINNINGS,
    "length": LENGTH,
    "written": WRITTEN,
    "listed": LISTED,
    "least": LEAST,
}
NOTHING = "(nothing: what it writes is zero)"


class OutputEffect(NamedTuple):
    """The effect of a feature on the subject's output."""

    promoted: Promoted
    plain: Continuations
    """The continuation of each beginning without the feature."""
    steered: Continuations
    """The continuation of each beginning with the feature held."""


class Beginnings(NamedTuple):
    """Neutral texts to continue: the beginnings of training windows, each of another document."""

    ids: list[list[int]]
    digests: list[str]
    """Digests of the windows."""

    @classmethod
    def of(cls, background: Background) -> "Beginnings":
        """Take the first windows of the background, whose order is random."""
        whole = background.ids[:, :LENGTH].min(axis=1) >= 0
        first = {document: row for row, document in reversed(list(enumerate(background.documents))) if whole[row]}
        rows = sorted(first.values())[:BEGINNINGS]
        return cls([background.ids[row, :LENGTH].tolist() for row in rows], [background.digests[row] for row in rows])


class OutputEffects:
    """Measures the output effects of all features of a batch at once, and keeps them until another batch comes."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._effects: dict[Feature, OutputEffect | None] = {}
        self._background: Background | None = None

    def of(self, feature: Feature, batch: TrainBatch) -> OutputEffect | None:
        """The effect of one feature; None where it never fires or its direction is zero."""
        if self._background is not batch.background or feature not in self._effects:
            self._effects, self._background = self._measure(batch), batch.background
        return self._effects[feature]

    def _measure(self, batch: TrainBatch) -> dict[Feature, OutputEffect | None]:
        subject, source = self.subject, batch.source
        clamps = [
            Clamp(evidence.feature, STRENGTH * evidence.statistics.peak)
            for evidence in batch.features
            if evidence.statistics.peak > 0 and bool(direction(subject, source, evidence.feature).vector.any())
        ]
        effects: dict[Feature, OutputEffect | None] = {evidence.feature: None for evidence in batch.features}
        if clamps:
            steered = steer(subject, source, clamps, Beginnings.of(batch.background).ids, tokens=WRITTEN)
            for clamp, rows in zip(clamps, steered.steered, strict=True):
                tokens = promoted(subject, source, clamp.feature, count=LISTED)
                effects[clamp.feature] = OutputEffect(tokens, steered.plain, rows)
        return effects


class Output(PromptExplainer):
    """Explains from promoted tokens and steered continuations."""

    name = "output"
    extent = Extent(top=0, before=0, after=0)

    def __init__(
        self, subject: Subject, *, prompt: Prompt | None = None, temperature: float | None = 0.0, draw: int = 0
    ) -> None:
        """A rule is not invited: rules say when a feature fires, not what it writes."""
        super().__init__(prompt=prompt, temperature=temperature, draw=draw, rules=False)
        self._effects = OutputEffects(subject)

    @property
    def settings(self) -> dict[str, object]:
        """The settings of every prompt explainer, and those of the output side."""
        return {**super().settings, "output": SETTINGS}

    def fill(self, evidence: TrainEvidence, batch: TrainBatch) -> PromptFill:
        """Fill in tokens and continuations; the only windows are the beginnings."""
        places = fill_output_places(self._effects, evidence.feature, batch)
        return PromptFill(places, tuple(Beginnings.of(batch.background).digests), evidence.statistics.peak)

    def explain(self, batch: TrainBatch) -> LLMTask[list[Explanation]]:
        """Explain every feature; one that writes nothing is not asked about and has the status "no_pattern"."""
        silent = {evidence.feature for evidence in batch.features if self._is_silent(evidence, batch)}
        writing = [evidence for evidence in batch.features if evidence.feature not in silent]
        explanations = yield from super().explain(replace(batch, features=writing))
        by_feature = {explanation.feature: explanation for explanation in explanations}
        reason = "it writes nothing: its direction in the residual stream is zero"
        by_feature |= {f: Explanation(f, None, self.name, reason=reason, status="no_pattern") for f in silent}
        return [by_feature[evidence.feature] for evidence in batch.features]

    def _is_silent(self, evidence: TrainEvidence, batch: TrainBatch) -> bool:
        explained = abstention(evidence, explainer=self.name, limits=self._limits) is None
        return explained and self._effects.of(evidence.feature, batch) is None


def fill_output_places(
    effects: OutputEffects, feature: Feature, batch: TrainBatch, *, in_words: bool = False
) -> dict[str, str]:
    """Fill `$raised`, `$lowered` and `$continuations`.

    `in_words` says the size of an effect in a word, for prompts whose numbers are activations.
    """
    effect = effects.of(feature, batch)
    if effect is None:
        return dict.fromkeys(("raised", "lowered", "continuations"), NOTHING)
    lines: list[str] = []
    beginnings = Beginnings.of(batch.background).ids
    for number, rows in enumerate(zip(beginnings, effect.plain, effect.steered, strict=True), start=1):
        begins, plain, steered = (quoted("".join(effects.subject.decode_tokens(row))) for row in rows)
        lines += [f"{number}. {begins}", f"   without: {plain}", f"   with: {steered}"]
    return {
        "raised": _format_token_effects(effect.promoted.top, effect.promoted.spread, in_words=in_words),
        "lowered": _format_token_effects(effect.promoted.bottom, effect.promoted.spread, in_words=in_words),
        "continuations": fenced(lines),
    }


def _format_token_effects(effects: Sequence[TokenEffect], spread: float, *, in_words: bool) -> str:
    """Write a line for each token: the token, a tab, its shift in standard deviations over the vocabulary."""
    shifts = [(quoted(effect.token), effect.value / spread) for effect in effects]
    lines = [
        f"{token}\t{_size(shift) if in_words else f'{shift:+.1f}'}" for token, shift in shifts if abs(shift) >= LEAST
    ]
    return fenced(lines) if lines else "(none stands out)"


def _size(shift: float) -> str:
    """A shift in a word: the top of any list reaches about 3 standard deviations."""
    return "strongly" if abs(shift) >= STRONG else "clearly" if abs(shift) > USUAL else "weakly"


def quoted(text: str) -> str:
    """Put the text on one line between « and »; nothing in it can end it."""
    return ACTIVE_MARKS[0] + spelled(text) + ACTIVE_MARKS[1]
