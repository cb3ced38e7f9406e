"""Train the built-in SAE: a TopK dictionary on the demo model's residual stream after block 2.

`python -m neuronaut.data.demo.train_sae`, after `train`: on activations of the training modules, BOS left out, as
`data/training/trainer.py` says (the weights that ship were trained so before that module stood on its own).
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from ...subject.address import SourceId
from ...subject.dictionary import Dictionary
from ...subject.formats import save_dictionary
from ...subject.gate import check
from ...subject.model import Subject
from ..training.trainer import Recipe, Trainer
from .train import CONTEXT, token_stream

SITE = SourceId("demo", "resid_post.2", "sae")


@torch.inference_mode()
def activations(subject: Subject, *, held_out: bool) -> Tensor:
    """The site's vectors on every token of the training (or held-out) modules, shuffled, (token, d_model)."""
    stream = token_stream(subject.tokenizer, held_out=held_out)
    body = stream[: len(stream) // (CONTEXT - 1) * (CONTEXT - 1)].view(-1, CONTEXT - 1)
    rows = torch.cat([torch.zeros(len(body), 1, dtype=torch.long), body], dim=1)
    read = torch.cat([subject.read(part, [SITE.site])[SITE.site][:, 1:].flatten(0, 1) for part in rows.split(64)])
    return read[torch.randperm(len(read), generator=torch.Generator().manual_seed(0))].clone()


def train(vectors: Tensor, *, recipe: Recipe) -> Dictionary:
    """Train on vectors (token, d) and return the dictionary for raw vectors."""
    generator = torch.Generator().manual_seed(recipe.seed)
    trainer = Trainer(recipe, vectors, vectors, auto=True)
    while trainer.seen < recipe.tokens:
        batch = vectors[torch.randint(len(vectors), (recipe.batch,), generator=generator)]
        unexplained = trainer.step(batch, batch)
        if trainer.seen // recipe.batch % 500 == 0:
            print(f"{trainer.seen} vectors, FVU {unexplained:.3f}, dead {trainer.dead_share:.1%}", flush=True)
    return trainer.dictionary(SITE, vectors)


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
    recipe = Recipe("topk", options.width, options.k, options.steps * 1024, rate=options.rate, seed=options.seed)
    dictionary = train(vectors, recipe=recipe)
    save_dictionary(
        dictionary, options.folder / "sae", metadata={"model_name": "demo", "hook_name": "blocks.2.hook_resid_post"}
    )
    gate = check(dictionary, activations(subject, held_out=True), force=True)
    card = {"fvu": gate.fvu, "l0": gate.l0, "dead_share": gate.dead_share, "tokens": gate.tokens}
    (options.folder / "sae" / "card.json").write_text(json.dumps(card, indent=1))
    print(gate)


if __name__ == "__main__":
    main()
