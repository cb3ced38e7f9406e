"""Claims about the sites of a loaded model: equations whose measured error refuses the sites that they are about."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 8
"""Allowed relative error, in units of the dtype's machine epsilon."""


class Check(NamedTuple):
    """One claim, measured."""

    claim: str
    sites: tuple[str, ...]
    """The sites that stand or fall with it."""
    error: float | None
    """Relative error; None where it could not be measured."""
    allowed: float
    failure: str | None
    """What is wrong, in words; None where the claim holds."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An equation that holds where the architecture table is right."""

    text: str
    sites: tuple[str, ...]
    """The sites that are refused where the claim fails."""
    error: Callable[[], float]
    """Measures the relative error; raises KeyError where a site it needs was not recorded."""

    def check(self, tolerance: float) -> Check:
        """Measure the error; the claim holds where it is within the tolerance."""
        error, failure = None, None
        try:
            error = self.error()
        except KeyError as missing:
            failure = f"{self.text} cannot be checked without {missing.args[0]}"
        # Modules that are not there raise AttributeError, those that want more than vectors TypeError.
        except (RuntimeError, AttributeError, TypeError) as mismatch:
            failure = f"{self.text} cannot be computed: {str(mismatch).splitlines()[0]}"
        # Written so that a NaN fails.
        if error is not None and not error <= tolerance:
            failure = f"{self.text} is off by {error:.2g} (allowed {tolerance:.2g})"
        return Check(self.text, self.sites, error, tolerance, failure)


def distance(measured: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value wanted."""
    if measured.shape != wanted.shape:
        raise RuntimeError(f"shape {tuple(measured.shape)}, wanted {tuple(wanted.shape)}")
    return float((measured.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp_min(1e-30))


def sum_error(terms: list[Tensor], total: Tensor) -> float:
    """Largest difference of a coordinate, relative to the sizes of that coordinate's own terms."""
    parts = torch.stack([*(term.float() for term in terms), -total.float()])
    return float((parts.sum(0).abs() / parts.abs().sum(0).clamp_min(1e-30)).max())
