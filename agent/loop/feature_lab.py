"""The lab of a feature: what tools may use, and nothing of the holdout.

It reads the feature on windows that tools make, counts every prompt that is run through the subject, says what a
hypothesis expects of an experiment's items, and collects what was measured, so that rules are learned from it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...data.harvest.activations import read_last, read_own
from ...data.records import Example, Explanation, Statistics
from ...data.store.store import Store
from ...explainers.battery.places import TrainingSide
from ...explainers.explainer import TrainBatch, TrainEvidence
from ...rules.english import describe
from ...rules.evaluate import TokenGrid, predict
from ...rules.language import Clause, Rule, Token
from ...rules.observed import Observed, hold
from ...rules.telling import shorten_to_tell
from ...scorers.holdout import token_baselines
from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.sources import Source
from .experiments import Design, Item
from .hypotheses import Hypothesis
from .levels import balanced
from .target import Meter

TOKENS, SILENT = 200, 0.02
"""Tokens that the hypothesis of token identity names at most, and the share of the scale from which on it does."""


class FeatureLab(TrainingSide):
    """One feature, ready for experiments."""

    kind: Literal["feature"] = "feature"

    def __init__(
        self,
        store: Store,
        subject: Subject,
        source: Source,
        evidence: TrainEvidence,
        batch: TrainBatch,
        *,
        baseline: Explanation | None = None,
        seed: int = 0,
    ) -> None:
        """`batch` holds what features share; `baseline` is the one-shot explanation, where there is one."""
        super().__init__(subject, evidence, batch, seed=seed)
        self.store, self.source, self.baseline = store, source, baseline
        self.token_rule, self.token_table = token_baselines(evidence, batch)
        """What single tokens say, by token id (scorers/holdout.py)."""
        self.observed = Observed.none(self.width)
        """All that experiments measured so far."""
        self.rivals: Mapping[str, Hypothesis] = {}
        """The live hypotheses by name, the leader first; set before a tool designs an experiment."""
        self.meter = Meter()
        self.beside: tuple[int, ...] = ()
        """Other units of the source that are read along, for controls: no tool sees them."""
        self._read: dict[tuple[int, ...], NDArray[np.float32]] = {}
        """(1 + unit,) by the ids up to a pivot."""

    @property
    def target(self) -> str:
        """The feature's address."""
        return str(self.feature)

    @property
    def normalised_by(self) -> str:
        """What 1 is in values of a response."""
        return f"median peak of its strongest training examples: {self.scale:.3g}"

    @property
    def statistics(self) -> Statistics | None:
        """What the harvest says of the feature."""
        return self.evidence.statistics

    def about(self) -> dict[str, Any]:
        """The site, the windows' width and the size of the vocabulary, for policies."""
        return {"site": self.feature.source.site, "window": self.width, "vocabulary": len(self.vocabulary)}

    def nulls(self) -> list[Hypothesis]:
        """The two rivals that are always there."""
        rule = self._token_identity()
        text = f"Only the current token matters: {describe(shorten_to_tell(rule), peak=self.evidence.statistics.peak)}."
        return [
            Hypothesis(text=text, kind="token_identity", rule=rule),
            Hypothesis(text="No pattern: nothing predicts it better than the base rate.", kind="no_pattern"),
        ]

    def fault(self, hypothesis: Hypothesis) -> str | None:
        """Why a hypothesis cannot be put up here, in one line; None where it can."""
        if hypothesis.kind == "circuit" or hypothesis.nodes:
            return "a feature has no circuit; say when it is active, as a rule or described, and what it reads"
        if hypothesis.kind == "rule" and hypothesis.rule is None:
            return "kind=rule needs a rule; give one, or say kind=described"
        if hypothesis.rule is not None and hypothesis.rule.looks_ahead:
            return "the rule looks at tokens behind the current one, which the model has not read there"
        return None

    def _token_identity(self) -> Rule:
        """The mean activation of each token that is not silent on average."""
        by_string: dict[str, list[float]] = {}
        for token in np.argsort(-self.token_table, kind="stable")[:TOKENS].tolist():
            if self.token_table[token] >= SILENT * self.scale:
                by_string.setdefault(self.vocabulary[token], []).append(float(self.token_table[token]))
        if not by_string:
            return Rule(any=(Clause(value=0.0),))
        gains = {string: float(f"{sum(values) / len(values):.3g}") for string, values in by_string.items()}
        return Rule(any=(Clause(when=(Token(any=tuple(gains)),), value=max(gains.values()), gains=gains),))

    def read(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """The feature's activation at every token, in the source's units, its tail turned upwards.

        (row, position) ids without BOS -> (row, position).
        """
        if not len(ids):
            return np.empty(ids.shape, np.float32)
        activations = read_own(self.subject, self.source, ids, np.full(len(ids), self.feature.index))
        return -activations if self.feature.negative else activations

    def respond(self, items: Sequence[Item]) -> tuple[float, ...]:
        """The activation at each item's pivot, in units of the scale."""
        values = self._at_pivots(items)[:, 0] / self.scale
        return tuple(round(float(value), 5) for value in (-values if self.feature.negative else values))

    def respond_others(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """The activations of the units `beside` at each item's pivot, in the source's units. -> (item, unit)."""
        return self._at_pivots(items)[:, 1:]

    def _at_pivots(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """The activations of the feature and of the units beside it at the pivots. -> (item, 1 + unit).

        What is equal up to the pivot is run once, in the whole investigation; what stands after a causal model's pivot
        cannot matter.
        """
        prefixes = [item.ids[: item.pivot + 1] for item in items]
        new = [prefix for prefix in dict.fromkeys(prefixes) if prefix not in self._read]
        columns = [self.feature.index, *self.beside]
        self._read |= dict(zip(new, read_last(self.subject, self.source, new, columns), strict=True))
        return np.array([self._read[prefix] for prefix in prefixes], np.float32).reshape(-1, len(columns))

    def window(self, digest: str) -> Example:
        """The training example of a window's digest; refuses windows of other splits."""
        for example in self.examples:
            if example.window == digest:
                return example
        raise NeuronautError(f"window {digest} is none of the training windows of {self.target}; name one of these")

    def expect(self, hypothesis: Hypothesis, design: Design) -> tuple[float | None, ...]:
        """What a hypothesis with an executable twin expects of each item, in units of the scale; None: no opinion."""
        if design.readout == "effect":
            return tuple(_effect_expected(hypothesis, item.about) for item in design.items)
        if hypothesis.rule is None:
            return (None,) * len(design.items)
        grid = TokenGrid(self.vocabulary, _pad([item.ids for item in design.items]))
        predictions = predict(hypothesis.rule, grid)
        rows = np.arange(len(design.items))
        values = predictions[rows, [item.pivot for item in design.items]] / self.scale
        return tuple(round(float(value), 4) for value in values)

    def told_rightly(self, rule: Rule) -> float:
        """The share of all measured tokens of which a rule says rightly whether the feature fires.

        Balanced over those that fire and those that do not.
        """
        of_rule = hold(rule, self.observed, vocabulary=self.vocabulary, half=self.scale / 2)
        return balanced(of_rule.said, of_rule.fired) if len(of_rule.fired) else 0.0

    def take(self, design: Design, values: Sequence[float]) -> None:
        """Notes what an experiment measured."""
        items = [(item, value) for item, value in zip(design.items, values, strict=True) if len(item.ids) == self.width]
        if design.readout == "response" and items:
            ids = np.array([item.ids for item, _ in items], np.int64)
            pivots = [item.pivot for item, _ in items]
            self.observed += Observed.at(ids, pivots, [value * self.scale for _, value in items])


def _effect_expected(hypothesis: Hypothesis, about: Mapping[str, Any]) -> float | None:
    """1 for what the hypothesis names, 0 for what it does not, -1 for what it says is lowered; None: no opinion."""
    if (token := about.get("token")) is not None:
        if not (hypothesis.promotes or hypothesis.suppresses):
            return None
        return 1.0 if token in hypothesis.promotes else -1.0 if token in hypothesis.suppresses else 0.0
    if (node := about.get("node")) is not None and hypothesis.reads:
        return 1.0 if node in hypothesis.reads else 0.0
    return None


def _pad(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    padded = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded
