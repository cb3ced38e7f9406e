"""Compiled programs in one model of the GPT-2 class, and the parts of it that each program uses.

Tracr's transformers have no norm; GPT-2 has one before every part. The residual stream x goes in as (x, -x, K, -K): its
mean is 0, and its variance (2|x|^2 + 2K^2) / width, which a large K keeps constant, so that with the gain K sqrt(2 /
width) a norm gives x (1 - |x|^2 / 2K^2 + ...): at |x|^2 < 50 and K = 1000 a relative error below 3e-5. Every
part reads the first half alone and writes both. The programs stand side by side, each in directions and heads of its
own, so the parts of one do something on the prompts of another, and nothing for them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import GPT2LMHeadModel

from ...subject.model import Subject
from ..suite.planting import gpt2_config
from ..suite.words import BOS, UNKNOWN, word_tokenizer
from .programs import FOLDER, LENGTH, PROGRAMS, Program

BULK = 1000.0
"""K."""
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A program's transformer without norms."""

    program: Program
    tensors: Mapping[str, Array]
    """token (token, direction), the first is BOS; position (position, direction); by layer, as `0.query`, weights
    (in, out) and biases (out,)."""
    heads: int
    layers: int
    weights: Array
    """Of the answers' logits, (answer, direction)."""
    constants: Array
    """What is added to them, (answer,)."""

    @property
    def width(self) -> int:
        """Directions of the residual stream."""
        return self.tensors["token"].shape[1]

    @property
    def key_size(self) -> int:
        """Coordinates of a head."""
        return self.tensors["0.query"].shape[1] // self.heads

    def head(self, layer: int, number: int) -> dict[str, Array]:
        """The weights of a head: query, key, value (direction, coordinate) and out (coordinate, direction)."""
        span = slice(number * self.key_size, (number + 1) * self.key_size)
        parts = {name: self.tensors[f"{layer}.{name}"][:, span] for name in ("query", "key", "value")}
        return parts | {"out": self.tensors[f"{layer}.out"][span]}

    def forward(self, ids: NDArray[np.integer]) -> NDArray[np.float64]:
        """The answers' logits by the plain transformer, in float64.

        ids: (position,) rows of `token` -> (position, answer).
        """
        x = self.tensors["token"][ids].astype(np.float64) + self.tensors["position"][: len(ids)]
        for layer in range(self.layers):
            x = x + sum(_attend(x, self.head(layer, number), self.key_size) for number in range(self.heads))
            get = lambda name, layer=layer: self.tensors[f"{layer}.{name}"]  # noqa: E731
            up = np.maximum(x @ get("up") + get("up.bias"), 0)
            x = x + get("out.bias") + up @ get("down") + get("down.bias")
        return x @ self.weights.T + self.constants


def _attend(x: NDArray[np.float64], head: Mapping[str, Array], key_size: int) -> NDArray[np.float64]:
    scores = (x @ head["query"]) @ (x @ head["key"]).T / np.sqrt(key_size)
    scores[np.triu_indices(len(x), 1)] = -np.inf
    pattern = np.exp(scores - scores.max(axis=1, keepdims=True))
    return pattern / pattern.sum(axis=1, keepdims=True) @ (x @ head["value"]) @ head["out"]


@lru_cache(maxsize=1)
def compiled_programs() -> Mapping[str, Compiled]:
    """All programs, as they ship."""
    tensors, told = load_file(FOLDER / "programs.safetensors"), json.loads((FOLDER / "programs.json").read_text())
    made: dict[str, Compiled] = {}
    for name, of in told.items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        readout = (np.array(of[part], np.float32) for part in ("weights", "constants"))
        made[name] = Compiled(PROGRAMS[name], own, of["heads"], of["layers"], *readout)
    return made


@dataclass(frozen=True, slots=True)
class CompiledSubject:
    """All programs in one model."""

    subject: Subject
    nodes: Mapping[str, frozenset[str]]
    """By program, the heads and MLPs that it uses, as `head.0:2` and `mlp_out.1`."""


@lru_cache(maxsize=1)
def build_subject() -> CompiledSubject:
    """The model of the programs that ship."""
    programs = compiled_programs()
    spots, heads, start = {}, {}, 0
    for name, one in programs.items():
        spots[name] = slice(start, start + one.width)
        start += one.width
    count = 0
    for name, one in programs.items():
        heads[name], count = count, count + one.heads
    words = [BOS, UNKNOWN, *dict.fromkeys(t for one in programs.values() for t in one.program.tokens)]
    words += [answer for one in programs.values() for answer in one.program.answers]
    model = _empty_model(programs, width=start, heads=count, words=len(words))
    with torch.no_grad():
        for name, one in programs.items():
            _write_program(model, one, spot=spots[name], head=heads[name], width=start, words=words)
    subject = Subject(model.eval(), word_tokenizer(words), name="compiled")
    return CompiledSubject(subject, {name: _used(one, heads[name]) for name, one in programs.items()})


def _empty_model(programs: Mapping[str, Compiled], *, width: int, heads: int, words: int) -> Any:
    """A model that holds nothing but K, -K, a constant for the readouts, and the norms' gains."""
    least = max(2 * width + 3, heads * max(one.key_size for one in programs.values()))
    size = -(-least // heads) * heads
    layers = max(one.layers for one in programs.values())
    config = gpt2_config(
        words=words,
        positions=LENGTH + 1,
        width=size,
        layers=layers,
        heads=heads,
        neurons=sum(one.tensors["0.up"].shape[1] for one in programs.values()),
        epsilon=1e-5,
    )
    model: Any = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            is_gain = ".ln_" in name and name.endswith("weight")
            weights.fill_(BULK * (2 / size) ** 0.5 if is_gain else 0.0)
        model.transformer.wte.weight[:, 2 * width] = BULK
        model.transformer.wte.weight[:, 2 * width + 1] = -BULK
        # A constant 1 that only the unembedding sees.
        model.transformer.ln_f.bias[2 * width + 2] = 1.0
    return model


def _write_program(model: Any, one: Compiled, *, spot: slice, head: int, width: int, words: list[str]) -> None:
    """Write a program's weights into its directions (`spot`) and heads (from `head` on)."""
    inner = model.transformer
    mirror = slice(width + spot.start, width + spot.stop)

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(one.tensors[name])

    def write_both(target: torch.Tensor, values: torch.Tensor) -> None:
        target[..., spot] += values
        target[..., mirror] -= values

    ids = [words.index(word) for word in (BOS, *one.program.tokens)]
    own = torch.zeros(len(words), one.width)
    own[ids] = tensor("token")
    write_both(inner.wte.weight, own)
    write_both(inner.wpe.weight, tensor("position"))
    size = inner.config.n_embd // inner.config.n_head
    scales = {"query": (size / one.key_size) ** 0.5, "key": 1.0, "value": 1.0}
    for layer in range(one.layers):
        block = inner.h[layer]
        for number in range(one.heads):
            parts = one.head(layer, number)
            start = (head + number) * size
            for place, (name, scale) in enumerate(scales.items()):
                at = place * inner.config.n_embd + start
                block.attn.c_attn.weight[spot, at : at + one.key_size] = torch.from_numpy(parts[name]) * scale
            write_both(block.attn.c_proj.weight[start : start + one.key_size], torch.from_numpy(parts["out"]))
        hidden = slice(_hidden_before(one), _hidden_before(one) + one.tensors[f"{layer}.up"].shape[1])
        block.mlp.c_fc.weight[spot, hidden] = tensor(f"{layer}.up")
        block.mlp.c_fc.bias[hidden] = tensor(f"{layer}.up.bias")
        write_both(block.mlp.c_proj.weight[hidden], tensor(f"{layer}.down"))
        write_both(block.mlp.c_proj.bias, tensor(f"{layer}.down.bias"))
        write_both(block.attn.c_proj.bias, tensor(f"{layer}.out.bias"))
    answers = [words.index(answer) for answer in one.program.answers]
    model.lm_head.weight[answers, spot] = torch.from_numpy(one.weights)
    model.lm_head.weight[answers, 2 * width + 2] = torch.from_numpy(one.constants)


def _hidden_before(one: Compiled) -> int:
    """The MLP neurons of the programs before this one."""
    widths = {name: other.tensors["0.up"].shape[1] for name, other in compiled_programs().items()}
    names = list(widths)
    return sum(widths[name] for name in names[: names.index(one.program.name)])


def _used(one: Compiled, head: int) -> frozenset[str]:
    """The parts that a program writes with: those whose output weights are not zero."""
    layers, numbers = range(one.layers), range(one.heads)
    heads = {f"head.{layer}:{head + n}" for layer in layers for n in numbers if one.head(layer, n)["out"].any()}
    return frozenset(heads | {f"mlp_out.{layer}" for layer in layers if one.tensors[f"{layer}.down"].any()})
