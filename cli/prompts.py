"""`neuronaut prompts`: lists, prints and replaces the prompts."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..subject.errors import NeuronautError
from . import display
from .common import Form, Row, emit, open_store, result_options, say
from .display import Column

if TYPE_CHECKING:
    from ..llm.prompt import Prompt


@click.group()
def prompts() -> None:
    """List, read and replace the prompts.

    A prompt is a Markdown file: `## system`, `## user` and `## assistant` open its messages, and $name is filled in.

    \b
    Examples:
      neuronaut prompts list
      neuronaut prompts show highlight > mine.md
      neuronaut prompts use highlight mine.md
    """


@prompts.command("list")
@result_options
def list_(database: str, form: Form) -> None:
    """List the prompts, with their hash and the places that are filled in.

    A prompt of one's own belongs to the database that it was chosen for.

    \b
    Examples:
      neuronaut prompts list --json
    """
    from ..labelling.factory import shipped_prompts
    from ..llm.prompt import Prompt

    own_texts: dict[str, str] = {}
    if Path(database).exists():
        with open_store(database) as store:
            own_texts = dict(store.chosen_prompts())
    rows: list[Row] = []
    for name, prompt in shipped_prompts().items():
        used = Prompt(name, own_texts[name]) if name in own_texts else prompt
        rows.append({"name": name, "hash": used.hash, "own": name in own_texts, "places": sorted(used.places)})
    emit(
        rows,
        form,
        lambda rows: display.table(
            rows,
            [
                Column("name", lambda row: row["name"]),
                Column("hash", lambda row: row["hash"]),
                Column("whose", lambda row: "yours" if row["own"] else "ours"),
                Column("places", lambda row: " ".join("$" + place for place in row["places"])),
            ],
        ),
    )


@prompts.command()
@click.argument("name")
@click.option("--ours", is_flag=True, help="The package's own, also where another is used.")
@result_options
def show(name: str, ours: bool, database: str, form: Form) -> None:
    """Print a prompt as it is used, by its NAME, or as it was once, by its hash.

    What it prints can be edited and used.

    \b
    Examples:
      neuronaut prompts show detection
    """
    own_text = None
    if not ours and Path(database).exists():
        with open_store(database) as store:
            stored = store.kept_prompt(name)
            own_text = stored[1] if stored else store.chosen_prompts().get(name)
    text = own_text if own_text is not None else _shipped(name).text
    emit([{"name": name, "text": text}], form, lambda _: text.rstrip("\n"))


@prompts.command()
@click.argument("name")
@click.argument("file", required=False)
@click.option("--ours", is_flag=True, help="Go back to the package's own.")
@result_options
def use(name: str, file: str | None, ours: bool, database: str, form: Form) -> None:
    """Use FILE in place of the prompt NAME, in this database, from now on.

    It may hold the places of the package's own and no others. What was labelled with another prompt stays, and is
    labelled again by the next call, since the prompt is part of what an explanation is known by.

    \b
    Examples:
      neuronaut prompts use highlight mine.md
      neuronaut prompts use highlight --ours
    """
    from ..llm.prompt import Prompt

    if ours == (file is not None):
        raise click.UsageError("give a FILE, or --ours to go back to the package's own")
    shipped = _shipped(name)
    with open_store(database, write=True) as store:
        own = shipped
        if file is None:
            store.drop_prompt(name)
        else:
            own = Prompt(name, Prompt.load(Path(file)).text)
            own.render(dict.fromkeys(shipped.places, ""))
            store.keep_prompt(own.hash, name, own.text, use=True)
            for place in sorted(shipped.places - own.places):
                say(f"Warning: ${place} is not in {file}, so the reader will not be told it")
    row = {"name": name, "hash": own.hash, "own": file is not None}
    emit([row], form, lambda _: f"{name} is now {'ours' if file is None else file}")


def _shipped(name: str) -> "Prompt":
    from ..labelling.factory import shipped_prompts

    shipped = shipped_prompts()
    if name not in shipped:
        raise NeuronautError(f"there is no prompt {name!r}; there are {', '.join(shipped)}")
    return shipped[name]
