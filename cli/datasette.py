"""`neuronaut datasette`: describes the database to Datasette."""

import json
from pathlib import Path

import click

from .common import database_option, debug_option, open_store, say


@click.command()
@click.option("-o", "--output", metavar="FILE", help="The metadata file; DATABASE.metadata.json if not given.")
@database_option
@debug_option
def datasette(output: str | None, database: str) -> None:
    """Describe the database to Datasette.

    Writes a metadata file with titles, descriptions of tables and columns, and facets, and says how to open the
    database with it. Datasette is a program of its own: pip install datasette.

    \b
    Examples:
      neuronaut datasette -d gpt2.db
      neuronaut datasette -d gpt2.db -o metadata.json
    """
    from ..data.store.datasette import database_name, describe
    from ..data.store.files import open_whole

    path = Path(output or f"{database}.metadata.json")
    with open_store(database) as store:
        metadata = describe(store, name=database_name(database))
    with open_whole(path) as file:
        file.write((json.dumps(metadata, indent=1, ensure_ascii=False) + "\n").encode())
    click.echo(str(path))
    say(f"open it with: datasette {database} --metadata {path}")
