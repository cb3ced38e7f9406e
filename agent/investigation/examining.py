"""Examining a feature's explanation: the baseline to beat, the holdout, which is read once, and the controls.

The holdout has two halves. Natural: the feature's strongest holdout windows and as many random ones, and windows of
all its quantiles. Counterfactual: minimal pairs of holdout windows, made by a generator that knows neither the
explanation nor the transcript (data/counterfactual.py); and of these, as the set `context`, the pairs that keep the
token at the pivot, since only they can show that an exception or a second condition is missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ...data.activations import read_own
from ...data.journal_values import Experiment, Observation
from ...data.records import Evidence, Explanation, Score
from ...explainers.abstain import Limits as Bounds
from ...explainers.abstain import abstention
from ...explainers.batch import TrainBatch
from ...explainers.llm.desk import Desk
from ...scorers.holdout import Holdout, ScoredWindows
from ...scorers.scorer import Scorer
from ..bench import Bench
from ..label import answered, scoring
from .controls import ControlResult, judged, permuted_and_dead, supporter
from .hypotheses import Hypothesis
from .lab import FeatureLab
from .planning import design_of

SHAMS = 3
"""Other units whose activations stand in for the feature's."""
LEAST_AGREEMENT = 0.75
"""Below this balanced accuracy on counterfactual pairs an explanation is not supported, whatever its odds."""


class FeatureExaminer:
    """Examines explanations of one feature. Nothing that it reads reaches a policy or a tool."""

    def __init__(
        self, bench: Bench, lab: FeatureLab, evidence: Evidence, batch: TrainBatch, scorers: Sequence[Scorer], *,
        desk: Desk | None = None,
    ) -> None:  # fmt: skip
        self._bench, self._lab, self._evidence, self._batch = bench, lab, evidence, batch
        self._scorers, self._desk = scorers, desk

    def refusal(self) -> Explanation | None:
        """Why there is nothing to investigate: a dead, too rare or dense feature."""
        return abstention(self._lab.evidence, explainer="investigation", limits=Bounds())

    def baseline(self) -> dict[str, Any]:
        """The one-shot explanation and its scores on `select`: what an investigation has to beat."""
        made = self._lab.baseline
        if made is None or made.text is None:
            return {"text": None, "reason": made.reason if made else "no baseline", "rule": None, "scores": []}
        judged = self._bench.judged([self._evidence], split="select")
        scores = self._scores(made, judged[self._lab.feature])
        return {"text": made.text, "rule": made.rule, "scores": [asdict(score) for score in scores]}

    def holdout(self, text: str, hypothesis: Hypothesis) -> list[Score]:
        """All scores on the holdout; to be called once."""
        judged = self._bench.judged([self._evidence])[self._lab.feature]
        return self._scores(self.explanation(text, hypothesis), with_context(judged))

    def explanation(self, text: str, hypothesis: Hypothesis) -> Explanation:
        """The hypothesis as an explanation."""
        rule = None if hypothesis.rule is None else hypothesis.rule.to_json()
        seen = {example.window for example in self._lab.examples} | set(self._batch.background.digests)
        return Explanation(self._lab.feature, text, "investigation", rule=rule, seen=tuple(sorted(seen)))

    def controls(
        self, hypotheses: Mapping[str, Hypothesis], experiments: Sequence[Experiment],
        observations: Mapping[str, Observation], leader: str,
    ) -> list[ControlResult]:  # fmt: skip
        """Whether false observations leave the leader unsupported."""
        used, real = judged(experiments, observations, "feature")
        if not used:
            return []
        supported = supporter(hypotheses, used, observations, leader, "feature")
        results = permuted_and_dead(real, supported, seed=self._lab.seed)
        others = self._others(np.random.default_rng(self._lab.seed))
        if others:
            shams = sum(supported(self._sham(used, unit)) for unit in others)
            what = f"the same inputs, other units' activations: by how many of {len(others)} it is supported, too"
            # One of them may be the feature's twin, for which the explanation does hold.
            results.append(ControlResult("sham", what, shams <= 1 and shams < len(others), float(shams)))
        return results

    def shortfall(self, scores: Sequence[Score]) -> str | None:
        """Why an explanation with these holdout scores is not supported; None where it may be."""
        for score in scores:
            if score.metric == "agreement" and score.value is not None and score.value < LEAST_AGREEMENT:
                return (
                    f"agreement of {score.value:.2f} on the {score.examples} pairs of the holdout, "
                    f"wanted {LEAST_AGREEMENT}"
                )
        natural = next((s for s in scores if (s.examples, s.metric) == ("top_random", "correlation")), None)
        if natural is not None and natural.ci_low is not None and natural.ci_low <= 0:
            return f"its correlation on natural holdout windows may be zero (interval from {natural.ci_low:.2f})"
        return None

    def _others(self, rng: np.random.Generator) -> list[int]:
        """Other units of the source that the training background shows alive."""
        rows = self._lab.store.list_rows(self._lab.feature.source, limit=None)
        alive = [int(str(row["feature"]).rstrip("-").rpartition(":")[2]) for row in rows if row["status"] != "dead"]
        others = sorted(set(alive) - {self._lab.feature.index})
        return [int(i) for i in rng.permutation(others)[:SHAMS]]

    def _sham(self, experiments: Sequence[Experiment], unit: int) -> dict[str, list[float]]:
        """What another unit does at the items' pivots, in units of its own strongest value there."""
        designs = [design_of(experiment.design) for experiment in experiments]
        items = [item for design in designs for item in design.items]
        ids = np.zeros((len(items), max(len(item.ids) for item in items)), np.int64)
        for row, item in zip(ids, items, strict=True):
            row[: item.pivot + 1] = item.ids[: item.pivot + 1]
        read = read_own(self._lab.subject, self._lab.source, ids, np.full(len(ids), unit))
        values = read[np.arange(len(items)), [item.pivot for item in items]]
        values = values / max(float(values.max()), 1e-6)
        ends = np.cumsum([len(design.items) for design in designs])[:-1]
        parts = np.split(values, ends)
        return {e.name: part.tolist() for e, part in zip(experiments, parts, strict=True)}

    def _scores(self, made: Explanation, holdout: Holdout) -> list[Score]:
        cases = self._bench.cases(self._batch, {made.feature: made}, {made.feature: holdout}, elsewhere=True)
        judged = next(iter(answered([scoring(self._scorers, cases, self._desk)], self._desk)), {})
        return judged[made.feature][0] if made.feature in judged else []


def with_context(holdout: Holdout) -> Holdout:
    """The holdout with one more set, `context`: the counterfactual pairs that keep the token at the pivot."""
    pairs = holdout.sets["counterfactual"]
    if not len(pairs.ids):
        return holdout
    tokens = pairs.at(pairs.ids.astype(np.float32))
    kept = tokens[:, 0] == tokens[:, 1]
    context = ScoredWindows(pairs.ids, pairs.true[kept], pairs.rows[kept], pairs.positions[kept], pairs.digests)
    return replace(holdout, sets={**holdout.sets, "context": context})
