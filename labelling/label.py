"""Labels features, that is, explains them on the training side and scores the explanations on the holdout.

Features of one source are taken in chunks, so that their forwards are shared. Where a language model is asked, a
chunk is cut into parts, and several parts are open at a time. The results of a part are stored in one
transaction, since its features are each other's controls: whatever stops the process, the same call goes on
with the features that are left, calls that were answered are read from the log, and the database ends as if nothing
had happened. Two processes may label into one database; a feature that both took is stored once.

Features that are explained already can be scored again: scorers judge anew (`score`), or the metrics are computed
again from stored judgements (`score_from_stored`).
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby
from typing import NamedTuple, TypeVar

from ..data.records import Evidence, Explanation, Judgements, Score
from ..data.store.evidence import recorded_source
from ..data.store.rows import StoredExplanation
from ..data.store.store import Store
from ..explainers.explainer import Explainer, TrainBatch
from ..llm.client import LLMClient
from ..llm.prompt import Prompt
from ..llm.tasks import LLMTask, gather, run_task
from ..scorers.scorer import Case, Scorer, measure
from ..subject.address import Feature, SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.opening import open_source
from ..subject.sources import Source
from .inputs import EvidenceLoader
from .selection import SelectingExplainer, bind

T = TypeVar("T")

CHUNK = 48
"""Features whose forwards are shared."""
PART = 8
"""Features of a chunk that are stored together where a language model is asked."""


@dataclass(frozen=True, slots=True)
class Result:
    """One labelled feature.

    >>> result = next(score(store.features("demo:mlp.1:17"), store, subject, scorers=[RuleSimulator()]))
    >>> result.score.metric
    'correlation'
    """

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
    """The work on all features of one call: where they are stored, who scores them, and what is open already."""

    store: Store
    subject: Subject
    scorers: Sequence[Scorer]
    client: LLMClient | None
    sources: Mapping[SourceId, Source]
    """Sources that are open; others are opened as the store knows them."""

    @property
    def part_size(self) -> int:
        """Features that are stored together."""
        return CHUNK if self.client is None else PART

    @property
    def llm(self) -> dict[str, object]:
        """The language model, for provenance; empty where none is asked."""
        return {} if self.client is None else {"llm": self.client.llm.model, "endpoint": self.client.llm.endpoint}

    def open_loader(self, source_id: SourceId) -> EvidenceLoader:
        """Open the loader of a source's evidence."""
        return EvidenceLoader(
            self.store, self.subject, open_harvested(self.store, self.subject, source_id, self.sources)
        )


@dataclass(frozen=True, slots=True)
class LabelJob(Job):
    """A job that explains features before it scores them."""

    explainer: Explainer | SelectingExplainer
    redo: bool = False

    @property
    def key(self) -> str:
        """The hash by which its explanations are known: of the explainer, the language model and all settings."""
        settings = json.dumps({"explainer": self.explainer.name, **self.llm, **self.explainer.settings}, sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:16]


class Part(NamedTuple):
    """Features that are labelled together and stored in one transaction."""

    loader: EvidenceLoader
    evidence: Sequence[Evidence]
    batch: TrainBatch
    """The training side of the same features."""


PartResults = list[tuple[Result, list[Judgements]]]
"""Results with the judgements that are worth storing."""


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

    `client` answers the requests of explainers and scorers. Features that this explainer labelled before
    are skipped (`on_skip` is called with their number) unless `redo`, which adds a further explanation. `sources` are
    dictionaries that are open already; others are opened as the store knows them. After `minutes` no further
    chunk is begun.

    >>> results = label(
    ...     store.features("demo:mlp.1:18"), store, subject, explainer=RuleExplainer(subject), scorers=[RuleSimulator()]
    ... )
    >>> [str(result.feature) for result in results]
    ['demo:mlp.1:18']
    """
    job = LabelJob(store, subject, scorers, client, sources or {}, explainer=explainer, redo=redo)
    _store_prompts(store, (*explainer.prompts, *(prompt for scorer in scorers for prompt in scorer.prompts)))
    done = set() if redo else store.labelled(features, job.key)
    if on_skip is not None:
        on_skip(len(done))
    until = None if minutes is None else time.monotonic() + 60 * minutes
    for results in run_tasks(label_tasks(job, features, done=done, until=until), client):
        with store.transaction():
            for result, judgements in results:
                store.add_result(result.explanation, result.scores, judgements=judgements, redo=redo)
        yield from (result for result, _ in results)


def run_tasks(tasks: Iterable[LLMTask[T]], client: LLMClient | None) -> Iterator[T]:
    """Run tasks and yield their results; without a client, tasks that ask are an error."""
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


def label_tasks(
    job: LabelJob, features: Sequence[Feature], *, done: set[Feature], until: float | None
) -> Iterator[LLMTask[PartResults]]:
    """Yield the work on features that are not done, part by part; evidence is read when a chunk is begun.

    No chunk is begun after `until`, in seconds of the monotonic clock.
    """
    wanted = sorted(dict.fromkeys(features), key=lambda f: str(f.source))
    for source_id, group in groupby(wanted, key=lambda f: f.source):
        members = list(group)
        if done.issuperset(members):
            continue
        loader = job.open_loader(source_id)
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
            for first in range(0, len(chunk), job.part_size):
                cut = chunk[first : first + job.part_size]
                if members_left := [evidence[feature] for feature in cut if feature in evidence]:
                    yield label_part(job, Part(loader, members_left, _restrict(batch, members_left)))


def _restrict(batch: TrainBatch, evidence: Sequence[Evidence]) -> TrainBatch:
    """Restrict a batch to some of its features."""
    wanted = {part.feature for part in evidence}
    return replace(batch, features=[part for part in batch.features if part.feature in wanted])


def label_part(job: LabelJob, part: Part) -> LLMTask[PartResults]:
    """Explain features and score the explanations; nothing is stored."""
    loader = part.loader
    drafts = yield from run_task(bind(job.explainer, loader).explain(part.batch))
    explanations = {draft.feature: _add_provenance(draft, job, loader) for draft in drafts}
    explained = [e for e in part.evidence if explanations[e.feature].text is not None]
    cases = loader.cases(part.batch, explanations, loader.holdouts(explained)) if explained else []
    scored = yield from score_cases(job.scorers, cases, job.client)
    nothing = Scored([], [])
    return [
        (Result(feature, explanation, scored.get(feature, nothing).scores), scored.get(feature, nothing).judgements)
        for feature, explanation in explanations.items()
    ]


class Scored(NamedTuple):
    """The scores of one explanation, and the judgements behind them that are worth storing."""

    scores: list[Score]
    judgements: list[Judgements]


def score_cases(
    scorers: Sequence[Scorer], cases: Sequence[Case], client: LLMClient | None
) -> LLMTask[dict[Feature, Scored]]:
    """Run every scorer on every case, all of them side by side."""
    pairs = [(scorer, case) for case in cases for scorer in scorers]
    judgements_of_pairs = yield from gather([run_task(scorer.judge(case)) for scorer, case in pairs])
    scored = {case.explanation.feature: Scored([], []) for case in cases}
    for (scorer, case), judgements in zip(pairs, judgements_of_pairs, strict=True):
        scores, stored = scored[case.explanation.feature]
        if scorer.keeps_judgements:
            judgements = [_add_llm(part, client) for part in judgements]
            stored += judgements
        scores += measure(judgements)
    return scored


def _add_llm(judgements: Judgements, client: LLMClient | None) -> Judgements:
    """Add the language model to the provenance of judgements that came from calls."""
    if client is None or "calls" not in judgements.provenance:
        return judgements
    llm = {"llm": client.llm.model, "endpoint": client.llm.endpoint}
    return replace(judgements, provenance={**judgements.provenance, **llm})


def _add_provenance(explanation: Explanation, job: LabelJob, loader: EvidenceLoader) -> Explanation:
    """Add to an explanation where it comes from."""
    again = {"attempt": len(job.store.explanations(explanation.feature)) + 1} if job.redo else {}
    provenance = {
        "key": job.key,
        "settings": dict(job.explainer.settings),
        "model": job.subject.revision,
        "background": len(loader.background.ids),
        "libraries": {name: version(name) for name in ("neuronaut", "torch", "transformers", "numpy")},
    }
    return replace(explanation, provenance={**explanation.provenance, **provenance, **job.llm, **again})


def _store_prompts(store: Store, prompts: Iterable[Prompt]) -> None:
    for prompt in prompts:
        store.keep_prompt(prompt.hash, prompt.name, prompt.text)


def open_harvested(
    store: Store, subject: Subject, source_id: SourceId, sources: Mapping[SourceId, Source] | None
) -> Source:
    """Open a source as the store knows it, unless `sources` has it; an error if another one was harvested."""
    source = (sources or {}).get(source_id) or open_stored(store, subject, source_id)
    store.check_source(
        source_id,
        revision=source.revision,
        model_revision=subject.revision,
        width=source.width,
        convention=subject.convention,
    )
    # What the harvest left out of its examples is left out of everything that explainers and scorers read.
    limits = {**subject.convention.norm_limits, **store.convention(source_id).norm_limits}
    subject.convention = replace(subject.convention, norm_limits=limits)
    return source


def as_harvested(subject: Subject, store: Store, sources: Iterable[SourceId]) -> Subject:
    """The subject with the convention by which the text of these sources' harvests was read.

    Raises NeuronautError where they differ.
    """
    conventions = {str(source): store.convention(source) for source in sources}
    if not conventions:
        return subject
    first, *others = conventions.values()
    if not all(first.agrees(other) for other in others):
        ways = "; ".join(f"{name} with {convention}" for name, convention in conventions.items())
        raise NeuronautError(f"these were harvested in different ways: {ways}; name those of one way at a time")
    bos = first.bos if subject.tokenizer.bos_token_id is not None else None
    return subject.with_convention(replace(first, bos=bos, norm_limits={}))


def open_stored(store: Store, subject: Subject, source_id: SourceId) -> Source:
    """Open a source that was harvested into the store, at the place it was harvested from."""
    if (recorded := recorded_source(store, source_id)) is not None:
        return recorded
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


class _Rescored(NamedTuple):
    id: int
    """Id of the explanation in the store."""
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
    """Score the best explanation of each feature again and add the scores; features without one are passed over.

    >>> results = score(store.features("demo:mlp.1:17"), store, subject, scorers=[RuleSimulator()])
    >>> {part.scorer for result in results for part in result.scores}
    {'simulation'}
    """
    _store_prompts(store, (prompt for scorer in scorers for prompt in scorer.prompts))
    job = Job(store, subject, scorers, client, sources or {})
    for group in run_tasks(_score_tasks(job, features), client):
        with store.transaction():
            for rescored in group:
                store.add_scores(rescored.id, rescored.result.scores)
                store.add_judgements(rescored.id, rescored.judgements)
        yield from (rescored.result for rescored in group)


def _score_tasks(job: Job, features: Sequence[Feature]) -> Iterator[LLMTask[list[_Rescored]]]:
    for source_id, group in groupby(sorted(features, key=lambda f: str(f.source)), key=lambda f: f.source):
        loader = job.open_loader(source_id)
        members = [(f, best) for f in group if (best := job.store.best(f)) is not None and best.explanation.text]
        for start in range(0, len(members), job.part_size):
            yield _score_part(job, loader, dict(members[start : start + job.part_size]))


def _score_part(
    job: Job, loader: EvidenceLoader, best: Mapping[Feature, StoredExplanation]
) -> LLMTask[list[_Rescored]]:
    evidence = [job.store.evidence(feature) for feature in best]
    explanations = {feature: stored.explanation for feature, stored in best.items()}
    cases = loader.cases(loader.train(evidence), explanations, loader.holdouts(evidence), fall_back_to_store=True)
    scored = yield from score_cases(job.scorers, cases, job.client)
    return [
        _Rescored(stored.id, Result(feature, stored.explanation, scored[feature].scores), scored[feature].judgements)
        for feature, stored in best.items()
        if scored[feature].scores
    ]


def score_from_stored(features: Sequence[Feature], store: Store) -> Iterator[Result]:
    """Compute every metric again from the stored judgements of each feature's explanations; asks nobody.

    A score equal to one that is there adds nothing. Features without judgements are passed over.
    """
    for feature in features:
        for stored in store.explanations(feature):
            scores = [score for judgements in store.judgements(stored.id) for score in measure(judgements)]
            if scores:
                store.add_scores(stored.id, scores)
                yield Result(feature, stored.explanation, scores)
