"""Which of a feature's training windows a reader is shown.

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
    """At most so many windows of each kind, the highest peak first; the very highest is always among them."""
    peaks = _distinct(sorted((e for e in evidence.examples if e.kind == "top"), key=lambda e: -e.peak))
    chosen = _spread(peaks, top)
    highest = chosen[0].peak if chosen else 0.0
    shown = {_approach(example) for example in chosen}
    weaker = sorted((e for e in evidence.examples if e.kind == "quantile"), key=lambda e: -e.peak)
    weaker = [e for e in _distinct(weaker) if active(e.activations, highest).any() and _approach(e) not in shown]
    return chosen + _spread(weaker, quantile)


class NearMiss(NamedTuple):
    """A silent window with a token on which the feature peaks elsewhere."""

    example: Example
    position: int
    """Of such a token, the one with the most text before it."""


class Silent(NamedTuple):
    """Windows in which a feature stays silent."""

    near_misses: list[NearMiss]
    others: list[Example]


def silent_windows(
    evidence: TrainEvidence, batch: TrainBatch, shown: Sequence[Example], *, near_misses: int, others: int
) -> Silent:
    """At most so many windows of each kind; `shown` are the active windows, whose peak tokens make near misses."""
    highest = max((example.peak for example in shown), default=0.0)
    peaks = {example.tokens[int(example.activations.argmax())] for example in shown}
    found = Silent([], [])
    for example in _quiet(evidence, batch, highest):
        places = [i for i, token in enumerate(example.tokens) if token in peaks]
        if places and len(found.near_misses) < near_misses:
            found.near_misses.append(NearMiss(example, places[-1]))
        elif not places and len(found.others) < others:
            found.others.append(example)
        if (len(found.near_misses), len(found.others)) == (near_misses, others):
            break
    return found


def background_example(evidence: TrainEvidence, batch: TrainBatch, row: int, *, kind: Kind) -> Example:
    """A window of the background as an example of the feature."""
    back = batch.background
    tokens = tuple(batch.vocabulary[i] for i in back.ids[row])
    ids, values = back.ids[row].astype(np.int64), evidence.background[row]
    return Example(
        tokens=tokens,
        ids=ids,
        activations=values,
        kind=kind,
        split="train",
        document=back.documents[row],
        window=back.digests[row],
    )


def _quiet(evidence: TrainEvidence, batch: TrainBatch, highest: float) -> Iterator[Example]:
    """Mined windows, near misses first, then the background's silent rows; each text once."""
    mined = sorted(
        (e for e in evidence.examples if e.kind in ("near_miss", "silent") and e.peak < SILENCE * highest),
        key=lambda e: e.kind != "near_miss",
    )
    yield from mined
    known = {example.window for example in mined}
    for row in np.flatnonzero(evidence.background.max(axis=1) < SILENCE * highest).tolist():
        if batch.background.digests[row] not in known:
            yield background_example(evidence, batch, row, kind="silent")


def _distinct(examples: Iterable[Example]) -> list[Example]:
    return list({_approach(example): example for example in reversed(list(examples))}.values())[::-1]


def _approach(example: Example) -> tuple[str, ...]:
    """The last tokens up to the peak."""
    peak = int(example.activations.argmax())
    return example.tokens[max(0, peak + 1 - REPEATED) : peak + 1]


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """So many of them, evenly over their order, the first included."""
    if len(examples) <= count:
        return list(examples)
    return [examples[i] for i in np.linspace(0, len(examples) - 1, count).round().astype(int)]
