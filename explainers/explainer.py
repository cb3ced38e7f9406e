"""The protocol of explainers, and the evidence that they are given: the training side of some features of one source.

Every explainer abstains first where there is nothing to explain: a feature that never fires, fires too rarely, or
fires everywhere is given no text, and no language model is asked about it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.records import Example, Explanation, Statistics
from ..llm.prompt import Prompt
from ..llm.tasks import LLMTask
from ..subject.address import Feature
from ..subject.sources import Source


@dataclass(frozen=True, slots=True)
class Background:
    """A uniform random sample of the corpus's training windows, the same for every feature."""

    ids: NDArray[np.int64]
    """Token ids, (row, position); a shorter window ends in padding, below 0."""
    documents: Sequence[str]
    """Name of each row's document."""
    digests: Sequence[str]
    """Digest of each row's token ids."""


@dataclass(frozen=True, slots=True)
class TrainEvidence:
    """One feature's training examples and its activations on the background."""

    feature: Feature
    statistics: Statistics
    examples: Sequence[Example]
    """For a feature's negative tail activations are sign-flipped, here and in `background`."""
    background: NDArray[np.float32]
    """(row, position); 0 on padding."""
    padding: int = 0
    """How much of the background is padding."""
    tune: Sequence[Example] = ()
    """Examples of documents that nothing is learned from, on which what was learned is checked; they count as seen."""
    tune_background: NDArray[np.float32] | None = None
    """Activations on the batch's `tune`, (row, position); 0 on padding. None where there is none."""


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Features of one source that are explained together, so that they share forward passes."""

    source: Source
    vocabulary: tuple[str, ...]
    background: Background
    features: Sequence[TrainEvidence]
    tune: Background | None = None
    """A uniform random sample of the corpus's tune windows; None where there are none."""


@dataclass(frozen=True, slots=True)
class AbstentionLimits:
    """When an explainer abstains. Fractions of corpus tokens or of the feature's peak."""

    min_windows: int = 5
    """Fewer active training windows than this are too rare to explain."""
    dense: float = 0.5
    """A feature above a third of its peak on more than this fraction of tokens is dense."""


def abstention(evidence: TrainEvidence, *, explainer: str, limits: AbstentionLimits) -> Explanation | None:
    """Decide whether a feature cannot be explained.

    Returns an explanation without text, with status "dead", "too_rare" or "dense" and a reason; None where there is
    something to explain.
    """
    statistics = evidence.statistics
    active = {e.window for e in evidence.examples if e.kind in ("top", "quantile") and e.peak > 0}
    tokens = evidence.background.size - evidence.padding
    strong = float((evidence.background > statistics.peak / 3).sum() / tokens) if statistics.peak > 0 else 0.0
    if statistics.peak <= 0:
        status, reason = "dead", f"never active on {statistics.tokens:,} tokens"
    elif len(active) < limits.min_windows:
        status = "too_rare"
        reason = (
            f"active in {len(active)} training windows of {statistics.tokens:,} tokens; {limits.min_windows} are needed"
        )
    elif strong > limits.dense:
        status, reason = "dense", f"above a third of its peak on {strong:.0%} of tokens"
    else:
        return None
    return Explanation(evidence.feature, None, explainer, reason=reason, status=status)


class Explainer(Protocol):
    """Turns training examples into explanations, by asking a language model or without one."""

    @property
    def name(self) -> str:
        """The explainer's name after `-e`."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """All that, beside evidence and language model, determines an explanation, hashes of prompts included."""
        ...

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts that it renders; none where it asks nobody."""
        ...

    def explain(self, batch: TrainBatch) -> list[Explanation] | LLMTask[list[Explanation]]:
        """Explain every feature, in order; what cannot be explained has a status and a reason, no text."""
        ...
