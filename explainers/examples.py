"""Chooses the training windows of a feature that a prompt shows.

Active windows: the highest peaks, spread evenly over their ranks, and weaker ones from the uniform sample; one whose
peak is too low to be marked is never shown. Windows whose text up to the peak repeats an earlier one's say nothing
new and are left out. Silent windows: those that were mined, filled up from the background; one that holds a token that
is marked in an active window is a near miss, and all such tokens are pointed out in it. The choice is deterministic.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..data.records import Example, Kind
from ..llm.render import Excerpt, active, excerpt, marked
from .explainer import TrainBatch, TrainEvidence

SILENCE = 0.1
"""A window is silent while its activation stays below this fraction of the peak, as for a harvest."""
REPEATED = 8
"""Windows are repetitions where this many tokens, up to the peak, are equal."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The numbers of windows and tokens that a prompt shows; an explainer uses those that its prompt has room for."""

    top: int = 8
    """Windows with the highest peaks."""
    quantile: int = 0
    """Windows from the uniform sample of active ones."""
    near_misses: int = 0
    silent: int = 0
    before: int = 40
    """Tokens shown before a window's peak."""
    after: int = 8
    """Tokens shown after it."""


def active_windows(evidence: TrainEvidence, *, top: int, quantile: int) -> list[Example]:
    """Choose at most so many windows of each kind, the highest peak first; the very highest is always among them."""
    highest = max((e.peak for e in evidence.examples if e.kind == "top"), default=0.0)
    peaks = sorted((e for e in evidence.examples if e.kind == "top"), key=lambda e: -e.peak)
    strongest = _pick_evenly([e for e in _drop_repeated(peaks) if active(e.activations, highest).any()], top)
    shown_texts = {_tokens_up_to_peak(example) for example in strongest}
    weaker = sorted((e for e in evidence.examples if e.kind == "quantile"), key=lambda e: -e.peak)
    weaker = [
        e
        for e in _drop_repeated(weaker)
        if active(e.activations, highest).any() and _tokens_up_to_peak(e) not in shown_texts
    ]
    return strongest + _pick_evenly(weaker, quantile)


class SilentWindows(NamedTuple):
    """The parts that are shown of windows in which a feature stays silent."""

    near_misses: list[Excerpt]
    others: list[Excerpt]
    active: frozenset[str]
    """The tokens that are marked in the active windows: those of near misses are pointed out, others hold none."""

    @property
    def examples(self) -> list[Example]:
        """The windows, near misses first."""
        return [part.example for part in (*self.near_misses, *self.others)]

    def lines(self, parts: Sequence[Excerpt]) -> list[str]:
        """A numbered line for each part, with the active windows' tokens in ‹›."""
        return [
            f"{i}. " + marked(part, [False] * len(part.tokens), silent=[token in self.active for token in part.tokens])
            for i, part in enumerate(parts, start=1)
        ]


def silent_windows(
    evidence: TrainEvidence, batch: TrainBatch, active_examples: Sequence[Example], extent: Extent
) -> SilentWindows:
    """Choose silent windows of each kind, as many as `extent` says.

    A near miss is shown around the last token on which an active window peaks, which has the most text before it.
    """
    highest = max((example.peak for example in active_examples), default=0.0)
    peaks = {example.tokens[int(example.activations.argmax())] for example in active_examples}
    windows = SilentWindows([], [], frozenset(_marked_tokens(active_examples, highest, extent)))
    limits = (extent.near_misses, extent.silent)
    for example in _silent_candidates(evidence, batch, highest):
        places = [i for i, token in enumerate(example.tokens) if token in peaks]
        pivot = places[-1] if places else min(extent.before, len(example.tokens) - 1)
        part = excerpt(example, before=extent.before, after=extent.after, pivot=pivot)
        if places and len(windows.near_misses) < limits[0]:
            windows.near_misses.append(part)
        elif not windows.active.intersection(part.tokens) and len(windows.others) < limits[1]:
            windows.others.append(part)
        if (len(windows.near_misses), len(windows.others)) == limits:
            break
    return windows


def _marked_tokens(examples: Sequence[Example], highest: float, extent: Extent) -> Iterator[str]:
    for example in examples:
        part = excerpt(example, before=extent.before, after=extent.after)
        yield from (token for token, on in zip(part.tokens, active(part.activations, highest), strict=True) if on)


def background_example(
    evidence: TrainEvidence, batch: TrainBatch, row: int, *, kind: Kind = "random", tune: bool = False
) -> Example:
    """Make an example of the feature from a row of the background, with `tune` of that of the tune split."""
    back, activations = batch.background, evidence.background
    if tune and batch.tune is not None and evidence.tune_background is not None:
        back, activations = batch.tune, evidence.tune_background
    ids = back.ids[row][back.ids[row] >= 0].astype(np.int64)
    tokens, values = tuple(batch.vocabulary[i] for i in ids), activations[row, : len(ids)]
    return Example(
        tokens=tokens,
        ids=ids,
        activations=values,
        kind=kind,
        split="tune" if back is batch.tune else "train",
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
