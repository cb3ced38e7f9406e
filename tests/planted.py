"""A transformer whose neurons are known: written by hand into transformers' own GPT-2 class, not trained.

The residual stream is a direct sum of blocks: the token, the position and the previous token, each one-hot,
a few flags, and the block that the unembedding reads. LayerNorm is made harmless: every write is balanced on
the channel SINK, so the mean is 0, and a pair of channels holds +SCALE and -SCALE, so the norm is known up to a
relative |x|² / SCALE², about 1e-5; the norm's gain undoes it.

    layer 0  attention  head 0 copies the previous token; head 1 writes 1 / (1 + quotes so far); head 2 the share
                        of storms among the last four tokens; head 3 writes 1 / (1 + occurrences of this token)
             MLP        turns these into flags by steps: an odd number of quotes, a storm near, seen before
    layer 1  MLP        sharpens the quote flag and joins unrelated causes with "or"
    layer 2  MLP        the planted neurons, each `relu(weights · blocks + bias)`

A neuron's truth is a plain predicate over the words of a window of at most LONGEST tokens, `<bos>` (which the
model must see first) not counted. Words are separate tokens that begin with a space.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from neuronaut.benchmarks.suite.words import word_tokenizer

LONGEST = 64
WIDTH, HEADS, NEURONS = 336, 4, 136
SCALE = 1000.0
LAYER = 2
"""The planted neurons are the inputs of `transformer.h[LAYER].mlp.c_proj`: the site `mlp.2`."""

CLASSES: Mapping[str, tuple[str, ...]] = {
    "day": ("Monday", "Friday", "Sunday"),
    "colour": ("red", "green", "blue"),
    "city": ("Paris", "Cairo", "Lima", "Oslo"),
    "name": ("Anna", "Boris", "Clara", "David"),
    "digit": tuple("0123456789"),
    "currency": ("$", "€", "£"),
    "adjective": ("old", "small", "quiet", "dry", "wide", "cold"),
    "noun": ("house", "garden", "river", "boat", "piano", "road", "hill", "bird", "window", "market", "forest"),
    "plural": ("ships", "letters", "horses", "stones", "lamps", "kings"),
    "verb": ("saw", "left", "liked", "found", "followed", "forgot", "painted", "crossed"),
    "other": (
        "a",
        "and",
        "at",
        "bell",
        "cost",
        "in",
        "near",
        "on",
        "rang",
        "said",
        "storm",
        "the",
        "then",
        "to",
        "went",
    ),
    "title": ("New", "Haven", "Mister", "Jones", "chapter"),
    "mark": (".", ",", '"'),
}
WORDS = ("<bos>", "<unk>", *(word for words in CLASSES.values() for word in words))
GRADES = {"red": 1.0, "green": 0.7, "blue": 0.4}

Truth = Callable[[Sequence[str]], list[float]]
"""From the tokens of a window, without `<bos>`, to the activation at each."""
Reads = Mapping[int, float]
"""Weight by channel of the residual stream."""


@dataclass(frozen=True, slots=True)
class PlantedNeuron:
    """A neuron of `mlp.2` of which everything is known."""

    name: str
    kind: str
    """What sort of condition it is, for example "bigram"; the always-on, dead and noise ones deserve no label."""
    index: int
    description: str
    truth: Truth
    promotes: str | None
    """The token whose logit it raises by its activation times 4; None for a neuron that writes nothing."""


class Planted(NamedTuple):
    """The planted subject, text on which its neurons fire, and the answers."""

    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    corpus: tuple[str, ...]
    """One string a document."""
    neurons: tuple[PlantedNeuron, ...]

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write the model with its tokenizer, and the corpus, as the command line takes them; where they are."""
        model, corpus = folder / "planted", folder / "corpus.jsonl"
        self.model.save_pretrained(model)
        self.tokenizer.save_pretrained(model)
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in self.corpus), encoding="utf-8")
        return model, corpus


def build(*, documents: int = 400, seed: int = 0) -> Planted:
    """The model, which is always the same, and a corpus of `documents` documents of 200 to 400 tokens."""
    return Planted(
        _model(), word_tokenizer(WORDS), corpus(documents=documents, seed=seed), tuple(spec.neuron for spec in _SPECS)
    )


# The residual stream

_TOKEN = {word: channel for channel, word in enumerate(WORDS)}
_POSITION = range(len(WORDS), len(WORDS) + LONGEST + 1)
_PREVIOUS = {word: _POSITION.stop + channel for channel, word in enumerate(WORDS)}
_OUTPUT = {word: _POSITION.stop + len(WORDS) + channel for channel, word in enumerate(WORDS)}
_QUOTES, _NEAR, _ONCE, _ODD, _STORM, _SEEN, _QUOTED, _ANY, _SINK, _PLUS, _MINUS = range(WIDTH - 11, WIDTH)
_GAIN = SCALE * (2 / WIDTH) ** 0.5
"""Standard deviation of a residual vector: what the norm divides by."""


def _token(*words: str, weight: float = 2.0) -> dict[int, float]:
    return {_TOKEN[word]: weight for word in words}


def _previous(*words: str, weight: float = 2.0) -> dict[int, float]:
    return {_PREVIOUS[word]: weight for word in words}


# The planted neurons: each condition twice, as weights and as a predicate


@dataclass(frozen=True, slots=True)
class _Spec:
    neuron: PlantedNeuron
    reads: Reads
    bias: float


_NOISE = random.Random(7)
_NOISE_HERE = {word: _NOISE.gauss(0, 0.6) for word in WORDS}
_NOISE_BEFORE = {word: _NOISE.gauss(0, 0.6) for word in WORDS}


def _each(condition: Callable[[list[str], int], float]) -> Truth:
    """The predicate that takes the words up to a position and the position, at every position."""

    def truth(tokens: Sequence[str]) -> list[float]:
        words = [token.strip() for token in tokens]
        return [float(condition(words, at)) for at in range(len(words))]

    return truth


def _before(words: list[str], at: int) -> str | None:
    return words[at - 1] if at else None


def _quoted(words: list[str], at: int) -> bool:
    return words[at] != '"' and words[:at].count('"') % 2 == 1


def _any_cause(words: list[str], at: int) -> bool:
    return words[at] in ("piano", "7") or _before(words, at) == "Mister"


def _noise(words: list[str], at: int) -> float:
    here, before = words[at], _before(words, at)
    known = (word if word in _TOKEN else "<unk>" for word in (here, before or "<bos>"))
    return max(0.0, sum(table[word] for table, word in zip((_NOISE_HERE, _NOISE_BEFORE), known, strict=True)) - 0.6)


_D, _C, _CITY, _NAME = (CLASSES[name] for name in ("digit", "currency", "city", "name"))
_Row = tuple[str, str, str, Callable[[list[str], int], float], Reads, float]
_TABLE: tuple[_Row, ...] = (
    (
        "day",
        "token_set",
        "the words Monday, Friday and Sunday",
        lambda w, i: w[i] in CLASSES["day"],
        _token(*CLASSES["day"]),
        -1,
    ),
    (
        "colour",
        "graded",
        "colours: red strongly (1), green less (0.7), blue weakly (0.4)",
        lambda w, i: GRADES.get(w[i], 0),
        {_TOKEN[word]: 1 + grade for word, grade in GRADES.items()},
        -1,
    ),
    (
        "new_haven",
        "bigram",
        "Haven directly after New",
        lambda w, i: w[i] == "Haven" and _before(w, i) == "New",
        _token("Haven") | _previous("New"),
        -3,
    ),
    (
        "river_not_dry",
        "exception",
        "river, unless the word before it is dry",
        lambda w, i: w[i] == "river" and _before(w, i) != "dry",
        _token("river") | _previous("dry", weight=-2),
        -1,
    ),
    (
        "bell_after_storm",
        "within",
        "bell, when storm is among the four tokens before it",
        lambda w, i: w[i] == "bell" and "storm" in w[max(0, i - 4) : i],
        _token("bell") | {_STORM: 2},
        -3,
    ),
    (
        "price",
        "digit_after_currency",
        "a digit directly after $, € or £",
        lambda w, i: w[i] in _D and _before(w, i) in _C,
        _token(*_D) | _previous(*_C),
        -3,
    ),
    (
        "quoted",
        "in_quotes",
        "every token between quotation marks (after an odd number of them)",
        _quoted,
        {_QUOTED: 2} | _token('"', weight=-2),
        -1,
    ),
    (
        "early",
        "position",
        "the 6th to 9th token of the text, whatever it is",
        lambda _, i: 5 <= i <= 8,
        {_POSITION[1 + place]: 2 for place in range(5, 9)},
        -1,
    ),
    (
        "seen_before",
        "repeated",
        "a token that has already occurred in the text",
        lambda w, i: w[i] in w[:i],
        {_SEEN: 2},
        -1,
    ),
    (
        "three_causes",
        "polysemantic",
        "the word piano; the digit 7; any token directly after Mister",
        _any_cause,
        {_ANY: 2},
        -1,
    ),
    ("always", "always_on", "every token, always equally", lambda _w, _i: 1, {}, 1),
    ("never", "dead", "nothing: it never fires", lambda _w, _i: 0, {}, -1),
    (
        "quoted_city",
        "conjunction",
        "a city (Paris, Cairo, Lima, Oslo) between quotation marks",
        lambda w, i: w[i] in _CITY and _quoted(w, i),
        _token(*_CITY) | {_QUOTED: 2},
        -3,
    ),
    ("river", "twin", "river, whatever comes before it", lambda w, i: w[i] == "river", _token("river"), -1),
    (
        "name_again",
        "conjunction",
        "a name (Anna, Boris, Clara, David) that has already occurred in the text",
        lambda w, i: w[i] in _NAME and w[i] in w[:i],
        _token(*_NAME) | {_SEEN: 2},
        -3,
    ),
    (
        "noise",
        "noise",
        "nothing in particular: a random sum over this token and the one before it",
        _noise,
        {_TOKEN[w]: x for w, x in _NOISE_HERE.items()} | {_PREVIOUS[w]: x for w, x in _NOISE_BEFORE.items()},
        -0.6,
    ),
)
_SILENT = ("always_on", "dead", "noise")
_SPECS = tuple(
    _Spec(
        PlantedNeuron(name, kind, index, text, _each(condition), None if kind in _SILENT else WORDS[20 + 3 * index]),
        reads,
        bias,
    )
    for index, (name, kind, text, condition, reads, bias) in enumerate(_TABLE)
)


# The weights


def _model() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=LONGEST + 1,
        n_embd=WIDTH,
        n_layer=LAYER + 1,
        n_head=HEADS,
        n_inner=NEURONS,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(_GAIN if ".ln_" in name and name.endswith("weight") else 0.0)
        _write_embeddings(model)
        _write_heads(model)
        steps = [*_parity(), (_NEAR, 0.08, 0.16, {_STORM: 1.0}), (_ONCE, 0.36, 0.47, {_SEEN: -1.0})]
        flags = _block(model, 0).mlp.c_proj.bias
        flags[_SEEN], flags[_SINK] = 1.0, -1.0  # seen before, unless the step on _ONCE takes it away
        _write_steps(model, 0, [({channel: 1.0}, low, high, writes) for channel, low, high, writes in steps])
        causes = _token("piano", "7", weight=1.0) | _previous("Mister", weight=1.0)
        _write_steps(model, 1, [({_ODD: 1.0}, 0.4, 0.6, {_QUOTED: 1.0}), (causes, 0.25, 0.75, {_ANY: 1.0})])
        _write_neurons(model)
    return model


def _block(model: GPT2LMHeadModel, layer: int) -> GPT2Block:
    block = model.transformer.h[layer]
    assert isinstance(block, GPT2Block)
    return block


def _write_embeddings(model: GPT2LMHeadModel) -> None:
    tokens, places = model.transformer.wte.weight, model.transformer.wpe.weight
    for row, word in enumerate(WORDS):
        tokens[row, _TOKEN[word]] = 1.0
        model.lm_head.weight[row, _OUTPUT[word]] = 1.0
    tokens[:, _SINK] = -1.0
    tokens[:, _PLUS], tokens[:, _MINUS] = SCALE, -SCALE
    for row, channel in enumerate(_POSITION):
        places[row, channel], places[row, _SINK] = 1.0, -1.0


def _write_heads(model: GPT2LMHeadModel) -> None:
    """Layer 0. Queries and keys of one head meet in at most 84 dimensions: one per position, or one per token."""
    size = WIDTH // HEADS
    attention = _block(model, 0).attn
    query, key, value = (attention.c_attn.weight[:, i * WIDTH : (i + 1) * WIDTH] for i in range(3))
    query_bias = attention.c_attn.bias[:WIDTH]
    out = attention.c_proj.weight
    sharp = (60 * size**0.5) ** 0.5
    previous, quotes, near, once = (range(head * size, (head + 1) * size) for head in range(HEADS))
    for place, channel in enumerate(_POSITION):
        query[channel, previous[place]] = query[channel, near[place]] = sharp
        for later in range(place + 1, LONGEST + 1):
            if later == place + 1:
                key[channel, previous[later]] = sharp
            if later <= place + 4:
                key[channel, near[later]] = sharp
    for row, word in enumerate(WORDS):
        value[_TOKEN[word], previous[row]] = 1.0
        out[previous[row], _PREVIOUS[word]] = 1.0
        query[_TOKEN[word], once[row]] = key[_TOKEN[word], once[row]] = key[_TOKEN["<bos>"], once[row]] = sharp
    query_bias[quotes[0]] = sharp
    key[_TOKEN["<bos>"], quotes[0]] = key[_TOKEN['"'], quotes[0]] = sharp
    for dimension, read, written in (
        (quotes[0], "<bos>", _QUOTES),
        (near[0], "storm", _NEAR),
        (once[0], "<bos>", _ONCE),
    ):
        value[_TOKEN[read], dimension] = 1.0
        out[dimension, written] = 1.0
    out[:, _SINK] = -out.sum(dim=1)


def _parity() -> list[tuple[int, float, float, dict[int, float]]]:
    """Whether the quotes so far are odd, from r = 1 / (1 + quotes): a step up or down between any two values of r."""
    steps: list[tuple[int, float, float, dict[int, float]]] = []
    for count in range(1, LONGEST + 1):
        low, high = 1 / (count + 1), 1 / count
        quarter = (high - low) / 4
        steps.append((_QUOTES, low + quarter, high - quarter, {_ODD: 1.0 if count % 2 == 0 else -1.0}))
    return steps


def _write_steps(
    model: GPT2LMHeadModel, layer: int, steps: Sequence[tuple[Reads, float, float, dict[int, float]]]
) -> None:
    """Each step rises from 0 at `low` to 1 at `high` and stays there: two neurons, one subtracted from the other."""
    mlp = _block(model, layer).mlp
    for number, (reads, low, high, writes) in enumerate(steps):
        for unit, edge, sign in ((2 * number, low, 1.0), (2 * number + 1, high, -1.0)):
            for channel, weight in reads.items():
                mlp.c_fc.weight[channel, unit] = weight / (high - low)
            mlp.c_fc.bias[unit] = -edge / (high - low)
            for channel, weight in writes.items():
                mlp.c_proj.weight[unit, channel] = sign * weight
    mlp.c_proj.weight[:, _SINK] = -mlp.c_proj.weight.sum(dim=1)


def _write_neurons(model: GPT2LMHeadModel) -> None:
    mlp = _block(model, LAYER).mlp
    mlp.c_fc.bias[:] = -1.0
    for spec in _SPECS:
        for channel, weight in spec.reads.items():
            mlp.c_fc.weight[channel, spec.neuron.index] = weight
        mlp.c_fc.bias[spec.neuron.index] = spec.bias
        if spec.neuron.promotes is not None:
            mlp.c_proj.weight[spec.neuron.index, _OUTPUT[spec.neuron.promotes]] = 4.0
    mlp.c_proj.weight[:, _SINK] = -mlp.c_proj.weight.sum(dim=1)


# Text


_THING = ("the {noun}", "the {adjective} {noun}", "a {colour} {noun}", "the {digit} {plural}", "the {place}")
_PLACE = ("dry river", "dry river", "river", "wide river", "old river", "river", "quiet garden", "hill")
_CLAUSE = (
    "{name} {verb} {thing}",
    "{name} {verb} {thing} in {city}",
    "{thing} cost {currency} {digit} {digit}",
    "the {plural} went to {city}",
    "{name} went to New Haven",
    "the New {noun} {verb} {name}",
    "Haven {verb} {thing}",
    "Mister {person} {verb} {thing}",
    "{name} {verb} Mister {person} on {day}",
    "{name} found chapter {digit}",
)
_SENTENCE = (
    "{clause} .",
    "{clause} .",
    "{clause} and {clause} .",
    "{clause} on {day} .",
    "{thing} and {thing} .",
    '{name} said " {clause} " .',
    '{name} said " {clause} , then {clause} " and went to {city} .',
    '" {clause} " , said {name} .',
    "in the storm the bell rang .",
    "the bell rang near {thing} .",
    "the storm left and the bell rang .",
    "the storm left and then the bell rang .",
    "then a storm crossed {city} and {name} {verb} the {adjective} bell .",
)
_GRAMMAR: Mapping[str, Sequence[str]] = {
    **CLASSES,
    "thing": _THING,
    "place": _PLACE,
    "clause": _CLAUSE,
    "sentence": _SENTENCE,
    "person": ("Jones", *_NAME),
}


def corpus(*, documents: int, seed: int) -> tuple[str, ...]:
    """Sentences of a small grammar, in documents of 200 to 400 tokens."""
    return tuple(_document(random.Random(f"{seed}:{number}")) for number in range(documents))


def _document(rng: random.Random) -> str:
    words: list[str] = []
    length = rng.randint(200, 380)
    while len(words) < length:
        words += _expand("{sentence}", rng)
    return "".join(f" {word}" for word in words)


def _expand(template: str, rng: random.Random) -> list[str]:
    return [
        word
        for part in template.split()
        for word in (_expand(rng.choice(_GRAMMAR[part[1:-1]]), rng) if part.startswith("{") else [part])
    ]
