"""Pools what a database holds: how many features are explained, how well beside every baseline, how long, at what cost.

Features are grouped by source, by layer where several sources lie at one, and by model. Medians are over the features
whose best explanation has a text and a score, with the 95% percentile bootstrap interval over features; scores of
different scorers or metrics are never pooled. A source whose matrices were drawn again (`~random-SEED`) is compared
with the one that it is a control of: the AUROC is the chance that a trained feature scores higher than a random one,
ties as a half; 0.5 means that the scores cannot tell a trained model from a random one.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...subject.address import SourceId
from ..records import Role
from .database import translate_errors
from .store import Store

Level = Literal["source", "layer", "model"]
LEVELS: tuple[Level, ...] = ("source", "layer", "model")
"""In the order in which groups are shown."""
DRAWS = 2000
TEXTLESS = ("failed", "unlabelled")
"""Statuses of features without a text that are no abstention."""
ROLES: tuple[Role, ...] = ("token_rule", "token_table", "other_rule", "empty", "shuffled")
"""The baselines, in the order in which they are shown."""


class Interval(NamedTuple):
    """A statistic over features, with the ends of its 95% percentile bootstrap interval."""

    value: float
    low: float
    high: float
    n: int
    """Features."""

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def count_words(text: str) -> int:
    """The words of a description; the space that a token in backticks begins with makes none."""
    return len(text.replace("`", "").split())


def median(values: Iterable[float | None], *, seed: int = 0) -> Interval | None:
    """The median of the values that there are; None where there is none."""
    numbers = np.array([value for value in values if value is not None])
    if not len(numbers):
        return None
    low, high = np.quantile(_draw_medians(np.sort(numbers), np.random.default_rng(seed)), (0.025, 0.975))
    return Interval(float(np.median(numbers)), float(low), float(high), len(numbers))


def _draw_medians(ordered: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Medians of DRAWS resamples, whatever the number of values, without drawing any resample.

    A resample takes the values at n uniform numbers. Of those the k-th is Beta(k, n + 1 - k), and the next one is the
    least of the n - k that are uniform above it (David and Nagaraja, Order Statistics, 2003, chapter 2).
    """
    n = len(ordered)
    lower = (n + 1) // 2
    first = generator.beta(lower, n + 1 - lower, DRAWS)
    second = first if n % 2 else 1 - (1 - first) * generator.random(DRAWS) ** (1 / (n - lower))
    places = (np.minimum((n * place).astype(np.int64), n - 1) for place in (first, second))
    return np.mean([ordered[own] for own in places], axis=0)


def separation(higher: ArrayLike, lower: ArrayLike, *, seed: int = 0) -> Interval | None:
    """The AUROC between two sets of scores: the chance that one of `higher` is above one of `lower`, ties as a half.

    Both sets are resampled for the interval. None where either is empty.
    """
    first, second = np.asarray(higher, float), np.asarray(lower, float)
    if not len(first) or not len(second):
        return None
    generator = np.random.default_rng(seed)
    second = np.sort(second)
    below, up_to = (np.searchsorted(second, first, side) for side in ("left", "right"))

    def area(counts: NDArray[np.int64], others: NDArray[np.int64]) -> float:
        sums = np.append(0, others.cumsum())
        return float(counts @ (sums[below] + sums[up_to])) / (2 * len(first) * len(second))

    draws = [
        area(*(generator.multinomial(n, np.full(n, 1 / n)) for n in (len(first), len(second)))) for _ in range(DRAWS)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    whole = area(np.ones(len(first), np.int64), np.ones(len(second), np.int64))
    return Interval(whole, float(low), float(high), len(first) * len(second))


class Baseline(NamedTuple):
    """How the explanations of a group compare with one baseline, where that was measured."""

    median: Interval
    beaten: int
    """How many explanations score above it, of `median.n`."""


@dataclass(frozen=True, slots=True)
class GroupScore:
    """The headline scores of a group by one scorer, in one metric."""

    scorer: str
    metric: str
    values: Sequence[float]
    median: Interval
    baselines: Mapping[str, Baseline]
    """By role."""
    baseline_values: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Group:
    """Features that are summed up together."""

    name: str
    level: Level
    features: int
    statuses: Mapping[str, int]
    """How many features have each status, `unlabelled` included."""
    scores: Sequence[GroupScore]
    words: Interval | None
    """Words of an explanation."""
    headline_words: Interval | None

    @property
    def abstained(self) -> dict[str, int]:
        """How many features were given no text, by kind."""
        others = ("explained", "weak", *TEXTLESS)
        return {status: count for status, count in self.statuses.items() if status not in others}


class Control(NamedTuple):
    """The headline scores of a source beside those of the same with random matrices."""

    trained: str
    random: str
    scorer: str
    metric: str
    trained_median: Interval
    random_median: Interval
    auroc: Interval


class Cost(NamedTuple):
    """What the language models of a database were asked, all features together."""

    calls: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    """None where the price of a call is not known."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A database, or one source of it with its controls, summed up."""

    groups: Sequence[Group]
    controls: Sequence[Control]
    cost: Cost


class _Member(NamedTuple):
    """What is summed up of one row."""

    status: str
    scorer: str
    metric: str
    score: float | None
    words: int | None
    """None where there is no text."""
    headline_words: int | None
    baselines: tuple[float | None, ...]
    """In the order of ROLES."""


def summarise(store: Store, source: str | SourceId | None = None) -> Summary:
    """Sum up a source and its controls with random matrices, or everything.

    >>> group = summarise(store, "demo:mlp.1").groups[0]
    >>> group.name, group.scores[0].scorer, group.scores[0].metric
    ('demo:mlp.1', 'simulation', 'correlation')
    """
    names = [SourceId.parse(row["source"]) for row in store.sources()]
    if source is not None:
        known = SourceId.parse(str(store.known_source(source)))
        names = [known, *(other for other in names if other != known and other.trained == known)]
    members = {name: list(_read_members(store, name)) for name in names}
    groups = [
        _sum_up(name, level, [member for source_id in ids for member in members[source_id]])
        for name, level, ids in _group_sources(names)
    ]
    return Summary(groups, _controls(names, groups), total_cost(store))


def _group_sources(names: Sequence[SourceId]) -> list[tuple[str, Level, list[SourceId]]]:
    """Every source; then the layers and the models that have several."""
    groups: defaultdict[tuple[Level, str], list[SourceId]] = defaultdict(list)
    for name in names:
        _, _, layer = name.site.partition(".")
        groups["source", str(name)].append(name)
        groups["model", name.model].append(name)
        if layer:
            groups["layer", f"{name.model} layer {layer}"].append(name)
    ordered = sorted(groups.items(), key=lambda group: LEVELS.index(group[0][0]))
    return [(name, level, ids) for (level, name), ids in ordered if level == "source" or len(ids) > 1]


def _read_members(store: Store, source: SourceId) -> Iterator[_Member]:
    """The rows of a source, with the baselines of the headline score."""
    sql = """SELECT listed.status, listed.scorer, listed.metric, listed.score, text, headline, baselines FROM listed
        LEFT JOIN explanations ON explanations.id = listed.explanation_id
        LEFT JOIN ranks ON ranks.explanation_id = listed.explanation_id LEFT JOIN scores ON scores.id = ranks.score_id
        WHERE listed.source_id = (SELECT id FROM sources WHERE name = ?)"""
    with translate_errors(store.path):
        for status, scorer, metric, score, text, headline, baselines in store.db.conn.execute(sql, [str(source)]):
            measured = json.loads(baselines or "{}")
            words, own = (count_words(said) if said else None for said in (text, text and headline))
            others = tuple(measured.get(role) for role in ROLES)
            yield _Member(status, scorer, metric, score, words=words, headline_words=own, baselines=others)


def _sum_up(name: str, level: Level, rows: Sequence[_Member]) -> Group:
    texts = [row for row in rows if row.words is not None]
    scored: dict[tuple[str, str], list[_Member]] = defaultdict(list)
    for row in texts:
        if row.score is not None:
            scored[row.scorer, row.metric].append(row)
    return Group(
        name,
        level,
        features=len(rows),
        statuses=Counter(row.status for row in rows),
        scores=[_score_group(scorer, metric, group) for (scorer, metric), group in sorted(scored.items())],
        words=median(row.words for row in texts),
        headline_words=median(row.headline_words for row in texts),
    )


def _score_group(scorer: str, metric: str, rows: Sequence[_Member]) -> GroupScore:
    scores = [row.score for row in rows if row.score is not None]
    baselines: dict[str, Baseline] = {}
    values: dict[str, Sequence[float]] = {}
    for place, role in enumerate(ROLES):
        own = [row.baselines[place] for row in rows]
        measured = [baseline for baseline in own if baseline is not None]
        if (middle := median(measured)) is not None:
            beaten = sum(value is not None and score > value for score, value in zip(scores, own, strict=True))
            baselines[role], values[role] = Baseline(middle, beaten), measured
    middle = median(scores)
    assert middle is not None
    return GroupScore(scorer, metric, scores, median=middle, baselines=baselines, baseline_values=values)


def _controls(names: Sequence[SourceId], groups: Sequence[Group]) -> list[Control]:
    """Every source with random matrices beside the trained one, for each scorer and metric that both have."""
    scores = {
        group.name: {(score.scorer, score.metric): score for score in group.scores}
        for group in groups
        if group.level == "source"
    }
    controls = []
    for name in names:
        trained = scores.get(str(name.trained), {})
        for kind, score in scores[str(name)].items() if name.trained != name else ():
            if kind in trained and (auroc := separation(trained[kind].values, score.values)) is not None:
                medians = trained[kind].median, score.median
                controls.append(Control(str(name.trained), str(name), *kind, *medians, auroc))
    return controls


def total_cost(store: Store) -> Cost:
    """What the language models of a database were asked, all features together."""
    rows = store.calls.statistics()
    usd = None if any(row["cost"] is None for row in rows) else float(sum(row["cost"] for row in rows))
    calls, read, written = (sum(row[key] for row in rows) for key in ("calls", "input_tokens", "output_tokens"))
    return Cost(calls, read, written, usd)
