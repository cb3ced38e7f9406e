"""The fixed battery: a few cheap measurements of every feature of a batch, in shared forwards, before anyone is asked.

Per feature: (1) context pruning, filled, of its strongest places, which gives the fewest tokens that are needed;
(2) a scan of the token before the peak in places of different tokens, which gives the tokens that keep the activation
and those that break it; (3) what stands before active and before silent places of the tokens on which it fires.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...data.harvest.activations import read_last
from ...subject.address import Feature
from ...subject.model import Subject
from ..explainer import TrainBatch, TrainEvidence
from .measurements import LEFT, fill_context, median_by_length, needed_length, preceding, tokens_before_active
from .places import Place, TrainingSide, common_tokens, find_active, find_near_misses, generator, silent_window

PRUNED, FILLINGS = 4, 2
"""Places whose context is pruned, and texts that are put in its stead."""
LENGTHS = (1, 2, 3, 5, 9, 17)
"""Tokens that pruning keeps, the pivot included; the whole context is always tried too."""
SCANNED, SCAN = 2, 40
"""Places before which tokens are tried, and the tokens: half of them from before active places, half frequent ones."""
TOKENS = 4
"""Tokens of which it is told what stands before them."""
BROKEN = 0.2
"""A token breaks the activation when less than this share of it is left, and keeps it with at least `LEFT`."""


class Pruned(NamedTuple):
    """A place, and how much of the text before it is needed."""

    place: Place
    needed: int
    """The fewest tokens, the pivot included."""


class Scanned(NamedTuple):
    """A place, and what other tokens before it do; token ids in the order of the scan."""

    place: Place
    keeps: tuple[int, ...]
    breaks: tuple[int, ...]


class Before(NamedTuple):
    """What stands before the places of one token; token ids, the most frequent first."""

    token: int
    active: tuple[int, ...]
    silent: tuple[int, ...]
    """Only tokens that never stand before an active place."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the battery found of one feature."""

    pruned: Sequence[Pruned]
    scanned: Sequence[Scanned]
    before: Sequence[Before]


class _Asked(NamedTuple):
    """The rows of one feature that are run: texts that end at the token that is read."""

    side: TrainingSide
    pruned: list[tuple[int, int, tuple[int, ...]]]
    """(place, tokens kept, row)"""
    scanned: list[tuple[int, int, tuple[int, ...]]]
    """(place, token put before the pivot, row)"""
    places: list[Place]
    """Those that are pruned; the first of them, as far as something stands before them, are scanned."""


def run_battery(subject: Subject, batch: TrainBatch, features: Sequence[TrainEvidence]) -> dict[Feature, Findings]:
    """Measure these features of the batch, all of them in shared forwards."""
    asked = [_ask(TrainingSide(subject, evidence, batch)) for evidence in features]
    rows = [row for part in asked for _, _, row in (*part.pruned, *part.scanned)]
    columns = list(dict.fromkeys(part.side.feature.index for part in asked))
    values = iter(read_last(subject, batch.source, rows, columns) if rows else ())
    findings = {}
    for part in asked:
        feature = part.side.feature
        column, sign = columns.index(feature.index), -1.0 if feature.negative else 1.0
        own = (sign * float(next(values)[column]) for _ in (*part.pruned, *part.scanned))
        findings[feature] = _read(part, own)
    return findings


def _ask(side: TrainingSide) -> _Asked:
    places = find_active(side, PRUNED, 1, side.seed)
    rng = generator(side, side.seed, "battery")
    pruned = []
    for number, place in enumerate(places):
        pruned.append((number, place.pivot + 1, place.ids[: place.pivot + 1]))
        for _ in range(FILLINGS):
            filling = silent_window(side, rng, position=place.pivot).tolist()
            pruned += [
                (number, length, fill_context(place, length, filling)[: place.pivot + 1])
                for length in LENGTHS
                if length <= place.pivot
            ]
    tokens = _tokens_to_try(side)
    scanned = [
        (number, token, (*place.ids[: place.pivot - 1], token, place.token))
        for number, place in enumerate(places[:SCANNED])
        for token in tokens
    ]
    return _Asked(side, pruned, scanned, places)


def _tokens_to_try(side: TrainingSide) -> list[int]:
    """Tokens from before active places, from before near misses, and frequent ones, each once."""
    near = [place.ids[place.pivot - 1] for place in find_near_misses(side, SCAN // 4, before=1)]
    chosen = dict.fromkeys([*tokens_before_active(side, 1)[: SCAN // 4], *near])
    frequent = (token for token in common_tokens(side) if token not in chosen)
    return [*chosen, *(token for token, _ in zip(frequent, range(SCAN - len(chosen)), strict=False))]


def _read(part: _Asked, values: Iterator[float]) -> Findings:
    """Read the measured values, in the order of the rows."""
    lengths: dict[int, list[tuple[int, float]]] = {}
    for (number, length, _), value in zip(part.pruned, values, strict=False):
        lengths.setdefault(number, []).append((length, value))
    curves = {number: median_by_length(measured) for number, measured in lengths.items()}
    kept: dict[int, list[tuple[int, float]]] = {}
    for (number, token, _), value in zip(part.scanned, values, strict=True):
        kept.setdefault(number, []).append((token, value))
    scanned = []
    for number, measured in kept.items():
        whole = curves[number][max(curves[number])]
        keeps = tuple(token for token, value in measured if value >= LEFT * whole)
        breaks = tuple(token for token, value in measured if value < BROKEN * whole)
        scanned.append(Scanned(part.places[number], keeps, breaks))
    return Findings(
        [Pruned(part.places[number], needed_length(curve)) for number, curve in curves.items()],
        scanned,
        [_compare(*pair) for pair in preceding(part.side, most=TOKENS)],
    )


def _compare(token: int, active: Counter[int], silent: Counter[int]) -> Before:
    only = [t for t, _ in silent.most_common() if t not in active]
    return Before(token, tuple(t for t, _ in active.most_common()), tuple(only))
