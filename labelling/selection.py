"""Choosing between explanations by what they predict on `select`, which no explainer saw and no score is reported on.

`BestOf` asks for several explanations of each feature and keeps the one that predicts best. `Refine` lets the
model test its own explanation on sentences that it makes up, run through the subject, and revise it; a revision
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
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, object]: ...

    @property
    def prompts(self) -> tuple[Prompt, ...]: ...

    def bind(self, loader: EvidenceLoader) -> Explainer:
        """The explainer, bound to the evidence it chooses on."""
        ...


class Judged(NamedTuple):
    """What an explanation came to on `select`."""

    judgements: Judgements | None
    """Of the explanation itself; None where it could not be judged."""
    value: float | None
    metric: str


class Chooser:
    """Judges explanations on `select` with one scorer, the same for all."""

    def __init__(self, scorer: Scorer, loader: EvidenceLoader, batch: TrainBatch) -> None:
        """`scorer` needs no controls: only what it says of the explanation itself counts."""
        self._scorer, self._loader, self._batch = scorer, loader, batch
        self._select: dict[Feature, Holdout] = {}

    def judge(self, explanations: Mapping[Feature, Explanation]) -> LLMTask[dict[Feature, Judged]]:
        """The features that have a text, judged."""
        texts = {feature: made for feature, made in explanations.items() if made.text is not None}
        missing = [feature for feature in texts if feature not in self._select]
        if missing:
            evidence = [self._loader.store.evidence(feature) for feature in missing]
            self._select |= self._loader.holdouts(evidence, split="select")
        cases = self._loader.cases(self._batch, texts, self._select) if texts else []
        judged = yield from gather([run_task(self._scorer.judge(case)) for case in cases])
        return {case.explanation.feature: _own(part) for case, part in zip(cases, judged, strict=True)}


def _own(judgements: Sequence[Judgements]) -> Judged:
    """The first set of examples decides: for a simulation the top and random windows."""
    own = next((part for part in judgements if part.role == "explanation"), None)
    score = next(iter(measure([own])), None) if own is not None else None
    return Judged(own, score.value if score else None, score.metric if score else "")


class BestOf:
    """The best of several explanations."""

    def __init__(self, draws: Sequence[Explainer], scorer: Scorer) -> None:
        """`draws` are explainers that differ in their draw alone."""
        self._draws, self._scorer = draws, scorer
        self.name = f"best-of-{len(draws)}:{draws[0].name}"
        self.prompts = (*draws[0].prompts, *scorer.prompts)

    @property
    def settings(self) -> Mapping[str, object]:
        """What, beside the evidence and the language model, determines an explanation."""
        return {
            "draws": [draw.settings for draw in self._draws],
            "chosen_by": [self._scorer.name, self._scorer.settings],
        }

    def bind(self, loader: EvidenceLoader) -> Explainer:
        """The explainer, bound to the evidence it chooses on."""
        return BoundExplainer(self, lambda batch: self._explain(loader, batch))

    def _explain(self, loader: EvidenceLoader, batch: TrainBatch) -> LLMTask[list[Explanation]]:
        drawn = yield from gather([run_task(draw.explain(batch)) for draw in self._draws])
        candidates = [{made.feature: made for made in explanations} for explanations in drawn]
        chooser = Chooser(self._scorer, loader, batch)
        judged = yield from gather([chooser.judge(texts) for texts in candidates])
        return [self._best(part.feature, candidates, judged) for part in batch.features]

    def _best(
        self,
        feature: Feature,
        candidates: Sequence[Mapping[Feature, Explanation]],
        judged: Sequence[Mapping[Feature, Judged]],
    ) -> Explanation:
        nothing = Judged(None, None, "")
        values = [part.get(feature, nothing).value for part in judged]
        texts = [part[feature].text is not None for part in candidates]
        best = max(range(len(values)), key=lambda i: (texts[i], values[i] is not None, values[i] or 0.0, -i))
        chosen = candidates[best][feature]
        told = [
            {"text": part[feature].text, "reason": part[feature].reason, "select": value}
            for part, value in zip(candidates, values, strict=True)
        ]
        seen = sorted({window for part in candidates for window in part[feature].seen})
        return replace(
            chosen,
            explainer=self.name,
            seen=tuple(seen),
            provenance={**chosen.provenance, "candidates": told, "chosen": best, "chosen_by": self._scorer.name},
        )


class BoundExplainer:
    """An explainer whose work is a function of the batch."""

    def __init__(self, named: SelectingExplainer, explain: Callable[[TrainBatch], LLMTask[list[Explanation]]]) -> None:
        self.name, self.settings, self.prompts = named.name, named.settings, named.prompts
        self._explain = explain

    def explain(self, batch: TrainBatch) -> LLMTask[list[Explanation]]:
        """One explanation per feature, in order."""
        return self._explain(batch)


def better(old: Judged, new: Judged) -> tuple[float | None, float | None, bool]:
    """(difference, lower end of its 95% interval, whether the new one predicts better by more than its interval).

    Both were judged on the same windows; the interval is that of the paired bootstrap. Items that either lacks are
    left out. An explanation that could not be judged is never the better one.
    """
    if old.judgements is None or new.judgements is None:
        return None, None, old.judgements is None and new.value is not None
    a, b = old.judgements, new.judgements
    known = np.isfinite(a.predicted) & np.isfinite(b.predicted)
    metric = "correlation" if a.kind == "activation" else "auroc"
    ours, theirs = (np.where(known, part.predicted, 0.0) for part in (b, a))
    found = difference(a.true, ours, theirs, known, threshold=a.threshold)[metric]
    if found.value is None:
        # Undefined for one of the two, as a constant prediction is: the defined one is better.
        return None, None, old.value is None and new.value is not None
    return found.value, found.ci_low, found.ci_low is not None and found.ci_low > 0
