"""Writes a synthetic database of any size through the store: harvests, explanations, scores and vectors.

Sources have WIDTH features each. A text is a sentence of words drawn by Zipf's law, so that some words are in nearly
every text, most in few. Vectors are of clusters in a space of fewer dimensions with noise, as those of texts are.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..data.harvest.histogram import BINS
from ..data.records import ExampleList, Explanation, HarvestResult, Score, SourceResult, TokenCounts
from ..data.store.store import Store
from ..subject.address import Feature, SourceId

WIDTH = 62_500
WINDOWS, POSITIONS, TOP = 20_000, 32, 20
"""Windows of a model, tokens in each, and top examples of a feature."""
VOCABULARY = 20_000
DIMENSIONS = 384
MODEL = "synthetic"
EMBEDDER = "synthetic-vectors"
_CLUSTERS, _RANK = 2000, 64
_ABSTAINED, _DEAD, _SECOND = 0.02, 0.01, 0.1
"""Shares of features without a text, of those that never fire, and of those with a second explanation."""
_TRANSACTION = 20_000


def write_database(store: Store, features: int, *, seed: int = 0) -> None:
    """Harvest `features` features into the store, and explain and score each."""
    for number, first in enumerate(range(0, features, WIDTH)):
        source = SourceId(MODEL, f"resid_post.{number}", "sae")
        width = min(WIDTH, features - first)
        store.write_harvest(make_harvest(source, width, seed=seed + number))
        labels = make_labels(source, width, seed=seed + number)
        while chunk := [label for _, label in zip(range(_TRANSACTION), labels, strict=False)]:
            with store.transaction():
                for explanation, scores in chunk:
                    store.add_result(explanation, scores)


def make_harvest(source: SourceId, width: int, *, seed: int) -> HarvestResult:
    """A harvest of one source; all of a model share their windows."""
    shared, rng = np.random.default_rng(0), np.random.default_rng(seed)
    dead = rng.random(width) < _DEAD
    alive = np.flatnonzero(~dead).astype(np.int32)
    # Neighbours share windows, so that each feature resembles some others.
    near = (alive[:, None] // 8 * 977 + rng.integers(0, 40, (len(alive), TOP // 2))) % WINDOWS
    windows = np.concatenate([near, rng.integers(0, WINDOWS, (len(alive), TOP // 2))], axis=1).astype(np.int32)
    activations = np.zeros((len(alive) * TOP, POSITIONS), np.float16)
    activations[np.arange(len(activations)), rng.integers(0, POSITIONS, len(activations))] = 1 + rng.random(
        len(activations)
    )
    count = np.where(dead, 0, rng.zipf(1.5, width).clip(1, 500_000))
    peak = np.where(dead, 0, rng.gamma(2, 2, width) + 0.1).astype(np.float32)
    result = SourceResult(
        source=str(source),
        kind="dictionary",
        width=width,
        signed=False,
        revision="synthetic",
        tokens=1_000_000,
        count=count,
        mean=count * peak / 3e6,
        peak=peak,
        trough=np.zeros(width, np.float32),
        histogram=np.where(np.arange(BINS) == 40, count[:, None], 0),
        lists={"top": ExampleList(np.repeat(alive, TOP), windows.ravel(), activations)},
    )
    return HarvestResult(
        model=MODEL,
        revision="synthetic",
        corpus="synthetic",
        tokens=1_000_000,
        counts=TokenCounts(1_000_000, 0, 0),
        window=POSITIONS,
        windows=shared.integers(0, VOCABULARY, (WINDOWS, POSITIONS)).astype(np.int32),
        splits=(np.arange(WINDOWS) % 3).astype(np.int8),
        documents=tuple(f"document-{number}" for number in range(WINDOWS)),
        pool=np.arange(WINDOWS) % 100 == 0,
        vocabulary=tuple(f" {word}" for word in make_words(VOCABULARY)),
        sources=(result,),
        provenance={"seed": seed},
    )


def make_words(count: int) -> list[str]:
    """Words that can be said, each different."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    syllables = [c + v for c in consonants for v in vowels]
    size = len(syllables)
    return [
        syllables[n % size] + syllables[n // size % size] + (syllables[n // size**2] if n >= size**2 else "") + "x"
        for n in range(count)
    ]


def make_labels(source: SourceId, width: int, *, seed: int) -> Iterator[tuple[Explanation, Sequence[Score]]]:
    """An explanation of every feature with its scores, and of some a second one; some abstain."""
    rng, words = np.random.default_rng([1, seed]), np.array(make_words(VOCABULARY))
    drawn = (rng.zipf(1.3, (width, 16)) - 1) % VOCABULARY
    values, kinds = rng.beta(3, 2, (width, 2)) - 0.1, rng.random((width, 2))
    for index in range(width):
        feature, text = Feature(source, index), " ".join(words[drawn[index]])
        if kinds[index, 0] < _ABSTAINED:
            yield _label(feature, None), ()
            continue
        yield _label(feature, f"fires on {text}"), [_score(*values[index].tolist())]
        if kinds[index, 1] < _SECOND:
            yield _label(feature, f"responds to {text}", explainer="oneshot"), [_score(*values[index - 1].tolist())]


def _label(feature: Feature, text: str | None, *, explainer: str = "rule") -> Explanation:
    headline = None if text is None else " ".join(text.split()[:8])
    reason, status = ("no pattern", "no_pattern") if text is None else (None, "explained")
    provenance = {"key": explainer, "seed": 0, "versions": {"neuronaut": "synthetic"}}
    return Explanation(feature, text, explainer, reason=reason, status=status, headline=headline, provenance=provenance)


def _score(value: float, baseline: float) -> Score:
    return Score(
        "simulation",
        "top_random",
        "correlation",
        round(value, 4),
        ci_low=round(value - 0.1, 4),
        ci_high=round(value + 0.1, 4),
        n=24,
        baselines={"token_rule": round(0.8 * baseline, 4), "other_rule": 0.0},
        windows=("a", "b"),
        backend="rule",
        judge="code",
    )


def make_vectors(count: int, *, seed: int = 0, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Unit vectors, shape (count, dimensions)."""
    shared, rng = np.random.default_rng(0), np.random.default_rng([2, seed])
    centres = shared.standard_normal((_CLUSTERS, _RANK), np.float32)
    mixing = shared.standard_normal((_RANK, dimensions), np.float32) / np.sqrt(_RANK)
    inner = centres[rng.integers(0, _CLUSTERS, count)] + 0.7 * rng.standard_normal((count, _RANK), np.float32)
    vectors = inner @ mixing + 0.5 * rng.standard_normal((count, dimensions), np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
