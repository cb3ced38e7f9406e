"""`neuronaut directions`: finds directions at a site, and lists the files that hold them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..causal.results.common import ends
from ..subject.errors import NeuronautError
from . import display
from .causal.inputs import judging_options, output_option, read_texts, seed_option
from .causal.setup import open_subject, text_options
from .common import Count, Form, Row, emit, form_options, say
from .display import spanned, spanned_column

if TYPE_CHECKING:
    from ..labelling.concepts import FoundDirection, Position
    from ..subject.model import Subject

site_option = click.option("--site", required=True, metavar="SITE", help="Where: resid_post.8, mlp_out.2 and so on.")
file_option = output_option("--out", "The file, a .safetensors: written, or added to where it is there.")


@click.group()
def directions() -> None:
    """Find directions, and list the files that hold them.

    A file of directions is harvested like a dictionary (--sae FILE), and each is a feature: it is labelled, searched,
    investigated and steered.

    \b
    Examples:
      neuronaut directions fit demo --positive calls.txt --negative names.txt --site mlp_out.2 --out calls.safetensors
      neuronaut directions add demo --site resid_post.2 --components 4 --out components.safetensors
      neuronaut directions list calls.safetensors
    """


@directions.command()
@click.argument("model")
@click.option("--positive", required=True, metavar="FILE", help="Texts that have it: one a line, or JSONL.")
@click.option("--negative", required=True, metavar="FILE", help="Texts that do not.")
@click.option(
    "--method",
    type=click.Choice(["diff-means", "logistic", "lda"]),
    default="diff-means",
    show_default=True,
    help="How the direction is found.",
)
@site_option
@click.option(
    "--position",
    type=click.Choice(["last", "mean", "all"]),
    default="mean",
    show_default=True,
    help="A text is its last token, the mean of its tokens, or all of them.",
)
@click.option("--name", metavar="N", help="What the direction is called; the name of the positive file if not given.")
@file_option
@judging_options
@seed_option
@text_options
@form_options
def fit(
    model: str,
    positive: str,
    negative: str,
    method: str,
    site: str,
    position: "Position",
    name: str | None,
    out: str | None,
    test_share: float,
    shuffles: int,
    seed: int,
    form: Form,
    **options: Any,
) -> None:
    """Fit a direction that tells two sets of texts apart.

    Judged on texts that it has not seen, near-duplicates kept on one side: AUROC and accuracy with their intervals,
    beside what fits to shuffled labels reach. Its activation is 0 halfway, and one unit is as far as the means of the
    two sets are apart.

    \b
    Examples:
      neuronaut directions fit demo --positive calls.txt --negative names.txt --site mlp_out.2 --out calls.safetensors
      neuronaut directions fit gpt2 --positive past.txt --negative now.txt --site resid_post.8 --method logistic --json
    """
    from pathlib import Path

    from ..labelling.concepts import fit_direction

    sets = read_texts(positive), read_texts(negative)
    subject = open_subject(model, options)
    fitted = fit_direction(
        subject,
        *sets,
        site=site,
        name=name or Path(positive).stem,
        method=method,
        position=position,
        test_share=test_share,
        shuffles=shuffles,
        seed=seed,
    )
    probe = fitted.probe
    _keep(out, model, subject, site, [fitted.found])
    row = {
        **_row(fitted.found, site),
        "auroc": probe.auroc.value,
        **ends(probe.auroc.interval),
        "accuracy": probe.accuracy.value,
        "accuracy_low": probe.accuracy.interval and probe.accuracy.interval.low,
        "accuracy_high": probe.accuracy.interval and probe.accuracy.interval.high,
    }
    emit([row], form, lambda rows: display.table(rows, _FITTED))


_FITTED = [
    display.key("name"),
    display.key("site"),
    display.key("method"),
    display.key("position"),
    spanned_column("auroc", "AUROC"),
    display.Column("shuffled", lambda row: f"{row['shuffled']:.2f}", right=True),
    display.Column("p", lambda row: f"{row['p']:.3f}", right=True),
    display.Column("accuracy", lambda row: spanned(row["accuracy"], row["accuracy_low"], row["accuracy_high"])),
    display.Column("base rate", lambda row: f"{row['base_rate']:.2f}", right=True),
    display.key("trained", right=True),
    display.key("tested", right=True),
]


@directions.command()
@click.argument("model")
@site_option
@click.option("--components", type=click.IntRange(1), metavar="N", help="The first N principal components.")
@click.option("--corpus", metavar="NAME", help="Of --components: stdlib, a file or folder, or a dataset.")
@click.option(
    "--corpus-tokens", type=Count(), default="50k", show_default=True, metavar="N", help="How much of the corpus."
)
@click.option(
    "--token", "tokens", multiple=True, metavar="TOKEN", help='What this token\'s logit reads: --token " Paris".'
)
@file_option
@text_options
@form_options
def add(
    model: str,
    site: str,
    components: int | None,
    corpus: str | None,
    corpus_tokens: int | None,
    tokens: tuple[str, ...],
    out: str | None,
    form: Form,
    **options: Any,
) -> None:
    """Add directions that need no examples.

    Principal components of the vectors at a site, or what the logits of tokens read at a site of the residual stream.

    \b
    Examples:
      neuronaut directions add demo --site resid_post.2 --components 4 --out components.safetensors
      neuronaut directions add gpt2 --site resid_post.11 --token " Paris" --token " London" --out cities.safetensors
    """
    from ..labelling.concepts import principal_components, token_directions
    from ..labelling.opening import load_corpus

    if not components and not tokens:
        raise click.UsageError("nothing is to be added; name --components N or --token TOKEN")
    if corpus is not None and not components:
        raise click.UsageError("--corpus is of --components; add that, or leave it out")
    if corpus_tokens is None:
        raise NeuronautError("--corpus-tokens all is too much; give a number such as 200k")
    subject, found = open_subject(model, options), list["FoundDirection"]()
    if components:
        text = load_corpus(model, corpus, tokens=corpus_tokens, text_column="text", encoding="utf-8")
        found += principal_components(subject, text, site=site, count=components, tokens=corpus_tokens)
    found += token_directions(subject, tokens, site=site) if tokens else []
    _keep(out, model, subject, site, found)
    emit([_row(row, site) for row in found], form, lambda rows: display.table(rows, _listed(rows)))


def _keep(out: str | None, model: str, subject: "Subject", site: str, found: "Sequence[FoundDirection]") -> None:
    """Write the directions where a file is named, and say where they are."""
    from ..labelling.concepts import add_to_file

    if out is None:
        say("nothing is kept: no --out FILE is given")
        return
    places = add_to_file(out, subject, site, found)
    rows = f"row {places[0]}" if len(places) == 1 else f"rows {places[0]} to {places[-1]}"
    say(f"{rows} of {out}; go on with: neuronaut harvest {model} --sae {out}")


@directions.command("list")
@click.argument("file")
@form_options
def list_(file: str, form: Form) -> None:
    """List the directions in a FILE.

    Their names, how they were found, and the length that each is read at: a .npy, or a .safetensors.

    \b
    Examples:
      neuronaut directions list calls.safetensors
    """
    from ..labelling.concepts import list_file
    from ..subject.direction_matrix import read_directions

    site = read_directions(file).site
    rows = [_row(row, site) for row in list_file(file)]
    emit(rows, form, lambda rows: display.table(rows, _listed(rows)))


def _row(found: "FoundDirection", site: str | None) -> Row:
    return {
        "name": found.name,
        "site": site,
        "length": float(found.row.norm()),
        "offset": found.offset,
        **found.provenance,
    }


def _listed(rows: Sequence[Row]) -> list[display.Column]:
    """The columns that any of the rows has."""
    known = {
        "name": display.key("name"),
        "site": display.key("site"),
        "method": display.Column("method", lambda row: row.get("method") or display.NOTHING),
        "length": display.key("length", right=True),
        "offset": display.key("offset", right=True),
        "variance": display.Column("variance", lambda row: _share(row.get("variance")), right=True),
        "auroc": display.Column("AUROC", lambda row: _auroc(row.get("auroc"))),
        "p": display.Column("p", lambda row: display.number(row.get("p")), right=True),
    }
    return [column for key, column in known.items() if any(key in row for row in rows)]


def _auroc(value: object) -> str:
    """A value with its interval, as `fit` notes it; files may hold anything there."""
    match value:
        case [float() | int() as middle, float() | int() as low, float() | int() as high]:
            return spanned(middle, low, high)
        case _:
            return display.NOTHING if value is None else display.visible(str(value))


def _share(value: float | None) -> str:
    return display.NOTHING if value is None else f"{value:.1%}"
