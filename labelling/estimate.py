"""Estimates the cost of a run: it is rehearsed on a few features, and the rest is taken to be alike.

With a language model calls, tokens and dollars are estimated. Prompts are rendered exactly, so their tokens are counted
on real text; replies have the length of the samples that come with each question. Requests that the log answers cost
nothing, as in the run itself. Without one, forwards and their tokens are counted on a few features, and the time is
taken; what is shared by all features is counted once.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import Tensor

from ..data.store.store import Store
from ..explainers.explainer import Explainer
from ..llm.client import LLMClient, Spent
from ..scorers.calibration import calibrate
from ..scorers.scorer import Scorer
from ..subject.address import Feature, SourceId
from ..subject.model import Subject
from ..subject.sources import Source
from .agenda import BLOCK
from .inputs import OnProgress
from .label import LabelJob, run_job
from .selection import SelectingExplainer

REHEARSED, PART = 3, 8
"""Parts that are rehearsed with a language model, evenly spread over the features, and the features of a part."""
MEASURED = 2
"""Features that are labelled to measure the time that one takes."""


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
    forwards: int | None = None
    """Forward passes of the subject; None, like the next two, with a language model."""
    forward_tokens: int | None = None
    """Tokens in these, padding included."""
    seconds: float | None = None
    """Time on this machine, as it is now."""


def estimate(
    features: Sequence[Feature],
    store: Store,
    subject: Subject,
    *,
    explainer: Explainer | SelectingExplainer,
    scorers: Sequence[Scorer],
    client: LLMClient | None,
    chooser: Scorer | None = None,
    sources: Mapping[SourceId, Source] | None = None,
    redo: bool = False,
    jobs: int = 1,
    on_progress: OnProgress = lambda *_: None,
) -> Estimate:
    """Rehearse labelling; `client` is in the mode "rehearsal". Nothing is stored and nobody is asked.

    `jobs` is the number of worker processes that are to share the work.
    """
    job = LabelJob(store, subject, scorers, client, sources or {}, chooser=chooser, explainer=explainer, redo=redo)
    wanted = list(dict.fromkeys(features))
    done = set() if redo else store.labelled(wanted, job.key)
    left = [feature for feature in wanted if feature not in done]
    if left:
        calibrate(scorers, client)
    used = _rehearse(job, left, client) if client is not None and left else _Usage()
    work = _measure(job, left, jobs, on_progress) if client is None and left else None
    return Estimate(
        features=len(wanted),
        done=len(done),
        left=len(left),
        calls=round(used.calls),
        cached=round(used.cached),
        input_tokens=round(used.input_tokens),
        output_tokens=round(used.output_tokens),
        usd=used.usd if client is not None and client.price is not None else None,
        forwards=work and round(work.forwards),
        forward_tokens=work and round(work.tokens),
        seconds=work and work.seconds,
    )


def _rehearse(job: LabelJob, features: Sequence[Feature], client: LLMClient) -> "_Usage":
    """Rehearse labelling on a few parts of the features, and extrapolate to all."""
    starts = range(0, len(features), PART)
    chosen = sorted({starts[i * (len(starts) - 1) // max(REHEARSED - 1, 1)] for i in range(REHEARSED)})
    rehearsed = [feature for start in chosen for feature in features[start : start + PART]]
    used = [_Usage()]
    for _ in run_job(job, rehearsed, done=set()):
        used.append(_Usage.of(client.spent))
    total, size = _Usage.of(client.spent), min(PART, len(rehearsed))
    # Features share requests (a window without an explanation is judged once), the earlier ones pay for them:
    # every further part adds as much as the last one.
    last = total.less(used[-1 - min(size, len(used) - 1)])
    return total.plus(last, times=(len(features) - len(rehearsed)) / size)


class _Work(NamedTuple):
    """Forward passes, the tokens in them, and seconds, which can be added up."""

    forwards: float = 0
    tokens: float = 0
    seconds: float = 0

    def plus(self, other: "_Work", *, times: float = 1) -> "_Work":
        return _Work(*(a + times * b for a, b in zip(self, other, strict=True)))


class _Meter:
    """Tells the work on windows that features share from the rest; a context, in which forward passes are counted."""

    def __init__(self, subject: Subject, on_progress: OnProgress) -> None:
        self.shared, self.own = _Work(), _Work()
        self._subject, self._on_progress, self._is_shared = subject, on_progress, False
        self._now, self._watching = _Work(), ExitStack()

    def __enter__(self) -> Self:
        self._watching.enter_context(self._subject.watching(self._count))
        self._now = _Work(seconds=time.perf_counter())
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()
        self._settle()

    def watch(self, what: str, done: int, total: int) -> None:
        """Take note of what is done from now on; passes it on."""
        self._settle()
        self._is_shared = done < total
        self._on_progress(what, done, total)

    def _count(self, tokens: Tensor) -> None:
        self._now = self._now.plus(_Work(1, tokens.numel()))

    def _settle(self) -> None:
        spent = self._now._replace(seconds=time.perf_counter() - self._now.seconds)
        if self._is_shared:
            self.shared = self.shared.plus(spent)
        else:
            self.own = self.own.plus(spent)
        self._now = _Work(seconds=time.perf_counter())


def _measure(job: LabelJob, features: Sequence[Feature], jobs: int, on_progress: OnProgress) -> _Work:
    """Label a few features, evenly spread, and extrapolate to all, of which `jobs` processes do what is not shared."""
    sample = features[:: max(1, len(features) // MEASURED)][:MEASURED]
    with _Meter(job.subject, on_progress) as meter:
        for _ in run_job(job, sample, done=set(), on_progress=meter.watch):
            pass
    times = len(features) / len(sample)
    own = meter.own._replace(seconds=meter.own.seconds / jobs)
    return _Work().plus(own, times=times).plus(meter.shared, times=_count_blocks(features) / _count_blocks(sample))


def _count_blocks(features: Sequence[Feature]) -> int:
    return sum(-(-count // BLOCK) for count in Counter(feature.source for feature in features).values())


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
