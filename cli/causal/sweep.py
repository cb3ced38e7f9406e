"""`neuronaut sweep` and `neuronaut patch`: edits at every cell of a grid, and parts of one run put into another."""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ...causal.results.common import ends
from ...subject.errors import NeuronautError
from .. import display
from ..common import Form, Row, emit, form_options, say
from ..display import blocks, rank_table, reports, spanned, spanned_column, trusts
from .inputs import (
    controls_option,
    count_controls,
    done_task,
    metric_option,
    output_option,
    pair_options,
    picture_option,
    prompts_option,
    read_questions,
    seed_option,
    shown,
    top_option,
    write,
)
from .setup import material_options, open_setup

if TYPE_CHECKING:
    from ...causal.attribution_patching import Attribution, Line
    from ...causal.circuits.tasks import Task
    from ...causal.grids import Grid
    from ...causal.measures import Direction
    from ...causal.prompts import Batch
    from ...causal.setup import CausalSetup
    from ...causal.sweeps import Sweep
    from ...causal.work import Work


@click.command()
@click.argument("model")
@click.argument("edits", nargs=-1, required=True, metavar="EDIT...")
@click.option("--over", metavar="AXES", help="layers, units, positions, with commas between. Of a single EDIT.")
@pair_options(rows=32)
@click.option(
    "--prompt",
    "texts",
    multiple=True,
    metavar="TEXT",
    help="A prompt without counterpart, in place of pairs; may be given again.",
)
@prompts_option
@metric_option()
@click.option("--only", type=click.Choice(["denoise", "noise"]), help="Only one direction of pairs.  [default: both]")
@click.option("--predict", is_flag=True, help="Predict by gradients; patch a sample and the highest exactly.")
@click.option(
    "--line",
    metavar="KIND:STEPS",
    help="With --predict: gradients averaged along a line between the runs, site:8 or embed:8.",
)
@top_option
@seed_option
@picture_option
@output_option("--output", "Write all that was measured, pair by pair, as JSON.")
@material_options
@form_options
def sweep(
    model: str,
    edits: tuple[str, ...],
    over: str | None,
    texts: tuple[str, ...],
    file: str | None,
    metric: str | None,
    only: "Direction | None",
    predict: bool,
    line: str | None,
    top: int,
    seed: int,
    picture: str | None,
    output: str | None,
    form: Form,
    **options: Any,
) -> None:
    """Try an edit everywhere.

    EDIT, as in `run` or `patch`, at every layer, every unit or every position, or several of them crossed; each
    cell by itself, many beside each other in a forward pass. A site may leave its layer out: head=patch --over
    layers,units. Of pairs each cell has the fraction recovered in both directions, of prompts the mean change of
    the metric. --predict is attribution patching: one backward pass for all cells, with how far it can be believed.
    A --line is no better in general: compare the rank agreement that is told with each.

    \b
    Examples:
      neuronaut sweep demo head=patch@last --over layers,units --task induction --picture heads.png
      neuronaut sweep demo resid_post=patch --over layers,positions --clean "x = [1, 2" --corrupted "x = (1, 2" \\
        --answer "]" --wrong ")"
      neuronaut sweep demo resid_post.2@sae=0 --over units --prompt "def __init__(self, name): self.name ="
      neuronaut sweep gpt2 mlp=patch --over layers,units --pairs ioi.jsonl --predict --output neurons.json
    """
    from ...causal.sweeps import Sweep

    if line is not None and not predict:
        raise click.UsageError("--line goes with --predict; add it")
    unpaired = bool(texts) or file is not None
    paired = predict or only or any(options[name] is not None for name in ("task", "pairs", "clean", "corrupted"))
    if unpaired and paired:
        raise click.UsageError("prompts have no counterpart; leave --prompt and --prompts out, or what is of pairs")
    setup = open_setup(model, edits, options)
    if unpaired:
        result = _sweep_prompts(
            setup, over=over, texts=texts, file=file, metric=metric or "log_probability", seed=seed, options=options
        )
    else:
        task, chosen = done_task(setup.subject, options, seed=seed), metric or "logit_difference"
        if predict:
            result = _predict(setup, over, task, chosen, only or "denoise", line=line, top=top, seed=seed)
        else:
            result = _sweep_pairs(setup, over=over, task=task, metric=chosen, only=only, seed=seed)
    if picture is not None:
        result.picture(picture, title=f"{setup.subject.name}: {' '.join(map(str, setup.edits))}")
    if output is not None:
        write(output, json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False))
    if isinstance(result, Sweep):
        _show_cells(result, top, form)
    else:
        _show_nodes(result, top, form)


def _grid(setup: "CausalSetup", over: str | None, batch: "Batch") -> "Grid":
    """The edit over the axes that were named, or all edits one by one."""
    from ...causal.results.sweep import grid_of

    return grid_of(setup, over.split(",") if over else [], batch)


def _sweep_pairs(
    setup: "CausalSetup", over: str | None, task: "Task", metric: str, only: "Direction | None", seed: int
) -> "Sweep":
    from ...causal.sweeps import SETTINGS
    from ...causal.sweeps import sweep as run

    grid = _grid(setup, over, task.pairs.clean)
    with _counted(setup) as work:
        return run(
            setup.subject,
            task.pairs,
            grid,
            metrics=(metric,),
            seed=seed,
            directions=(only,) if only else tuple(SETTINGS),
            materials=setup.materials,
            reference=setup.reference,
            work=work,
        )


@contextmanager
def _counted(setup: "CausalSetup") -> "Generator[Work]":
    """Show how far the runs within the block are."""
    from ...causal.work import Work

    with shown("sweep", work := Work()), work.counted(setup.subject):
        yield work


def _predict(
    setup: "CausalSetup",
    over: str | None,
    task: "Task",
    metric: str,
    direction: "Direction",
    *,
    line: str | None,
    top: int,
    seed: int,
) -> "Attribution":
    from ...causal.attribution_patching import attribution_patching

    return attribution_patching(
        setup.subject,
        task.pairs,
        _grid(setup, over, task.pairs.clean),
        direction=direction,
        metric=metric,
        line=None if line is None else _read_line(line),
        materials=setup.gather_materials(),
        top=top,
        seed=seed,
    )


def _read_line(text: str) -> "Line":
    from ...causal.attribution_patching import Line

    kind, _, steps = text.partition(":")
    if kind not in ("site", "embed") or not steps.isdecimal() or not int(steps):
        raise NeuronautError(f"--line {text} is no line; wanted site:8 or embed:8, the number being that of its steps")
    return Line(kind, int(steps))


def _sweep_prompts(
    setup: "CausalSetup",
    over: str | None,
    texts: Sequence[str],
    file: str | None,
    metric: str,
    seed: int,
    options: Mapping[str, Any],
) -> "Sweep":
    from ...causal.sweeps import sweep_prompts

    if patch := next((edit for edit in setup.edits if edit.needs_source_run), None):
        raise NeuronautError(f"edit {patch} takes values from a counterpart; give pairs, not prompts")
    questions = read_questions(setup.subject, texts, file, answer=options["answer"], wrong=options["wrong"])
    grid = _grid(setup, over, questions.batch)
    with _counted(setup) as work:
        return sweep_prompts(
            setup.subject,
            questions.batch,
            grid,
            answers=questions.answers,
            wrong=questions.wrong,
            metrics=(metric,),
            materials=setup.materials,
            reference=setup.reference,
            seed=seed,
            work=work,
        )


# What is shown


def _show_cells(result: "Sweep", top: int, form: Form) -> None:
    """The largest effects first, of pairs in whichever direction is larger."""
    from ...causal.results.sweep import cell_rows

    names, rows = [axis.name for axis in result.axes], cell_rows(result)
    emit(
        rows,
        form,
        lambda table_rows: blocks(
            display.table(table_rows[:top], _columns(names, table_rows[0])), *_trust_lines(result)
        ),
    )
    cost = result.cost
    say(f"{len(rows):,} cells in {cost.forwards:,} forward passes (one by one: {cost.one_by_one:,})")


def _columns(names: Sequence[str], first: Row) -> list[display.Column]:
    def effect(at: int) -> display.Column:
        cell_effect = first["effects"][at]
        header = (
            f"{cell_effect['direction']}, recovered"
            if cell_effect["direction"]
            else f"change of {cell_effect['metric']}"
        )
        return display.Column(header, lambda row: _format_effect(row["effects"][at]))

    return [
        *(display.key(name) for name in names),
        *map(effect, range(len(first["effects"]))),
        display.Column("largest change", lambda row: display.number(max(row["max_change"].values())), right=True),
    ]


def _format_effect(effect: Row) -> str:
    return spanned(effect["value"], effect["ci_low"], effect["ci_high"])


def _trust_lines(result: "Sweep") -> list[str]:
    return trusts({name: asdict(trust) for name, trust in result.dictionaries.items()})


def _show_nodes(result: "Attribution", top: int, form: Form) -> None:
    """The largest predictions first, beside what exact patching says of them."""
    names, exact = [axis.name for axis in result.axes], {verified.labels: verified for verified in result.verified}
    rows = [
        {name: label for name, label in zip(names, node.labels, strict=False)}
        | {
            "edit": None if node.edit is None else str(node.edit),
            "predicted": node.score,
            "exact": verified and verified.exact,
            "recovered": verified and verified.effect.recovered,
            **ends(verified and verified.effect.interval),
            "direction": result.direction,
            "metric": result.metric,
        }
        for node in result.ranked()
        for verified in [exact.get(node.labels)]
    ]
    columns = [
        display.Column("edit", lambda row: row["edit"] or row[names[0]]),
        display.key("predicted", right=True),
        display.key("exact", right=True),
        spanned_column("recovered"),
    ]
    emit(rows, form, lambda table_rows: display.table(table_rows[:top], columns))
    sampled, agreed = len(result.agreement.exact), display.number(result.agreement.spearman)
    say(
        f"{len(rows):,} {result.direction} effects on the {result.metric} predicted; of {sampled} sampled ones the "
        f"ranks agree with exact patching by {agreed} (Spearman)"
    )
    for doubt in result.doubts:
        say(f"Warning: {doubt}")


@click.command()
@click.argument("model")
@click.argument("edits", nargs=-1, required=True, metavar="EDIT...")
@pair_options(rows=32)
@metric_option("metrics", multiple=True)
@controls_option
@seed_option
@material_options
@form_options
def patch(
    model: str,
    edits: tuple[str, ...],
    metrics: tuple[str, ...],
    controls: int | None,
    seed: int,
    form: Form,
    **options: Any,
) -> None:
    """Put parts of one run into another.

    All EDITs together (SITE[:UNITS]=patch[@POSITIONS], or any that `run` takes), on pairs of prompts and in both
    directions: denoise puts clean values into the corrupted prompts and shows what suffices for the answer; noise
    puts corrupted values into the clean ones and shows what is needed. `recovered` is 0 where nothing came of it,
    and 1 where the whole prompt might as well have been exchanged. A single EDIT is ranked among controls.

    \b
    Examples:
      neuronaut patch demo head.3:1-3=patch@last --task induction
      neuronaut patch demo resid_post.0=patch@3 --clean "x = [1, 2" --corrupted "x = (1, 2" --answer "]" --wrong ")"
      neuronaut patch gpt2 head.9:9=patch@last --pairs ioi.jsonl --metric logit_difference --metric kl
    """
    from ...causal.results.patch import METRICS, patch_rows

    count = count_controls(controls, edits)
    setup = open_setup(model, edits, options)
    task = done_task(setup.subject, options, seed=seed)
    rows = patch_rows(setup, task, metrics=metrics or METRICS, controls=count, seed=seed)
    emit(rows, form, lambda table_rows: _tables(table_rows, task))


_COLUMNS = [
    display.key("direction"),
    display.key("metric"),
    *(display.key(name, right=True) for name in ("clean", "corrupted", "patched")),
    spanned_column("recovered"),
    display.Column("", lambda row: row["reason"] or ""),
]


def _tables(rows: list[Row], task: "Task") -> str:
    directions = {row["direction"]: row for row in rows}
    head = f"{len(task)} pairs of {task.name}" if len(task) > 1 else task.name
    return blocks(
        f"{head}\n{display.table(rows, _COLUMNS)}",
        *(_report_table(direction, row["edits"]) for direction, row in directions.items()),
        *trusts(rows[0]["dictionaries"]),
        *(
            rank_table(row["controls"], f"{direction}, logit difference recovered")
            for direction, row in directions.items()
        ),
    )


def _report_table(direction: str, done: Sequence[Row]) -> str:
    return f"{direction}\n{reports(done)}"
