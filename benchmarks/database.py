"""A database of a million features: how long each question takes, and what it costs in memory and on disk.

    python -m neuronaut.benchmarks.database [-d FILE] [--features 1000000]

The database is made where there is none (synthetic_database.py), with a vector for every explanation. Every question
is asked REPEATS times in a process of its own that has asked nothing before; the table gives the first answer and the
best, and the peak memory of that process. Commands are whole processes, from start to end. Vectors of queries are
synthetic.
"""

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..data.store.export import write_jsonl
from ..data.store.importing import Sources, import_files
from ..data.store.search import refresh, semantic_search, similar
from ..data.store.store import Store
from ..subject.address import SourceId
from .synthetic_database import SyntheticEmbedder, make_harvest, make_words, write_database

REPEATS = 5
IMPORTED = 50_000
"""Rows of the import."""
_COMMON, _FAIR, _RARE = (make_words(20_000)[place] for place in (0, 300, 15_000))
_SOURCE = "synthetic:resid_post.0@sae"
_FEATURE = f"{_SOURCE}:1234"

Question = Callable[[Store], object]
QUESTIONS: Mapping[str, Question] = {
    "word in nearly every explanation": lambda store: store.search_rows("fires"),
    "word in a third": lambda store: store.search_rows(_COMMON),
    "word in one of a thousand": lambda store: store.search_rows(_FAIR),
    "rare word": lambda store: store.search_rows(_RARE),
    "two words": lambda store: store.search_rows(f"{_COMMON} {_FAIR}"),
    "word, one source, score above 0.8": lambda store: store.search_rows(_COMMON, source=_SOURCE, min_score=0.8),
    "list, first page": lambda store: store.list_rows(limit=50),
    "list, best scores": lambda store: store.list_rows(limit=50, sort="score"),
    "list, weak, by density": lambda store: store.list_rows(limit=50, sort="density", status="weak"),
    "list, no pattern, by peak, one source": lambda store: store.list_rows(
        _SOURCE, limit=50, sort="peak", status="no_pattern"
    ),
    "list, score from 0.899, by peak": lambda store: store.list_rows(limit=50, sort="peak", min_score=0.899),
    "list, page in the middle": lambda store: store.list_rows(
        limit=50, sort="score", after=store.feature("synthetic:resid_post.0@sae:4321")
    ),
    "overview (counts and scores by source)": lambda store: store.overview(),
    "status": lambda store: store.status(),
    "by meaning": lambda store: semantic_search(store, "query", embedder=SyntheticEmbedder()),
    "by meaning, one source, score above 0.6": lambda store: semantic_search(
        store, "query", embedder=SyntheticEmbedder(), source=_SOURCE, min_score=0.6
    ),
    "similar by windows": lambda store: similar(store, store.feature(_FEATURE), embedder=None),
    "similar by windows and explanation": lambda store: similar(
        store, store.feature(_FEATURE), embedder=SyntheticEmbedder()
    ),
}
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "neuronaut show": ("show", _FEATURE),
    "neuronaut search": ("search", _FAIR),
    "neuronaut list": ("list", "--sort", "score", "--limit", "50"),
    "neuronaut similar": ("similar", _FEATURE),
}


def main() -> None:
    """Make the database where there is none, and print the tables."""
    parser = argparse.ArgumentParser(description="A database of a million features")
    parser.add_argument("-d", "--database", type=Path, default=Path("million.db"))
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--ask", choices=list(QUESTIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        _ask(options.database, options.ask)
        return
    if not options.database.exists():
        _make(options.database, options.features)
    print("| question | first, ms | best, ms | peak memory, MB |\n|---|--:|--:|--:|")
    for name in QUESTIONS:
        own = [sys.executable, "-m", "neuronaut.benchmarks.database", "-d", str(options.database), "--ask", name]
        print(subprocess.run(own, capture_output=True, text=True, check=True).stdout, end="", flush=True)
    print("\n| command | best of three, s | peak memory, MB |\n|---|--:|--:|")
    for name, arguments in COMMANDS.items():
        print(_run(name, [sys.executable, "-m", "neuronaut", *arguments, "-d", str(options.database)]), flush=True)
    for line in (_import(), _export(options.database)):
        print(line, flush=True)


def _make(path: Path, features: int) -> None:
    partial, began = path.with_name(f"{path.name}.partial"), time.process_time()
    with Store(partial) as store:
        write_database(store, features)
        print(f"{features:,} features written in {time.process_time() - began:.0f} CPU s", flush=True)
        count = refresh(store, SyntheticEmbedder())
    partial.replace(path)
    print(f"{count:,} vectors, {path.stat().st_size / 1e9:.2f} GB, {time.process_time() - began:.0f} CPU s in all")


def _ask(path: Path, name: str) -> None:
    with Store(path, create=False) as store:
        seconds = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            QUESTIONS[name](store)
            seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {name} | {1000 * seconds[0]:.0f} | {1000 * min(seconds):.0f} | {peak:.0f} |")


def _run(name: str, command: list[str]) -> str:
    seconds, peak = [], 0.0
    for _ in range(3):
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - began)
        peak = max(peak, usage.ru_maxrss / 1024)
        if status:
            raise SystemExit(f"{name} ended with {status}")
    return f"| {name} | {min(seconds):.2f} | {peak:.0f} |"


def _import() -> str:
    """Import IMPORTED rows into a database of as many features."""
    source = SourceId.parse(_SOURCE)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "new.db") as store:
        store.write_harvest(make_harvest(source, IMPORTED, seed=0))
        rows = Path(folder) / "rows.jsonl"
        words = make_words(20_000)
        with rows.open("w") as stream:
            write_jsonl(
                (
                    {"feature": f"{source}:{n}", "explanation": f"fires on {' '.join(words[n % 9000 : n % 9000 + 12])}"}
                    for n in range(IMPORTED)
                ),
                stream,
            )
        began = time.process_time()
        import_files(store, [rows], sources=Sources(store), check_rule=str)
        rate = IMPORTED / (time.process_time() - began)
    return f"\nimport: {rate:,.0f} rows a CPU second"


class _Sink(io.TextIOBase):
    """Counts what is written, and keeps nothing."""

    count = 0

    def write(self, text: str, /) -> int:
        """Count the characters."""
        self.count += len(text)
        return len(text)


def _export(path: Path) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sink, began = _Sink(), time.process_time()
    with Store(path, create=False) as store:
        write_jsonl(store.iterate_rows(), sink)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    seconds = time.process_time() - began
    return f"export: {sink.count / 1e6:,.0f} MB of JSON lines, {seconds:.0f} CPU s, peak memory grew by {grown:.0f} MB"


if __name__ == "__main__":
    main()
