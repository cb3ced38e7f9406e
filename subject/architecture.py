"""Where each model family keeps its sites: one row of module paths per family, and nothing inferred.

A site is a port: the input or the output of one module of the unmodified Hugging Face model. Only
leaf projections, norms and block boundaries are used, because they take and return one tensor in
every family: the input of the attention's output projection is per-head z, the input of the MLP's
down projection is its neurons, and each projection's output (or, where the family norms it once
more, that norm's output) is what the branch adds to the residual stream. The table only claims;
`conformance.py` proves it on the model that was actually loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from .errors import NeuronautError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Side = Literal["input", "output"]


class Port(NamedTuple):
    """One side of a module."""

    path: str
    """Module path inside the base model (the model without its unembedding)."""
    side: Side


@dataclass(frozen=True, slots=True)
class Architecture:
    """Module paths of one family: `layers` and `final_norm` inside the base model, the rest inside a layer."""

    layers: str
    attention: str
    """The attention's output projection; `head.L` is its input."""
    mlp: str
    """The MLP's down projection; `mlp.L` is its input."""
    resid_mid: str
    """The module that reads the residual stream between attention and MLP."""
    final_norm: str
    attention_norm: str | None = None
    """The norm between the attention's output projection and the residual stream."""
    mlp_norm: str | None = None
    """The norm between the MLP's down projection and the residual stream."""
    parallel: str | None = None
    """Config key that is true where both branches read the block's input, so that there is no `resid_mid`."""
    neurons: str = "intermediate_size"
    """Config key of the number of neurons in a layer; four times the residual width where it is null."""
    softcap: str | None = None
    """Config key of the cap c in logits = c tanh(x / c); no cap where it is null."""

    def has_resid_mid(self, config: "PreTrainedConfig") -> bool:
        """Whether the MLP reads what attention has written; not where both branches read the block's input."""
        return self.parallel is None or not getattr(config, self.parallel)

    def ports(self, config: "PreTrainedConfig") -> dict[str, Port]:
        """The port of every site, in forward order."""
        ports = {"embed": Port(f"{self.layers}.0", "input")}
        for index in range(config.num_hidden_layers):
            ports |= {f"{kind}.{index}": port for kind, port in self._layer_ports(f"{self.layers}.{index}", config)}
        return ports

    def _layer_ports(self, layer: str, config: "PreTrainedConfig") -> Iterator[tuple[str, Port]]:
        yield "resid_pre", Port(layer, "input")
        yield "head", Port(f"{layer}.{self.attention}", "input")
        yield "attn_out", Port(f"{layer}.{self.attention_norm or self.attention}", "output")
        if self.has_resid_mid(config):
            yield "resid_mid", Port(f"{layer}.{self.resid_mid}", "input")
        yield "mlp", Port(f"{layer}.{self.mlp}", "input")
        yield "mlp_out", Port(f"{layer}.{self.mlp_norm or self.mlp}", "output")
        yield "resid_post", Port(layer, "output")


_GPT2 = Architecture(
    layers="h", attention="attn.c_proj", mlp="mlp.c_proj", resid_mid="ln_2", final_norm="ln_f", neurons="n_inner"
)
_GPT_NEOX = Architecture(
    layers="layers",
    attention="attention.dense",
    mlp="mlp.dense_4h_to_h",
    resid_mid="post_attention_layernorm",
    final_norm="final_layer_norm",
    parallel="use_parallel_residual",
)
_LLAMA = Architecture(
    layers="layers",
    attention="self_attn.o_proj",
    mlp="mlp.down_proj",
    resid_mid="post_attention_layernorm",
    final_norm="norm",
)
_GEMMA = Architecture(
    layers="layers",
    attention="self_attn.o_proj",
    mlp="mlp.down_proj",
    resid_mid="pre_feedforward_layernorm",
    final_norm="norm",
    attention_norm="post_attention_layernorm",
    mlp_norm="post_feedforward_layernorm",
    softcap="final_logit_softcapping",
)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
}
"""The supported families, by the config's `model_type`."""


def architecture_of(model_type: object, *, name: str) -> Architecture:
    """The family's row, or an error that lists the families there are."""
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise NeuronautError(
            f"{name} has model_type {model_type!r}, which is not supported; load one of: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[model_type]
