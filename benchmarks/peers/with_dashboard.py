"""SAEDashboard's share of the comparison, run by its own interpreter: the data of its feature pages.

    PYTHON with_dashboard.py FOLDER LATENTS

FOLDER is written by `benchmarks.peers`. It passes over all tokens once for each 256 latents, so that a part of them
is measured, and the caller multiplies. What the pages took, without loading, is
printed as one JSON object.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def load_model(folder: Path) -> HookedSAETransformer:
    """The GPT-2 of a folder, in TransformerLens' form, without folding."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = model.config
    config = HookedTransformerConfig(
        n_layers=shape.n_layer,
        d_model=shape.n_embd,
        n_ctx=shape.n_positions,
        d_head=shape.n_embd // shape.n_head,
        n_heads=shape.n_head,
        d_mlp=4 * shape.n_embd,
        d_vocab=shape.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=shape.layer_norm_epsilon,
        device="cpu",
    )
    # By its file: the folder names a class that only later versions of transformers have.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="t0", pad_token="t0")
    hooked = HookedSAETransformer(config)
    hooked.tokenizer = tokenizer
    hooked.load_and_process_state_dict(
        convert_gpt2_weights(model, config), fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    return hooked


def main(folder: Path, latents: int) -> None:
    """Build and save the pages' data of the first `latents` latents; print what that took."""
    work = json.loads((folder / "work.json").read_text())
    model = load_model(folder / "model")
    sae = SAE.load_from_disk(str(folder / "sae"), device="cpu")
    tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
    start, start_cpu = time.monotonic(), time.process_time()
    config = SaeVisConfig(
        hook_point=f"blocks.{work['layer']}.hook_resid_post", features=range(latents), minibatch_size_tokens=32
    )
    data = SaeVisRunner(config).run(sae, model, tokens)
    out = folder / "dashboard"
    out.mkdir()
    data.save_json(out / "pages.json")
    figures = {"pages_s": time.monotonic() - start, "pages_cpu_s": time.process_time() - start_cpu}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
