"""Examining a feature's explanation: the baseline to beat, the holdout, which is read once, and the controls.

The holdout has two halves. Natural: the feature's strongest holdout windows and as many random ones, and windows of
all its quantiles. Counterfactual: minimal pairs of holdout windows, made by a generator that knows neither the
explanation nor the transcript (data/counterfactual.py); and as the set `context` pairs that keep the token at the
pivot (context_pairs.py), since only they can show that an exception or a second condition is missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ...data.records import Evidence, Explanation, Score, Split
from ...data.store.journal_values import Experiment
from ...explainers.explainer import AbstentionLimits, TrainBatch, abstention
from ...labelling.inputs import Columns, EvidenceLoader
from ...labelling.label import run_tasks, score_case
from ...llm.client import LLMClient
from ...rules.english import tell_headline
from ...rules.evaluate import TokenGrid, predict
from ...rules.language import Rule, parse_rule
from ...rules.telling import can_be_told, shorten_to_tell
from ...scorers.calibration import calibrate
from ...scorers.holdout import Holdout
from ...scorers.metrics import CONSTANT, CONSTANT_PREDICTION, difference
from ...scorers.scorer import Scorer
from ...scorers.simulation import RuleSimulator
from ...subject.address import Feature
from .context_pairs import context_pairs
from .controls import ControlResult, Supported
from .experiments import design_from_json
from .feature_lab import FeatureLab
from .hypotheses import Hypothesis
from .target import Examined, Finalist, Question, Shortfall

RANDOM_CONTROLS = 3
"""Other units whose activations stand in for the feature's."""
LEAST_AGREEMENT = 0.75
"""Below this balanced accuracy on the holdout's pairs an explanation is not supported, whatever its odds."""
PAIRS: dict[str, Question] = {"counterfactual": "counterfactual", "context": "context"}
"""The sets of pairs, by the question that stays open; of the context pairs a rule without context has 0.5."""

COMPARED = ("top_random", "counterfactual")
"""Sets of `select` on which finalists are compared."""
ADDED = ("correlation", "agreement")
"""Metrics of which the difference to the label is told."""

DENSE = 0.15
"""Share of tokens on which a feature is above a tenth of its peak, from which on a rule that words cannot tell is a
table of cases."""


class Holdouts(NamedTuple):
    """What explanations of one feature are judged on. Nothing of it reaches a policy or a tool."""

    loader: EvidenceLoader
    evidence: Evidence
    columns: Mapping[Feature, Columns]

    def read(self, split: Split, scale: float) -> Holdout:
        """The holdout, or `select`. It fires there from half of `scale` on, as in experiments.

        The highest activation of all text may be many times that of its strongest examples.
        """
        peaks = {self.evidence.feature: scale}
        return self.loader.holdouts([self.evidence], self.columns, split=split, peaks=peaks)[self.evidence.feature]


class FeatureExaminer:
    """Examines explanations of one feature. Nothing that it reads reaches a policy or a tool."""

    def __init__(
        self,
        holdouts: Holdouts,
        lab: FeatureLab,
        batch: TrainBatch,
        scorers: Sequence[Scorer],
        *,
        client: LLMClient | None = None,
        battery: Sequence[str] = (),
    ) -> None:
        """`battery`: what the fixed battery found, in lines of words."""
        self._battery = battery
        self._holdouts, self._lab, self._batch = holdouts, lab, batch
        self._scorers, self._client = scorers, client
        lab.beside = tuple(self._others(np.random.default_rng(lab.seed)))

    def refusal(self) -> Explanation | None:
        """Why there is nothing to investigate: a dead, too rare or dense feature."""
        return abstention(self._lab.evidence, explainer="investigation", limits=AbstentionLimits())

    def baseline(self) -> dict[str, Any]:
        """The one-shot explanation and its scores on `select`: what an investigation has to beat."""
        explanation = self._lab.baseline
        if explanation is None or explanation.text is None:
            return {
                "text": None,
                "reason": explanation.reason if explanation else "no baseline",
                "rule": None,
                "scores": [],
            }
        scores = self._scores(explanation, self._select)
        return {
            "text": explanation.text,
            "rule": explanation.rule,
            "by": explanation.explainer,
            "scores": [asdict(score) for score in scores],
            "battery": list(self._battery),
        }

    @cached_property
    def _select(self) -> Holdout:
        return self._holdouts.read("select", self._lab.scale)

    def compare(self, finalists: Mapping[str, Hypothesis]) -> list[Finalist]:
        """The finalists on the natural and the edited windows of `select`; without those that have no value there."""
        return [row for name, h in finalists.items() if h.rule and (row := self._finalist(name, h, h.rule))]

    def _finalist(self, name: str, hypothesis: Hypothesis, rule: Rule) -> Finalist | None:
        scores = self._scores(self.explanation(hypothesis.text, hypothesis), self._select)
        measured = [score for score in scores if score.metric == "correlation" and score.examples in COMPARED]
        # What predicts the same everywhere knows nothing of the set.
        known = [0.0 if score.reason == CONSTANT_PREDICTION else score.value for score in measured]
        values = [value for value in known if value is not None]
        if not values:
            return None
        widths = [s.ci_high - s.ci_low for s in measured if s.ci_high is not None and s.ci_low is not None]
        error = None
        if len(widths) == len(values):
            error = sum((width / 3.92) ** 2 for width in widths) ** 0.5 / len(values)  # 95% is 3.92
        return Finalist(name, sum(values) / len(values), error, rule.length(), can_be_told(rule))

    def holdout(self, text: str, hypothesis: Hypothesis) -> Examined:
        """All scores on the holdout, of the label that there was before as well; to be called once."""
        holdout = self._holdouts.read("holdout", self._lab.scale)
        pairs = context_pairs(
            self._lab.subject,
            self._lab.source,
            self._lab.feature,
            holdout.examples,
            peak=holdout.peak,
            corpus=self._batch.background.ids,
            seed=self._lab.seed + 1,
        )
        holdout = replace(holdout, sets={**holdout.sets, "context": pairs})
        scores, label = self._scores(self.explanation(text, hypothesis), holdout), self._lab.baseline
        if label is None or label.text is None:
            return Examined(scores)
        return Examined(scores, self._scores(label, holdout), list(self._added(hypothesis, label, holdout)))

    def _added(self, hypothesis: Hypothesis, label: Explanation, holdout: Holdout) -> Iterator[dict[str, Any]]:
        """What a rule is ahead of the label's on every set of the holdout."""
        if hypothesis.rule is None or label.rule is None:
            return
        for name, windows in holdout.sets.items():
            if not len(windows.ids):
                continue
            grid = TokenGrid(holdout.vocabulary, windows.ids)
            ours, theirs = (windows.at(predict(rule, grid)) for rule in (hypothesis.rule, parse_rule(label.rule)))
            known = ~np.isnan(windows.true)
            true, ours, theirs = (np.where(known, side, 0.0) for side in (windows.true, ours, theirs))
            half = holdout.peak / 2
            levels = hypothesis.rule.fires_from(half), parse_rule(label.rule).fires_from(half)
            measures = difference(true, ours, theirs, known, threshold=half, fires_from=levels)
            for metric, measured in measures.items():
                if metric in ADDED:
                    yield {"examples": name, "metric": metric, **asdict(measured)}

    def explanation(self, text: str, hypothesis: Hypothesis) -> Explanation:
        """The hypothesis as an explanation."""
        rule = None if hypothesis.rule is None else hypothesis.rule.to_json()
        seen = {example.window for example in (*self._lab.examples, *self._holdouts.evidence.tune)}
        seen.update(self._batch.background.digests)
        if self._batch.tune is not None:
            seen.update(self._batch.tune.digests)
        label = self._lab.baseline
        headline, predictor = None, None
        if label is not None and rule is not None and label.rule == rule:
            headline, predictor = label.headline, label.predictor
        elif hypothesis.rule is not None:
            headline = tell_headline(shorten_to_tell(hypothesis.rule))
        if headline is not None and not text.startswith(headline):
            # The words are the policy's own.
            headline = None
        return Explanation(
            self._lab.feature,
            text,
            "investigation",
            rule=rule,
            headline=headline,
            predictor=predictor,
            seen=tuple(sorted(seen)),
        )

    def roles(self, hypothesis: Hypothesis) -> None:
        """No roles: a feature has no nodes."""

    def indescribable(self, hypothesis: Hypothesis, grading: str | None) -> str | None:
        """Why a hypothesis is no explanation although it predicts; None where it says something.

        Of a feature that is active nearly anywhere, a rule that lists what it does case by case is none. Nor is a
        cause whose `grading` is open: of such a feature it is the question how strongly it fires.
        """
        active = self._lab.evidence.statistics.active
        if active is None or active <= DENSE or hypothesis.rule is None:
            return None
        dense = f"above a tenth of its peak on {active:.0%} of all tokens"
        if grading is not None:
            return f"{dense}, and how strongly is open: {grading}"
        if can_be_told(hypothesis.rule):
            return None
        return f"{dense}, and the best rule is a table of {hypothesis.rule.length()} entries, no pattern"

    def random_control(self, experiments: Sequence[Experiment], supported: Supported) -> ControlResult | None:
        """Whether other units' activations on the same inputs leave the leader unsupported; None without others."""
        others = len(self._lab.beside)
        if not others:
            return None
        supports = sum(map(supported, self._random_controls(experiments)))
        what = f"the same inputs, other units' activations: by how many of {others} it is supported, too"
        # One of them may be the feature's twin, for which the explanation does hold.
        return ControlResult("sham", what, supports <= 1 and supports < others, float(supports))

    @staticmethod
    def shortfall(scores: Sequence[Score]) -> Shortfall | None:
        """Why an explanation with these holdout scores is not supported; None where it may be."""
        for score in scores:
            question = PAIRS.get(score.examples) if score.metric == "agreement" else None
            if question is None:
                continue
            if score.reason == CONSTANT:
                why = f"one prediction for all {score.examples} pairs of the holdout, which tells nothing apart"
                return Shortfall(question, why)
            if score.value is not None and score.value < LEAST_AGREEMENT:
                pairs = f"the {score.examples} pairs of the holdout"
                why = f"agreement of {score.value:.3f} on {pairs}, wanted {LEAST_AGREEMENT}"
                return Shortfall(question, why)
        natural = next((s for s in scores if (s.examples, s.metric) == ("top_random", "correlation")), None)
        if natural is not None and natural.ci_low is not None and natural.ci_low <= 0:
            why = f"its correlation on natural holdout windows may be zero (interval from {natural.ci_low:.2f})"
            return Shortfall("natural", why)
        return None

    def _others(self, rng: np.random.Generator) -> list[int]:
        """Other units of the source that the training background shows alive."""
        rows = self._lab.store.list_rows(self._lab.feature.source, limit=None)
        alive = [int(str(row["feature"]).rstrip("-").rpartition(":")[2]) for row in rows if row["status"] != "dead"]
        others = sorted(set(alive) - {self._lab.feature.index})
        return [int(i) for i in rng.permutation(others)[:RANDOM_CONTROLS]]

    def _random_controls(self, experiments: Sequence[Experiment]) -> Iterator[dict[str, list[float]]]:
        """What each unit beside it does at the items' pivots, in units of its own strongest value there."""
        designs = [design_from_json(experiment.design) for experiment in experiments]
        ends = np.cumsum([len(design.items) for design in designs])[:-1]
        for values in self._lab.respond_others([item for design in designs for item in design.items]).T:
            parts = np.split(values / max(float(values.max()), 1e-6), ends)
            yield {e.name: part.tolist() for e, part in zip(experiments, parts, strict=True)}

    def _scores(self, explanation: Explanation, holdout: Holdout) -> list[Score]:
        feature = explanation.feature
        controls = {feature: self._holdouts.loader.stored_control(feature)}
        cases = self._holdouts.loader.cases(self._batch, {feature: explanation}, {feature: holdout}, controls)
        # A rule is simulated by code, exactly and for nothing; words only need a judge.
        by_rule = (RuleSimulator(seed=self._lab.seed),)
        scorers = calibrate(self._scorers, self._client) if explanation.rule is None else by_rule
        tasks = [score_case(scorers, case, self._client) for case in cases]
        return [score for scored in run_tasks(tasks, self._client) for score in scored.scores]
