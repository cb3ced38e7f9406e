"""What a run would cost: it is rehearsed on a few parts, with sample replies, and the rest is taken to be alike.

Prompts are rendered exactly, so their tokens are counted on real text; replies have the length of the samples that
come with each question. What the log answers costs nothing, as in the run itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from ..data.store.store import Store
from ..explainers.explainer import Explainer
from ..llm.client import LLMClient, Spent
from ..scorers.scorer import Scorer
from ..subject.address import Feature, SourceId
from ..subject.model import Subject
from ..subject.sources import Source
from .label import PART, Job, answered, parts
from .selection import SelectingExplainer

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
    job = Job(store, explainer, scorers, client, redo)
    done = set() if redo else store.labelled(features, job.key)
    left = [feature for feature in dict.fromkeys(features) if feature not in done]
    used = _Used()
    if client is not None and left:
        starts = range(0, len(left), PART)
        chosen = sorted({starts[i * (len(starts) - 1) // max(REHEARSED - 1, 1)] for i in range(REHEARSED)})
        tried, last, share = 0, _Used(), 1
        for start in chosen:
            part = left[start : start + PART]
            before = _Used.of(client.spent)
            for _ in answered(
                parts(job, features=part, done=set(), subject=subject, sources=sources, until=None), client
            ):
                pass
            tried, last, share = tried + len(part), _Used.of(client.spent).less(before), len(part)
        # Features share requests (a window without an explanation is judged once), the earlier ones pay for them:
        # what the last part adds is what every further one adds.
        used = _Used.of(client.spent).plus(last, times=(len(left) - tried) / share)
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


class _Used(NamedTuple):
    """What was used, so that it can be added up."""

    calls: float = 0
    cached: float = 0
    input_tokens: float = 0
    output_tokens: float = 0
    usd: float = 0

    @classmethod
    def of(cls, spent: Spent) -> Self:
        return cls(*(getattr(spent, name) for name in cls._fields))

    def less(self, other: "_Used") -> "_Used":
        return self.plus(other, times=-1)

    def plus(self, other: "_Used", *, times: float) -> "_Used":
        return _Used(*(a + times * b for a, b in zip(self, other, strict=True)))
