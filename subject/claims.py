"""Claims about the sites of a loaded model: equations whose measured error refuses the sites that they are about."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 8
"""Allowed relative error, in units of the dtype's machine epsilon."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An equation that holds where the architecture table is right."""

    text: str
    sites: tuple[str, ...]
    """The sites that are refused where the claim fails."""
    error: Callable[[], float]
    """Measures the relative error; raises KeyError where a site it needs was not recorded."""

    def find_failure(self, tolerance: float) -> str | None:
        """Why the claim does not hold; None where its error is within the tolerance."""
        try:
            error = self.error()
        except KeyError as missing:
            return f"{self.text} cannot be checked without {missing.args[0]}"
        except RuntimeError as mismatch:
            return f"{self.text} cannot be computed: {str(mismatch).splitlines()[0]}"
        # Written so that a NaN fails.
        return None if error <= tolerance else f"{self.text} is off by {error:.2g} (allowed {tolerance:.2g})"


def distance(measured: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value wanted."""
    if measured.shape != wanted.shape:
        raise RuntimeError(f"shape {tuple(measured.shape)}, wanted {tuple(wanted.shape)}")
    return float((measured.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp_min(1e-30))


def sum_error(terms: list[Tensor], total: Tensor) -> float:
    """Largest difference of a coordinate, relative to the sizes of that coordinate's own terms."""
    parts = torch.stack([*(term.float() for term in terms), -total.float()])
    return float((parts.sum(0).abs() / parts.abs().sum(0).clamp_min(1e-30)).max())
