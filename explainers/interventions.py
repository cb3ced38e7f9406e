"""Windows that are edited for one feature, so that its rule is learned from the model and not from text alone.

The context of the strongest examples is pruned until the activation breaks; the same context is left in its place
behind other text, which tells position from context; and minimal pairs differ in one token.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.counterfactual import minimal_pairs
from ..data.padding import PADDING, pad_ids
from ..data.records import Example
from .examples import background_example
from .explainer import Background, TrainBatch, TrainEvidence

PRUNED = (1, 2, 3, 5, 9, 17, 33)
"""Lengths of context, the peak token included, that context pruning tries."""
FILLED = (3, 5, 17)
"""Lengths of context that are also tried in their place: of `PRUNED`."""
PRUNED_EXAMPLES = 4
BROKEN = 0.5
"""A pruned context is broken when less than this fraction of the activation is left."""


class _Row(NamedTuple):
    """An edited window, of which one token counts."""

    ids: NDArray[np.int64]
    pivot: int
    document: str
    part: int


class Interventions(NamedTuple):
    """Windows that were edited for one feature, of each of which one token is measured and learned from."""

    ids: NDArray[np.int64]
    """(row, position)"""
    pivots: NDArray[np.int64]
    """Position of that token (row,)."""
    documents: list[str]
    part: NDArray[np.int8]
    """What a row was made for (row,): `PRUNE`, `FILL`, `PAIR` or `TUNE`."""

    def only(self, *parts: int) -> NDArray[np.bool_]:
        """The rows that were made for one of these, (row,)."""
        return np.isin(self.part, parts)


PRUNE, FILL, PAIR, TUNE = range(4)
"""Pruned contexts, the same contexts left in their place, minimal pairs of train windows, and of tune windows."""


def make_interventions(
    evidence: TrainEvidence, batch: TrainBatch, *, count: int, seed: int, causal: bool = True
) -> Interventions:
    """Pruned contexts of the strongest examples, then `count` minimal pairs; with 0 no context is pruned, either.

    Where tokens read both sides (not `causal`), contexts have as many tokens behind the peak as before it.
    """
    examples = [e for e in evidence.examples if e.kind in ("top", "quantile", "silent", "near_miss")]
    examples += _strongest_background(evidence, batch, count=8)
    rows: list[_Row] = []
    top = sorted((e for e in examples if e.kind == "top"), key=lambda e: -e.peak)[:PRUNED_EXAMPLES]
    for example in top if count else ():
        rows += _prune_context(example, causal=causal)
    for example in top if count else ():
        rows += _fill_context(example, batch.background.ids, causal=causal)
    rows += _make_pairs(evidence, examples, batch.background, PAIR, count=count, seed=seed, causal=causal)
    if batch.tune is not None:
        active = [e for e in evidence.tune if e.kind in ("top", "quantile", "silent", "near_miss")]
        rows += _make_pairs(evidence, active, batch.tune, TUNE, count=count // 3, seed=seed, causal=causal)
    return Interventions(
        pad_ids([row.ids for row in rows], width=batch.background.ids.shape[1]),
        np.array([row.pivot for row in rows], np.int64),
        [row.document for row in rows],
        np.array([row.part for row in rows], np.int8),
    )


def _make_pairs(
    evidence: TrainEvidence,
    examples: Sequence[Example],
    corpus: Background,
    part: int,
    *,
    count: int,
    seed: int,
    causal: bool,
) -> Iterator[_Row]:
    """Minimal pairs of some examples, with substitutes from a corpus."""
    peak = evidence.statistics.peak
    pairs = minimal_pairs(examples, peak=peak, corpus=corpus.ids, count=count, seed=seed, causal=causal)
    for pair in pairs:
        yield _Row(pair.tokens, pair.pivot, examples[pair.example].document, part)


def depends_on_position(rows: Interventions, activations: NDArray[np.float32], peak: float) -> bool:
    """Whether the activation changes where a context is moved to the window's start, and stays in its place."""
    pivots, values = rows.pivots, activations
    moved = {rows.ids[i, : pivots[i] + 1].tobytes(): values[i] for i in np.flatnonzero(rows.only(PRUNE)).tolist()}
    kept: list[float] = []
    for i in np.flatnonzero(rows.only(FILL)).tolist():
        for length in FILLED:
            there = moved.get(rows.ids[i, max(pivots[i] + 1 - length, 0) : pivots[i] + 1].tobytes())
            highest = max(values[i], there) if there is not None else 0.0
            if there is not None and highest > peak / 4:
                kept.append(min(values[i], there) / highest)
    return bool(kept) and float(np.median(kept)) < BROKEN


def _strongest_background(evidence: TrainEvidence, batch: TrainBatch, *, count: int) -> list[Example]:
    """Take the background windows in which the feature is strongest: they hold pivots that no list kept."""
    rows = np.argsort(-evidence.background.max(axis=1), kind="stable")[:count]
    return [background_example(evidence, batch, row, kind="random") for row in rows.tolist()]


def _pivot(example: Example) -> int:
    """The peak; where it has less context than is ever filled, the last of the places that are as strong."""
    first, highest = int(example.activations.argmax()), example.activations.max()
    if first >= FILLED[0]:
        return first
    return int(np.flatnonzero(example.activations >= highest - 0.001 * abs(highest))[-1])


def _prune_context(example: Example, *, causal: bool) -> Iterator[_Row]:
    """Cut the tokens up to the peak to contexts of `PRUNED` lengths, each moved to the window's start."""
    pivot = _pivot(example)
    for length in PRUNED:
        if length <= pivot:
            # Behind a causal model's peak any token will do.
            row = np.full_like(example.ids, example.ids[0] if causal else PADDING)
            kept = example.ids[pivot + 1 - length : pivot + (1 if causal else length)]
            row[: len(kept)] = kept
            yield _Row(row, length - 1, example.document, PRUNE)


def _fill_context(example: Example, corpus: NDArray[np.int64], *, causal: bool) -> Iterator[_Row]:
    """The same contexts left where they are, with other text around them: what differs from the pruned is position."""
    pivot = _pivot(example)
    whole = corpus[corpus[:, pivot] >= 0]
    for length in FILLED if len(whole) else ():
        if length <= pivot:
            row = example.ids.copy()
            filler = whole[pivot % len(whole)]
            row[: pivot + 1 - length] = filler[: pivot + 1 - length]
            if not causal:
                row[pivot + length :] = filler[pivot + length : len(row)]
            yield _Row(row, pivot, example.document, FILL)


def context_needed(activations: NDArray[np.float32], rows: Interventions) -> int | None:
    """The fewest tokens of context, the peak token included, that keep half of the activation in most top examples.

    Pruned rows come first, in the order of `PRUNED` for each example; None where the window was too short.
    """
    needed: list[int] = []
    lengths = rows.pivots + 1
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] <= lengths[end - 1]:
            values = activations[start:end].tolist()
            sufficient = [int(lengths[start + i]) for i, value in enumerate(values) if value >= BROKEN * max(values)]
            if end - start > 1 and lengths[start] == PRUNED[0] and sufficient:
                needed.append(sufficient[0])
            start = end
        if len(needed) == PRUNED_EXAMPLES:
            break
    return int(np.median(needed)) if needed else None
