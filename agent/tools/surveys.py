"""Surveys: a rule learned from all that was measured, and what is known already. No verdict comes of them.

Their designs say what they rest on, since an observation is known by its design: more measurements, or another
explanation in the store, make another survey of the same call.
"""

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field

from ...causal.measures import Mean, mean
from ...data.store.search import similar
from ...explainers.rule import RuleExplainer
from ...rules.language import Rule
from ...rules.observed import Disagreement, disagreements, hold
from ..loop.experiments import Design, Measured
from ..loop.feature_lab import FeatureLab
from ..loop.hypotheses import StrictModel
from .base import FeatureTool

SHOWN = 12


class LearnArgs(StrictModel, frozen=True):
    """Arguments of `learn_rule`."""

    interventions: int = Field(96, ge=8, le=512, description="edits that are run the first time, beside what is known")


class LearnRule(FeatureTool[LearnArgs]):
    """Learns a rule from the training examples and all that was measured. No language model is asked. Gives the rule as
    JSON and in English, how many measurements it fits, and where it does not; and a longer one, if that fits more.
    """

    name = "learn_rule"
    survey = True
    version = 4

    def __init__(self) -> None:
        self._explainers: WeakKeyDictionary[FeatureLab, dict[int, RuleExplainer]] = WeakKeyDictionary()

    def design(self, args: LearnArgs, lab: FeatureLab) -> Design:
        """No items; the plan names the measurements."""
        digest = hashlib.sha256()
        for part in (lab.observed.ids, lab.observed.measured, lab.observed.activations):
            digest.update(np.ascontiguousarray(part).tobytes())
        plan = {"measured": len(lab.observed), "known": digest.hexdigest()[:16], "interventions": args.interventions}
        return Design("Which rule fits all that is known?", "response", (), plan)

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The share of measurements on the right side of half the scale; no effect where there are none."""
        explainer = self._explainer(lab, design.plan["interventions"])
        learned = explainer.learn(lab.evidence, lab.batch, lab.observed, half=_half(lab))
        tables: dict[str, Any] = {"status": learned.status, "text": learned.text, "reason": learned.reason}
        fit: Mean | None = None
        if learned.rule is not None:
            rule = Rule.parse(learned.rule)
            tables |= {"rule": json.loads(learned.rule), "length": rule.length()}
            if learned.predictor is not None:
                tables["longer"] = json.loads(learned.predictor)
            if len(lab.observed):
                fit = _fit(rule, lab)
                misfits = disagreements(rule, lab.observed, vocabulary=lab.vocabulary, half=_half(lab))
                tables["disagreements"] = [_as_row(misfit) for misfit in misfits[:SHOWN]]
        low, high = (fit and fit.interval) or (None, None)
        return Measured(
            (),
            fit and fit.value,
            low,
            high,
            n=len(lab.observed),
            units="share of measurements that it fits",
            normalised_by=lab.normalised_by,
            found=tables,
        )

    def _explainer(self, lab: FeatureLab, interventions: int) -> RuleExplainer:
        """The same explainer for the same lab: it keeps what its interventions gave."""
        own = self._explainers.setdefault(lab, {})
        if interventions not in own:
            own[interventions] = RuleExplainer(lab.subject, interventions=interventions, seed=lab.seed)
        return own[interventions]


class KnownArgs(StrictModel, frozen=True):
    """Arguments of `known_explanations`."""

    limit: int = Field(10, ge=1, le=50, description="how many explanations of this and of similar features each")


class KnownExplanations(FeatureTool[KnownArgs]):
    """Looks up explanations of this feature and of those that fire on the same texts. With their scores; they may be
    wrong, and are worth a test.
    """

    name = "known_explanations"
    survey = True

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
    return lab.scale / 2


def _fit(rule: Rule, lab: FeatureLab) -> Mean:
    """The share of measurements that the rule has on the right side of half the scale."""
    wrong = hold(rule, lab.observed, vocabulary=lab.vocabulary, half=_half(lab)).wrong
    return mean((~wrong).astype(float).tolist(), seed=lab.seed)


def _as_row(misfit: Disagreement) -> dict[str, Any]:
    return {
        "token": misfit.token,
        "offset": misfit.offset,
        "error": round(misfit.error, 4),
        "wrong": misfit.wrong,
        "measured": misfit.measured,
    }
