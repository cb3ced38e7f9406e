"""`neuronaut patch`: what parts of one run do in another."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from . import display
from .causal_bench import Bench, material_options, open_bench
from .causal_inputs import controls_option, count_controls, metric_option, pair_options, seed_option, task_of
from .causal_tables import blocks, ends, report_row, reports, spanned_column, standing_row, standings, trusts
from .common import Form, Row, emit, form_options

if TYPE_CHECKING:
    from ..causal.measures import Direction, Effect
    from ..causal.tasks import Task

METRICS = ("logit_difference", "log_probability", "kl")


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
    model: str, edits: tuple[str, ...], metrics: tuple[str, ...], controls: int | None, seed: int, form: Form,
    **options: Any,
) -> None:  # fmt: skip
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
    from ..causal.fidelity import fidelity
    from ..causal.runs import patching

    count = count_controls(controls, edits)
    bench = open_bench(model, edits, options)
    task = task_of(bench.subject, options, seed=seed)
    found = patching(
        bench.subject, task.pairs, bench.edits, metrics=metrics or METRICS, materials=bench.lent(), seed=seed
    )
    ranked = _ranked(bench, task, count, seed) if count else {}
    trust = {name: asdict(fidelity(bench.subject, one, task.pairs.clean)) for name, one in bench.dictionaries.items()}
    rows = [
        effect_row(effect) | {
            "edits": [report_row(report) for report in one.reports], "controls": ranked.get(direction, []),
            "dictionaries": trust,
        }
        for direction, one in found.items() for effect in one.effects.values()
    ]  # fmt: skip
    emit(rows, form, lambda shown: _tables(shown, task))


def _ranked(bench: Bench, task: "Task", count: int, seed: int) -> "dict[Direction, list[Row]]":
    """How the single edit stands among its controls."""
    from ..causal.controlled import patch_among_controls
    from ..causal.sweeps import SETTINGS

    found = patch_among_controls(
        bench.subject, task.pairs, bench.edits[0], directions=tuple(SETTINGS), count=count, materials=bench.materials,
        reference=bench.reference, seed=seed,
    )  # fmt: skip
    return {
        direction: [standing_row(sort, one) for sort, one in standings.items()]
        for direction, standings in found.items()
    }


def effect_row(effect: "Effect") -> Row:
    """An effect with the means of its runs, and each pair's values."""
    sides = {"clean": effect.clean, "corrupted": effect.corrupted, "patched": effect.patched}
    return {
        "direction": effect.direction, "metric": effect.metric, "formula": effect.formula,
        **{name: sum(values) / len(values) for name, values in sides.items()},
        "recovered": effect.recovered, **ends(effect.interval), "reason": effect.reason, "n": effect.n,
        "values": {name: list(values) for name, values in sides.items()},
    }  # fmt: skip


_COLUMNS = [
    display.key("direction"), display.key("metric"),
    *(display.key(name, right=True) for name in ("clean", "corrupted", "patched")), spanned_column("recovered"),
    display.Column("", lambda row: row["reason"] or ""),
]  # fmt: skip


def _tables(rows: list[Row], task: "Task") -> str:
    directions = {row["direction"]: row for row in rows}
    head = f"{len(task)} pairs of {task.name}" if len(task) > 1 else task.name
    return blocks(
        f"{head}\n{display.table(rows, _COLUMNS)}",
        *(_worked(direction, row["edits"]) for direction, row in directions.items()),
        *trusts(rows[0]["dictionaries"]),
        *(
            standings(row["controls"], f"{direction}, logit difference recovered")
            for direction, row in directions.items()
        ),
    )


def _worked(direction: str, done: Sequence[Row]) -> str:
    return f"{direction}\n{reports(done)}"
