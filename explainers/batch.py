"""What an explainer is given: the training side of a few features of one source, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.records import Example, Statistics
from ..subject.address import Feature
from ..subject.sources import Source


@dataclass(frozen=True, slots=True)
class Background:
    """A uniform random sample of the corpus's training windows, the same for every feature."""

    ids: NDArray[np.int32]
    """Token ids, (row, position)."""
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
    """(row, position)"""


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Features of one source that are explained together, so that they share forward passes."""

    source: Source
    vocabulary: tuple[str, ...]
    background: Background
    features: Sequence[TrainEvidence]
