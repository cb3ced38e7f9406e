"""The site that a dictionary's files name: TransformerLens' hook names, module paths, folder names.

SAELens writes a hook name into its configuration; Gemma Scope 2 a module path; sparsify and Gemma
Scope 1 name it by the folder alone. Where nothing names a site the answer is None, and the gate judges.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import NeuronautError

_HOOKS: Mapping[str, str] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "head",
    "mlp.hook_post": "mlp",
}
"""TransformerLens' name of a point within a block -> our family of sites."""
_HOOK = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<point>.+)")

_MODULES: Mapping[str, str] = {
    r"": "resid_post",
    r"\.(mlp|post_feedforward_layernorm)": "mlp_out",
    r"\.(attn|attention|self_attn)": "attn_out",
    r"\.mlp\.act": "mlp",
    r"\.self_attn\.o_proj\.input": "head",
}
"""What follows a block in a module path, of which the output is meant unless it says input."""
_MODULE = re.compile(r"(?:[\w.]*\.)?(?:layers|h)\.(?P<layer>\d+)(?P<point>(?:\.[a-z_]+)*?)(?:\.output)?")
_EMBEDDINGS = ("embed_in", "wte", "embed_tokens", "hook_embed")

_SCOPE = re.compile(r"gemma-scope-[\w.]+?-(?:pt|it)-(?P<point>res|mlp|att|transcoders)")
_SCOPE_POINTS: Mapping[str, str] = {"res": "resid_post", "mlp": "mlp_out", "att": "head"}


def named_site(config: Mapping[str, Any], weights: Path) -> str | None:
    """The site that the configuration, or else the folders above the weight file, name.

    Raises NeuronautError where they name a point that is no site.
    """
    if hook := _read_hook_name(config):
        if (site := _tl_site(hook) or _module_site(hook)) is None:
            raise NeuronautError(f"{weights} was trained on {hook}, which is none of the sites that can be read")
        return site
    folder = weights.parent.name
    return _scope_site(weights) or _tl_site(folder) or _module_site(folder)


def same_site(first: str, second: str) -> bool:
    """Whether two sites hold the same vectors: what leaves a block is what enters the next."""
    return _shared_name(first) == _shared_name(second)


def tl_name(site: str) -> str:
    """TransformerLens' hook name of a site."""
    family, _, layer = site.partition(".")
    point = next((hook for hook, site_family in _HOOKS.items() if site_family == family), None)
    return f"blocks.{layer}.{point}" if point else f"hook_{site}"


def _read_hook_name(config: Mapping[str, Any]) -> str | None:
    for table in (config, config.get("metadata") or {}, config.get("meta") or {}):
        for key in ("hook_name", "hook_point", "hf_hook_point_in"):
            if table.get(key):
                return str(table[key])
    return None


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


def _scope_site(weights: Path) -> str | None:
    if (repository := _SCOPE.search(str(weights))) is None:
        return None
    if repository["point"] not in _SCOPE_POINTS:
        raise NeuronautError(f"{weights} is a transcoder, which rebuilds another site than it reads; wanted an SAE")
    layer = re.search(r"/layer_(\d+)/", weights.as_posix())
    return f"{_SCOPE_POINTS[repository['point']]}.{layer[1]}" if layer else "embed"


def _shared_name(site: str) -> str:
    """The site under one name, of the two that the point between two blocks has."""
    family, _, layer = site.partition(".")
    return f"resid_pre.{int(layer) + 1}" if family == "resid_post" else site
