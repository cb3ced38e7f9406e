"""Labels features, that is, explains them on the training side and scores the explanations on the holdout.

What is done next is decided by the agenda (agenda.py), and done by this process, by worker processes, or, where a
language model is asked, by several tasks that are open at a time. Every feature is stored as soon as it is finished,
in a transaction of its own: whatever stops the process, the same call goes on with the features that are left, calls
that were answered are read from the log, and the database ends as if nothing had happened. Two processes may label
into one database; a feature that both took is stored once.

Features that are explained already can be scored again: scorers judge anew (`score`), or the metrics are computed
again from stored judgements (`score_from_stored`).
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from ..data.ranking import headline_score, standing
from ..data.records import Explanation, Judgements, Score, Split
from ..data.store.rows import StoredExplanation
from ..data.store.store import Store
from ..explainers.explainer import Explainer
from ..llm.client import LLMClient
from ..llm.prompt import Prompt
from ..llm.tasks import LLMTask, NobodyAskedError, gather, run_task
from ..scorers.calibration import admit, calibrate, found_calibrations
from ..scorers.scorer import Case, Scorer, measure
from ..scorers.simulation import RuleSimulator
from ..subject.address import Feature, SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .agenda import Agenda, Explain, Item, Judge, TimeIsOver, Work, WorkerItem, group_items
from .harvested import open_harvested
from .inputs import EvidenceLoader, OnProgress
from .selection import SelectingExplainer, bind
from .workers import Workers

T = TypeVar("T")

FEATURE_TOKENS = 512
"""Of a batch's tokens (--batch-tokens) so many are one feature's: its edited windows, some 5,000 tokens for its rule
and 2,000 for its score, are run in forwards of up to eight lengths."""
SELECT: Split = "select"
"""Name of the split, and of the set of examples, on which explanations of one feature are compared."""


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
        """The headline score; None where none was measured."""
        return headline_score(self.scores)

    def to_row(self) -> dict[str, Any]:
        """The row of `label`, with the keys of `list`."""
        best, explanation = self.score, self.explanation
        return {
            "feature": str(self.feature),
            "status": standing(explanation.status, best),
            "explanation": explanation.text,
            "headline": explanation.headline,
            "explainer": explanation.explainer,
            "score": best and best.value,
            "ci_low": best and best.ci_low,
            "ci_high": best and best.ci_high,
            "metric": best and best.metric,
            "scorer": best and best.scorer,
            "baseline": best and best.baseline,
            "n": best and best.n,
        }


class Finished(NamedTuple):
    """A feature with which everything is done, and the judgements that are worth storing."""

    result: Result
    judgements: list[Judgements]


Outcome = Explanation | Finished
"""What comes of an `Explain` and of a `Judge`."""


@dataclass(frozen=True, slots=True)
class Job:
    """The work on all features of one call: where they are stored, who scores them, and what is open already."""

    store: Store
    subject: Subject
    scorers: Sequence[Scorer]
    client: LLMClient | None
    sources: Mapping[SourceId, Source]
    """Sources that are open; others are opened as the store knows them."""
    chooser: Scorer | None = None
    """Judges texts on `select`, without controls, where candidates are to be compared; None for rules only."""
    background: bool = True
    """Whether the windows are read that explainers and baselines learn from."""
    _loaders: dict[SourceId, EvidenceLoader] = field(default_factory=dict, init=False)

    @property
    def llm(self) -> dict[str, object]:
        """The language model, for provenance; empty where none is asked."""
        return {} if self.client is None else {"llm": self.client.llm.model, "endpoint": self.client.llm.endpoint}

    def open_loader(self, source_id: SourceId) -> EvidenceLoader:
        """Open the loader of a source's evidence, once."""
        if source_id not in self._loaders:
            source = open_harvested(self.store, self.subject, source_id, self.sources)
            loader = EvidenceLoader(self.store, self.subject, source, background=self.background)
            self._loaders[source_id] = loader
        return self._loaders[source_id]

    def judge(self, items: Sequence[Judge], *, select: bool = True) -> LLMTask[list[Finished]]:
        """Score explanations of one source on the holdout and, with `select`, there too; nothing is stored.

        What has to be run through the subject for it is run for all of them together.
        """
        loader = self.open_loader(items[0].work.feature.source)
        evidence = [item.work.evidence for item in items]
        columns = {item.work.feature: item.work.columns for item in items}
        batch, holdouts = loader.train(evidence, columns), loader.holdouts(evidence, columns)
        explanations = {item.work.feature: item.explanation for item in items}
        cases = loader.cases(batch, explanations, holdouts, {item.work.feature: item.control for item in items})
        judged = [self._judge_case(case, item.work, select=select) for case, item in zip(cases, items, strict=True)]
        return (yield from gather(judged))

    def _judge_case(self, case: Case, work: Work, *, select: bool) -> LLMTask[Finished]:
        explanation = case.explanation
        parts = [score_case(self.scorers, case, self.client)]
        judges = self._select_judges(explanation) if select and len(work.columns.random[SELECT]) else []
        if judges:
            loader, columns = self.open_loader(work.feature.source), {work.feature: work.columns}
            there = replace(case, holdout=loader.holdouts([work.evidence], columns, split=SELECT)[work.feature])
            parts += [score_on_select(judge, there, self.client) for judge in judges]
        scored = yield from gather(parts)
        result = Result(work.feature, explanation, [score for part in scored for score in part.scores])
        return Finished(result, [judgements for part in scored for judgements in part.judgements])

    def _select_judges(self, explanation: Explanation) -> list[Scorer]:
        """Who judges an explanation on `select`: code its rule; of texts the chooser those that have a rival."""
        judges: list[Scorer] = [RuleSimulator()] if explanation.rule else []
        chooser = self.chooser
        if chooser is None or isinstance(chooser, RuleSimulator) or not self.has_rival(explanation):
            return judges
        return [*judges, chooser]

    def has_rival(self, explanation: Explanation) -> bool:
        """Whether the text of an explanation is worth calls that compare it with others."""
        others = self.store.explanations(explanation.feature) if not explanation.rule else ()
        return any(other.explanation.text not in (None, explanation.text) for other in others)


@dataclass(frozen=True, slots=True)
class LabelJob(Job):
    """A job that explains features before it scores them."""

    explainer: Explainer | SelectingExplainer = field(kw_only=True)
    redo: bool = False

    @property
    def key(self) -> str:
        """The hash by which its explanations are known: of the explainer, the language model and all settings."""
        settings = json.dumps({"explainer": self.explainer.name, **self.llm, **self.explainer.settings}, sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def perform(self, items: Sequence[Item]) -> LLMTask[list[Outcome]]:
        """Explain features, or judge explanations, of one source; nothing is stored."""
        features = [item for item in items if isinstance(item, Explain)]
        if features:
            return list((yield from self.explain(features)))
        return list((yield from self.judge([item for item in items if isinstance(item, Judge)])))

    def explain(self, items: Sequence[Explain]) -> LLMTask[list[Explanation]]:
        """Explain features of one source."""
        loader = self.open_loader(items[0].work.feature.source)
        columns = {item.work.feature: item.work.columns for item in items}
        batch = loader.train([item.work.evidence for item in items], columns)
        explanations = yield from run_task(bind(self.explainer, loader).explain(batch))
        return [_add_provenance(explanation, self, loader) for explanation in explanations]

    def has_rival(self, explanation: Explanation) -> bool:
        """Whether the text is worth calls; an explainer that chooses on `select` has made them already."""
        return isinstance(self.explainer, SelectingExplainer) or Job.has_rival(self, explanation)

    def explained_before(self, feature: Feature) -> Explanation:
        """What this job's explainer said of a feature in an earlier call; raises NeuronautError where there is none."""
        stored = [s for s in self.store.explanations(feature) if s.explanation.provenance.get("key") == self.key]
        if not stored:
            raise NeuronautError(f"{feature} was to have an explanation by {self.explainer.name}; label it again")
        return max(stored, key=lambda s: s.id).explanation


def performing(job: LabelJob) -> Callable[[WorkerItem], LLMTask[list[Outcome]]]:
    """Return the function with which a worker performs items of an equal job; it asks whoever runs the tasks."""
    admitted: list[LabelJob] = []

    def perform(given: WorkerItem) -> LLMTask[list[Outcome]]:
        if not admitted:
            admitted.append(replace(job, scorers=admit(job.scorers, given.calibrations)))
        return admitted[0].perform(given.items)

    return perform


def label(
    features: Sequence[Feature],
    store: Store,
    subject: Subject,
    *,
    explainer: Explainer | SelectingExplainer,
    scorers: Sequence[Scorer],
    client: LLMClient | None = None,
    chooser: Scorer | None = None,
    sources: Mapping[SourceId, Source] | None = None,
    workers: Workers[WorkerItem, list[Outcome]] | None = None,
    redo: bool = False,
    minutes: float | None = None,
    on_skip: Callable[[int], None] = lambda _: None,
    on_progress: OnProgress = lambda *_: None,
) -> Iterator[Result]:
    """Explain and score features, store every result as soon as it is there, and yield it.

    `client` answers the requests of explainers and scorers; `chooser` judges texts on `select`, to be compared with
    the feature's others. Features that this explainer labelled before are skipped (`on_skip` is called with their
    number) unless `redo`, which adds a further explanation. `sources` are dictionaries that are open already; others
    are opened as the store knows them. `workers` do the work in other processes (each is `performing` an equal job) and
    ask nobody: `client` answers them all. Without, it is done here. After `minutes`, the client's if it has a budget of
    them, no further feature is begun. `on_progress` is told what is done in the meantime. A language model that judges
    is calibrated first (scorers/calibration.py); raises NeuronautError where it fails.

    >>> results = label(
    ...     store.features("demo:mlp.1:18"), store, subject, explainer=RuleExplainer(subject), scorers=[RuleSimulator()]
    ... )
    >>> [str(result.feature) for result in results]
    ['demo:mlp.1:18']
    """
    job = LabelJob(store, subject, scorers, client, sources or {}, chooser=chooser, explainer=explainer, redo=redo)
    _store_prompts(store, (*explainer.prompts, *(prompt for scorer in scorers for prompt in scorer.prompts)))
    wanted = list(dict.fromkeys(features))
    done = set() if redo else store.labelled(wanted, job.key)
    if not done.issuperset(wanted):
        job = replace(job, scorers=calibrate(scorers, client))
    on_skip(len(done))
    if minutes is None and client is not None:
        minutes = client.budget.minutes
    for finished in run_job(job, wanted, done=done, workers=workers, on_progress=_until(minutes, on_progress)):
        result = finished.result
        store.add_result(result.explanation, result.scores, judgements=finished.judgements, redo=redo)
        yield result


def _until(minutes: float | None, on_progress: OnProgress) -> OnProgress:
    """The same, but it raises TimeIsOver when so many minutes have gone."""
    if minutes is None:
        return on_progress
    end = time.monotonic() + 60 * minutes

    def check(what: str, done: int, total: int) -> None:
        if time.monotonic() > end:
            raise TimeIsOver
        on_progress(what, done, total)

    return check


def run_job(
    job: LabelJob,
    features: Sequence[Feature],
    *,
    done: set[Feature],
    workers: Workers[WorkerItem, list[Outcome]] | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Iterator[Finished]:
    """Do the work on features that are not done, and yield each that is finished; nothing is stored.

    Without a language model they come in the order given, as far as nothing before them is still in work.
    """
    agenda = Agenda(features, done, job.explained_before, job.open_loader, on_progress)
    most = job.subject.batching.together(FEATURE_TOKENS)
    finished = finish(agenda, _perform(job, group_items(agenda.items(), most=most), workers))
    if job.client is not None or workers is None and most == 1:
        yield from finished
        return
    held: dict[Feature, Finished] = {}
    order = deque(feature for feature in features if feature not in done)
    for one in finished:
        held[one.result.feature] = one
        while order and order[0] in held:
            yield held.pop(order.popleft())
    yield from held.values()


def _perform(
    job: LabelJob, groups: Iterator[Sequence[Item] | None], workers: Workers[WorkerItem, list[Outcome]] | None
) -> Iterator[list[Outcome]]:
    """Perform groups of items, here or by workers, as they are done."""
    if workers is None:
        yield from run_tasks((None if group is None else job.perform(group) for group in groups), job.client)
        return
    calibrations = found_calibrations(job.scorers)
    items = (None if group is None else WorkerItem(group, calibrations) for group in groups)
    if job.client is None:
        yield from workers.run(items)
        return
    # Two for each, so that none waits for what it is to do next.
    asking = (None if item is None else workers.perform(item) for item in items)
    yield from job.client.run(asking, at_work=2 * len(workers))


def finish(agenda: Agenda, outcomes: Iterable[Sequence[Outcome]]) -> Iterator[Finished]:
    """Tell the agenda what is explained, and yield what is finished."""
    for outcome in chain.from_iterable(outcomes):
        if isinstance(outcome, Finished):
            yield outcome
            continue
        agenda.add_explanation(outcome)
        if outcome.text is None:
            yield Finished(Result(outcome.feature, outcome, []), [])


def run_tasks(tasks: Iterable[LLMTask[T] | None], client: LLMClient | None) -> Iterator[T]:
    """Run tasks and yield their results; without a client, tasks that ask are an error.

    None among the tasks: the next can be begun only when another is done.
    """
    if client is not None:
        yield from client.run(tasks)
        return
    for task in tasks:
        if task is None:
            # Here everything that was begun is done.
            return
        try:
            next(task)
        except StopIteration as stop:
            yield stop.value
        else:
            raise NobodyAskedError


class Scored(NamedTuple):
    """The scores of one explanation, and the judgements behind them that are worth storing."""

    scores: list[Score]
    judgements: list[Judgements]


def score_case(scorers: Sequence[Scorer], case: Case, client: LLMClient | None) -> LLMTask[Scored]:
    """Run every scorer on an explanation, all of them side by side."""
    judged = yield from gather([run_task(scorer.judge(case)) for scorer in scorers])
    parts = [_measure(scorer, judgements, client) for scorer, judgements in zip(scorers, judged, strict=True)]
    return Scored([s for part in parts for s in part.scores], [j for part in parts for j in part.judgements])


def score_on_select(judge: Scorer, case: Case, client: LLMClient | None) -> LLMTask[Scored]:
    """Score an explanation on the top and random windows of `select`, or on the excerpts that the judge chooses."""
    if isinstance(judge, RuleSimulator):
        only = {"top_random": case.holdout.sets["top_random"]}
        case = replace(case, holdout=replace(case.holdout, sets=only))
    judged = yield from run_task(judge.judge(case))
    name = judged[0].examples if judged else ""
    first = [replace(part, examples=SELECT) for part in judged if (part.scorer, part.examples) == (judge.name, name)]
    return _measure(judge, first, client)


def _measure(scorer: Scorer, judgements: list[Judgements], client: LLMClient | None) -> Scored:
    if scorer.keeps_judgements:
        judgements = [_add_llm(part, client) for part in judgements]
    return Scored(measure(judgements), judgements if scorer.keeps_judgements else [])


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


def score(
    features: Sequence[Feature],
    store: Store,
    subject: Subject,
    *,
    scorers: Sequence[Scorer],
    client: LLMClient | None = None,
    sources: Mapping[SourceId, Source] | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Iterator[Result]:
    """Score the best explanation of each feature again and add the scores; features without one are passed over.

    Scores on `select` are added only where there are none. A language model that judges is calibrated first, as by
    `label`.

    >>> results = score(store.features("demo:mlp.1:17"), store, subject, scorers=[RuleSimulator()])
    >>> "simulation" in {part.scorer for result in results for part in result.scores}
    True
    """
    _store_prompts(store, (prompt for scorer in scorers for prompt in scorer.prompts))
    best = {f: stored for f in features if (stored := store.best(f)) is not None and stored.explanation.text}
    background = any(scorer.compares for scorer in scorers) or any(
        stored.explanation.rule and not _on_select(store, stored) for stored in best.values()
    )
    job = Job(store, subject, calibrate(scorers, client), client, sources or {}, background=background)
    agenda = Agenda(list(best), set(), lambda f: best[f].explanation, job.open_loader, on_progress, explain=False)
    tasks = (_judge_again(job, item, best) for item in agenda.items() if not isinstance(item, Explain))
    for result, judgements in chain.from_iterable(run_tasks(tasks, client)):
        stored = best[result.feature]
        with store.transaction():
            store.add_scores(stored.id, result.scores)
            store.add_judgements(stored.id, judgements)
        if result.scores:
            yield result


def _judge_again(
    job: Job, item: Judge | None, best: Mapping[Feature, StoredExplanation]
) -> LLMTask[list[Finished]] | None:
    if item is None:
        return None
    feature = item.work.feature
    if item.control.explanation is None:
        item = item._replace(control=job.open_loader(feature.source).stored_control(feature))
    return job.judge([item], select=not _on_select(job.store, best[feature]))


def _on_select(store: Store, stored: StoredExplanation) -> bool:
    return any(score.examples == SELECT for score in store.scores(stored.id))


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
