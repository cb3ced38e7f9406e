"""One forward pass of the model without its unembedding, whatever it reads: tokens before each token, or on both sides.

Rows of several lengths end in padding. In a causal model no token sees what stands behind it, so that padding is any
token; any other model is told by an attention mask which ids are padding. Either way a row's vectors are those that it
has alone, which `conformance.py` proves.
"""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


def forward(model: PreTrainedModel, tokens: Tensor, *, causal: bool) -> Any:
    """The base model's output. tokens: (row, position) ids; below 0, in models that are not causal, padding."""
    if causal:
        return model.base_model(tokens, use_cache=False)
    real = tokens >= 0
    # Its own padding, because RoBERTa counts positions by the tokens that are none.
    padding = getattr(model.config, "pad_token_id", None) or 0
    return model.base_model(tokens.masked_fill(~real, padding), attention_mask=real.long())
