"""Finds the sites of a family that is not in the table: by what its modules pass, not by their names.

One forward pass records what goes into and comes out of every module of one block, the first that has attention as far
as the config tells. The branches of the block are then looked for as sums: a projection whose output (or that of the
norm behind it) is what the residual stream gains, a module that reads the stream in between, a second projection, or a
whole module where experts take its place, for the rest. Where no such sum is the block's output, norms are looked for
that the stream itself passes behind each sum. What is found is a row like those of the table, and is proven like them
(`conformance.py`).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .architecture import ARCHITECTURES, SOFTCAP, Architecture, Projections, d_head, kv_heads, other_mixer
from .attention_claims import pointing_error
from .errors import NeuronautError
from .forward import forward

CLOSE = 1e-4
"""Relative error up to which two tensors are taken for equal; the proof is stricter."""


class _Call(NamedTuple):
    """What one module of the block took and gave."""

    path: str
    module: nn.Module
    taken: Tensor
    given: Tensor


class _Branch(NamedTuple):
    """What one branch adds to the residual stream, and where it is read."""

    projection: str
    norm: str | None
    added: Tensor
    place: int
    """Its last module's place among the calls."""


class _Block(NamedTuple):
    """How a block is put together."""

    attention: _Branch
    mid: str | None
    """The module that reads the stream between the branches; None where none does."""
    mlp: _Branch
    stream_norms: tuple[str, str] | None = None
    """As of `Architecture`."""


def architecture_of(model: PreTrainedModel, *, name: str) -> Architecture:
    """The row of a model's family, from the table or by looking at the model."""
    row = ARCHITECTURES.get(model.config.model_type)
    known = row is not None and (row.wanted is None or getattr(model.config, row.wanted))
    return row if row is not None and known else discover(model, name=name)


@torch.inference_mode()
def discover(model: PreTrainedModel, *, name: str) -> Architecture:
    """The row of a model of any family; refuses where none can be found."""
    layers, blocks = find_blocks(model, name=name)
    tokens = torch.randint(model.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0)).to(model.device)
    at = next((i for i in range(len(blocks)) if other_mixer(model.config, i) is None), 0)
    headless = model.get_output_embeddings() is None
    try:
        calls, residual, after = _watch(model, blocks, at, tokens, causal=not headless)
    except _UNRUN as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise _refusal(model, name, f"two rows of 8 random tokens do not run through it ({what})") from error
    if residual.last.shape != (*tokens.shape, model.config.hidden_size):
        raise _refusal(model, name, f"its blocks pass tensors of shape {tuple(residual.last.shape)}, no vector a token")
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % model.config.vocab_size
    again = _watch(model, blocks, at, other, causal=not headless)[1]
    encoder = not _is_close(again.last[:, :-1], residual.last[:, :-1])
    if headless and not encoder:
        raise _refusal(model, name, "it reads from left to right and has no unembedding")
    found = next(_find_branches(calls, residual.pre, residual.post, model.config.hidden_size), None)
    if found is None:
        # What is multiplied before it is added, a state space without an MLP, and two branches in one are none.
        block = f"its block {at} ({type(blocks[at]).__name__})"
        raise _refusal(model, name, f"{block} is no sum of an attention and an MLP onto the residual stream")
    attention, mid, mlp, stream_norms = found
    final_norm = next((call.path for call in after if _is_final(call, residual.last, encoder=encoder)), None)
    if final_norm is None and not encoder:
        raise _refusal(model, name, "no module reads the residual stream behind its last block")
    module = blocks[at].get_submodule(mlp.projection)
    dense = _is_projection(module, mlp.added.shape[-1])
    heads = _find_heads(calls, attention.projection)
    alone = _watch(model, blocks, at, tokens[:, :1], causal=not encoder)[0]
    return Architecture(
        layers=layers,
        attention=attention.projection,
        mlp=mlp.projection if dense else None,
        resid_mid=mid or "",
        final_norm=final_norm,
        attention_norm=attention.norm,
        mlp_norm=mlp.norm,
        stream_norms=stream_norms,
        bidirectional=encoder,
        experts=_find_experts(calls, blocks, mlp.projection) if dense else mlp.projection,
        heads=heads,
        projections=_find_projections(alone, attention.projection, heads, model.config),
        neurons_by=_find_steps(calls, mlp.projection, model.config.hidden_size),
        parallel=mid is None,
        neurons=(dense and _key_of(model.config.to_dict(), _width_in(module))) or "intermediate_size",
        softcap=SOFTCAP if hasattr(model.config, SOFTCAP) else None,
    )


def _refusal(model: PreTrainedModel, name: str, why: str) -> NeuronautError:
    return NeuronautError(
        f"{name} has model_type {model.config.model_type!r}, of which the table has no row, and {why}; "
        "`neuronaut models families` lists those that are"
    )


def find_blocks(model: PreTrainedModel, *, name: str) -> tuple[str, nn.ModuleList]:
    """The path and the list of a model's blocks; refuses where there is none."""
    count = model.config.num_hidden_layers
    lists = [
        (path, module)
        for path, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and all(any(block.children()) for block in module)
    ]
    # Blocks of one kind go before lists of whatever else there are as many of.
    for path, module in sorted(lists, key=lambda found: len({type(block) for block in found[1]}) > 1):
        return path, module
    raise _refusal(model, name, f"there is no list of its {count} blocks")


class _Residual(NamedTuple):
    """The residual stream before and after the block that is looked into, and after the last."""

    pre: Tensor
    post: Tensor
    last: Tensor


_UNRUN = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
"""What models raise that need more than tokens, or whose config does not fit together."""


def _watch(
    model: PreTrainedModel, blocks: nn.ModuleList, at: int, tokens: Tensor, *, causal: bool
) -> tuple[list[_Call], _Residual, list[_Call]]:
    """The calls inside the block `at` and behind the last, in the order in which they end."""
    calls: dict[str, list[_Call]] = {"inside": [], "last": [], "behind": []}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        taken = next((value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)), None)
        given = output[0] if isinstance(output, tuple | list) else output
        if taken is None or not isinstance(given, Tensor):
            return
        where, path = places[module]
        if where != "behind" or calls["last"]:
            calls[where].append(_Call(path, module, taken.clone(), given.clone()))

    inside = set(blocks.modules())
    places = {module: ("inside", path) for path, module in blocks[at].named_modules() if path}
    places |= {
        module: ("behind", path) for path, module in model.base_model.named_modules() if path and module not in inside
    }
    places |= {blocks[at]: ("inside", ""), blocks[-1]: ("last", "")}
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in places]
    try:
        forward(model, tokens, causal=causal)
    finally:
        for handle in handles:
            handle.remove()
    block = next((call for call in (*calls["inside"], *calls["last"]) if call.module is blocks[at]), None)
    last = next((call for call in (*calls["last"], *calls["inside"]) if call.module is blocks[-1]), None)
    if block is None or last is None:
        raise RuntimeError(f"no tensor passes its {type(blocks[at]).__name__}")
    own = [call for call in calls["inside"] if call.path]
    return own, _Residual(block.taken, block.given, last.given), calls["behind"]


def _is_final(call: _Call, last: Tensor, *, encoder: bool) -> bool:
    """Whether a module behind the blocks is the final norm; a pooler reads the stream, too, and gives one vector."""
    return _is_close(call.taken, last) and not (encoder and call.given.shape != last.shape)


def _find_branches(calls: list[_Call], pre: Tensor, post: Tensor, width: int) -> Iterator[_Block]:
    """The ways in which a block may be put together of two branches."""
    branches = [branch for branch in _branches(calls, width) if branch.added.shape == pre.shape]
    found = [
        (attention, mlp)
        for attention in branches
        for mlp in branches
        if mlp.place > attention.place and _is_close(pre + attention.added + mlp.added, post)
    ]
    for attention, mlp in found:
        readers = [call for call in calls[attention.place + 1 :] if _is_close(call.taken, pre + attention.added)]
        readers = [call for call in readers if not _is_close(call.given, post)]
        if readers:
            # The outermost module that reads it, so that what is written there reaches all of the branch; one that
            # gives the sum is more than a branch.
            yield _Block(attention, min(readers, key=lambda call: call.path.count(".")).path, mlp)
    yield from (_Block(attention, None, mlp) for attention, mlp in found)
    plain = [branch for branch in branches if branch.norm is None]
    for attention, norm in _normed(calls, plain, pre):
        for mlp, last in _normed(calls, plain, norm.given):
            if mlp.place > attention.place and _is_close(last.given, post):
                readers = (call.path for call in calls if _is_close(call.taken, norm.given))
                yield _Block(attention, min(readers, key=lambda path: path.count(".")), mlp, (norm.path, last.path))


def _normed(calls: list[_Call], branches: list[_Branch], stream: Tensor) -> Iterator[tuple[_Branch, _Call]]:
    """Branches with the module that takes what they and the stream add up to."""
    for branch in branches:
        for call in calls[branch.place + 1 :]:
            if call.given.shape == stream.shape and _is_close(call.taken, stream + branch.added):
                yield branch, call


def _find_heads(calls: list[_Call], output: str) -> str | None:
    """The module that gives the heads to the output projection, where that is outside of it; None elsewhere."""
    taken = next(call.taken for call in calls if call.path == output)
    parts = (call for call in calls if next(call.module.children(), None) is not None)
    return next((call.path for call in parts if _is_close(call.given, taken)), None)


def _branches(calls: list[_Call], width: int) -> Iterator[_Branch]:
    """Projections to the residual width, each as it is and through a norm behind it; then whole modules, likewise."""
    projections = [(i, call) for i, call in enumerate(calls) if _is_projection(call.module, width)]
    modules = [
        (i, call)
        for i, call in enumerate(calls)
        if next(call.module.children(), None) is not None and call.given.shape[-1] == width
    ]
    for i, call in (*projections, *modules):
        for j, behind in enumerate(calls[i + 1 :], i + 1):
            changed = behind.given.shape == call.given.shape and not _is_close(behind.given, behind.taken)
            if changed and not _is_projection(behind.module, width) and _is_close(behind.taken, call.given):
                yield _Branch(call.path, behind.path, behind.given, j)
        yield _Branch(call.path, None, call.given, i)


def _find_experts(calls: list[_Call], blocks: nn.ModuleList, projection: str) -> str | None:
    """The module that holds the dense MLP here and experts in other blocks; None where all blocks are dense."""
    holder = projection.rpartition(".")[0]
    inside = {call.path: call.given for call in calls}
    if not holder or holder not in inside or not _is_close(inside[holder], inside[projection]):
        return None
    return None if all(_has(block, projection) for block in blocks) else holder


def _has(block: nn.Module, path: str) -> bool:
    try:
        block.get_submodule(path)
    except AttributeError:
        return False
    return True


def _find_projections(calls: list[_Call], output: str, inside: str | None, config: PreTrainedConfig) -> Projections:
    """What gives queries, keys and values `inside` a module, or else beside an output projection: the values are where
    the outputs of a single token point, which attends to itself alone; three modules, or one that is laid out as in a
    family of the table. The calls are of rows of one token.
    """
    beside = (output.rpartition(".")[0] if inside is None else inside) + "."
    heads, kv = config.num_attention_heads, kv_heads(config)
    outputs = next(call.taken for call in calls if call.path == output)

    def is_value(values: Tensor) -> bool:
        fits = values.shape[-1] == kv * d_head(config) and outputs.shape == (*values.shape[:-1], heads * d_head(config))
        return fits and pointing_error(outputs, values, heads=heads, kv=kv) <= CLOSE

    near = [call for call in calls if call.path.startswith(beside) and call.path != output]
    near = [call for call in near if _is_projection(call.module, config.hidden_size)]
    names = {call.path: call.path.removeprefix(beside) for call in near}
    for call in near:
        others = [names[other.path] for other in near if other is not call]
        if len(others) == 2 and is_value(call.given):
            return Projections((*others, names[call.path]))
        for layout in {row.projections._replace(modules=(names[call.path],)) for row in ARCHITECTURES.values()}:
            part = layout.parts(config)["value"]
            if call.given.shape[-1] == part.groups * part.size and is_value(part.take(call.given)):
                return layout
    return Projections(())


def _find_steps(calls: list[_Call], projection: str, width: int) -> tuple[str, ...]:
    """The modules of the block that lead to a down projection that no MLP holds, from the projection before it on."""
    steps, end = [], next(i for i, call in enumerate(calls) if call.path == projection)
    wanted, holder = calls[end].taken, projection.rpartition(".")[0]
    if holder and not any(call.path == holder and _is_close(call.taken, wanted) for call in calls):
        return ()
    for call in reversed(calls[:end]):
        if _is_close(call.given, wanted) and next(call.module.children(), None) is None:
            steps.insert(0, call.path)
            if _is_projection(call.module, width):
                return tuple(steps)
            wanted = call.taken
    # What makes them may be no module: then the one that holds it.
    return tuple(call.path for call in calls[:end] if holder and _is_close(call.given, calls[end].taken))[-1:]


def _is_projection(module: nn.Module, width: int) -> bool:
    """Whether it is a linear map to vectors of this width, from vectors of another one or the same."""
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, Tensor)
        and weight.ndim == 2
        and width in weight.shape
        and not isinstance(module, nn.Embedding)
    )


def _width_in(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features
    weight = module.get_parameter("weight")
    return int(weight.shape[0])  # GPT-2's Conv1D keeps its weight the other way round


def _key_of(config: dict[str, Any], width: int) -> str | None:
    """The config key of a number of neurons, one that is named as families name it before others."""
    keys = [key for key, value in config.items() if value == width and isinstance(value, int)]
    return min(keys, key=lambda key: not any(part in key for part in ("inter", "ffn", "inner")), default=None)


def _is_close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    size = second.float().abs().max().clamp_min(1e-30)
    return bool((first.float() - second.float()).abs().max() <= CLOSE * size)
