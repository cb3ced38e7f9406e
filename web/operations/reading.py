"""Operations that read off the model without changing it: lens, heads, attention, attribute."""

from typing import Annotated, Literal

from pydantic import Field

from ...subject.errors import NeuronautError
from .arguments import Arguments, FeatureAddress, ModelName, Text, Texts
from .context import Context
from .prompts import Answer, Positions, PromptArguments, Seed, ask_prompts, known_sources, open_edits
from .results import Result

Sites = Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=16)]


class LensArguments(Arguments):
    """See a prediction take shape, layer by layer: the logit lens.

    Each point of the residual stream is put through the final norm and the unembedding, as if it were the last. KL says
    how far that is from what the model really says, rank how many tokens stand above the target.
    """

    prompts: Annotated[Texts, Field(description="Prompts, each by itself.")]
    sites: Annotated[Sites, Field(description="resid_post (every layer), resid_post.2 and so on; all by default.")] = []
    positions: Positions = "last"
    target: Answer = None
    top: Annotated[int, Field(ge=1, le=10, description="Likeliest tokens for each site.")] = 3
    model: ModelName = None


class HeadsArguments(Arguments):
    """Find heads by where they attend.

    The share of each head's attention that goes to the token before (previous), to earlier occurrences of the same
    token (duplicate), to what followed those (induction), or to the first token; on random tokens repeated once, or on
    your prompts. Where a head looks is not yet what it does: ablate it with run, or patch it.
    """

    prompts: Annotated[
        list[Text], Field(max_length=4, description="Prompts; random repeated tokens if there are none.")
    ] = []
    kinds: Annotated[
        list[Literal["previous", "duplicate", "induction", "first"]],
        Field(min_length=1, max_length=4, description="Kinds of attention."),
    ] = ["previous", "duplicate", "induction", "first"]
    top: Annotated[int, Field(ge=1, le=100, description="Heads of each kind, the highest first.")] = 5
    rows: Annotated[int, Field(ge=1, le=32, description="Random sequences that are drawn.")] = 8
    seed: Seed = 0
    model: ModelName = None


class AttentionArguments(Arguments):
    """Show where one attention head attends on a prompt, from each token."""

    prompt: Annotated[Text, Field(description="The prompt.")]
    head: Annotated[str, Field(pattern=r"^(head|pattern)\.\d{1,4}:\d{1,4}$", description="head.LAYER:HEAD.")]
    top: Annotated[int, Field(ge=1, le=20, description="Tokens that each token attends to the most.")] = 3
    whole: Annotated[bool, Field(description="Also the attention to every token.")] = False
    model: ModelName = None


class AttributeArguments(PromptArguments):
    """Say what wrote a logit, or which tokens of the prompt a logit or a feature's activation rests on.

    Direct logit attribution takes the answer's logit (less that of wrong) apart into what every layer, or with split
    every head, neuron or feature of a dictionary, writes in its direction; the parts add up to it. With inputs it is
    shared among the tokens of each prompt instead.
    """

    split: Annotated[
        Sites, Field(description="By units of these: head.3, mlp.2, head (all layers) or resid_post.2@sae.")
    ] = []
    positions: Positions = "last"
    inputs: Annotated[
        Literal["gradient", "integrated", "occlusion"] | None,
        Field(description="By tokens of the prompt: gradient x input, integrated gradients, leaving each out."),
    ] = None
    feature: Annotated[FeatureAddress | None, Field(description="With inputs: of this feature's activation.")] = None
    steps: Annotated[
        int | None, Field(ge=1, le=4096, description="Of inputs=integrated, along the line; as many as add up if null.")
    ] = None
    top: Annotated[int, Field(ge=1, le=100, description="Parts, those that weigh most.")] = 15


def lens(context: Context, arguments: LensArguments) -> Result:
    """Read prompts through the logit lens."""
    from ...causal.results.read import lens_rows
    from ...labelling.opening import sites_of

    subject = open_edits(context, arguments.model, []).subject
    with context.watch.over(subject):
        questions = ask_prompts(subject, arguments.prompts, answer=arguments.target)
        sites = [site for text in arguments.sites for site in sites_of(subject, text)]
        rows = lens_rows(subject, questions, positions=arguments.positions, sites=sites or None, top=arguments.top)
    return Result(rows, questions.notes)


def heads(context: Context, arguments: HeadsArguments) -> Result:
    """Score heads by where they attend."""
    from ...causal.heads import head_scores, repeated_tokens
    from ...causal.prompts import Batch
    from ...causal.results.read import score_row

    subject = open_edits(context, arguments.model, []).subject
    with context.watch.over(subject):
        if arguments.prompts:
            batch = Batch.of(subject, arguments.prompts)
        else:
            batch = repeated_tokens(subject, rows=arguments.rows, seed=arguments.seed)
        scores = head_scores(subject, batch, kinds=tuple(arguments.kinds), seed=arguments.seed)
    rows = [
        score_row(score)
        for kind in arguments.kinds
        for score in [score for score in scores if score.kind == kind][: arguments.top]
    ]
    left_out = len(scores) - len(rows)
    return Result(rows, (), f"{left_out} heads are lower; ask with a larger top" if left_out else None)


def attention(context: Context, arguments: AttentionArguments) -> Result:
    """Show one head's pattern."""
    from ...causal.results.read import head_pattern, pattern_rows

    subject = open_edits(context, arguments.model, []).subject
    with context.watch.over(subject):
        questions = ask_prompts(subject, [arguments.prompt])
        pattern = head_pattern(subject, questions, arguments.head)
    rows = pattern_rows(subject, questions, pattern, top=arguments.top)
    if not arguments.whole:
        for row in rows:
            del row["attention"]
    return Result(rows, questions.notes)


def attribute(context: Context, arguments: AttributeArguments) -> Result:
    """Attribute a logit, or an activation."""
    if arguments.inputs is None:
        if arguments.feature is not None:
            raise NeuronautError("feature goes with inputs; add inputs=integrated, for example")
        return _attribute_parts(context, arguments)
    if arguments.split or arguments.positions != "last":
        raise NeuronautError("split and positions are of what writes a logit; leave them out, or inputs")
    if arguments.feature is not None and (arguments.answer is not None or arguments.wrong is not None):
        raise NeuronautError("answer and wrong are of a logit; leave them out, or feature")
    return _attribute_inputs(context, arguments)


def _attribute_parts(context: Context, arguments: AttributeArguments) -> Result:
    from ...causal.logit_attribution import logit_attribution
    from ...causal.results.attribute import component_rows, describe_logit
    from ...labelling.opening import sites_of
    from ...subject.dictionary import Dictionary

    model = context.choose_model(arguments.model)
    names = [text.removeprefix(f"{model}:") for text in arguments.split]
    ids = known_sources(context, model, (name for name in names if "@" in name))
    subject = context.subject(model, ids.values())
    opened = {name: context.source(subject, id) for name, id in ids.items()}
    dictionaries = {name: source for name, source in opened.items() if isinstance(source, Dictionary)}
    if others := sorted(opened.keys() - dictionaries.keys()):
        raise NeuronautError(f"{others[0]} does not add up to a vector; split by a dictionary")
    parts = [part for name in names for part in ([dictionaries[name]] if "@" in name else sites_of(subject, name))]
    with context.watch.over(subject):
        questions = ask_prompts(subject, arguments.prompts, answer=arguments.answer, wrong=arguments.wrong)
        attribution = logit_attribution(
            subject,
            questions.batch,
            token=questions.answers,
            against=questions.wrong,
            positions=arguments.positions,
            split=parts,
        )
    rows = component_rows(attribution)
    rest = rows[arguments.top :]
    more = f"the other {len(rest)} parts add up to {sum(row['value'] for row in rest):.3g}; ask with a larger top"
    notes = (*questions.notes, describe_logit(subject, questions, attribution))
    return Result(rows[: arguments.top], notes, more if rest else None)


def _attribute_inputs(context: Context, arguments: AttributeArguments) -> Result:
    from ...causal.results.attribute import doubts, input_rows

    feature = None if arguments.feature is None else context.store.feature(arguments.feature)
    model = context.choose_model(arguments.model if feature is None else feature.source.model)
    subject = context.subject(model, [] if feature is None else [feature.source])
    source = None if feature is None else context.source(subject, feature.source)
    with context.watch.over(subject):
        questions = ask_prompts(subject, arguments.prompts, answer=arguments.answer, wrong=arguments.wrong)
        rows = input_rows(
            subject, questions, str(arguments.inputs), feature=feature, source=source, steps=arguments.steps
        )
    return Result(rows, (*questions.notes, *doubts(rows, feature)))
