"""Embedding: the explanation is compared with active and with silent excerpts by the cosine of their vectors.

The prediction is the cosine, moved so that the median over the excerpts, of which half are active, is at 0.5:
`(1 + (cosine - median) / 2) / 2`, fixed without looking at the truth. AUROC is the metric that counts. No language
model is asked. The excerpts are those of detection.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..data.records import Judgements, Role
from ..data.store.search import Embedder
from ..llm.prompt import Prompt
from ..llm.render import Excerpt
from .controls import ALL, Controls, judged_texts
from .detection import TOO_FEW, choose_detection_pairs
from .pairs import FEWEST, LENGTH, ExcerptPool
from .quiz import format_shortage
from .scorer import Case


class Embedding:
    """Compares explanations and excerpts as vectors. The role "empty" is the empty text's vector.

    >>> Embedding(Embedder("sentence-transformers/all-MiniLM-L6-v2")).name
    'embedding'
    """

    name = "embedding"
    examples = "windows"
    keeps_judgements = True
    compares = False
    prompts: tuple[Prompt, ...] = ()

    def __init__(self, embedder: Embedder, *, count: int = 10, seed: int = 0, controls: Controls = ALL) -> None:
        """`count` is the most pairs of an active and a silent excerpt."""
        self._embedder, self._count, self._seed, self._controls = embedder, count, seed, controls

    @property
    def settings(self) -> Mapping[str, object]:
        """All that, beside the case, determines a judgement."""
        return {**self._provenance, "controls": self._controls.mode, "version": 1}

    @property
    def _provenance(self) -> dict[str, object]:
        return {"embedder": self._embedder.model, "count": self._count, "length": LENGTH, "seed": self._seed}

    def judge(self, case: Case) -> list[Judgements]:
        """Judge the explanation and its controls; an explanation without text gets no judgement."""
        texts = judged_texts(case, controls=self._controls, nothing="")
        if not texts:
            return []
        pairs = choose_detection_pairs(ExcerptPool(case.holdout, seed=self._seed), count=self._count)
        if len(pairs) < FEWEST:
            return [self._judgements("explanation", [], np.empty(0, np.float32), format_shortage(len(pairs), TOO_FEW))]
        excerpts = [excerpt for pair in pairs for excerpt in pair.excerpts]
        vectors = self._embedder.embed([*("".join(excerpt.tokens) for excerpt in excerpts), *texts.values()])
        excerpt_vectors, explanation_vectors = vectors[: len(excerpts)], vectors[len(excerpts) :]
        return [
            self._judgements(role, excerpts, excerpt_vectors @ vector, {})
            for role, vector in zip(texts, explanation_vectors, strict=True)
        ]

    def _judgements(
        self, role: Role, excerpts: Sequence[Excerpt], cosines: NDArray[np.float32], missing: dict[str, int]
    ) -> Judgements:
        """Lay the cosines of excerpts, active and silent in turn, beside the truth."""
        true = np.arange(1, len(excerpts) + 1) % 2
        median = np.median(cosines) if len(cosines) else 0.0
        return Judgements(
            scorer=self.name,
            examples=self.examples,
            role=role,
            kind="class",
            true=true.astype(np.float32)[:, None],
            predicted=((1 + (cosines - median) / 2) / 2).astype(np.float32)[:, None],
            threshold=0.5,
            windows=tuple(excerpt.example.window for excerpt in excerpts),
            missing=missing,
            provenance=self._provenance,
        )
