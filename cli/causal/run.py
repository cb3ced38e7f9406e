"""`neuronaut run`: what the subject says next, before and after edits; recorded, and run again to the bit."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ...subject.errors import NeuronautError
from .. import display
from ..common import Form, Row, emit, form_options, plain, say
from ..display import blocks, quoted, rank_table, reports, signed, trusts
from .inputs import (
    answer_options,
    controls_option,
    count_controls,
    output_option,
    picture_option,
    prompts_option,
    read,
    read_questions,
    seed_option,
    write,
)
from .setup import material_options, open_dictionaries, open_setup, open_subject


@click.command("run")
@click.argument("model")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@prompts_option
@click.option("--edit", "edits", multiple=True, metavar="SPEC", help="An intervention, see below; all work together.")
@click.option(
    "--source-run",
    "--donor",
    "source_runs",
    multiple=True,
    metavar="TEXT",
    help="Where =patch takes values from: one text for each prompt, of as many tokens.",
)
@answer_options
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Next tokens of each run."
)
@controls_option
@seed_option
@output_option("--record", "Write what was run, with its results and versions, as JSON.")
@click.option("--replay", metavar="FILE", help="Run a record again, which must give the same to the bit.")
@picture_option
@material_options
@form_options
def run(
    model: str,
    prompts: tuple[str, ...],
    file: str | None,
    edits: tuple[str, ...],
    source_runs: tuple[str, ...],
    answer: str | None,
    wrong: str | None,
    top: int,
    controls: int | None,
    seed: int,
    record: str | None,
    replay: str | None,
    picture: str | None,
    form: Form,
    **options: Any,
) -> None:
    """See what comes next, before and after edits.

    Runs MODEL (a folder, a Hugging Face id, or demo) on each PROMPT and shows the likeliest next tokens; with
    --edit also those of the edited run, what each edit did, and how an edit stands among controls. An edit is
    SITE[:UNITS]CHANGE[@POSITIONS]: the site mlp.2, head.1 or resid_post.2@sae (a dictionary), the change =0, =mean,
    =1.5, *=2, +=1.5q (q: the unit's largest activation in reference text), =patch or >=0, the positions last, 3-5
    or '" name"'. A feature's full address works too.

    \b
    Examples:
      neuronaut run demo "def __init__(self, name): self.name ="
      neuronaut run demo "def __init__(self, name): self.name =" --edit head.3=0 --picture next.png
      neuronaut run demo "import os" --edit demo:resid_post.2@sae:50=0 --top 10
      neuronaut run demo "x = [1, 2" --source-run "x = (1, 2" --edit resid_post.1=patch@3 --answer "]" --wrong ")"
      neuronaut run gpt2 "When Mary and John" --edit 'pattern.5:1=knockout@last>0' --record r.json
      neuronaut run gpt2 --replay r.json
    """
    if replay is not None:
        _replay(model, replay, (prompts, file, edits, source_runs, answer, wrong, record, picture), form, options)
        return
    from ...causal.results.run import run_rows

    edit_options = {"--record": record, "--source-run": source_runs, "--controls": controls}
    if not edits and (unused := [name for name, value in edit_options.items() if value]):
        raise NeuronautError(f"{unused[0]} goes with an edit; add --edit, for example --edit mlp.2:17=0")
    setup = open_setup(model, edits, options)
    questions = read_questions(setup.subject, prompts, file, answer=answer, wrong=wrong, whole=not edits)
    rows, outcome = run_rows(
        setup,
        questions,
        source_runs=list(map(plain, source_runs)),
        top=top,
        controls=count_controls(controls, edits),
        seed=seed,
    )
    if outcome is not None and record is not None:
        write(record, outcome.model_dump_json(indent=1))
    if picture is not None:
        _draw(rows, picture)
    emit(rows, form, _tables)


# Records


def _replay(model: str, file: str, others: Sequence[object], form: Form, options: Mapping[str, Any]) -> None:
    from ...causal.records import Outcome, replay

    if any(others):
        raise click.UsageError("--replay runs what the record holds; leave out prompts, edits and what belongs to them")
    stored = Outcome.load(read(file))
    subject = open_subject(model, options)
    named = [f"{edit.site}@{edit.dictionary}" for edit in stored.trial.edits if edit.dictionary]
    again = replay(subject, stored, sources=open_dictionaries(subject, named, options))
    if again != stored:
        raise NeuronautError(f"{file} gave other results here, on the same model and libraries; is it another machine?")
    rows = [
        {
            "prompt": "".join(subject.decode_tokens(ids[int(ids[0] == subject.bos_id) :])),
            "metric": name,
            "before": again.before[name][number],
            "after": again.after[name][number],
        }
        for number, ids in enumerate(stored.trial.prompts)
        for name in again.trial.metrics
    ]
    emit(
        rows,
        form,
        lambda table_rows: display.table(table_rows, [*map(display.key, ("metric", "before", "after", "prompt"))]),
    )
    say(f"the same to the bit as when {file} was recorded: {', '.join(map(str, stored.trial.edits))}")


# What is shown


def _draw(rows: Sequence[Row], picture: str) -> None:
    from ...causal.pictures import bars

    if len(rows) != 1:
        raise NeuronautError(f"a picture shows one prompt, and {len(rows)} are given; leave --picture out, or run one")
    (row,) = rows
    sides = ("before", "after") if row["edits"] else ("before",)
    bars(
        {side: [token[side] for token in row["next"]] for side in sides},
        labels=[quoted(token["token"]) for token in row["next"]],
        path=picture,
        unit="probability of the next token",
        title="\n".join((display.visible(row["prompt"]), *(edit["edit"] for edit in row["edits"]))),
    )


def _tables(rows: list[Row]) -> str:
    first = rows[0]
    return blocks(
        *map(_next_table, rows),
        reports(first["edits"]),
        *trusts(first["dictionaries"]),
        rank_table(first["controls"], "KL to the plain run"),
    )


def _next_table(row: Row) -> str:
    columns = [display.Column("next token", lambda token: quoted(token["token"]))]
    if not row["edits"]:
        columns.append(display.Column("probability", lambda token: f"{token['before']:.3f}", right=True))
        return f"{display.visible(row['prompt'])}\n{display.table(row['next'], columns)}"
    columns += [
        display.Column("before", lambda token: f"{token['before']:.3f}", right=True),
        display.Column("after", lambda token: f"{token['after']:.3f}", right=True),
        display.Column("change", lambda token: signed(token["after"] - token["before"]), right=True),
    ]
    return f"{display.visible(row['prompt'])}\n{display.table(row['next'], columns)}\n{_measure_line(row)}"


def _measure_line(row: Row) -> str:
    measures = row["measures"]
    parts = [f"KL {measures['kl']['after']:.3g} nats"]
    for name, what in (("log_probability", "log-probability of {}"), ("rank", "tokens above it")):
        before, after = (display.number(measures[name][side]) for side in ("before", "after"))
        parts.append(f"{what.format(quoted(row['answer']))} {before} → {after}")
    if (difference := measures.get("logit_difference")) is not None:
        parts.append(f"logit difference {difference['before']:.3g} → {difference['after']:.3g}")
    return ", ".join(parts)
