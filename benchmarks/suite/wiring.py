"""Weights by hand: the heads and neurons that compute the units' conditions, in GPT-2's class.

The residual stream is a direct sum of one-hot blocks (the token, the position, the token before), flags, one
channel an effect on logits, and the channels ONE and ZERO. Every neuron and head reads a sum of channels whose weights
sum to 0 by way of ZERO, so the mean that LayerNorm takes out does not matter; thresholds stand on ONE and not in
biases, so its scale changes the size of a neuron's activation and not its sign.

    layer 0  attention  "before" copies the previous token; "quotes" writes 1 / (1 + quotes so far); "near" the share
                        of each word among the last four tokens; "once" writes 1 / (1 + occurrences of this token)
             MLP        turns these into flags by steps: an odd number of quotes, a word near, seen before; a bigram
    layer 1  attention  "before" copies the bigram's flag of the previous token
             MLP        sharpens the quote flag, and joins unrelated causes with "or"
    layer 2  MLP        the planted neurons, each `relu(weights · channels)`

Heads that weigh several tokens alike score these 0 and all others below -30, so that no scale makes them unequal.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from .reading import (
    ODD,
    ONCE,
    ONE,
    QUOTED,
    QUOTES,
    SEEN,
    ZERO,
    Channel,
    Plan,
    Reads,
    any_of,
    bigrams,
    is_joined,
    near_words,
    reads_of,
)
from .truth import LONGEST, REACH
from .words import BOS, QUOTE

SHARP = 60.0
"""An attention score, or minus one: e^-60 is nothing."""
CODE = 32
"""Length of the random signs by which tokens are compared."""


class Step(NamedTuple):
    """Two neurons, one subtracted from the other: from 0 at `low` to 1 at `high`, and 1 from there on."""

    reads: Reads
    low: float
    high: float
    writes: Reads


class _HeadWeights(NamedTuple):
    """Views of a head's weights: query, key and value (width, d_head), output (d_head, width)."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


class Writer:
    """Writes a plan into a model's weights; weights that the plan does not use are left as they are."""

    def __init__(self, model: GPT2LMHeadModel, plan: Plan) -> None:
        self._model, self._plan, self._at = model, plan, plan.channels
        config: Any = model.config
        self._size: int = config.n_embd // config.n_head
        self._root = self._size**0.25
        """Queries and keys are each multiplied by it, to undo the division of scores."""

    def conditions(self) -> None:
        """Write everything that units read: embeddings, heads, and the neurons of layers 0 and 1."""
        with torch.no_grad():
            self._embed()
            self._head_before(0, [(("token", word), ("before", word)) for word in self._plan.before])
            self._head_before(
                1, [(("bigram", pair), ("after", pair)) for pair in map(" ".join, bigrams(self._plan.drafts))]
            )
            self._head_quotes()
            self._head_near()
            self._head_once()
            self._layer_0()
            self._layer_1()

    def calibrate(self, scale: float) -> None:
        """Divide the values of the heads that count by the norm's scale at BOS, where they read them."""
        with torch.no_grad():
            for head in ("quotes", "once"):
                self._head_weights(0, head).value[:, 0] /= scale

    def unit(self, layer: int, neuron: int, number: int, writes: Reads) -> None:
        """Write the neuron of a draft, which adds so much to each channel at its scale."""
        mlp: Any = self._model.transformer.h[layer].mlp
        draft, scale = self._plan.drafts[number], self._plan.scales[number]
        reads = {channel: scale * weight for channel, weight in reads_of(draft, number).items()}
        with torch.no_grad():
            self.column(mlp.c_fc.weight[:, neuron], reads)
            for channel, weight in writes.items():
                mlp.c_proj.weight[neuron, self._at[channel]] = weight / scale

    def logits(self, channel: Channel, logits: Mapping[int, float]) -> None:
        """Write a channel's effect on logits, by token id."""
        with torch.no_grad():
            for token, logit in logits.items():
                self.column(self._model.lm_head.weight[token], {channel: logit})

    def _embed(self) -> None:
        tokens, places = self._model.transformer.wte.weight, self._model.transformer.wpe.weight
        for row, word in enumerate(self._plan.words):
            tokens[row, self._at["token", word]] = 1.0
        tokens[:, self._at[ONE]] = 1.0
        for place in range(LONGEST + 1):
            places[place, self._at["place", place]] = 1.0

    def column(self, weights: Tensor, reads: Reads) -> None:
        """Have a unit, given by its column of input weights (width,), read channels."""
        for channel, weight in reads.items():
            weights[self._at[channel]] += weight
        weights[self._at[ZERO]] -= sum(reads.values())

    def _head_weights(self, layer: int, head: str) -> "_HeadWeights":
        attention: Any = self._model.transformer.h[layer].attn
        start = self._plan.heads[head] * self._size
        query, key, value = (part[:, start : start + self._size] for part in attention.c_attn.weight.chunk(3, dim=1))
        return _HeadWeights(query, key, value, attention.c_proj.weight[start : start + self._size])

    def _copy(self, layer: int, head: str, pairs: Sequence[tuple[Channel, Channel]]) -> None:
        """Let the head copy the first channel of each pair, where it attends, to the second."""
        weights = self._head_weights(layer, head)
        for dimension, (read, written) in enumerate(pairs):
            self.column(weights.value[:, dimension], {read: 1.0})
            weights.output[dimension, self._at[written]] = 1.0

    def _head_before(self, layer: int, pairs: Sequence[tuple[Channel, Channel]]) -> None:
        if not pairs:
            return
        query, key, *_ = self._head_weights(layer, "before")
        sharp = SHARP**0.5 * self._root
        for place in range(1, LONGEST + 1):
            self.column(query[:, place], {("place", place): sharp})
            self.column(key[:, place], {("place", place - 1): sharp})
        self._copy(layer, "before", pairs)

    def _head_quotes(self) -> None:
        query, key, *_ = self._head_weights(0, "quotes")
        self.column(query[:, 0], {ONE: SHARP**0.5 * self._root})
        counted = {ONE: -1.0, ("token", BOS): 1.0, ("token", QUOTE): 1.0}
        self.column(key[:, 0], {channel: SHARP**0.5 * self._root * sign for channel, sign in counted.items()})
        self._copy(0, "quotes", [(("token", BOS), QUOTES)])

    def _head_near(self) -> None:
        words = near_words(self._plan.drafts)
        query, key, *_ = self._head_weights(0, "near")
        sharp = SHARP**0.5 * self._root
        for place in range(1, LONGEST + 1):
            self.column(query[:, place], {("place", place): sharp})
            near = {("place", earlier): sharp for earlier in range(max(0, place - REACH), place)}
            self.column(key[:, place], {ONE: -sharp, **near})
        self._copy(0, "near", [(("token", word), ("share", word)) for word in words])

    def _head_once(self) -> None:
        """Scores are minus the number of signs in which two tokens' codes differ, times 10; `<bos>` scores 0."""
        query, key, *_ = self._head_weights(0, "once")
        size = 5.0**0.5 * self._root
        generator = torch.Generator().manual_seed(0)
        codes = size * (2.0 * torch.randint(2, (len(self._plan.words), CODE), generator=generator) - 1)
        for word, code in zip(self._plan.words, codes.tolist(), strict=True):
            for dimension, sign in enumerate(code):
                self.column(query[:, dimension], {("token", word): sign})
                if word != BOS:
                    self.column(key[:, dimension], {("token", word): sign})
        self.column(query[:, CODE], {ONE: size * CODE**0.5})
        self.column(key[:, CODE], {ONE: -size * CODE**0.5, ("token", BOS): size * CODE**0.5})
        self._copy(0, "once", [(("token", BOS), ONCE)])

    def _layer_0(self) -> None:
        steps = [*_parity(), Step({ONE: 1.0, ONCE: -1.0}, 0.53, 0.64, {SEEN: 1.0})]
        steps += [
            Step({("share", word): 1.0}, 0.08, 0.16, {("near", word): 1.0}) for word in near_words(self._plan.drafts)
        ]
        used = self._write_steps(0, steps)
        mlp: Any = self._model.transformer.h[0].mlp
        for unit, pair in enumerate(bigrams(self._plan.drafts), start=used):
            self.column(mlp.c_fc.weight[:, unit], {("before", pair[0]): 2.0, ("token", pair[1]): 2.0, ONE: -3.0})
            mlp.c_proj.weight[unit, self._at["bigram", " ".join(pair)]] = 1.0

    def _layer_1(self) -> None:
        steps = [Step({ODD: 1.0, ("token", QUOTE): -1.0}, 0.4, 0.6, {QUOTED: 1.0})]
        for number, draft in enumerate(self._plan.drafts):
            if is_joined(draft):
                steps.append(Step(any_of(draft.condition), 0.6, 0.9, {("any", number): 1.0}))
        self._write_steps(1, steps)

    def _write_steps(self, layer: int, steps: Sequence[Step]) -> int:
        """Write steps to the first neurons; returns the number of the next one that is free."""
        mlp: Any = self._model.transformer.h[layer].mlp
        for number, step in enumerate(steps):
            rise = 1 / (step.high - step.low)
            reads = {channel: weight * rise for channel, weight in step.reads.items()}
            for unit, edge, sign in ((2 * number, step.low, 1.0), (2 * number + 1, step.high, -1.0)):
                self.column(mlp.c_fc.weight[:, unit], reads)
                self.column(mlp.c_fc.weight[:, unit], {ONE: -edge * rise})
                for channel, weight in step.writes.items():
                    mlp.c_proj.weight[unit, self._at[channel]] = sign * weight
        return 2 * len(steps)


def _parity() -> list[Step]:
    """Whether the quotes so far are odd, from r = 1 / (1 + quotes): a step up or down between any two values of r."""
    steps: list[Step] = []
    for count in range(1, LONGEST + 1):
        low, high = 1 / (count + 1), 1 / count
        quarter = (high - low) / 4
        steps.append(Step({QUOTES: 1.0}, low + quarter, high - quarter, {ODD: 1.0 if count % 2 == 0 else -1.0}))
    return steps
