"""Verbs that ask the database: list, search, similar, models."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import click

from . import display
from .common import Form, Row, emit, filter_options, limit_option, open_store, result_options, say, source_option

if TYPE_CHECKING:
    from ..data.store.listing import Conditions, Sort
    from ..data.store.store import Store

SORTS = ("feature", "score", "worst", "density", "peak")
embedder_option = click.option(
    "--embedder", metavar="NAME", help="A sentence-transformers model: its folder, or its name on the Hugging Face hub."
)


@click.command("list")
@click.argument("source", required=False)
@filter_options
@click.option("--max-score", type=float, metavar="X", help="Only scores of at most X.")
@click.option("--sort", type=click.Choice(SORTS), default="feature", show_default=True, help="worst: low scores first.")
@limit_option(help="At most so many rows.")
@click.option("--after", metavar="FEATURE", help="Go on after this one, the last of the page before.")
@result_options
def list_(
    source: str | None,
    sort: "Sort",
    limit: int | None,
    after: str | None,
    database: str,
    form: Form,
    **conditions: "Unpack[Conditions]",
) -> None:
    """List features, explanations and scores.

    Of one SOURCE, as demo:mlp.2, or of all.

    \b
    Examples:
      neuronaut list demo:mlp.2 --min-score 0.7 --sort score
      neuronaut list --status unlabelled --nl | wc -l
      neuronaut list --beats-baseline --sort score
      neuronaut list --sort score --limit 50 --after demo:mlp.2:17
    """
    with open_store(database) as store:
        last = None if after is None else store.feature(after)
        rows = store.with_names(store.list_rows(source, limit=limit, sort=sort, after=last, **conditions))
    columns = [*display.features(rows), display.key("status"), display.SCORE, display.BASELINE, display.EXPLANATION]
    emit(rows, form, lambda rows: display.table(rows, columns))
    say_if_empty(rows)


@click.command()
@click.argument("query", nargs=-1, required=True, metavar="QUERY...")
@click.option("--semantic", is_flag=True, help="Search by meaning instead of words.")
@embedder_option
@filter_options
@source_option
@limit_option(default=20, help="At most so many rows.")
@result_options
def search(
    query: tuple[str, ...],
    semantic: bool,
    embedder: str | None,
    source: str | None,
    limit: int,
    database: str,
    form: Form,
    **conditions: "Unpack[Conditions]",
) -> None:
    """Search the explanations.

    Finds those that hold the words of QUERY; "in quotes" they must stand together.

    \b
    Examples:
      neuronaut search self
      neuronaut search 'opening bracket' --min-score 0.5
      neuronaut search --semantic "names of functions" --source demo:mlp.2
    """
    text = " ".join(query)
    with open_store(database) as store:
        if semantic or embedder:
            rows = _search_by_meaning(store, text, embedder, source=source, limit=limit, **conditions)
        else:
            # What the markers are is seen only on a terminal, so a program never meets them.
            markers = _MARKERS if form == "table" and display.in_colour() else None
            rows = store.search_rows(text, source=source, limit=limit, markers=markers, **conditions)
        rows = store.with_names(rows)
    emit(rows, form, lambda rows: display.table(rows, _rank_columns(rows)))
    if not rows:
        say("nothing was found: no explanation meets all that was asked for; `find` looks for what fires on a text")


_MARKERS = ("\ue000", "\ue001")


def _search_by_meaning(
    store: "Store",
    text: str,
    embedder: str | None,
    *,
    source: str | None,
    limit: int,
    **conditions: "Unpack[Conditions]",
) -> list[Row]:
    from ..data.store.search import DEFAULT_MODEL, Embedder, semantic_search

    with_model = Embedder(embedder or DEFAULT_MODEL)
    return [*semantic_search(store, text, embedder=with_model, source=source, limit=limit, **conditions)]


def _rank_columns(rows: Sequence[Row]) -> list[display.Column]:
    similarity = display.Column("similarity", lambda row: f"{row['similarity']:.2f}", right=True)
    by_meaning = bool(rows) and rows[0]["similarity"] is not None
    explanation = display.Column("explanation", _highlight_matches)
    middle = [similarity] if by_meaning else []
    left = [display.key("rank", right=True), *display.features(rows)]
    return [*left, *middle, display.key("status"), display.SCORE, explanation]


def _highlight_matches(row: display.Row) -> str:
    cell = display.EXPLANATION.cell(row)
    for marker, style in zip(_MARKERS, ("\x1b[1;33m", "\x1b[0m"), strict=True):
        cell = cell.replace(marker.encode("unicode_escape").decode(), style)
    return cell


@click.command()
@click.argument("feature")
@embedder_option
@limit_option(default=10, help="At most so many rows of each kind.")
@result_options
def similar(feature: str, embedder: str | None, limit: int, database: str, form: Form) -> None:
    """Find features that resemble one.

    Those that fire on the same text as FEATURE and, with --embedder, those that are explained alike. `by` says
    which: by activation the similarity is what the top windows of both share among what either has; by
    explanation it is the cosine of the two explanations' vectors.

    \b
    Examples:
      neuronaut similar demo:mlp.2:17
      neuronaut similar demo:mlp.2:17 --embedder sentence-transformers/all-MiniLM-L6-v2
    """
    from ..data.store.search import Embedder
    from ..data.store.search import similar as find_similar

    with open_store(database) as store:
        chosen = store.feature(feature)
        neighbours = find_similar(store, chosen, embedder=Embedder(embedder) if embedder else None, limit=limit)
        rows = [row | {"by": "activation"} for row in neighbours.by_activation]
        rows = store.with_names(rows + [row | {"by": "explanation"} for row in neighbours.by_explanation])
    emit(rows, form, lambda rows: display.table(rows, [display.key("by"), *_rank_columns(rows)]))
    say_if_empty(rows)


def count_columns(**headers: str) -> list[display.Column]:
    """Columns of numbers, by field, under these headers."""
    return [display.key(name, header, right=True) for name, header in headers.items()]


def say_if_empty(rows: Sequence[Row]) -> None:
    """Say on stderr that there is nothing, where there is nothing."""
    if not rows:
        say("nothing was found")
