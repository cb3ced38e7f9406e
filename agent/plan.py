"""What a run would cost: it is rehearsed on a few parts, with sample replies, and the rest is taken to be alike.

Prompts are rendered exactly, so their tokens are counted on real text; replies have the length of the samples that
come with each question. What the log answers costs nothing, as in the run itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..data.store import Store
from ..explainers.explainer import Explainer
from ..explainers.llm.desk import Desk, Spent
from ..scorers.scorer import Scorer
from ..subject.address import Feature, SourceId
from ..subject.model import Subject
from ..subject.sources import Source
from .choose import Seated
from .label import PART, Job, answered, parts

REHEARSED = 3
"""Parts that are rehearsed, evenly spread over the features."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What labelling would take."""

    features: int
    done: int
    left: int
    calls: int
    cached: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    """None where no price is known."""


def estimate(
    features: Sequence[Feature], store: Store, subject: Subject, *, explainer: Explainer | Seated,
    scorers: Sequence[Scorer], desk: Desk | None, sources: dict[SourceId, Source] | None = None, redo: bool = False,
) -> Estimate:  # fmt: skip
    """Rehearse labelling; `desk` is in the mode "rehearsal". Nothing is stored and nobody is asked."""
    job = Job(store, explainer, scorers, desk, redo)
    done = set() if redo else store.labelled(features, job.key)
    left = [feature for feature in dict.fromkeys(features) if feature not in done]
    spent, tried = Spent(), 0
    if desk is not None and left:
        starts = range(0, len(left), PART)
        chosen = sorted({starts[i * (len(starts) - 1) // max(REHEARSED - 1, 1)] for i in range(REHEARSED)})
        sample = [feature for start in chosen for feature in left[start : start + PART]]
        tried = len(sample)
        for _ in answered(parts(job, sample, set(), subject, sources, None), desk):
            pass
        spent = desk.spent
    scale = len(left) / tried if tried else 0.0
    usd = spent.usd * scale if desk is not None and desk.price is not None else None
    counts = replace(
        spent, calls=round(spent.calls * scale), cached=round(spent.cached * scale),
        input_tokens=round(spent.input_tokens * scale), output_tokens=round(spent.output_tokens * scale),
    )  # fmt: skip
    return Estimate(
        len(dict.fromkeys(features)), len(done), len(left), counts.calls, counts.cached, counts.input_tokens,
        counts.output_tokens, usd,
    )  # fmt: skip
