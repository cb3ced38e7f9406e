"""What a file asks to be done around its weights, done to the weights once instead.

Each fold returns a dictionary with the same reconstruction of the site's vectors; all but
`unit_decoder` keep the activations as well.
"""

from dataclasses import replace

import torch

from .dictionary import Dictionary
from .errors import NeuronautError


def scaled_inputs(dictionary: Dictionary, scale: float) -> Dictionary:
    """The dictionary that takes `x` where the given one takes `x * scale`."""
    return replace(
        dictionary,
        W_enc=dictionary.W_enc * scale,
        W_dec=dictionary.W_dec / scale,
        b_dec=dictionary.b_dec / scale,
    )


def centred_inputs(dictionary: Dictionary) -> Dictionary:
    """The dictionary that takes `x` where the given one takes `x - mean(x)`, the mean over d_site.

    TransformerLens centres all that writes to the residual stream where asked to
    (center_writing_weights); the subject's own vectors keep their mean.
    """
    if dictionary.norm == "layer_norm":
        return dictionary
    if dictionary.norm != "none":
        raise NeuronautError(f"{dictionary.id} wants centred vectors and {dictionary.norm}, which cannot be combined")
    means = dictionary.W_enc.mean(dim=0)
    shift = -means * dictionary.b_dec.sum() * dictionary.subtract_b_dec
    gained = {}
    if dictionary.b_mag is not None and dictionary.r_mag is not None:
        gained = {"b_mag": dictionary.b_mag + shift * dictionary.r_mag.exp()}
    return replace(dictionary, W_enc=dictionary.W_enc - means, b_enc=dictionary.b_enc + shift, **gained)


def unit_decoder(dictionary: Dictionary) -> Dictionary:
    """Activations in units of the decoder's norms: what SAELens calls rescale_acts_by_decoder_norm."""
    norms = dictionary.W_dec.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    tensors = {"b_enc": dictionary.b_enc, "b_mag": dictionary.b_mag, "threshold": dictionary.threshold}
    return replace(
        dictionary,
        W_enc=dictionary.W_enc * norms,
        W_dec=dictionary.W_dec / norms[:, None],
        **{name: tensor * norms for name, tensor in tensors.items() if tensor is not None},
    )
