"""How close the whole harvest comes to the bare forward and encode it cannot do without.

    python -m neuronaut.benchmarks.harvest [sae topk neurons demo] [--tokens 800000] [--threads 2] [--memory]

Work: a random GPT-2 (6 layers, d_model 256, 8 heads, vocabulary 8192, context 128 and BOS) on uniform
random tokens, in batches of 32 windows. `sae`: a ReLU dictionary of 8192 latents after block 4, 1.25% of
latents active; `topk`: the same as TopK; `neurons`: all 6 x 1024 MLP neurons in one pass; `demo`: the
built-in model's MLP layers and SAE on the standard library. The harvest is the whole of it, from text to
the closed database: tokenising, splitting, top examples with activations, quantile sample, silent
windows and near misses, histograms. The limit is the same model stopped after the same site, and the
encode into a reused buffer, and nothing else; it is measured before and after, and the two are averaged.
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

# As the command line does: an idle OpenMP thread must not spin on the core that the scan needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ..data.corpus import Corpus
from ..data.harvest.activations import TILE_ROWS, neurons, tiles
from ..data.harvest.harvest import harvest
from ..data.store.store import Store
from ..subject.address import SourceId
from ..subject.dictionary import Dictionary
from ..subject.model import Subject
from ..subject.opening import open_source
from ..subject.sources import Source

VOCABULARY, WINDOW = 8192, 128


def random_subject() -> Subject:
    """A random GPT-2 of 6 layers whose tokens are the words t0, t1, ..."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=WINDOW + 1, n_embd=256, n_layer=6, n_head=8, bos_token_id=0, eos_token_id=0
    )
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Subject(
        GPT2LMHeadModel(config), PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="t0"), name="random"
    )


def random_corpus(tokens: int, folder: Path) -> Corpus:
    """Documents of 8 windows of uniform random tokens, on disk, so that the corpus takes no memory."""
    rng = np.random.default_rng(0)
    path = folder / "random.jsonl"
    with path.open("w") as file:
        for _ in range(tokens // (8 * WINDOW)):
            text = " ".join(f"t{i}" for i in rng.integers(1, VOCABULARY, size=8 * WINDOW))
            file.write(json.dumps({"text": text}) + "\n")
    return Corpus.load(path)


def random_dictionary(subject: Subject, *, kind: str, width: int = VOCABULARY) -> Source:
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


def measure_limit(subject: Subject, sources: Sequence[Source], *, window: int, batches: int) -> float:
    """Tokens per second of the truncated forward and the encode alone."""
    rng = np.random.default_rng(2)
    tokens = rng.integers(1, len(subject.vocabulary), size=(TILE_ROWS, window))
    for _ in tiles(subject, sources, tokens):
        pass
    start = time.perf_counter()
    for _ in range(batches):
        for _ in tiles(subject, sources, tokens):
            pass
    return batches * tokens.size / (time.perf_counter() - start)


def build_work(name: str, tokens: int, folder: Path) -> tuple[Subject, list[Source], Corpus, int]:
    """Subject, sources, corpus and window of the work of a name."""
    if name == "demo":
        subject = Subject.load("demo")
        sae = open_source(subject, SourceId("demo", "resid_post.2", "sae"))
        return subject, [*neurons(subject, [f"mlp.{i}" for i in range(4)]), sae], Corpus.load("stdlib"), 64
    subject = random_subject()
    if name == "neurons":
        sources = neurons(subject, [f"mlp.{i}" for i in range(6)])
    else:
        sources = [random_dictionary(subject, kind="relu" if name == "sae" else "topk")]
    return subject, sources, random_corpus(tokens, folder), WINDOW


def measure(name: str, tokens: int) -> dict[str, object]:
    """One side-by-side run."""
    with tempfile.TemporaryDirectory() as folder:
        subject, sources, corpus, window = build_work(name, tokens, Path(folder))
        before = measure_limit(subject, sources, window=window, batches=16)
        start = time.perf_counter()
        with Store(Path(folder) / "bench.db") as store:
            result = harvest(subject, sources, corpus, store, window=window)
        seconds = time.perf_counter() - start
        after = measure_limit(subject, sources, window=window, batches=16)
    rate, bound = result.tokens / seconds, (before + after) / 2
    return {
        "work": name,
        "tokens": result.tokens,
        "threads": torch.get_num_threads(),
        "harvest": round(rate),
        "limit": round(bound),
        "limit_before_after": [round(before), round(after)],
        "ratio": round(rate / bound, 3),
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
