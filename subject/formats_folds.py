"""What a file asks to be done around its weights, folded into them once.

Each fold keeps the reconstruction, and all but `fold_decoder_norms` and `fold_scale` (by a backup's factor, or of a
pursuit) keep the activations as well.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .dictionary import Dictionary
from .errors import NeuronautError
from .formats_sites import EVIDENCE


class Affine(NamedTuple):
    """What a norm does to a vector that it has centred and divided: times a gain, plus a bias."""

    gain: Tensor
    """(d_site,)."""
    bias: Tensor
    """(d_site,)."""


def fold_scale(dictionary: Dictionary, scale: float) -> Dictionary:
    """The dictionary that takes and gives `x` where the given one takes and gives `x * scale`."""
    b_dec = dictionary.b_dec / scale
    temporal = dictionary.temporal and replace(dictionary.temporal, epsilon=dictionary.temporal.epsilon / scale)
    if (ends := dictionary.pursuit) is not None:
        # As SAELens folds it: the matrices stay tied, so that activations are in units of `x`.
        return replace(dictionary, b_dec=b_dec, pursuit=ends._replace(tolerance=ends.tolerance / scale))
    W_enc, W_dec = dictionary.W_enc * scale, dictionary.W_dec / scale
    return replace(dictionary, W_enc=W_enc, W_dec=W_dec, b_dec=b_dec, temporal=temporal)


def _require_linear(dictionary: Dictionary, asked: str) -> None:
    """Refuse what would change the lengths by which a pursuit chooses and ends, or the vectors that are predicted."""
    if dictionary.temporal is not None:
        raise NeuronautError(
            f"{dictionary.id} is a temporal SAE and wants {asked}; its prediction is a share of the vector, which this "
            f"changes, so that it cannot be folded in; {EVIDENCE}"
        )
    if dictionary.pursuit is not None:
        raise NeuronautError(
            f"{dictionary.id} is a matching pursuit SAE and wants {asked}; it chooses by lengths that this changes, so "
            f"that it cannot be folded in; {EVIDENCE}"
        )


def fold_gain(dictionary: Dictionary, norm: Affine) -> Dictionary:
    """The dictionary that takes `x * gain + bias` where the given one takes `x`; an autoencoder then gives that too."""
    _require_linear(dictionary, "the norm's output before its gain")
    if not bool((norm.gain.abs() > 1e-6 * norm.gain.abs().max()).all()) or dictionary.norm != "none":
        raise NeuronautError(
            f"{dictionary.id} reads what the norm gives before its gain, and a gain of 0 or a further norm hides that; "
            "take a dictionary of the norm's input or of its output"
        )
    gain, shift = norm.gain.cpu().float(), (norm.bias / norm.gain).cpu().float()
    changed = {"W_enc": dictionary.W_enc / gain[:, None]}
    if not dictionary.subtract_b_dec:
        moved = shift @ dictionary.W_enc
        changed["b_enc"] = dictionary.b_enc - moved
        if dictionary.b_mag is not None and dictionary.r_mag is not None:
            changed["b_mag"] = dictionary.b_mag - moved * dictionary.r_mag.exp()
    if not dictionary.targets:
        changed |= {"W_dec": dictionary.W_dec * gain, "b_dec": (dictionary.b_dec + shift) * gain}
    if dictionary.W_skip is not None:
        changed |= {"W_skip": dictionary.W_skip / gain[:, None], "b_dec": dictionary.b_dec - shift @ dictionary.W_skip}
    return replace(dictionary, **changed)


def fold_centring(dictionary: Dictionary) -> Dictionary:
    """The dictionary that takes `x` where the given one takes `x - mean(x)`, the mean over d_site.

    TransformerLens centres all that writes to the residual stream where asked to
    (center_writing_weights); the subject's own vectors keep their mean.
    """
    if dictionary.norm == "layer_norm":
        return dictionary
    _require_linear(dictionary, "centred vectors")
    if dictionary.norm != "none":
        raise NeuronautError(f"{dictionary.id} wants centred vectors and {dictionary.norm}, which cannot be combined")
    means = dictionary.W_enc.mean(dim=0)
    shift = -means * dictionary.b_dec.sum() if dictionary.subtract_b_dec else torch.zeros_like(means)
    gated = {}
    if dictionary.b_mag is not None and dictionary.r_mag is not None:
        gated = {"b_mag": dictionary.b_mag + shift * dictionary.r_mag.exp()}
    skip = {} if dictionary.W_skip is None else {"W_skip": dictionary.W_skip - dictionary.W_skip.mean(dim=0)}
    return replace(dictionary, W_enc=dictionary.W_enc - means, b_enc=dictionary.b_enc + shift, **gated, **skip)


def fold_decoder_norms(dictionary: Dictionary) -> Dictionary:
    """Activations in units of the decoder's norms: what SAELens calls rescale_acts_by_decoder_norm."""
    _require_linear(dictionary, "activations in units of the decoder's norms")
    norms = dictionary.W_dec.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    tensors = {"b_enc": dictionary.b_enc, "b_mag": dictionary.b_mag, "threshold": dictionary.threshold}
    return replace(
        dictionary,
        W_enc=dictionary.W_enc * norms,
        W_dec=dictionary.W_dec / norms[:, None],
        **{name: tensor * norms for name, tensor in tensors.items() if tensor is not None},
    )
