"""The output side: explains a feature by what it writes, not by what it fires on.

Shown are the tokens that the feature's direction raises and lowers the most (subject/directions.py), and a few
neutral beginnings of training text, continued by the subject as it is and with the feature held at twice its peak
(causal/clamping.py). All features of a batch are steered together, on the same beginnings: for F features
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
from .ask import Extent, PromptExplainer, Shown
from .explainer import Background, TrainBatch, TrainEvidence, abstention

STRENGTH = 2.0
"""A feature is held at this multiple of its peak."""
BEGINNINGS, LENGTH = 4, 12
"""How many beginnings are continued, and their tokens."""
WRITTEN = 12
"""Tokens of a continuation."""
LISTED, LEAST = 10, 1.0
"""Tokens that are listed as raised, and as lowered, at most; those that are moved by so many standard deviations."""
SETTINGS = {
    "strength": STRENGTH,
    "beginnings": BEGINNINGS,
    "length": LENGTH,
    "written": WRITTEN,
    "listed": LISTED,
    "least": LEAST,
}
NOTHING = "(nothing: what it writes is zero)"


class Writing(NamedTuple):
    """What a feature does to the subject's output."""

    promoted: Promoted
    plain: Continuations
    """Of each beginning, without the feature."""
    steered: Continuations
    """Of each beginning, with the feature held."""


class Beginnings(NamedTuple):
    """Neutral text to continue: how training windows begin, each of another document."""

    ids: list[list[int]]
    digests: list[str]
    """Of the windows."""

    @classmethod
    def of(cls, background: Background) -> "Beginnings":
        """The first of the background, whose order is random."""
        first = {document: row for row, document in reversed(list(enumerate(background.documents)))}
        rows = sorted(first.values())[:BEGINNINGS]
        return cls([background.ids[row, :LENGTH].tolist() for row in rows], [background.digests[row] for row in rows])


class Writings:
    """What the features of a batch write, worked out for all of them at once and kept until another batch comes."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._known: dict[Feature, Writing | None] = {}
        self._background: Background | None = None

    def of(self, feature: Feature, batch: TrainBatch) -> Writing | None:
        """None where the feature never fires, or its direction is zero, so that there is nothing to show."""
        if self._background is not batch.background or feature not in self._known:
            self._known, self._background = self._written(batch), batch.background
        return self._known[feature]

    def _written(self, batch: TrainBatch) -> dict[Feature, Writing | None]:
        subject, source = self.subject, batch.source
        clamps = [
            Clamp(evidence.feature, STRENGTH * evidence.statistics.peak)
            for evidence in batch.features
            if evidence.statistics.peak > 0 and bool(direction(subject, source, evidence.feature).vector.any())
        ]
        found: dict[Feature, Writing | None] = {evidence.feature: None for evidence in batch.features}
        if clamps:
            steered = steer(subject, source, clamps, Beginnings.of(batch.background).ids, tokens=WRITTEN)
            for clamp, rows in zip(clamps, steered.steered, strict=True):
                tokens = promoted(subject, source, clamp.feature, count=LISTED)
                found[clamp.feature] = Writing(tokens, steered.plain, rows)
        return found


class Output(PromptExplainer):
    """Explains from promoted tokens and steered continuations."""

    name = "output"
    extent = Extent(top=0, before=0, after=0)

    def __init__(
        self, subject: Subject, *, prompt: Prompt | None = None, temperature: float | None = 0.0, draw: int = 0
    ) -> None:
        """A rule is not invited: rules say when a feature fires, not what it writes."""
        super().__init__(prompt=prompt, temperature=temperature, draw=draw, rules=False)
        self._writings = Writings(subject)

    @property
    def settings(self) -> dict[str, object]:
        return {**super().settings, "output": SETTINGS}

    def show(self, evidence: TrainEvidence, batch: TrainBatch) -> Shown:
        """Tokens and continuations; no window beyond the beginnings."""
        places = output_places(self._writings, evidence.feature, batch)
        return Shown(places, tuple(Beginnings.of(batch.background).digests), evidence.statistics.peak)

    def explain(self, batch: TrainBatch) -> LLMTask[list[Explanation]]:
        """As for every prompt; a feature that writes nothing is not asked about and has the status "no_pattern"."""
        silent = {evidence.feature for evidence in batch.features if self._is_silent(evidence, batch)}
        asked = [evidence for evidence in batch.features if evidence.feature not in silent]
        made = yield from super().explain(replace(batch, features=asked))
        found = {explanation.feature: explanation for explanation in made}
        reason = "it writes nothing: its direction in the residual stream is zero"
        found |= {f: Explanation(f, None, self.name, reason=reason, status="no_pattern") for f in silent}
        return [found[evidence.feature] for evidence in batch.features]

    def _is_silent(self, evidence: TrainEvidence, batch: TrainBatch) -> bool:
        explained = abstention(evidence, explainer=self.name, limits=self._limits) is None
        return explained and self._writings.of(evidence.feature, batch) is None


def output_places(writings: Writings, feature: Feature, batch: TrainBatch) -> dict[str, str]:
    """What fills `$raised`, `$lowered` and `$continuations`."""
    writing = writings.of(feature, batch)
    if writing is None:
        return dict.fromkeys(("raised", "lowered", "continuations"), NOTHING)
    lines: list[str] = []
    beginnings = Beginnings.of(batch.background).ids
    for number, rows in enumerate(zip(beginnings, writing.plain, writing.steered, strict=True), start=1):
        begins, plain, steered = (quoted("".join(writings.subject.decode_tokens(row))) for row in rows)
        lines += [f"{number}. {begins}", f"   without: {plain}", f"   with: {steered}"]
    return {
        "raised": _listed(writing.promoted.top, writing.promoted.spread),
        "lowered": _listed(writing.promoted.bottom, writing.promoted.spread),
        "continuations": fenced(lines),
    }


def _listed(effects: Sequence[TokenEffect], spread: float) -> str:
    """A line for each token: the token, a tab, by how many standard deviations over the vocabulary it is moved."""
    moved = [(quoted(effect.token), effect.value / spread) for effect in effects]
    lines = [f"{token}\t{by:+.1f}" for token, by in moved if abs(by) >= LEAST]
    return fenced(lines) if lines else "(none stands out)"


def quoted(text: str) -> str:
    """The text on one line between « and »; what it holds cannot end it."""
    return ACTIVE_MARKS[0] + spelled(text) + ACTIVE_MARKS[1]
