"""The proof of the architecture table on the model that was loaded; a site without a proof is refused.

One forward pass over 2 rows of 8 random tokens records every site, then these claims are checked:

1. every site's hook fires exactly once, in forward order;
2. resid_post.L = resid_pre.(L+1), and unembed(final_norm(resid_post.last)), soft-capped as the
   config declares, gives the model's logits (an encoder's final norm, where it has one, gives the model's output);
3. resid_pre + attn_out = resid_mid and resid_mid + mlp_out = resid_post (with parallel branches
   resid_pre + attn_out + mlp_out = resid_post), each coordinate within rounding of its own terms,
   so that a coordinate of huge norm cannot hide an error in the others; where the stream itself is normed behind each
   sum, that norm makes of the sum what stands on the right;
4. the output projection applied to head.L, and then the norm behind it, gives attn_out.L, and head.L
   is as wide as all heads together; the down projection applied to mlp.L gives mlp_out.L in the
   same way, and mlp.L is as wide as the config's number of neurons;
5. the module that reads resid_mid.L, where it is the MLP's norm, gives mlp_in.L (which is resid_mid.L where the stream
   itself is normed), and the MLP applied to mlp_in.L
   gives mlp.L at its down projection (experts give mlp_out.L);
6. attention takes query.L, key.L and value.L and makes head.L of them, each by its part (attention_claims.py);
7. in a causal model other tokens behind a token change nothing at it; in any other, masked padding behind a row changes
   nothing in it: so rows of several lengths may share a forward. All sites of a layer stand or fall with it.

A failed claim refuses every site it is about and keeps the measured error.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .architecture import Architecture, d_head, other_mixer
from .attention_claims import KINDS, attention_claims
from .claims import ROUNDING, Check, Claim, distance, sum_error
from .forward import forward
from .hooks import Point, record

EXPERTS = "experts take the MLP's place in this layer, and each token has other neurons; mlp_out is there"
"""Why a layer of experts has no neurons as a site."""
NO_PROJECTIONS = (
    "no modules were found beside the attention's output projection that give queries, keys and values of which its "
    "heads follow; head.L is what there is"
)
"""Why a family that is not in the table may lack these sites."""


class Conformance(NamedTuple):
    """What the check found out about a model's sites."""

    points: dict[str, Point]
    """Where every proven site is, in forward order."""
    widths: dict[str, int]
    """Width of every proven site."""
    refused: dict[str, str]
    """Why each of the other sites is refused."""
    checks: tuple[Check, ...]
    """What was checked, in the order of the claims above, layer by layer."""


@torch.inference_mode()
def prove(model: PreTrainedModel, architecture: Architecture) -> Conformance:
    """Check every site that `architecture` claims for `model`; a few short forward passes."""
    points, refused = _resolve_points(model, architecture)
    tokens = torch.randint(model.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0)).to(model.device)
    output, passed = _record_points(model, points, tokens, causal=architecture.is_causal(model.config))
    refused |= _find_misfired(points, [point for point, _ in passed])
    tensors = dict(passed)
    values = {site: tensors[point] for site, point in points.items() if site not in refused}
    tolerance = ROUNDING * torch.finfo(model.dtype).eps
    claims = (
        *_claims(model, architecture, values, output),
        *attention_claims(model, architecture, points, values, tokens),
        *_padding_claims(model, architecture, points, tokens),
    )
    checks = tuple(claim.check(tolerance) for claim in claims)
    for check in checks:
        if check.failure:
            refused |= {site: check.failure for site in check.sites if site not in refused}
    proven = {site: point for site, point in points.items() if site not in refused}
    return Conformance(proven, {site: values[site].shape[-1] for site in proven}, refused, checks)


def unembed(model: PreTrainedModel, architecture: Architecture, residual: Tensor) -> Tensor:
    """Logits of a final residual stream: final norm, unembedding, declared soft-cap. (..., d_model) -> (..., token)."""
    normed = pass_final_norm(model, architecture, residual)
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module), "a subject has an unembedding"
    logits = head(normed)
    factor = architecture.logit_factor(model.config)
    logits = logits if factor == 1 else logits * factor
    cap = architecture.softcap and getattr(model.config, architecture.softcap)
    return cap * torch.tanh(logits / cap) if cap else logits


def pass_final_norm(model: PreTrainedModel, architecture: Architecture, residual: Tensor) -> Tensor:
    """What a final residual stream leaves the blocks as; itself where no norm follows. (..., d_model)."""
    norm = architecture.final_norm
    return residual if norm is None else model.base_model.get_submodule(norm)(residual)


def _resolve_points(model: PreTrainedModel, architecture: Architecture) -> tuple[dict[str, Point], dict[str, str]]:
    points: dict[str, Point] = {}
    refused: dict[str, str] = {}
    module = model.base_model.get_submodule
    if not architecture.projections.modules:
        refused |= {
            f"{kind}.{layer}": NO_PROJECTIONS for layer in range(model.config.num_hidden_layers) for kind in KINDS
        }
    no_heads = _find_other_mixers(model)
    for site, port in architecture.ports(model.config).items():
        kind = site.partition(".")[0]
        if site in no_heads:
            continue
        try:
            found = module(port.path)
            rows = module(port.joined) if port.joined else None
        except AttributeError:
            experts = architecture.experts and kind == "mlp"
            refused[site] = EXPERTS if experts else f"the model has no module {port.path}"
            if mixer := other_mixer(model.config, int(port.path.removeprefix(f"{architecture.layers}.").split(".")[0])):
                refused[site] = (
                    f"the config calls this layer {mixer!r}; its modules are not those of attention's layers"
                )
            continue
        width = port.part and port.part.groups * port.part.size
        if width and width not in (getattr(found, "out_features", None), getattr(found, "nf", None)):
            refused[site] = f"{port.path} does not give the {width} numbers that queries, keys and values take"
            continue
        points[site] = Point(found, port.side, port.copied, rows, port.part)
    return points, refused | no_heads


def _find_other_mixers(model: PreTrainedModel) -> dict[str, str]:
    """The sites of heads in layers that the config does not call attention, with the reason."""
    return {
        f"{kind}.{layer}": f"the config calls this layer {mixer!r}, which has no heads of attention"
        for layer in range(model.config.num_hidden_layers)
        if (mixer := other_mixer(model.config, layer))
        for kind in ("head", *KINDS)
    }


def _record_points(
    model: PreTrainedModel, points: dict[str, Point], tokens: Tensor, *, causal: bool
) -> tuple[Tensor, list[tuple[Point, Tensor]]]:
    """The logits of tokens, an encoder's last hidden state, and the tensors that passed the points on the way."""
    outputs: list[Tensor] = []

    def run() -> None:
        whole = model(tokens, use_cache=False).logits if causal else forward(model, tokens, causal=causal)[0]
        outputs.append(whole)

    passed = record(run, dict.fromkeys(points.values()))
    return outputs[0], passed


def _find_misfired(points: dict[str, Point], passed: list[Point]) -> dict[str, str]:
    """The sites whose hook did not fire exactly once, or not in its turn."""
    counts = Counter(passed)
    refused = {
        site: f"its hook fired {counts[point]} times in one forward pass"
        for site, point in points.items()
        if counts[point] != 1
    }
    expected = dict.fromkeys(point for site, point in points.items() if site not in refused)
    actual = [point for point in passed if point in expected]
    early_or_late = {
        expected_point for expected_point, fired in zip(expected, actual, strict=True) if expected_point != fired
    }
    return refused | {
        site: "its hook fired out of forward order" for site, point in points.items() if point in early_or_late
    }


def _claims(
    model: PreTrainedModel, architecture: Architecture, values: dict[str, Tensor], output: Tensor
) -> Iterator[Claim]:
    last = model.config.num_hidden_layers - 1
    for layer in range(last + 1):
        parallel, factor = not architecture.has_resid_mid(model.config), architecture.branch_factor(model.config)
        if architecture.stream_norms:
            yield from _normed_sum_claims(layer, values, model, architecture)
        else:
            yield from _sum_claims(layer, values, parallel=parallel, factor=factor)
        yield from _branch_claims(layer, values, model, architecture)
        yield from _input_claims(layer, values, model, architecture)
    for layer in range(last):
        post, pre = f"resid_post.{layer}", f"resid_pre.{layer + 1}"
        yield Claim(f"{post} = {pre}", (post, pre), lambda a=post, b=pre: distance(values[a], values[b]))
    text, finish = "unembed(final_norm({})) = logits", unembed
    if not architecture.is_causal(model.config):
        text, finish = (
            ("final_norm({})" if architecture.final_norm else "{}") + " = the model's output",
            pass_final_norm,
        )
    end = f"resid_post.{last}"
    yield Claim(text.format(end), (end,), lambda: distance(finish(model, architecture, values[end]), output))


def _padding_claims(
    model: PreTrainedModel, architecture: Architecture, sites: Iterable[str], tokens: Tensor
) -> Iterator[Claim]:
    """What lets rows of several lengths share a forward pass, at the end of each block."""
    causal, kept, last = architecture.is_causal(model.config), tokens.shape[1] // 2, model.config.num_hidden_layers
    paths = (f"{architecture.layers}.{layer}" for layer in range(last))
    points = [Point(model.base_model.get_submodule(path), "output") for path in paths]

    def run(rows: Tensor) -> list[Tensor]:
        return [tensor[:, :kept] for _, tensor in record(lambda: forward(model, rows, causal=causal), points)]

    other = tokens.clone()
    other[:, kept:] = (other[:, kept:] + 1) % model.config.vocab_size if causal else -1
    changed, plain = run(other), run(tokens if causal else tokens[:, :kept])
    what = "tokens behind a token change nothing" if causal else "padding behind a row changes nothing"
    for layer, (one, two) in enumerate(zip(changed, plain, strict=True)):
        own = tuple(site for site in sites if site.partition(".")[2] in (str(layer), "" if layer == 0 else None))
        yield Claim(f"{what} at resid_post.{layer}", own, partial(distance, one, two))


def _normed_sum_claims(
    layer: int, values: dict[str, Tensor], model: PreTrainedModel, architecture: Architecture
) -> Iterator[Claim]:
    """The sums of a block that norms the stream behind each."""
    block = model.base_model.get_submodule(f"{architecture.layers}.{layer}")
    pre, head, attention, mid, neurons, mlp, post = (
        f"{kind}.{layer}" for kind in ("resid_pre", "head", "attn_out", "resid_mid", "mlp", "mlp_out", "resid_post")
    )

    def claim(norm: str, stream: str, branch: str, total: str, refuses: tuple[str, ...]) -> Claim:
        def error() -> float:
            return distance(block.get_submodule(norm)(values[stream] + values[branch]), values[total])

        return Claim(f"{norm} of {stream} + {branch} = {total}", refuses, error)

    first, second = architecture.stream_norms or ("", "")
    yield claim(first, pre, attention, mid, (head, attention, mid))
    yield claim(second, mid, mlp, post, (mid, neurons, mlp))


def _sum_claims(layer: int, values: dict[str, Tensor], *, parallel: bool, factor: float) -> Iterator[Claim]:
    pre, head, attention, mid, neurons, mlp, post = (
        f"{kind}.{layer}" for kind in ("resid_pre", "head", "attn_out", "resid_mid", "mlp", "mlp_out", "resid_post")
    )

    def claim(terms: tuple[str, ...], total: str, refuses: tuple[str, ...]) -> Claim:
        def error() -> float:
            parts = [values[term] * (factor if term in (attention, mlp) else 1.0) for term in terms]
            return sum_error(parts, values[total])

        return Claim(f"{' + '.join(terms)} = {total}", refuses, error)

    if factor != 1:
        text = "what the residual stream gains is the branch itself"
        yield Claim(text, (attention, mlp), lambda: abs(factor - 1))

    if parallel:
        yield claim((pre, attention, mlp), post, (head, attention, neurons, mlp))
    else:
        yield claim((pre, attention), mid, (head, attention, mid))
        yield claim((mid, mlp), post, (mid, neurons, mlp))


def _branch_claims(
    layer: int, values: dict[str, Tensor], model: PreTrainedModel, architecture: Architecture
) -> Iterator[Claim]:
    config, module = model.config, model.base_model.get_submodule(f"{architecture.layers}.{layer}")
    neurons = getattr(config, architecture.neurons, None) or 4 * config.hidden_size
    branches = (
        (
            "head",
            "attn_out",
            architecture.attention,
            architecture.attention_norm,
            config.num_attention_heads * d_head(config),
        ),
        ("mlp", "mlp_out", architecture.mlp, architecture.mlp_norm, neurons),
    )
    for kind, result, projection, norm, width in branches:
        if projection is None or f"{kind}.{layer}" not in values:
            continue
        site, out, steps = f"{kind}.{layer}", f"{result}.{layer}", [projection, norm] if norm else [projection]

        def branch_error(site: str = site, out: str = out, steps: list[str] = steps) -> float:
            vector = values[site]
            for step in steps:
                vector = module.get_submodule(step)(vector)
            return distance(vector, values[out])

        yield Claim(f"{' then '.join(steps)} of {site} = {out}", (site,), branch_error)
        yield Claim(f"width of {site} = {width}", (site,), lambda s=site, w=width: abs(values[s].shape[-1] / w - 1))


def _input_claims(
    layer: int, values: dict[str, Tensor], model: PreTrainedModel, architecture: Architecture
) -> Iterator[Claim]:
    block, site = model.base_model.get_submodule(f"{architecture.layers}.{layer}"), f"mlp_in.{layer}"
    reader, norm, mid = architecture.mlp_reader, architecture.resid_mid, f"resid_mid.{layer}"
    if architecture.stream_norms:
        yield Claim(f"{mid} = {site}", (site,), lambda: distance(values[mid], values[site]))
    elif architecture.has_resid_mid(model.config) and norm != reader:
        text = f"{norm} of {mid} = {site}"
        yield Claim(text, (site,), lambda: distance(block.get_submodule(norm)(values[mid]), values[site]))
    dense = architecture.mlp if f"mlp.{layer}" in values else None
    result = f"mlp.{layer}" if dense else f"mlp_out.{layer}"

    def error() -> float:
        vectors = values[site]
        for step in architecture.neurons_by:
            vectors = block.get_submodule(step)(vectors)
        if not architecture.neurons_by:
            end = Point(block.get_submodule(dense), "input") if dense else None
            vectors = _run_mlp(block.get_submodule(reader), vectors, end=end)
        if not dense and architecture.mlp_norm:
            vectors = block.get_submodule(architecture.mlp_norm)(vectors)
        return distance(vectors, values[result])

    yield Claim(f"{' then '.join(architecture.neurons_by) or reader} of {site} = {result}", (site,), error)


def _run_mlp(mlp: nn.Module, vectors: Tensor, *, end: Point | None) -> Tensor:
    """What passes `end`, or comes out of the MLP, when it is given these vectors."""
    end = end or Point(mlp, "output")
    # BLOOM and MPT also hand over the stream that the MLP adds to behind its neurons.
    needed = [value for value in signature(mlp.forward).parameters.values() if value.default is value.empty]
    return record(lambda: mlp(*(vectors for _ in needed)), [end], last=end)[0][1]
