"""`neuronaut db`: counts, copies and merges databases."""

from pathlib import Path

import click

from . import display
from .common import Form, Row, emit, open_store, result_options, say
from .harvest_view import format_row


@click.group()
def db() -> None:
    """Look at, copy or merge databases.

    \b
    Examples:
      neuronaut db status
      neuronaut db backup before.db
      neuronaut db merge colleague.db
      neuronaut db absorb part*.npz
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


@db.command()
@click.argument("files", metavar="FILE.npz...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", metavar="PATH", help="Where the model lies here, if not where the shards were harvested.")
@click.option("--sae", metavar="PATH", help="Where the dictionary lies here, if not where the shards were harvested.")
@click.option("--corpus", metavar="NAME", help="Where the corpus lies here, if not where the shards were harvested.")
@click.option("--device", metavar="D", help="auto (default: a GPU where there is one), cpu, cuda, cuda:1 or mps.")
@result_options
def absorb(
    files: tuple[Path, ...],
    model: str | None,
    sae: str | None,
    corpus: str | None,
    device: str | None,
    database: str,
    form: Form,
) -> None:
    """Merge the shards of a harvest into the database.

    FILEs are those of `harvest --shard I/N -o FILE`, all N of them, in any order. The database is the one that a
    harvest by one process makes, bit for bit. The model runs once more over a sample of the text, for the silent
    windows and near misses.

    \b
    Examples:
      neuronaut db absorb part*.npz
      neuronaut db absorb part*.npz --model models/gpt2 --corpus articles.jsonl -d gpt2.db
    """
    from .harvest_apart import absorb_by_hand

    given = {"model": model, "sae": sae, "corpus": corpus, "device": device}
    with open_store(database, create=True, write=True) as store:
        rows = absorb_by_hand(files, store, {key: value for key, value in given.items() if value is not None})
    emit(rows, form, lambda rows: "\n".join(map(format_row, rows)))


def _format_counts(counts: Row) -> str:
    rows: list[Row] = [{"": name, "rows": value} for name, value in counts.items()]
    size = max(len(row[""]) for row in rows)
    return "\n".join(f"{row['']:{size}}  {display.key('rows').cell(row)}" for row in rows)
