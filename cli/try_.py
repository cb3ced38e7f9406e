"""`neuronaut try`: prints a feature's real activations on the user's own text, beside those that its rule predicts."""

from collections.abc import Sequence
from typing import Any

import click

from . import display
from .common import Form, Row, emit, open_store, plain, result_options, say_later
from .label import subject_options

_BAR = 16
"""Characters of the longest bar."""


@click.command("try")
@click.argument("feature")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@subject_options
@result_options
def try_(feature: str, texts: tuple[str, ...], database: str, form: Form, **load_options: Any) -> None:
    """Try a feature on your own text.

    For each token of each TEXT: the real activation of FEATURE, and what its rule predicts.

    \b
    Examples:
      neuronaut try demo:mlp.2:17 "def __init__(self):"
      neuronaut try demo:resid_post.2@sae:40 "import os" "import sys" --json
    """
    with open_store(database) as store:
        chosen = store.feature(feature)
        say_later(f"opening {chosen.source.model}")
        from ..labelling.opening import LoadOptions, stored_sources, stored_subject, with_limits
        from ..labelling.try_text import try_text
        from .causal.inputs import say_remarks

        options = LoadOptions(**load_options)
        opened = stored_subject(store, chosen.source.model, options, sources=[chosen.source])
        subject = with_limits(opened, store, [chosen.source])
        source = stored_sources(store, subject, [chosen], options)[chosen.source]
        read = list(map(plain, texts))
        say_remarks(subject, read)
        rows = [try_text(text, chosen, store, subject, source=source) for text in read]
        peak = store.evidence(chosen).statistics.peak
    emit(rows, form, lambda rows: "\n\n".join(_table(row, peak) for row in rows))


def _table(row: Row, peak: float) -> str:
    """Bars are of the corpus's peak, or of what is above it: noise is as short as it is."""
    predicted: Sequence[float | None] = row["predicted"] or [None] * len(row["tokens"])
    highest = max(peak, 0.0, *row["actual"], *(value for value in predicted if value is not None))
    lines: list[Row] = [
        {"token": token, "actual": actual, "predicted": guess}
        for token, actual, guess in zip(row["tokens"], row["actual"], predicted, strict=True)
    ]
    columns = [
        display.key("token"),
        display.Column("actual", lambda line: f"{line['actual']:.3f}", right=True),
        display.Column(
            "predicted",
            lambda line: display.NOTHING if line["predicted"] is None else f"{line['predicted']:.3f}",
            right=True,
        ),
        display.Column("", lambda line: "█" * round(_BAR * max(0.0, line["actual"]) / highest) if highest else ""),
    ]
    return display.table(lines, columns)
