"""Grades of the rule explainer alone on planted units, by level: the figure that an investigation has to beat.

python -m neuronaut.benchmarks.suite [--levels 1-4] [--units 20] [--seed 0] [--json] [--details]
"""

import json
from dataclasses import asdict

import click

from ...data.store.store import Store
from .grade import Grade, table
from .oneshot import oneshot
from .world import worlds


@click.command(help=__doc__ and __doc__.split("\n\n")[0])
@click.option("--levels", default="1-4", show_default=True, help="A level or a range of them.")
@click.option("--units", default=20, show_default=True, help="Units of each level.")
@click.option("--seed", default="0", show_default=True, help="A number in public, any string in private.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")
@click.option("--details", is_flag=True, help="Print every unit, too.")
def main(levels: str, units: int, seed: str, *, as_json: bool, details: bool) -> None:
    """Label and grade the units, and print a table or JSON."""
    first, _, last = levels.partition("-")
    grades: list[Grade] = []
    for level in range(int(first), int(last or first) + 1):
        for world in worlds(level, seed, units=units):
            with Store(":memory:") as store:
                for labelled in oneshot(world, store):
                    grades.append(labelled.grade)
                    if details:
                        unit, text = labelled.unit.description, labelled.explanation.text
                        click.echo(f"{labelled.grade}\n    {unit}\n    {text}")
    click.echo(json.dumps([asdict(grade) for grade in grades]) if as_json else table(grades))


if __name__ == "__main__":
    main()
