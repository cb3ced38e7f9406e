"""Compiles the programs of this benchmark with Tracr (Lindner et al. 2023) and writes their weights and truths.

Needs the extra `tracr`: `pip install "neuronaut[tracr]"`, then `python -m neuronaut.benchmarks.compiled.compile`. What
it writes ships with the package, so nothing else needs Tracr.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from .programs import FOLDER, PROGRAMS, Program

SHARP = 20.0
"""Logits of an answer that is sure."""


def _express(rasp: Any) -> dict[str, Callable[[], Any]]:
    """The programs in RASP, by name. A causal model sees only what stands before, itself included."""

    def previous() -> Any:
        back = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - 1)
        return rasp.Aggregate(back, rasp.tokens, default=None)

    def fraction() -> Any:
        return _share(rasp, rasp.tokens == "a")

    def count() -> Any:
        return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ))

    def balance() -> Any:
        opened, closed = _share(rasp, rasp.tokens == "("), _share(rasp, rasp.tokens == ")")
        return rasp.numerical(rasp.LinearSequenceMap(opened, closed, 1, -1))

    def first() -> Any:
        start = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == 0 and query >= 0)
        return rasp.SequenceMap(lambda one, own: one == own, rasp.Aggregate(start, rasp.tokens), rasp.tokens)

    return {made.__name__: made for made in (previous, fraction, count, balance, first)}


def _share(rasp: Any, condition: Any) -> Any:
    """The share of the tokens so far for which a condition holds."""
    so_far = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
    return rasp.numerical(rasp.Aggregate(so_far, rasp.numerical(condition), default=0))


def compile_program(program: Program) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """The tensors of a program's transformer without norms, and its vocabulary and readout."""
    from tracr.compiler import compiling
    from tracr.rasp import rasp

    expression = _express(rasp)[program.name]()
    model = compiling.compile_rasp_to_model(
        expression, vocab=set(program.tokens), max_seq_len=program.length, causal=True, compiler_bos="bos"
    )
    assert model.input_encoder is not None
    ids = model.input_encoder.encoding_map
    params: Any = model.params
    names = ["bos", *program.tokens]
    tensors: dict[str, Any] = {
        "token": np.array(params["token_embed"]["embeddings"])[[ids[name] for name in names]],
        "position": np.array(params["pos_embed"]["embeddings"]),
    }
    for layer in range(model.model_config.num_layers):
        for ours, theirs in (("query", "attn/query"), ("key", "attn/key"), ("value", "attn/value"),
                             ("out", "attn/linear"), ("up", "mlp/linear_1"), ("down", "mlp/linear_2")):  # fmt: skip
            module = params[f"transformer/layer_{layer}/{theirs}"]
            tensors[f"{layer}.{ours}"] = np.array(module["w"])
            tensors[f"{layer}.{ours}.bias"] = np.array(module["b"])
    told = {"heads": model.model_config.num_heads, "layers": model.model_config.num_layers}
    readout = _readout(program, expression.label, list(map(str, model.residual_labels)))
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}, told | readout


def _readout(program: Program, label: str, directions: Sequence[str]) -> dict[str, Any]:
    """How the answers' logits are read off the residual stream: weights (answer, direction), constants (answer,)."""
    weights = np.zeros((len(program.answers), len(directions)))
    constants = np.zeros(len(program.answers))
    for place, direction in enumerate(directions):
        name, _, value = direction.partition(":")
        if name == label and value in program.values:
            weights[program.answers.index(program.values[value]), place] = SHARP
    if label in directions:
        # A number: its first answer is for what is large, and the border lies between the two.
        weights[0, directions.index(label)] = 2 * SHARP
        constants[1] = 2 * SHARP * program.border
    return {"weights": weights.tolist(), "constants": constants.tolist()}


def write(folder: Path = FOLDER) -> None:
    """Compile all programs into the folder."""
    tensors: dict[str, NDArray[np.float32]] = {}
    told: dict[str, Any] = {}
    for program in PROGRAMS.values():
        own, told[program.name] = compile_program(program)
        tensors |= {f"{program.name}.{name}": tensor for name, tensor in own.items()}
    save_file(tensors, str(folder / "programs.safetensors"))
    (folder / "programs.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
