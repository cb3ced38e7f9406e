"""Rows of `patch`: how much of a behaviour comes with what is put from one run into another."""

from collections.abc import Sequence
from dataclasses import asdict

from ..circuits.tasks import Task
from ..controls import rank_patch_among_controls
from ..intervene import edited_dictionaries
from ..measures import Direction, Effect, fidelity
from ..runs import patching
from ..setup import CausalSetup
from ..sweeps import SETTINGS
from .common import Row, ends, rank_row, report_row

METRICS = ("logit_difference", "log_probability", "kl")
RANKED = "logit_difference"
"""What is recovered of it is ranked among controls."""


def patch_rows(
    setup: CausalSetup, task: Task, *, metrics: Sequence[str] = METRICS, controls: int = 0, seed: int = 0
) -> list[Row]:
    """A row for each direction and metric, with what each edit did, and a single edit's rank among `controls`."""
    results = patching(
        setup.subject, task.pairs, setup.edits, metrics=metrics, materials=setup.gather_materials(), seed=seed
    )
    ranked = _rank_controls(setup, task, controls, seed) if controls else {}
    trusted = {
        name: asdict(fidelity(setup.subject, dictionary, task.pairs.clean))
        for name, dictionary in edited_dictionaries(setup.edits, setup.materials).items()
    }
    return [
        effect_row(effect)
        | {
            "edits": [report_row(report) for report in result.reports],
            "controls": ranked.get(direction, []),
            "dictionaries": trusted,
        }
        for direction, result in results.items()
        for effect in result.effects.values()
    ]


def _rank_controls(setup: CausalSetup, task: Task, count: int, seed: int) -> dict[Direction, list[Row]]:
    """How the single edit stands among its controls."""
    ranks = rank_patch_among_controls(
        setup.subject,
        task.pairs,
        setup.edits[0],
        directions=tuple(SETTINGS),
        count=count,
        materials=setup.materials,
        metric=RANKED,
        reference=setup.reference,
        seed=seed,
    )
    return {
        direction: [rank_row(sort, rank, metric=RANKED) for sort, rank in by_sort.items()]
        for direction, by_sort in ranks.items()
    }


def effect_row(effect: Effect) -> Row:
    """An effect with the means of its runs, and each pair's values."""
    sides = {"clean": effect.clean, "corrupted": effect.corrupted, "patched": effect.patched}
    return {
        "direction": effect.direction,
        "metric": effect.metric,
        "formula": effect.formula,
        **{name: sum(values) / len(values) for name, values in sides.items()},
        "recovered": effect.recovered,
        **ends(effect.interval),
        "reason": effect.reason,
        "n": effect.n,
        "values": {name: list(values) for name, values in sides.items()},
    }
