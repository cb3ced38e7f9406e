"""Score what is explained already: ask scorers anew, or compute the metrics again from stored judgements."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..data.records import Judgements
from ..data.rows import StoredExplanation
from ..data.store import Store
from ..explainers.llm.asking import Asking
from ..explainers.llm.desk import Desk
from ..scorers.scorer import Scorer, measure
from ..subject.address import Feature, SourceId
from ..subject.model import Subject
from ..subject.sources import Source
from .bench import Bench
from .label import CHUNK, PART, Result, answered, opened, scoring


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
    desk: Desk | None = None,
    sources: Mapping[SourceId, Source] | None = None,
) -> Iterator[Result]:
    """Score the best explanation of each feature again and add the scores; features without one are passed over."""
    for scorer in scorers:
        for prompt in scorer.prompts:
            store.keep_prompt(prompt.hash, prompt.name, prompt.text)
    for group in answered(_parts(features, store, subject, scorers, desk, sources), desk):
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
    desk: Desk | None,
    sources: Mapping[SourceId, Source] | None,
) -> Iterator[Asking[list[_Scored]]]:
    for source_id, group in groupby(sorted(features, key=lambda f: str(f.source)), key=lambda f: f.source):
        bench = Bench(store, subject, opened(store, subject, source_id, sources))
        members = [(f, best) for f in group if (best := store.best(f)) is not None and best.explanation.text]
        size = CHUNK if desk is None else PART
        for start in range(0, len(members), size):
            yield _scored(bench, dict(members[start : start + size]), scorers, desk)


def _scored(
    bench: Bench, best: Mapping[Feature, StoredExplanation], scorers: Sequence[Scorer], desk: Desk | None
) -> Asking[list[_Scored]]:
    evidence = [bench.store.evidence(feature) for feature in best]
    explanations = {feature: stored.explanation for feature, stored in best.items()}
    cases = bench.cases(bench.train(evidence), explanations, bench.judged(evidence), elsewhere=True)
    judged = yield from scoring(scorers, cases, desk)
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
