"""The rule explainer: learns an executable rule for a feature from examples and interventions, without an LLM.

For every feature of a batch it (1) abstains where there is nothing to explain; (2) prunes the context
of the strongest training examples until the activation breaks, and makes minimal pairs from active
and silent training windows; (3) runs all of these, of all features, through the subject in shared
forwards; (4) grows a tree of token conditions on background, examples and interventions, and reduces it
to a rule; (5) chooses, from that rule's contexts and from tokens, the few clauses that hold on tune, which
nothing is fitted on, and says them in English. The longer rule of (4) stays as predictor where it predicts better.

`learn` does the same for one feature that experiments have measured further (`rules.revise`).
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.harvest.activations import read_pivots
from ..data.padding import pad_activations, pad_ids
from ..data.records import Example, Explanation
from ..llm.prompt import Prompt
from ..rules.affixes import Family, families
from ..rules.choose import Size, choose, predicts_better
from ..rules.english import describe, tell_headline
from ..rules.ground import Ground
from ..rules.induce import induce
from ..rules.language import Rule
from ..rules.observed import Observed, hold
from ..rules.revise import join, revise
from ..rules.sample import BOTH_SIDES, OFFSETS, Sample, Windows
from ..rules.telling import can_be_told, shorten_to_tell
from ..rules.tree import Growth, grow
from ..subject.address import Feature
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .explainer import AbstentionLimits, Background, TrainBatch, TrainEvidence, abstention
from .interventions import TUNE, Interventions, context_needed, depends_on_position, make_interventions

EXAMPLE_SHARE, PIVOT_SHARE = 0.15, 0.05
"""Weight of all examples, and of all interventions' pivots, as a share of the background's."""


@dataclass(slots=True, eq=False)
class _Measured:
    """A feature's interventions with the measured activations, and what is kept for learning again."""

    evidence: TrainEvidence
    rows: Interventions
    activations: NDArray[np.float32]
    """At the pivots (row,)."""
    offsets: tuple[int, ...]
    """At which tokens may matter to the subject."""
    windows: Windows | None = None
    """The rows that experiments had measured the last time."""
    start: "_Start | None" = None

    def windows_of(self, observed: Observed, vocabulary: tuple[str, ...]) -> Windows:
        """The measured rows, those that were there the last time as they were computed then."""
        known = self.windows
        if known is not None and np.array_equal(known.ids, observed.ids[: len(known.ids)]):
            new = observed.ids[len(known.ids) :]
            self.windows = known + Windows(vocabulary, new, offsets=known.offsets) if len(new) else known
        else:
            self.windows = Windows(vocabulary, observed.ids, offsets=self.offsets)
        return self.windows


class _Start(NamedTuple):
    """What is learned from text and the explainer's own edits alone."""

    sample: Sample
    growth: Growth
    rule: Rule | None


@dataclass(frozen=True, slots=True)
class _Learned:
    """What was learned of one feature."""

    rule: Rule | None
    """None where no condition holds."""
    predictor: Rule | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)


class _Shares(NamedTuple):
    """What all examples, and all interventions' pivots, weigh, as a share of the background."""

    examples: float
    pivots: float


LEARNING = _Shares(EXAMPLE_SHARE, PIVOT_SHARE)
CHOOSING = _Shares(1.0, 0.01)
"""Clauses are chosen on what scores are taken on: strong windows and random ones alike."""
CHOSEN_ON = 640
"""Background windows of train that clauses are chosen on at most: strong windows are among the examples anyway."""
MIN_TUNE = 5
"""Active tune windows below which clauses are checked on kept training documents instead."""


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """The windows of train, or of tune."""

    vocabulary: tuple[str, ...]
    background: Background
    activations: NDArray[np.float32]
    """On the background, (row, position)."""
    examples: Sequence[Example]

    @property
    def width(self) -> int:
        return self.background.ids.shape[1]

    @property
    def documents(self) -> NDArray[np.str_]:
        """Document of each row of the background and then of each example."""
        own = [e.document for e in {e.window: e for e in self.examples if e.kind != "bottom"}.values()]
        return np.array([*self.background.documents, *own])


class RuleExplainer:
    """Explains features by learned rules. Deterministic; needs the subject for its interventions.

    >>> explainer = RuleExplainer(subject, interventions=32)
    >>> explainer.name, explainer.prompts
    ('rule', ())
    """

    name = "rule"
    prompts: tuple[Prompt, ...] = ()

    def __init__(
        self,
        subject: Subject,
        *,
        rule_size: Size = None,
        interventions: int = 96,
        growth: Growth | None = None,
        seed: int = 0,
    ) -> None:
        """`rule_size` is the number of clauses, "best" for as many as predict best, None for the shortest as good.

        `interventions` is the number of minimal pairs per feature.

        With 0 no context is pruned, either, so that rules are learned from text alone.
        """
        self._subject, self._interventions, self._seed = subject, interventions, seed
        self._growth, self._limits = growth or Growth(), AbstentionLimits()
        self._rule_size: Size = rule_size
        self._offsets = OFFSETS if subject.causal else BOTH_SIDES
        self._shared: dict[int, tuple[Background, Windows]] = {}
        self._fewer: dict[int, tuple[Background, Background]] = {}
        self._alike: tuple[tuple[str, ...], tuple[Family, ...]] | None = None
        self._measured: dict[Feature, _Measured] = {}

    @property
    def settings(self) -> dict[str, object]:
        """All that, beside the evidence, determines an explanation."""
        return {
            "rule_size": self._rule_size,
            "interventions": self._interventions,
            "seed": self._seed,
            "growth": asdict(self._growth),
            "limits": asdict(self._limits),
            "version": 5,
        }

    def explain(self, batch: TrainBatch) -> list[Explanation]:
        """Explain every feature, in order; abstentions have a status and a reason instead of a text."""
        abstentions = [abstention(evidence, explainer=self.name, limits=self._limits) for evidence in batch.features]
        explainable = [
            evidence for evidence, abstained in zip(batch.features, abstentions, strict=True) if abstained is None
        ]
        interventions = [self._intervene(evidence, batch) for evidence in explainable]
        measured = self._measure(batch.source, explainable, interventions)
        known = (_Measured(*parts, self._offsets) for parts in zip(explainable, interventions, measured, strict=True))
        learned = (self._as_explanation(self._find_rule(batch, own), own) for own in known)
        return [abstained if abstained is not None else next(learned) for abstained in abstentions]

    def learn(self, evidence: TrainEvidence, batch: TrainBatch, observed: Observed, *, half: float) -> Explanation:
        """Learn an explanation that also holds for what experiments measured; without any it is that of `explain`.

        A measured token above `half`, in the source's units, counts as active.

        The first call for a feature runs its interventions; later ones, with more or other observed windows, do not run
        the subject again. Raises NeuronautError where the observed windows are not as long as the batch's.
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
            rows = self._intervene(evidence, batch)
            (activations,) = self._measure(batch.source, [evidence], [rows])
            measured = self._measured[evidence.feature] = _Measured(evidence, rows, activations, self._offsets)
        learned = self._revise(batch, measured, observed, half) if len(observed) else self._find_rule(batch, measured)
        return self._as_explanation(learned, measured)

    def _intervene(self, evidence: TrainEvidence, batch: TrainBatch) -> Interventions:
        return make_interventions(
            evidence, batch, count=self._interventions, seed=self._seed, causal=self._subject.causal
        )

    def _measure(
        self, source: Source, evidence: Sequence[TrainEvidence], interventions: Sequence[Interventions]
    ) -> list[NDArray[np.float32]]:
        """Measure each feature at the pivots of its own interventions, (row,) each."""
        if not evidence:
            return []
        counts = [len(intervention.ids) for intervention in interventions]
        features = np.repeat([part.feature.index for part in evidence], counts)
        signs = np.repeat([-1.0 if part.feature.negative else 1.0 for part in evidence], counts)
        activations = read_pivots(
            self._subject,
            source,
            np.concatenate([intervention.ids for intervention in interventions]),
            np.concatenate([intervention.pivots for intervention in interventions]),
            features,
        )
        return np.split(activations * signs.astype(np.float32), np.cumsum(counts)[:-1])

    def _as_explanation(self, learned: "_Learned", measured: _Measured) -> Explanation:
        evidence, rule, predictor = measured.evidence, learned.rule, learned.predictor
        if rule is None:
            reason = "no token condition predicts it better than its mean on text that was kept from learning"
            return Explanation(evidence.feature, None, self.name, reason=reason, status="no_pattern")
        peak, told = evidence.statistics.peak, shorten_to_tell(rule)
        digests = {e.window for e in (*evidence.examples, *evidence.tune)}
        return Explanation(
            evidence.feature,
            describe(told, peak=peak),
            self.name,
            rule=rule.to_json(),
            headline=tell_headline(told, peak=peak),
            predictor=predictor.to_json() if predictor is not None else None,
            seen=tuple(sorted(digests)),
            provenance={
                "context": context_needed(measured.activations, measured.rows),
                "length": rule.length(),
                **self.settings,
                **learned.provenance,
            },
        )

    def _begin(self, batch: TrainBatch, measured: _Measured) -> _Start:
        """Grow a tree on text and the explainer's own edits, once a feature."""
        if measured.start is None:
            evidence, rows, activations = measured.evidence, measured.rows, measured.activations
            growth = replace(self._growth, positions=depends_on_position(rows, activations, evidence.statistics.peak))
            side = _train_side(evidence, batch)
            sample = self._build_sample(side, rows, activations, ~rows.only(TUNE), LEARNING)
            growth = replace(growth, prior=growth.prior + 0.3 * float(sample.weight.max()))
            measured.start = _Start(sample, growth, induce(sample, grow(sample, growth)))
        return measured.start

    def _find_rule(self, batch: TrainBatch, measured: _Measured) -> _Learned:
        """Choose the clauses of the tree's rule that hold."""
        start = self._begin(batch, measured)
        if start.rule is None:
            return _Learned(None)
        ground, checked_on = self._build_ground(batch, measured, growth=start.growth)
        chosen = choose(ground, start.rule, size=self._rule_size)
        if chosen is None:
            return _Learned(None)
        curve = [point._asdict() for point in chosen.curve]
        predictor = start.rule if predicts_better(ground, start.rule, chosen.rule) else None
        return _Learned(chosen.rule, predictor, {"curve": curve, "checked_on": checked_on})

    def _revise(self, batch: TrainBatch, measured: _Measured, observed: Observed, half: float) -> _Learned:
        """Learn what also explains what experiments measured, and choose its clauses where words cannot tell it."""
        start = self._begin(batch, measured)
        windows = measured.windows_of(observed, batch.vocabulary)
        edits = max(int((~measured.rows.only(TUNE)).sum()), 1)
        weight = PIVOT_SHARE * (batch.background.ids >= 0).sum() / edits
        rule = revise(
            start.sample, start.growth, observed, windows=windows, start=start.rule, pivot_weight=weight, half=half
        )
        if rule is None or can_be_told(rule):
            return _Learned(rule)
        ground, checked_on = self._build_ground(batch, measured, growth=start.growth, observed=observed)
        chosen = choose(ground, rule, size=self._rule_size)
        if chosen is None:
            return _Learned(rule, provenance={"checked_on": checked_on})
        wrong, before = (
            int(hold(r, observed, vocabulary=batch.vocabulary, half=half).wrong.sum()) for r in (chosen.rule, rule)
        )
        return _Learned(chosen.rule, rule if before < wrong else None, {"checked_on": checked_on})

    def _build_ground(
        self, batch: TrainBatch, measured: _Measured, *, growth: Growth, observed: Observed | None = None
    ) -> tuple[Ground, str]:
        """The tokens that clauses are chosen on, and which windows they must hold on.

        What experiments measured is no sample of text: all of it is on both sides, each window as a document.
        Where the feature has too few tune windows these are the quarter of the training documents that was kept
        from fitting.
        """
        evidence, rows, activations = measured.evidence, measured.rows, measured.activations
        train, tune = self._choosing_side(evidence, batch), _tune_side(evidence, batch)
        active = sum(e.peak > 0 and e.kind in ("top", "quantile") for e in evidence.tune)
        mass = int((batch.background.ids >= 0).sum())
        sample = self._build_sample(train, rows, activations, ~rows.only(TUNE), CHOOSING, mass=mass)
        names = [f"measured window {i}" for i in range(len(observed.ids) if observed is not None else 0)]
        each = float(sample.weight.max() / 2)  # a pivot counts as much as one of the explainer's own
        if observed is not None:
            sample = join(sample, observed, measured.windows_of(observed, batch.vocabulary), pivot_weight=each)
        if tune is None or active < MIN_TUNE:
            kept = np.concatenate([train.documents, np.array([*np.array(rows.documents)[~rows.only(TUNE)], *names])])
            numbers = np.unique(kept, return_inverse=True)[1]
            checked = replace(sample, weight=np.zeros_like(sample.weight))
            fitted = replace(sample, check=np.zeros_like(sample.weight))
            documents = np.repeat(numbers, train.width).astype(np.int64)
            return Ground(
                fitted, checked, (documents, documents), self._families(batch), prior=growth.prior
            ), "kept_train"
        checked = self._build_sample(tune, rows, activations, rows.only(TUNE), CHOOSING)
        if observed is not None:
            checked = join(checked, observed, measured.windows_of(observed, batch.vocabulary), pivot_weight=each)
        learned, kept = (
            np.array([*side.documents, *np.array(rows.documents)[own], *names])
            for side, own in ((train, ~rows.only(TUNE)), (tune, rows.only(TUNE)))
        )
        numbers = np.unique(np.concatenate([learned, kept]), return_inverse=True)[1].astype(np.int64)
        documents = (np.repeat(part, tune.width) for part in np.split(numbers, [len(learned)]))
        return Ground(
            sample, checked, (next(documents), next(documents)), self._families(batch), prior=growth.prior
        ), "tune"

    def _build_sample(
        self,
        side: _Side,
        rows: Interventions,
        activations: NDArray[np.float32],
        chosen: NDArray[np.bool_],
        shares: _Shares,
        *,
        mass: int | None = None,
    ) -> Sample:
        """Put background, examples and the chosen interventions (row,) into one weighted sample.

        The background weighs `mass`, or one for each of its tokens. Of interventions only the pivots count. A quarter
        of the documents, by the hash of their names, is kept for checking the tree's splits.
        """
        background = self._windows(side)
        examples = list({e.window: e for e in side.examples if e.kind != "bottom"}.values())
        width = side.width
        own_ids = np.concatenate([pad_ids([e.ids for e in examples], width=width), rows.ids[chosen]])
        real = (background.ids >= 0).ravel().astype(np.float32)
        if mass is None:
            mass = int(real.sum())
        real *= mass / max(float(real.sum()), 1.0)
        pivots = rows.pivots[chosen]
        edited = np.arange(len(examples), len(own_ids)), pivots
        own_activations = np.zeros(own_ids.shape, np.float32)
        own_activations[: len(examples)] = pad_activations([e.activations for e in examples], width=width)
        own_activations[edited] = activations[chosen]
        own_weight = np.zeros(own_ids.shape)
        of_examples = shares.examples * mass / max(sum(len(e.ids) for e in examples), 1)
        own_weight[: len(examples)] = np.where(own_ids[: len(examples)] >= 0, of_examples, 0)
        own_weight[edited] = shares.pivots * mass / max(len(pivots), 1)
        weight = np.concatenate([real, own_weight.ravel().astype(np.float32)])
        own_documents = [e.document for e in examples] + list(np.array(rows.documents, object)[chosen])
        checked = np.repeat([_is_for_checking(name) for name in (*side.background.documents, *own_documents)], width)
        return Sample(
            background=background,
            own=Windows(side.vocabulary, own_ids, offsets=self._offsets),
            activation=np.concatenate([side.activations.ravel(), own_activations.ravel()]),
            weight=np.where(checked, 0, weight).astype(np.float32),
            check=np.where(checked, weight, 0).astype(np.float32),
            vocabulary=side.vocabulary,
        )

    def _choosing_side(self, evidence: TrainEvidence, batch: TrainBatch) -> _Side:
        """The train side with the first `CHOSEN_ON` windows of its background."""
        whole = batch.background
        if id(whole) not in self._fewer or self._fewer[id(whole)][0] is not whole:
            first = slice(CHOSEN_ON)
            self._fewer[id(whole)] = whole, Background(whole.ids[first], whole.documents[first], whole.digests[first])
        fewer = self._fewer[id(whole)][1]
        return _Side(batch.vocabulary, fewer, evidence.background[: len(fewer.ids)], evidence.examples)

    def _windows(self, side: _Side) -> Windows:
        """Build the windows of a background, once for as long as batches share it."""
        key = id(side.background)
        if key not in self._shared or self._shared[key][0] is not side.background:
            self._shared[key] = side.background, Windows(side.vocabulary, side.background.ids, offsets=self._offsets)
        return self._shared[key][1]

    def _families(self, batch: TrainBatch) -> tuple[Family, ...]:
        """Find what the tokens of a vocabulary have in common, once a vocabulary."""
        if self._alike is None or self._alike[0] is not batch.vocabulary:
            self._alike = batch.vocabulary, families(batch.vocabulary)
        return self._alike[1]


def _train_side(evidence: TrainEvidence, batch: TrainBatch) -> _Side:
    return _Side(batch.vocabulary, batch.background, evidence.background, evidence.examples)


def _tune_side(evidence: TrainEvidence, batch: TrainBatch) -> _Side | None:
    if batch.tune is None or evidence.tune_background is None or not len(batch.tune.ids):
        return None
    return _Side(batch.vocabulary, batch.tune, evidence.tune_background, evidence.tune)


def _is_for_checking(document: str) -> bool:
    return zlib.crc32(document.encode()) % 4 == 0
