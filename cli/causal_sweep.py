"""`neuronaut sweep`: one edit at every cell of a grid of layers, units and positions, each cell by itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..subject.errors import NeuronautError
from . import display
from .causal_bench import Bench, material_options, open_bench
from .causal_inputs import (
    asked,
    metric_option,
    output_option,
    pair_options,
    picture_option,
    prompts_option,
    seed_option,
    task_of,
    top_option,
    write,
)
from .causal_patch import effect_row
from .causal_tables import blocks, ends, spanned, spanned_column, trusts
from .common import Form, Row, emit, form_options, say

if TYPE_CHECKING:
    from ..causal.attribution_patching import Attribution, Line
    from ..causal.grids import Grid
    from ..causal.measures import Direction, Effect
    from ..causal.prompts import Batch
    from ..causal.sweeps import Shift, Sweep
    from ..causal.tasks import Task

AXES = ("layers", "units", "positions")


@click.command()
@click.argument("model")
@click.argument("edits", nargs=-1, required=True, metavar="EDIT...")
@click.option("--over", metavar="AXES", help="layers, units, positions, with commas between. Of a single EDIT.")
@pair_options(rows=32)
@click.option("--prompt", "texts", multiple=True, metavar="TEXT",
              help="A prompt without counterpart, in place of pairs; may be given again.")  # fmt: skip
@prompts_option
@metric_option()
@click.option("--only", type=click.Choice(["denoise", "noise"]), help="Only one direction of pairs.  [default: both]")
@click.option("--predict", is_flag=True, help="Predict by gradients; patch a sample and the highest exactly.")
@click.option("--line", metavar="KIND:STEPS",
              help="With --predict: gradients averaged along a line between the runs, site:8 or embed:8.")  # fmt: skip
@top_option
@seed_option
@picture_option
@output_option("--output", "Write all that was measured, pair by pair, as JSON.")
@material_options
@form_options
def sweep(
    model: str, edits: tuple[str, ...], over: str | None, texts: tuple[str, ...], file: str | None, metric: str | None,
    only: "Direction | None", predict: bool, line: str | None, top: int, seed: int, picture: str | None,
    output: str | None, form: Form, **options: Any,
) -> None:  # fmt: skip
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
    from ..causal.sweeps import Sweep

    if line is not None and not predict:
        raise click.UsageError("--line goes with --predict; add it")
    unpaired = bool(texts) or file is not None
    paired = predict or only or any(options[name] is not None for name in ("task", "pairs", "clean", "corrupted"))
    if unpaired and paired:
        raise click.UsageError("prompts have no counterpart; leave --prompt and --prompts out, or what is of pairs")
    bench = open_bench(model, edits, options)
    if unpaired:
        found = _over_prompts(bench, over, texts, file, metric or "log_probability", seed, options)
    else:
        task, chosen = task_of(bench.subject, options, seed=seed), metric or "logit_difference"
        if predict:
            found = _predicted(bench, over, task, chosen, only or "denoise", line=line, top=top, seed=seed)
        else:
            found = _over_pairs(bench, over, task, chosen, only, seed)
    if picture is not None:
        found.picture(picture, title=f"{bench.subject.name}: {' '.join(map(str, bench.edits))}")
    if output is not None:
        write(output, json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False))
    if isinstance(found, Sweep):
        _show_cells(found, top, form)
    else:
        _show_nodes(found, top, form)


def _grid(bench: Bench, over: str | None, batch: "Batch") -> "Grid":
    """The edit over the axes that were named, or all edits one by one."""
    from ..causal.controls import population
    from ..causal.grids import Grid, each_position, sites_of

    axes = over.split(",") if over else []
    if wrong := [axis for axis in axes if axis not in AXES]:
        raise NeuronautError(
            f"--over {over}: there is no axis {wrong[0]!r}; wanted {', '.join(AXES)} with commas between"
        )
    if not axes:
        return Grid.listed(bench.edits)
    if len(bench.edits) != 1:
        raise NeuronautError(f"--over goes with one edit, and {len(bench.edits)} are given; leave it out, or name one")
    (edit,) = bench.edits
    kind, _, layer = edit.site.partition(".")
    sites = sites_of(bench.subject, kind) if "layers" in axes else (edit.site,)
    if not layer and "layers" not in axes and edit.site not in bench.subject.sites:
        raise NeuronautError(f"edit {edit} names no layer; add --over layers, or name one as in {kind}.0")
    somewhere = edit.model_copy(update={"site": sites[0]})
    units = edit.units or range(population(bench.subject, somewhere, sources=bench.dictionaries))
    places, labels = each_position(bench.subject, batch) if "positions" in axes else (None, None)
    return Grid.of(
        edit, sites=sites if "layers" in axes else None, units=units if "units" in axes else None, positions=places,
        labels=labels,
    )  # fmt: skip


def _over_pairs(
    bench: Bench, over: str | None, task: "Task", metric: str, only: "Direction | None", seed: int
) -> "Sweep":
    from ..causal.sweeps import SETTINGS
    from ..causal.sweeps import sweep as run

    return run(
        bench.subject, task.pairs, _grid(bench, over, task.pairs.clean), metrics=(metric,), seed=seed,
        directions=(only,) if only else tuple(SETTINGS), materials=bench.materials, reference=bench.reference,
    )  # fmt: skip


def _predicted(
    bench: Bench, over: str | None, task: "Task", metric: str, direction: "Direction", *, line: str | None, top: int,
    seed: int,
) -> "Attribution":  # fmt: skip
    from ..causal.attribution_patching import attribution_patching

    return attribution_patching(
        bench.subject, task.pairs, _grid(bench, over, task.pairs.clean), direction=direction, metric=metric,
        line=None if line is None else _line(line), materials=bench.lent(), top=top, seed=seed,
    )  # fmt: skip


def _line(text: str) -> "Line":
    from ..causal.attribution_patching import Line

    kind, _, steps = text.partition(":")
    if kind not in ("site", "embed") or not steps.isdecimal() or not int(steps):
        raise NeuronautError(f"--line {text} is no line; wanted site:8 or embed:8, the number being that of its steps")
    return Line(kind, int(steps))


def _over_prompts(
    bench: Bench, over: str | None, texts: Sequence[str], file: str | None, metric: str, seed: int,
    options: Mapping[str, Any],
) -> "Sweep":  # fmt: skip
    from ..causal.sweeps import sweep_prompts

    if patch := next((edit for edit in bench.edits if edit.needs_donor), None):
        raise NeuronautError(f"edit {patch} takes values from a counterpart; give pairs, not prompts")
    questions = asked(bench.subject, texts, file, answer=options["answer"], wrong=options["wrong"])
    return sweep_prompts(
        bench.subject, questions.batch, _grid(bench, over, questions.batch), answers=questions.answers,
        wrong=questions.wrong, metrics=(metric,), materials=bench.materials, reference=bench.reference, seed=seed,
    )  # fmt: skip


# What is shown


def _show_cells(found: "Sweep", top: int, form: Form) -> None:
    """The largest effects first, of pairs in whichever direction is larger."""
    names = [axis.name for axis in found.axes]
    rows: list[Row] = [
        dict(zip(names, cell.labels, strict=True)) | {
            "edit": str(cell.edit), "max_change": dict(cell.max_change),
            "effects": [_cell_effect(effect) for effect in cell.effects],
        }
        for cell in found.cells
    ]  # fmt: skip
    rows.sort(key=_largest)
    emit(rows, form, lambda shown: blocks(display.table(shown[:top], _columns(names, shown[0])), *_trusted(found)))
    cost = found.cost
    say(f"{len(rows):,} cells in {cost.forwards:,} forward passes (one by one: {cost.one_by_one:,})")


def _largest(row: Row) -> float:
    """Sorts the row with the largest effect, whatever its sign, first."""
    return -max(abs(effect["value"] or 0.0) for effect in row["effects"])


def _cell_effect(effect: "Effect | Shift") -> Row:
    """An effect with `value`: the fraction recovered, or the mean change."""
    from ..causal.measures import Effect

    if isinstance(effect, Effect):
        row = effect_row(effect)
        del row["values"]
        return row | {"value": row.pop("recovered")}
    return {
        "direction": None, "metric": effect.metric, "formula": effect.formula, "value": effect.change.value,
        **ends(effect.change.interval), "n": effect.change.n,
    }  # fmt: skip


def _columns(names: Sequence[str], first: Row) -> list[display.Column]:
    def effect(at: int) -> display.Column:
        one = first["effects"][at]
        header = f"{one['direction']}, recovered" if one["direction"] else f"change of {one['metric']}"
        return display.Column(header, lambda row: _spanned(row["effects"][at]))

    return [
        *(display.key(name) for name in names), *map(effect, range(len(first["effects"]))),
        display.Column("largest change", lambda row: display.number(max(row["max_change"].values())), right=True),
    ]  # fmt: skip


def _spanned(effect: Row) -> str:
    return spanned(effect["value"], effect["ci_low"], effect["ci_high"])


def _trusted(found: "Sweep") -> list[str]:
    return trusts({name: asdict(one) for name, one in found.dictionaries.items()})


def _show_nodes(found: "Attribution", top: int, form: Form) -> None:
    """The largest predictions first, beside what exact patching says of them."""
    names, exact = [axis.name for axis in found.axes], {one.labels: one for one in found.verified}
    rows = [
        {name: label for name, label in zip(names, node.labels, strict=False)} | {
            "edit": None if node.edit is None else str(node.edit), "predicted": node.score,
            "exact": one and one.exact, "recovered": one and one.effect.recovered,
            **ends(one and one.effect.interval), "direction": found.direction, "metric": found.metric,
        }
        for node in found.ranked() for one in [exact.get(node.labels)]
    ]  # fmt: skip
    columns = [
        display.Column("edit", lambda row: row["edit"] or row[names[0]]),
        display.key("predicted", right=True), display.key("exact", right=True), spanned_column("recovered"),
    ]  # fmt: skip
    emit(rows, form, lambda shown: display.table(shown[:top], columns))
    sampled, agreed = len(found.agreement.exact), display.number(found.agreement.spearman)
    say(
        f"{len(rows):,} {found.direction} effects on the {found.metric} predicted; of {sampled} sampled ones the ranks "
        f"agree with exact patching by {agreed} (Spearman)"
    )
    for doubt in found.doubts:
        say(f"Warning: {doubt}")
