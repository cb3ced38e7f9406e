"""Surveys: a rule learned from all that was measured, and what is known already. No verdict comes of them.

Their designs say what they rest on, since an observation is known by its design: more measurements, or another
explanation in the store, make another survey of the same call.
"""

import hashlib
import json
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field

from ...causal.measures import Mean, mean
from ...data.store.search import similar
from ...explainers.rule import RuleExplainer
from ...rules.evaluate import TokenGrid, predict
from ...rules.language import Rule
from ...rules.observed import Disagreement, disagreements
from ..loop.experiments import Design, Measured
from ..loop.feature_lab import FeatureLab
from ..loop.hypotheses import StrictModel

SHOWN = 12


class LearnArgs(StrictModel, frozen=True):
    interventions: int = Field(96, ge=8, le=512, description="edits that are run the first time, beside what is known")


class LearnRule:
    """Learns a rule, without a language model, from the training examples and everything measured so far. Gives the
    rule as JSON and in English, how many measurements it fits, and where it does not."""

    name: ClassVar[str] = "learn_rule"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "feature"
    survey: ClassVar[bool] = True
    args: type[LearnArgs] = LearnArgs

    def __init__(self) -> None:
        self._explainers: WeakKeyDictionary[FeatureLab, dict[int, RuleExplainer]] = WeakKeyDictionary()

    def design(self, args: LearnArgs, lab: FeatureLab) -> Design:
        """No items; the plan names the measurements."""
        known = hashlib.sha256()
        for part in (lab.observed.ids, lab.observed.measured, lab.observed.activations):
            known.update(np.ascontiguousarray(part).tobytes())
        plan = {"measured": len(lab.observed), "known": known.hexdigest()[:16], "interventions": args.interventions}
        return Design("Which rule fits all that is known?", "response", (), plan)

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The share of measurements on the right side of half the peak; no effect where there are none."""
        explainer = self._explainer(lab, design.plan["interventions"])
        learned = explainer.learn(lab.evidence, lab.batch, lab.observed)
        found: dict[str, Any] = {"status": learned.status, "text": learned.text, "reason": learned.reason}
        fit: Mean | None = None
        if learned.rule is not None:
            rule = Rule.parse(learned.rule)
            found |= {"rule": json.loads(learned.rule), "length": rule.length()}
            if len(lab.observed):
                fit = _fit(rule, lab)
                told = disagreements(rule, lab.observed, vocabulary=lab.vocabulary, half=_half(lab))
                found["disagreements"] = [_plain(one) for one in told[:SHOWN]]
        low, high = (fit and fit.interval) or (None, None)
        return Measured(
            (),
            fit and fit.value,
            low,
            high,
            n=len(lab.observed),
            units="share of measurements that it fits",
            normalised_by=lab.normalised_by,
            found=found,
        )

    def _explainer(self, lab: FeatureLab, interventions: int) -> RuleExplainer:
        """The same explainer for the same lab: it keeps what its interventions gave."""
        own = self._explainers.setdefault(lab, {})
        if interventions not in own:
            own[interventions] = RuleExplainer(lab.subject, interventions=interventions, seed=lab.seed)
        return own[interventions]


class KnownArgs(StrictModel, frozen=True):
    limit: int = Field(10, ge=1, le=50, description="how many explanations of this and of similar features each")


class KnownExplanations:
    """Looks up the explanations that the database has of this feature and of those that fire on the same texts, with
    their scores. They may be wrong, and are worth a test."""

    name: ClassVar[str] = "known_explanations"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "feature"
    survey: ClassVar[bool] = True
    args: type[KnownArgs] = KnownArgs

    def design(self, args: KnownArgs, lab: FeatureLab) -> Design:
        """No items; the plan is what was found."""
        own = [
            {
                "text": stored.explanation.text,
                "rule": None if stored.explanation.rule is None else json.loads(stored.explanation.rule),
                "explainer": stored.explanation.explainer,
                "scores": {f"{s.scorer} {s.examples} {s.metric}": s.value for s in lab.store.scores(stored.id)},
            }
            for stored in lab.store.explanations(lab.feature)
            if stored.explanation.text is not None
        ]
        others = [
            {key: row[key] for key in ("feature", "explanation", "explainer", "score", "similarity")}
            for row in similar(lab.store, lab.feature, embedder=None).by_activation
            if row["explanation"] is not None
        ]
        plan = {"own": own[: args.limit], "similar": others[: args.limit]}
        return Design("What is known of this feature and of similar ones?", "response", (), plan)

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """What the design holds; there is nothing to run."""
        n = len(design.plan["own"]) + len(design.plan["similar"])
        return Measured(
            values=(),
            effect=None,
            low=None,
            high=None,
            n=n,
            units="explanations",
            normalised_by=lab.normalised_by,
            found=dict(design.plan),
        )


def _half(lab: FeatureLab) -> float:
    return lab.evidence.statistics.peak / 2


def _fit(rule: Rule, lab: FeatureLab) -> Mean:
    """The share of measurements that the rule has on the right side of half the peak."""
    observed = lab.observed
    said = predict(rule, TokenGrid(lab.vocabulary, observed.ids))[observed.measured]
    right = (said > _half(lab)) == (observed.activations[observed.measured] > _half(lab))
    return mean(right.astype(float).tolist(), seed=lab.seed)


def _plain(one: Disagreement) -> dict[str, Any]:
    return {
        "token": one.token,
        "offset": one.offset,
        "error": round(one.error, 4),
        "wrong": one.wrong,
        "measured": one.measured,
    }
