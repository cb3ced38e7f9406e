"""delphi's share of the comparison, run by delphi's own interpreter: cache, then the examples of every latent.

    PYTHON with_delphi.py FOLDER

FOLDER is written by `benchmarks.peers`; the figures are printed as one JSON object. delphi's explainers need a
language model, so the last stage ends where an explainer would be asked.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from delphi.config import CacheConfig, ConstructorConfig, SamplerConfig
from delphi.latents import LatentCache, LatentDataset
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

BATCH = 32


def main(folder: Path) -> None:
    """Cache, split, and build the examples of each latent; print seconds since the start at each stage."""
    start = time.monotonic()
    work = json.loads((folder / "work.json").read_text())
    model = AutoModel.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    weights = {name: tensor.float() for name, tensor in load_file(folder / "sae" / "sae_weights.safetensors").items()}
    tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
    hook = f"h.{work['layer']}"

    cache = LatentCache(model, {hook: lambda x: torch.relu(x @ weights["W_enc"] + weights["b_enc"])}, BATCH)
    cache.run(tokens.numel(), tokens)
    out = folder / "delphi" / "latents"
    out.mkdir(parents=True)
    cache.save_splits(n_splits=5, save_dir=out)
    cache.save_config(out, CacheConfig(batch_size=BATCH, cache_ctx_len=tokens.shape[1]), str(folder / "model"))
    cached = time.monotonic() - start

    dataset = LatentDataset(
        out, SamplerConfig(), ConstructorConfig(), tokenizer, [hook], {hook: torch.arange(work["latents"])}
    )
    first, built = None, 0
    for _ in dataset:
        first = first or time.monotonic() - start
        built += 1
    done = time.monotonic() - start
    print(json.dumps({"cached_s": cached, "first_s": first, "done_s": done, "latents": built}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
