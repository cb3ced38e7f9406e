"""Places in training windows, where a feature is asked: what measurements of labelling and of investigations share.

A place is a position in a training window with its harvested activation. Active places are where the feature is at
least half as strong as its strongest examples; near misses are silent ones that hold a token on which it fires
elsewhere; silent places hold another token. Places are taken in turn from different tokens, since one token may be
special. Windows keep their length, so that rules can be learned from whatever is made of them, and nothing here comes
from any split but training.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...data.padding import pad_activations, pad_ids
from ...data.records import Example
from ...subject.address import Feature

if TYPE_CHECKING:
    from ...subject.model import Subject
    from ..explainer import TrainBatch, TrainEvidence

SILENT, ACTIVE = 0.1, 0.5
"""Below the one a place is silent, from the other on it is active; in units of the scale."""
NEAR_PEAK = 0.8
"""Of a window's peak: a pivot is drawn among the places that are as strong as this."""
STRONGEST = 12
"""Training examples whose median peak is the scale."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a training window."""

    ids: tuple[int, ...]
    pivot: int
    value: float
    """The harvested activation at the pivot, in units of the scale."""

    @property
    def token(self) -> int:
        """The token at the pivot."""
        return self.ids[self.pivot]

    def put(self, position: int, token: int) -> tuple[int, ...]:
        """The window with another token at one position."""
        return (*self.ids[:position], token, *self.ids[position + 1 :])

    def change(self, tokens: dict[int, int]) -> tuple[int, ...]:
        """The window with other tokens at some positions."""
        return tuple(tokens.get(position, token) for position, token in enumerate(self.ids))


class Windows(NamedTuple):
    """All training windows of a feature, each once."""

    ids: NDArray[np.int64]
    """(row, position), filled up to full width."""
    values: NDArray[np.float32]
    """(row, position), in units of the scale; NaN where a shorter window has no token of its own."""


class TrainingSide:
    """One feature's training windows with its activations, as measurements read them."""

    def __init__(self, subject: "Subject", evidence: "TrainEvidence", batch: "TrainBatch", *, seed: int = 0) -> None:
        """`batch` holds what features share; another `seed` gives another draw of whatever is random."""
        self.subject, self.evidence, self.batch, self.seed = subject, evidence, batch, seed
        self.feature: Feature = evidence.feature
        self.vocabulary = batch.vocabulary
        self.width = batch.background.ids.shape[1]
        """Tokens of every window that experiments make."""
        self.examples: tuple[Example, ...] = tuple(
            sorted((e for e in {e.window: e for e in evidence.examples}.values()), key=lambda e: -e.peak)
        )
        """Training examples, each window once, the strongest first."""
        self.scale = scale_of(self.examples)
        """Median peak of the strongest training examples, in the source's units: 1 in experiments' values."""

    @cached_property
    def windows(self) -> Windows:
        """The training examples, the strongest first, and the background."""
        digests = {example.window for example in self.examples}
        rows = [row for row, digest in enumerate(self.batch.background.digests) if digest not in digests]
        back = self.batch.background.ids[rows]
        ids = np.concatenate([pad_ids([e.ids for e in self.examples], width=self.width), back])
        own = pad_activations([e.activations for e in self.examples], width=self.width)
        values = np.concatenate([own, self.evidence.background[rows]]) / self.scale
        filled = np.stack([self.fill(row) for row in ids])
        return Windows(filled, np.where(ids >= 0, values, np.nan).astype(np.float32))

    @cached_property
    def fires_on(self) -> dict[int, float]:
        """By token id, the share of its occurrences that are active, of tokens that ever are; the highest first."""
        windows, size = self.windows, len(self.vocabulary)
        counts = np.bincount(windows.ids[np.isfinite(windows.values)], minlength=size)
        active = np.bincount(windows.ids[windows.values >= ACTIVE], minlength=size)
        tokens = np.flatnonzero(active)
        shares = {int(token): float(active[token] / counts[token]) for token in tokens}
        return dict(sorted(shares.items(), key=lambda pair: (-pair[1], -int(active[pair[0]]), pair[0])))

    def fill(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """A window (position,) at full width: where it ends its first token is repeated.

        What stands after a causal model's pivot cannot matter, so experiments have windows of one width.
        """
        real = ids[ids >= 0]
        return np.append(real, np.full(self.width - len(real), real[0])).astype(np.int64)


def scale_of(examples: Sequence[Example]) -> float:
    """Median peak of the strongest examples; 1 where none is active, of which nothing is ever measured."""
    peaks = [example.peak for example in examples[:STRONGEST] if example.peak > 0]
    return float(np.median(peaks)) if peaks else 1.0


def find_near_misses(side: TrainingSide, count: int, before: int = 0, seed: int = 0) -> list[Place]:
    """Random silent places of the tokens on which it fires, of those on which it fires most often first."""
    windows, fires = side.windows, side.fires_on
    rank = np.full(len(side.vocabulary), -1)
    rank[list(fires)] = np.arange(len(fires))
    silent = (rank[windows.ids] >= 0) & (windows.values < SILENT)
    silent[:, :before] = False
    rows, positions = np.nonzero(silent)
    drawn = generator(side, seed, "near misses").permutation(len(rows))
    order = drawn[np.argsort(rank[windows.ids[rows[drawn], positions[drawn]]], kind="stable")]
    pairs = zip(rows[order].tolist(), positions[order].tolist(), strict=True)
    return [
        Place(tuple(windows.ids[row].tolist()), pivot, float(windows.values[row, pivot]))
        for row, pivot in in_turn(pairs, lambda at: int(windows.ids[at]))[:count]
    ]


def find_silent(side: TrainingSide, count: int, before: int, seed: int) -> list[Place]:
    """Random silent places, of different windows, of tokens on which it does not fire."""
    windows = side.windows
    quiet = (windows.values < SILENT) & ~np.isin(windows.ids, list(side.fires_on))
    quiet[:, :before] = False
    rng = generator(side, seed, "silent places")
    rows = rng.permutation(np.flatnonzero(quiet.any(axis=1)))[:count].tolist()
    pivots = [int(rng.choice(np.flatnonzero(quiet[row]))) for row in rows]
    pairs = zip(rows, pivots, strict=True)
    return [Place(tuple(windows.ids[row].tolist()), at, float(windows.values[row, at])) for row, at in pairs]


def silent_window(side: TrainingSide, rng: np.random.Generator, *, position: int) -> NDArray[np.int64]:
    """A random background window in which the feature is silent at this position; any where there is none such."""
    ids = side.batch.background.ids
    quiet = np.flatnonzero((side.evidence.background[:, position] < SILENT * side.scale) & (ids[:, position] >= 0))
    rows = quiet if len(quiet) else np.arange(len(ids))
    return side.fill(ids[int(rng.choice(rows))])


def special_tokens(side: TrainingSide) -> set[int]:
    """Ids that stand for no text."""
    return set(side.subject.tokenizer.all_special_ids)


def count_tokens(side: TrainingSide) -> NDArray[np.int64]:
    """How often each token stands in the background, by id."""
    ids = side.batch.background.ids
    return np.bincount(ids[ids >= 0], minlength=len(side.vocabulary))


def common_tokens(side: TrainingSide) -> list[int]:
    """The tokens of the background that stand for text, the most frequent first."""
    counts = count_tokens(side)
    special = special_tokens(side)
    return [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] and int(i) not in special]


def generator(side: TrainingSide, seed: int, use: str) -> np.random.Generator:
    """Random numbers that depend on the investigation, the draw and what they are for."""
    return np.random.default_rng([side.seed, seed, zlib.crc32(use.encode())])


def in_turn(items: Iterable[T], key: Callable[[T], Hashable]) -> list[T]:
    """Reorders so that the first of every group come first, then the second of every group, and so on."""
    met: Counter[Hashable] = Counter()
    ranked: list[tuple[int, T]] = []
    for item in items:
        group = key(item)
        ranked.append((met[group], item))
        met[group] += 1
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])]


def excerpt(side: TrainingSide, ids: Sequence[int], pivot: int, *, before: int = 8) -> str:
    """The text up to the pivot, the pivot's token in «»."""
    words = [side.vocabulary[i] for i in ids[max(0, pivot - before) : pivot]]
    return f"{''.join(words)}«{side.vocabulary[ids[pivot]]}»"


def find_active(side: TrainingSide, count: int, before: int, seed: int) -> list[Place]:
    """Of every example that has one, one place; the strongest examples first."""
    candidates = (active_in(side, example, before, seed) for example in side.examples)
    return in_turn([place for place in candidates if place is not None], lambda place: place.token)[:count]


def active_in(side: TrainingSide, example: Example, before: int, seed: int) -> Place | None:
    """A random one of the places at which the window is nearly at its peak: the first may be special."""
    values = example.activations / side.scale
    top = float(values[before:].max(initial=0))
    if top < ACTIVE:
        return None
    near = before + np.flatnonzero(values[before:] >= max(NEAR_PEAK * top, ACTIVE))
    pivot = int(generator(side, seed, example.window).choice(near))
    return Place(tuple(side.fill(example.ids).tolist()), pivot, float(values[pivot]))
