"""Which score an explanation is known by, whether it is weak, and which of a feature's explanations is best.

The headline score of an explanation is of the first kind of HEADLINES that was measured: scorers are not compared
with each other. Of one kind, each judge's latest score counts, and of several judges the one under whom the
explanation does best, since a judge can only miss what a text says: so a weaker judge hides neither a stronger one
nor a stronger scorer.

Of several explanations those that were compared by one measure (scorer, backend, judge, metric) on the same `select`
windows are ordered by its value. They take the places that they have together among all, which are in the order of
their headline scores: the kind decides, then the value, then which is newer. What an investigation ended with and did
not prove must be ahead by more than two decimals show. What nobody judged comes after what was judged, and abstentions
come last.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .records import Score

HEADLINES: tuple[tuple[str, str, str], ...] = (
    ("simulation", "top_random", "correlation"),
    ("detection", "windows", "balanced_accuracy"),
    ("fuzzing", "marks", "balanced_accuracy"),
    ("embedding", "windows", "auroc"),
    ("output", "tokens", "balanced_accuracy"),
    ("output", "continuations", "balanced_accuracy"),
    ("intruder", "groups", "balanced_accuracy"),
    ("rule", "top_random", "correlation"),
)
"""The kinds of headline scores (scorer, examples, metric), the one that says most first."""
_KIND: Mapping[tuple[str, str, str], int] = {kind: place for place, kind in enumerate(HEADLINES)}
_SCORER: Mapping[str, int] = {scorer: place for place, (scorer, _, _) in reversed([*enumerate(HEADLINES)])}
_CHANCE: Mapping[str, float] = {"correlation": 0.0, "balanced_accuracy": 0.5, "auroc": 0.5}
_RIVALS: Mapping[str, str] = {
    "other_rule": "another feature's rule",
    "empty": "the judge without an explanation",
    "shuffled": "another feature's explanation",
}
"""Baselines that an explanation must be above, and what they are."""
_TIE = 0.005
"""A difference that two decimals do not show. As good as a table of tokens, or of one, in a sentence is good."""


class Measure(NamedTuple):
    """What candidates are compared by."""

    scorer: str
    backend: str
    judge: str
    metric: str
    windows: tuple[str, ...]
    """Digests of the `select` windows, sorted."""


class Candidate(NamedTuple):
    """One of a feature's explanations, as far as ranking needs it."""

    id: int
    """Rises with time."""
    has_text: bool
    scores: Sequence[Score]
    """In the order in which they were added."""
    unproven: bool = False
    """Whether it is what an investigation ended with that did not support it."""


def headline_score(scores: Iterable[Score]) -> Score | None:
    """The score that an explanation is known by; None where no kind of headline score was measured."""
    latest: dict[tuple[int, str, str], Score] = {}
    for score in scores:
        kind = _KIND.get((score.scorer, score.examples, score.metric))
        if kind is not None and score.value is not None:
            latest[kind, score.backend, score.judge] = score
    return min(latest.values(), key=_headline_key, default=None)


def _headline_key(score: Score) -> tuple[int, float]:
    assert score.value is not None
    return _KIND[score.scorer, score.examples, score.metric], -score.value


def why_weak(headline: Score) -> str | None:
    """Why a headline score leaves it open that the explanation says anything of the feature; None where it does not.

    Its interval reaches chance (or there is none), or it is below what a single token gives (it may be a single token
    itself), or not above what another feature's explanation gives or the judge says without one, or it is below the
    token table by more than its interval.
    """
    value, table, token = headline.value, headline.baselines.get("token_table"), headline.baselines.get("token_rule")
    if value is None or headline.ci_low is None or headline.ci_high is None:
        return "its score has no interval"
    if headline.ci_low <= (chance := _CHANCE[headline.metric]):
        return f"its interval reaches chance, {chance:.2f}"
    for role, meant in _RIVALS.items():
        if (rival := headline.baselines.get(role)) is not None and value <= rival:
            return f"{meant} scores as high, {rival:.2f}"
    if token is not None and value < token - _TIE:
        return f"a single token scores higher, {token:.2f}"
    if table is not None and headline.ci_high < table:
        return f"a table of tokens scores higher than its interval, {table:.2f}"
    return None


def standing(status: str, headline: Score | None) -> str:
    """The status of an explanation that has one of its own: "weak" in place of "explained", or as it is."""
    return "weak" if status == "explained" and headline is not None and why_weak(headline) else status


def rank(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The explanations of one feature (of one tail), the best first."""
    ranked = sorted(candidates, key=_headline_order)
    compared = {candidate.id: _selected(candidate) for candidate in ranked if candidate.has_text}
    shared = Counter(measure for values in compared.values() for measure in values)
    # The measure that most candidates share, of the scorer that says most, is applied last and so decides.
    for measure in sorted((m for m, count in shared.items() if count > 1), key=lambda m: _weight(m, shared[m])):
        places = [place for place, candidate in enumerate(ranked) if measure in compared.get(candidate.id, {})]
        members = sorted((ranked[place] for place in places), key=lambda c: -compared[c.id][measure])
        for place, candidate in zip(places, members, strict=True):
            ranked[place] = candidate
    return ranked


def _headline_order(candidate: Candidate) -> tuple[bool, bool, tuple[int, float], int]:
    headline = headline_score(candidate.scores)
    judged = headline is not None or bool(_selected(candidate))
    kind, value = (len(HEADLINES), 0.0) if headline is None else _headline_key(headline)
    behind = 2 * _TIE if candidate.unproven else 0.0
    return not candidate.has_text, not judged, (kind, value + behind), -candidate.id


def _selected(candidate: Candidate) -> dict[Measure, float]:
    """The latest value of each measure on the `select` windows."""
    return {
        Measure(score.scorer, score.backend, score.judge, score.metric, tuple(sorted(score.windows))): score.value
        for score in candidate.scores
        if score.examples == "select" and score.value is not None
    }


def _weight(measure: Measure, count: int) -> tuple[int, int, Measure]:
    """What a measure is sorted by, the one that decides last."""
    return count, -_SCORER.get(measure.scorer, len(HEADLINES)), measure
