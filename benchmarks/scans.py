"""A vocabulary scan whose rows share their beginnings, beside one that runs every row whole.

    python -m neuronaut.benchmarks.scans [--carriers 4] [--length 24] [--back 1] [--threads 2]

In each carrier every token is put in `back` tokens before its last one, and a neuron is read at the last one: by
`read_last`, with whole rows in full batches, and, a sample of them, one row at a time. All in turns in one process;
the output gives the best microseconds a row of each, the ratios and the largest difference.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.harvest.activations import Row, read_columns, read_last
from ..subject.address import SourceId
from ..subject.model import Subject
from ..subject.sources import Neurons, Source

REPEATS = 3
SAMPLE = 200
"""Rows that are run one at a time."""


def scan_rows(subject: Subject, *, carriers: int, length: int, back: int) -> list[Row]:
    """Every token of the vocabulary at one place of random carriers."""
    rng, size = np.random.default_rng(0), len(subject.vocabulary)
    rows: list[Row] = []
    for carrier in rng.integers(0, size, (carriers, length)).tolist():
        place = length - 1 - back
        rows += [(*carrier[:place], token, *carrier[place + 1 :]) for token in range(size)]
    return rows


def read_whole(subject: Subject, source: Source, rows: list[Row], features: list[int]) -> NDArray[np.float32]:
    """The activations that `read_last` gives, from every row run as a whole."""
    return read_columns(subject, source, np.array(rows), features)[:, -1]


def main() -> None:
    """Time the three ways and print their ratios."""
    parser = argparse.ArgumentParser(description="A vocabulary scan with shared beginnings beside one without")
    parser.add_argument("--carriers", type=int, default=4)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--back", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    subject = Subject.load("demo")
    site = f"mlp.{subject.n_layers - 2}"
    source, features = Neurons(SourceId("demo", site), subject.width(site)), [0]
    rows = scan_rows(subject, carriers=options.carriers, length=options.length, back=options.back)

    def timed(read: Callable[[], NDArray[np.float32]]) -> tuple[float, NDArray[np.float32]]:
        began = time.perf_counter()
        activations = read()
        return time.perf_counter() - began, activations

    sample = rows[:: len(rows) // SAMPLE]
    runs = [
        (
            timed(lambda: read_last(subject, source, rows, features)),
            timed(lambda: read_whole(subject, source, rows, features)),
            timed(lambda: np.concatenate([read_whole(subject, source, [row], features) for row in sample])),
        )
        for _ in range(REPEATS)
    ]
    best = [min(run[side][0] for run in runs) for side in range(3)]
    shared, plain, single = (1e6 * took / n for took, n in zip(best, (len(rows), len(rows), len(sample)), strict=True))
    error = float(np.abs(runs[0][0][1] - runs[0][1][1]).max())
    print(f"{len(rows):,} rows of {options.length} tokens, read at {site}")
    print(f"one row at a time: {single:,.0f} us a row, {single / shared:.1f} times as long as with shared beginnings")
    print(f"whole rows, batched: {plain:,.0f} us a row, {plain / shared:.1f} times as long")
    print(f"shared beginnings, batched: {shared:,.0f} us a row")
    print(f"largest difference {error:.1e}, largest activation {float(np.abs(runs[0][1][1]).max()):.2f}")


if __name__ == "__main__":
    main()
