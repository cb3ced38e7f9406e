"""What an explanation must beat, learned from the same training side as the explanation itself.

token_rule: the best rule that names one token and its mean activation. token_table: the mean activation
of every token of the vocabulary, the ceiling of what can be said without context. other_rule: another
feature's rule, which shows what a score is worth that any rule would get.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..explainers.batch import TrainBatch, TrainEvidence
from ..explainers.rules import Rule


@dataclass(frozen=True, slots=True)
class Baselines:
    """The baselines' predictions for one feature."""

    token_rule: NDArray[np.float32]
    token_table: NDArray[np.float32]
    """Predicted activation by token id, both (vocabulary,)."""
    other_rule: Rule | None
    """None where no other feature of the batch was explained."""


def token_baselines(evidence: TrainEvidence, batch: TrainBatch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(token_rule, token_table) from the background and the training examples, every token counted once."""
    size = len(batch.vocabulary)
    natural = [e for e in {e.window: e for e in evidence.examples}.values() if e.kind != "bottom"]
    ids = np.concatenate([batch.background.ids.ravel(), *(e.ids for e in natural)])
    activations = np.concatenate([evidence.background.ravel(), *(e.activations for e in natural)]).astype(np.float64)
    mean = float(activations.mean())
    counts = np.bincount(ids, minlength=size)
    sums = np.bincount(ids, activations - mean, minlength=size)
    table = mean + sums / np.maximum(counts, 1)
    best = int(np.argmax(np.where(sums > 0, sums**2 / np.maximum(counts, 1), -1)))
    rest = (activations.sum() - counts[best] * table[best]) / max(len(ids) - counts[best], 1)
    rule = np.full(size, rest)
    rule[best] = table[best]
    return rule.astype(np.float32), table.astype(np.float32)
