"""Circuits written by hand into transformers' own classes, for tools that look for circuits.

Norms are made harmless by their epsilon: sqrt(variance + 1e8) is 1e4 to the last bit of a float32 for any vector
written here, and a gain of 1e4 undoes it. So a LayerNorm only takes the mean out, and an RMSNorm is the identity.
The hand-built circuits balance every write on the channel SINK, so that there is no mean to take out either.

    linear_world()        GPT-2 whose attention patterns are constant and whose activation is the identity: the
                          logits are an affine function of the vector at any site, so that attribution by gradients
                          equals patching, and a chord equals a tangent
    gate("and" | "or")    two heads carry a bit each to the last position, and an MLP joins them there
    induction("gpt2" | "llama")   head 0.0 copies the previous token, head 1.0 finds by it where the current token
                          stood before and says what followed there; in Llama's class the first works by RoPE

Each returns a `Circuit`: the subject with pairs of clean and corrupted rows, and what is planted.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from neuronaut.benchmarks.suite.planting import gpt2_config
from neuronaut.subject.model import Subject

EPSILON, GAIN = 1e8, 1e4
"""A norm's epsilon, and the gain that undoes its square root."""
HEADS = 2
SHARP = 40.0
"""An attention score that leaves e^-40 to what scores nothing."""


class Circuit(NamedTuple):
    """A subject of which the working parts are known."""

    subject: Subject
    clean: Tensor
    """(row, position) ids, BOS first."""
    corrupted: Tensor
    """Rows of the same length, in which `wrong` is what `answer` is in the clean ones."""
    answer: Tensor
    """(row,) ids: the next token after a clean row."""
    wrong: Tensor
    """(row,) ids: the next token after the corrupted row."""
    matters: tuple[str, ...]
    """Every unit that the answer depends on, as SITE:INDEX, in forward order."""
    inert: tuple[str, ...]
    """Units that are active, differently in the two rows, and have no output weights."""


# A linear world


def linear_world(*, rows: int = 6, seed: int = 0) -> Circuit:
    """Two layers of two heads (width 8) and 12 neurons, random but for queries and keys, which are zero.

    Every position attends equally to all up to itself, so a metric that is linear in the logits is affine in every
    site's vectors. All units matter but the inert ones. Rows are random words of which the first, BOS, is shared;
    the answer is always word 2, the wrong one word 3.
    """
    width, generator = 16, torch.Generator().manual_seed(seed)
    model = GPT2LMHeadModel(_gpt2_config(words=10, places=16, width=width, neurons=12, activation="linear")).eval()
    inert = ("head.1:1", "mlp.1:11")
    with torch.no_grad():
        for name, weights in model.named_parameters():
            values = 0.4 * torch.randn(weights.shape, generator=generator)
            weights.copy_(GAIN * (1 + values) if _is_gain(name) else values)
        for layer in (0, 1):
            attention = model.get_submodule(f"transformer.h.{layer}.attn.c_attn")
            for parameter in attention.parameters():
                parameter[..., : 2 * width] = 0.0
        _head(model, 1, 1).output[:] = 0.0
        _neurons(model, 1).output[11] = 0.0
    sizes = {"head": HEADS, "mlp": 12}
    units = [f"{kind}.{layer}:{unit}" for layer in (0, 1) for kind, size in sizes.items() for unit in range(size)]
    clean, corrupted = (torch.randint(1, 10, (rows, 8), generator=generator) for _ in range(2))
    clean[:, 0] = corrupted[:, 0] = 0
    answer, wrong = (torch.full((rows,), word) for word in (2, 3))
    subject = Subject(model, _tokenizer(f"w{number}" for number in range(1, 10)), name="linear")
    return Circuit(subject, clean, corrupted, answer, wrong, tuple(unit for unit in units if unit not in inert), inert)


# A gate


def gate(kind: Literal["and", "or"]) -> Circuit:
    """GPT-2 that answers `yes` to `first second ?` where both (and) or any (or) of the two words are `on`.

    Head 0.0 carries the first bit to the last position, head 0.1 the second; s is their sum there. Neuron mlp.1:0 is
    relu(s + 1/2) and writes only in the or-gate, mlp.1:1 is relu(s - 1/2) in the or-gate and relu(s - 3/2) in the
    and-gate. The logit of `yes` is 2 where the gate is open and 0 where it is not, that of `no` always 1.

    The only pair is `on on` against `off off`: with one bit put back to `off` an or-gate stays open (each head backs
    the other up, and alone has no effect), and an and-gate closes; with one bit put on, the reverse. No neuron stands
    at its kink: the gradient by s is 0 at `on on` for or and at `off off` for and, and 4 at the other end.

    Inert besides: neuron mlp.1:2 = relu(a), and head 1.0, which attends evenly and reads the bits.
    """
    words = ("<bos>", "on", "off", "?", "yes", "no")
    space = _channels(24, token=words, place=range(4), flag=("a", "b"), output=("yes", "no"))
    token, place, flag, output = space.values()
    model = _zeroed(GPT2LMHeadModel(_gpt2_config(words=len(words), places=8, width=24, neurons=3)))
    writes, threshold, closed = {"or": ({0: 4.0, 1: -4.0}, 0.5, -2.0), "and": ({1: 4.0}, 1.5, 0.0)}[kind]
    with torch.no_grad():
        _write_one_hot(model.transformer.wte.weight, token.values())
        _write_one_hot(model.transformer.wpe.weight, place.values())
        asked = model.transformer.wte.weight[words.index("?")]
        asked[output["no"]], asked[output["yes"]] = 1.0, closed
        for number, bit in enumerate(("a", "b")):
            head = _head(model, 0, number)
            head.query[place[3], 0], head.key[place[1 + number], 0] = SHARP * head.scale, 1.0
            head.value[token["on"], 0] = head.output[0, flag[bit]] = 1.0
        _head(model, 1, 0).value[flag["a"], 0] = _head(model, 1, 0).value[token["on"], 1] = 1.0
        neurons = _neurons(model, 1)
        neurons.input[flag["a"], :] = neurons.input[flag["b"], :2] = 1.0
        bias = model.transformer.h[1].mlp.c_fc.bias
        bias[0], bias[1] = 0.5, -threshold
        for neuron, weight in writes.items():
            neurons.output[neuron, output["yes"]] = weight
        _unembed(model, {words.index(word): output[word] for word in output})
        _balance(model)
    clean, corrupted = (torch.tensor([[0, bit, bit, words.index("?")]]) for bit in (1, 2))
    answer, wrong = (torch.tensor([words.index(word)]) for word in ("yes", "no"))
    matters = ("head.0:0", "head.0:1", *(f"mlp.1:{neuron}" for neuron in writes))
    idle = ("head.1:0", *(f"mlp.1:{neuron}" for neuron in range(3) if neuron not in writes))
    return Circuit(Subject(model, _tokenizer(words[1:]), name=kind), clean, corrupted, answer, wrong, matters, idle)


# Induction

PLACES, WIDTH, D_HEAD, THETA = 64, 128, 64, 1e8
WORDS = tuple(f"w{number}" for number in range(1, 16))
"""The words of the induction circuit; their ids are 1 to 15, and 0 is BOS."""


def induction(family: Literal["gpt2", "llama"], *, rows: int = 8, seed: int = 0) -> Circuit:
    """Two layers of two heads of which 0.0 is a previous-token head and 1.0 an induction head, both above 0.99.

    Where the current word has not occurred before, 1.0 rests on BOS. It alone writes to the block that the
    unembedding reads: the logit of the word it points to is 4, all others are 0. What 0.0 writes is read by the keys
    of 1.0 and by nothing else.

    Rows: BOS, 11 different words and one of these again, to be followed by what followed it first. In the corrupted
    row that word has changed places with another, whose follower is then the (wrong) answer. So the runs differ in
    what 0.0 writes at the two followers, and at the last position in where 1.0 looks.

    Inert: neuron mlp.0:3 is 1 on word w3 and 0 elsewhere; mlp.1:0 is a fifteenth of the number of the word that 1.0
    points to (times 4); head 1.1 attends evenly and reads the words.
    """
    tables = _channels(WIDTH, token=("<bos>", *WORDS), previous=WORDS, output=WORDS, flag=("one",), place=range(PLACES))
    with torch.no_grad():
        model = _INDUCTION[family](tables)
        _unembed(model, {1 + number: tables["output"][word] for number, word in enumerate(WORDS)})
    pairs = [_induction_pair(random.Random(f"{seed}:{row}")) for row in range(rows)]
    clean, corrupted, answer, wrong = (torch.tensor(column) for column in zip(*pairs, strict=True))
    subject = Subject(model, _tokenizer(WORDS), name=f"induction-{family}")
    matters, inert = ("head.0:0", "head.1:0"), ("mlp.0:3", "head.1:1", "mlp.1:0")
    return Circuit(subject, clean, corrupted, answer, wrong, matters, inert)


def _induction_pair(rng: random.Random) -> tuple[list[int], list[int], int, int]:
    words = rng.sample(range(1, 1 + len(WORDS)), 11)
    here, there = rng.sample(range(0, 10, 2), 2)
    swapped = list(words)
    swapped[here], swapped[there] = words[there], words[here]
    return [0, *words, words[here]], [0, *swapped, words[here]], words[here + 1], words[there + 1]


_Tables = Mapping[str, Mapping[Any, int]]


def _induction_gpt2(tables: _Tables) -> PreTrainedModel:
    """Positions are one-hot: a query says its position, a key the position after its own."""
    model = _zeroed(GPT2LMHeadModel(_gpt2_config(words=1 + len(WORDS), places=PLACES, width=WIDTH, neurons=4)))
    place = tables["place"]
    _write_one_hot(model.transformer.wte.weight, tables["token"].values())
    _write_one_hot(model.transformer.wpe.weight, place.values())
    previous = _head(model, 0, 0)
    for after in range(1, PLACES):
        previous.query[place[after], after] = SHARP * previous.scale
        previous.key[place[after - 1], after] = 1.0
    _write_content(model, tables, dimensions=range(len(WORDS)))
    _balance(model)
    return model


def _induction_llama(tables: _Tables) -> PreTrainedModel:
    """Queries are constant and keys the same, one step on, so that a score is a sum of cos(angle (i - j - 1)).

    Words are matched in the slow pairs of RoPE, which hardly turn within PLACES positions.
    """
    config = LlamaConfig(
        vocab_size=1 + len(WORDS),
        max_position_embeddings=PLACES,
        hidden_size=WIDTH,
        intermediate_size=4,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=D_HEAD,
        hidden_act="relu",
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = _zeroed(LlamaForCausalLM(config))
    one, pairs = tables["flag"]["one"], D_HEAD // 2
    _write_one_hot(model.model.embed_tokens.weight, tables["token"].values())
    model.model.embed_tokens.weight[:, one] = 1.0
    previous = _head(model, 0, 0)
    for pair in range(pairs // 2):
        angle = torch.tensor(THETA ** (-pair / pairs))
        previous.query[one, pair] = SHARP * previous.scale
        previous.key[one, pair], previous.key[one, pairs + pair] = angle.cos(), angle.sin()
    for layer in (0, 1):
        model.get_submodule(f"model.layers.{layer}.mlp.up_proj").weight[:, one] = 1.0
    _write_content(model, tables, dimensions=range(pairs - len(WORDS), pairs))
    return model


_INDUCTION: dict[str, Callable[[_Tables], PreTrainedModel]] = {"gpt2": _induction_gpt2, "llama": _induction_llama}


def _write_content(model: PreTrainedModel, tables: _Tables, *, dimensions: Sequence[int]) -> None:
    """What head 0.0 carries, all of head 1.0, and the inert units; each word has a dimension of a head."""
    token, before, output = (tables[name] for name in ("token", "previous", "output"))
    previous, match, idle = _head(model, 0, 0), _head(model, 1, 0), _head(model, 1, 1)
    for number, (word, dimension) in enumerate(zip(WORDS, dimensions, strict=True), start=1):
        previous.value[token[word], dimension] = previous.output[dimension, before[word]] = 1.0
        match.query[token[word], dimension] = SHARP * match.scale
        match.key[before[word], dimension], match.key[token["<bos>"], dimension] = 1.0, 0.5
        match.value[token[word], dimension], match.output[dimension, output[word]] = 1.0, 4.0
        idle.value[token[word], dimension] = 1.0
        _neurons(model, 1).input[output[word], 0] = number / len(WORDS)
    _neurons(model, 0).input[token["w3"], 3] = 1.0


# Where a model keeps its weights


class _Head(NamedTuple):
    """Views of one head's weights."""

    query: Tensor
    """(d_model, d_head), as key and value are."""
    key: Tensor
    value: Tensor
    output: Tensor
    """(d_head, d_model)."""
    scale: float
    """What a score is divided by: the root of d_head."""


def _head(model: PreTrainedModel, layer: int, head: int) -> _Head:
    size = model.config.hidden_size // HEADS
    here = slice(head * size, (head + 1) * size)
    if isinstance(model, GPT2LMHeadModel):
        attention: Any = model.transformer.h[layer].attn
        three, output = attention.c_attn.weight.chunk(3, dim=1), attention.c_proj.weight
    else:
        attention = model.get_submodule(f"model.layers.{layer}.self_attn")
        three = [getattr(attention, f"{name}_proj").weight.T for name in "qkv"]
        output = attention.o_proj.weight.T
    query, key, value = (weight[:, here] for weight in three)
    return _Head(query, key, value, output[here], size**0.5)


class _Neurons(NamedTuple):
    """Views of one layer's weights into and out of its neurons; in Llama's class, those of the gate."""

    input: Tensor
    """(d_model, neuron)."""
    output: Tensor
    """(neuron, d_model)."""


def _neurons(model: PreTrainedModel, layer: int) -> _Neurons:
    if isinstance(model, GPT2LMHeadModel):
        mlp: Any = model.transformer.h[layer].mlp
        return _Neurons(mlp.c_fc.weight, mlp.c_proj.weight)
    mlp = model.get_submodule(f"model.layers.{layer}.mlp")
    return _Neurons(mlp.gate_proj.weight.T, mlp.down_proj.weight.T)


def _gpt2_config(
    *, words: int, places: int, width: int, neurons: int, activation: str = "relu", layers: int = 2
) -> GPT2Config:
    return gpt2_config(
        words=words,
        positions=places,
        width=width,
        layers=layers,
        heads=HEADS,
        neurons=neurons,
        epsilon=EPSILON,
        activation=activation,
    )


def _channels(width: int, **blocks: Iterable[Any]) -> dict[str, dict[Any, int]]:
    """A channel for every name of every block, from 0; the last channel of `width` is the sink."""
    channels = iter(range(width - 1))
    return {block: {name: next(channels) for name in names} for block, names in blocks.items()}


def _is_gain(name: str) -> bool:
    return name.endswith("weight") and any(norm in name for norm in ("ln_", "norm"))


def _zeroed(model: Any) -> Any:
    """The model with every norm undoing its epsilon and all other weights zero."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(GAIN if _is_gain(name) else 0.0)
    return model.eval()


def _write_one_hot(table: Tensor, channels: Iterable[int]) -> None:
    for row, channel in enumerate(channels):
        table[row, channel] = 1.0


def _unembed(model: PreTrainedModel, reads: Mapping[int, int]) -> None:
    """The logit of each token id is what stands on its channel."""
    head: Any = model.get_output_embeddings()
    for token, channel in reads.items():
        head.weight[token, channel] = 1.0


def _balance(model: GPT2LMHeadModel) -> None:
    """Take from the sink what each write adds elsewhere, so that no LayerNorm finds a mean to take out."""
    embeddings = [model.transformer.wte.weight, model.transformer.wpe.weight]
    for layer in range(model.config.n_layer):
        outputs = [_head(model, layer, head).output for head in range(HEADS)]
        for write in (*outputs, _neurons(model, layer).output):
            write[:, -1] = -write[:, :-1].sum(dim=1)
    for write in embeddings:
        write[:, -1] = -write[:, :-1].sum(dim=1)


def _tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Words between spaces; BOS is id 0, and stands for an unknown word too."""
    vocabulary = {word: number for number, word in enumerate(("<bos>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>", unk_token="<bos>")
