"""Label a batch of features: explain on the training side, score on the holdout, store each result at once.

Features of one source are taken in chunks, so that their interventions and their holdout pairs share
forward passes. A chunk's explanations and scores are one transaction, since the features of a chunk are
each other's baselines: whatever stops the process, the same call goes on with the next chunk and the
database ends as if nothing had happened. Two processes may label into one database; a feature that both
took is stored once.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby

import numpy as np

from ..data.activations import read_columns
from ..data.records import Evidence, Explanation, Score
from ..data.store import Store
from ..explainers.batch import Background, TrainBatch, TrainEvidence
from ..explainers.rule import RuleExplainer
from ..explainers.rules import Rule
from ..scorers.baselines import Baselines, token_baselines
from ..scorers.holdout import Holdout, build
from ..scorers.simulation import RuleSimulator
from ..subject.address import Feature, SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.opening import open_source
from ..subject.sources import Source

CHUNK = 48
"""Features that are explained together."""
BACKGROUND = 2048
"""Pool windows of the training split that explainers see at most."""
RANDOM_HOLDOUT = 256
"""Random holdout windows that scorers draw windows and substitute tokens from."""


@dataclass(frozen=True, slots=True)
class Result:
    """One labelled feature."""

    feature: Feature
    explanation: Explanation
    scores: Sequence[Score]

    @property
    def score(self) -> Score | None:
        """The headline score: correlation on the top and random holdout windows."""
        return next((s for s in self.scores if (s.examples, s.metric) == ("top_random", "correlation")), None)


class Bench:
    """Prepares features of one source for explainers and scorers; what features share is read once."""

    def __init__(self, store: Store, subject: Subject, source: Source, *, seed: int = 0) -> None:
        self.store, self.subject, self.source, self._seed = store, subject, source, seed
        model = source.id.model
        train = sorted(store.pool_windows(model, "train"), key=lambda w: w.window)[:BACKGROUND]
        if not train:
            raise NeuronautError(f"no pool of {model} in the database; run: neuronaut harvest {model} {source.id.site}")
        self.background = Background(
            np.stack([w.ids for w in train]), [w.document for w in train], [w.window for w in train]
        )
        shown = set(self.background.digests)
        # By digest, since the first windows of the corpus all come from its first few documents.
        holdout = sorted(store.pool_windows(model, "holdout"), key=lambda w: w.window)
        holdout = [w for w in holdout if w.window not in shown][:RANDOM_HOLDOUT]
        if not holdout:
            raise NeuronautError(f"the pool of {model} has no holdout window; harvest it on a larger corpus")
        self._random = np.stack([w.ids for w in holdout]).astype(np.int64), [w.window for w in holdout]

    def train(self, evidence: Sequence[Evidence]) -> TrainBatch:
        """The training side of some features."""
        features = [part.feature for part in evidence]
        width = self.background.ids.shape[1]
        if any(len(example.ids) != width for part in evidence for example in (*part.train, *part.holdout)):
            raise NeuronautError(
                f"{self.source.id} was harvested in other windows than the pool of {self.source.id.model}, which has "
                f"windows of {width} tokens; harvest it again with --window {width}"
            )
        read = read_columns(self.subject, self.source, self.background.ids, [f.index for f in features])
        parts = [
            TrainEvidence(e.feature, e.statistics, e.train, (-1.0 if e.feature.negative else 1.0) * read[:, :, i])
            for i, e in enumerate(evidence)
        ]
        return TrainBatch(self.source, self.subject.vocabulary, self.background, parts)

    def holdouts(self, evidence: Sequence[Evidence]) -> dict[Feature, Holdout]:
        """The holdout side of the same features."""
        examples = {e.feature: e.holdout for e in evidence}
        peaks = {e.feature: e.statistics.peak for e in evidence}
        found = build(self.subject, self.source, examples, peaks, self._random, seed=self._seed)
        return {holdout.feature: holdout for holdout in found}

    def baselines(self, batch: TrainBatch, explanations: Mapping[Feature, Explanation]) -> dict[Feature, Baselines]:
        """Baselines of every explained feature; the other rule is that of the next explained one."""
        explained = [feature for feature, explanation in explanations.items() if explanation.rule is not None]
        found = {}
        for i, feature in enumerate(explained):
            evidence = next(part for part in batch.features if part.feature == feature)
            other = explanations[explained[(i + 1) % len(explained)]] if len(explained) > 1 else None
            rule = Rule.parse(other.rule) if other is not None and other.rule else None
            found[feature] = Baselines(*token_baselines(evidence, batch), rule)
        return found


def label(
    features: Sequence[Feature],
    store: Store,
    subject: Subject,
    *,
    explainer: RuleExplainer,
    scorers: Sequence[RuleSimulator],
    sources: Mapping[SourceId, Source] | None = None,
    redo: bool = False,
    minutes: float | None = None,
    on_skip: Callable[[int], None] | None = None,
) -> Iterator[Result]:
    """Explain and score features, store every result, and yield it.

    Features that this explainer labelled before are skipped (`on_skip` hears how many) unless `redo`, which adds a
    further explanation. `sources` are dictionaries that are open already; others are opened as the
    store knows them. After `minutes` no further chunk is begun.
    """
    until = None if minutes is None else time.monotonic() + 60 * minutes
    key = _key(explainer)
    done = set() if redo else store.labelled(features, key)
    if on_skip is not None:
        on_skip(len(done))
    wanted = sorted(dict.fromkeys(features), key=lambda f: str(f.source))
    for source_id, group in groupby(wanted, key=lambda f: f.source):
        members = list(group)
        if done.issuperset(members):
            continue
        bench = Bench(store, subject, _opened(store, subject, source_id, sources))
        # Chunks are cut from all features, done or not, so that a call that goes on cuts the same ones.
        for start in range(0, len(members), CHUNK):
            if until is not None and time.monotonic() > until:
                return
            if chunk := [f for f in members[start : start + CHUNK] if f not in done]:
                yield from _label_chunk(bench, chunk, explainer, scorers, key, redo=redo)


def _label_chunk(
    bench: Bench,
    features: Sequence[Feature],
    explainer: RuleExplainer,
    scorers: Sequence[RuleSimulator],
    key: str,
    *,
    redo: bool,
) -> Iterator[Result]:
    evidence = [bench.store.evidence(feature) for feature in features]
    batch = bench.train(evidence)
    explanations = {made.feature: made for made in explainer.explain(batch)}
    explained = [part for part in evidence if explanations[part.feature].rule is not None]
    holdouts = bench.holdouts(explained) if explained else {}
    baselines = bench.baselines(batch, explanations)
    provenance = {
        "key": key,
        "model": bench.subject.revision,
        "background": len(bench.background.ids),
        "libraries": {name: version(name) for name in ("neuronaut", "torch", "transformers", "numpy")},
    }
    results = []
    for feature, made in explanations.items():
        again = {"attempt": len(bench.store.explanations(feature)) + 1} if redo else {}
        explanation = replace(made, provenance={**made.provenance, **provenance, **again})
        scores = [
            score
            for scorer in scorers
            if feature in holdouts
            for score in scorer.score(explanation, holdouts[feature], baselines[feature])
        ]
        results.append(Result(feature, explanation, scores))
    with bench.store.transaction():
        for result in results:
            bench.store.add_result(result.explanation, result.scores, redo=redo)
    yield from results


def score(
    features: Sequence[Feature],
    store: Store,
    subject: Subject,
    *,
    scorers: Sequence[RuleSimulator],
    sources: Mapping[SourceId, Source] | None = None,
) -> Iterator[Result]:
    """Score the best explanation of each feature again and add the scores; features without a rule are passed over."""
    for source_id, group in groupby(sorted(features, key=lambda f: str(f.source)), key=lambda f: f.source):
        bench = Bench(store, subject, _opened(store, subject, source_id, sources))
        members = [
            (f, best) for f in group if (best := store.best(f)) is not None and best.explanation.rule is not None
        ]
        for start in range(0, len(members), CHUNK):
            chunk = members[start : start + CHUNK]
            evidence = [store.evidence(feature) for feature, _ in chunk]
            batch, holdouts = bench.train(evidence), bench.holdouts(evidence)
            baselines = bench.baselines(batch, {feature: best.explanation for feature, best in chunk})
            for feature, best in chunk:
                scores = [
                    s
                    for scorer in scorers
                    for s in scorer.score(best.explanation, holdouts[feature], baselines[feature])
                ]
                store.add_scores(best.id, scores)
                yield Result(feature, best.explanation, scores)


def _opened(store: Store, subject: Subject, source_id: SourceId, sources: Mapping[SourceId, Source] | None) -> Source:
    """The source, open already or opened as the store knows it; an error if it is not the one that was harvested."""
    source = (sources or {}).get(source_id) or open_stored(store, subject, source_id)
    revision = getattr(source, "revision", "")
    store.check_source(source_id, revision=revision, model_revision=subject.revision, width=source.width)
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


def _key(explainer: RuleExplainer) -> str:
    """What an explanation is known by: the explainer and every setting that changes what it says."""
    settings = json.dumps({"explainer": explainer.name, **explainer.settings}, sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]
