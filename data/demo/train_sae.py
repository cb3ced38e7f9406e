"""Train the built-in SAE: a TopK dictionary on the demo model's residual stream after block 2.

`python -m neuronaut.data.demo.train_sae`, after `train`. Activations of the training modules (BOS
left out) are scaled to unit mean square, and the scale is folded back into the saved weights, so the
SAE reads raw activations. Adam, batches of 1024, warm-up and a linear decay at the end; decoder rows
of unit norm, the encoder tied to them at the start, the decoder bias started at the mean. Latents
silent for 50 batches are revived by an auxiliary loss on the raw pre-activations (AuxK).
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...subject.address import SourceId
from ...subject.dictionary import Dictionary
from ...subject.formats import save_dictionary
from ...subject.gate import check
from ...subject.model import Subject
from .train import CONTEXT, token_stream

SITE = SourceId("demo", "resid_post.2", "sae")
BATCH, DEAD_AFTER = 1024, 50


@torch.inference_mode()
def activations(subject: Subject, *, held_out: bool) -> Tensor:
    """The site's vectors on every token of the training (or held-out) modules, shuffled, (token, d_model)."""
    stream = token_stream(subject.tokenizer, held_out=held_out)
    body = stream[: len(stream) // (CONTEXT - 1) * (CONTEXT - 1)].view(-1, CONTEXT - 1)
    rows = torch.cat([torch.zeros(len(body), 1, dtype=torch.long), body], dim=1)
    read = torch.cat([subject.read(part, [SITE.site])[SITE.site][:, 1:].flatten(0, 1) for part in rows.split(64)])
    return read[torch.randperm(len(read), generator=torch.Generator().manual_seed(0))].clone()


def train(vectors: Tensor, *, width: int, k: int, steps: int, rate: float, seed: int) -> Dictionary:
    """Train on vectors (token, d) and return the dictionary for raw vectors."""
    generator = torch.Generator().manual_seed(seed)
    scale = float(vectors.pow(2).mean().rsqrt())
    d = vectors.shape[1]
    decoder = normalize(torch.randn(width, d, generator=generator), dim=1).requires_grad_()
    encoder = decoder.detach().T.clone().requires_grad_()
    encoder_bias = torch.zeros(width, requires_grad=True)
    bias = (vectors.mean(0) * scale).clone().requires_grad_()
    parameters = [encoder, decoder, encoder_bias, bias]
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.999))
    silent = torch.zeros(width, dtype=torch.long)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / (0.05 * steps), 5 * (1 - step / steps))
        x = vectors[torch.randint(len(vectors), (BATCH,), generator=generator)] * scale
        raw = (x - bias) @ encoder + encoder_bias
        top = raw.topk(k, dim=1)
        codes = torch.zeros_like(raw).scatter(1, top.indices, top.values.relu())
        error = x - (codes @ decoder + bias)
        loss = error.pow(2).sum(1).mean()
        silent = torch.where((codes > 0).any(0), 0, silent + 1)
        dead = silent > DEAD_AFTER
        if dead.any():
            loss = loss + _auxiliary(raw, error.detach(), dead, decoder, k=min(d // 2, int(dead.sum()))) / 32
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            decoder.copy_(normalize(decoder, dim=1))
        if step % 500 == 0:
            print(f"step {step} loss {loss.item():.3f} dead {int(dead.sum())}", flush=True)
    return Dictionary(
        id=SITE,
        kind="topk",
        k=k,
        W_enc=(encoder * scale).detach(),
        b_enc=encoder_bias.detach(),
        W_dec=(decoder / scale).detach(),
        b_dec=(bias / scale).detach(),
        subtract_b_dec=True,
    )


def _auxiliary(raw: Tensor, error: Tensor, dead: Tensor, decoder: Tensor, *, k: int) -> Tensor:
    """How badly the dead latents' strongest pre-activations rebuild what the live ones missed."""
    top = raw.masked_fill(~dead, -torch.inf).topk(k, dim=1)
    codes = torch.zeros_like(raw).scatter(1, top.indices, top.values)
    return (error - codes @ decoder).pow(2).sum(1).mean()


def main() -> None:
    """Train the SAE on the demo model in the folder, and write it there with card.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    subject = Subject.load(str(options.folder), name="demo")
    vectors = activations(subject, held_out=False)
    dictionary = train(
        vectors, width=options.width, k=options.k, steps=options.steps, rate=options.rate, seed=options.seed
    )
    save_dictionary(
        dictionary, options.folder / "sae", metadata={"model_name": "demo", "hook_name": "blocks.2.hook_resid_post"}
    )
    gate = check(dictionary, activations(subject, held_out=True), force=True)
    card = {"fvu": gate.fvu, "l0": gate.l0, "dead_share": gate.dead_share, "tokens": gate.tokens}
    (options.folder / "sae" / "card.json").write_text(json.dumps(card, indent=1))
    print(gate)


if __name__ == "__main__":
    main()
