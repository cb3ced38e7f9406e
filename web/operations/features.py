"""Operations that run text through the model and look at features: try, find."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ...subject.errors import NeuronautError
from .arguments import Arguments, FeatureAddress, ModelName, Text, Texts
from .context import Context
from .results import Result

if TYPE_CHECKING:
    from ...subject.address import SourceId
    from ...subject.model import Subject


class TryArguments(Arguments):
    """Run texts of your own through the model and read one feature at every token.

    Gives the actual activation beside the one that the feature's rule predicts, so that an explanation can be put to
    the test: write texts on which it should fire, and near misses on which it should not.
    """

    feature: FeatureAddress
    texts: Annotated[Texts, Field(description="Texts to run, each by itself.")]


class FindArguments(Arguments):
    """Find the features that fire on a text, the most telling first; or that differ the most between two texts.

    `relative` is the activation in units of the feature's largest one in the corpus, `share` the share of the corpus's
    tokens on which it is at least as high; most telling is what has a high one and a low other. With `against`, `token`
    is where the feature is highest in whichever text it is higher in.
    """

    text: Annotated[Text, Field(description="The text.")]
    against: Annotated[Text | None, Field(description="Another text: what differs most between the two.")] = None
    token: Annotated[
        str | None, Field(max_length=200, description="Only on this token of the text: its position, or as it reads.")
    ] = None
    sources: Annotated[
        list[str],
        Field(max_length=64, description="Only features of these sources, for example demo:mlp.2; all by default."),
    ] = []
    model: ModelName = None
    count: Annotated[int, Field(ge=1, le=50, description="Features to list.")] = 10


def try_feature(context: Context, arguments: TryArguments) -> Result:
    """Measure a feature on texts."""
    from ...labelling.opening import with_limits
    from ...labelling.try_text import try_text

    feature = context.store.feature(arguments.feature)
    subject = with_limits(context.subject(feature.source.model, [feature.source]), context.store, [feature.source])
    source = context.source(subject, feature.source)
    with context.watch.over(subject):
        rows = [try_text(text, feature, context.store, subject, source=source) for text in arguments.texts]
    notes = subject.remarks(arguments.texts)
    if any(row["predicted"] is None for row in rows):
        notes = [*notes, "predicted is null: the feature has no rule that could predict"]
    return Result(rows, (*notes, *_position_notes(subject)))


def _position_notes(subject: "Subject") -> tuple[str, ...]:
    """How positions differ from those of tools that run prompts, where the model puts a token of its own in front."""
    if subject.bos is None:
        return ()
    first = subject.vocabulary[subject.bos]
    return (f"position 0 is the text's own first token; in run, lens, attention and edits {first} is 0, and this is 1",)


def find_features(context: Context, arguments: FindArguments) -> Result:
    """Find what fires on a text, or differs between two."""
    from ...labelling.find import describe_hits, find
    from ...labelling.opening import with_limits

    if arguments.against is not None and arguments.token is not None:
        raise NeuronautError("token is of one text; leave out against, or token")
    ids = _choose_sources(context, arguments)
    subject = with_limits(context.subject(ids[0].model, ids), context.store, ids)
    sources = [context.source(subject, id) for id in ids]
    texts = [text for text in (arguments.text, arguments.against) if text is not None]
    with context.watch.over(subject):
        hits = find(
            subject,
            sources,
            arguments.text,
            against=arguments.against,
            token=arguments.token,
            store=context.store,
            count=arguments.count,
        )
    notes = (*subject.remarks(texts), *(() if hits else ("no feature is active there",)))
    return Result(describe_hits(context.store, sources, hits), (*notes, *_position_notes(subject)))


def _choose_sources(context: Context, arguments: FindArguments) -> "list[SourceId]":
    """The sources that are named, all of one model, or all of the model's."""
    from ...subject.address import SourceId

    if not arguments.sources:
        model = context.choose_model(arguments.model)
        return [SourceId.parse(row["source"]) for row in context.store.sources() if row["model"] == model]
    ids = list(dict.fromkeys(SourceId.parse(str(context.store.known_source(name))) for name in arguments.sources))
    if len(models := {id.model for id in ids}) > 1:
        raise NeuronautError(f"sources of {' and '.join(sorted(models))} were named; wanted those of one model")
    return ids
