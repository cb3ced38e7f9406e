"""`neuronaut attribute`: what writes a logit, and which tokens of the prompt a logit or an activation rests on."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ...subject.errors import NeuronautError
from .. import display
from ..common import Form, Row, emit, form_options, say
from ..display import quoted, signed, spanned_column
from .inputs import answer_options, picture_option, positions_option, prompts_option, read_questions, top_option
from .setup import dictionary_options, open_dictionaries, open_subject, sites_named, subject_options

if TYPE_CHECKING:
    from ...causal.logit_attribution import LogitAttribution
    from ...causal.questions import Questions
    from ...subject.address import Feature
    from ...subject.model import Subject
    from ...subject.sources import Source


@click.command()
@click.argument("model")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@prompts_option
@answer_options
@click.option(
    "--split",
    multiple=True,
    metavar="SITE",
    help="By its units: head.3, mlp.2, head (all layers) or a dictionary resid_post.2@sae.",
)
@positions_option
@click.option(
    "--inputs",
    "method",
    type=click.Choice(["gradient", "integrated", "occlusion"]),
    help="By tokens of the prompt instead.",
)
@click.option("--feature", metavar="FEATURE", help="With --inputs: of this feature's activation, not of a logit.")
@click.option("--baseline", metavar="TOKEN", help="With --inputs: what stands for nothing; the mean of all tokens.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="N",
    help="Of --inputs integrated, along the line; as many as add up, if not given.",
)
@top_option
@picture_option
@dictionary_options
@subject_options
@form_options
def attribute(
    model: str,
    prompts: tuple[str, ...],
    file: str | None,
    answer: str | None,
    wrong: str | None,
    split: tuple[str, ...],
    positions: str,
    method: str | None,
    feature: str | None,
    baseline: str | None,
    steps: int | None,
    top: int,
    picture: str | None,
    form: Form,
    **options: Any,
) -> None:
    """Say what wrote a logit, or which input tokens it rests on.

    Direct logit attribution takes the answer's logit (less that of --wrong) apart into what every layer, or with
    --split every head, neuron or feature, writes in its direction; the parts add up to it exactly. Over several
    prompts the means are shown with their intervals. With --inputs the logit, or a feature's activation, is shared
    out among the tokens of each prompt: by gradient x input, integrated gradients, or leaving each out.

    \b
    Examples:
      neuronaut attribute demo "def __init__(self, name): self.name =" --split head
      neuronaut attribute demo "data = list[name, key" --answer "]" --wrong ")" --split head --split mlp.3
      neuronaut attribute demo "data = list[name, key" --answer "]" --inputs integrated --picture tokens.png
      neuronaut attribute demo "import os" --inputs occlusion --feature demo:resid_post.2@sae:50
    """
    from ...causal.results.attribute import component_rows, describe_logit

    if method is None and (feature or baseline):
        raise click.UsageError("--feature and --baseline go with --inputs; add --inputs integrated, for example")
    if method is not None and (split or positions != "last"):
        raise click.UsageError("--split and --positions are of what writes a logit; leave them out, or --inputs")
    if steps is not None and method != "integrated":
        raise click.UsageError("--steps are those of --inputs integrated; add it, or leave them out")
    if feature is not None and (answer is not None or wrong is not None):
        raise click.UsageError("--answer and --wrong are of a logit; leave them out, or --feature")
    subject = open_subject(model, options)
    questions = read_questions(subject, prompts, file, answer=answer, wrong=wrong)
    if method is not None:
        _attribute_inputs(
            subject,
            questions=questions,
            method=method,
            feature=feature,
            baseline=baseline,
            steps=steps,
            picture=picture,
            form=form,
            options=options,
        )
        return
    attribution = _attribute_logit(subject, questions, split, positions, options)
    rows = component_rows(attribution)
    if picture is not None:
        _draw_components(rows[:top], questions, subject, picture)
    emit(rows, form, lambda table_rows: _component_table(table_rows, top))
    if form == "table":
        say(describe_logit(subject, questions, attribution))


def _open_agreeing(subject: "Subject", named: Sequence[str], options: Mapping[str, Any]) -> "dict[str, Source]":
    """Open dictionaries, whose training text had BOS where the prompts have it, and directions."""
    from ...labelling.opening import settle_bos

    sources = open_dictionaries(subject, named, options)
    if (wanted := settle_bos(subject, sources.values(), asked=options["bos"]).convention) != subject.convention:
        needed = "always" if wanted.bos else "never"
        raise NeuronautError(f"the prompts have {subject.convention}, but {wanted.reason}; add --bos {needed}")
    return sources


def _attribute_logit(
    subject: "Subject", questions: "Questions", split: Sequence[str], positions: str, options: Mapping[str, Any]
) -> "LogitAttribution":
    from ...causal.logit_attribution import logit_attribution
    from ...subject.dictionary import Dictionary

    named = [text for text in split if "@" in text]
    opened = _open_agreeing(subject, named, options)
    dictionaries = {name: source for name, source in opened.items() if isinstance(source, Dictionary)}
    if others := sorted(opened.keys() - dictionaries.keys()):
        raise NeuronautError(f"{others[0]} holds directions, which do not add up to a vector; split by a dictionary")
    parts = [dictionaries.get(text, text) for text in sites_named(subject, split)]
    return logit_attribution(
        subject, questions.batch, token=questions.answers, against=questions.wrong, positions=positions, split=parts
    )


def _component_table(rows: list[Row], top: int) -> str:
    columns = [display.key("component"), spanned_column("value", "logits"), display.Column("", _make_bar(rows))]
    rest = rows[top:]
    table_rows = rows[:top]
    if rest:
        total = sum(row["value"] for row in rest)
        table_rows = [
            *table_rows,
            {"component": f"the other {len(rest)}", "value": total, "ci_low": None, "ci_high": None},
        ]
    return display.table(table_rows, columns)


def _make_bar(rows: Sequence[Row], key: str = "value") -> Callable[[Mapping[str, Any]], str]:
    """Gives what draws a row's bar: dark for what raises, light for what lowers."""
    largest = max(abs(row[key]) for row in rows) or 1.0
    return lambda row: ("█" if row[key] > 0 else "░") * min(24, round(24 * abs(row[key]) / largest))


def _draw_components(rows: Sequence[Row], questions: "Questions", subject: "Subject", picture: str) -> None:
    from ...causal.measures import Interval
    from ...causal.pictures import points
    from ...causal.results.attribute import describe_answers

    name = f"What writes {describe_answers(subject, questions)}"
    intervals = [None if row["ci_low"] is None else Interval(row["ci_low"], row["ci_high"]) for row in rows]
    points(
        {name: [row["value"] for row in rows]},
        labels=[row["component"] for row in rows],
        intervals={name: intervals},
        title="",
        path=picture,
        unit="logits",
    )


# Input tokens


def _attribute_inputs(
    subject: "Subject",
    questions: "Questions",
    method: str,
    feature: str | None,
    baseline: str | None,
    steps: int | None,
    picture: str | None,
    form: Form,
    options: Mapping[str, Any],
) -> None:
    from ...causal.results.attribute import doubts, input_rows

    chosen, source = (None, None) if feature is None else _open_feature(subject, feature, options)
    rows = input_rows(subject, questions, method, feature=chosen, source=source, baseline=baseline, steps=steps)
    if picture is not None:
        _draw_inputs(rows, picture)
    emit(rows, form, lambda table_rows: "\n\n".join(map(_input_table, table_rows)))
    for line in doubts(rows, feature):
        say(line)


def _open_feature(subject: "Subject", text: str, options: Mapping[str, Any]) -> "tuple[Feature, Source]":
    from ...subject.address import Feature
    from ...subject.opening import open_source

    chosen = Feature.parse(text)
    if chosen.source.model != subject.name:
        raise NeuronautError(f"{text} is a feature of {chosen.source.model}; wanted one of {subject.name}")
    name = f"{chosen.source.site}@{chosen.source.dictionary}"
    named = [name] if chosen.source.dictionary else []
    return chosen, _open_agreeing(subject, named, options).get(name) or open_source(subject, chosen.source)


def _input_table(row: Row) -> str:
    tokens: list[Row] = [
        {"position": place, "token": token, "value": value}
        for place, (token, value) in enumerate(zip(row["tokens"], row["values"], strict=True))
    ]
    columns = [
        display.key("position", right=True),
        display.Column("token", lambda row: quoted(row["token"])),
        display.Column("worth", lambda row: signed(row["value"]), right=True),
        display.Column("", _make_bar(tokens)),
    ]
    return f"{row['target']} by {row['method'].replace('_', ' ')}\n{display.table(tokens, columns)}\n{_sum_line(row)}"


def _sum_line(row: Row) -> str:
    total = f"sum {sum(row['values']):.3g}, measured {row['metric']:.3g}"
    if row["at_baseline"] is not None:
        total += f", {row['at_baseline']:.3g} at the baseline"
    error = row["completeness_error"]
    return total if error is None else f"{total}: completeness error {error:+.2g} ({row['missed']:.1%})"


def _draw_inputs(rows: Sequence[Row], picture: str) -> None:
    from ...causal.pictures import bars

    if len(rows) != 1:
        raise NeuronautError(f"a picture shows one prompt, and {len(rows)} are given; leave --picture out, or name one")
    (row,) = rows
    bars(
        {"worth": row["values"]},
        labels=[f"{place} {quoted(token)}" for place, token in enumerate(row["tokens"])],
        title=f"What the {row['target']} rests on, by {row['method'].replace('_', ' ')}",
        path=picture,
        unit=row["unit"],
    )
