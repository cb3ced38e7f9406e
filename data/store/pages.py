"""Pages of features in Neuronpedia's JSON, a file each, as its API gives them at /api/feature/MODEL/LAYER/INDEX.

    activations   windows: tokens, values, the extremes and where they are, and the part of the sample they stand for
                  (binMin and binMax, its range of peaks, binContains, its share); the strongest have -1, peak and -1
    freq_hist     the positive activations of the corpus in BARS even bars, each by its middle and its tokens; they are
                  made of finer, log-spaced counts, so that a bar is right to within what one of these holds
    logits_hist   what the feature adds to the logit of each token of the vocabulary, in as many bars
    pos_, neg_    the tokens that it raises and lowers the most
    frac_nonzero  the share of the corpus's tokens on which it is above zero

`import --evidence` reads the windows of such a page, and `import` its explanations. Numbers have DIGITS decimals, as
much as the format's other writers give. The negative tail has no page there.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np

from ...subject.address import Feature, SourceId
from ...subject.directions import LogitEffects
from ..harvest.histogram import count_above
from ..records import Statistics
from .database import Row
from .export import EFFECTS, Place, explanation_line, places, upload_windows, write_file
from .listing import Conditions
from .store import Store

BARS, DIGITS = 50, 4


class Pages(NamedTuple):
    """The files for one source."""

    paths: list[Path]
    silent: list[Feature]
    """Features that are left out, because no stored window activates them."""


def write_pages(
    store: Store,
    folder: str | Path,
    source: SourceId,
    *,
    effects: Callable[[Feature], LogitEffects],
    model: str | None = None,
    **conditions: Unpack[Conditions],
) -> Pages:
    """Write `MODEL/LAYER/INDEX.json` for each feature of a source that the conditions leave, explained or not.

    `effects` returns what a feature does to the logits; `model` replaces the modelId.
    """
    place, pages = places(store, [source], model=model)[source], Pages([], [])
    for row in store.iterate_rows(source, **conditions):
        feature = Feature.parse(str(row["feature"]))
        if feature.negative:
            continue
        if (page := feature_page(store, feature, place, effects(feature))) is None:
            pages.silent.append(feature)
            continue
        path = Path(folder) / place.model / place.layer / f"{feature.index}.json"
        write_file(path, json.dumps(page, ensure_ascii=False, allow_nan=False).encode())
        pages.paths.append(path)
    return pages


def feature_page(store: Store, feature: Feature, place: Place, effects: LogitEffects) -> Row | None:
    """The page of one feature; None where no stored window activates it."""
    evidence = store.evidence(feature)
    windows = [_window(window, place, str(feature.index)) for window in upload_windows(evidence)]
    if not windows:
        return None
    frequency, statistics = _frequencies(evidence.statistics), evidence.statistics
    return {
        "modelId": place.model,
        "layer": place.layer,
        "index": str(feature.index),
        "maxActApprox": round(statistics.peak, DIGITS),
        "frac_nonzero": statistics.density,
        "pos_str": [effect.token for effect in effects.promoted.top[:EFFECTS]],
        "pos_values": _round(effect.value for effect in effects.promoted.top[:EFFECTS]),
        "neg_str": [effect.token for effect in effects.promoted.bottom[:EFFECTS]],
        "neg_values": _round(effect.value for effect in effects.promoted.bottom[:EFFECTS]),
        "freq_hist_data_bar_heights": frequency.heights,
        "freq_hist_data_bar_values": frequency.values,
        "logits_hist_data_bar_heights": effects.heights,
        "logits_hist_data_bar_values": _round(effects.values),
        "activations": windows,
        "explanations": list(_explanations(store, feature, place)),
    }


def _explanations(store: Store, feature: Feature, place: Place) -> Iterator[Row]:
    for stored in store.explanations(feature):
        explanation = stored.explanation
        if explanation.text is not None and not explanation.feature.negative:
            yield explanation_line(stored, place)


def _window(window: Row, place: Place, index: str) -> Row:
    values = window["values"]
    strongest = window["quantileFraction"] is None
    return {
        "modelId": place.model,
        "layer": place.layer,
        "index": index,
        "tokens": window["tokens"],
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": values.index(max(values)),
        "minValue": min(values),
        "binMin": -1 if strongest else window["quantileMin"],
        "binMax": max(values) if strongest else window["quantileMax"],
        "binContains": -1 if strongest else round(window["quantileFraction"], DIGITS),
    }


class _Bars(NamedTuple):
    heights: list[float]
    values: list[float]
    """The middle of each bar."""


def _frequencies(statistics: Statistics) -> _Bars:
    """Tokens with a positive activation in even bars up to the peak; none of a feature without any."""
    if not any(statistics.histogram) or statistics.peak <= 0:
        return _Bars([], [])
    edges = np.linspace(0, statistics.peak, BARS + 1)
    above = [float(sum(statistics.histogram)), *(count_above(statistics.histogram, edge) for edge in edges[1:-1]), 0.0]
    return _Bars(_round(-np.diff(above)), _round((edges[1:] + edges[:-1]) / 2))


def _round(numbers: Iterable[float]) -> list[float]:
    return [round(float(number), DIGITS) for number in numbers]
