"""Prompts in the store: the text of every prompt that was used, by hash, and the user's own choices."""

import sqlite3
from collections.abc import Mapping

from .writing import now


def keep_prompt(connection: sqlite3.Connection, hash: str, name: str, text: str) -> None:
    """Keep a prompt's text, so that what was asked can be rebuilt whatever the package ships later."""
    connection.execute("INSERT INTO prompts VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", [hash, name, text, now()])


def choose_prompt(connection: sqlite3.Connection, name: str, hash: str | None) -> None:
    """Use the kept prompt of this hash under a name from now on; None goes back to the package's own."""
    connection.execute("DELETE FROM prompt_choices WHERE name = ?", [name])
    if hash is not None:
        connection.execute("INSERT INTO prompt_choices VALUES (?, ?)", [name, hash])


def chosen_prompts(connection: sqlite3.Connection) -> Mapping[str, str]:
    """Text of the prompts that were chosen, by name."""
    sql = "SELECT prompt_choices.name, text FROM prompt_choices JOIN prompts USING (hash) ORDER BY prompt_choices.name"
    return {row["name"]: row["text"] for row in connection.execute(sql)}


def kept_prompt(connection: sqlite3.Connection, hash: str) -> tuple[str, str] | None:
    """Name and text of a kept prompt."""
    row = connection.execute("SELECT name, text FROM prompts WHERE hash = ?", [hash]).fetchone()
    return None if row is None else (row["name"], row["text"])
