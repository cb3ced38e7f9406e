"""How far a dictionary can be trusted where it is used: what its reconstruction leaves out, and what that costs.

An error-preserving edit changes nothing but the feature, however bad the dictionary is; but what a feature is taken to
stand for is only as good as the reconstruction that it is a part of. So these figures stand beside every result.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..subject.dictionary import Dictionary
from ..subject.model import Subject
from .measures import text_loss
from .prompts import Batch, where


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Figures over all tokens of some prompts but BOS."""

    unexplained: float | None
    """Share of the vectors' variance that the reconstruction misses; None of vectors that do not vary."""
    loss: float | None
    """The model's mean next-token loss over prompts of two tokens or more, in nats; None where there is none."""
    rebuilt_loss: float | None
    """The same with the reconstruction in the place of the vectors."""


@torch.inference_mode()
def fidelity(subject: Subject, dictionary: Dictionary, batch: Batch) -> Fidelity:
    """How well a dictionary rebuilds its site on these prompts; three forwards."""
    site, kept = dictionary.id.site, where(subject, batch, "all").to(subject.device)
    vectors = subject.read(batch.tokens, [site])[site][kept]
    rebuilt = dictionary.reconstruct(vectors)
    centred = vectors.float() - vectors.float().mean(0)
    variance, missed = float(centred.square().sum()), float((vectors.float() - rebuilt).square().sum())
    unexplained = missed / variance if variance > 0 else None
    longer = batch.take((batch.lengths > 1).nonzero().flatten())
    if not len(longer):
        return Fidelity(unexplained, None, None)
    plain = text_loss(subject.logits(longer.tokens), longer)

    def rebuild(tensor: Tensor) -> Tensor:
        places = where(subject, longer, "all").to(tensor.device)
        return tensor.masked_scatter(places[..., None], dictionary.reconstruct(tensor[places]).to(tensor.dtype))

    with subject.editing({site: rebuild}):
        spoiled = text_loss(subject.logits(longer.tokens), longer)
    return Fidelity(unexplained, float(plain.mean()), float(spoiled.mean()))
