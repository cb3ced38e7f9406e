"""How close the whole harvest comes to the bare forward and encode it cannot do without.

    python -m neuronaut.benchmarks.harvest [sae topk neurons demo] [--tokens 800000] [--threads 2] [--memory]

Work: a random GPT-2 (6 layers, d_model 256, 8 heads, vocabulary 8192, context 128 and BOS) on uniform
random tokens, in batches of 32 windows. `sae`: a ReLU dictionary of 8192 latents after block 4, 1.25% of
latents active; `topk`: the same as TopK; `neurons`: all 6 x 1024 MLP neurons in one pass; `demo`: the
built-in model's MLP layers and SAE on about as many tokens of the standard library, its beginning. The harvest
is the whole of it, from text to the closed database: tokenising, splitting, top examples with activations, quantile
sample, silent windows and near misses, histograms. The limit is the same model stopped after the same site,
and the encode into a reused buffer, and nothing else.

Both are measured in turns within one harvest, so that a noisy machine slows both: after every few batches the
harvest waits, and the limit runs on half as many. A stretch of the harvest costs as many tokens as the limit would have
run in that time, at the speed of the limit before and after it. The ratio is tokens / (tokens x median cost of a token
in a stretch + cost of what is done once: splits, mining, writing), its interval that of a bootstrap over stretches; in
wall time, and in CPU time of all threads, in which tokenising beside the model counts too.
`--memory` compares the peak memory of separate processes at 200k and at 2M tokens.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

# As the command line does: an idle OpenMP thread must not spin on the core that the scan needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ..data.corpus import Corpus
from ..data.harvest.activations import TILE_ROWS, neurons, tiles
from ..data.harvest.harvest import harvest
from ..data.harvest.watch import Watch
from ..data.store.store import Store
from ..subject.address import SourceId
from ..subject.dictionary import Dictionary
from ..subject.model import Subject
from ..subject.opening import open_source
from ..subject.sources import Source

VOCABULARY, WINDOW = 8192, 128


def numbered_words(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the words t0, which is BOS, t1, ..."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="t0")


def random_subject() -> Subject:
    """A random GPT-2 of 6 layers whose tokens are numbered words."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=WINDOW + 1, n_embd=256, n_layer=6, n_head=8, bos_token_id=0, eos_token_id=0
    )
    return Subject(GPT2LMHeadModel(config), numbered_words(VOCABULARY), name="random")


def random_corpus(tokens: int, folder: Path, *, vocabulary: int = VOCABULARY) -> Corpus:
    """Documents of 8 windows of uniform random tokens, on disk, so that the corpus takes no memory."""
    rng = np.random.default_rng(0)
    path = folder / "random.jsonl"
    with path.open("w") as file:
        for _ in range(tokens // (8 * WINDOW)):
            text = " ".join(f"t{i}" for i in rng.integers(1, vocabulary, size=8 * WINDOW))
            file.write(json.dumps({"text": text}) + "\n")
    return Corpus.load(path)


def random_dictionary(subject: Subject, *, kind: str, width: int = VOCABULARY) -> Dictionary:
    """Random latents after block 4; the ReLU's bias leaves 1.25% of them active."""
    generator = torch.Generator().manual_seed(1)
    encoder = torch.randn(256, width, generator=generator) / 16
    site = SourceId("random", "resid_post.3", kind)
    tokens = torch.randint(1, VOCABULARY, (16, WINDOW), generator=generator)
    vectors = subject.read(tokens, [site.site])[site.site].flatten(0, 1)
    bias = -torch.quantile((vectors @ encoder)[:1024, ::8].flatten(), 1 - 0.0125)
    return Dictionary(
        id=site,
        kind="standard" if kind == "relu" else "topk",
        k=32 if kind == "topk" else 0,
        W_enc=encoder,
        W_dec=encoder.T.contiguous(),
        b_enc=torch.full((width,), float(bias)),
        b_dec=torch.zeros(256),
        subtract_b_dec=False,
    )


class Duration(NamedTuple):
    """A duration, or a time of a clock."""

    wall: float
    cpu: float
    """Of all threads."""

    @classmethod
    def now(cls) -> "Duration":
        """What the clocks say."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Duration") -> "Duration":
        """From a time to this one."""
        return Duration(self.wall - start.wall, self.cpu - start.cpu)


class Limit:
    """The truncated forward and the encode alone."""

    def __init__(self, subject: Subject, sources: Sequence[Source], *, window: int) -> None:
        self._subject, self._sources = subject, sources
        self._tokens = np.random.default_rng(2).integers(1, len(subject.vocabulary), size=(TILE_ROWS, window))
        self.run(1)

    def run(self, batches: int) -> Duration:
        """The time that a token takes."""
        start, own = Duration.now(), time.thread_time()
        for _ in range(batches):
            for _ in tiles(self._subject, self._sources, self._tokens):
                pass
        if self._subject.device.type == "cuda":
            torch.cuda.synchronize(self._subject.device)
        wall, cpu = Duration.now().since(start)
        # The harvest's other thread may be tokenising meanwhile, which is not the limit's.
        cpu = time.thread_time() - own if torch.get_num_threads() == 1 else cpu
        return Duration(wall / (batches * self._tokens.size), cpu / (batches * self._tokens.size))


class Stretch(NamedTuple):
    """A part of the harvest, and the limit around it."""

    tokens: int
    """0 where it is what is done once."""
    spent: Duration
    limit: Duration
    """Of a token, the mean of before and after."""


class InTurns(Watch):
    """Stops a harvest after every `every` batches and runs the limit on half as many."""

    def __init__(self, limit: Limit, *, every: int, batch: int) -> None:
        self.stretches: list[Stretch] = []
        self._limit, self._every, self._batch = limit, every, batch
        self._done = self._tokens = 0
        self._before = limit.run(every)
        self._start = Duration.now()

    def begins(self, done: int, of: int) -> None:
        """End the stretch of the splits."""
        print(f"harvesting {of - done:,} tokens", file=sys.stderr, flush=True)
        self.cut(0)

    def read(self, tokens: int) -> None:
        """End a stretch of reading where it is long enough."""
        self._done = tokens
        if tokens - self._tokens >= self._every * self._batch:
            self._cut_reading()

    def mined(self, windows: int, of: int) -> None:
        """End the last stretch of reading, which may be a short one, when mining begins."""
        if windows < of and self._done > self._tokens:
            self._cut_reading()

    def _cut_reading(self) -> None:
        self.cut(self._done - self._tokens)
        self._tokens = self._done

    def cut(self, tokens: int) -> None:
        """End a stretch, and run the limit."""
        spent, own = Duration.now().since(self._start), time.process_time()
        after = self._limit.run(max(1, self._every // 2))
        mean = Duration(*((one + other) / 2 for one, other in zip(self._before, after, strict=True)))
        self.stretches.append(Stretch(tokens, spent, mean))
        self._before, self._start = after, Duration.now()
        if torch.get_num_threads() == 1:
            # What the other thread did while the limit ran belongs to the harvest.
            beside = self._start.cpu - own - after.cpu * max(1, self._every // 2) * self._batch
            self._start = self._start._replace(cpu=self._start.cpu - max(0.0, beside))


class Ratio(NamedTuple):
    """The speed of the harvest over that of the limit, with a 95% interval."""

    ratio: float
    low: float
    high: float
    reading: float
    """What a token of the reading costs, in tokens of the limit."""
    once: float
    """What is done once costs, in tokens of the limit, by tokens of the harvest."""


def compare(stretches: Sequence[Stretch], tokens: int, clock: Literal["wall", "cpu"]) -> Ratio:
    """The ratio by a clock."""
    costs = [(part.tokens, getattr(part.spent, clock) / getattr(part.limit, clock)) for part in stretches]
    once = sum(cost for count, cost in costs if not count) / tokens
    each = np.array([cost / count for count, cost in costs if count])
    drawn = np.median(np.random.default_rng(0).choice(each, (2000, len(each))), axis=1)
    reading = float(np.median(each))
    high, low = (1 / (cost + once) for cost in np.quantile(drawn, (0.025, 0.975)).tolist())
    return Ratio(*(round(value, 3) for value in (1 / (reading + once), low, high, reading, once)))


def build_work(name: str, tokens: int, folder: Path) -> tuple[Subject, list[Source], Corpus, int]:
    """Subject, sources, corpus and window of the work of a name."""
    if name == "demo":
        subject = Subject.load("demo")
        sae = open_source(subject, SourceId("demo", "resid_post.2", "sae"))
        return (
            subject,
            [*neurons(subject, [f"mlp.{i}" for i in range(4)]), sae],
            Corpus.load("stdlib").head(4 * tokens),
            64,
        )
    subject = random_subject()
    if name == "neurons":
        sources: list[Source] = [*neurons(subject, [f"mlp.{i}" for i in range(6)])]
    else:
        sources = [random_dictionary(subject, kind="relu" if name == "sae" else "topk")]
    return subject, sources, random_corpus(tokens, folder), WINDOW


def measure(name: str, tokens: int) -> dict[str, object]:
    """One side-by-side run."""
    with tempfile.TemporaryDirectory() as folder:
        subject, sources, corpus, window = build_work(name, tokens, Path(folder))
        limit = Limit(subject, sources, window=window)
        turns = InTurns(limit, every=max(2, tokens // (TILE_ROWS * window) // 24), batch=TILE_ROWS * window)
        with Store(Path(folder) / "bench.db") as store:
            result = harvest(subject, sources, corpus, store, window=window, watch=turns)
        turns.cut(0)
    wall = float(np.median([part.limit.wall for part in turns.stretches]))
    return {
        "work": name,
        "tokens": result.tokens,
        "threads": torch.get_num_threads(),
        "limit_tokens_per_second": round(1 / wall),
        "wall": compare(turns.stretches, result.tokens, "wall")._asdict(),
        "cpu": compare(turns.stretches, result.tokens, "cpu")._asdict(),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measure and print one JSON object a work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", default=["sae", "topk", "neurons", "demo"])
    parser.add_argument("--tokens", type=int, default=800_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.memory:
        for name in options.work:
            print(json.dumps(measure(name, options.tokens)), flush=True)
        return
    for name in options.work:
        for tokens in (200_000, 2_000_000):
            command = [sys.executable, "-m", __spec__.name, name, "--tokens", str(tokens)]
            subprocess.run([*command, "--threads", str(options.threads)], check=True)


if __name__ == "__main__":
    main()
