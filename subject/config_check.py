"""What a configuration file may say: the kind of each field that is read, and agreement with the weights beside it.

A field of another kind is refused here, by name, before anything is built from it: transformers and torch would fail
later and elsewhere (a count of 0 as a division, a number as text in the middle of a layer), or not at all.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .errors import NeuronautError

MOST_LAYERS = 4096
_LAYERS = ("num_hidden_layers", "n_layer")


class Rule(NamedTuple):
    """What the value of a field must be; null stands for a field that is left out."""

    holds: Callable[[Any], bool]
    wanted: str


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(low: int, high: int) -> Rule:
    holds = lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high  # noqa: E731
    return Rule(holds, f"a whole number from {low} to {high}")


_COUNT = _count(1, 2**31)
_TEXT = Rule(lambda value: isinstance(value, str), "a text")
_TEXTS = Rule(
    lambda value: isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value)),
    "a text, or a list of texts",
)
_FLAG = Rule(lambda value: isinstance(value, bool), "true or false")
_OBJECT = Rule(lambda value: isinstance(value, dict), "an object")
SCALE = Rule(lambda value: _is_number(value) and value > 0, "a number above 0")

MODEL: Mapping[str, Rule] = {
    **dict.fromkeys(_LAYERS, _count(1, MOST_LAYERS)),
    **dict.fromkeys(("hidden_size", "n_embd", "intermediate_size", "n_inner", "head_dim"), _COUNT),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), _COUNT),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), _COUNT),
    "text_config": _OBJECT,
    "model_type": _TEXT,
}
"""Fields of a model's config.json, by either name that families give them."""
_DIVIDED = (("n_embd", "n_head"), ("num_attention_heads", "num_key_value_heads"))
"""Fields of which the second divides the first."""
_ACTIVATIONS = ("activation_function", "hidden_act", "hidden_activation")

DICTIONARY: Mapping[str, Rule] = {
    **dict.fromkeys(("d_in", "d_out", "d_sae", "width", "activation_dim", "dict_size", "d_model"), _COUNT),
    "num_latents": _count(0, 2**31),
    "expansion_factor": SCALE,
    "jump_relu_threshold": Rule(_is_number, "a number"),
    # A mean over vectors, in BatchTopK.
    **dict.fromkeys(("k", "top_k"), Rule(lambda value: _is_number(value) and value >= 0, "a number, 0 or more")),
    **dict.fromkeys(("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "transcode", "signed"), _FLAG),
    "stop_on_duplicate_support": _FLAG,
    "max_iterations": _count(1, 2**31),
    # Of temporal dictionaries; `llm` and `sae` are groups of their conf.yaml.
    **dict.fromkeys(("n_heads", "n_attn_layers", "bottleneck_factor", "kval_topk", "dimin"), _COUNT),
    **dict.fromkeys(("activation_normalization_factor", "scaling_factor"), SCALE),
    **dict.fromkeys(("llm", "sae"), _OBJECT),
    "tied_weights": _FLAG,
    "sae_diff_type": _TEXT,
    "residual_threshold": Rule(_is_number, "a number"),
    **dict.fromkeys(("skip_connection", "apply_decoder_bias_to_pre_encoder", "use_glu_encoder"), _FLAG),
    **dict.fromkeys(("architecture", "activation", "activation_fn", "activation_fn_str", "act_fn"), _TEXT),
    **dict.fromkeys(("hook_name", "hook_point", "hf_hook_point_in", "hook_point_in", "feature_input_hook"), _TEXTS),
    **dict.fromkeys(("hook_name_out", "hf_hook_point_out", "hook_point_out", "feature_output_hook"), _TEXTS),
    **dict.fromkeys(("hook_names", "hook_names_out", "submodule_name", "submodule_names"), _TEXTS),
    **dict.fromkeys(("dict_class", "norm_activation"), _TEXT),
    **dict.fromkeys(("metadata", "meta", "trainer", "activation_fn_kwargs", "model_from_pretrained_kwargs"), _OBJECT),
    "dataset_average_activation_norm": _OBJECT,
    **dict.fromkeys(("in", "out"), SCALE),
    # Until SAELens 6 a flag.
    "normalize_activations": Rule(lambda value: isinstance(value, str | bool), "a text, true or false"),
}
"""Fields of a dictionary's cfg.json or config.json."""


def check_fields(file: object, config: Mapping[str, Any], rules: Mapping[str, Rule], *, within: str = "") -> None:
    """Refuse the first field that is not as its rule says, also within the objects that the rules know."""
    for name, value in config.items():
        rule = rules.get(name)
        if rule is None or value is None:
            continue
        if not rule.holds(value):
            raise wrong_field(file, f"{within}{name}", value, rule.wanted)
        if rule is _OBJECT:
            check_fields(file, value, rules, within=f"{within}{name}.")


def check_model(file: object, config: Mapping[str, Any], activations: Iterable[str]) -> None:
    """Refuse a model's configuration that cannot be built; `activations` are the functions there are."""
    known = Rule(lambda value: isinstance(value, str) and value in activations, "the name of an activation function")
    check_fields(file, config, {**MODEL, **dict.fromkeys(_ACTIVATIONS, known)})
    for whole, part in _DIVIDED:
        if (size := config.get(whole)) and (parts := config.get(part)) and size % parts:
            raise wrong_field(file, part, parts, f"a divisor of {whole}, {size}")


def wrong_field(file: object, field: str, value: object, wanted: str) -> NeuronautError:
    """The error for a field that is not as it must be."""
    return NeuronautError(f"{file}: {field} is {repr(value)[:60]}; wanted {wanted}")


Misshapen = tuple[str, Sequence[int], Sequence[int]]
"""Name of a tensor, its shape in the file, and its shape by the configuration."""


def blame_shape(config: Mapping[str, Any], tensors: Iterable[Misshapen]) -> str:
    """Say of the first tensor that has another shape which field of the configuration asks for it."""
    lines = [_blame_one(config, *tensor) for tensor in sorted(tensors, key=lambda tensor: tensor[0])]
    return next((line for line, found in lines if found), lines[0][0])


def _blame_one(config: Mapping[str, Any], name: str, own: Sequence[int], asked: Sequence[int]) -> tuple[str, bool]:
    sizes = {size for size, other in zip(asked, own, strict=False) if size != other}
    fields = [f"{field} {value}" for field, value in config.items() if field in MODEL and value in sizes]
    shapes = ["x".join(map(str, shape)) or "one number" for shape in (own, asked)]
    return f"{name} is {shapes[0]}, and {' and '.join(fields) or 'config.json'} asks for {shapes[1]}", bool(fields)


def blame_layers(
    config: Mapping[str, Any], path: str, *, missing: Iterable[str], unexpected: Iterable[str]
) -> str | None:
    """Say how many layers the weights have where that is not what the configuration says; `path` is where they lie."""
    field = next((name for name in _LAYERS if name in config), _LAYERS[0])
    absent, extra = (
        {int(m[1]) for name in names if (m := re.match(rf"{path}\.(\d+)\.", name))} for names in (missing, unexpected)
    )
    count = config.get(field)
    if extra and count is not None and max(extra) >= count:
        return f"{field} is {count}, and the weights have {max(extra) + 1} layers"
    if absent and count is not None and absent == set(range(min(absent), count)):
        return f"{field} is {count}, and the weights have {min(absent)} layers"
    return None
