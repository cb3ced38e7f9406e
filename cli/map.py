"""`neuronaut map`: draws the features of a source, or tokens at its site, as points in the plane."""

from typing import TYPE_CHECKING, Any

import click

from . import display
from .common import Form, Row, emit, open_store, result_options, say
from .label import subject_options
from .query import embedder_option

if TYPE_CHECKING:
    from ..data.store.maps import Kind, Map, Method
    from ..data.store.store import Store
    from ..subject.address import SourceId


@click.command("map")
@click.argument("source")
@click.option(
    "--of",
    "kind",
    type=click.Choice(("decoder", "explanations", "activations")),
    default="decoder",
    show_default=True,
    help="Features by what they write, features by how they are explained, or tokens by what is at the site.",
)
@click.option(
    "--method",
    type=click.Choice(("pca", "umap")),
    default="pca",
    show_default=True,
    help="umap needs the extra [maps].",
)
@embedder_option
@click.option(
    "--points",
    type=click.IntRange(4),
    metavar="N",
    help="At most so many, drawn at random; 100,000 features or 5,000 tokens if not given.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn at random.")
@subject_options
@result_options
def map_(
    source: str,
    kind: "Kind",
    method: "Method",
    embedder: str | None,
    points: int | None,
    seed: int,
    database: str,
    form: Form,
    **load_options: Any,
) -> None:
    """Draw a source as a map, which `serve` shows.

    Features whose decoders point the same way, or whose explanations say the same, are near each other; so are tokens
    at which the site's activations are alike. The map is kept in the database in place of an earlier one of its kind
    and method.

    \b
    Examples:
      neuronaut map demo:resid_post.2@sae
      neuronaut map demo:resid_post.2@sae --method umap --seed 1
      neuronaut map demo:mlp.2 --of explanations
      neuronaut map demo:mlp.2 --of activations --points 2000
    """
    from ..subject.address import SourceId

    if embedder is not None and kind != "explanations":
        raise click.UsageError(f"--embedder is of --of explanations; leave it out with --of {kind}")
    with open_store(database, write=True) as store:
        known = SourceId.parse(str(store.known_source(source)))
        bound = {} if points is None else {"points": points}
        drawn = _draw(store, known, kind, load_options, embedder=embedder, method=method, seed=seed, **bound)
        store.keep_map(drawn)
    row = {"source": str(known), "of": kind, "method": method, "n": len(drawn.members), **drawn.provenance}
    emit([row], form, lambda _: _format(row))
    say(f"neuronaut serve -d {database} shows it at /map?source={known}&of={kind}&method={method}")


def _draw(store: "Store", source: "SourceId", kind: "Kind", load_options: dict[str, Any], **options: Any) -> "Map":
    from ..labelling.maps import map_activations, map_decoders, map_explanations
    from ..labelling.opening import LoadOptions, stored_sources, stored_subject
    from ..subject.address import Feature

    if kind == "explanations":
        return map_explanations(store, source, **options)
    del options["embedder"]
    opening = LoadOptions(**load_options)
    subject = stored_subject(store, source.model, opening, sources=[source])
    opened = stored_sources(store, subject, [Feature(source, 0)], opening)[source]
    if kind == "decoder":
        return map_decoders(subject, opened, **options)
    return map_activations(subject, opened, store, **options)


def _format(row: Row) -> str:
    told = f"{row['source']}  {row['of']} by {row['method'].upper()}, {row['n']:,} points"
    if "variance" in row:
        shares = " and ".join(f"{share:.1%}" for share in row["variance"])
        return display.visible(f"{told}; the axes have {shares} of the variance")
    return display.visible(f"{told}; seed {row['seed']}, umap-learn {row['versions']['umap-learn']}")
