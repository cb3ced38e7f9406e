"""The rule explainer: learns an executable rule for a feature from examples and interventions, without an LLM.

For every feature of a batch it (1) abstains where there is nothing to explain; (2) prunes the context
of the strongest training examples until the activation breaks, and makes minimal pairs from active
and silent training windows; (3) runs all of these, of all features, through the subject in shared
forwards; (4) grows a tree of token conditions on background, examples and interventions; (5) reduces
the tree to a short rule and says it in English.

`learn` does the same for one feature that experiments have measured further (`rules.revise`).
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.counterfactual import minimal_pairs
from ..data.harvest.activations import read_own
from ..data.padding import pad_activations, pad_ids
from ..data.records import Example, Explanation
from ..llm.prompt import Prompt
from ..rules.english import describe
from ..rules.induce import induce
from ..rules.observed import Observed
from ..rules.revise import fit, revise
from ..rules.sample import Sample, Windows
from ..rules.tree import Growth, grow
from ..subject.address import Feature
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .examples import background_example
from .explainer import AbstentionLimits, Background, TrainBatch, TrainEvidence, abstention

PRUNED = (1, 2, 3, 5, 9, 17, 33)
"""Lengths of context, the peak token included, that context pruning tries."""
FILLED = (3, 5, 17)
"""Lengths of context that are also tried in their place: of `PRUNED`."""
PRUNED_EXAMPLES = 4
EXAMPLE_SHARE, PIVOT_SHARE = 0.15, 0.05
"""Weight of all examples, and of all interventions' pivots, as a share of the background's."""
BROKEN = 0.5
"""A pruned context is broken when less than this fraction of the activation is left."""


class _Row(NamedTuple):
    """An edited window, of which one token counts."""

    ids: NDArray[np.int64]
    pivot: int
    document: str
    part: int


class _Interventions(NamedTuple):
    """Windows that were edited for one feature, and which of their tokens may be learned from."""

    ids: NDArray[np.int64]
    """(row, position)"""
    weight: NDArray[np.float32]
    """(row, position); 0 on padding."""
    documents: list[str]
    part: NDArray[np.int8]
    """What a row was made for (row,): `PRUNE`, `FILL`, `PAIR` or `TUNE`."""

    def only(self, *parts: int) -> NDArray[np.bool_]:
        """The rows that were made for one of these, (row,)."""
        return np.isin(self.part, parts)


PRUNE, FILL, PAIR, TUNE = range(4)
"""Pruned contexts, the same contexts left in their place, minimal pairs of train windows, and of tune windows."""


class _Measured(NamedTuple):
    """A feature's interventions with the measured activations, kept for learning again."""

    evidence: TrainEvidence
    rows: _Interventions
    activations: NDArray[np.float32]


class RuleExplainer:
    """Explains features by learned rules. Deterministic; needs the subject for its interventions.

    >>> explainer = RuleExplainer(subject, interventions=32)
    >>> explainer.name, explainer.prompts
    ('rule', ())
    """

    name = "rule"
    prompts: tuple[Prompt, ...] = ()

    def __init__(
        self, subject: Subject, *, interventions: int = 96, growth: Growth | None = None, seed: int = 0
    ) -> None:
        """`interventions` is the number of minimal pairs per feature.

        With 0 no context is pruned, either, so that rules are learned from text alone.
        """
        self._subject, self._interventions, self._seed = subject, interventions, seed
        self._growth, self._limits = growth or Growth(), AbstentionLimits()
        self._background: tuple[Background, Windows] | None = None
        self._measured: dict[Feature, _Measured] = {}

    @property
    def settings(self) -> dict[str, object]:
        """All that, beside the evidence, determines an explanation."""
        return {
            "interventions": self._interventions,
            "seed": self._seed,
            "growth": asdict(self._growth),
            "limits": asdict(self._limits),
            "version": 1,
        }

    def explain(self, batch: TrainBatch) -> list[Explanation]:
        """Explain every feature, in order; abstentions have a status and a reason instead of a text."""
        abstentions = [abstention(evidence, explainer=self.name, limits=self._limits) for evidence in batch.features]
        explainable = [
            evidence for evidence, abstained in zip(batch.features, abstentions, strict=True) if abstained is None
        ]
        interventions = [self._make_interventions(evidence, batch) for evidence in explainable]
        measured = self._measure(batch.source, explainable, interventions)
        learned = iter(
            self._learn(evidence, batch, rows, activations)
            for evidence, rows, activations in zip(explainable, interventions, measured, strict=True)
        )
        return [abstained if abstained is not None else next(learned) for abstained in abstentions]

    def learn(
        self, evidence: TrainEvidence, batch: TrainBatch, observed: Observed, *, measure: bool = True
    ) -> Explanation:
        """Learn an explanation that also holds for what experiments measured; without any it is that of `explain`.

        With `measure` its provenance has a "fit" (`rules.revise.Fit`), which takes as long again. The first call for a
        feature runs its interventions; later ones, with more or other observed windows, do not run the subject
        again. Raises NeuronautError where the observed windows are not as long as the batch's.
        """
        width = batch.background.ids.shape[1]
        if observed.ids.shape[1] != width:
            raise NeuronautError(
                f"observed windows of {observed.ids.shape[1]} tokens for {evidence.feature}, whose training windows "
                f"have {width}; measure in windows of {width}"
            )
        abstained = abstention(evidence, explainer=self.name, limits=self._limits)
        if abstained is not None:
            return abstained
        measured = self._measured.get(evidence.feature)
        if measured is None or measured.evidence is not evidence:
            rows = self._make_interventions(evidence, batch)
            (activations,) = self._measure(batch.source, [evidence], [rows])
            measured = self._measured[evidence.feature] = _Measured(evidence, rows, activations)
        return self._learn(evidence, batch, measured.rows, measured.activations, observed, measure=measure)

    def _make_interventions(self, evidence: TrainEvidence, batch: TrainBatch) -> _Interventions:
        """Pruned contexts of the strongest examples, then minimal pairs."""
        examples = [e for e in evidence.examples if e.kind in ("top", "quantile", "silent", "near_miss")]
        examples += _strongest_background(evidence, batch, count=8)
        rows: list[_Row] = []
        top = sorted((e for e in examples if e.kind == "top"), key=lambda e: -e.peak)[:PRUNED_EXAMPLES]
        for example in top if self._interventions else ():
            rows += _prune_context(example)
        for example in top if self._interventions else ():
            rows += _fill_context(example, batch.background.ids)
        rows += self._make_pairs(evidence, examples, batch.background, self._interventions, PAIR)
        if batch.tune is not None:
            active = [e for e in evidence.tune if e.kind in ("top", "quantile", "silent", "near_miss")]
            rows += self._make_pairs(evidence, active, batch.tune, self._interventions // 3, TUNE)
        width = batch.background.ids.shape[1]
        weight = np.zeros((len(rows), width), np.float32)
        weight[np.arange(len(rows)), [row.pivot for row in rows]] = 1.0
        return _Interventions(
            pad_ids([row.ids for row in rows], width=width),
            weight,
            [row.document for row in rows],
            np.array([row.part for row in rows], np.int8),
        )

    def _make_pairs(
        self, evidence: TrainEvidence, examples: Sequence[Example], corpus: Background, count: int, part: int
    ) -> Iterator[_Row]:
        """Minimal pairs of some examples, with substitutes from a corpus."""
        pairs = minimal_pairs(
            examples, peak=evidence.statistics.peak, corpus=corpus.ids, count=count, seed=self._seed
        )
        for pair in pairs:
            yield _Row(pair.tokens, pair.pivot, examples[pair.example].document, part)

    def _measure(
        self, source: Source, evidence: Sequence[TrainEvidence], interventions: Sequence[_Interventions]
    ) -> list[NDArray[np.float32]]:
        """Measure each feature on its own interventions, all features in shared forwards."""
        if not evidence:
            return []
        counts = [len(intervention.ids) for intervention in interventions]
        features = np.repeat([part.feature.index for part in evidence], counts)
        signs = np.repeat([-1.0 if part.feature.negative else 1.0 for part in evidence], counts)
        activations = read_own(
            self._subject, source, np.concatenate([intervention.ids for intervention in interventions]), features
        )
        activations *= signs[:, None].astype(np.float32)
        return np.split(activations, np.cumsum(counts)[:-1])

    def _learn(
        self,
        evidence: TrainEvidence,
        batch: TrainBatch,
        rows: _Interventions,
        activations: NDArray[np.float32],
        observed: Observed | None = None,
        *,
        measure: bool = False,
    ) -> Explanation:
        sample, growth = self._build_sample(evidence, batch, rows, activations)
        fit_provenance: dict[str, object] = {}
        if observed is not None and len(observed):
            pivot_weight = PIVOT_SHARE * (batch.background.ids >= 0).sum() / max(float(rows.weight.sum()), 1.0)
            scale = {"pivot_weight": pivot_weight, "half": evidence.statistics.peak / 2}
            rule = revise(sample, growth, observed, **scale)
            if rule is not None and measure:
                fit_provenance["fit"] = asdict(fit(rule, sample, growth, observed, **scale))
        else:
            rule = induce(sample, grow(sample, growth))
        if rule is None:
            reason = "no token condition predicts it better than its mean on training text"
            return Explanation(evidence.feature, None, self.name, reason=reason, status="no_pattern")
        top = max((e for e in evidence.examples if e.kind == "top"), key=lambda e: e.peak)
        text = describe(rule, peak=evidence.statistics.peak, example=_snippet(top))
        digests = {e.window for e in evidence.examples}
        return Explanation(
            evidence.feature,
            text,
            self.name,
            rule=rule.to_json(),
            seen=tuple(sorted(digests)),
            provenance={
                "context": _context_needed(activations, rows),
                "length": rule.length(),
                **self.settings,
                **fit_provenance,
            },
        )

    def _build_sample(
        self, evidence: TrainEvidence, batch: TrainBatch, rows: _Interventions, activations: NDArray[np.float32]
    ) -> tuple[Sample, Growth]:
        """Put background, examples and interventions into one weighted sample.

        Of interventions only the pivots count. A quarter of the documents, by the hash of their names, is
        kept for checking the tree's splits.
        """
        background = self._background_windows(batch)
        examples = list({e.window: e for e in evidence.examples if e.kind != "bottom"}.values())
        width = background.ids.shape[1]
        own_ids = np.concatenate([pad_ids([e.ids for e in examples], width=width), rows.ids])
        own_activations = np.concatenate([pad_activations([e.activations for e in examples], width=width), activations])
        real = (background.ids >= 0).ravel().astype(np.float32)
        mass = float(real.sum())
        example_weight = EXAMPLE_SHARE * mass / sum(len(e.ids) for e in examples)
        pivot_weight = PIVOT_SHARE * mass / max(float(rows.weight.sum()), 1.0)
        own_weight = np.concatenate(
            [np.where(own_ids[: len(examples)] >= 0, example_weight, 0), rows.weight * pivot_weight]
        ).astype(np.float32)
        weight = np.concatenate([real, own_weight.ravel()])
        checked_documents = np.array(
            [
                _is_for_checking(name)
                for name in (*batch.background.documents, *(e.document for e in examples), *rows.documents)
            ]
        )
        checked = np.repeat(checked_documents, width)
        sample = Sample(
            background=background,
            own=Windows(batch.vocabulary, own_ids),
            activation=np.concatenate([evidence.background.ravel(), own_activations.ravel()]),
            weight=np.where(checked, 0, weight).astype(np.float32),
            check=np.where(checked, weight, 0).astype(np.float32),
            vocabulary=batch.vocabulary,
        )
        return sample, replace(self._growth, prior=self._growth.prior + 0.3 * example_weight)

    def _background_windows(self, batch: TrainBatch) -> Windows:
        """Build the background's windows, once for as long as batches share them."""
        if self._background is None or self._background[0] is not batch.background:
            self._background = batch.background, Windows(batch.vocabulary, batch.background.ids)
        return self._background[1]


def _is_for_checking(document: str) -> bool:
    return zlib.crc32(document.encode()) % 4 == 0


def _strongest_background(evidence: TrainEvidence, batch: TrainBatch, *, count: int) -> list[Example]:
    """Take the background windows in which the feature is strongest: they hold pivots that no list kept."""
    rows = np.argsort(-evidence.background.max(axis=1), kind="stable")[:count]
    return [background_example(evidence, batch, row, kind="random") for row in rows.tolist()]


def _prune_context(example: Example) -> Iterator[_Row]:
    """Cut the tokens up to the peak to contexts of `PRUNED` lengths, each moved to the window's start."""
    pivot = int(example.activations.argmax())
    for length in PRUNED:
        if length <= pivot:
            row = np.full_like(example.ids, example.ids[0])
            row[:length] = example.ids[pivot + 1 - length : pivot + 1]
            yield _Row(row, length - 1, example.document, PRUNE)


def _fill_context(example: Example, corpus: NDArray[np.int64]) -> Iterator[_Row]:
    """The same contexts left where they are, with other text before them: what differs from the pruned is position."""
    pivot = int(example.activations.argmax())
    whole = corpus[corpus[:, pivot] >= 0]
    for length in FILLED if len(whole) else ():
        if length <= pivot:
            row = example.ids.copy()
            row[: pivot + 1 - length] = whole[pivot % len(whole), : pivot + 1 - length]
            yield _Row(row, pivot, example.document, FILL)


def _context_needed(activations: NDArray[np.float32], rows: _Interventions) -> int | None:
    """The fewest tokens of context, the peak token included, that keep half of the activation in most top examples.

    Pruned rows come first, in the order of `PRUNED` for each example; None where the window was too short.
    """
    needed: list[int] = []
    lengths = rows.weight.argmax(axis=1) + 1
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] <= lengths[end - 1]:
            values = [activations[i, lengths[i] - 1] for i in range(start, end)]
            sufficient = [int(lengths[start + i]) for i, value in enumerate(values) if value >= BROKEN * max(values)]
            if end - start > 1 and lengths[start] == PRUNED[0] and sufficient:
                needed.append(sufficient[0])
            start = end
        if len(needed) == PRUNED_EXAMPLES:
            break
    return int(np.median(needed)) if needed else None


def _snippet(example: Example, *, before: int = 8) -> str:
    """The text that leads up to the example's peak, the peak token included, on one line."""
    peak = int(example.activations.argmax())
    return " ".join("".join(example.tokens[max(0, peak - before) : peak + 1]).split())
