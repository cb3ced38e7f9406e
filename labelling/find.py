"""Finds the features that fire on a text, and those that tell two texts or two sets of texts apart.

What a feature says of a text is its highest activation on it, or its mean. Activations of different features do not
compare, so each is set beside what its harvest counted:

    relative   activation / the largest that the feature had in the corpus, of either sign
    share      the share of the corpus's tokens on which it is at least as high; of positive tails alone
    strength   relative x log2(1 / share): how far up, times how seldom; a feature that is on everywhere, and one that
               is at a hundredth of its largest, are both low. A negative tail is taken to be as seldom as the positive
               one is at that height; without a harvest the activation itself ranks

One text lists the features by strength, two by the difference of `relative`. Two sets list them by AUROC over texts
(causal/separation.py) with p and q over all features that are not the same on every text, and intervals that are wide
enough for having chosen the best. Signed sources have both tails, the negative one as `17-`.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..causal.separation import adjust, auroc_interval, level_of_chosen, separate
from ..data.harvest.histogram import edges
from ..data.store.store import Store
from ..data.texts import Places, check_heard, cut_texts, limit_norms, read_texts
from ..subject.address import Feature
from ..subject.direction_matrix import Directions
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source

By = Literal["max", "mean"]
FEWEST = 5
"""Texts of each set: with fewer no feature can be told from chance."""
_NUMBERS = 2**24
"""Activations that are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Found:
    """A feature on one text, or on two."""

    feature: Feature
    activation: float
    relative: float | None
    """In units of its largest activation in the corpus; None where that is not known."""
    share: float | None
    """None where its histogram is not known."""
    token: str
    """The token on which it is highest, in the text where it is higher."""
    position: int
    """That token's place there, BOS not counted."""
    against: float | None = None
    """Its activation on the other text."""
    difference: float | None = None
    """Of `relative`, or of activations where that is not known."""


@dataclass(frozen=True, slots=True)
class Separating:
    """A feature on two sets of texts."""

    feature: Feature
    auroc: float
    """The chance that it is higher on a positive text than on a negative one."""
    ci_low: float
    ci_high: float
    p: float
    q: float
    positive: float
    """Its median over the positive texts, in activation units."""
    negative: float
    difference: float | None
    """Between the medians, in units of its largest activation in the corpus; None where that is not known."""


class Separated(NamedTuple):
    """The features that tell two sets of texts apart the best."""

    rows: tuple[Separating, ...]
    tested: int
    """Tails of features that differ between any two texts, each a test."""
    discovered: int
    """Of these with q <= 0.05."""
    level: float
    """Of the intervals, for each feature by itself."""
    length: float
    """The AUROC of the number of tokens: what is longer reaches higher by itself."""
    length_p: float


class _Tail(NamedTuple):
    """All features of a source on some texts, as they are or, of a negative tail, times -1."""

    source: Source
    negative: bool
    values: Tensor
    """(text, feature), float32."""
    positions: Tensor
    """(text, feature): where each is highest; of means nothing."""
    largest: NDArray[np.floating]
    """(feature,): in the corpus, of either sign; NaN where it is not known, or 0."""
    share: NDArray[np.float64]
    """(feature,): of the first text's values, by which they are ranked; NaN where it is not known, or negative."""

    def feature(self, index: int) -> Feature:
        return Feature(self.source.id, index, self.negative)


def find(
    subject: Subject,
    sources: Sequence[Source],
    text: str,
    *,
    against: str | None = None,
    token: str | None = None,
    store: Store | None = None,
    count: int = 20,
) -> list[Found]:
    """The features most active on a text, or on one token of it, or most different between it and another.

    `token` is a position, negative from the end, or a token as it reads with or without its space. Peaks are those of
    `store`. Raises NeuronautError where no token counts, or the text has no such token.

    >>> neurons = open_source(subject, SourceId.parse("demo:mlp.1"))
    >>> hits = find(subject, [neurons], "import os", store=store, count=2)
    >>> len(hits), hits[0].token in ("import", " os")
    (2, True)
    """
    texts = [text] if against is None else [text, against]
    chosen = None if token is None else find_positions(subject, text, token)
    tails = _measure(subject, sources, texts, by="max", store=store, chosen=chosen)
    strings = [subject.decode_tokens(subject.encode(one)) for one in texts]
    hits: list[tuple[float, Found]] = []
    for tail in tails:
        relative = (tail.values.numpy() / tail.largest).astype(np.float32)
        rank = _strength(tail, relative[0]) if against is None else _difference(tail, relative)
        order = np.abs(rank).argsort()[::-1][:count]
        for index in order[rank[order] != 0].tolist():
            higher = int(tail.values[:, index].argmax())
            place = int(tail.positions[higher, index])
            hit = Found(
                feature=tail.feature(index),
                activation=float(tail.values[0, index]),
                relative=_number(float(relative[0, index])),
                share=_number(float(tail.share[index])),
                token=strings[higher][place],
                position=place,
                against=None if against is None else float(tail.values[1, index]),
                difference=None if against is None else float(rank[index]),
            )
            hits.append((abs(float(rank[index])), hit))
    hits.sort(key=lambda hit: (hit[1].relative is None, -hit[0]))
    return [hit for _, hit in hits[:count]]


def _strength(tail: _Tail, relative: NDArray[np.float32]) -> NDArray[np.float64]:
    """By what one text's features are ranked (feature,), 0 where one is silent."""
    values = tail.values[0].numpy()
    # How often a negative tail is so low was not counted: it ranks as what is so low on every other token.
    rarity = 1.0 if tail.negative else -np.log2(tail.share)
    own = np.where(np.isnan(tail.largest), values, relative * rarity)
    return np.where(values > 0, own, 0.0)


def _difference(tail: _Tail, relative: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far two texts are apart (feature,); what is below zero on both counts as silent on both."""
    values = np.where(np.isnan(tail.largest), tail.values.numpy(), relative).clip(min=0)
    return (values[0] - values[1]).astype(np.float64)


def find_separating(
    subject: Subject,
    sources: Sequence[Source],
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    by: By = "max",
    store: Store | None = None,
    count: int = 20,
) -> Separated:
    """The features that tell positive texts from negative ones the best, whichever they are higher on.

    Raises NeuronautError where a set has fewer than FEWEST texts, or a text comes twice.

    >>> neurons = open_source(subject, SourceId.parse("demo:mlp.1"))
    >>> lists, tuples = [f"x = [{i}, {i}]" for i in range(8)], [f"x = ({i}, {i})" for i in range(8)]
    >>> find_separating(subject, [neurons], lists, tuples, store=store).rows[0].auroc in (0.0, 1.0)
    True
    """
    texts = [*positive, *negative]
    if min(len(positive), len(negative)) < FEWEST:
        raise NeuronautError(f"{len(positive)} and {len(negative)} texts are too few; wanted {FEWEST} or more of each")
    if twice := next((text for number, text in enumerate(texts) if text in texts[:number]), None):
        raise NeuronautError(f"the text {twice[:60]!r} is given twice, and counts once; leave one out")
    tails = _measure(subject, sources, texts, by=by, store=store)
    values = torch.cat([tail.values for tail in tails], dim=1)
    owners = [(number, index) for number, tail in enumerate(tails) for index in range(tail.values.shape[1])]
    tested = (values != values[:1]).any(0).nonzero()[:, 0]
    if not len(tested):
        raise NeuronautError("every feature is the same on all texts; give other texts, or other sources")
    first, second = values[: len(positive), tested], values[len(positive) :, tested]
    aurocs, p = separate(first, second)
    q = adjust(p)
    spread = torch.cat([first - first.mean(0), second - second.mean(0)]).square().mean(0).sqrt()
    apart = (first.mean(0) - second.mean(0)).abs() / spread.clamp_min(1e-12)
    order = sorted(range(len(tested)), key=lambda at: (-abs(float(aurocs[at]) - 0.5), -float(apart[at])))[:count]
    level = level_of_chosen(len(order), len(tested))
    lows, highs = auroc_interval(aurocs[order], len(positive), len(negative), level=level)
    rows: list[Separating] = []
    for at, low, high in zip(order, lows.tolist(), highs.tolist(), strict=True):
        number, index = owners[int(tested[at])]
        medians = float(first[:, at].median()), float(second[:, at].median())
        difference = _number((medians[0] - medians[1]) / float(tails[number].largest[index]))
        own = float(aurocs[at]), low, high, float(p[at]), float(q[at])
        rows.append(Separating(tails[number].feature(index), *own, *medians, difference))
    counts = torch.tensor([len(ids) for ids in subject.encode_all(texts)])[:, None]
    length = separate(counts[: len(positive)], counts[len(positive) :])
    discovered = int((q <= 0.05).sum())
    return Separated(
        rows=tuple(rows),
        tested=len(tested),
        discovered=discovered,
        level=level,
        length=float(length.auroc),
        length_p=float(length.p),
    )


def find_positions(subject: Subject, text: str, token: str) -> set[int]:
    """The positions of a text that `token` means: a number, or a token as it reads with or without its space."""
    strings = subject.decode_tokens(subject.encode(text))
    if re.fullmatch(r"-?[0-9]+", token):
        place = int(token) + (len(strings) if token.startswith("-") else 0)
        found = {place} & set(range(len(strings)))
    else:
        found = {place for place, string in enumerate(strings) if token in (string, string.strip())}
    if not found:
        shown = " ".join(f"{place}:{string!r}" for place, string in enumerate(strings[:40]))
        raise NeuronautError(f"the text has no token {token}; it has {shown}")
    return found


def _measure(
    subject: Subject,
    sources: Sequence[Source],
    texts: Sequence[str],
    *,
    by: By,
    store: Store | None,
    chosen: set[int] | None = None,
) -> list[_Tail]:
    """The features of all sources on texts; of the first text at the `chosen` positions alone."""
    rows = cut_texts(subject, texts)
    subject = limit_norms(subject, [*dict.fromkeys(site for source in sources for site in source.reads)], rows)
    states = [_State(source, sign, len(texts)) for source in sources for sign in _signs(source, by)]
    heard: dict[tuple[str, ...], list[Tensor]] = {source.reads: [] for source in sources}
    for places in read_texts(subject, sources, rows):
        for source in sources:
            heard[source.reads].append(places[source.id].owners.cpu())
            own = [state for state in states if state.source is source]
            _add_places(own, places[source.id], chosen)
    for sites, owners in heard.items():
        check_heard(torch.cat(owners), texts, ", ".join(sites))
    if chosen is not None and not any(bool(state.count[0]) for state in states):
        raise NeuronautError("that token does not count: it is a special one, or of massive norm; name another")
    return [_compare(state, by, store) for state in states]


def _add_places(states: Sequence["_State"], places: Places, chosen: set[int] | None) -> None:
    """Let the states of one source take in some tokens, of the first text those at `chosen` positions."""
    vectors, owners, positions = places
    if chosen is not None:
        kept = (owners != 0) | torch.isin(positions, torch.tensor(sorted(chosen), device=positions.device))
        vectors, owners, positions = vectors[kept], owners[kept], positions[kept]
    step = max(1, _NUMBERS // states[0].source.width)
    for start in range(0, len(vectors), step):
        part = slice(start, start + step)
        activations = states[0].source.encode(vectors[part]).float().cpu()
        for state in states:
            state.add(activations, owners[part].cpu(), positions[part].cpu())


def _signs(source: Source, by: By) -> tuple[int, ...]:
    """The tails that are worth looking at: the mean of one is that of the other, times -1."""
    return (1, -1) if source.signed and by == "max" else (1,)


class _State:
    """The highest activation of every feature on every text so far, where it was, and the sum; of one tail."""

    def __init__(self, source: Source, sign: int, texts: int) -> None:
        self.source, self.sign = source, sign
        self.highest = torch.full((texts, source.width), -torch.inf)
        self.positions = torch.zeros((texts, source.width), dtype=torch.long)
        self.total, self.count = torch.zeros(texts, source.width), torch.zeros(texts, 1)

    def add(self, activations: Tensor, owners: Tensor, positions: Tensor) -> None:
        """Take in some tokens: (token, feature), (token,), (token,)."""
        signed = self.sign * activations
        self.total.index_add_(0, owners, signed)
        self.count.index_add_(0, owners, torch.ones(len(owners), 1))
        for owner in owners.unique().tolist():
            own = (owners == owner).nonzero()[:, 0]
            highest, place = signed[own].max(0)
            higher = highest > self.highest[owner]
            self.highest[owner] = torch.where(higher, highest, self.highest[owner])
            self.positions[owner] = torch.where(higher, positions[own][place], self.positions[owner])


def _compare(state: _State, by: By, store: Store | None) -> _Tail:
    """Set what was measured beside what was harvested."""
    source, negative = state.source, state.sign < 0
    values = state.highest if by == "max" else state.total / state.count
    known = None if store is None else store.statistics(source.id)
    largest = share = np.full(source.width, np.nan)
    if known is not None:
        highest = np.maximum(known.peak, -known.trough)
        largest = np.where(highest > 0, highest, np.nan)
        if not negative:
            share = share_above(known.histogram, values[0].numpy(), known.tokens)
    return _Tail(
        source=source, negative=negative, values=values, positions=state.positions, largest=largest, share=share
    )


def share_above(histogram: NDArray[np.int64], values: NDArray[np.float32], tokens: int) -> NDArray[np.float64]:
    """The share of tokens at least as high as each feature's value, to within a bin; NaN of values below zero.

    histogram: (feature, bins), values: (feature,). One more than were seen is counted: none is no proof of never.
    """
    low, high = np.log2(edges()[:-1]), np.log2(edges()[1:])
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = ((high - np.log2(values)[:, None]) / (high - low)).clip(0, 1)
        share = ((histogram * parts).sum(1) + 1) / (tokens + 1)
    return np.where(values > 0, share, np.nan)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def describe_hits(
    store: Store | None, sources: Sequence[Source], hits: Sequence[Found] | Sequence[Separating]
) -> list[dict[str, Any]]:
    """Make the rows of `find`: each hit with its rank, and the name, status and explanation that the store has."""
    named = {source.id: source for source in sources if isinstance(source, Directions)}
    rows: list[dict[str, Any]] = []
    for rank, hit in enumerate(hits, 1):
        label = (store and store.row(hit.feature)) or {}
        matrix = named.get(hit.feature.source)
        rows.append(
            {
                "rank": rank,
                **asdict(hit),
                "feature": str(hit.feature),
                "name": matrix and matrix.name(hit.feature.index),
                **{key: label.get(key) for key in ("status", "headline", "explanation", "score")},
            }
        )
    return rows
