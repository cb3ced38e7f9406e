"""The sites that a dictionary's files name: TransformerLens' hook names, module paths, folder names.

SAELens and Llama Scope write hook names into their configuration, Gemma Scope 2 module paths, dictionary_learning a
word and a layer; sparsify, Gemma Scope 1 and Qwen Scope name the site by the folder or file alone. A transcoder names
two: what it reads and what it writes. A crosscoder names several, as a list or as `model.layers.{5,9}.output`. Where
nothing names a site the answer is None, and the gate judges.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import NeuronautError

EVIDENCE = "record its activations elsewhere and bring them with: neuronaut import --evidence FILE"
"""The way round for what no source of one site can hold."""

_HOOKS: Mapping[str, str] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "head",
    "mlp.hook_post": "mlp",
    "mlp.hook_in": "mlp_in",
    # TransformerLens puts this one before the norm; the bridge's mlp.hook_in stands behind it.
    "hook_mlp_in": "resid_mid",
    "ln2.hook_normalized": "mlp_in",
    "mlp.hook_out": "mlp_out",
}
"""TransformerLens' name of a point within a block -> our family of sites; the first of a family is what we write."""
_WITHOUT_GAIN = "ln2.hook_normalized"
"""The point behind the norm before the MLP and before its gain, which `mlp_in` has."""
_HOOK = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<point>.+)")

_MODULES: Mapping[str, str] = {
    r"": "resid_post",
    r"\.(mlp|post_feedforward_layernorm)": "mlp_out",
    r"\.(attn|attention|self_attn)": "attn_out",
    r"\.mlp\.act": "mlp",
    r"\.self_attn\.o_proj\.input": "head",
    r"\.pre_feedforward_layernorm|\.mlp\.input": "mlp_in",
    r"\.input": "resid_pre",
}
"""What follows a block in a module path, of which the output is meant unless it says input."""
_MODULE = re.compile(r"(?:[\w.]*\.)?(?:layers|h)\.(?P<layer>\d+)(?P<point>(?:\.[a-z_]+)*?)(?:\.output)?")
_EMBEDDINGS = ("embed_in", "wte", "embed_tokens", "hook_embed")

_SCOPE = re.compile(r"gemma-scope-[\w.]+?-(?:pt|it)-(?P<point>res|mlp|att|transcoders)")
_SCOPE_POINTS: Mapping[str, str] = {"res": "resid_post", "mlp": "mlp_out", "att": "head", "transcoders": "mlp_in"}
_QWEN = re.compile(r"layer(\d+)\.sae")
_TRAINED = re.compile(r"(?P<point>resid_pre|resid_mid|resid_post|attn_out|mlp_out)_layer_(?P<layer>\d+)")
_LAYER = re.compile(r"layer_(\d+)")
_NUMBERED = re.compile(r"W_(?:enc|dec)_(\d+)")
_CROSS = re.compile(r"layer((?:_\d+){2,})(?:_|$)")

_READS = (
    "hook_name",
    "hook_names",
    "hook_point",
    "hf_hook_point_in",
    "hook_point_in",
    "feature_input_hook",
    "submodule_name",
    "submodule_names",
)
_WRITES = ("hook_name_out", "hook_names_out", "hf_hook_point_out", "hook_point_out", "feature_output_hook")
_BRACES = re.compile(r"(?P<before>[^{}]*)\{(?P<choices>[^{}]*)\}(?P<after>[^{}]*)")


class Place(NamedTuple):
    """The sites that a dictionary's files name."""

    site: str | None
    """What it reads, of several the last; None where nothing names it."""
    writes: tuple[str, ...] = ()
    """What it rebuilds, where that is another site, or several, or is named beside the first."""
    reads: tuple[str, ...] = ()
    """What it reads, where that is several sites."""
    without_gain: bool = False
    """Whether it reads the norm's output before the gain (and bias) that the site's vectors have."""


def named_place(config: Mapping[str, Any], weights: Path) -> Place:
    """The sites that the configuration, or else the folders above the weight file, name.

    Raises NeuronautError where they name a point that is no site.
    """
    if hooks := _read_hooks(config, _READS, weights):
        reads = tuple(_require_site(hook, weights) for hook in hooks)
        writes = tuple(_require_site(hook, weights) for hook in _read_hooks(config, _WRITES, weights))
        several = len(reads) > 1
        return Place(
            reads[-1],
            writes or (reads if several else ()),
            reads=reads if several else (),
            without_gain=hooks[0].endswith(_WITHOUT_GAIN),
        )
    if config.get("transcode") or config.get("skip_connection"):
        return _module_ends(weights)
    folder = weights.parent.name
    site = _tl_site(folder) or _module_site(folder) or _qwen_site(weights) or _temporal_site(config, weights)
    return _scope_place(weights) or Place(site)


def following(site: str, count: int) -> tuple[str, ...]:
    """A site and those of its family in the layers that follow, so many together.

    >>> following("mlp_out.2", 2)
    ('mlp_out.2', 'mlp_out.3')
    """
    family, _, layer = site.partition(".")
    return tuple(f"{family}.{int(layer) + step}" for step in range(count))


def named_layers(weights: Path) -> tuple[int, ...]:
    """The layers that a crosscoder's folder names, `layer_5_9_12_width_65k`; none where it names none."""
    match = _CROSS.search(weights.parent.name)
    return tuple(int(layer) for layer in match[1].split("_")[1:]) if match else ()


def same_site(first: str, second: str) -> bool:
    """Whether two sites hold the same vectors: what leaves a block is what enters the next."""
    return _shared_name(first) == _shared_name(second)


def tl_name(site: str) -> str:
    """TransformerLens' hook name of a site."""
    family, _, layer = site.partition(".")
    point = next((hook for hook, site_family in _HOOKS.items() if site_family == family), None)
    return f"blocks.{layer}.{point}" if point else f"hook_{site}"


def _read_hooks(config: Mapping[str, Any], keys: Iterable[str], weights: Path) -> list[str]:
    """The points that the first of `keys` names, in order; none where none of them does."""
    tables = (config, *(config.get(name) or {} for name in ("metadata", "meta", "trainer")))
    named = next((table[key] for table in tables for key in keys if table.get(key)), [])
    layer = _LAYER.search(weights.name) or _NUMBERED.search(weights.name)
    hooks = [hook for part in (named if isinstance(named, list) else [named]) for hook in _expand(str(part))]
    # Transcoders a layer a file share one configuration, which names the point within the block.
    return [f"blocks.{layer[1]}.{hook}" if hook in _HOOKS and layer else hook for hook in hooks]


def _expand(hook: str) -> list[str]:
    """The points that `model.layers.{5,9}.output` is short for, or that stand behind one another with commas."""
    if match := _BRACES.fullmatch(hook):
        return [f"{match['before']}{choice.strip()}{match['after']}" for choice in match["choices"].split(",")]
    return [part.strip() for part in hook.split(",")]


def _require_site(hook: str, weights: Path) -> str:
    if (site := _tl_site(hook) or _module_site(hook) or _trained_site(hook)) is None:
        raise NeuronautError(f"{weights} was trained on {hook}, which is none of the sites that can be read")
    return site


def read_prepend_bos(config: Mapping[str, Any]) -> bool | None:
    """Whether a dictionary's training text had BOS before each row; None where its configuration does not say."""
    tables = (config, config.get("metadata") or {})
    return next((bool(table["prepend_bos"]) for table in tables if table.get("prepend_bos") is not None), None)


def _tl_site(hook: str) -> str | None:
    if hook in _EMBEDDINGS:
        return "embed"
    match = _HOOK.fullmatch(hook)
    return f"{_HOOKS[match['point']]}.{match['layer']}" if match and match["point"] in _HOOKS else None


def _module_site(path: str) -> str | None:
    if (match := _MODULE.fullmatch(path)) is None:
        return None
    family = next((site for point, site in _MODULES.items() if re.fullmatch(point, match["point"])), None)
    return f"{family}.{match['layer']}" if family else None


def _trained_site(name: str) -> str | None:
    match = _TRAINED.fullmatch(name)
    return f"{match['point']}.{match['layer']}" if match else None


def _module_ends(weights: Path) -> Place:
    """The input and the output of the module that a sparsify transcoder's folder names."""
    folder = weights.parent.name
    site, writes = _module_site(f"{folder}.input"), _module_site(folder)
    if writes is not None and site is None:
        raise NeuronautError(f"{weights} reads the input of {folder}, which is none of the sites that can be read")
    return Place(site, (writes,) if writes else ())


def _qwen_site(weights: Path) -> str | None:
    match = _QWEN.match(weights.name)
    return f"resid_post.{match[1]}" if match else None


def _temporal_site(config: Mapping[str, Any], weights: Path) -> str | None:
    """The site of the released temporal dictionaries, whose conf.yaml names none."""
    layer = re.search(r"/layer_(\d+)/", weights.resolve().as_posix())
    return f"resid_post.{layer[1]}" if layer and config.keys() >= {"llm", "sae"} else None


def _scope_place(weights: Path) -> Place | None:
    if (repository := _SCOPE.search(str(weights))) is None:
        return None
    layer = re.search(r"/layer_(\d+)/", weights.as_posix())
    site = f"{_SCOPE_POINTS[repository['point']]}.{layer[1]}" if layer else "embed"
    if repository["point"] != "transcoders":
        return Place(site)
    return Place(site, (f"mlp_out.{layer[1]}",) if layer else (), without_gain=True)


def _shared_name(site: str) -> str:
    """The site under one name, of the two that the point between two blocks has."""
    family, _, layer = site.partition(".")
    return f"resid_pre.{int(layer) + 1}" if family == "resid_post" else site
