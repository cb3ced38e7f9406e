"""Operations that ask the database alone: sources, search, list, show, similar."""

from typing import Annotated, Literal

from pydantic import Field

from .arguments import Arguments, FeatureAddress, SourceName
from .context import Context
from .results import Result

MOST_ROWS = 50
FARTHEST = 100_000
"""Rows that may be passed over."""

Limit = Annotated[int, Field(ge=1, le=MOST_ROWS, description="Most rows.")]
Offset = Annotated[int, Field(ge=0, le=FARTHEST, description="Rows to pass over, to get the next page.")]
Status = Literal["explained", "weak", "dead", "too_rare", "dense", "no_pattern", "failed", "unlabelled"]


class Filters(Arguments):
    """Conditions on rows."""

    source: SourceName = None
    min_score: Annotated[float | None, Field(description="Only scores of at least this.")] = None
    status: Annotated[
        Status | None, Field(description="Only features of this status; weak: the explanation proves nothing.")
    ] = None
    beats_baseline: Annotated[bool, Field(description="Only explanations whose score is above every baseline.")] = False
    limit: Limit = 20
    offset: Offset = 0


class SearchArguments(Filters):
    """Find features by the words of their explanations, the best match first.

    A row is a feature with its explanation and the score that the explanation got on text that the explainer never
    saw. All words must be there; those in double quotes stand together. To find features by a text on which they fire,
    use find.
    """

    query: Annotated[str, Field(min_length=1, max_length=500, description="Words of the explanation.")]


class ListArguments(Filters):
    """List features with explanations and scores, of one source or of all."""

    max_score: Annotated[float | None, Field(description="Only scores of at most this.")] = None
    sort: Annotated[
        Literal["feature", "score", "worst", "density", "peak"],
        Field(description="score: high scores first; worst: low ones; density: those that fire most often."),
    ] = "feature"


class ShowArguments(Arguments):
    """Show all that is known of one feature.

    Explanation and rule, scores beside baselines, statistics of its activation, and the texts that activate it most.
    """

    feature: FeatureAddress
    count: Annotated[int, Field(ge=0, le=20, description="Texts that activate it most.")] = 3
    provenance: Annotated[
        bool, Field(description="Where every number comes from, and the longer rule (predictor) that predicts.")
    ] = False


class SourcesArguments(Arguments):
    """Say which sources the database holds: the neurons of a layer, or a dictionary, each with its model.

    `alive` are the features that ever fired, `explained` those with an explanation; `tokens` of the `corpus` were read.
    """

    provenance: Annotated[bool, Field(description="How each was harvested.")] = False


class SimilarArguments(Arguments):
    """Find features that fire on the same texts as one; similarity is the share of top texts that both have."""

    feature: FeatureAddress
    limit: Limit = 10


def sources(context: Context, arguments: SourcesArguments) -> Result:
    """List what was harvested."""
    rows = context.store.sources()
    if not arguments.provenance:
        for row in rows:
            del row["provenance"]
    return Result(rows, () if rows else ("nothing was harvested yet",))


def search(context: Context, arguments: SearchArguments) -> Result:
    """Look for words in the explanations."""
    rows = context.store.search_rows(
        arguments.query,
        source=arguments.source,
        limit=arguments.offset + arguments.limit + 1,
        min_score=arguments.min_score,
        status=arguments.status,
        beats_baseline=arguments.beats_baseline,
    )
    return _page(context, rows, arguments)


def list_features(context: Context, arguments: ListArguments) -> Result:
    """List the features of the database."""
    rows = context.store.list_rows(
        arguments.source,
        limit=arguments.offset + arguments.limit + 1,
        sort=arguments.sort,
        min_score=arguments.min_score,
        max_score=arguments.max_score,
        status=arguments.status,
        beats_baseline=arguments.beats_baseline,
    )
    return _page(context, rows, arguments)


def _page(context: Context, rows: list[dict[str, object]], arguments: Filters) -> Result:
    """One page of rows, of which one too many was asked for."""
    end = arguments.offset + arguments.limit
    more = f"there are more rows; ask again with offset={end}" if len(rows) > end else None
    page = context.store.with_names(rows[arguments.offset : end])
    notes = () if page else ("nothing was found; all words and conditions must be met: try other ones, or fewer",)
    return Result(page, notes, more)


def show(context: Context, arguments: ShowArguments) -> Result:
    """Describe a feature."""
    from ...labelling.inspect import describe

    row = describe(context.store, context.store.feature(arguments.feature), count=arguments.count)
    if not arguments.provenance:
        del row["provenance"], row["predictor"]
        for score in row["scores"]:
            del score["provenance"]
    return Result(context.store.with_names([row]))


def similar(context: Context, arguments: SimilarArguments) -> Result:
    """Find features that share top texts."""
    from ...data.store.search import similar as find_similar

    feature = context.store.feature(arguments.feature)
    rows = find_similar(context.store, feature, embedder=None, limit=arguments.limit).by_activation
    notes = () if rows else ("no other feature has one of its top texts",)
    return Result(context.store.with_names([row | {"by": "activation"} for row in rows]), notes)
