"""How the cost of a harvest grows with tokens, features, layers, workers and the size of the database.

    python -m neuronaut.benchmarks.growth [tokens features layers workers database] [--tokens 200000] [--repeat 1]

Every figure is of `neuronaut harvest` as a process of its own with one thread a worker, loading and writing included.
Tokens, workers and database: the MLP neurons of one layer of the built-in model on the standard library. Features:
random ReLU dictionaries of 1k to 16k latents, 1.25% of which are active, on the random GPT-2 of `benchmarks.harvest`.
Layers: the MLP neurons of 1 to 6 layers of that model. Database: the harvest is written beside 0 to 200k explained
features. Where the machine is shared, CPU seconds are the figure to read.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from ..data.store.store import Store
from ..subject.formats_saelens import save_dictionary
from .harvest import WINDOW, random_corpus, random_dictionary, random_subject
from .processes import Run, disk_mb, run_command
from .synthetic_database import write_database

SITE = ("demo", "mlp.2")
Points = Iterator[tuple[str, Run, float]]
"""The name of a point, its process, and the MB that its database grew by."""


def main() -> None:
    """Measure the questions that are named and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="*", help=f"of {', '.join(QUESTIONS)}; all where none is named")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.question) - QUESTIONS.keys():
        parser.error(f"{', '.join(sorted(unknown))} is no question; wanted {', '.join(QUESTIONS)}")
    print("| question | point | seconds | CPU s | peak MB of a process | disk MB |\n|---|---|--:|--:|--:|--:|")
    for name in (options.question or list(QUESTIONS)) * options.repeat:
        with tempfile.TemporaryDirectory() as folder:
            for point, run, disk in QUESTIONS[name](Path(folder), options.tokens):
                figures = f"{run.seconds:.1f} | {run.cpu_seconds:.1f} | {run.peak_mb:,} | {disk:.1f}"
                print(f"| {name} | {point} | {figures} |", flush=True)


def measure_tokens(folder: Path, tokens: int) -> Points:
    """Half, once, twice and four times the tokens."""
    for share in (0.5, 1, 2, 4):
        yield _harvest(folder, f"{tokens * share:,.0f}", SITE, tokens=int(tokens * share))


def measure_features(folder: Path, tokens: int) -> Points:
    """Dictionaries of 1k to 16k latents on the same tokens."""
    model, corpus = _write_random(folder, tokens)
    subject = random_subject()
    for width in (1024, 2048, 4096, 8192, 16384):
        source = random_dictionary(subject, kind="relu", width=width)
        save_dictionary(source, folder / f"sae{width}", dtype=torch.float32)
        # Random weights rebuild nothing, which the gate would refuse.
        site = (model, "resid_post.3", "--sae", str(folder / f"sae{width}"), "--force")
        yield _harvest(folder, f"{width:,} latents", (*site, *corpus))


def measure_layers(folder: Path, tokens: int) -> Points:
    """All neurons of 1 to 6 layers in one pass; the model runs as far as the last."""
    model, corpus = _write_random(folder, tokens)
    for layers in (1, 2, 4, 6):
        yield _harvest(folder, f"{layers} x 1024 neurons", (model, f"mlp.{6 - layers}-5", *corpus))


def measure_workers(folder: Path, tokens: int) -> Points:
    """One and two worker processes."""
    for jobs in (1, 2):
        yield _harvest(folder, f"-j {jobs}", (*SITE, "-j", str(jobs)), tokens=tokens * 2)


def measure_database(folder: Path, tokens: int) -> Points:
    """The same harvest beside more and more explained features."""
    for features in (0, 10_000, 200_000):
        database = folder / f"with{features}.db"
        with Store(database) as store:
            write_database(store, features)
        yield _harvest(folder, f"beside {features:,} features", SITE, tokens=tokens, database=database)


QUESTIONS: Mapping[str, Callable[[Path, int], Points]] = {
    "tokens": measure_tokens,
    "features": measure_features,
    "layers": measure_layers,
    "workers": measure_workers,
    "database": measure_database,
}


def _write_random(folder: Path, tokens: int) -> tuple[str, tuple[str, ...]]:
    """The random GPT-2 in a folder, and the options that name its corpus."""
    subject = random_subject()
    subject.model.save_pretrained(folder / "model")
    subject.tokenizer.save_pretrained(folder / "model")
    random_corpus(tokens, folder)
    corpus = ("--corpus", str(folder / "random.jsonl"), "--tokens", "all", "--window", str(WINDOW))
    return str(folder / "model"), corpus


def _harvest(
    folder: Path, point: str, what: tuple[str, ...], *, tokens: int | None = None, database: Path | None = None
) -> tuple[str, Run, float]:
    database = database or folder / f"{point}.db"
    before = disk_mb(database) if database.exists() else 0.0
    limit = () if tokens is None else ("--tokens", str(tokens))
    run = run_command([sys.executable, "-m", "neuronaut", "harvest", *what, *limit, "-d", str(database)])
    return point, run, disk_mb(database) - before


if __name__ == "__main__":
    main()
