"""Choose the few clauses that explain a feature, each of which holds on text that nothing was learned from.

A tree fits: it splits for as long as a split helps, and most of its length tells the training text. Here a rule is
built forwards, clause by clause, from heads (the current token, or the one before it, as exact tokens, words,
beginnings, endings or classes), and from the contexts that the tree found. A clause is the one that explains most
squared error for its length in words, on train and tune together. It must fire on tune windows and lower their error
by more than its standard error over documents, and so must each of its conditions and exceptions (`search`). After
every clause all values are fitted again. In front stands the clause that alone explains most for its length.

Rules of one, two, three ... clauses make the curve, each clause's value fitted on train alone and the correlation
taken on tune. The rule chosen is the shortest whose correlation is within one standard error of the best.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .english import WEAK
from .ground import Ground
from .language import Clause, Rule
from .search import Limits, Search, State, Trial, find_contexts, key_of
from .telling import can_be_told, highest

Size = int | Literal["best"] | None
"""Clauses of the rule wanted: so many, as many as predict tune best, or None for the shortest that is as good."""

MOST = 6
"""Clauses in a rule."""
COMMON = 0.1
"""Share of all tokens above which a weak clause is not told."""


class Point(NamedTuple):
    """A rule of so many clauses on the curve."""

    clauses: int
    tune: float


class Chosen(NamedTuple):
    """A rule that can be told whole, and how well rules of each length predict tune."""

    rule: Rule
    curve: tuple[Point, ...]


def choose(ground: Ground, long: Rule | None, *, size: Size = None, limits: Limits | None = None) -> Chosen | None:
    """The rule for a ground; None where no clause proves itself."""
    limits = limits or Limits()
    contexts = find_contexts(long)
    state = State(ground)
    state.fit([], ground.weight)
    while len(state.clauses) < (size if isinstance(size, int) else MOST):
        added = _next(Search(ground, state, contexts, limits), state)
        if added is None:
            break
        before = state.clauses
        state.fit([*before, added], ground.weight)
        if not can_be_told(state.rule):  # fitted again, degrees may take more words
            state.fit(before, ground.weight)
            break
    if not state.clauses:
        return None
    clauses = _best_first(ground, state.clauses, limits)
    correlations, errors = _curve(ground, clauses)
    count = _choose_size(correlations, errors, size)
    state.fit(clauses[:count], ground.weight)
    curve = tuple(Point(i + 1, round(r, 4)) for i, r in enumerate(correlations))
    return Chosen(state.rule, curve)


def _next(search: Search, state: State) -> Clause | None:
    """The best clause that proves itself and can still be told.

    A trial is at its best before the parts that do not prove themselves are pruned: once none is left that promises
    more than the best pruned one, that one is taken.
    """
    found: Trial | None = None
    for trial in search.best():
        if trial.score <= (found.score if found is not None else 0):
            break
        pruned = search.prune(trial)
        while pruned is not None and not can_be_told(Rule(any=(*state.clauses, pruned.clause))):
            pruned = search.shortened(pruned)
        if pruned is None or key_of(pruned.clause) in map(key_of, state.clauses) or _catches_all(pruned, state):
            continue
        if pruned.score > (found.score if found is not None else 0):
            found = pruned
    return found.clause if found is not None else None


def _best_first(ground: Ground, clauses: Sequence[Clause], limits: Limits) -> Sequence[Clause]:
    """The clauses with the one in front that alone explains most for its length, which is the headline.

    It need not be the first that was found: only the best trials are climbed, and others begin with fewer conditions.
    """
    state = State(ground)
    state.fit([], ground.weight)
    search = Search(ground, state, (), limits)
    trials = [search.trial(clause, ground.matched(clause)) for clause in clauses]
    first = max(range(len(clauses)), key=lambda i: trial.score if (trial := trials[i]) else 0.0)
    ordered = [clauses[first], *clauses[:first], *clauses[first + 1 :]]
    return ordered if can_be_told(Rule(any=tuple(ordered))) else clauses


def _catches_all(trial: Trial, state: State) -> bool:
    """Whether a clause is weak beside those chosen and yet on so many tokens that a reader learns nothing of it."""
    strongest = max(map(highest, state.clauses), default=0.0)
    share = state.ground.weight[trial.at].sum() / state.ground.weight.sum()
    return highest(trial.clause) < WEAK * strongest and share > COMMON


def predicts_better(ground: Ground, longer: Rule, rule: Rule) -> bool:
    """Whether another rule's correlation on tune is higher by more than a standard error."""
    tune = slice(ground.split, None)
    results = [
        _correlations(ground.activation[tune], ground.predict_tune(r), ground.weight[tune], ground.documents)
        for r in (longer, rule)
    ]
    (more, more_without), (less, less_without) = results
    return more - less > _jackknife(more_without - less_without)


def _jackknife(left_out: NDArray[np.float64]) -> float:
    """Standard error of a statistic, from its values without each group (group,)."""
    n = len(left_out)
    return float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))


def _curve(ground: Ground, clauses: Sequence[Clause]) -> tuple[list[float], NDArray[np.float64]]:
    """Correlation on tune of 1, 2, 3 ... clauses fitted on train, and without each document (size, document)."""
    state, tune = State(ground), slice(ground.split, None)
    whole, left_out = [], []
    for count in range(1, len(clauses) + 1):
        state.fit(clauses[:count], ground.train_weight)
        r, without = _correlations(
            ground.activation[tune], state.predicted[tune], ground.weight[tune], ground.documents
        )
        whole.append(r)
        left_out.append(without)
    return whole, np.array(left_out)


def _correlations(
    true: NDArray[np.float64], predicted: NDArray[np.float64], weight: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64]]:
    """Weighted Pearson's r of all tokens, and without each group (group,); 0 where a side is constant."""
    terms = (np.ones_like(true), true, predicted, true**2, predicted**2, true * predicted)
    sums = np.stack([np.bincount(groups, weight * term) for term in terms])
    whole = sums.sum(axis=1)
    return float(_pearson(whole[:, None])[0]), _pearson(whole[:, None] - sums)


def _pearson(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    n, x, y, xx, yy, xy = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (xy / n - x * y / n**2) / np.sqrt((xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2))
    return np.where(np.isfinite(r), r, 0.0)


def _choose_size(correlations: Sequence[float], left_out: NDArray[np.float64], size: Size) -> int:
    """How many clauses: the fewest that are within a standard error, by the jackknife over documents, of the best."""
    if isinstance(size, int):
        return min(size, len(correlations))
    best = int(np.argmax(correlations))
    if size == "best":
        return best + 1
    for count in range(best):
        if correlations[best] - correlations[count] <= _jackknife(left_out[best] - left_out[count]):
            return count + 1
    return best + 1
