"""Small harvests whose content is known, for the tests of the store."""

import numpy as np

from neuronaut.data.records import ExampleList, Explanation, HarvestResult, Score, SourceResult, TokenCounts
from neuronaut.subject.address import Feature, SourceId

POSITIONS = 16
WINDOWS = 12


def windows(seed: int = 0) -> np.ndarray:
    """Twelve windows of random tokens."""
    return np.random.default_rng(seed).integers(0, 100, (WINDOWS, POSITIONS)).astype(np.int32)


def harvest_result(
    *names: str,
    width: int = 5,
    seed: int = 0,
    ids: np.ndarray | None = None,
    documents: tuple[str, ...] | None = None,
    dead: tuple[int, ...] = (),
    tokens: int = 1000,
    revision: str = "",
) -> HarvestResult:
    """A harvest in which windows 0-3 are train, 4-7 select and 8-11 holdout, each of its own document.

    Feature f's top windows are all but window f, and its activation at window w, position p is
    f + w / 16 + (p == f) (above zero only at position f for sources named `...@sparse`).
    """
    names = names or ("demo:mlp.2",)
    return HarvestResult(
        model=names[0].split(":")[0],
        revision="weights-1",
        corpus="planted",
        tokens=tokens,
        counts=TokenCounts(tokens, 0, 0),
        window=POSITIONS,
        windows=windows(seed) if ids is None else ids,
        splits=np.repeat([0, 1, 2], 4).astype(np.int8),
        documents=documents or tuple(f"doc-{seed}-{i}" for i in range(WINDOWS)),
        pool=np.arange(WINDOWS) % 4 == 0,
        vocabulary=tuple(f" t{i}" for i in range(100)),
        sources=tuple(source_result(name, width, dead, revision, tokens) for name in names),
        provenance={"seed": seed},
    )


def source_result(name: str, width: int, dead: tuple[int, ...], revision: str, tokens: int) -> SourceResult:
    """The source of `harvest_result`."""
    alive = np.array([feature not in dead for feature in range(width)])
    return SourceResult(
        source=name,
        kind="dictionary" if "@" in name else "neurons",
        width=width,
        signed="@" not in name,
        revision=revision,
        tokens=tokens,
        count=np.where(alive, np.arange(width) + 10, 0),
        mean=np.linspace(0, 1, width),
        peak=np.where(alive, np.arange(width) + 1, 0).astype(np.float32),
        trough=np.where(alive, -np.arange(width) - 2, 0).astype(np.float32),
        histogram=np.arange(width * 64).reshape(width, 64),
        lists={"top": examples(width, dead, 1.0, "sparse" in name), "bottom": examples(width, dead, -1.0, False)},
    )


def examples(width: int, dead: tuple[int, ...], sign: float, sparse: bool) -> ExampleList:
    """The examples of `harvest_result`, times a sign."""
    pairs = [(f, w) for f in range(width) if f not in dead for w in range(WINDOWS) if w != f]
    features, rows = np.array(pairs, np.int32).reshape(-1, 2).T
    peaks = np.arange(POSITIONS) == features[:, None]
    activations = peaks * 2.5 if sparse else features[:, None] + rows[:, None] / 16 + peaks
    return ExampleList(features, rows, (sign * activations).astype(np.float16))


def explanation(
    index: int = 1,
    text: str | None = "fires on ` self`",
    *,
    source: str = "demo:mlp.2",
    key: str = "k",
    explainer: str = "rule",
    seen: tuple[str, ...] = (),
    status: str = "explained",
    negative: bool = False,
) -> Explanation:
    """An explanation of one feature."""
    return Explanation(
        Feature(SourceId.parse(source), index, negative),
        text,
        explainer,
        seen=seen,
        provenance={"key": key},
        reason=None if text is not None else f"{status}: planted",
        status=status,
    )


def score(
    value: float | None = 0.5,
    *,
    windows: tuple[str, ...] = (),
    metric: str = "correlation",
    scorer: str = "simulation",
    baselines: dict[str, float | None] | None = None,
) -> Score:
    """A score of the headline kind."""
    return Score(
        scorer,
        "top_random",
        metric,
        value,
        reason=None if value is not None else "refused",
        n=8,
        ci_low=None if value is None else value - 0.1,
        ci_high=None if value is None else value + 0.1,
        baselines=baselines or {"token_rule": 0.2, "other_rule": None},
        windows=windows,
    )
