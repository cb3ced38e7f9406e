"""The planted neurons equal their predicates, and the predicates say what their descriptions say."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from tests.planted import LAYER, LONGEST, WORDS, Planted, PlantedNeuron, build

NAMES = (
    "day",
    "colour",
    "new_haven",
    "river_not_dry",
    "bell_after_storm",
    "price",
    "quoted",
    "early",
    "seen_before",
    "three_causes",
    "always",
    "never",
    "quoted_city",
    "river",
    "name_again",
    "noise",
)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return build(documents=40)


def neuron(planted: Planted, name: str) -> PlantedNeuron:
    return next(n for n in planted.neurons if n.name == name)


def activations(model: GPT2LMHeadModel, windows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Inputs of the last MLP's down projection at every token but `<bos>`, (window, position, neuron)."""
    read: list[torch.Tensor] = []
    projection = model.get_submodule(f"transformer.h.{LAYER}.mlp.c_proj")
    handle = projection.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(torch.tensor([[0, *window] for window in windows]))
    handle.remove()
    return read[0][:, 1:]


def natural(planted: Planted, length: int) -> list[list[int]]:
    """The corpus cut into windows, which so may begin inside a quotation."""
    documents = [planted.tokenizer.encode(text, add_special_tokens=False) for text in planted.corpus]
    return [ids[at : at + length] for ids in documents for at in range(0, len(ids) - length + 1, length)][:120]


def unnatural(length: int) -> list[list[int]]:
    """Uniformly random words, among them `<unk>`; a few words over and over; one word throughout."""
    rng = random.Random(1)
    few = [WORDS.index(word) for word in ('"', "storm", "bell", "Paris", "7", "New", "Haven")]
    uniform = [[rng.randrange(1, len(WORDS)) for _ in range(length)] for _ in range(40)]
    return uniform + [rng.choices(few, k=length) for _ in range(20)] + [[word] * length for word in few]


def tokens(planted: Planted, ids: Sequence[int]) -> list[str]:
    return [planted.tokenizer.decode([i]) for i in ids]


@pytest.mark.parametrize("length", [1, 7, LONGEST])
def test_neurons_equal_their_predicates(planted: Planted, length: int) -> None:
    for windows in (natural(planted, length), unnatural(length)):
        found = activations(planted.model, windows)
        for n in planted.neurons:
            wanted = torch.tensor([n.truth(tokens(planted, window)) for window in windows])
            assert torch.allclose(found[..., n.index], wanted, rtol=0, atol=2e-4), n.name
            assert torch.equal(found[..., n.index] > 0, wanted > 0), f"{n.name} is a little active where it is silent"


def test_the_other_neurons_are_dead(planted: Planted) -> None:
    found = activations(planted.model, natural(planted, LONGEST)[:20])
    assert not found[..., len(planted.neurons) :].any()


@pytest.mark.parametrize(
    ("name", "text", "active"),
    [
        ("day", "on Monday and Tuesday then Sunday", {1: 1.0, 5: 1.0}),
        ("colour", "red green blue the", {0: 1.0, 1: 0.7, 2: 0.4}),
        ("new_haven", "Haven New Haven New road Haven", {2: 1.0}),
        ("river_not_dry", "river dry river the dry wide river", {0: 1.0, 6: 1.0}),
        ("river", "river dry river", {0: 1.0, 2: 1.0}),
        ("bell_after_storm", "bell storm a a a bell a bell", {5: 1.0}),
        ("price", "7 $ 7 7 £ a 7 € 0", {2: 1.0, 8: 1.0}),
        ("quoted", 'a " b c " d " e', {2: 1.0, 3: 1.0, 7: 1.0}),
        ("quoted_city", 'Paris " Paris a " Lima " Lima', {2: 1.0, 7: 1.0}),
        ("early", "a a a a a a a a a a", {5: 1.0, 6: 1.0, 7: 1.0, 8: 1.0}),
        ("seen_before", "a b a c b a", {2: 1.0, 4: 1.0, 5: 1.0}),
        ("name_again", "Anna the Boris the Anna", {4: 1.0}),
        ("three_causes", "piano 7 Mister piano Mister red 8", {0: 1.0, 1: 1.0, 3: 1.0, 5: 1.0}),
        ("always", "a b", {0: 1.0, 1: 1.0}),
        ("never", "a b", {}),
    ],
)
def test_predicates_on_sentences(planted: Planted, name: str, text: str, active: dict[int, float]) -> None:
    words = [f" {word}" for word in text.split()]
    assert neuron(planted, name).truth(words) == [active.get(at, 0.0) for at in range(len(words))]


def test_every_kind_is_there_and_occurs(planted: Planted) -> None:
    assert tuple(n.name for n in planted.neurons) == NAMES
    assert [n.index for n in planted.neurons] == list(range(len(NAMES)))
    assert len({n.kind for n in planted.neurons}) >= 12
    windows = [tokens(planted, window) for window in natural(planted, LONGEST)]
    for n in planted.neurons:
        firing = sum(any(n.truth(window)) for window in windows)
        assert (firing == 0) if n.kind == "dead" else firing >= 20, f"{n.name} fires in {firing} windows"


@pytest.mark.parametrize(
    ("word", "confound", "low", "high"),
    [
        ("river", lambda before: before[-1:] == ["dry"], 0.1, 0.3),
        ("bell", lambda before: "storm" in before[-4:], 0.3, 0.8),
        ("7", lambda before: before[-1:] in (["$"], ["€"], ["£"]), 0.1, 0.5),
        ("Haven", lambda before: before[-1:] == ["New"], 0.3, 0.9),
    ],
)
def test_the_corpus_confounds(
    planted: Planted, word: str, confound: Callable[[list[str]], bool], low: float, high: float
) -> None:
    """Both sides of every context occur, the exception rarely enough for the simple story to score well."""
    documents = [text.split() for text in build(documents=200, seed=1).corpus]
    cases = [confound(words[:at]) for words in documents for at, found in enumerate(words) if found == word]
    assert low <= sum(cases) / len(cases) <= high
    assert planted.tokenizer.decode([WORDS.index(word)]) == f" {word}"


def test_text_is_the_join_of_its_tokens(planted: Planted) -> None:
    for text in planted.corpus:
        ids = planted.tokenizer.encode(text, add_special_tokens=False)
        assert 200 <= len(ids) <= 400
        assert planted.tokenizer.unk_token_id not in ids
        assert "".join(tokens(planted, ids)) == text == planted.tokenizer.decode(ids)
    assert planted.tokenizer.tokenize("the  river\nzebra") == [" the", " river", "<unk>"]


def test_documents_depend_on_the_seed_and_their_number_alone(planted: Planted) -> None:
    assert build(documents=3).corpus == planted.corpus[:3]
    assert build(documents=3, seed=1).corpus != planted.corpus[:3]


def test_a_neuron_promotes_its_token(planted: Planted) -> None:
    ids = planted.tokenizer.encode(" the river", add_special_tokens=False)
    with torch.no_grad():
        logits = planted.model(torch.tensor([[0, *ids]])).logits[0, -1]
    promoted = {WORDS.index(n.promotes or "") for n in planted.neurons if n.name in ("river", "river_not_dry")}
    wanted = torch.tensor([4.0 if word in promoted else 0.0 for word in range(len(WORDS))])
    assert torch.allclose(logits, wanted, atol=1e-3)


def test_a_saved_folder_loads_as_the_same_subject(planted: Planted, tmp_path: Path) -> None:
    planted.model.save_pretrained(tmp_path)
    planted.tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    windows = natural(planted, LONGEST)[:4]
    assert isinstance(model, GPT2LMHeadModel)
    assert torch.equal(activations(model.eval(), windows), activations(planted.model, windows))
    assert tokenizer.bos_token == "<bos>"
    assert tokenizer(planted.corpus[0])["input_ids"] == planted.tokenizer(planted.corpus[0])["input_ids"]
    assert tokenizer.decode([5, 6]) == planted.tokenizer.decode([5, 6])
