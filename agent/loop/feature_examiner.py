"""Examining a feature's explanation: the baseline to beat, the holdout, which is read once, and the controls.

The holdout has two halves. Natural: the feature's strongest holdout windows and as many random ones, and windows of
all its quantiles. Counterfactual: minimal pairs of holdout windows, made by a generator that knows neither the
explanation nor the transcript (data/counterfactual.py); and as the set `context` pairs that keep the token at the
pivot (context_pairs.py), since only they can show that an exception or a second condition is missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ...data.records import Evidence, Explanation, Score
from ...data.store.journal_values import Experiment
from ...explainers.explainer import AbstentionLimits, TrainBatch, abstention
from ...labelling.inputs import EvidenceLoader
from ...labelling.label import run_tasks, score_case
from ...llm.client import LLMClient
from ...scorers.calibration import calibrate
from ...scorers.holdout import Holdout
from ...scorers.metrics import CONSTANT
from ...scorers.scorer import Scorer
from ...scorers.simulation import RuleSimulator
from .context_pairs import context_pairs
from .controls import ControlResult, Supported
from .experiments import design_from_json
from .feature_lab import FeatureLab
from .hypotheses import Hypothesis

RANDOM_CONTROLS = 3
"""Other units whose activations stand in for the feature's."""
LEAST_AGREEMENT = {"counterfactual": 0.75, "context": 0.65}
"""Below this balanced accuracy on the holdout's pairs an explanation is not supported, whatever its odds. Half of the
context pairs flip, so that a rule without context has 0.5 there."""

DENSE, TABLE = 0.15, 150
"""Share of tokens on which a feature is active, and conditions, tokens and gains of a rule, above both of which the
rule is a table of cases: dense sums without a pattern take 235 and more, real dense features with one fewer."""


class FeatureExaminer:
    """Examines explanations of one feature. Nothing that it reads reaches a policy or a tool."""

    def __init__(
        self,
        loader: EvidenceLoader,
        lab: FeatureLab,
        evidence: Evidence,
        batch: TrainBatch,
        scorers: Sequence[Scorer],
        *,
        client: LLMClient | None = None,
    ) -> None:
        self._loader, self._lab, self._evidence, self._batch = loader, lab, evidence, batch
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
        holdouts = self._loader.holdouts([self._evidence], split="select")
        scores = self._scores(explanation, holdouts[self._lab.feature])
        return {"text": explanation.text, "rule": explanation.rule, "scores": [asdict(score) for score in scores]}

    def holdout(self, text: str, hypothesis: Hypothesis) -> list[Score]:
        """All scores on the holdout; to be called once."""
        holdout = self._loader.holdouts([self._evidence])[self._lab.feature]
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
        return self._scores(self.explanation(text, hypothesis), holdout)

    def explanation(self, text: str, hypothesis: Hypothesis) -> Explanation:
        """The hypothesis as an explanation."""
        rule = None if hypothesis.rule is None else hypothesis.rule.to_json()
        seen = {example.window for example in (*self._lab.examples, *self._evidence.tune)}
        seen.update(self._batch.background.digests)
        if self._batch.tune is not None:
            seen.update(self._batch.tune.digests)
        return Explanation(self._lab.feature, text, "investigation", rule=rule, seen=tuple(sorted(seen)))

    def roles(self, hypothesis: Hypothesis) -> None:
        """No roles: a feature has no nodes."""

    def indescribable(self, hypothesis: Hypothesis) -> str | None:
        """Why a hypothesis is no explanation although it predicts; None where it says something.

        Of a feature that is active nearly anywhere, a rule that lists what it does case by case is none.
        """
        density = self._lab.evidence.statistics.density
        length = 0 if hypothesis.rule is None else hypothesis.rule.length()
        if density <= DENSE or length <= TABLE:
            return None
        return f"active on {density:.0%} of all tokens, and the best rule is a table of {length} entries, no pattern"

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
    def shortfall(scores: Sequence[Score]) -> str | None:
        """Why an explanation with these holdout scores is not supported; None where it may be."""
        for score in scores:
            least = LEAST_AGREEMENT.get(score.examples) if score.metric == "agreement" else None
            if least is not None and score.reason == CONSTANT:
                return f"one prediction for all {score.examples} pairs of the holdout, which tells nothing apart"
            if least is not None and score.value is not None and score.value < least:
                return f"agreement of {score.value:.3f} on the {score.examples} pairs of the holdout, wanted {least}"
        natural = next((s for s in scores if (s.examples, s.metric) == ("top_random", "correlation")), None)
        if natural is not None and natural.ci_low is not None and natural.ci_low <= 0:
            return f"its correlation on natural holdout windows may be zero (interval from {natural.ci_low:.2f})"
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
        controls = {feature: self._loader.stored_control(feature)}
        cases = self._loader.cases(self._batch, {feature: explanation}, {feature: holdout}, controls)
        # A rule is simulated by code, exactly and for nothing; words only need a judge.
        by_rule = (RuleSimulator(seed=self._lab.seed),)
        scorers = calibrate(self._scorers, self._client) if explanation.rule is None else by_rule
        tasks = [score_case(scorers, case, self._client) for case in cases]
        return [score for scored in run_tasks(tasks, self._client) for score in scored.scores]
