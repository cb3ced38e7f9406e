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
    from torch import Tensor
    from transformers import PreTrainedConfig

Side = Literal["input", "output"]


class Part(NamedTuple):
    """Some coordinates of what passes a module: the same run of each of several equal groups."""

    groups: int
    size: int
    """Coordinates of a group."""
    start: int
    stop: int
    """Of the run, within a group."""

    def take(self, whole: "Tensor") -> "Tensor":
        """These coordinates. (..., groups * size) -> (..., groups * (stop - start))."""
        return whole.unflatten(-1, (self.groups, self.size))[..., self.start : self.stop].flatten(-2)

    def put(self, whole: "Tensor", part: "Tensor") -> "Tensor":
        """A copy of the whole in which these coordinates are others."""
        copy = whole.unflatten(-1, (self.groups, self.size)).clone()
        copy[..., self.start : self.stop] = part.unflatten(-1, (self.groups, -1))
        return copy.flatten(-2)


class Port(NamedTuple):
    """One side of a module."""

    path: str
    """Module path inside the base model (the model without its unembedding)."""
    side: Side
    copied: bool = False
    """Whether what passes is changed in place later, so that only a copy of it stays what it was."""
    joined: str | None = None
    """Where all rows pass as one: the path of a module whose input still has them apart."""
    part: Part | None = None
    """The coordinates that are meant; all of them where it is None."""


class Projections(NamedTuple):
    """What gives queries, keys and values: modules beside the attention's output projection."""

    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """One each, or one for all three; none where it is not known what gives them."""
    groups: int = 1
    """Of one for all three: how many groups its outputs have, each with its share of the three; 0 where there are as
    many as key/value heads, so that a group is some query heads, the key that they share and its value."""
    order: tuple[str, ...] = ("query", "key", "value")
    """In a group."""

    def parts(self, config: "PreTrainedConfig") -> dict[str, Part]:
        """Where queries, keys and values lie in what the one module gives."""
        kv = kv_heads(config)
        groups = self.groups or kv
        heads = {"query": config.num_attention_heads, "key": kv, "value": kv}
        widths = [heads[kind] * d_head(config) // groups for kind in self.order]
        ends = [sum(widths[: i + 1]) for i in range(3)]
        return {
            kind: Part(groups, ends[-1], end - width, end)
            for kind, width, end in zip(self.order, widths, ends, strict=True)
        }


@dataclass(frozen=True, slots=True)
class Architecture:
    """Module paths of one family: `layers` and `final_norm` inside the base model, the rest inside a layer."""

    layers: str
    attention: str
    """The attention's output projection; `head.L` is its input."""
    mlp: str | None
    """The MLP's down projection; `mlp.L` is its input. None where every layer has experts in its place."""
    resid_mid: str
    """The module that reads the residual stream between attention and MLP."""
    final_norm: str | None
    """None where the stream behind the last block is what the model gives."""
    attention_norm: str | None = None
    """The norm between the attention's output projection and the residual stream."""
    mlp_norm: str | None = None
    """The norm between the MLP's down projection and the residual stream."""
    stream_norms: tuple[str, str] | None = None
    """The norms that the stream itself passes behind each sum (BERT): behind the attention's, and behind the MLP's."""
    bidirectional: bool | str = False
    """Whether a token reads those behind it, too, as in encoders; or the config key that says so."""
    experts: str | None = None
    """The module that holds the experts in layers that have them, and the dense MLP in others."""
    heads: str | None = None
    """The module that holds the heads; where it is None, the one that holds the output projection."""
    projections: Projections = Projections()
    """What gives `query.L`, `key.L` and `value.L`: modules of that which holds the heads."""
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
    reserved: str | None = None
    """Config key of the last of the positions that no token has (RoBERTa's padding); none is reserved where it is None.
    """
    in_place: bool = False
    """Whether the block adds to the tensor that its MLP returned, so that this one must be copied to be seen."""
    joined: bool = False
    """Whether the MLP runs on all rows joined to one."""
    wanted: str | None = None
    """Config key that is true in the models that the row is of; others of the family are looked at."""

    def is_causal(self, config: "PreTrainedConfig") -> bool:
        """Whether a token reads only what stands before it."""
        key = self.bidirectional
        return not (getattr(config, key, False) if isinstance(key, str) else key)

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
    def heads_module(self) -> str:
        """The module, inside a layer, that holds the heads and makes their patterns."""
        return self.attention.rpartition(".")[0] if self.heads is None else self.heads

    @property
    def mlp_reader(self) -> str:
        """The module whose input the MLP's own projections take; `mlp_in.L` is its input."""
        if self.neurons_by:
            return self.neurons_by[0]
        return self.mlp.rpartition(".")[0] if self.mlp else str(self.experts)

    def ports(self, config: "PreTrainedConfig") -> dict[str, Port]:
        """The port of every site, in forward order."""
        ports = {"embed": Port(f"{self.layers}.0", "input")}
        for index in range(config.num_hidden_layers):
            ports |= {f"{kind}.{index}": port for kind, port in self._layer_ports(f"{self.layers}.{index}", config)}
        return ports

    def _layer_ports(self, layer: str, config: "PreTrainedConfig") -> Iterator[tuple[str, Port]]:
        yield "resid_pre", Port(layer, "input")
        yield from self._projection_ports(layer, config)
        yield "head", Port(f"{layer}.{self.attention}", "input")
        yield "attn_out", Port(f"{layer}.{self.attention_norm or self.attention}", "output")
        rows = layer if self.joined else None
        if self.stream_norms:
            # What reads the stream in between is not all that it goes to: the norm's output is.
            yield "resid_mid", Port(f"{layer}.{self.stream_norms[0]}", "output")
        elif self.has_resid_mid(config):
            yield "resid_mid", Port(f"{layer}.{self.resid_mid}", "input", joined=rows)
        yield "mlp_in", Port(f"{layer}.{self.mlp_reader}", "input", joined=rows)
        if self.mlp is not None:
            yield "mlp", Port(f"{layer}.{self.mlp}", "input", joined=rows)
        added = self.mlp_norm or self.experts or self.mlp
        yield "mlp_out", Port(f"{layer}.{added}", "output", self.in_place, joined=rows)
        yield "resid_post", Port(layer, "output")

    def _projection_ports(self, layer: str, config: "PreTrainedConfig") -> Iterator[tuple[str, Port]]:
        if not self.projections.modules:
            return
        parts = self.projections.parts(config) if len(self.projections.modules) == 1 else {}
        for i, kind in enumerate(("query", "key", "value")):
            # Copied, because some families clamp them in place.
            module = self.projections.modules[0 if parts else i]
            yield kind, Port(f"{layer}.{self.heads_module}.{module}", "output", copied=True, part=parts.get(kind))


def kv_heads(config: "PreTrainedConfig") -> int:
    """Key/value heads of a layer: as many as query heads, or fewer, each of which serves a group of query heads."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    keys = ("num_key_value_heads", "num_kv_heads", "num_attention_heads")
    return next(count for key in keys if (count := getattr(config, key, None)))


def other_mixer(config: "PreTrainedConfig", layer: int) -> str | None:
    """What mixes tokens in a layer, by the config's own word, where that is not attention; None where it is."""
    kinds = next((listed for key in _LAYER_KINDS if isinstance(listed := getattr(config, key, None), list | tuple)), ())
    kind = str(kinds[layer]) if layer < len(kinds) else ""
    return kind if any(word in kind for word in _NO_ATTENTION) else None


_LAYER_KINDS = ("layer_types", "layers_block_type", "block_types")
"""Config keys that say of each layer what mixes its tokens."""
_NO_ATTENTION = ("linear", "mamba", "conv", "recurrent", "mlp", "moe")
"""In the names of kinds of layers that have no heads of attention."""


def d_head(config: "PreTrainedConfig") -> int:
    """Coordinates of a head; of its values, where queries and keys have another number."""
    sizes = (getattr(config, key, None) for key in ("v_head_dim", "head_dim"))
    return next(filter(None, sizes), config.hidden_size // config.num_attention_heads)


SOFTCAP = "final_logit_softcapping"

_BY_HEAD = Projections(("query_key_value",), groups=0)
_GPT2 = Architecture(
    layers="h",
    attention="attn.c_proj",
    mlp="mlp.c_proj",
    resid_mid="ln_2",
    final_norm="ln_f",
    neurons="n_inner",
    projections=Projections(("c_attn",)),
)
_GPT_NEO = replace(_GPT2, attention="attn.attention.out_proj", neurons="intermediate_size", projections=Projections())
_GPTJ = replace(_GPT2, attention="attn.out_proj", mlp="mlp.fc_out", parallel=True, projections=Projections())
_GPT_NEOX = Architecture(
    layers="layers",
    attention="attention.dense",
    mlp="mlp.dense_4h_to_h",
    resid_mid="post_attention_layernorm",
    final_norm="final_layer_norm",
    parallel="use_parallel_residual",
    projections=_BY_HEAD,
)
_BLOOM = replace(_GPT_NEOX, layers="h", attention="self_attention.dense", final_norm="ln_f", parallel=False)
_FALCON = replace(_BLOOM, parallel="parallel_attn", neurons="ffn_hidden_size", in_place=True)
_PERSIMMON = replace(_GPT_NEOX, attention="self_attn.dense", final_norm="final_layernorm", parallel=False)
_PHI = replace(_PERSIMMON, mlp="mlp.fc2", parallel=True, projections=Projections())
_BIOGPT = Architecture(
    layers="layers",
    attention="self_attn.out_proj",
    mlp="fc2",
    resid_mid="final_layer_norm",
    final_norm="layer_norm",
    neurons_by=("fc1", "activation_fn"),
)
_OPT = Architecture(
    layers="decoder.layers",
    attention="self_attn.out_proj",
    mlp="fc2",
    resid_mid="final_layer_norm",
    final_norm="decoder.final_layer_norm",
    neurons_by=("fc1", "activation_fn"),
    neurons="ffn_dim",
    joined=True,
    wanted="do_layer_norm_before",
)
_LLAMA = Architecture(
    layers="layers",
    attention="self_attn.o_proj",
    mlp="mlp.down_proj",
    resid_mid="post_attention_layernorm",
    final_norm="norm",
)
_COHERE = replace(_LLAMA, parallel=True, logit_scale="logit_scale")
_EXPERTS = replace(_LLAMA, experts="mlp")
_POST_NORM = replace(
    _LLAMA, resid_mid="mlp", attention_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"
)
_BERT = Architecture(
    layers="encoder.layer",
    attention="attention.output.dense",
    mlp="output.dense",
    resid_mid="intermediate",
    final_norm=None,
    stream_norms=("attention.output.LayerNorm", "output.LayerNorm"),
    bidirectional=True,
    heads="attention.self",
    projections=Projections(("query", "key", "value")),
    neurons_by=("intermediate.dense", "intermediate.intermediate_act_fn"),
)
_T5 = Architecture(
    layers="encoder.block",
    attention="layer.0.SelfAttention.o",
    mlp="layer.1.DenseReluDense.wo",
    resid_mid="layer.1.layer_norm",
    final_norm="encoder.final_layer_norm",
    bidirectional=True,
    projections=Projections(("q", "k", "v")),
    neurons="d_ff",
    context=512,
)
_GEMMA = replace(_POST_NORM, resid_mid="pre_feedforward_layernorm", softcap=SOFTCAP)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": _GPT2,
    "gpt_bigcode": replace(_GPT2, projections=Projections(("c_attn",), groups=0)),
    "gpt_neo": _GPT_NEO,
    "gptj": _GPTJ,
    "codegen": replace(_GPTJ, projections=Projections(("qkv_proj",), groups=4, order=("query", "value", "key"))),
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
        projections=Projections(("Wqkv",)),
    ),
    "persimmon": _PERSIMMON,
    "phi": _PHI,
    "biogpt": _BIOGPT,
    "xglm": replace(_BIOGPT, neurons="ffn_dim"),
    "opt": _OPT,
    **dict.fromkeys(
        (
            *("llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "gemma", "olmo", "smollm3"),
            *("nemotron", "glm", "helium", "arcee", "seed_oss", "ernie4_5", "hunyuan_v1_dense", "internlm3"),
            *("diffllama", "jais2", "cwm", "iquestcoder"),
        ),
        _LLAMA,
    ),
    "phi3": replace(_LLAMA, projections=Projections(("qkv_proj",))),
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
    "gemma3_text": replace(_GEMMA, bidirectional="use_bidirectional_attention"),
    "vaultgemma": replace(_LLAMA, resid_mid="pre_feedforward_layernorm", softcap=SOFTCAP),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss"), _EXPERTS),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _EXPERTS),
    **dict.fromkeys(("bert", "electra"), _BERT),
    **dict.fromkeys(("roberta", "camembert", "xlm-roberta"), replace(_BERT, reserved="pad_token_id")),
    "modernbert": Architecture(
        layers="layers",
        attention="attn.Wo",
        mlp="mlp.Wo",
        resid_mid="mlp_norm",
        final_norm="final_norm",
        bidirectional=True,
        projections=Projections(("Wqkv",)),
    ),
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5),
}
"""The families whose rows are known, by the config's `model_type`; others are looked at (`discovery.py`)."""
