"""Chooses the training windows of a feature that a prompt shows.

Active windows: the highest peaks, spread evenly over their ranks, and weaker ones from the uniform sample, as far
as they are active enough to be marked. Windows whose text up to the peak repeats an earlier one's say nothing new
and are left out. Silent windows: those that were mined, filled up from the background; one that holds a token on
which the feature peaks elsewhere is a near miss. The choice is deterministic.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..data.records import Example, Kind
from ..llm.render import active
from .explainer import TrainBatch, TrainEvidence

SILENCE = 0.1
"""A window is silent while its activation stays below this fraction of the peak, as for a harvest."""
REPEATED = 8
"""Windows are repetitions where this many tokens, up to the peak, are equal."""


def active_windows(evidence: TrainEvidence, *, top: int, quantile: int) -> list[Example]:
    """Choose at most so many windows of each kind, the highest peak first; the very highest is always among them."""
    peaks = _drop_repeated(sorted((e for e in evidence.examples if e.kind == "top"), key=lambda e: -e.peak))
    strongest = _pick_evenly(peaks, top)
    highest = strongest[0].peak if strongest else 0.0
    shown_texts = {_tokens_up_to_peak(example) for example in strongest}
    weaker = sorted((e for e in evidence.examples if e.kind == "quantile"), key=lambda e: -e.peak)
    weaker = [
        e
        for e in _drop_repeated(weaker)
        if active(e.activations, highest).any() and _tokens_up_to_peak(e) not in shown_texts
    ]
    return strongest + _pick_evenly(weaker, quantile)


class NearMiss(NamedTuple):
    """A silent window with a token on which the feature peaks elsewhere."""

    example: Example
    position: int
    """Where the last such token stands, the one with the most text before it."""


class SilentWindows(NamedTuple):
    """Windows in which a feature stays silent."""

    near_misses: list[NearMiss]
    others: list[Example]


def silent_windows(
    evidence: TrainEvidence, batch: TrainBatch, active_examples: Sequence[Example], *, near_misses: int, others: int
) -> SilentWindows:
    """Choose at most so many silent windows of each kind; the peak tokens of `active_examples` make near misses."""
    highest = max((example.peak for example in active_examples), default=0.0)
    peaks = {example.tokens[int(example.activations.argmax())] for example in active_examples}
    windows = SilentWindows([], [])
    for example in _silent_candidates(evidence, batch, highest):
        places = [i for i, token in enumerate(example.tokens) if token in peaks]
        if places and len(windows.near_misses) < near_misses:
            windows.near_misses.append(NearMiss(example, places[-1]))
        elif not places and len(windows.others) < others:
            windows.others.append(example)
        if (len(windows.near_misses), len(windows.others)) == (near_misses, others):
            break
    return windows


def background_example(evidence: TrainEvidence, batch: TrainBatch, row: int, *, kind: Kind) -> Example:
    """Make an example of the feature from a row of the background."""
    back = batch.background
    ids = back.ids[row][back.ids[row] >= 0].astype(np.int64)
    tokens, values = tuple(batch.vocabulary[i] for i in ids), evidence.background[row, : len(ids)]
    return Example(
        tokens=tokens,
        ids=ids,
        activations=values,
        kind=kind,
        split="train",
        document=back.documents[row],
        window=back.digests[row],
    )


def _silent_candidates(evidence: TrainEvidence, batch: TrainBatch, highest: float) -> Iterator[Example]:
    """Mined windows, near misses first, then the background's silent rows; each text once."""
    mined = sorted(
        (e for e in evidence.examples if e.kind in ("near_miss", "silent") and e.peak < SILENCE * highest),
        key=lambda e: e.kind != "near_miss",
    )
    yield from mined
    mined_windows = {example.window for example in mined}
    for row in np.flatnonzero(evidence.background.max(axis=1) < SILENCE * highest).tolist():
        if batch.background.digests[row] not in mined_windows:
            yield background_example(evidence, batch, row, kind="silent")


def _drop_repeated(examples: Iterable[Example]) -> list[Example]:
    """Of examples with the same text up to the peak, keep the first."""
    return list({_tokens_up_to_peak(example): example for example in reversed(list(examples))}.values())[::-1]


def _tokens_up_to_peak(example: Example) -> tuple[str, ...]:
    """The last `REPEATED` tokens up to the peak."""
    peak = int(example.activations.argmax())
    return example.tokens[max(0, peak + 1 - REPEATED) : peak + 1]


def _pick_evenly(examples: Sequence[Example], count: int) -> list[Example]:
    """Pick so many of the examples, evenly over their order, the first included."""
    if len(examples) <= count:
        return list(examples)
    return [examples[i] for i in np.linspace(0, len(examples) - 1, count).round().astype(int)]
