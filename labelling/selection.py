"""Chooses between explanations by their predictions on `select`, which no explainer saw and no score is reported on.

`BestOf` asks for several explanations of each feature and keeps the one that predicts best. `Refine` (refine.py) lets
the model test its own explanation on sentences that it makes up, run through the subject, and revise it; a revision
replaces the explanation only where it predicts better by more than its interval.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..data.records import Explanation, Judgements
from ..explainers.explainer import Explainer, TrainBatch
from ..llm.prompt import Prompt
from ..llm.tasks import LLMTask, gather, run_task
from ..scorers.holdout import Holdout
from ..scorers.metrics import difference
from ..scorers.scorer import Scorer, measure
from ..subject.address import Feature
from .inputs import EvidenceLoader


@runtime_checkable
class SelectingExplainer(Protocol):
    """An explainer that needs a loader beside the training side, to choose on `select`."""

    @property
    def name(self) -> str:
        """The explainer's name after `-e`."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """All that, beside the evidence and the language model, determines an explanation."""
        ...

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts that the explainer and its scorer render."""
        ...

    def bind(self, loader: EvidenceLoader) -> Explainer:
        """Bind the explainer to the evidence that it chooses on."""
        ...


def bind(explainer: Explainer | SelectingExplainer, loader: EvidenceLoader) -> Explainer:
    """Bind an explainer to its evidence where it chooses on any; another is returned as it is."""
    return explainer.bind(loader) if isinstance(explainer, SelectingExplainer) else explainer


class SelectScore(NamedTuple):
    """The score of an explanation on `select`."""

    judgements: Judgements | None
    """Those of the explanation itself; None where it could not be judged."""
    value: float | None
    metric: str


class Chooser:
    """Judges explanations on `select` with one scorer, the same for all."""

    def __init__(self, scorer: Scorer, loader: EvidenceLoader, batch: TrainBatch) -> None:
        """`scorer` needs no controls: only its judgements of the explanation itself count."""
        self._scorer, self._loader, self._batch = scorer, loader, batch
        self._select: dict[Feature, Holdout] = {}

    def judge(self, explanations: Mapping[Feature, Explanation]) -> LLMTask[dict[Feature, SelectScore]]:
        """Judge the explanations that have a text."""
        texts = {feature: explanation for feature, explanation in explanations.items() if explanation.text is not None}
        missing = [feature for feature in texts if feature not in self._select]
        if missing:
            evidence = [self._loader.store.evidence(feature) for feature in missing]
            self._select |= self._loader.holdouts(evidence, split="select")
        cases = self._loader.cases(self._batch, texts, self._select) if texts else []
        judgements = yield from gather([run_task(self._scorer.judge(case)) for case in cases])
        return {case.explanation.feature: _select_score(judged) for case, judged in zip(cases, judgements, strict=True)}


def _select_score(judgements: Sequence[Judgements]) -> SelectScore:
    """Score by the first set of examples: for a simulation the top and random windows."""
    own = next((judged for judged in judgements if judged.role == "explanation"), None)
    score = next(iter(measure([own])), None) if own is not None else None
    return SelectScore(own, score.value if score else None, score.metric if score else "")


class BestOf:
    """The best of several explanations."""

    def __init__(self, draws: Sequence[Explainer | SelectingExplainer], scorer: Scorer) -> None:
        """`draws` are explainers that differ in their draw alone."""
        self._draws, self._scorer = draws, scorer
        self.name = f"best-of-{len(draws)}:{draws[0].name}"
        self.prompts = (*draws[0].prompts, *scorer.prompts)

    @property
    def settings(self) -> Mapping[str, object]:
        """All that, beside the evidence and the language model, determines an explanation."""
        return {
            "draws": [draw.settings for draw in self._draws],
            "chosen_by": [self._scorer.name, self._scorer.settings],
        }

    def bind(self, loader: EvidenceLoader) -> Explainer:
        """Bind the explainer to the evidence that it chooses on."""
        return BoundExplainer(self, lambda batch: self._explain(loader, batch))

    def _explain(self, loader: EvidenceLoader, batch: TrainBatch) -> LLMTask[list[Explanation]]:
        draws = yield from gather([run_task(bind(draw, loader).explain(batch)) for draw in self._draws])
        candidates = [{explanation.feature: explanation for explanation in explanations} for explanations in draws]
        chooser = Chooser(self._scorer, loader, batch)
        scores = yield from gather([chooser.judge(texts) for texts in candidates])
        return [self._best(part.feature, candidates, scores) for part in batch.features]

    def _best(
        self,
        feature: Feature,
        candidates: Sequence[Mapping[Feature, Explanation]],
        scores: Sequence[Mapping[Feature, SelectScore]],
    ) -> Explanation:
        nothing = SelectScore(None, None, "")
        values = [part.get(feature, nothing).value for part in scores]
        texts = [part[feature].text is not None for part in candidates]
        best = max(range(len(values)), key=lambda i: (texts[i], values[i] is not None, values[i] or 0.0, -i))
        chosen = candidates[best][feature]
        rows = [
            {"text": part[feature].text, "reason": part[feature].reason, "select": value}
            for part, value in zip(candidates, values, strict=True)
        ]
        digests = sorted({window for part in candidates for window in part[feature].seen})
        return replace(
            chosen,
            explainer=self.name,
            seen=tuple(digests),
            provenance={**chosen.provenance, "candidates": rows, "chosen": best, "chosen_by": self._scorer.name},
        )


class BoundExplainer:
    """An explainer that works by a function of the batch."""

    def __init__(
        self, explainer: SelectingExplainer, explain: Callable[[TrainBatch], LLMTask[list[Explanation]]]
    ) -> None:
        self.name, self.settings, self.prompts = explainer.name, explainer.settings, explainer.prompts
        self._explain = explain

    def explain(self, batch: TrainBatch) -> LLMTask[list[Explanation]]:
        """Explain every feature, in order."""
        return self._explain(batch)


class Comparison(NamedTuple):
    """Whether a new explanation predicts better than an old one."""

    difference: float | None
    """The new score minus the old one; None where it is undefined."""
    ci_low: float | None
    """Lower end of its 95% interval, by the paired bootstrap."""
    better: bool
    """Whether the new one predicts better by more than the interval."""


def compare(old: SelectScore, new: SelectScore) -> Comparison:
    """Compare the scores of two explanations that were judged on the same windows.

    Items that either lacks are left out. An explanation that could not be judged is never the better one.
    """
    if old.judgements is None or new.judgements is None:
        return Comparison(None, None, old.judgements is None and new.value is not None)
    a, b = old.judgements, new.judgements
    both = np.isfinite(a.predicted) & np.isfinite(b.predicted) & ~np.isnan(a.true)
    metric = "correlation" if a.kind == "activation" else "auroc"
    ours, theirs = (np.where(both, part.predicted, 0.0) for part in (b, a))
    measured = difference(np.where(both, a.true, 0.0), ours, theirs, both, threshold=a.threshold)[metric]
    if measured.value is None:
        # Undefined for one of the two, as a constant prediction is: the defined one is better.
        return Comparison(None, None, old.value is None and new.value is not None)
    return Comparison(measured.value, measured.ci_low, measured.ci_low is not None and measured.ci_low > 0)
