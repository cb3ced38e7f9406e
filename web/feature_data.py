"""What the page of a feature tells: the row of `show`, and beside it every explanation and windows of every kind.

The windows carry what the shown explanation predicts of them: its rule, run by code, or where it has none the
activations that a judge wrote for them when it was scored.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..data.ranking import headline_score
from ..data.records import Example, Kind
from ..data.store.people import PERSON, author_of, ratings_of
from ..data.store.rows import StoredExplanation
from ..data.store.store import Store
from ..labelling.inspect import describe, describe_investigation
from ..rules.english import describe as tell_rule
from ..rules.evaluate import simulate
from ..rules.language import Rule, parse_rule
from ..subject.address import Feature
from .lookup import NotHere

KINDS: Mapping[Kind, tuple[str, str]] = {
    "top": ("Strongest", "The windows with the highest peaks."),
    "quantile": ("Over all its range", "A uniform sample of the windows in which it is active, the strongest first."),
    "near_miss": ("Near misses", "Silent, although they hold a token on which it peaks elsewhere."),
    "silent": ("Silent", "Random windows in which it stays below a tenth of its peak."),
    "random": ("Random", "Windows drawn without regard to the feature."),
    "bottom": ("Lowest", "The windows with the lowest troughs."),
}
"""Title and meaning of each kind of windows, in the order of the page."""
WINDOWS, MOST_WINDOWS = 8, 200
"""How many windows of a kind are shown, and at most."""


class Predictor(NamedTuple):
    """Where predictions come from."""

    by: str
    """`rule`, or who judged."""
    rule: Rule | None
    judged: Mapping[str, Sequence[float]]
    """Predictions by digest of the window, scaled to the feature's peak."""

    def predict(self, example: Example) -> list[float] | None:
        """Predicted activations by token; None of a window without any."""
        if self.rule is not None:
            return simulate(self.rule, example.tokens)
        known = self.judged.get(example.window)
        return None if known is None or len(known) < len(example.tokens) else list(known[: len(example.tokens)])


def feature_data(store: Store, feature: Feature, *, chosen: int | None = None, count: int = WINDOWS) -> dict[str, Any]:
    """The row of `show`, and `explanations`, `shown`, `told`, `predicted_by`, `windows`, `before` and `after`.

    `chosen` is the id of the explanation that is shown in place of the best. NotHere where the feature has none such.
    """
    row = describe(store, feature, count=0)
    del row["examples"]
    candidates = store.explanations(feature)
    shown = candidates[0] if candidates else None
    if chosen is not None:
        shown = next((stored for stored in candidates if stored.id == chosen), None)
        if shown is None:
            raise NotHere(f"{feature} has no explanation {chosen}; its page lists those that there are")
    evidence = store.evidence(feature)
    predictor = _predictor(store, shown, evidence.statistics.peak)
    return row | {
        "shown": None if shown is None else tell(store, shown),
        "told": _tell(shown, evidence.statistics.peak),
        "explanations": [tell(store, stored) for stored in candidates],
        "predicted_by": predictor and predictor.by,
        "windows": _windows(evidence.examples, predictor, count),
        "investigated": store.journal.count(str(feature)),
        **_neighbours(store, feature),
    }


def tell(store: Store, stored: StoredExplanation) -> dict[str, Any]:
    """An explanation with its scores, ratings apart."""
    own = stored.explanation
    every = store.scores(stored.id)
    scores = [score for score in every if score.scorer != PERSON]
    headline = headline_score(scores)
    return {
        "id": stored.id,
        "text": own.text,
        "headline": own.headline,
        "reason": own.reason,
        "status": stored.status,
        "explainer": own.explainer,
        "author": author_of(own.provenance),
        "created": stored.created,
        "rule": json.loads(own.rule) if own.rule else None,
        "scores": [_tell_score(score) for score in scores],
        "headline_score": None if headline is None else scores.index(headline),
        "investigation": describe_investigation(stored),
        "ratings": ratings_of(every),
    }


def _tell_score(score: Any) -> dict[str, Any]:
    names = (
        "scorer",
        "backend",
        "examples",
        "metric",
        "value",
        "reason",
        "ci_low",
        "ci_high",
        "n",
        "coverage",
        "baselines",
        "judge",
        "doubt",
    )
    return {name: getattr(score, name) for name in names}


def _tell(shown: StoredExplanation | None, peak: float) -> str | None:
    """The rule of an explanation in words, where its text is not these words."""
    if shown is None or shown.explanation.rule is None:
        return None
    words = tell_rule(parse_rule(shown.explanation.rule), peak=peak)
    return None if words == shown.explanation.text else words


def _predictor(store: Store, shown: StoredExplanation | None, peak: float) -> Predictor | None:
    if shown is None:
        return None
    if shown.explanation.rule is not None:
        return Predictor("rule", parse_rule(shown.explanation.rule), {})
    judged: dict[str, Sequence[float]] = {}
    by = ""
    for scoring in store.judgements(shown.id):
        for own in scoring:
            if own.role == "explanation" and own.kind == "activation" and own.predicted.size:
                top = float(own.predicted[own.predicted == own.predicted].max(initial=0.0))
                scaled = own.predicted * (peak / top if top > 0 else 0.0)
                judged |= {w: row for w, row in zip(own.windows, scaled.tolist(), strict=False) if row == row}
                by = str(own.provenance.get("llm") or own.scorer)
    return Predictor(by, None, judged) if judged else None


def _windows(examples: Sequence[Example], predictor: Predictor | None, count: int) -> list[dict[str, Any]]:
    groups = []
    for kind, (title, meaning) in KINDS.items():
        own = [example for example in examples if example.kind == kind]
        own.sort(key=lambda e: (e.peak if kind == "bottom" else -e.peak, e.window))
        if own:
            chosen = own if kind in ("top", "bottom") else _spread(own, count)
            shown = [_window(example, predictor) for example in chosen[:count]]
            groups.append({"kind": kind, "title": title, "meaning": meaning, "total": len(own), "windows": shown})
    return groups


def _spread(examples: Sequence[Example], count: int) -> Sequence[Example]:
    """`count` of the examples, evenly from the first to the last."""
    if len(examples) <= count:
        return examples
    return [examples[place * (len(examples) - 1) // max(1, count - 1)] for place in range(count)]


def _window(example: Example, predictor: Predictor | None) -> dict[str, Any]:
    predicted = predictor and predictor.predict(example)
    return {
        "split": example.split,
        "document": example.document,
        "window": example.window,
        "peak": example.peak if example.kind != "bottom" else float(example.activations.min()),
        "tokens": list(example.tokens),
        "activations": [round(value, 4) for value in example.activations.tolist()],
        "predicted": predicted and [round(float(value), 4) for value in predicted],
    }


def _neighbours(store: Store, feature: Feature) -> dict[str, str | None]:
    """The addresses of the features before and after in the source."""
    width = store.source(feature.source)["width"]
    sides = {"before": feature.index - 1, "after": feature.index + 1}
    return {
        side: str(Feature(feature.source, index, feature.negative)) if 0 <= index < width else None
        for side, index in sides.items()
    }
