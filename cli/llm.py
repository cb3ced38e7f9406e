"""`neuronaut llm` lists the calls to language models and their costs; `neuronaut reproduce` rebuilds the prompts of an
explanation byte for byte.
"""

import json
from typing import Any

import click

from ..subject.errors import NeuronautError
from . import display
from .common import Form, Row, emit, limit_option, open_store, result_options, say
from .display import Column
from .label import subject_options

STATES = ("ok", "refused", "truncated", "empty", "failed")


@click.group()
def llm() -> None:
    """Look at the calls to language models.

    Every call is kept with its reply; one that went well is never paid again.

    \b
    Examples:
      neuronaut llm stats
      neuronaut llm log --status failed
    """


@llm.command()
@limit_option(default=20)
@click.option("--status", type=click.Choice(STATES), help="Only calls that ended so.")
@click.option("--prompt", metavar="NAME", help="Only calls of this prompt.")
@click.option("--full", is_flag=True, help="Print the whole of what was asked and answered.")
@result_options
def log(limit: int, status: str | None, prompt: str | None, full: bool, database: str, form: Form) -> None:
    """List calls, the latest first.

    JSON holds the whole request and reply of each, with the calls of tools that the reply made.

    \b
    Examples:
      neuronaut llm log --status refused --full
      neuronaut llm log --prompt detection --limit 3 --json
    """
    with open_store(database) as store:
        rows = [
            row | {"request": json.loads(row["request"])}
            for row in store.calls.rows(limit=limit, status=status, prompt=prompt)
        ]
    emit(rows, form, _format_calls if full else _format_table)


@llm.command()
@result_options
def stats(database: str, form: Form) -> None:
    """Say what each model was asked, by prompt, and what it cost.

    A cost is given where the price of every call was known.

    \b
    Examples:
      neuronaut llm stats --json
    """
    with open_store(database) as store:
        rows = store.calls.statistics()
    emit(rows, form, _format_statistics)


def _format_table(rows: list[Row]) -> str:
    if not rows:
        return "no calls"
    return display.table(
        rows,
        [
            Column("id", lambda row: str(row["id"]), right=True),
            Column("time", lambda row: row["created"][:19]),
            Column("model", lambda row: row["model"]),
            Column("prompt", lambda row: row["prompt"]),
            Column("status", lambda row: row["status"]),
            Column("tokens", lambda row: f"{row['input_tokens']:,}+{row['output_tokens']:,}", right=True),
            Column("s", lambda row: f"{row['seconds']:.1f}", right=True),
            Column("cost", lambda row: _format_dollars(row["cost"]), right=True),
            Column("reply", lambda row: display.visible(row["reason"] or _format_text(row["reply"], row["calls"]))),
        ],
    )


def _format_calls(rows: list[Row]) -> str:
    return "\n\n".join(
        f"call {row['id']}  {row['created']}  {row['model']} at {row['endpoint']}  {row['prompt']}  {row['status']}"
        f"\n{_format_request(row['request'])}\n{_format_turn('reply', _format_text(row['reply'], row['calls']))}"
        + (f"\n({row['reason']})" if row["reason"] else "")
        for row in rows
    )


def _format_request(request: Row) -> str:
    if "messages" not in request:
        return f"probe of {len(request['ids'])} tokens at {len(request['positions'])} positions"
    return "\n".join(
        _format_turn(message["role"], _format_text(message["content"], message.get("calls", [])))
        for message in request["messages"]
    )


def _format_turn(role: str, text: str) -> str:
    return f"=== {role} ===\n{display.plain_lines(text)}"


def _format_text(text: str, calls: list[Row]) -> str:
    """Write a text and the calls of tools beside it."""
    return "\n".join([*([text] if text or not calls else []), *(f"{c['name']} {c['arguments']}" for c in calls)])


def _format_statistics(rows: list[Row]) -> str:
    if not rows:
        return "no calls"
    return display.table(
        rows,
        [
            Column("model", lambda row: row["model"]),
            Column("endpoint", lambda row: row["endpoint"]),
            Column("prompt", lambda row: row["prompt"]),
            *(
                Column(name, lambda row, name=name: f"{row[name]:,}", right=True)
                for name in ("calls", *STATES, "input_tokens", "output_tokens")
            ),
            Column("mean s", lambda row: f"{row['mean_seconds']:.2f}", right=True),
            Column("cost", lambda row: _format_dollars(row["cost"]), right=True),
        ],
    )


def _format_dollars(value: float | None) -> str:
    return display.NOTHING if value is None else f"${value:,.4f}"


@click.command()
@click.argument("explanation_id", type=click.IntRange(1, 2**62))
@subject_options
@result_options
def reproduce(explanation_id: int, database: str, form: Form, **load_options: Any) -> None:
    """Make an explanation again from the database alone, and print every prompt that led to it.

    Prompts are rendered from the stored evidence and must have the hash of those that were sent; replies come from
    the log, and nobody is asked. EXPLANATION_ID is told by `show --provenance`.

    \b
    Examples:
      neuronaut reproduce 17 -d gpt2.db
    """
    from ..labelling.factory import remake_explainer
    from ..labelling.opening import LoadOptions, stored_sources, stored_subject
    from ..labelling.reproduce import reproduce as make_again

    options = LoadOptions(**load_options)
    with open_store(database) as store:
        stored = store.explanation(explanation_id)
        if stored is None:
            raise NeuronautError(f"there is no explanation {explanation_id}; show FEATURE --provenance tells the ids")
        if "llm" not in stored.explanation.provenance:
            raise NeuronautError(
                f"explanation {explanation_id} was made by {stored.explanation.explainer}, which asks no language "
                "model: there is no prompt to rebuild; show --provenance tells where it comes from"
            )
        feature = stored.explanation.feature
        subject = stored_subject(store, feature.source.model, options, sources=[feature.source])
        sources = stored_sources(store, subject, [feature], options)
        reproduced = make_again(
            store,
            subject,
            sources[feature.source],
            stored,
            remake_explainer(stored.explanation, store, subject, sources),
        )
    rows = [
        request._asdict() | {"messages": [message.as_dict() for message in request.messages]}
        for request in reproduced.requests
    ]
    emit(rows, form, _format_prompts)
    say(
        f"{len(rows)} prompts, each with the hash of the one that was sent; the text is "
        + ("the same" if reproduced.same else f"now: {reproduced.text}")
    )


def _format_prompts(rows: list[Row]) -> str:
    return "\n\n".join(
        "\n".join(
            (
                f"{row['prompt']} {row['key']}",
                *(_format_turn(message["role"], message["content"]) for message in row["messages"]),
                _format_turn("reply", row["reply"]),
            )
        )
        for row in rows
    )
