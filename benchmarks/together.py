"""The time that several investigations in one call save against one call, and one process, for each.

    python -m neuronaut.benchmarks.together [--level 3] [--units 6] [--seed 0]

A world is harvested once. Then `investigate_all` is run on its units in one process, and on each unit alone in a
process of its own, with a copy of the database each time, both in turns on the same machine. Processes build the
same world from the seed, which stands for loading a model. The output gives the seconds from opening the database to
the last verdict, and the ratio to the whole life of the processes; and how many reports differ, which none may.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..agent.session import investigate_all
from ..data.store.store import Store
from .suite import World


def investigate_units(world: World, database: Path, places: Sequence[int]) -> dict[str, Any]:
    """Investigate the units at these places: seconds, and by address the verdict, text and rule."""
    began, reports = time.perf_counter(), {}
    features = [world.features()[place] for place in places]
    with Store(str(database)) as store:
        sessions = investigate_all(features, world.subject, store, sources={world.source.id: world.source})
        for session in sessions:
            reports[session.report.target] = [session.status, session.report.text, session.report.rule]
    return {"seconds": time.perf_counter() - began, "reports": reports}


def run_process(level: int, seed: str, units: int, database: Path, places: Sequence[int]) -> dict[str, Any]:
    """The same in a new process, with the seconds of its whole life."""
    began = time.perf_counter()
    arguments = json.dumps([level, seed, units, str(database), list(places)])
    process = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--child", arguments], check=True, capture_output=True, text=True
    )
    return {**json.loads(process.stdout.splitlines()[-1]), "life": time.perf_counter() - began}


def compare(level: int, seed: str, units: int) -> dict[str, Any]:
    """Both ways in turns, half of the single ones before those together and half after, so that a drift cancels."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        world = World.build(level, seed, units=units)
        with Store(str(folder / "harvest.db")) as store:
            world.harvest(store)

        def run(name: str, places: Sequence[int]) -> dict[str, Any]:
            database = folder / f"{name}.db"
            shutil.copy(folder / "harvest.db", database)
            return run_process(level, seed, units, database, places)

        half = units // 2
        alone = [run(f"alone{place}", [place]) for place in range(half)]
        together = run("together", range(units))
        alone += [run(f"alone{place}", [place]) for place in range(half, units)]
    separate = {address: report for process in alone for address, report in process["reports"].items()}
    seconds, life = sum(process["seconds"] for process in alone), sum(process["life"] for process in alone)
    return {
        "level": level,
        "units": units,
        "alone_seconds": seconds,
        "together_seconds": together["seconds"],
        "ratio": seconds / together["seconds"],
        "alone_life": life,
        "together_life": together["life"],
        "ratio_of_life": life / together["life"],
        "differing": sum(separate[address] != report for address, report in together["reports"].items()),
    }


@click.command(help=__doc__ and __doc__.split("\n\n")[0])
@click.option("--level", default=3, show_default=True, help="Of the world.")
@click.option("--units", default=6, show_default=True, help="Investigations.")
@click.option("--seed", default="0", show_default=True, help="Of the world.")
@click.option("--child", hidden=True)
def main(level: int, units: int, seed: str, child: str | None) -> None:
    """Compare and print, or be one of the processes."""
    if child is not None:
        level, seed, units, database, places = json.loads(child)
        world = World.build(level, seed, units=units)
        click.echo(json.dumps(investigate_units(world, Path(database), places)))
        return
    for name, value in compare(level, seed, units).items():
        click.echo(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
