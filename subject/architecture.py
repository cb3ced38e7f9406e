"""Where each model family keeps its sites: one row of module paths per family, and nothing inferred.

A site is a port: the input or the output of one module of the unmodified Hugging Face model. Only
leaf projections, norms and block boundaries are used, because they take and return one tensor in
every family: the input of the attention's output projection is per-head z, the input of the MLP's
down projection is its neurons, and each projection's output (or, where the family norms it once
more, that norm's output) is what the branch adds to the residual stream. The table only claims;
`conformance.py` proves it on the model that was actually loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Side = Literal["input", "output"]


class Port(NamedTuple):
    """One side of a module."""

    path: str
    """Module path inside the base model (the model without its unembedding)."""
    side: Side
    copied: bool = False
    """Whether what passes is changed in place later, so that only a copy of it stays what it was."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Module paths of one family: `layers` and `final_norm` inside the base model, the rest inside a layer."""

    layers: str
    attention: str
    """The attention's output projection; `head.L` is its input."""
    mlp: str | None
    """The MLP's down projection; `mlp.L` is its input. None where experts take its place: there is no `mlp.L` then."""
    resid_mid: str
    """The module that reads the residual stream between attention and MLP."""
    final_norm: str
    attention_norm: str | None = None
    """The norm between the attention's output projection and the residual stream."""
    mlp_norm: str | None = None
    """The norm between the MLP's down projection and the residual stream, or the module of the experts."""
    neurons_by: tuple[str, ...] = ()
    """The modules that make neurons of the MLP's input, one behind the other, where no one module holds all of it."""
    parallel: str | bool = False
    """Whether both branches read the block's input, so that there is no `resid_mid`; or the config key that says so."""
    neurons: str = "intermediate_size"
    """Config key of the number of neurons in a layer; four times the residual width where it is null."""
    softcap: str | None = None
    """Config key of the cap c in logits = c tanh(x / c); no cap where it is null."""
    logit_scale: str | None = None
    """Config key of what the unembedding's outputs are multiplied by."""
    logit_divisor: str | None = None
    """Config key of what they are divided by."""
    branch_scale: str | None = None
    """Config key of what both branches are multiplied by before they are added to the residual stream."""
    context: int | None = None
    """Tokens in a row that it was trained on, where the config does not say."""
    in_place: bool = False
    """Whether the block adds to the tensor that its MLP returned, so that this one must be copied to be seen."""

    def has_resid_mid(self, config: "PreTrainedConfig") -> bool:
        """Whether the MLP reads what attention has written; not where both branches read the block's input."""
        return not (getattr(config, self.parallel) if isinstance(self.parallel, str) else self.parallel)

    def logit_factor(self, config: "PreTrainedConfig") -> float:
        """What the unembedding's outputs are multiplied by."""
        scale = getattr(config, self.logit_scale) if self.logit_scale else 1.0
        return scale / (getattr(config, self.logit_divisor) if self.logit_divisor else 1.0)

    def branch_factor(self, config: "PreTrainedConfig") -> float:
        """What is added to the residual stream of what a branch gives."""
        return getattr(config, self.branch_scale) if self.branch_scale else 1.0

    @property
    def mlp_reader(self) -> str:
        """The module whose input the MLP's own projections take; `mlp_in.L` is its input."""
        if self.neurons_by:
            return self.neurons_by[0]
        return self.mlp.rpartition(".")[0] if self.mlp else str(self.mlp_norm)

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
        yield "mlp_in", Port(f"{layer}.{self.mlp_reader}", "input")
        if self.mlp is not None:
            yield "mlp", Port(f"{layer}.{self.mlp}", "input")
        yield "mlp_out", Port(f"{layer}.{self.mlp_norm or self.mlp}", "output", self.in_place)
        yield "resid_post", Port(layer, "output")


SOFTCAP = "final_logit_softcapping"

_GPT2 = Architecture(
    layers="h", attention="attn.c_proj", mlp="mlp.c_proj", resid_mid="ln_2", final_norm="ln_f", neurons="n_inner"
)
_GPT_NEO = replace(_GPT2, attention="attn.attention.out_proj", neurons="intermediate_size")
_GPTJ = replace(_GPT2, attention="attn.out_proj", mlp="mlp.fc_out", parallel=True)
_GPT_NEOX = Architecture(
    layers="layers",
    attention="attention.dense",
    mlp="mlp.dense_4h_to_h",
    resid_mid="post_attention_layernorm",
    final_norm="final_layer_norm",
    parallel="use_parallel_residual",
)
_BLOOM = replace(_GPT_NEOX, layers="h", attention="self_attention.dense", final_norm="ln_f", parallel=False)
_FALCON = replace(_BLOOM, parallel="parallel_attn", neurons="ffn_hidden_size", in_place=True)
_PERSIMMON = replace(_GPT_NEOX, attention="self_attn.dense", final_norm="final_layernorm", parallel=False)
_PHI = replace(_PERSIMMON, mlp="mlp.fc2", parallel=True)
_BIOGPT = Architecture(
    layers="layers",
    attention="self_attn.out_proj",
    mlp="fc2",
    resid_mid="final_layer_norm",
    final_norm="layer_norm",
    neurons_by=("fc1", "activation_fn"),
)
_LLAMA = Architecture(
    layers="layers",
    attention="self_attn.o_proj",
    mlp="mlp.down_proj",
    resid_mid="post_attention_layernorm",
    final_norm="norm",
)
_COHERE = replace(_LLAMA, parallel=True, logit_scale="logit_scale")
_EXPERTS = replace(_LLAMA, mlp=None, mlp_norm="mlp")
_POST_NORM = replace(
    _LLAMA, resid_mid="mlp", attention_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"
)
_GEMMA = replace(_POST_NORM, resid_mid="pre_feedforward_layernorm", softcap=SOFTCAP)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gptj": _GPTJ,
    "codegen": _GPTJ,
    "gpt_neox": _GPT_NEOX,
    "bloom": replace(_BLOOM, context=2048),
    "falcon": _FALCON,
    "mpt": replace(
        _GPT_NEO,
        layers="blocks",
        attention="attn.out_proj",
        mlp="ffn.down_proj",
        resid_mid="norm_2",
        final_norm="norm_f",
    ),
    "persimmon": _PERSIMMON,
    "phi": _PHI,
    "biogpt": _BIOGPT,
    "xglm": replace(_BIOGPT, neurons="ffn_dim"),
    **dict.fromkeys(
        (
            *("llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "gemma", "phi3", "olmo", "smollm3"),
            *("nemotron", "glm", "helium", "arcee", "seed_oss", "ernie4_5", "hunyuan_v1_dense", "internlm3"),
            *("diffllama", "jais2", "cwm", "iquestcoder"),
        ),
        _LLAMA,
    ),
    "stablelm": replace(_LLAMA, parallel="use_parallel_residual"),
    "starcoder2": replace(_LLAMA, mlp="mlp.c_proj"),
    "apertus": replace(_LLAMA, resid_mid="feedforward_layernorm"),
    "granite": replace(_LLAMA, branch_scale="residual_multiplier", logit_divisor="logits_scaling"),
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "olmo2": _POST_NORM,
    "olmo3": _POST_NORM,
    "exaone4": _POST_NORM,
    "glm4": replace(_LLAMA, attention_norm="post_self_attn_layernorm", mlp_norm="post_mlp_layernorm"),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "vaultgemma": replace(_LLAMA, resid_mid="pre_feedforward_layernorm", softcap=SOFTCAP),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss"), _EXPERTS),
}
"""The families whose rows are known, by the config's `model_type`; others are looked at (`discovery.py`)."""
