"""Label a batch of features: explain on the training side, score on the holdout, store each result at once.

Features of one source are taken in chunks, so that their forwards are shared. Where a language model is asked, a
chunk is cut into parts, and several parts are open at a time. What a part comes to is stored in one
transaction, since its features are each other's controls: whatever stops the process, the same call goes on
with what is left, calls that were answered are read from the log, and the database ends as if nothing had
happened. Two processes may label into one database; a feature that both took is stored once.

Score what is explained already: ask scorers anew, or compute the metrics again from stored judgements.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby
from typing import TypeVar

from ..data.records import Evidence, Explanation, Judgements, Score
from ..data.store.rows import StoredExplanation
from ..data.store.store import Store
from ..explainers.explainer import Explainer, TrainBatch
from ..llm.client import LLMClient
from ..llm.tasks import LLMTask, gather, run_task
from ..scorers.scorer import Case, Scorer, measure
from ..subject.address import Feature, SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.opening import open_source
from ..subject.sources import Source
from .inputs import EvidenceLoader
from .selection import SelectingExplainer

T = TypeVar("T")

CHUNK = 48
"""Features whose forwards are shared."""
PART = 8
"""Features of a chunk that are stored together where a language model is asked."""


@dataclass(frozen=True, slots=True)
class Result:
    """One labelled feature."""

    feature: Feature
    explanation: Explanation
    scores: Sequence[Score]

    @property
    def score(self) -> Score | None:
        """The headline score: correlation on the top and random holdout windows, or the first that was measured."""
        headline = (s for s in self.scores if (s.examples, s.metric) == ("top_random", "correlation"))
        measured = (s for s in self.scores if s.value is not None)
        return next(headline, None) or next(measured, None) or next(iter(self.scores), None)


@dataclass(frozen=True, slots=True)
class Job:
    """What is done to every feature."""

    store: Store
    explainer: Explainer | SelectingExplainer
    scorers: Sequence[Scorer]
    client: LLMClient | None = None
    redo: bool = False

    @property
    def key(self) -> str:
        """What its explanations are known by: explainer, language model, and all settings that change what is said."""
        llm = {} if self.client is None else {"llm": self.client.llm.model, "endpoint": self.client.llm.endpoint}
        settings = json.dumps({"explainer": self.explainer.name, **llm, **self.explainer.settings}, sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:16]


def label(
    features: Sequence[Feature],
    store: Store,
    subject: Subject,
    *,
    explainer: Explainer | SelectingExplainer,
    scorers: Sequence[Scorer],
    client: LLMClient | None = None,
    sources: Mapping[SourceId, Source] | None = None,
    redo: bool = False,
    minutes: float | None = None,
    on_skip: Callable[[int], None] | None = None,
) -> Iterator[Result]:
    """Explain and score features, store every result, and yield it.

    `client` answers what explainers and scorers ask of a language model. Features that this explainer labelled before
    are skipped (`on_skip` hears how many) unless `redo`, which adds a further explanation. `sources` are
    dictionaries that are open already; others are opened as the store knows them. After `minutes` no further
    chunk is begun.
    """
    job = Job(store, explainer, scorers, client, redo)
    _keep_prompts(job)
    done = set() if redo else store.labelled(features, job.key)
    if on_skip is not None:
        on_skip(len(done))
    until = None if minutes is None else time.monotonic() + 60 * minutes
    for results in answered(
        parts(job, features=features, done=done, subject=subject, sources=sources, until=until), client
    ):
        _store(job, results)
        yield from (result for result, _ in results)


Kept = list[tuple[Result, list[Judgements]]]
"""Results with the judgements that are worth storing."""


def answered(tasks: Iterable[LLMTask[T]], client: LLMClient | None) -> Iterator[T]:
    """What the tasks come to; without a client, tasks that ask are an error."""
    if client is not None:
        yield from client.run(tasks)
        return
    for task in tasks:
        try:
            next(task)
        except StopIteration as stop:
            yield stop.value
        else:
            raise NeuronautError(
                "this explainer or scorer asks a language model; name one, for example -m openai:MODEL"
            )


def parts(
    job: Job,
    features: Sequence[Feature],
    done: set[Feature],
    subject: Subject,
    sources: Mapping[SourceId, Source] | None,
    until: float | None,
) -> Iterator[LLMTask[Kept]]:
    """The work on features that are not done, part by part; evidence is read when a chunk is begun."""
    wanted = sorted(dict.fromkeys(features), key=lambda f: str(f.source))
    for source_id, group in groupby(wanted, key=lambda f: f.source):
        members = list(group)
        if done.issuperset(members):
            continue
        loader = EvidenceLoader(job.store, subject, open_harvested(job.store, subject, source_id, sources))
        # Chunks and parts are cut from all features, done or not, so that a call that goes on cuts the same ones.
        for start in range(0, len(members), CHUNK):
            if until is not None and time.monotonic() > until:
                return
            chunk = members[start : start + CHUNK]
            left = [feature for feature in chunk if feature not in done]
            if not left:
                continue
            evidence = {feature: job.store.evidence(feature) for feature in left}
            batch = loader.train(list(evidence.values()))
            size = CHUNK if job.client is None else PART
            for first in range(0, len(chunk), size):
                if part := [evidence[feature] for feature in chunk[first : first + size] if feature in evidence]:
                    yield labelling(job, loader, part, _share(batch, part))


def _share(batch: TrainBatch, evidence: Sequence[Evidence]) -> TrainBatch:
    """The part of a batch that is about some of its features."""
    wanted = {part.feature for part in evidence}
    return replace(batch, features=[part for part in batch.features if part.feature in wanted])


def labelling(job: Job, loader: EvidenceLoader, evidence: Sequence[Evidence], batch: TrainBatch) -> LLMTask[Kept]:
    """Explain features and score the explanations; nothing is stored."""
    explainer = job.explainer.bind(loader) if isinstance(job.explainer, SelectingExplainer) else job.explainer
    explanations = yield from run_task(explainer.explain(batch))
    finished = {made.feature: _signed(made, job, loader) for made in explanations}
    explained = [part for part in evidence if finished[part.feature].text is not None]
    cases = loader.cases(batch, finished, loader.holdouts(explained)) if explained else []
    judged = yield from scoring(job.scorers, cases, job.client)
    return [
        (Result(feature, explanation, scores), kept)
        for feature, explanation in finished.items()
        for scores, kept in [judged.get(feature, ([], []))]
    ]


Judged = dict[Feature, tuple[list[Score], list[Judgements]]]


def scoring(scorers: Sequence[Scorer], cases: Sequence[Case], client: LLMClient | None) -> LLMTask[Judged]:
    """Every scorer on every case, all of them side by side."""
    asked = [(case.explanation.feature, scorer, case) for case in cases for scorer in scorers]
    judged = yield from gather([run_task(scorer.judge(case)) for _, scorer, case in asked])
    found: Judged = {case.explanation.feature: ([], []) for case in cases}
    for (feature, scorer, _), judgements in zip(asked, judged, strict=True):
        scores, kept = found[feature]
        signed = [_by_llm(part, client) for part in judgements] if scorer.stored else list(judgements)
        scores += measure(signed)
        kept += signed if scorer.stored else []
    return found


def _by_llm(judgements: Judgements, client: LLMClient | None) -> Judgements:
    if client is None or "calls" not in judgements.provenance:
        return judgements
    llm = {"llm": client.llm.model, "endpoint": client.llm.endpoint}
    return replace(judgements, provenance={**judgements.provenance, **llm})


def _signed(made: Explanation, job: Job, loader: EvidenceLoader) -> Explanation:
    """The explanation with where it comes from."""
    llm = {} if job.client is None else {"llm": job.client.llm.model, "endpoint": job.client.llm.endpoint}
    again = {"attempt": len(loader.store.explanations(made.feature)) + 1} if job.redo else {}
    provenance = {
        "key": job.key,
        "settings": dict(job.explainer.settings),
        "model": loader.subject.revision,
        "background": len(loader.background.ids),
        "libraries": {name: version(name) for name in ("neuronaut", "torch", "transformers", "numpy")},
    }
    return replace(made, provenance={**made.provenance, **provenance, **llm, **again})


def _store(job: Job, results: Kept) -> None:
    with job.store.transaction():
        for result, judgements in results:
            job.store.add_result(result.explanation, result.scores, judgements=judgements, redo=job.redo)


def _keep_prompts(job: Job) -> None:
    for prompt in (*job.explainer.prompts, *(prompt for scorer in job.scorers for prompt in scorer.prompts)):
        job.store.keep_prompt(prompt.hash, prompt.name, prompt.text)


def open_harvested(
    store: Store, subject: Subject, source_id: SourceId, sources: Mapping[SourceId, Source] | None
) -> Source:
    """The source, open already or opened as the store knows it; an error if it is not the one that was harvested."""
    source = (sources or {}).get(source_id) or open_stored(store, subject, source_id)
    store.check_source(source_id, revision=source.revision, model_revision=subject.revision, width=source.width)
    return source


def open_stored(store: Store, subject: Subject, source_id: SourceId) -> Source:
    """Open a source that was harvested into the store, at the place it was harvested from."""
    row = next((row for row in store.sources() if row["source"] == str(source_id)), None)
    if row is None:
        raise NeuronautError(
            f"nothing of {source_id} in the database; run: neuronaut harvest {source_id.model} {source_id.site}"
        )
    if row["model_revision"] != subject.revision:
        raise NeuronautError(
            f"{source_id} was harvested on {source_id.model} of revision {row['model_revision']}, but revision "
            f"{subject.revision} is loaded; harvest it again, or load the model it was harvested on"
        )
    return open_source(subject, source_id, path=row["provenance"].get("paths", {}).get(str(source_id)))


@dataclass(frozen=True, slots=True)
class _Scored:
    id: int
    result: Result
    judgements: list[Judgements]


def score(
    features: Sequence[Feature],
    store: Store,
    subject: Subject,
    *,
    scorers: Sequence[Scorer],
    client: LLMClient | None = None,
    sources: Mapping[SourceId, Source] | None = None,
) -> Iterator[Result]:
    """Score the best explanation of each feature again and add the scores; features without one are passed over."""
    for scorer in scorers:
        for prompt in scorer.prompts:
            store.keep_prompt(prompt.hash, prompt.name, prompt.text)
    for group in answered(
        _parts(features, store=store, subject=subject, scorers=scorers, client=client, sources=sources), client
    ):
        with store.transaction():
            for scored in group:
                store.add_scores(scored.id, scored.result.scores)
                store.add_judgements(scored.id, scored.judgements)
        yield from (scored.result for scored in group)


def _parts(
    features: Sequence[Feature],
    store: Store,
    subject: Subject,
    scorers: Sequence[Scorer],
    client: LLMClient | None,
    sources: Mapping[SourceId, Source] | None,
) -> Iterator[LLMTask[list[_Scored]]]:
    for source_id, group in groupby(sorted(features, key=lambda f: str(f.source)), key=lambda f: f.source):
        loader = EvidenceLoader(store, subject, open_harvested(store, subject, source_id, sources))
        members = [(f, best) for f in group if (best := store.best(f)) is not None and best.explanation.text]
        size = CHUNK if client is None else PART
        for start in range(0, len(members), size):
            yield _scored(loader, dict(members[start : start + size]), scorers, client)


def _scored(
    loader: EvidenceLoader,
    best: Mapping[Feature, StoredExplanation],
    scorers: Sequence[Scorer],
    client: LLMClient | None,
) -> LLMTask[list[_Scored]]:
    evidence = [loader.store.evidence(feature) for feature in best]
    explanations = {feature: stored.explanation for feature, stored in best.items()}
    cases = loader.cases(loader.train(evidence), explanations, loader.holdouts(evidence), elsewhere=True)
    judged = yield from scoring(scorers, cases, client)
    return [
        _Scored(stored.id, Result(feature, stored.explanation, judged[feature][0]), judged[feature][1])
        for feature, stored in best.items()
        if judged[feature][0]
    ]


def score_from_stored(features: Sequence[Feature], store: Store) -> Iterator[Result]:
    """Compute every metric again from the stored judgements of each feature's explanations; asks nobody.

    A score equal to one that is there adds nothing. Features without judgements are passed over.
    """
    for feature in features:
        for stored in store.explanations(feature):
            rounds = store.judgements(stored.id)
            scores = [score for judgements in rounds for score in measure(judgements)]
            if scores:
                store.add_scores(stored.id, scores)
                yield Result(feature, stored.explanation, scores)
