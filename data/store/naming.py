"""Which stored model an address means: one is named as in the database, or by the folder that it was harvested from.

`./models/x:mlp.0` is the model whose harvest read that folder, whatever it is called here; `x:mlp.0` is the model
called x or, where none is, the one whose folder has that name. Where two could be meant, nothing is guessed.
"""

import json
import re
import sqlite3
from os.path import isdir
from pathlib import Path

from ...subject.errors import NeuronautError

_ADDRESS = re.compile(r"(?P<model>.+?)(?P<rest>:[a-z_]+(?:\.[0-9]+)?(?:[:@].*)?)", re.DOTALL)


def stored_address(connection: sqlite3.Connection, text: str) -> str:
    """The address with its model's name in this database; as it came where it names no folder that is known here."""
    match = _ADDRESS.fullmatch(text)
    return text if match is None else stored_model(connection, match["model"]) + match["rest"]


def stored_model(connection: sqlite3.Connection, name: str) -> str:
    """A model's name in this database, from that name or its folder; as it came where neither is known.

    Raises NeuronautError where two models could be meant, or where the folder is there and was not harvested.
    """
    folders = _folders(connection)
    if name in folders:
        return name
    here, last = _resolve(name), Path(name).name
    as_path = [model for model, folder in folders.items() if folder is not None and folder == here]
    called = [model for model, folder in folders.items() if folder is not None and folder.name == last]
    matches = as_path or (called if last == name else [])
    if len(matches) > 1:
        listed = " or ".join(f"{model} ({folders[model]})" for model in matches)
        raise NeuronautError(f"{name} could be {listed}; name the one that is meant")
    if not matches and called and here is not None and isdir(here):
        listed = " and ".join(f"{model} is {folders[model]}" for model in called)
        raise NeuronautError(
            f"the folder {name} was not harvested into this database, where {listed}; name that, or harvest this"
        )
    return matches[0] if matches else name


def _folders(connection: sqlite3.Connection) -> dict[str, Path | None]:
    """Every model with the folder of its latest harvest; None for one of the hub, or the built-in one."""
    sql = "SELECT model, provenance FROM sources LEFT JOIN harvests ON source_id = sources.id ORDER BY created"
    folders: dict[str, Path | None] = {}
    for model, provenance in connection.execute(sql):
        path = json.loads(provenance or "{}").get("paths", {}).get(model)
        folders[model] = Path(path) if path and Path(path).is_absolute() else folders.get(model)
    return folders


def _resolve(name: str) -> Path | None:
    """The folder of a name, wherever a link leads; None where the name can be none."""
    try:
        return Path(name).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):
        return None
