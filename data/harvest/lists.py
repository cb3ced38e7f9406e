"""Bounded lists of examples: for each feature and split, the k best windows seen so far.

An entry is (score, uid, group, activations). Better is the higher score, then the lower uid; of one
group (a cluster of near-duplicate documents, or the window itself) only the best entry stays. What
is kept depends on the set of offers alone, never on their order, so lists of two shards merge by
offering one's entries to the other. The memory is fixed: nothing grows with the corpus.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_UID = np.iinfo(np.int64).max
_DRAINED = 256
"""Features whose entries are put in order at once."""


class Entries(NamedTuple):
    """Entries of lists, sorted by feature, split, then best first."""

    features: NDArray[np.int64]
    """Shape (entry,)."""
    uid: NDArray[np.int64]
    """Shape (entry,)."""
    activations: NDArray[np.float16]
    """Shape (entry, position)."""


@dataclass(slots=True)
class Lists:
    """The lists of all features of one source. K is the sum of the three splits' capacities."""

    score: NDArray[np.float32]
    """Shape (F, K); -inf where empty."""
    uid: NDArray[np.int64]
    """Shape (F, K); NO_UID where empty."""
    group: NDArray[np.int64]
    """Shape (F, K); -1 where empty."""
    activations: NDArray[np.float16]
    """Shape (F, K, position); beyond float16's range they are its largest number."""
    worst: NDArray[np.float32]
    """The score to beat per feature and split, shape (F, 3), the features of a split one after the other in memory."""
    offsets: NDArray[np.int64]
    """Where each split's entries begin and end along K, shape (4,)."""

    @classmethod
    def empty(cls, width: int, positions: int, capacities: tuple[int, int, int]) -> "Lists":
        """Empty lists of `capacities` entries in (train, select, holdout)."""
        k = sum(capacities)
        return cls(
            score=np.full((width, k), -np.inf, np.float32),
            uid=np.full((width, k), NO_UID, np.int64),
            group=np.full((width, k), -1, np.int64),
            activations=np.zeros((width, k, positions), np.float16),
            worst=np.full((3, width), -np.inf, np.float32).T,
            offsets=np.concatenate([[0], np.cumsum(capacities)]).astype(np.int64),
        )

    def offer(
        self,
        features: NDArray[np.int64],
        splits: NDArray[np.int64],
        scores: NDArray[np.float32],
        uids: NDArray[np.int64],
        groups: NDArray[np.int64],
        activations: NDArray[np.float16],
    ) -> None:
        """Offer candidates, all arrays of shape (candidate,), activations (candidate, position)."""
        for split in range(3):
            chosen = splits == split
            if chosen.any() and self.offsets[split] < self.offsets[split + 1]:
                self._offer_split(
                    split,
                    features=features[chosen],
                    scores=scores[chosen],
                    uids=uids[chosen],
                    groups=groups[chosen],
                    activations=activations[chosen],
                )

    def _offer_split(
        self,
        split: int,
        features: NDArray[np.int64],
        scores: NDArray[np.float32],
        uids: NDArray[np.int64],
        groups: NDArray[np.int64],
        activations: NDArray[np.float16],
    ) -> None:
        """Offer candidates of one split."""
        span = slice(int(self.offsets[split]), int(self.offsets[split + 1]))
        capacity = span.stop - span.start
        changed, rows = np.unique(features, return_inverse=True)
        old_rows = np.repeat(np.arange(len(changed)), capacity)
        row = np.concatenate([old_rows, rows])
        score = np.concatenate([self.score[changed, span].ravel(), scores])
        uid = np.concatenate([self.uid[changed, span].ravel(), uids])
        group = np.concatenate([self.group[changed, span].ravel(), groups])
        best = _best(row, score, uid, group, capacity)
        rank = np.arange(len(best)) - np.searchsorted(row[best], row[best])
        at = (changed[row[best]], span.start + rank)
        # Old activations are read before any slot is overwritten: an entry may move within its row.
        values = np.empty((len(best), self.activations.shape[2]), np.float16)
        is_old = best < len(old_rows)
        values[is_old] = self.activations[changed, span].reshape(len(old_rows), -1)[best[is_old]]
        values[~is_old] = activations[best[~is_old] - len(old_rows)]
        self.score[changed, span], self.uid[changed, span], self.group[changed, span] = -np.inf, NO_UID, -1
        self.activations[changed, span] = 0
        self.score[at], self.uid[at], self.group[at], self.activations[at] = score[best], uid[best], group[best], values
        self.worst[changed, split] = self.score[changed, span].min(axis=1)

    def absorb(self, other: "Lists") -> None:
        """Offer every entry of another shard's lists."""
        for split in range(3):
            span = slice(int(self.offsets[split]), int(self.offsets[split + 1]))
            feature, rank = np.nonzero(other.uid[:, span] != NO_UID)
            at = (feature, span.start + rank)
            if len(feature):
                self._offer_split(
                    split,
                    features=feature,
                    scores=other.score[at],
                    uids=other.uid[at],
                    groups=other.group[at],
                    activations=other.activations[at],
                )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays themselves, by name: what a checkpoint holds."""
        return {
            "score": self.score,
            "uid": self.uid,
            "group": self.group,
            "activations": self.activations,
            "worst": self.worst,
            "offsets": self.offsets,
        }

    def ordered(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All entries as (feature, slot) index arrays, sorted by feature, split, then best first."""
        feature, slot = np.nonzero(self.uid != NO_UID)
        split = np.searchsorted(self.offsets, slot, side="right")
        order = np.lexsort((self.uid[feature, slot], -self.score[feature, slot], split, feature))
        return feature[order], slot[order]

    def drain(self) -> "Entries":
        """All entries, ordered, in the memory of the lists, which are of no feature afterwards.

        A copy would double what a harvest of many features needs.
        """
        feature, slot = self.ordered()
        uid, (width, capacity, positions) = self.uid[feature, slot], self.activations.shape
        rows, at = self.activations.reshape(-1, positions), feature * capacity + slot
        # Whole features at a time: these never move beyond where they were, so what comes later is not overwritten.
        edges = np.searchsorted(feature, np.arange(0, width + _DRAINED, _DRAINED))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            rows[start:stop] = rows[at[start:stop]]
        self.score, self.uid, self.group = self.score[:0], self.uid[:0], self.group[:0]
        self.activations, self.worst = self.activations[:0], self.worst[:0]
        return Entries(feature, uid, rows[: len(feature)])


def _best(
    row: NDArray[np.int64], score: NDArray[np.float32], uid: NDArray[np.int64], group: NDArray[np.int64], capacity: int
) -> NDArray[np.int64]:
    """Indices of the best `capacity` entries of each row, one per group, sorted by row, best first."""
    order = np.lexsort((uid, -score, row))
    order = order[uid[order] != NO_UID]
    by_group = order[np.lexsort((np.arange(len(order)), group[order], row[order]))]
    fresh = np.ones(len(by_group), bool)
    fresh[1:] = (row[by_group][1:] != row[by_group][:-1]) | (group[by_group][1:] != group[by_group][:-1])
    distinct = np.zeros(len(row), bool)
    distinct[by_group[fresh]] = True
    order = order[distinct[order]]
    return order[np.arange(len(order)) - np.searchsorted(row[order], row[order]) < capacity]
