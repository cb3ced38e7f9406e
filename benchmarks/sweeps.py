"""Sweeps of heads beside one forward per cell, both in this run: forwards, their work, seconds, agreement.

    python -m neuronaut.benchmarks.sweeps [--pairs 8] [--threads 2] [--at-once 64]

Work: every head patched by itself in both directions, on pairs of random tokens of which one is repeated (corrupted: it
has changed places with another). `demo` is the built-in model (4 layers of 4 heads); `12 x 12` is random, in GPT-2's
architecture, of width 192, with positions and vocabulary of 512. One forward per cell is the same edit by the same
hooks, all pairs in one whole forward of their own, logits at the answer only, its source runs read once. Neither counts
the bootstrap of intervals, which is timed apart.

`full forwards` weighs each forward pass by the share of the layers that it ran, `full rows` each row: the first shows
the saving where a forward's fixed cost rules (small models, GPUs), the second the saving of computation.
"""

import argparse
import random
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ..causal.batched import measure
from ..causal.edits import Edit
from ..causal.grids import Grid, sites_of
from ..causal.intervene import NOTHING, apply
from ..causal.measures import METRICS, Question
from ..causal.prompts import Batch, Pairs
from ..causal.runs import gather, logits_at
from ..causal.sweeps import SETTINGS, sweep
from ..subject.model import Subject

REPEATS = 3
"""Each is timed this often, in turns, and the fastest time counts."""


def random_subject() -> Subject:
    """A random GPT-2 of 12 layers of 12 heads."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512, n_positions=64, n_embd=192, n_layer=12, n_head=12, bos_token_id=0, eos_token_id=0
    )
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(512)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t0")
    return Subject(GPT2LMHeadModel(config), tokenizer, name="random")


def random_pairs(subject: Subject, *, rows: int, period: int = 14) -> Pairs:
    """BOS, random tokens, and one of them again; corrupted, that one has changed places with another."""
    rng, rows_of_pairs = random.Random(0), []
    bos = subject.bos_prefix
    for _ in range(rows):
        words = rng.sample([id for id in range(len(subject.vocabulary)) if id != subject.bos], period)
        first, second = rng.sample(range(0, period - 1, 2), 2)
        swapped = list(words)
        swapped[first], swapped[second] = words[second], words[first]
        ends = words[first + 1], words[second + 1]
        rows_of_pairs.append(([*bos, *words, words[first]], [*bos, *swapped, words[first]], *ends))
    clean, corrupted, answers, wrong = zip(*rows_of_pairs, strict=True)
    clean_batch, corrupted_batch = (Batch.of(subject, list(side)) for side in (clean, corrupted))
    return Pairs.aligned(subject, clean_batch, corrupted_batch, torch.tensor(answers), torch.tensor(wrong))


@torch.inference_mode()
def one_by_one(subject: Subject, pairs: Pairs, grid: Grid) -> torch.Tensor:
    """The logit difference of every direction, cell and pair, one forward for each cell."""
    batches = {"clean": pairs.clean, "corrupted": pairs.corrupted}
    question = Question(pairs.answers, pairs.wrong)
    for batch in batches.values():
        logits_at(subject, batch.tokens, batch.last)
    differences = []
    for setting in SETTINGS.values():
        base = batches[setting.base]
        patch_values = gather(subject, grid.edits, source_run=batches[str(setting.source_run)])
        for edit in grid.edits:
            with apply(subject, base, [edit], materials=patch_values):
                differences.append(METRICS["logit_difference"](logits_at(subject, base.tokens, base.last), question))
    return torch.stack(differences)


def in_one_sweep(subject: Subject, pairs: Pairs, grid: Grid, *, at_once: int) -> torch.Tensor:
    """The same logit differences by a sweep."""
    measured = measure(
        subject,
        grid.edits,
        {"clean": pairs.clean, "corrupted": pairs.corrupted},
        {str(direction): setting for direction, setting in SETTINGS.items()},
        Question(pairs.answers, pairs.wrong),
        metrics=["logit_difference"],
        materials=NOTHING,
        at_once=at_once,
    )
    return torch.cat([measured.edited[direction][:, 0] for direction in SETTINGS])


def time_call(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Seconds of a call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def compare(name: str, subject: Subject, *, rows: int, at_once: int) -> None:
    """Time both ways on one subject and print a table."""
    pairs = random_pairs(subject, rows=rows)
    grid = Grid.of(Edit.parse("head.0=patch"), sites=sites_of(subject, "head"), units=range(subject.n_heads))
    cost = sweep(subject, pairs, grid, at_once=at_once).cost
    times = [
        (
            time_call(lambda: in_one_sweep(subject, pairs, grid, at_once=at_once)),
            time_call(lambda: one_by_one(subject, pairs, grid)),
        )
        for _ in range(REPEATS)
    ]
    error = float((times[0][0][1] - times[0][1][1]).abs().max())
    ours, theirs = (min(run[side][0] for run in times) for side in (0, 1))
    whole, _ = time_call(lambda: torch.tensor(sweep(subject, pairs, grid, at_once=at_once).cost.rows))
    print(f"\n{name}: {len(grid.edits)} heads x 2 directions, {rows} pairs of {pairs.clean.tokens.shape[1]} tokens")
    print(f"{'':16}{'forwards':>10}{'full forwards':>15}{'full rows':>11}{'seconds':>9}")
    print(f"{'one per cell':16}{cost.one_by_one:10}{cost.one_by_one:15.1f}{cost.rows:11.1f}{theirs:9.3f}")
    print(f"{'sweep':16}{cost.forwards:10}{cost.equivalents:15.1f}{cost.row_equivalents:11.1f}{ours:9.3f}")
    ratios = (cost.one_by_one / cost.forwards, cost.one_by_one / cost.equivalents, cost.rows / cost.row_equivalents)
    print(f"{'times fewer':16}{ratios[0]:10.1f}{ratios[1]:15.1f}{ratios[2]:11.1f}{theirs / ours:9.1f}")
    print(f"largest difference {error:.1e} logits; with intervals and provenance the sweep takes {whole:.3f} s")


def main() -> None:
    """Compare on the built-in model and on a random one."""
    parser = argparse.ArgumentParser(description="Sweeps of heads beside one forward per cell")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, subject in (("demo", Subject.load("demo")), ("12 x 12", random_subject())):
        compare(name, subject, rows=options.pairs, at_once=options.at_once)


if __name__ == "__main__":
    main()
