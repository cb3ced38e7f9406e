"""Estimates the cost of a run: it is rehearsed on a few parts, with sample replies, and the rest is taken to be alike.

Prompts are rendered exactly, so their tokens are counted on real text; replies have the length of the samples that
come with each question. Requests that the log answers cost nothing, as in the run itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from ..data.store.store import Store
from ..explainers.explainer import Explainer
from ..llm.client import LLMClient, Spent
from ..scorers.calibration import calibrate
from ..scorers.scorer import Scorer
from ..subject.address import Feature, SourceId
from ..subject.model import Subject
from ..subject.sources import Source
from .label import PART, LabelJob, label_tasks, run_tasks
from .selection import SelectingExplainer

REHEARSED = 3
"""Parts that are rehearsed, evenly spread over the features."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of labelling some features."""

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
    features: Sequence[Feature],
    store: Store,
    subject: Subject,
    *,
    explainer: Explainer | SelectingExplainer,
    scorers: Sequence[Scorer],
    client: LLMClient | None,
    sources: dict[SourceId, Source] | None = None,
    redo: bool = False,
) -> Estimate:
    """Rehearse labelling; `client` is in the mode "rehearsal". Nothing is stored and nobody is asked."""
    job = LabelJob(store, subject, scorers, client, sources or {}, explainer=explainer, redo=redo)
    done = set() if redo else store.labelled(features, job.key)
    left = [feature for feature in dict.fromkeys(features) if feature not in done]
    if left:
        calibrate(scorers, client)
    used = _rehearse(job, left, client) if client is not None and left else _Usage()
    usd = used.usd if client is not None and client.price is not None else None
    return Estimate(
        features=len(dict.fromkeys(features)),
        done=len(done),
        left=len(left),
        calls=round(used.calls),
        cached=round(used.cached),
        input_tokens=round(used.input_tokens),
        output_tokens=round(used.output_tokens),
        usd=usd,
    )


def _rehearse(job: LabelJob, features: Sequence[Feature], client: LLMClient) -> "_Usage":
    """Rehearse labelling on a few parts of the features, and extrapolate to all."""
    starts = range(0, len(features), PART)
    rehearsed_starts = sorted({starts[i * (len(starts) - 1) // max(REHEARSED - 1, 1)] for i in range(REHEARSED)})
    rehearsed, last, size = 0, _Usage(), 1
    for start in rehearsed_starts:
        part = features[start : start + PART]
        before = _Usage.of(client.spent)
        for _ in run_tasks(label_tasks(job, part, done=set(), until=None), client):
            pass
        rehearsed, last, size = rehearsed + len(part), _Usage.of(client.spent).less(before), len(part)
    # Features share requests (a window without an explanation is judged once), the earlier ones pay for them:
    # every further part adds as much as the last one.
    return _Usage.of(client.spent).plus(last, times=(len(features) - rehearsed) / size)


class _Usage(NamedTuple):
    """Calls, tokens and dollars, which can be added up."""

    calls: float = 0
    cached: float = 0
    input_tokens: float = 0
    output_tokens: float = 0
    usd: float = 0

    @classmethod
    def of(cls, spent: Spent) -> Self:
        return cls(spent.calls, spent.cached, spent.input_tokens, spent.output_tokens, spent.usd)

    def less(self, other: "_Usage") -> "_Usage":
        return self.plus(other, times=-1)

    def plus(self, other: "_Usage", *, times: float) -> "_Usage":
        return _Usage(*(a + times * b for a, b in zip(self, other, strict=True)))
