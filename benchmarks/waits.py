"""What a user waits for in passing: help, a list, a thousand bootstrap draws, the splits of the standard library.

    python -m neuronaut.benchmarks.waits [--runs 5] [--database FILE]

Each figure is the least of several runs, in seconds; processes are whole, from start to end.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from ..data.corpus import Corpus
from ..data.splits import assign
from ..data.stdlib import modules
from ..scorers.metrics import evaluate

WINDOWS, LENGTH = 200, 64
"""Windows of a score, and their tokens."""


def command(*arguments: str) -> Callable[[], None]:
    """Run `neuronaut` with arguments in a process of its own."""

    def run() -> None:
        subprocess.run([sys.executable, "-m", "neuronaut", *arguments], check=True, stdout=subprocess.DEVNULL)

    return run


def draws() -> Callable[[], None]:
    """Compute all metrics of one score, with their thousand bootstrap draws."""
    rng = np.random.default_rng(6)
    true = rng.exponential(size=(WINDOWS, LENGTH)).astype(np.float32)
    predicted = (true + rng.normal(size=true.shape)).astype(np.float32)

    def run() -> None:
        evaluate(true, predicted, threshold=0.5)

    return run


def splits() -> Callable[[], None]:
    """Put the standard library's modules into splits, near-duplicates together."""
    corpus = Corpus.of("modules", [text for _, text in modules() if text.strip()])

    def run() -> None:
        assign(corpus)

    return run


def least(run: Callable[[], None], *, runs: int) -> float:
    """The least of so many runs, in seconds."""
    times: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return round(min(times), 4)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--database", help="also wait for `neuronaut list` of this database")
    options = parser.parse_args()
    figures = {"help": least(command("--help"), runs=options.runs)}
    if options.database:
        figures["list"] = least(command("list", "-d", options.database, "--json"), runs=options.runs)
    figures["thousand draws"] = least(draws(), runs=options.runs)
    figures["splits of the standard library"] = least(splits(), runs=options.runs)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
