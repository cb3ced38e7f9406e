"""The values that evidence, explanations and scores are made of; they know nothing of storage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..subject.address import Feature
from .harvest.histogram import count_above

if TYPE_CHECKING:
    from ..subject.directions import TopTokens

Split = Literal["train", "tune", "select", "holdout"]
"""The part of the evidence that a window belongs to: explainers learn from `train` and check on `tune`, candidates are
compared on `select`, and the reported scores are taken on `holdout`."""
SPLITS: tuple[Split, ...] = ("train", "select", "holdout")
"""The splits of a corpus; `splits.part` cuts what is stored as `select` into `tune` and `select`."""
PARTS: tuple[Split, ...] = ("train", "tune", "select", "holdout")
"""The splits of evidence, in the order in which a later one gives way to an earlier one that it resembles."""

Kind = Literal["top", "bottom", "quantile", "random", "silent", "near_miss"]
"""The reason why a window is an example of a feature.

top: its highest peaks; bottom: its lowest troughs (signed sources); quantile: a uniform sample of the
windows in which it is active, which spans all its quantiles; random: a window drawn without regard
to the feature; silent: a random window in which it stays below a tenth of its peak; near_miss: a
silent window that holds a token on which it peaks elsewhere.
"""


class Attended(NamedTuple):
    """The source token of a head at an example's peak, which is the destination token."""

    position: int
    """In the window; -1 is BOS, before it."""
    weight: float
    """What the head's pattern gives it, at most 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A window with one feature's activation at every token.

    >>> example = store.evidence(Feature.parse("demo:mlp.1:17")).train[0]
    >>> len(example.tokens) == len(example.activations), bool(example.peak == max(example.activations))
    (True, True)
    """

    tokens: tuple[str, ...]
    """Token strings; BOS is part of the context but not of the window."""
    ids: NDArray[np.int64]
    """The subject's token ids, shape (position,)."""
    activations: NDArray[np.float32]
    """Shape (position,), in the source's own units."""
    kind: Kind
    split: Split
    document: str
    """Name of the document that the window was cut from."""
    window: str
    """Hex digest of the window's token ids: equal text has the equal digest."""
    attended: Attended | None = None
    """Of a head: what it attends to most at the peak."""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.ids) == len(self.activations):
            raise ValueError(f"{len(self.tokens)} tokens, {len(self.ids)} ids, {len(self.activations)} activations")

    @property
    def peak(self) -> float:
        """The highest activation in the window."""
        return float(self.activations.max())


ACTIVE = 0.1
"""Fraction of its peak above which a feature counts as active in `Statistics.active`."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A feature's activations over one pass of the corpus."""

    tokens: int
    """Corpus tokens seen, BOS not counted."""
    density: float
    """Fraction of corpus tokens on which the activation is above zero."""
    mean: float
    """Mean activation over all tokens."""
    peak: float
    """Highest activation seen."""
    trough: float
    """Lowest activation seen; 0 for sources that are never negative."""
    histogram: tuple[int, ...]
    """Tokens per bin of positive activation; bin edges from `histogram.edges()`."""

    @property
    def active(self) -> float | None:
        """Fraction of tokens above a tenth of the peak, to within a bin; None without a histogram.

        What `density` says of a unit that is hardly ever at zero, such as a SiLU neuron, is nothing.
        """
        if not self.histogram or self.peak <= 0:
            return None
        return count_above(self.histogram, ACTIVE * self.peak) / max(self.tokens, 1)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A feature's examples in four splits that share no document and no near-duplicate text.

    >>> evidence = store.evidence(Feature.parse("demo:mlp.1:17"))
    >>> {example.split for example in evidence.holdout}
    {'holdout'}
    """

    feature: Feature
    statistics: Statistics
    train: tuple[Example, ...]
    tune: tuple[Example, ...]
    """What explainers check their own work on; it counts as seen."""
    select: tuple[Example, ...]
    """What candidates are compared on."""
    holdout: tuple[Example, ...]

    @property
    def examples(self) -> tuple[Example, ...]:
        """All of them, split after split."""
        return (*self.train, *self.tune, *self.select, *self.holdout)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a feature responds to, in words and, optionally, as an executable rule.

    >>> best = store.best(Feature.parse("demo:mlp.1:17"))
    >>> best.explanation.explainer
    'rule'
    """

    feature: Feature
    text: str | None
    """None where the explainer abstains; `reason` then says why."""
    explainer: str
    reason: str | None = None
    """Why there is no text, for example "dead: never active on 1,000,000 tokens"."""
    status: str = "explained"
    """One of "explained", "dead", "too_rare", "dense", "no_pattern", "failed". What is "weak", its scores tell
    (ranking.standing)."""
    rule: str | None = None
    """The rule as JSON (see rules/language.py); it holds what the text says, and no more."""
    headline: str | None = None
    """The cause in at most 15 words, the beginning of `text`; None where the text has no such beginning."""
    predictor: str | None = None
    """A longer rule that predicts better than `rule` and that the text does not tell, as JSON."""
    seen: tuple[str, ...] = ()
    """Digests of the windows that the explainer was shown."""
    provenance: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """How well an explanation predicts activations that its explainer never saw.

    >>> best = store.best(Feature.parse("demo:mlp.1:17"))
    >>> headline = next(s for s in store.scores(best.id) if (s.examples, s.metric) == ("top_random", "correlation"))
    >>> headline.ci_low <= headline.value <= headline.ci_high
    True
    """

    scorer: str
    """For example "simulation"."""
    examples: str
    """Name of the set of examples, for example "top_random", "quantile" or "counterfactual"; "select" are the windows
    on which candidates were compared, which is no reported score."""
    metric: str
    """"correlation" (Pearson's r over all tokens at once), "explained_variance", "auroc", "agreement" (balanced
    accuracy of "above the threshold") or "balanced_accuracy" (of a judge's yes and no)."""
    value: float | None
    reason: str | None = None
    """Why there is no value; None where there is one."""
    ci_low: float | None = None
    ci_high: float | None = None
    """Ends of the 95% bootstrap interval over windows."""
    n: int = 0
    """Windows scored."""
    coverage: float = 1.0
    """Fraction of the windows' tokens for which there was a prediction."""
    baselines: dict[str, float | None] = field(default_factory=dict)
    """The same metric for each `Role` of a baseline or control."""
    windows: tuple[str, ...] = ()
    """Digests of the windows that were scored."""
    backend: str = ""
    """How the judge answers, where a scorer knows several ways: "rule", "json", "logprobs", "probe"."""
    judge: str = ""
    """Who judged: "code", or a language model with its endpoint and the hash of the prompt."""
    provenance: dict[str, object] = field(default_factory=dict)

    @property
    def baseline(self) -> float | None:
        """The best of the baselines; None where there is none."""
        return max((value for value in self.baselines.values() if value is not None), default=None)

    @property
    def flagged(self) -> bool:
        """Whether too much is missing for the value to be trusted."""
        return self.coverage < FULL_COVERAGE

    @property
    def point_values(self) -> float:
        """Fraction of the tokens predicted by a number as written, although log-probabilities were asked for."""
        sampled = self.provenance.get("sampled")
        return sampled if isinstance(sampled, float) else 0.0

    @property
    def doubt(self) -> str | None:
        """Why the value is less than it seems to be; None where nothing is known against it."""
        if self.flagged:
            return f"only {self.coverage:.0%} was answered"
        if self.point_values > 1 - FULL_COVERAGE:
            return f"point values: no log-probabilities came for {self.point_values:.0%} of the tokens"
        return None


FULL_COVERAGE = 0.95
"""Below this coverage a score is flagged."""

Role = Literal["explanation", "token_rule", "token_table", "other_rule", "empty", "shuffled"]
"""The source of predictions: the explanation, or one that it is compared with. token_rule, token_table and
other_rule are predicted by code (scorers/holdout.py); empty and shuffled by the same judge from no explanation,
and from another feature's."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgements:
    """A scorer's predictions on one set of examples, beside the truth: all that any metric needs.

    A unit is what the bootstrap resamples (a window, a pair, a question), an item is one prediction in it.
    """

    scorer: str
    examples: str
    """Name of the set of examples, as in `Score`."""
    role: Role
    kind: Literal["activation", "class"]
    """activation: both sides are activations, on any scale; class: true is 0 or 1, predicted the probability of 1."""
    true: NDArray[np.float32]
    """(unit, item); NaN where a unit has fewer items."""
    predicted: NDArray[np.float32]
    """(unit, item); NaN where there is no prediction."""
    threshold: float
    """Above it an item is positive: half of the feature's peak, or 0.5 for classes."""
    windows: tuple[str, ...]
    """Digests of the corpus windows involved."""
    fires_from: float | None = None
    """The threshold of predictions, where it is another one; it is not stored, since code's judgements are not."""
    missing: dict[str, int] = field(default_factory=dict)
    """Items without a prediction, by reason: "refused", "truncated", "unparsed", ..."""
    provenance: dict[str, object] = field(default_factory=dict)
    """The judge's llm, prompt hash and settings; goes into the scores' provenance."""


class ExampleList(NamedTuple):
    """Examples of many features of one source, of one kind, sorted by (feature, split, rank)."""

    features: NDArray[np.int32]
    """Feature index of each example, shape (example,)."""
    windows: NDArray[np.int32]
    """Row of `HarvestResult.windows` of each example, shape (example,)."""
    activations: NDArray[np.float16]
    """Shape (example, position)."""
    attended: tuple[NDArray[np.int32], NDArray[np.float16]] | None = None
    """Of heads: the position attended to most at each example's peak, -1 for BOS, and with which weight."""


Mined = Mapping[str, Mapping[Kind, ExampleList]]
"""The lists of a harvest that are found last, silent windows and near misses, by source."""


@dataclass(frozen=True, slots=True)
class SourceResult:
    """Statistics and examples of all features of one source, from one harvest. F is the source's width."""

    source: str
    """The SourceId as text, for example "demo:resid_post.2@sae"."""
    kind: str
    """"neurons", "dictionary", "transcoder", "crosscoder", "directions", "function", or "evidence", which was recorded
    elsewhere."""
    width: int
    signed: bool
    revision: str
    """Hash of the dictionary's weights, or of the directions; "" for neurons."""
    tokens: int
    """Tokens that the statistics count: those of text whose vectors are not massive."""
    count: NDArray[np.int64]
    """Tokens with an activation above zero, shape (F,)."""
    mean: NDArray[np.float64]
    peak: NDArray[np.float32]
    trough: NDArray[np.float32]
    histogram: NDArray[np.int64]
    """Shape (F, bins)."""
    lists: dict[Kind, ExampleList]
    norms: NDArray[np.float32] | None = None
    """Of sources that write several sites: decoder norms, (F, site), in the sites' units."""
    top_tokens: "TopTokens | None" = None
    """The tokens that each feature raises and lowers the most; None where it changes no logit directly."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What became of the tokens of the documents that a harvest read, BOS not counted."""

    given: int
    beyond_budget: int
    """Left out because the token budget took other windows."""
    special: int
    """Special tokens, in no statistic. What is massive besides depends on the site: `SourceResult.tokens` tells."""
    own_bos: int = 0
    """Documents that bring a BOS of their own, which is left out."""
    spelled: int = 0
    """Documents that spell special tokens, read as text."""


@dataclass(frozen=True, slots=True)
class HarvestResult:
    """Everything one finished harvest puts into the store."""

    model: str
    revision: str
    """Hash of the subject's weights."""
    corpus: str
    tokens: int
    """Corpus tokens taken, BOS not counted."""
    counts: TokenCounts
    window: int
    """Tokens in a window."""
    windows: NDArray[np.int32]
    """Token ids of every window that is an example or belongs to the pool, shape (window, position); a window that is
    shorter ends in PADDING."""
    splits: NDArray[np.int8]
    """Index into SPLITS of every window."""
    documents: tuple[str, ...]
    """Document name of every window."""
    pool: NDArray[np.bool_]
    """Which windows are the pool: a uniform random sample of the corpus, the same for every feature."""
    vocabulary: tuple[str, ...]
    """Token string of every token id."""
    sources: tuple[SourceResult, ...]
    provenance: dict[str, object]
