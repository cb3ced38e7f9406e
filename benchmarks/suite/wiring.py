"""Weights by hand: what conditions read, and the heads and neurons that compute it, in GPT-2's class.

The residual stream is a direct sum of one-hot blocks (the token, the position, the token before), flags, one
channel an effect on logits, and the channels ONE and ZERO. All that is read is a sum of channels whose weights sum
to 0 by way of ZERO, so the mean that LayerNorm takes out does not matter; thresholds stand on ONE and not in biases,
so its scale changes the size of a neuron's activation and not its sign.

    layer 0  attention  "before" copies the previous token; "quotes" writes 1 / (1 + quotes so far); "near" the share
                        of each word among the last four tokens; "once" writes 1 / (1 + occurrences of this token)
             MLP        turns these into flags by steps: an odd number of quotes, a word near, seen before; a bigram
    layer 1  attention  "before" copies what the bigram's flag was at the previous token
             MLP        sharpens the quote flag, and joins unrelated causes with "or"
    layer 2  MLP        the planted neurons, each `relu(weights · channels)`

Heads that weigh several tokens alike score these 0 and all others below -30, so that no scale makes them unequal.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from .kinds import Draft
from .truth import LONGEST, REACH, Cause, Predicate
from .words import BOS, QUOTE

LAYER = 2
"""The planted neurons are the inputs of `transformer.h[LAYER].mlp.c_proj`: the site `mlp.2`."""
HEADS: Sequence[str] = ("before", "quotes", "near", "once")
CODE = 32
"""Length of the random signs that tell tokens apart where they are compared."""
SHARP = 60.0
"""An attention score, or minus one: e^-60 is nothing."""

Channel = tuple[str, str | int]
Reads = Mapping[Channel, float]
"""Weight by channel."""
ONE, ZERO, BULK = ("one", ""), ("zero", ""), ("bulk", "")
"""Always 1; always 0; what nothing reads, for who needs a norm of known size."""
_QUOTES, _ONCE, _ODD, _QUOTED, _SEEN = (("flag", name) for name in ("quotes", "once", "odd", "quoted", "seen"))


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything of a planted part stands."""

    words: tuple[str, ...]
    """The vocabulary, by token id."""
    before: tuple[str, ...]
    """Words that are copied to the next position."""
    drafts: tuple[Draft, ...]
    channels: Mapping[Channel, int]
    heads: Mapping[str, int]
    """By name, its number within its layer."""
    indices: tuple[int, ...]
    """The neuron of `mlp.2`, or the feature, of each draft."""
    scales: tuple[float, ...]
    """What each draft's unit is where its condition is 1."""
    effects: tuple[Mapping[int, float], ...]
    """Logits by token id that each draft's unit adds at its scale."""


def channels(words: Sequence[str], before: Sequence[str], drafts: Sequence[Draft], *, spare: int) -> dict[Channel, int]:
    """A channel for everything that is read or written, and some to spare."""
    names: list[Channel] = [ONE, ZERO, BULK, _QUOTES, _ONCE, _ODD, _QUOTED, _SEEN]
    names += [("token", word) for word in words] + [("place", place) for place in range(LONGEST + 1)]
    names += [("before", word) for word in before]
    names += [(kind, word) for word in near_words(drafts) for kind in ("share", "near")]
    names += [("any", number) for number, draft in enumerate(drafts) if is_joined(draft)]
    names += [("effect", number) for number, draft in enumerate(drafts) if not draft.abstain]
    names += [(kind, " ".join(pair)) for pair in bigrams(drafts) for kind in ("bigram", "after")]
    names += [("spare", number) for number in range(spare)]
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def conditions(drafts: Iterable[Draft]) -> list[Cause]:
    """All causes and exceptions."""
    return [cause for draft in drafts for cause in (*draft.condition.causes, *draft.condition.exceptions)]


def is_joined(draft: Draft) -> bool:
    """Whether it has several causes, which the layer before joins."""
    return len(draft.condition.causes) > 1


def near_words(drafts: Iterable[Draft]) -> list[str]:
    return list(dict.fromkeys(word for cause in conditions(drafts) for word in cause.near))


def bigrams(drafts: Iterable[Draft]) -> list[tuple[str, str]]:
    return [(first, word) for c in conditions(drafts) for first in c.two_before for word in c.before]


def neurons_needed(drafts: Sequence[Draft]) -> tuple[int, int]:
    """How many neurons of layer 0 and of layer 1 the conditions take."""
    steps = 2 * (LONGEST + 1 + len(near_words(drafts)))
    return steps + len(bigrams(drafts)), 2 * (1 + sum(map(is_joined, drafts)))


def upstream(draft: Draft, heads: Mapping[str, int]) -> tuple[str, ...]:
    """The heads and MLPs that a draft's neuron needs, in forward order."""
    if draft.dense is not None:
        return (f"head.0:{heads['before']}",)
    found: set[str] = {"mlp_out.1"} if is_joined(draft) else set()
    for cause in conditions([draft]):
        needs = {
            f"head.0:{heads['before']}": cause.before, f"head.0:{heads['quotes']}": cause.quoted,
            f"head.0:{heads['near']}": cause.near, f"head.0:{heads['once']}": cause.seen,
            "mlp_out.0": cause.quoted or cause.near or cause.seen or cause.two_before,
            f"head.1:{heads['before']}": cause.two_before, "mlp_out.1": cause.quoted,
        }  # fmt: skip
        found |= {name for name, needed in needs.items() if needed}
    return tuple(sorted(found, key=lambda name: (name.split(".")[1][0], name)))


# What conditions read


class _Form(NamedTuple):
    """A condition as a weighted sum: above `least - 1` where it holds, and at most there where it does not."""

    reads: dict[Channel, float]
    least: int
    """How many parts it has, each of which contributes 1."""


def _form(cause: Cause) -> _Form:
    after = [("after", f"{first} {word}") for first in cause.two_before for word in cause.before]
    parts: list[Sequence[Channel]] = [
        [("token", word) for word in cause.here],
        [] if after else [("before", word) for word in cause.before],
        after,
        [("near", word) for word in cause.near],
        [_QUOTED] if cause.quoted else [],
        [_SEEN] if cause.seen else [],
        [("place", 1 + place) for place in cause.places],
    ]
    given = [part for part in parts if part]
    return _Form({channel: 1.0 for part in given for channel in part}, len(given))


def _any(condition: Predicate) -> dict[Channel, float]:
    """Causes of which one is enough, at most one a conjunction: at least 1 where one holds, else at most 1/2."""
    joined: dict[Channel, float] = {}
    for reads, parts in map(_form, condition.causes):
        for channel in reads:
            joined[channel] = max(joined.get(channel, 0.0), 1 / parts)
    return joined


def reads_of(draft: Draft, number: int) -> dict[Channel, float]:
    """What the neuron of a draft reads: its condition, where that is positive."""
    condition, dense = draft.condition, draft.dense
    if dense is not None:
        summed: dict[Channel, float] = {("token", word): weight for word, weight in dense.here.items()}
        summed |= {("before", word): weight for word, weight in dense.before.items()}
        return summed | {ONE: -dense.threshold}
    if not condition.causes:
        return {ONE: -1.0}
    form = _Form({("any", number): 1.0}, 1) if is_joined(draft) else _form(condition.causes[0])
    reads = {channel: 2.0 * weight for channel, weight in form.reads.items()} | {ONE: 1.0 - 2 * form.least}
    reads |= {("token", word): 1.0 + grade for word, grade in condition.grades.items()}
    for exception in condition.exceptions:
        for channel in _form(exception).reads:
            reads[channel] = reads.get(channel, 0.0) - 2.0
    return reads


# Writing


class Step(NamedTuple):
    """Two neurons, one subtracted from the other: from 0 at `low` to 1 at `high`, and 1 from there on."""

    reads: Reads
    low: float
    high: float
    writes: Reads


class Writer:
    """Writes a plan into a model's weights; what the plan does not use is left as it is."""

    def __init__(self, model: GPT2LMHeadModel, plan: Plan) -> None:
        self._model, self._plan, self._at = model, plan, plan.channels
        config: Any = model.config
        self._size: int = config.n_embd // config.n_head
        self._root = self._size**0.25
        """Queries and keys are each multiplied by it, to undo the division of scores."""

    def conditions(self) -> None:
        """All that units read: embeddings, heads, and the neurons of layers 0 and 1."""
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
        """Divide what the heads that count write by the norm's scale at BOS, which they take it from."""
        with torch.no_grad():
            for head in ("quotes", "once"):
                self._three(0, head)[2][:, 0] /= scale

    def unit(self, layer: int, neuron: int, number: int, writes: Reads) -> None:
        """The neuron of a draft, which adds so much to each channel at its scale."""
        mlp: Any = self._model.transformer.h[layer].mlp
        draft, scale = self._plan.drafts[number], self._plan.scales[number]
        reads = {channel: scale * weight for channel, weight in reads_of(draft, number).items()}
        with torch.no_grad():
            self.column(mlp.c_fc.weight[:, neuron], reads)
            for channel, weight in writes.items():
                mlp.c_proj.weight[neuron, self._at[channel]] = weight / scale

    def logits(self, channel: Channel, logits: Mapping[int, float]) -> None:
        """What a channel adds to logits, by token id."""
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

    def _three(self, layer: int, head: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of a head's query, key and value, (width, d_head) each, and of its output, (d_head, width)."""
        attention: Any = self._model.transformer.h[layer].attn
        start = self._plan.heads[head] * self._size
        query, key, value = (part[:, start : start + self._size] for part in attention.c_attn.weight.chunk(3, dim=1))
        return query, key, value, attention.c_proj.weight[start : start + self._size]

    def _carry(self, layer: int, head: str, pairs: Sequence[tuple[Channel, Channel]]) -> None:
        """The head writes to the second channel of each pair what the first is where it attends."""
        _, _, value, output = self._three(layer, head)
        for dimension, (read, written) in enumerate(pairs):
            self.column(value[:, dimension], {read: 1.0})
            output[dimension, self._at[written]] = 1.0

    def _head_before(self, layer: int, pairs: Sequence[tuple[Channel, Channel]]) -> None:
        if not pairs:
            return
        query, key, _, _ = self._three(layer, "before")
        sharp = SHARP**0.5 * self._root
        for place in range(1, LONGEST + 1):
            self.column(query[:, place], {("place", place): sharp})
            self.column(key[:, place], {("place", place - 1): sharp})
        self._carry(layer, "before", pairs)

    def _head_quotes(self) -> None:
        query, key, _, _ = self._three(0, "quotes")
        self.column(query[:, 0], {ONE: SHARP**0.5 * self._root})
        counted = {ONE: -1.0, ("token", BOS): 1.0, ("token", QUOTE): 1.0}
        self.column(key[:, 0], {channel: SHARP**0.5 * self._root * sign for channel, sign in counted.items()})
        self._carry(0, "quotes", [(("token", BOS), _QUOTES)])

    def _head_near(self) -> None:
        words = near_words(self._plan.drafts)
        query, key, _, _ = self._three(0, "near")
        sharp = SHARP**0.5 * self._root
        for place in range(1, LONGEST + 1):
            self.column(query[:, place], {("place", place): sharp})
            near = {("place", earlier): sharp for earlier in range(max(0, place - REACH), place)}
            self.column(key[:, place], {ONE: -sharp, **near})
        self._carry(0, "near", [(("token", word), ("share", word)) for word in words])

    def _head_once(self) -> None:
        """Scores are minus the number of signs in which two tokens' codes differ, times 10; `<bos>` scores 0."""
        query, key, _, _ = self._three(0, "once")
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
        self._carry(0, "once", [(("token", BOS), _ONCE)])

    def _layer_0(self) -> None:
        steps = [*_parity(), Step({ONE: 1.0, _ONCE: -1.0}, 0.53, 0.64, {_SEEN: 1.0})]
        steps += [
            Step({("share", word): 1.0}, 0.08, 0.16, {("near", word): 1.0}) for word in near_words(self._plan.drafts)
        ]
        used = self._steps(0, steps)
        mlp: Any = self._model.transformer.h[0].mlp
        for unit, pair in enumerate(bigrams(self._plan.drafts), start=used):
            self.column(mlp.c_fc.weight[:, unit], {("before", pair[0]): 2.0, ("token", pair[1]): 2.0, ONE: -3.0})
            mlp.c_proj.weight[unit, self._at["bigram", " ".join(pair)]] = 1.0

    def _layer_1(self) -> None:
        steps = [Step({_ODD: 1.0, ("token", QUOTE): -1.0}, 0.4, 0.6, {_QUOTED: 1.0})]
        for number, draft in enumerate(self._plan.drafts):
            if is_joined(draft):
                steps.append(Step(_any(draft.condition), 0.6, 0.9, {("any", number): 1.0}))
        self._steps(1, steps)

    def _steps(self, layer: int, steps: Sequence[Step]) -> int:
        """Write steps to the first neurons; the next one that is free comes back."""
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
        steps.append(Step({_QUOTES: 1.0}, low + quarter, high - quarter, {_ODD: 1.0 if count % 2 == 0 else -1.0}))
    return steps
