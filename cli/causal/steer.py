"""`neuronaut steer`: what a model writes at several strengths of an edit, how its answer moves, and what else does."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ...subject.errors import NeuronautError
from .. import display
from ..common import Form, Row, emit, form_options, say
from ..display import blocks, quoted, signed, spanned_column, trusts
from .inputs import answer_options, metric_option, picture_option, prompts_option, read_questions, seed_option, shown
from .setup import material_options, open_setup

if TYPE_CHECKING:
    from ...causal.doses import DoseResponse
    from ...causal.questions import Questions

STRENGTHS = "-2,-1,-0.5,0,0.5,1,2,4"


@click.command()
@click.argument("model")
@click.argument("edit")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@prompts_option
@click.option(
    "--strengths",
    default=STRENGTHS,
    show_default=True,
    metavar="X,X,...",
    help="What takes the place of the edit's number.",
)
@answer_options
@metric_option(help="Read out of the answer; kl of all next tokens if none is given.")
@click.option(
    "--tokens",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    metavar="N",
    help="Tokens that are written after each prompt.",
)
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="Of what is written.")
@click.option(
    "--controls",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    metavar="N",
    help="Random directions of the same norm, at each strength.",
)
@click.option(
    "--text-rows",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    metavar="N",
    help="Rows of the reference text on which side effects are measured; most of the work.",
)
@seed_option
@picture_option
@material_options
@form_options
def steer(
    model: str,
    edit: str,
    prompts: tuple[str, ...],
    file: str | None,
    strengths: str,
    answer: str | None,
    wrong: str | None,
    metric: str | None,
    tokens: int,
    temperature: float,
    controls: int,
    text_rows: int,
    seed: int,
    picture: str | None,
    form: Form,
    **options: Any,
) -> None:
    """Steer, from weak to strong.

    EDIT adds to, sets or scales a feature or a direction (SITE:UNIT+=1q, =1q or *=1); its number is replaced by
    each of the strengths. At each: how far the readout moves from the plain run, how that stands among random
    directions of the same norm, what it costs on unrelated text (KL and loss, nats per token), and what MODEL
    writes. q counts in the feature's largest activation on the reference text.

    \b
    Examples:
      neuronaut steer demo resid_post.2@sae:819+=1q "def __init__(self, name): self.name ="
      neuronaut steer demo demo:mlp.3:104+=1q "x = [1, 2" --answer "]" --wrong ")" --picture steer.png
      neuronaut steer gpt2 resid_post.6:joy+=1 "I feel" --direction joy=joy.json --reference book.txt
    """
    from ...causal.results.steer import steer_rows
    from ...causal.work import Work

    doses = _read_strengths(strengths)
    setup = open_setup(model, [edit], options, always="steering is measured on")
    questions = read_questions(setup.subject, prompts, file, answer=answer, wrong=wrong)
    with shown("steer", work := Work()):
        rows, response = steer_rows(
            setup,
            questions,
            strengths=doses,
            metric=metric,
            tokens=tokens,
            temperature=temperature,
            controls=controls,
            text_rows=text_rows,
            seed=seed,
            work=work,
        )
    if picture is not None:
        response.picture(picture)
    emit(rows, form, lambda table_rows: _tables(table_rows, response, questions))
    if form == "table":
        say(response.describe())


def _read_strengths(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise NeuronautError(f"--strengths {text} are no numbers; wanted for example -1,0,1,2") from None


def _tables(rows: list[Row], response: "DoseResponse", questions: "Questions") -> str:
    columns = [
        display.Column("strength", lambda row: f"{row['strength']:g}", right=True),
        display.key("response", response.readout, right=True),
        spanned_column("effect"),
        display.Column("percentile", lambda row: display.number(row["percentile"]), right=True),
        display.Column("KL elsewhere", lambda row: f"{row['kl']:.3f}", right=True),
        display.Column("loss elsewhere", lambda row: signed(row["loss"]), right=True),
    ]
    return blocks(
        display.table(rows, columns),
        *(_text_table(rows, number, text) for number, text in enumerate(questions.texts)),
        *trusts({name: asdict(fidelity) for name, fidelity in response.dictionaries.items()}),
    )


def _text_table(rows: Sequence[Row], number: int, prompt: str) -> str:
    if not rows[0]["texts"]:
        return ""
    columns = [
        display.Column("strength", lambda row: f"{row['strength']:g}", right=True),
        display.Column(quoted(prompt), lambda row: display.visible(row["texts"][number])),
    ]
    return display.table(rows, columns)
