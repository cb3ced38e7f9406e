"""Train the built-in subject, tokenizer then transformer, by `python -m neuronaut.data.demo.train`.

1. A byte-level BPE tokenizer of 2048 tokens on the standard library's training modules.
2. A GPT-2-architecture model (4 layers, d_model 128, context 128, about 1.07M parameters) on the
   same modules, each row `<|endoftext|>` and 127 consecutive tokens of the joined corpus. One row
   in six is a sequence of random tokens repeated to fill the row, which is what makes induction
   heads form. Hidden matrices are trained by Muon, the rest by AdamW, in bfloat16 autocast.

Modules for which `stdlib.held_out` is true are never seen; their loss is the one reported.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .. import stdlib

BOS = "<|endoftext|>"
VOCABULARY, CONTEXT, ROWS = 2048, 128, 48


def train_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train and save the byte-level BPE tokenizer on the training modules."""
    bpe = ByteLevelBPETokenizer()
    texts = (text for name, text in stdlib.modules() if not stdlib.held_out(name))
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, special_tokens=[BOS], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS, model_max_length=CONTEXT
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def token_stream(tokenizer: PreTrainedTokenizerBase, *, held_out: bool) -> Tensor:
    """All tokens of the training (or held-out) modules, joined. Shape: (tokens,)."""
    texts = [text for name, text in stdlib.modules() if stdlib.held_out(name) == held_out]
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))


def repeated_rows(count: int, generator: torch.Generator) -> Tensor:
    """Rows of random tokens that repeat with a random period. Shape: (count, CONTEXT - 1)."""
    tokens = torch.randint(1, VOCABULARY, (count, CONTEXT - 1), generator=generator)
    periods = torch.randint(8, 64, (count, 1), generator=generator)
    return tokens.gather(1, torch.arange(CONTEXT - 1) % periods)


def batches(stream: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless training rows, five sixths corpus and one sixth repeats. Shape: (ROWS, CONTEXT)."""
    bos = torch.zeros(ROWS, 1, dtype=torch.long)
    offsets = torch.arange(CONTEXT - 1)
    while True:
        starts = torch.randint(0, len(stream) - CONTEXT, (ROWS - ROWS // 6, 1), generator=generator)
        yield torch.cat([bos, torch.cat([stream[starts + offsets], repeated_rows(ROWS // 6, generator)])], dim=1)


def next_token_loss(model: GPT2LMHeadModel, rows: Tensor) -> Tensor:
    """Mean cross-entropy in nats of each next token of rows (row, position)."""
    logits = model(rows).logits[:, :-1].flatten(0, 1).float()
    return cross_entropy(logits, rows[:, 1:].flatten())


@torch.inference_mode()
def held_out_loss(model: GPT2LMHeadModel, stream: Tensor) -> float:
    """Mean next-token loss in nats over the whole stream, in rows of BOS and 127 tokens."""
    body = stream[: len(stream) // (CONTEXT - 1) * (CONTEXT - 1)].view(-1, CONTEXT - 1)
    rows = torch.cat([torch.zeros(len(body), 1, dtype=torch.long), body], dim=1)
    losses = [next_token_loss(model, part).item() * len(part) for part in rows.split(64)]
    return sum(losses) / len(rows)


@torch.inference_mode()
def head_scores(model: GPT2LMHeadModel, *, period: int = 50, rows: int = 64) -> dict[str, list[list[float]]]:
    """Mean attention per layer and head to the previous token, and to the induction target.

    The induction target of a token in the second repeat is the token after its first occurrence,
    `period - 1` positions back (TransformerLens' induction score).
    """
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(1, VOCABULARY, (rows, period), generator=generator)
    tokens = torch.cat([torch.zeros(rows, 1, dtype=torch.long), half, half], dim=1)
    eager = GPT2LMHeadModel(model.config).eval()
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    patterns = eager(tokens, output_attentions=True).attentions
    previous = [p.diagonal(-1, 2, 3).mean((0, 2)).tolist() for p in patterns]
    induction = [p.diagonal(1 - period, 2, 3)[..., 2:].mean((0, 2)).tolist() for p in patterns]
    return {"previous": previous, "induction": induction}


def _new_model() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config).train()


def train_model(folder: Path, tokenizer: PreTrainedTokenizerFast, *, tokens: int, seed: int) -> GPT2LMHeadModel:
    """Train the transformer on about `tokens` tokens and save it as fp16 safetensors."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = _new_model()
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    hidden_ids = {id(p) for p in hidden}
    other = [p for p in model.parameters() if id(p) not in hidden_ids]
    optimizers = [
        torch.optim.Muon(hidden, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(other, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    steps = tokens // (ROWS * CONTEXT)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    validation = token_stream(tokenizer, held_out=True)
    start, rows = time.monotonic(), batches(token_stream(tokenizer, held_out=False), generator)
    for step in range(steps):
        scale = min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-3
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token_loss(model, next(rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 250 == 0 or step == steps - 1:
            scores = head_scores(model)
            best = [max(max(layer) for layer in scores[key]) for key in ("previous", "induction")]
            print(
                f"step {step}/{steps} loss {loss.item():.3f} held-out {held_out_loss(model, validation):.3f} "
                f"previous {best[0]:.2f} induction {best[1]:.2f} {time.monotonic() - start:.0f}s",
                flush=True,
            )
    model.eval().half().save_pretrained(folder)
    return model.float()


def main() -> None:
    """Train tokenizer and model, and write them into the folder with card.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, default=48_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(options.folder)
    model = train_model(options.folder, tokenizer, tokens=options.tokens, seed=options.seed)
    card = {"held_out_loss": held_out_loss(model, token_stream(tokenizer, held_out=True)), **head_scores(model)}
    (options.folder / "card.json").write_text(json.dumps(card, indent=1))
    print(json.dumps(card))


if __name__ == "__main__":
    main()
