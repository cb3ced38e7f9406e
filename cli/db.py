"""`neuronaut db`: counts, copies and merges databases."""

from pathlib import Path

import click

from . import display
from .common import Form, Row, emit, open_store, result_options, say


@click.group()
def db() -> None:
    """Look at, copy or merge databases.

    \b
    Examples:
      neuronaut db status
      neuronaut db backup before.db
      neuronaut db merge colleague.db
    """


@db.command()
@result_options
def status(database: str, form: Form) -> None:
    """Say what is in the database.

    Rows of each table, and features of each status.

    \b
    Examples:
      neuronaut db status -d gpt2.db
    """
    from ..data.harvest.state import find_stopped

    with open_store(database) as store:
        counts = store.status()
    stopped = find_stopped(Path(f"{database}.harvest"))
    for harvest in stopped:
        budget = "all" if harvest.budget is None else f"{harvest.budget:,}"
        names = ", ".join(harvest.sources)
        say(
            f"a harvest of {names} on {harvest.corpus} has {harvest.tokens:,} of {budget} tokens and is not ended; if "
            "it does not run any more, the same command goes on, and with --close ends it there"
        )
    rows = {key: value for key, value in counts.items() if key != "status"} | counts["status"]
    harvests = [harvest._asdict() | {"path": str(harvest.path)} for harvest in stopped]
    emit([counts | {"stopped_harvests": harvests}], form, lambda _: _format_counts(rows))


@db.command()
@click.argument("file")
@result_options
def backup(file: str, database: str, form: Form) -> None:
    """Copy the database into a new FILE.

    Also while it is in use.

    \b
    Examples:
      neuronaut db backup before.db
    """
    with open_store(database) as store:
        store.backup(file)
    emit([{"database": database, "backup": file}], form, lambda _: f"{database} is copied into {file}")


@db.command()
@click.argument("other")
@result_options
def merge(other: str, database: str, form: Form) -> None:
    """Add what the database OTHER holds.

    Nothing is stored twice, and OTHER is not changed.

    \b
    Examples:
      neuronaut db merge colleague.db -d mine.db
    """
    with open_store(database) as store:
        added = store.merge(other)
    emit([added], form, lambda _: _format_counts(added))


def _format_counts(counts: Row) -> str:
    rows: list[Row] = [{"": name, "rows": value} for name, value in counts.items()]
    size = max(len(row[""]) for row in rows)
    return "\n".join(f"{row['']:{size}}  {display.key('rows').cell(row)}" for row in rows)
