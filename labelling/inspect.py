"""What is known of a feature: what `show` prints. It is read from the store alone, and nothing heavy is imported."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..data.ranking import headline_score, why_weak
from ..data.records import Attended, Example, Score
from ..data.store.listing import ROW_KEYS
from ..data.store.rows import StoredExplanation
from ..data.store.store import Store
from ..subject.address import Feature


def describe(store: Store, feature: Feature, *, count: int = 10) -> dict[str, Any]:
    """Make the row of `show`, with the `count` strongest examples.

    >>> row = describe(store, Feature.parse("demo:mlp.1:17"), count=2)
    >>> row["explainer"], len(row["examples"])
    ('rule', 2)
    """
    evidence, best = store.evidence(feature), store.best(feature)
    # A negative tail has a row only once it has been explained.
    row = store.row(feature) or dict.fromkeys(ROW_KEYS) | {"feature": str(feature), "status": "unlabelled"}
    examples = [e for e in evidence.examples if e.kind == "top"]
    examples.sort(key=lambda example: (-example.peak, example.window))
    source = store.source(feature.source)
    harvest = {key: source[key] for key in ("corpus", "tokens", "window", "harvested", "model_revision", "revision")}
    scores, looks = store.scores(best.id) if best else [], _pool_attended(examples)
    row |= {} if looks is None else {"looks_at": looks}
    row |= {"weak": why} if row["status"] == "weak" and (why := _why_weak(scores)) else {}
    row |= _top_tokens(store, feature)
    row |= {"writes": written} if (written := _written(store, feature)) else {}
    row |= {} if (investigation := describe_investigation(best)) is None else {"investigation": investigation}
    return row | {
        "rule": json.loads(best.explanation.rule) if best and best.explanation.rule else None,
        "predictor": json.loads(best.explanation.predictor) if best and best.explanation.predictor else None,
        "curve": _curve(best, scores) if best else [],
        "stats": asdict(evidence.statistics) | {"active": evidence.statistics.active},
        "examples": [_example(example) for example in examples[:count]],
        "scores": [_score(score) for score in scores],
        "provenance": {"explanation": best and _origin(best), "harvest": harvest | source["provenance"]},
    }


def _why_weak(scores: Sequence[Score]) -> str | None:
    headline = headline_score(scores)
    return headline and why_weak(headline)


def describe_investigation(stored: StoredExplanation | None) -> dict[str, Any] | None:
    """Which investigation an explanation is the answer of, and how that ended; None of any other."""
    if stored is None or (id := stored.explanation.provenance.get("investigation")) is None:
        return None
    return {"id": id, "ended": stored.explanation.provenance.get("verdict")}


def _top_tokens(store: Store, feature: Feature) -> dict[str, list[dict[str, Any]]]:
    """The tokens that it raises and lowers the most; nothing where the harvest found none."""
    if (shifts := store.top_tokens(feature)) is None:
        return {}
    vocabulary = store.vocabulary(feature.source.model)
    return {
        side: [{"token": vocabulary[own.id], "value": own.value, "deviations": own.deviations} for own in tokens]
        for side, tokens in shifts._asdict().items()
    }


def _written(store: Store, feature: Feature) -> list[dict[str, Any]]:
    """By site, the norm of the feature's decoder there, and in units of the site's median one; none of one site.

    Norms alone compare badly between layers, because vectors of the residual stream grow.
    """
    return [
        {"site": site, "norm": norm, "relative": norm / (float(np.median(norms)) or 1)}
        for site, norms in store.written_norms(feature.source).items()
        for norm in [float(norms[feature.index])]
    ]


def _curve(best: StoredExplanation, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """What the rule is worth with its first clause, its first two, …: on `tune` and, where it was scored, on holdout.

    Values are the correlation; None where one was not measured.
    """
    natural = (score.provenance for score in scores if score.examples == "top_random")
    keys = [("tune", "tune", best.explanation.provenance), *(("holdout", "correlation", own) for own in natural)]
    rows: dict[int, dict[str, Any]] = {}
    for part, key, provenance in keys:
        curve = provenance.get("curve")
        for row in curve if isinstance(curve, list) else []:
            rows.setdefault(row["clauses"], {"clauses": row["clauses"], "tune": None, "holdout": None})[part] = row[key]
    return [rows[clauses] for clauses in sorted(rows)]


def _score(score: Score) -> dict[str, Any]:
    row = asdict(score) | {"flagged": score.flagged, "doubt": score.doubt}
    del row["windows"]
    return row


def _origin(best: StoredExplanation) -> dict[str, Any]:
    return {"id": best.id, "created": best.created, "reason": best.explanation.reason, **best.explanation.provenance}


def _example(example: Example) -> dict[str, Any]:
    attended = example.attended
    return {
        "kind": example.kind,
        "split": example.split,
        "document": example.document,
        "peak": example.peak,
        "tokens": list(example.tokens),
        "activations": [round(value, 4) for value in example.activations.tolist()],
    } | ({} if attended is None else {"attended": _attended(example, attended)})


def _pool_attended(examples: Sequence[Example]) -> dict[str, float] | None:
    """Where a head looks from the peaks of its top examples: shares of them, and the mean weight; None of no head."""
    seen = [(int(e.activations.argmax()) - e.attended.position, e.attended) for e in examples if e.attended]
    if not seen:
        return None
    shares = {
        "itself": sum(back == 0 for back, _ in seen),
        "the token before": sum(back == 1 and to.position >= 0 for back, to in seen),
        "farther back": sum(back > 1 and to.position >= 0 for back, to in seen),
        "BOS": sum(to.position < 0 for _, to in seen),
    }
    pooled = {name: round(count / len(seen), 3) for name, count in shares.items()}
    return pooled | {"mean weight": round(sum(to.weight for _, to in seen) / len(seen), 3), "n": len(seen)}


def _attended(example: Example, attended: Attended) -> dict[str, Any]:
    """A head's destination token, the source token that it attends to most from there, and with which weight."""
    peak = int(example.activations.argmax())
    return {
        "destination": example.tokens[peak],
        "source": example.tokens[attended.position] if attended.position >= 0 else "BOS",
        "source_position": attended.position,
        "back": peak - attended.position,
        "weight": round(attended.weight, 3),
    }
