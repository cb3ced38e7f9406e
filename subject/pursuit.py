"""Matching pursuit: the encoder that takes features one after the other, each from what those before have left.

    rest  = inputs
    again:  i = the feature with the largest rest . W_dec_i
            step = relu(rest . W_dec_i),  activation_i += step,  rest -= step * W_dec_i

A row ends with the step that takes no new feature (`stop_at_repeat`), with the one that leaves a rest shorter than
`tolerance`, or after `steps` (SAELens' MatchingPursuitSAE). Rows that have ended stay in
the product, adding 0, so that the shape of each product, and with it every bit of a row, is that of the whole batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Pursuit(NamedTuple):
    """When a pursuit ends."""

    steps: int
    """At most."""
    tolerance: float
    """Length of the rest, in the units of the encoder's inputs; 0 or less: no length ends it."""
    stop_at_repeat: bool


def pursue(inputs: Tensor, W_dec: Tensor, until: Pursuit) -> Tensor:
    """Activations by matching pursuit. (row, d_site), (F, d_site) -> (row, F)."""
    activations = inputs.new_zeros(len(inputs), W_dec.shape[0])
    rest, ended = inputs, torch.zeros(len(inputs), 1, dtype=torch.bool, device=inputs.device)
    for _ in range(until.steps):
        best = (rest @ W_dec.T).detach().argmax(dim=1)
        step = (rest * W_dec[best]).sum(dim=1, keepdim=True).relu().masked_fill(ended, 0)
        before = activations.gather(1, best[:, None])
        activations = activations.scatter_add(1, best[:, None], step)
        rest = rest - step * W_dec[best]
        if until.stop_at_repeat:
            ended = ended | (before != 0) | (step == 0)
        if until.tolerance > 0:
            ended = ended | (rest.norm(dim=1, keepdim=True) < until.tolerance)
        if ended.all():
            break
    return activations
