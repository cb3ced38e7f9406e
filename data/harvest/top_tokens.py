"""The tokens that features raise and lower, the last thing that a harvest measures: of weights alone, not of text."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...subject.directions import TopTokens, find_top_tokens, reaches_logits
from ...subject.head_norms import HeadNorms
from ...subject.model import Subject
from ...subject.sources import Source
from ..records import SourceResult
from .watch import Told


def rank_tokens(
    subject: Subject, sources: Sequence[Source], results: Sequence[SourceResult], progress: Told
) -> tuple[TopTokens | None, ...]:
    """The tokens that every feature that fired raises and lowers, by source; None where it raises none directly."""
    ranked = [has_top_tokens(subject, source) for source in sources]
    fired = [_find_fired(result) if own else [] for result, own in zip(results, ranked, strict=True)]
    of, done, found = sum(map(len, fired)), 0, []
    for source, own, features in zip(sources, ranked, fired, strict=True):
        tell = partial(_tell, progress, done, of)
        found.append(find_top_tokens(subject, source, np.asarray(features), progress=tell) if own else None)
        done += len(features)
    return tuple(found)


def has_top_tokens(subject: Subject, source: Source) -> bool:
    """Whether the features of a source raise tokens directly, each the same ones wherever it is active."""
    # A head writes in another direction at each token.
    return reaches_logits(subject, source) and not isinstance(source, HeadNorms)


def _find_fired(result: SourceResult) -> NDArray[np.int64]:
    return np.flatnonzero((result.count > 0) | (result.trough < 0))


def _tell(progress: Told, before: int, of: int, done: int) -> None:
    progress(before + done, of)
