"""Circuits written by hand for roles, of the same parts as those of `circuits`.

naming("place" | "word")   every role that heads have in naming the other one of two
fact()                     a word is moved to the end, where the answer is written by a head and by an MLP
"""

import random
from collections.abc import Sequence
from typing import Literal

import torch
from transformers import GPT2LMHeadModel

from neuronaut.subject.model import Subject
from tests.circuits import (
    SHARP,
    Circuit,
    _balance,
    _channels,
    _gpt2_config,
    _Head,
    _head,
    _neurons,
    _Tables,
    _tokenizer,
    _unembed,
    _write_one_hot,
    _zeroed,
)

# Naming the other one

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Fay")


def naming(signal: Literal["place", "word"], *, rows: int = 12, seed: int = 0) -> Circuit:
    """Four layers that answer `X and Y met . X gave to` with Y, by heads of every role that such prompts have.

    0.0   duplicate-token: from the second X to its earlier copy, whose place it writes
    0.1   previous-token                        1.0   induction: to what followed that copy, writes the copy's place too
    2.0   inhibition: from the end to the second X; what it carries there is the place of the first, or with `word`
          which word it is, so that 0.0, 0.1 and 1.0 do nothing
    3.0   mover: from the end to the name that is not inhibited, which it writes
    3.1   writes against it, a third as much

    1.1 looks where 0.0 looks and writes nothing; 2.1 looks everywhere alike and yet carries what 2.0 does, by half.
    The corrupted prompt has Y in the place of the second X.
    """
    words = ("<bos>", *NAMES, "and", "met", "gave", "to")
    space = _channels(
        64, token=words, place=range(8), before=NAMES, copy=(1, 3), turned=(1, 3), shunned=NAMES, output=NAMES
    )
    model = _zeroed(GPT2LMHeadModel(_gpt2_config(words=len(words), places=8, width=64, neurons=1, layers=4)))
    with torch.no_grad():
        _write_one_hot(model.transformer.wte.weight, space["token"].values())
        _write_one_hot(model.transformer.wpe.weight, space["place"].values())
        _write_copies(model, space)
        _write_inhibition(model, space, signal)
        for number, strength in enumerate((4.0, -4.0 / 3)):
            _write_mover(_head(model, 3, number), space, strength)
        _unembed(model, {words.index(name): space["output"][name] for name in NAMES})
        _balance(model)
    pairs = [_naming_pair(random.Random(f"{seed}:{row}"), words) for row in range(rows)]
    clean, corrupted, answer, wrong = (torch.tensor(column) for column in zip(*pairs, strict=True))
    matters = ("head.2:0", "head.2:1", "head.3:0", "head.3:1")
    matters = matters if signal == "word" else ("head.0:0", "head.0:1", "head.1:0", *matters)
    subject = Subject(model, _tokenizer(words[1:]), name=f"naming-{signal}")
    return Circuit(subject, clean, corrupted, answer, wrong, matters, ("head.1:1",))


def _naming_pair(rng: random.Random, words: Sequence[str]) -> tuple[list[int], list[int], int, int]:
    first = rng.sample(range(1, 1 + len(NAMES)), 2)
    wrong, answer = rng.sample(first, 2)
    met, gave, to, also = (words.index(word) for word in ("met", "gave", "to", "and"))
    clean, corrupted = ([0, first[0], also, first[1], met, again, gave, to] for again in (wrong, answer))
    return clean, corrupted, answer, wrong


def _write_copies(model: GPT2LMHeadModel, space: _Tables) -> None:
    """Heads 0.0, 0.1, 1.0 and 1.1."""
    token, place, before, copy = (space[name] for name in ("token", "place", "before", "copy"))
    duplicate, previous, induction_head, decoy = (_head(model, layer, head) for layer in (0, 1) for head in (0, 1))
    for number, name in enumerate(NAMES):
        for head, key in ((duplicate, token), (decoy, token), (induction_head, before)):
            head.query[token[name], number] = SHARP * head.scale
            head.key[key[name], number], head.key[token["<bos>"], number] = 1.0, 0.5
        for head in (duplicate, decoy):
            head.key[place[5], number] = -1.0
        previous.value[token[name], 8 + number] = previous.output[8 + number, before[name]] = 1.0
    for after in range(1, 8):
        previous.query[place[after], after], previous.key[place[after - 1], after] = SHARP * previous.scale, 1.0
    for number, (where, channel) in enumerate(copy.items()):
        for head, key in ((duplicate, where), (induction_head, where + 1)):
            head.value[place[key], number] = head.output[number, channel] = 1.0


def _write_inhibition(model: GPT2LMHeadModel, space: _Tables, signal: str) -> None:
    """Heads 2.0 and 2.1."""
    reads, writes = (space["copy"], space["turned"]) if signal == "place" else (space["token"], space["shunned"])
    for number, strength in enumerate((1.0, 4.0)):
        head = _head(model, 2, number)
        for dimension, (name, channel) in enumerate(writes.items()):
            head.value[reads[name], dimension], head.output[dimension, channel] = 1.0, strength
    first = _head(model, 2, 0)
    first.query[space["place"][7], 0], first.key[space["place"][5], 0] = SHARP * first.scale, 1.0


def _write_mover(head: _Head, space: _Tables, strength: float) -> None:
    token, place = space["token"], space["place"]
    head.query[place[7], 0] = SHARP * head.scale
    for number, (where, channel) in enumerate(space["turned"].items(), start=1):
        head.key[place[where], 0] = head.key[place[where], number] = 1.0
        head.query[channel, number] = -head.scale
    for number, name in enumerate(NAMES, start=3):
        head.query[space["shunned"][name], number], head.key[token[name], number] = -2 * head.scale, 1.0
        head.value[token[name], number], head.output[number, space["output"][name]] = 1.0, strength


# A fact

COUNTRIES = {"Iran": "Tehran", "Ghana": "Accra", "Japan": "Tokyo", "Peru": "Lima", "Cuba": "Havana"}


def fact(*, rows: int = 12, seed: int = 0) -> Circuit:
    """Two layers that answer `the capital of Iran is` with Tehran.

    Head 0.0 moves the country to the end and writes half of the answer; head 0.1 moves it to channels that only the
    neurons of mlp.1 read, which write the other half. Head 1.0 looks there and writes nothing.
    """
    words = ("<bos>", *COUNTRIES, *COUNTRIES.values(), "the", "capital", "of", "is")
    space = _channels(64, token=words, place=range(8), carried=COUNTRIES, output=COUNTRIES)
    token, place, carried, output = space.values()
    model = _zeroed(GPT2LMHeadModel(_gpt2_config(words=len(words), places=8, width=64, neurons=5)))
    with torch.no_grad():
        _write_one_hot(model.transformer.wte.weight, token.values())
        _write_one_hot(model.transformer.wpe.weight, place.values())
        for layer, number, writes in ((0, 0, output), (0, 1, carried), (1, 0, {})):
            head = _head(model, layer, number)
            head.query[place[5], 0], head.key[place[4], 0] = SHARP * head.scale, 1.0
            for dimension, country in enumerate(COUNTRIES, start=1):
                head.value[token[country], dimension] = 1.0
                if country in writes:
                    head.output[dimension, writes[country]] = 1.0
        neurons = _neurons(model, 1)
        for neuron, country in enumerate(COUNTRIES):
            neurons.input[carried[country], neuron] = neurons.output[neuron, output[country]] = 1.0
        _unembed(model, {words.index(COUNTRIES[country]): channel for country, channel in output.items()})
        _balance(model)
    rng, pairs = random.Random(seed), []
    for _ in range(rows):
        right, other = rng.sample(list(COUNTRIES), 2)
        sides = [[0, *(words.index(word) for word in ("the", "capital", "of", name, "is"))] for name in (right, other)]
        pairs.append((*sides, *(words.index(COUNTRIES[name]) for name in (right, other))))
    clean, corrupted, answer, wrong = (torch.tensor(column) for column in zip(*pairs, strict=True))
    subject = Subject(model, _tokenizer(words[1:]), name="fact")
    return Circuit(subject, clean, corrupted, answer, wrong, ("head.0:0", "head.0:1", "mlp_out.1"), ("head.1:0",))
