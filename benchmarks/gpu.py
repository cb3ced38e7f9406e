"""Harvest, labels and sweeps of large models on an accelerator, and whether it agrees with the CPU.

    python -m neuronaut.benchmarks.gpu [--small] [--tokens 131072] [--out FILE.json]

Models are random, in the shapes of Gemma 2 2B and Llama 3.1 8B, in bfloat16 on the accelerator: nothing is fetched. For
each, a ReLU dictionary of 16,384 and of 131,072 latents after the middle block, about 64 of them active: the harvest
against the bare forward and encode, in turns (see `harvest`). On the narrow one then: features labelled a second by
rules, and heads patched a second in a sweep, both directions of each. Agreement is of the same shape with two layers in
float32, on the accelerator and on the CPU: the largest difference of an activation, as a share of the largest one.

`--small` shrinks every shape, and runs on a CPU too: it shows that the script works, not how fast anything is.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PretrainedConfig

from ..causal.edits import Edit
from ..causal.grids import Grid, sites_of
from ..causal.sweeps import sweep
from ..data.harvest.activations import read_columns
from ..data.harvest.harvest import harvest
from ..data.store.store import Store
from ..explainers.rule import RuleExplainer
from ..labelling.label import label
from ..scorers.simulation import RuleSimulator
from ..subject.address import Selection, SourceId
from ..subject.dictionary import Dictionary
from ..subject.model import Subject
from ..subject.sources import Source
from .harvest import TILE_ROWS, WINDOW, InTurns, Limit, compare, numbered_words, random_corpus
from .sweeps import random_pairs

ACTIVE = 64
"""Latents that are active on a token, about."""
CHECKED = 512
"""Latents whose activations are compared."""


class Size(NamedTuple):
    """How much is run."""

    widths: tuple[int, ...]
    """Of dictionaries."""
    tokens: int
    labels: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one model and dictionary; None where it was not."""

    model: str
    width: int
    limit_tokens_per_second: int
    ratio: float
    interval: list[float]
    labels_per_second: float | None = None
    patches_per_second: float | None = None
    difference: float | None = None


def configs(*, small: bool) -> dict[str, PretrainedConfig]:
    """The shapes, by name."""
    shapes = {
        "gemma-2-2b": (Gemma2Config, 2304, 26, 9216, 8, 4, 256, 256_000),
        "llama-3.1-8b": (LlamaConfig, 4096, 32, 14336, 32, 8, 128, 128_256),
    }
    made: dict[str, PretrainedConfig] = {}
    for name, (kind, d_model, layers, d_mlp, heads, kv_heads, d_head, vocabulary) in shapes.items():
        scale = 32 if small else 1
        made[name] = kind(
            vocab_size=512 if small else vocabulary,
            hidden_size=d_model // scale,
            num_hidden_layers=3 if small else layers,
            intermediate_size=d_mlp // scale,
            num_attention_heads=4 if small else heads,
            num_key_value_heads=2 if small else kv_heads,
            head_dim=d_head // scale,
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=0,
        )
    return made


def random_model(name: str, config: PretrainedConfig, *, device: torch.device, dtype: torch.dtype) -> Subject:
    """A random model of a shape, made where it runs."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return Subject(model, numbered_words(config.vocab_size), name=name)


def random_dictionary(subject: Subject, width: int) -> Dictionary:
    """Random latents after the middle block, of which ACTIVE are active on a token."""
    site = f"resid_post.{(subject.n_layers - 1) // 2}"
    generator = torch.Generator().manual_seed(1)
    encoder = (torch.randn(subject.d_model, width, generator=generator) / subject.d_model**0.5).to(subject.device)
    tokens = torch.randint(1, len(subject.vocabulary), (4, WINDOW), generator=generator)
    vectors = subject.read(tokens.to(subject.device), [site])[site].flatten(0, 1).float()
    sample = (vectors @ encoder[:, :: max(1, width // 1024)]).flatten()
    bias = -float(sample.sort().values[int(len(sample) * (1 - ACTIVE / width))])
    return Dictionary(
        id=SourceId(subject.name, site, f"random{width}"),
        kind="standard",
        W_enc=encoder,
        W_dec=encoder.T.contiguous(),
        b_enc=torch.full((width,), bias, device=subject.device),
        b_dec=torch.zeros(subject.d_model, device=subject.device),
        subtract_b_dec=False,
    )


def measure_harvest(subject: Subject, source: Source, tokens: int, folder: Path) -> tuple[Store, Row]:
    """Harvest in turns with the limit; the store is left open."""
    corpus = random_corpus(tokens, folder, vocabulary=len(subject.vocabulary))
    turns = InTurns(
        Limit(subject, [source], window=WINDOW),
        every=max(2, tokens // (TILE_ROWS * WINDOW) // 12),
        batch=TILE_ROWS * WINDOW,
    )
    store = Store(folder / f"{source.width}.db")
    result = harvest(subject, [source], corpus, store, window=WINDOW, watch=turns)
    turns.cut(0)
    found = compare(turns.stretches, result.tokens, "wall")
    limits = sorted(part.limit.wall for part in turns.stretches)
    rate = round(1 / limits[len(limits) // 2])
    return store, Row(subject.name, source.width, rate, found.ratio, [found.low, found.high])


def label_rate(subject: Subject, source: Source, store: Store, count: int) -> float:
    """Features that are explained by rules, and scored, in a second."""
    features = store.resolve(Selection(source.id, "random", count=count), seed=0)
    start = time.perf_counter()
    results = label(
        features,
        store,
        subject,
        explainer=RuleExplainer(subject),
        scorers=[RuleSimulator()],
        sources={source.id: source},
    )
    return len(list(results)) / (time.perf_counter() - start)


def sweep_rate(subject: Subject, pairs: int) -> float:
    """Heads that are patched on a pair in a second."""
    grid = Grid.of(Edit.parse("head.0=patch"), sites=sites_of(subject, "head"), units=range(subject.n_heads))
    prompts = random_pairs(subject, rows=pairs)
    start = time.perf_counter()
    sweep(subject, prompts, grid)
    return 2 * pairs * len(grid.edits) / (time.perf_counter() - start)


def measure_difference(name: str, config: PretrainedConfig, width: int, device: torch.device) -> float:
    """The largest difference between the accelerator's and the CPU's activations, over the largest activation."""
    shallow = type(config)(**{**config.to_dict(), "num_hidden_layers": 2, "layer_types": None})
    there = random_model(name, shallow, device=device, dtype=torch.float32)
    here = random_model(name, shallow, device=torch.device("cpu"), dtype=torch.float32)
    here.model.load_state_dict(there.model.state_dict())
    tokens = torch.randint(1, config.vocab_size, (8, WINDOW), generator=torch.Generator().manual_seed(2)).numpy()
    source = random_dictionary(there, width)
    chosen = range(min(width, CHECKED))
    own = Dictionary(
        id=source.id,
        kind="standard",
        W_enc=source.W_enc.cpu(),
        W_dec=source.W_dec.cpu(),
        b_enc=source.b_enc.cpu(),
        b_dec=source.b_dec.cpu(),
        subtract_b_dec=False,
    )
    first, second = read_columns(there, source, tokens, chosen), read_columns(here, own, tokens, chosen)
    return float(abs(first - second).max() / abs(second).max())


def measure(name: str, config: PretrainedConfig, size: Size, device: torch.device) -> list[Row]:
    """All of one model."""
    difference = measure_difference(name, config, size.widths[0], device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    subject, rows = random_model(name, config, device=device, dtype=dtype), []
    print(f"{name}, revision {subject.revision}", file=sys.stderr, flush=True)
    for width in size.widths:
        source = random_dictionary(subject, width)
        with tempfile.TemporaryDirectory() as folder:
            store, row = measure_harvest(subject, source, size.tokens, Path(folder))
            with store:
                if width == size.widths[0]:
                    labels, patches = label_rate(subject, source, store, size.labels), sweep_rate(subject, size.pairs)
                    rates = {"labels_per_second": labels, "patches_per_second": patches, "difference": difference}
                    row = Row(**{**asdict(row), **rates})
        rows.append(row)
        print(json.dumps(asdict(row)), file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    head = "| model | latents | limit, tokens/s | harvest / limit | labels/s | patched heads/s | largest difference |"
    lines = [
        f"| {row.model} | {row.width:,} | {row.limit_tokens_per_second:,} | {row.ratio:.2f} ({row.interval[0]:.2f} to "
        f"{row.interval[1]:.2f}) | {_or_dash(row.labels_per_second, '.2f')} "
        f"| {_or_dash(row.patches_per_second, '.0f')} | {_or_dash(row.difference, '.1e')} |"
        for row in rows
    ]
    return "\n".join([head, "|---|--:|--:|--:|--:|--:|--:|", *lines])


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    if device.type == "cpu" and not options.small:
        parser.error("there is no accelerator here; --small runs on a CPU, to see that it works")
    size = Size((64, 128), 8192, 2, 2) if options.small else Size((16_384, 131_072), 131_072, 32, 8)
    size = size._replace(tokens=options.tokens or size.tokens)
    rows = [row for name, config in configs(small=options.small).items() for row in measure(name, config, size, device)]
    found = {"device": str(device), "torch": torch.__version__, "small": options.small, "rows": list(map(asdict, rows))}
    print(table(rows))
    print(json.dumps(found))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
