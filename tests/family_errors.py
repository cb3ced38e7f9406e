"""Prints what a tiny random model of each family holds of the architecture table's claims, with the largest error.

    python -m tests.family_errors [FAMILY...]

Without names, every family of the table. Another name of transformers is discovered first; it says so.
"""

import sys
from collections.abc import Sequence

import click
from transformers.utils import logging

from neuronaut.subject.architecture import ARCHITECTURES
from neuronaut.subject.conformance import Conformance, prove
from neuronaut.subject.discovery import discover
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import join_sites
from tests.encoders import ENCODERS, tiny_encoder
from tests.test_architectures import _GROUPED, CONFIGS, tiny


def measure(family: str) -> Conformance:
    """The claims of one family's model. Raises NeuronautError where no row can be found."""
    CONFIGS.setdefault(family, _GROUPED)
    model = tiny_encoder(family) if family in ENCODERS else tiny(family)
    return prove(model, ARCHITECTURES.get(family) or discover(model, name=family))


def describe(family: str) -> str:
    """One line on a family."""
    found = "table" if family in ARCHITECTURES else "found"
    try:
        conformance = measure(family)
    except NeuronautError as error:
        return f"{family:<20} {'no':<6} {error}"
    held = [check for check in conformance.checks if check.failure is None]
    largest = max(check.error for check in held if check.error is not None)
    refused = join_sites(list(conformance.refused))
    return f"{family:<20} {found:<6} {len(held):>3} of {len(conformance.checks):<3} {largest:.1e}  {refused}"


def main(families: Sequence[str]) -> None:
    """Print a line a family."""
    logging.set_verbosity_error()
    click.echo(f"{'family':<20} {'row':<6} claims     error    sites refused (allowed: 9.5e-07)")
    for family in families or sorted(ARCHITECTURES):
        click.echo(describe(family))


if __name__ == "__main__":
    main(sys.argv[1:])
