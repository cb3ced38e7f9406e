"""A database of a million features: how long each question takes, and what it costs in memory and on disk.

    python -m neuronaut.benchmarks.database [-d FILE] [--features 1000000]

The database is made where there is none (synthetic_database.py), with a vector for every explanation. Every question
is asked REPEATS times in a process of its own that has asked nothing before; the table gives the time of the first
answer, of a file that the system's cache was told to drop, and of the best, CPU time of the best (which other jobs on
the machine do not count in), and the peak memory of that process. Commands are whole processes, from start to end.
Vectors of queries are synthetic.
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

from ..data.store.overview import read_overview
from ..data.store.search import refresh, semantic_search, similar
from ..data.store.store import Store
from ..labelling.inspect import describe
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
    "sources": lambda store: store.sources(),
    "overview (counts by source, scores of a sample)": read_overview,
    "status": lambda store: store.status(),
    "show": lambda store: describe(store, store.feature(_FEATURE)),
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
    parser.add_argument("--ask", choices=[*QUESTIONS, *_JOBS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(_JOBS[options.ask](options.database) if options.ask in _JOBS else _ask(options.database, options.ask))
        return
    if not options.database.exists():
        _make(options.database, options.features)
    print("| question | first, ms | best, ms | best, CPU ms | peak memory, MB |\n|---|--:|--:|--:|--:|")
    for name in QUESTIONS:
        print(_ask_apart(options.database, name), flush=True)
    print("\n| command | best of three, s | best, CPU s | peak memory, MB |\n|---|--:|--:|--:|")
    for name, arguments in COMMANDS.items():
        print(_run(name, [sys.executable, "-m", "neuronaut", *arguments, "-d", str(options.database)]), flush=True)
    for name in _JOBS:
        print(f"\n{name}: {_ask_apart(options.database, name)}", flush=True)


def _ask_apart(path: Path, name: str) -> str:
    """What a process of its own answers; no page of the database is in the system's cache when it begins."""
    for file in path.parent.glob(f"{path.name}*"):
        with file.open("rb") as pages:
            os.posix_fadvise(pages.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    own = [sys.executable, "-m", "neuronaut.benchmarks.database", "-d", str(path), "--ask", name]
    return subprocess.run(own, capture_output=True, text=True, check=True).stdout.strip()


def _make(path: Path, features: int) -> None:
    partial, began = path.with_name(f"{path.name}.partial"), time.process_time()
    with Store(partial) as store:
        write_database(store, features)
        print(f"{features:,} features written in {time.process_time() - began:.0f} CPU s", flush=True)
        count = refresh(store, SyntheticEmbedder())
    partial.replace(path)
    print(f"{count:,} vectors, {path.stat().st_size / 1e9:.2f} GB, {time.process_time() - began:.0f} CPU s in all")


def _ask(path: Path, name: str) -> str:
    with Store(path, create=False) as store:
        seconds, work = [], []
        for _ in range(REPEATS):
            began, worked = time.perf_counter(), time.process_time()
            QUESTIONS[name](store)
            seconds.append(time.perf_counter() - began)
            work.append(time.process_time() - worked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    first, best, cpu = (1000 * value for value in (seconds[0], min(seconds), min(work)))
    return f"| {name} | {first:.0f} | {best:.0f} | {cpu:.0f} | {peak:.0f} |"


def _run(name: str, command: list[str]) -> str:
    seconds, work, peak = [], [], 0.0
    for _ in range(3):
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - began)
        work.append(usage.ru_utime + usage.ru_stime)
        peak = max(peak, usage.ru_maxrss / 1024)
        if status:
            raise SystemExit(f"{name} ended with {status}")
    return f"| {name} | {min(seconds):.2f} | {min(work):.2f} | {peak:.0f} |"


def _import(_: Path) -> str:
    """Import IMPORTED rows into a database of as many features."""
    # It imports torch, which would count as a question's memory.
    from ..data.store.export import write_jsonl
    from ..data.store.importing import Sources, import_files

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
    return f"{rate:,.0f} rows a CPU second"


class _Sink(io.StringIO):
    """Counts what is written, and keeps nothing."""

    count = 0

    def write(self, text: str, /) -> int:
        """Count the characters."""
        self.count += len(text)
        return len(text)


def _export(path: Path) -> str:
    from ..data.store.export import write_jsonl

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sink, began = _Sink(), time.process_time()
    with Store(path, create=False) as store:
        write_jsonl(store.iterate_rows(), sink)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    seconds = time.process_time() - began
    return f"{sink.count / 1e6:,.0f} MB of JSON lines, {seconds:.0f} CPU s, peak memory grew by {grown:.0f} MB"


_JOBS: Mapping[str, Callable[[Path], str]] = {"import": _import, "export": _export}


if __name__ == "__main__":
    main()
