"""`neuronaut find`: which features fire on a text, and which tell two texts, or two sets of texts, apart."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..subject.errors import NeuronautError
from . import display
from .causal.inputs import read_texts, say_remarks
from .causal.setup import dictionary_options
from .common import Form, Row, emit, open_store, plain, result_options, say, say_later

if TYPE_CHECKING:
    from ..data.store.store import Store
    from ..labelling.find import By, Separated
    from ..labelling.opening import LoadOptions
    from ..subject.model import Subject
    from ..subject.sources import Source

LENGTH_P = 0.05
"""Below this p value sets of texts count as of different lengths."""


@click.command()
@click.argument("model")
@click.argument("text", required=False)
@click.option("--against", metavar="TEXT", help="Another text: what is most different between the two.")
@click.option("--token", metavar="N|WORD", help="On this token of TEXT alone: its position, or as it reads.")
@click.option("--positive", metavar="FILE", help="Texts, one a line or JSONL, that are told from")
@click.option("--negative", metavar="FILE", help="these.")
@click.option(
    "--by",
    type=click.Choice(["max", "mean"]),
    help="What stands for a text of a set: a feature's highest activation (max, the default), or its mean.",
)
@click.option(
    "--source", "named", multiple=True, metavar="SOURCE", help="Only of this source; by default all in the database."
)
@click.option("-n", "count", type=click.IntRange(1), default=20, show_default=True, help="Features to list.")
@dictionary_options
@click.option("--device", metavar="D", help="auto (default: a GPU where there is one), cpu, cuda, cuda:1 or mps.")
@click.option("--dtype", metavar="T", help="float32, bfloat16 or float16; as it was harvested with.")
@result_options
def find(
    model: str,
    text: str | None,
    against: str | None,
    token: str | None,
    positive: str | None,
    negative: str | None,
    by: "By | None",
    named: tuple[str, ...],
    count: int,
    database: str,
    form: Form,
    **load_options: Any,
) -> None:
    """Find the features that fire on a text.

    Those most active on TEXT, on one --token of it, or most different from a text --against; or those that tell the
    texts of --positive from those of --negative, with their AUROC, its interval, and p values adjusted for their
    number. Peaks and labels are those of the database. A SOURCE that is not there is named as at harvest: mlp.2, or
    resid_post.2@mine with --sae.

    \b
    Examples:
      neuronaut find demo "def __init__(self, name):"
      neuronaut find demo "import os" --token os -n 5
      neuronaut find demo "x = [1, 2]" --against "x = (1, 2)" --source resid_post.2@sae
      neuronaut find gpt2 --positive french.txt --negative english.txt --by mean --json
    """
    _check(text, against, token, positive, negative)
    if by is not None and positive is None:
        raise click.UsageError("--by is of --positive and --negative; leave it out with a TEXT")
    if not named and (unused := next((key for key in ("sae", "norm_scale") if load_options[key] is not None), None)):
        option = unused.replace("_", "-")
        raise click.UsageError(f"--{option} is of a --source; name it, for example --source resid_post.2@mine")
    say_later(f"opening {model}")
    from ..labelling.find import describe_hits, find_separating
    from ..labelling.find import find as find_active
    from ..labelling.opening import LoadOptions

    by = by or "max"
    sets = None if positive is None or negative is None else (read_texts(positive), read_texts(negative))
    with ExitStack() as stack:
        store = stack.enter_context(open_store(database)) if _is_there(database) else None
        subject, sources = _open(store, model, named, LoadOptions(**load_options), database)
        if sets is not None:
            say_remarks(subject, [*sets[0], *sets[1]])
            separated = find_separating(subject, sources, *sets, by=by, store=store, count=count)
            rows = [
                {**row, "level": separated.level, "tested": separated.tested}
                for row in describe_hits(store, sources, separated.rows)
            ]
        else:
            assert text is not None, "one of both is given"
            texts = [plain(part) for part in (text, against) if part is not None]
            say_remarks(subject, texts)
            hits = find_active(subject, sources, texts[0], against=against, token=token, store=store, count=count)
            separated, rows = None, describe_hits(store, sources, hits)
    emit(rows, form, lambda rows: display.table(rows, _columns(rows)))
    if separated is not None:
        say(_summarise(separated))
        if by == "max" and separated.length_p < LENGTH_P:
            say(
                f"Warning: the number of tokens alone tells the sets apart (AUROC {separated.length:.2f}), and what is "
                "longer reaches higher by itself; give texts of like lengths, or take --by mean"
            )
    if not rows:
        say("no feature is active there")


def _is_there(database: str) -> bool:
    """Whether there is a database; one that was named must be there."""
    where = click.get_current_context().get_parameter_source("database")
    if Path(database).exists() or where is not click.core.ParameterSource.DEFAULT:
        return True
    say(f"there is no database {database}: features have activations alone, no peaks and no labels")
    return False


def _check(*given: str | None) -> None:
    text, against, token, positive, negative = given
    if (positive is None) != (negative is None):
        raise click.UsageError("--positive and --negative go together; give both files")
    if (text is None) == (positive is None):
        raise click.UsageError("name one TEXT, or --positive and --negative; one of both is wanted")
    if positive is not None and (against is not None or token is not None):
        raise click.UsageError("--against and --token are of one TEXT; leave them out with --positive")
    if against is not None and token is not None:
        raise click.UsageError("--token is of one TEXT; leave out --against, or --token")


def _open(
    store: "Store | None", model: str, named: Sequence[str], options: "LoadOptions", database: str
) -> "tuple[Subject, list[Source]]":
    """The subject and the sources: those of the store that are named, or all of the model's, and others by site."""
    from ..labelling.opening import load_subject, open_sources, settle_bos, stored_sources, stored_subject, with_limits
    from ..subject.address import Feature, SourceId

    if store is not None and model in (row["source"] for row in store.sources()):
        model, named = SourceId.parse(model).model, [model, *named]
    name = model if store is None else store.model(model)
    known = {} if store is None else {row["source"]: SourceId.parse(row["source"]) for row in store.sources()}
    wanted = [text if text.startswith(f"{name}:") else f"{name}:{text.removeprefix(f'{model}:')}" for text in named]
    ids = [known[text] for text in wanted if text in known] if named else [i for i in known.values() if i.model == name]
    if not ids and not named:
        there = ", ".join(store.models()) if store is not None else ""
        raise NeuronautError(
            f"nothing of the model {model} is in {database}, which holds {there or 'none'}; harvest it, or name a "
            "--source such as mlp.2"
        )
    if store is None or name not in store.models():
        subject = load_subject(model, options)
    else:
        subject = with_limits(stored_subject(store, name, options, sources=ids), store, ids)
    sources: list[Source] = []
    if store is not None and ids:
        # What --sae names is a source that is not there yet.
        own = options if len(ids) == len(wanted) else replace(options, sae=None, norm_scale=None)
        sources += stored_sources(store, subject, [Feature(id, 0) for id in ids], own).values()
    if new := [text.removeprefix(f"{name}:") for text in wanted if text not in known]:
        opened = open_sources(subject, new, options, name=None)
        subject, sources = subject if ids else settle_bos(subject, opened, asked="auto"), [*sources, *opened]
    return subject, sources


def _columns(rows: Sequence[Row]) -> list[display.Column]:
    apart = display.Column("apart", lambda row: display.signed(row["difference"]), right=True)
    left = [display.key("rank", right=True), *display.features(rows)]
    right = [display.key("status"), display.EXPLANATION]
    if rows and "auroc" in rows[0]:
        return [
            *left,
            display.spanned_column("auroc", "AUROC"),
            display.key("q", right=True),
            display.key("positive", right=True),
            display.key("negative", right=True),
            apart,
            *right,
        ]
    relative = display.Column("of largest", lambda row: _percent(row["relative"]), right=True)
    two = bool(rows) and rows[0]["against"] is not None
    other = [display.key("against", right=True), apart]
    share = [display.Column("seen on", lambda row: _percent(row["share"]), right=True)]
    token = display.Column("token", lambda row: display.quoted(row["token"]))
    return [*left, display.key("activation", right=True), *(other if two else [relative, *share]), token, *right]


def _percent(value: float | None) -> str:
    return display.NOTHING if value is None else f"{100 * value:.3g}%"


def _summarise(separated: "Separated") -> str:
    found = (
        f"{separated.discovered:,} of {separated.tested:,} tests have q at most 0.05 (Benjamini-Hochberg); "
        f"the intervals are at {separated.level:.6g}"
    )
    return found + (", since these are the best of so many" if separated.tested > len(separated.rows) else "")
