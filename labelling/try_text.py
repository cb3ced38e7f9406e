"""How a feature and its rule take a text of one's own: what `try` prints."""

from typing import Any

import numpy as np

from ..data.harvest.activations import read_columns
from ..data.store.store import Store
from ..rules.evaluate import simulate
from ..rules.language import parse_rule
from ..subject.address import Feature
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .harvested import open_stored


def try_text(
    text: str, feature: Feature, store: Store, subject: Subject, *, source: Source | None = None
) -> dict[str, Any]:
    """Run one text and lay what the best explanation's rule predicts beside what the feature does.

    Returns `text`, `tokens`, `actual` and `predicted`, by token and in the source's units; `predicted` is None where
    there is no rule. `source` is one that is open already. Raises NeuronautError for a text without tokens.

    >>> row = try_text("import os", Feature.parse("demo:mlp.1:17"), store, subject)
    >>> len(row["tokens"]) == len(row["actual"]) == len(row["predicted"])
    True
    """
    source = source or open_stored(store, subject, feature.source)
    best = store.best(feature)
    ids = subject.encode(text)
    if not ids:
        raise NeuronautError(f"the text {text!r} has no tokens; give some words")
    tokens = subject.decode_tokens(ids)
    actual = read_columns(subject, source, np.array([ids]), [feature.index])[0, :, 0]
    rule = parse_rule(best.explanation.rule) if best and best.explanation.rule else None
    return {
        "text": text,
        "tokens": list(tokens),
        "actual": (-actual if feature.negative else actual).tolist(),
        "predicted": None if rule is None else simulate(rule, tokens),
    }
