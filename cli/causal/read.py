"""`neuronaut lens` and `neuronaut heads`: what can be read off a model without changing it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ...subject.errors import NeuronautError
from .. import display
from ..common import Form, Row, emit, form_options
from ..display import blocks, quoted, spanned_column
from .inputs import picture_option, positions_option, prompts_option, read_questions, seed_option
from .setup import open_subject, sites_named, subject_options

if TYPE_CHECKING:
    from ...causal.heads import HeadScore, Kind
    from ...causal.questions import Questions
    from ...subject.model import Subject


@click.command()
@click.argument("model")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@prompts_option
@click.option("--site", "sites", multiple=True, metavar="SITE", help="resid_post.2, resid_post (all) and so on.")
@positions_option
@click.option("--target", metavar="TOKEN", help="The token to follow; the subject's own likeliest if not given.")
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Tokens for each site.")
@picture_option
@subject_options
@form_options
def lens(
    model: str,
    prompts: tuple[str, ...],
    file: str | None,
    sites: tuple[str, ...],
    positions: str,
    target: str | None,
    top: int,
    picture: str | None,
    form: Form,
    **options: Any,
) -> None:
    """See a prediction take shape, layer by layer.

    The logit lens: each point of the residual stream is put through the final norm and the unembedding, as if it
    were the last. KL says how far that is from what MODEL really says (0 at the last layer, which is checked);
    rank how many tokens stand above the target. A picture shows all positions of one PROMPT.

    \b
    Examples:
      neuronaut lens demo "def __init__(self, name): self.name ="
      neuronaut lens demo "data = list[name, key" --positions -2,-1 --target "]" --site resid_post
      neuronaut lens gpt2 "The Eiffel Tower is in" --picture lens.png --json
    """
    from ...causal.results.read import lens_rows

    subject = open_subject(model, options)
    questions = read_questions(subject, prompts, file, answer=target)
    chosen = sites_named(subject, sites) or None
    if picture is not None:
        _draw_lens(subject, questions, picture, sites=chosen, top=top)
    rows = lens_rows(subject, questions, positions=positions, sites=chosen, top=top)
    emit(rows, form, _lens_table)


def _lens_table(rows: list[Row]) -> str:
    columns = [
        display.key("site"),
        display.Column("KL", lambda row: f"{row['kl']:.2f}", right=True),
        display.Column("p(target)", lambda row: f"{row['probability']:.3f}", right=True),
        display.key("rank", right=True),
        display.Column("likeliest next tokens", _format_tokens),
    ]
    places: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        places.setdefault((row["prompt"], row["position"]), []).append(row)
    return blocks(
        *(
            f"{display.visible(prompt)}\nafter {quoted(block[0]['token'])} at position {position}, "
            f"target {quoted(block[0]['target'])}\n{display.table(block, columns)}"
            for (prompt, position), block in places.items()
        )
    )


def _format_tokens(row: display.Row) -> str:
    return "  ".join(f"{quoted(token['token'])} {token['probability']:.2f}" for token in row["top"])


def _draw_lens(
    subject: "Subject", questions: "Questions", picture: str, *, sites: Sequence[str] | None, top: int
) -> None:
    from ...causal.pictures import heat_map
    from ...causal.results.read import look

    if len(questions.texts) != 1:
        raise NeuronautError(f"a picture shows one prompt, and there are {len(questions.texts)}; name one")
    tokens = questions.tokens(subject, 0)
    result = look(subject, questions, questions.batch.real, sites=sites, top=top)
    heat_map(
        result.probabilities[:, :, 0].tolist(),
        rows=result.sites,
        columns=[f"{place} {quoted(token)}" for place, token in enumerate(tokens)],
        texts=[[quoted(token) for token in subject.decode_tokens(row)] for row in result.top[:, :, 0].tolist()],
        title=f"Logit lens: likeliest next token after each position of {quoted(questions.texts[0])}",
        path=picture,
        unit="its probability",
    )


@click.command()
@click.argument("model")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@prompts_option
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only previous, duplicate, induction or first.")
@click.option("--rows", type=click.IntRange(1), default=8, show_default=True, help="Random sequences that are drawn.")
@click.option(
    "--period", type=click.IntRange(2), metavar="N", help="Tokens in each, before it is repeated.  [default: 50]"
)
@click.option("--show", metavar="HEAD", help="Where this head attends on PROMPT instead, such as head.3:1.")
@click.option(
    "--top",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="Heads of each kind, or keys of each query, in the table.",
)
@seed_option
@picture_option
@subject_options
@form_options
def heads(
    model: str,
    prompts: tuple[str, ...],
    file: str | None,
    kinds: "tuple[Kind, ...]",
    rows: int,
    period: int | None,
    show: str | None,
    top: int,
    seed: int,
    picture: str | None,
    form: Form,
    **options: Any,
) -> None:
    """Find heads by where they attend.

    The share of each head's attention that goes to the token before (previous), to earlier occurrences of the same
    token (duplicate), to what followed those (induction), or to the row's first token; on random tokens repeated
    once, or on the PROMPTs. With --show, one head's attention on a prompt. Where a head looks is not yet what it
    does: try `neuronaut patch` and `neuronaut run`.

    \b
    Examples:
      neuronaut heads demo
      neuronaut heads demo --kind induction --rows 32 --picture heads.png
      neuronaut heads demo "def __init__(self, name): self.name =" --show head.3:1 --picture pattern.png
    """
    from ...causal.heads import KINDS, head_scores, repeated_tokens
    from ...causal.results.read import score_row

    subject = open_subject(model, options)
    if show is not None:
        _show_head(
            subject, questions=read_questions(subject, prompts, file), head=show, top=top, picture=picture, form=form
        )
        return
    has_prompts = prompts or file is not None
    batch = (
        read_questions(subject, prompts, file).batch
        if has_prompts
        else repeated_tokens(subject, rows=rows, period=period, seed=seed)
    )
    scores = head_scores(subject, batch, kinds=kinds or KINDS, seed=seed)
    if picture is not None:
        _draw_scores(subject, scores, picture)
    emit(map(score_row, scores), form, lambda table_rows: _score_table(table_rows, top))


def _score_table(rows: list[Row], top: int) -> str:
    kinds = dict.fromkeys(row["kind"] for row in rows)
    table_rows = [row for kind in kinds for row in [row for row in rows if row["kind"] == kind][:top]]
    columns = [
        display.key("kind"),
        display.key("head"),
        spanned_column("score", "share of attention"),
        display.key("n", "rows", right=True),
    ]
    return display.table(table_rows, columns)


def _draw_scores(subject: "Subject", scores: "Sequence[HeadScore]", picture: str) -> None:
    from ...causal.pictures import heat_maps

    grids: dict[str, list[list[float | None]]] = {}
    for score in scores:
        grid = grids.setdefault(score.kind, [[None] * subject.n_heads for _ in range(subject.n_layers)])
        grid[score.layer][score.head] = score.score.value
    heat_maps(
        grids,
        rows=[f"layer {layer}" for layer in range(subject.n_layers)],
        columns=[str(head) for head in range(subject.n_heads)],
        title=f"Heads of {subject.name} by where they attend",
        path=picture,
        unit="share of attention",
    )


def _show_head(
    subject: "Subject", questions: "Questions", head: str, top: int, picture: str | None, form: Form
) -> None:
    from ...causal.results.read import head_pattern, pattern_rows

    pattern = head_pattern(subject, questions, head)
    if picture is not None:
        _draw_pattern(pattern.tolist(), questions.tokens(subject, 0), head, picture)
    rows = pattern_rows(subject, questions, pattern, top=top)
    emit(rows, form, _pattern_table)


def _pattern_table(rows: list[Row]) -> str:
    columns = [
        display.key("position", right=True),
        display.Column("token", lambda row: quoted(row["token"])),
        display.Column(
            "attends to",
            lambda row: "  ".join(
                f"{key['position']} {quoted(key['token'])} {key['weight']:.2f}" for key in row["keys"]
            ),
        ),
    ]
    return display.table(rows, columns)


def _draw_pattern(pattern: list[list[float]], tokens: Sequence[str], head: str, picture: str) -> None:
    from ...causal.pictures import heat_map

    labels = [f"{place} {quoted(token)}" for place, token in enumerate(tokens)]
    heat_map(
        pattern,
        rows=labels,
        columns=labels,
        title=f"Attention of {head}: from each row to each column",
        path=picture,
        unit="attention",
    )
