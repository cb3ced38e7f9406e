"""The protocol of scorers, and the step from judgements to scores.

A scorer only judges: it lays predictions beside the truth. The metrics are computed here, from judgements alone,
so they can be computed again from stored ones without asking anyone; and so is who judged, from their provenance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from ..data.judges import identify_judge
from ..data.records import Explanation, Judgements, Score
from ..llm.prompt import Prompt
from ..llm.tasks import LLMTask
from .holdout import Baselines, Holdout
from .metrics import CONSTANT, Measured, agreement, auroc, evaluate


@dataclass(frozen=True, slots=True)
class Case:
    """An explanation, and the holdout and baselines that it is judged with."""

    explanation: Explanation
    holdout: Holdout
    baselines: Baselines | None
    """None where no scorer compares with them."""
    other: Explanation | None = None
    """Another feature's explanation, for the shuffled control; None where no other is at hand."""


class Scorer(Protocol):
    """Judges explanations on text that their explainer never saw."""

    @property
    def name(self) -> str:
        """The scorer's name in scores."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """All that, beside the case, determines a judgement."""
        ...

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts that the scorer renders; none where it asks nobody."""
        ...

    @property
    def keeps_judgements(self) -> bool:
        """Whether its judgements are worth keeping, because asking again would cost."""
        ...

    @property
    def compares(self) -> bool:
        """Whether it judges the baselines, too, which are learned from many windows."""
        ...

    def judge(self, case: Case) -> list[Judgements] | LLMTask[list[Judgements]]:
        """Judge the explanation and its controls on each set of examples."""
        ...


CHANCE = 0.5
"""Balanced accuracy, AUROC and agreement of answers that tell nothing apart."""
VERSIONS = {"agreement": 2}
"""Versions of formulas that have changed: since 2 a rule or table fires from half of its own highest value on."""
PAIRED = ("counterfactual", "context")
"""Sets of minimal pairs, of which the agreement is taken, too; context: those that keep the token at the pivot."""


def measure(judgements: Sequence[Judgements], *, seed: int = 0) -> list[Score]:
    """Score one explanation: every metric on each (scorer, set of examples), with the other roles as baselines.

    Items without a prediction are left out and lower the coverage; a metric is null with a reason where it is
    undefined or nothing was predicted.
    """
    ordered = sorted(judgements, key=_scorer_and_examples)
    return [
        score for _, group in groupby(ordered, key=_scorer_and_examples) for score in _score_group(list(group), seed)
    ]


def _scorer_and_examples(judgements: Judgements) -> tuple[str, str]:
    return judgements.scorer, judgements.examples


def _score_group(group: Sequence[Judgements], seed: int) -> list[Score]:
    own = next((part for part in group if part.role == "explanation"), None)
    if own is None:
        return []
    items = ~np.isnan(own.true)
    coverage = float(np.isfinite(own.predicted[items]).mean()) if items.any() else 0.0
    backend, judge = identify_judge(own.provenance)
    if not own.true.size:
        metric = "correlation" if own.kind == "activation" else "balanced_accuracy"
        reason = ", ".join(own.missing) or "no windows"
        return [
            Score(
                own.scorer,
                own.examples,
                metric,
                None,
                reason,
                coverage=0.0,
                backend=backend,
                judge=judge,
                provenance=own.provenance,
            )
        ]
    others = {part.role: _metrics(part, seed) for part in group if part is not own}
    provenance = {**own.provenance, "seed": seed} | ({"missing": own.missing} if own.missing else {})
    return [
        Score(
            scorer=own.scorer,
            examples=own.examples,
            metric=metric,
            value=measured.value,
            reason=_reason(measured, own),
            ci_low=measured.ci_low,
            ci_high=measured.ci_high,
            n=measured.n,
            coverage=coverage,
            baselines={role: _baseline(metrics[metric]) for role, metrics in others.items() if metric in metrics},
            windows=own.windows,
            backend=backend,
            judge=judge,
            provenance={"formula": f"{metric}/{VERSIONS.get(metric, 1)}", **provenance},
        )
        for metric, measured in _metrics(own, seed).items()
    ]


def _baseline(measured: Measured) -> float | None:
    """The value to beat: chance where a control's answers are all the same, who says no to everything knows nothing."""
    return CHANCE if measured.reason == CONSTANT else measured.value


def _reason(measured: Measured, own: Judgements) -> str | None:
    """Why there is no value; where nothing at all was predicted, why that was."""
    if measured.reason == "no tokens" and own.missing:
        return ", ".join(f"{count} {reason}" for reason, count in sorted(own.missing.items()))
    return measured.reason


def _metrics(own: Judgements, seed: int) -> dict[str, Measured]:
    predicted_mask = np.isfinite(own.predicted) & ~np.isnan(own.true)
    predicted, true = np.where(predicted_mask, own.predicted, 0.0), np.nan_to_num(own.true, nan=0.0)
    if own.kind == "activation":
        metrics = evaluate(true, predicted, predicted_mask, threshold=own.threshold, seed=seed)
        if "scale" in own.provenance or own.role in ("empty", "shuffled"):
            # What is predicted on a scale of 0 to 10 has no error in activation units.
            del metrics["explained_variance"]
        if own.examples in PAIRED:
            metrics["agreement"] = agreement(
                true, predicted, predicted_mask, threshold=own.threshold, fires_from=own.fires_from, seed=seed
            )
        return metrics
    return {
        "balanced_accuracy": agreement(true, predicted, predicted_mask, threshold=own.threshold, seed=seed),
        "auroc": auroc(true, predicted, predicted_mask, threshold=own.threshold, seed=seed),
    }
