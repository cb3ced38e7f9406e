"""Controls that nobody trained: the same architecture with every matrix drawn again at its own norm.

A tensor of two dimensions or more (embeddings included) becomes normal noise of the same Frobenius norm; vectors
(biases, gains of norms, thresholds) stay. Each tensor's noise depends on the seed and on its name alone, and is drawn
on the CPU, so that a name `BASE~random-SEED` is the same model everywhere: the name is the recipe. The global random
state is not touched.
"""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .dictionary import Dictionary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def randomize_model(model: "PreTrainedModel", seed: int) -> None:
    """Draw every matrix of a model again, in place; tied matrices stay tied."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_draw(parameter, name, seed))


def randomize_dictionary(dictionary: Dictionary, seed: int) -> Dictionary:
    """A dictionary with its matrices drawn again; a pursuit's two stay tied."""
    decoder = _draw(dictionary.W_dec, "W_dec", seed)
    # The encoder lies in memory feature by feature, as its transpose.
    encoder = decoder.T if dictionary.pursuit else _draw(dictionary.W_enc.T, "W_enc", seed).T
    temporal = dictionary.temporal and dictionary.temporal.map(lambda name, tensor: _draw(tensor, name, seed))
    return replace(dictionary, W_enc=encoder, W_dec=decoder, temporal=temporal)


def _draw(tensor: Tensor, name: str, seed: int) -> Tensor:
    """Noise in place of a matrix, with its shape, dtype, device and norm; a vector as it is."""
    if tensor.ndim < 2:
        return tensor
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    noise = torch.randn(tensor.shape, generator=generator)
    norm = torch.linalg.vector_norm(tensor.detach().float()).cpu()
    return (noise * (norm / torch.linalg.vector_norm(noise))).to(tensor)
