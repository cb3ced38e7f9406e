"""`neuronaut reproduce`: what was asked for an explanation, rebuilt byte for byte."""

from typing import Any

import click

from ..subject.errors import NeuronautError
from . import display
from .common import Form, Row, emit, opened, result_options, say
from .label import subject_options


@click.command()
@click.argument("explanation_id", type=int)
@subject_options
@result_options
def reproduce(explanation_id: int, database: str, form: Form, **opening: Any) -> None:
    """Make an explanation again from the database alone, and print every prompt that led to it.

    Prompts are rendered from the stored evidence and must have the hash of those that were sent; replies come from
    the log, and nobody is asked. EXPLANATION_ID is told by `show --provenance`.

    \b
    Examples:
      neuronaut reproduce 17 -d gpt2.db
    """
    from ..agent.reproduce import reproduce as make_again
    from .making import remade
    from .opening import Opening, stored_sources, stored_subject

    options = Opening(**opening)
    with opened(database) as store:
        stored = store.explanation(explanation_id)
        if stored is None:
            raise NeuronautError(f"there is no explanation {explanation_id}; show FEATURE --provenance tells the ids")
        if "llm" not in stored.explanation.provenance:
            raise NeuronautError(
                f"explanation {explanation_id} was made by {stored.explanation.explainer}, which asks no language "
                "model: there is no prompt to rebuild; show --provenance tells where it comes from"
            )
        feature = stored.explanation.feature
        subject = stored_subject(store, feature.source.model, options)
        sources = stored_sources(store, subject, [feature], options)
        found = make_again(
            store, subject, sources[feature.source], stored, remade(stored.explanation, store, subject, sources)
        )
    rows: list[Row] = [
        {"key": one.key, "prompt": one.prompt, "messages": [m.says() for m in one.messages], "reply": one.reply}
        for one in found.asked
    ]  # fmt: skip
    emit(rows, form, _pages)
    say(f"{len(rows)} prompts, each with the hash of the one that was sent; the text is "
        + ("the same" if found.same else f"now: {found.text}"))  # fmt: skip


def _pages(rows: list[Row]) -> str:
    return "\n\n".join(
        "\n".join((
            f"{row['prompt']} {row['key']}",
            *(f"=== {m['role']} ===\n{display.plain_lines(m['content'])}" for m in row["messages"]),
            f"=== reply ===\n{display.plain_lines(row['reply'])}",
        ))
        for row in rows
    )  # fmt: skip
