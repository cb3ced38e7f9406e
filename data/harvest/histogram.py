"""Log-spaced histograms of activations: 64 bins, two per octave, from 2**-16 to 2**16.

The bin is read off the float's bits (exponent and first mantissa bit), so counting is exact, cheap
and mergeable by addition. The first bin also holds what lies below, the last what lies above.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 64
_LOWEST_EXPONENT = -16


def edges() -> NDArray[np.float64]:
    """The BINS + 1 edges, ascending: 2**e and 1.5 * 2**e for e from -16 to 15, then 2**16."""
    octaves = 2.0 ** np.arange(_LOWEST_EXPONENT, _LOWEST_EXPONENT + BINS // 2)
    return np.append(np.stack([octaves, 1.5 * octaves], axis=1).ravel(), 2.0 ** (_LOWEST_EXPONENT + BINS // 2))


def bins(activations: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each positive activation, any shape."""
    raw = (activations.view(np.int32) >> 22).astype(np.int64) - (127 + _LOWEST_EXPONENT) * 2
    return raw.clip(0, BINS - 1)


def count_above(histogram: Sequence[int], threshold: float) -> float:
    """Tokens with a positive activation above a threshold, to within a bin: the one it lies in is cut by logarithm."""
    low, high = np.log2(edges()[:-1]), np.log2(edges()[1:])
    shares = ((high - np.log2(threshold)) / (high - low)).clip(0, 1)
    return float(np.asarray(histogram) @ shares)


def quantile(histogram: NDArray[np.int64], q: float) -> float | None:
    """The q-quantile of the positive activations, to within a bin; None where there are none."""
    total = int(histogram.sum())
    if total == 0:
        return None
    index = int(np.searchsorted(np.cumsum(histogram), q * total))
    low, high = edges()[index], edges()[index + 1]
    return float((low * high) ** 0.5)
