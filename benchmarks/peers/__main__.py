"""What a harvest costs beside delphi's cache and SAEDashboard, on the same model, dictionary and tokens in one run.

    python -m neuronaut.benchmarks.peers [--delphi PYTHON] [--dashboard PYTHON] [--tokens 196608] [--repeat 1]

PYTHON is the interpreter of an environment that has the peer: `pip install eai-delphi`, `pip install sae-dashboard`.
They want versions of transformers that exclude each other, so each has its own; a peer that is not named is left out.
Work: the random GPT-2 and ReLU dictionary of `benchmarks.harvest` (8192 latents, 1.25% active) on uniform random
tokens in windows of 128. Every tool is a process of its own with one thread; loading counts, and the tools take turns
in each repeat. Neuronaut reads text where the peers get tokens. What is compared is the time until examples of every
latent exist, though each keeps something else: Neuronaut top, quantile, near-miss and silent windows and histograms,
delphi every activation and sampled train and test sets, SAEDashboard sequences, histograms and logit tables.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from ...subject.formats_saelens import save_dictionary
from ..harvest import WINDOW, random_corpus, random_dictionary, random_subject
from ..processes import disk_mb, run_command

LAYER = 3
HERE = Path(__file__).parent


class Figures(NamedTuple):
    """One tool on the whole work: seconds to examples of all latents, to the first explanation, MB."""

    tool: str
    seconds: float
    cpu_seconds: float
    first_seconds: float
    peak_mb: int
    disk_mb: float
    note: str


def main() -> None:
    """Run each tool in turn and print a table and one JSON object a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delphi", metavar="PYTHON")
    parser.add_argument("--dashboard", metavar="PYTHON")
    parser.add_argument("--dashboard-latents", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=196_608)
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    rows: list[Figures] = []
    tokens = 0
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tokens, latents = write_work(folder, options.tokens)
            for figures in compare(folder, latents, options):
                print(json.dumps(figures._asdict() | {"tokens": tokens}), flush=True)
                rows.append(figures)
    print(format_table(rows, tokens))


def write_work(folder: Path, tokens: int) -> tuple[int, int]:
    """Model, dictionary, tokens and text of the work in a folder; the number of tokens and of latents."""
    subject = random_subject()
    subject.model.save_pretrained(folder / "model")
    subject.tokenizer.save_pretrained(folder / "model")
    source = random_dictionary(subject, kind="relu")
    save_dictionary(source, folder / "sae", dtype=torch.float32)
    random_corpus(tokens, folder)
    ids = [
        [int(word[1:]) for word in json.loads(line)["text"].split()]
        for line in (folder / "random.jsonl").read_text().splitlines()
    ]
    windows = np.array(ids).reshape(-1, WINDOW)
    np.save(folder / "tokens.npy", windows)
    (folder / "work.json").write_text(json.dumps({"layer": LAYER, "latents": source.width}))
    return windows.size, source.width


def compare(folder: Path, latents: int, options: argparse.Namespace) -> Iterator[Figures]:
    """The figures of Neuronaut, and of each peer that is named."""
    yield measure_neuronaut(folder)
    if options.delphi:
        run = run_command([options.delphi, str(HERE / "with_delphi.py"), str(folder)])
        stages = json.loads(run.printed.splitlines()[-1])
        yield Figures(
            tool="delphi",
            seconds=run.seconds,
            cpu_seconds=run.cpu_seconds,
            first_seconds=stages["first_s"],
            peak_mb=run.peak_mb,
            disk_mb=disk_mb(folder / "delphi"),
            note=f"cache alone {stages['cached_s']:.0f} s; {stages['latents']:,} latents have 200 examples",
        )
    if options.dashboard:
        part = options.dashboard_latents
        run = run_command([options.dashboard, str(HERE / "with_dashboard.py"), str(folder), str(part)])
        stages = json.loads(run.printed.splitlines()[-1])
        more = latents / part - 1
        yield Figures(
            tool="SAEDashboard",
            seconds=run.seconds + stages["pages_s"] * more,
            cpu_seconds=run.cpu_seconds + stages["pages_cpu_s"] * more,
            first_seconds=0.0,
            peak_mb=run.peak_mb,
            disk_mb=disk_mb(folder / "dashboard") * latents / part,
            note=f"extrapolated from {part} latents",
        )


def measure_neuronaut(folder: Path) -> Figures:
    """The harvest by the command line, and the label of one latent after it."""
    database = folder / "out.db"
    command = [sys.executable, "-m", "neuronaut"]
    # Random weights rebuild nothing, which the gate would refuse.
    site = ["resid_post.3", "--sae", str(folder / "sae"), "--name", "sae", "--force"]
    corpus = ["--corpus", str(folder / "random.jsonl"), "--tokens", "all", "--window", str(WINDOW)]
    run = run_command([*command, "harvest", str(folder / "model"), *site, *corpus, "-d", str(database)])
    disk = disk_mb(database)
    label = run_command([*command, "label", "model:resid_post.3@sae:0", "-d", str(database)])
    return Figures(
        tool="neuronaut",
        seconds=run.seconds,
        cpu_seconds=run.cpu_seconds,
        first_seconds=run.seconds + label.seconds,
        peak_mb=run.peak_mb,
        disk_mb=disk,
        note=f"label {label.seconds:.0f} s",
    )


def format_table(rows: Sequence[Figures], tokens: int) -> str:
    """The medians of each tool over the repeats, as a Markdown table."""
    lines = [
        "| tool | examples of every latent, tokens/s | tokens/CPU s | first explanation, s | peak MB | disk MB | |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for tool in dict.fromkeys(row.tool for row in rows):
        own = [row for row in rows if row.tool == tool]
        first = median(row.first_seconds for row in own)
        cells = (
            f"{tokens / median(row.seconds for row in own):,.0f}",
            f"{tokens / median(row.cpu_seconds for row in own):,.0f}",
            f"{first:,.0f}" if first else "–",
            f"{max(row.peak_mb for row in own):,}",
            f"{median(row.disk_mb for row in own):,.0f}",
            own[-1].note,
        )
        lines.append(f"| {tool} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
