"""Embedding: how near in meaning is the explanation to excerpts in which the feature fires, and to silent ones?

The prediction is the cosine between the explanation's vector and the excerpt's, moved so that the median over the
excerpts, of which half are active, is at 0.5: `(1 + (cosine - median) / 2) / 2`, fixed without looking at the
truth. AUROC is what counts. No language model is asked. The excerpts are those of detection.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..data.records import Judgements, Role
from ..data.store.search import Embedder
from ..llm.prompt import Prompt
from ..llm.render import Excerpt
from .detection import TOO_FEW, detectable
from .judge import shortage, wordings
from .pairs import FEWEST, LENGTH, Ground
from .scorer import Case


class Embedding:
    """Compares explanations and excerpts as vectors. The role "empty" is the empty text's vector."""

    name = "embedding"
    examples = "windows"
    stored = True
    prompts: tuple[Prompt, ...] = ()

    def __init__(self, embedder: Embedder, *, count: int = 10, seed: int = 0, controls: bool = True) -> None:
        """`count` pairs of an active and a silent excerpt at most."""
        self._embedder, self._count, self._seed, self._controls = embedder, count, seed, controls

    @property
    def settings(self) -> Mapping[str, object]:
        """What, beside the case, determines a judgement."""
        return {**self._made, "controls": self._controls, "version": 1}

    @property
    def _made(self) -> dict[str, object]:
        return {"embedder": self._embedder.model, "count": self._count, "length": LENGTH, "seed": self._seed}

    def judge(self, case: Case) -> list[Judgements]:
        """Judgements of the explanation and of its controls; none of an explanation without text."""
        texts = wordings(case, controls=self._controls, nothing="")
        if not texts:
            return []
        found = detectable(Ground(case.holdout, seed=self._seed), count=self._count)
        if len(found) < FEWEST:
            return [self._judgements("explanation", [], np.empty(0, np.float32), shortage(len(found), TOO_FEW))]
        parts = [part for pair in found for part in pair.excerpts]
        vectors = self._embedder.embed([*("".join(part.tokens) for part in parts), *texts.values()])
        excerpts, explanations = vectors[: len(parts)], vectors[len(parts) :]
        return [
            self._judgements(role, parts, excerpts @ vector, {})
            for role, vector in zip(texts, explanations, strict=True)
        ]

    def _judgements(
        self, role: Role, parts: Sequence[Excerpt], cosines: NDArray[np.float32], missing: dict[str, int]
    ) -> Judgements:
        """Of excerpts that are active and silent in turn."""
        true = np.arange(1, len(parts) + 1) % 2
        middle = np.median(cosines) if len(cosines) else 0.0
        return Judgements(
            scorer=self.name,
            examples=self.examples,
            role=role,
            kind="class",
            true=true.astype(np.float32)[:, None],
            predicted=((1 + (cosines - middle) / 2) / 2).astype(np.float32)[:, None],
            threshold=0.5,
            windows=tuple(part.example.window for part in parts),
            missing=missing,
            provenance=self._made,
        )
