"""Getting a target ready: what is read once before an investigation, shared by all features of a source."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ...data.store import Store
from ...explainers.llm.desk import Desk
from ...explainers.rule import RuleExplainer
from ...scorers.scorer import Scorer
from ...subject.address import Feature, SourceId
from ...subject.model import Subject
from ...subject.sources import Source
from ..bench import Bench
from ..label import CHUNK, opened
from .ending import Examiner
from .examining import FeatureExaminer
from .lab import FeatureLab


class Prepared(NamedTuple):
    """A feature ready to be investigated."""

    feature: Feature
    lab: FeatureLab
    examiner: Examiner


def chunks(features: Sequence[Feature]) -> Iterator[list[Feature]]:
    """Features that are read together: of one source, so many at a time."""
    by_source: dict[SourceId, list[Feature]] = {}
    for feature in dict.fromkeys(features):
        by_source.setdefault(feature.source, []).append(feature)
    for members in by_source.values():
        yield from (members[start : start + CHUNK] for start in range(0, len(members), CHUNK))


def prepare(
    features: Sequence[Feature], subject: Subject, store: Store, *, sources: Mapping[SourceId, Source] | None,
    scorers: Sequence[Scorer], desk: Desk | None, seed: int,
) -> Iterator[Prepared]:  # fmt: skip
    """Labs and examiners of features of one source: their evidence, and one-shot explanations, from shared forwards."""
    source = opened(store, subject, features[0].source, sources)
    bench = Bench(store, subject, source, seed=seed)
    evidence = {feature: store.evidence(feature) for feature in features}
    batch = bench.train(list(evidence.values()))
    baselines = {made.feature: made for made in RuleExplainer(subject, seed=seed).explain(batch)}
    for part in batch.features:
        lab = FeatureLab(store, subject, source, part, batch, baseline=baselines[part.feature], seed=seed)
        examiner = FeatureExaminer(bench, lab, evidence[part.feature], batch, scorers, desk=desk)
        yield Prepared(part.feature, lab, examiner)
