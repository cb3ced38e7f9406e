"""Bodies for Neuronpedia's POST /api/feature/upload-batch, in which users bring features to sources of their own.

A body obeys the limits that hold there: at most 128 features, texts of 512 characters (as JavaScript counts,
in UTF-16 units), windows of 1024 tokens, 20 promoted and 20 suppressed tokens, and at least one window that
activates the feature. Windows come in sections: the strongest ones, which are no quantile, and four even
parts, by peak, of the uniform sample of active windows, so that a part's share of the sample estimates its
share of all active windows. The explainer's model is left null, since there is no column for it.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..subject.address import Feature, SourceId
from ..subject.directions import Promoted, TokenEffect
from .export import Place, explained, write_file
from .records import Evidence, Example, Statistics
from .rows import Row
from .store import Store

FEATURES, TEXT, TOKENS, EFFECTS = 128, 512, 1024, 20
"""The most that a body, a text, a window and a list of tokens may hold."""
_SECTIONS = 4
_TOP, _PER_SECTION = 20, 5
"""Windows given of the strongest, and of each part of the sample."""


class Uploads(NamedTuple):
    """The files for one source."""

    paths: list[Path]
    shortened: list[Feature]
    """Features whose text was too long."""
    silent: list[Feature]
    """Features that are explained and left out, because no stored window activates them."""


def write_uploads(
    store: Store, folder: str | Path, source: SourceId, *, promoted: Callable[[Feature], Promoted],
    model: str | None = None, method: str | None = None, min_score: float | None = None,
) -> Uploads:  # fmt: skip
    """Write `MODEL/LAYER/upload-N.json`: the explained features of a source, not its negative tails.

    `promoted` tells the tokens that a feature writes; `method` is a name of an explainer that Neuronpedia knows.
    """
    place = Place.of(source, model=model)
    found = Uploads([], [], [])
    batch: list[Row] = []

    def flush() -> None:
        path = Path(folder) / place.model / place.layer / f"upload-{len(found.paths)}.json"
        body = {"modelId": place.model, "source": place.layer, "features": batch}
        write_file(path, json.dumps(body, ensure_ascii=False, allow_nan=False).encode())
        found.paths.append(path)
        batch.clear()

    for stored in explained(store, source, min_score=min_score):
        feature, text = stored.explanation.feature, str(stored.explanation.text)
        evidence = store.evidence(feature)
        if not (windows := _windows(evidence)):
            found.silent.append(feature)
            continue
        if shortened(text) != text:
            found.shortened.append(feature)
        batch.append(_feature(evidence.statistics, feature, windows, promoted(feature), shortened(text), method))
        if len(batch) == FEATURES:
            flush()
    if batch:
        flush()
    return found


def _feature(
    statistics: Statistics, feature: Feature, windows: Sequence[Row], effects: Promoted, text: str, method: str | None
) -> Row:
    return {
        "index": feature.index,
        "density": statistics.density,
        "topLogits": _effects(effects.top),
        "bottomLogits": _effects(effects.bottom),
        "explanations": [{"text": text, "methodName": method, "modelName": None}],
        "activations": list(windows),
    }


def _effects(effects: Sequence[TokenEffect]) -> list[Row]:
    return [{"token": effect.token, "value": round(effect.value, 4)} for effect in effects[:EFFECTS]]


def _windows(evidence: Evidence) -> list[Row]:
    """Windows that activate the feature, the strongest of each section first."""
    examples = [e for e in (*evidence.train, *evidence.select, *evidence.holdout) if e.peak > 0]
    examples.sort(key=lambda example: (-example.peak, example.window))
    top = [example for example in examples if example.kind == "top"][:_TOP]
    sample = [example for example in examples if example.kind == "quantile"]
    return [_window(example, None, None, None) for example in top] + [
        _window(example, round(part[-1].peak, 4), round(part[0].peak, 4), len(part) / len(sample))
        for part in _parts(sample)
        for example in part[:_PER_SECTION]
    ]


def _parts(sample: Sequence[Example]) -> Iterator[Sequence[Example]]:
    ends = [round(number * len(sample) / _SECTIONS) for number in range(_SECTIONS + 1)]
    return (sample[first:last] for first, last in zip(ends, ends[1:], strict=False) if first < last)


def _window(example: Example, low: float | None, high: float | None, share: float | None) -> Row:
    """At most TOKENS of the window, around its peak."""
    first = max(0, min(int(example.activations.argmax()) - TOKENS // 2, len(example.tokens) - TOKENS))
    return {
        "tokens": list(example.tokens[first : first + TOKENS]),
        "values": [round(value, 4) for value in example.activations[first : first + TOKENS].tolist()],
        "quantileMin": low,
        "quantileMax": high,
        "quantileFraction": share,
    }


def shortened(text: str) -> str:
    """The text, cut after a word and ended with an ellipsis where it has more than TEXT characters."""
    if _units(text) <= TEXT:
        return text
    kept = text[: TEXT - 1]
    while _units(kept) > TEXT - 1:
        kept = kept[:-1]
    words = re.match(r"(.*\S)\s", text[: len(kept) + 1], re.DOTALL)
    return (words[1] if words else kept) + "…"


def _units(text: str) -> int:
    """Characters as JavaScript counts them."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
