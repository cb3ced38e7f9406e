"""A table of bigrams, for orientation: what two tokens of context are worth, whatever it takes to say it.

The mean activation of every (previous token, token) that the training side holds, drawn towards the token
table where it was seen rarely. It is as long as the corpus is wide, so it is no explanation.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..explainers.batch import TrainBatch, TrainEvidence
from ..scorers.holdout import ScoredWindows

BACK_OFF = 2.0
"""Occurrences with which a bigram's mean is drawn towards its token's."""


class Bigrams(NamedTuple):
    """Mean activation by (previous token, token), backing off to the token alone."""

    keys: NDArray[np.int64]
    """Sorted, previous * (V + 1) + token; V as the previous token is the start of a window."""
    values: NDArray[np.float64]
    table: NDArray[np.float32]
    """By token, (V,)."""

    @classmethod
    def of(cls, evidence: TrainEvidence, batch: TrainBatch, table: NDArray[np.float32]) -> "Bigrams":
        """From the background and the training examples, each window once: what the token table is made from."""
        natural = [e for e in {e.window: e for e in evidence.examples}.values() if e.kind != "bottom"]
        ids = np.concatenate([batch.background.ids, *(e.ids[None] for e in natural)])
        activations = np.concatenate([evidence.background, *(e.activations[None] for e in natural)]).ravel()
        keys, at = np.unique(_pairs(ids, len(table)), return_inverse=True)
        residual = np.bincount(at.ravel(), activations - table[ids.ravel()])
        return cls(keys, residual / (np.bincount(at.ravel()) + BACK_OFF), table)

    def predict(self, windows: ScoredWindows) -> NDArray[np.float32]:
        """Predictions at the scored tokens, (unit, token)."""
        wanted = _pairs(windows.ids, len(self.table))
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        known = np.where(self.keys[at] == wanted, self.values[at], 0.0)
        return windows.at((self.table[windows.ids] + known).astype(np.float32))


def _pairs(ids: NDArray[np.integer], size: int) -> NDArray[np.int64]:
    before = np.full(ids.shape, size, np.int64)
    before[:, 1:] = ids[:, :-1]
    return before * (size + 1) + ids
