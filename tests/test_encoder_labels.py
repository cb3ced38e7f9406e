"""From a harvest to a label on an encoder whose neurons are known: T5's own class, its weights written by hand.

Every token is one-hot beside a constant channel. Attention has no queries and keys, and a position bias that puts all
weight on the token behind, which the values copy into channels of their own: so that a neuron is a step of the current
and of the next token. The norms' gains undo what they divide by, since all vectors have the same length.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5EncoderModel

from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.store.store import Store
from neuronaut.explainers.rule import RuleExplainer
from neuronaut.labelling.factory import ExplainerOptions, make_explainer
from neuronaut.labelling.label import label
from neuronaut.scorers.simulation import RuleSimulator
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.encoders import sentencepiece_tokenizer

WORDS = ("the", "cat", "dog", "sat", "ran", "on", "mat", "and", "a", "hat", "red", "big", "then", "saw", "no", "one")
SIZE, NEXT = 24, 24
"""Tokens, and the channel from which on the next token is one-hot; the constant stands behind these."""
WIDTH = 64
CONSTANT = NEXT + SIZE


def neurons(ids: dict[str, int]) -> list[dict[int, float]]:
    """Weights by channel: `cat` directly before `sat`, `dog`, and `the` but not before `mat`."""
    return [
        {ids["cat"]: 2.0, NEXT + ids["sat"]: 2.0, CONSTANT: -3.0},
        {ids["dog"]: 1.0},
        {ids["the"]: 1.0, NEXT + ids["mat"]: -1.0},
    ]


def planted() -> Subject:
    tokenizer = sentencepiece_tokenizer(WORDS)
    ids = {word: tokenizer.convert_tokens_to_ids(f"\u2581{word}") for word in WORDS}
    config = T5Config(vocab_size=SIZE, d_model=WIDTH, d_kv=SIZE, d_ff=16, num_layers=1, num_heads=1, pad_token_id=0)
    model = T5EncoderModel(config)
    attention, mlp = model.encoder.block[0].layer
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.shared.weight[:, :SIZE] = torch.eye(SIZE)
        model.shared.weight[:, CONSTANT] = 1.0
        # Of a vector with so many ones the norm divides by the root of their share.
        attention.layer_norm.weight.fill_((2 / WIDTH) ** 0.5)
        mlp.layer_norm.weight.fill_((3 / WIDTH) ** 0.5)
        model.encoder.final_layer_norm.weight.fill_(1.0)
        heads = attention.SelfAttention
        heads.relative_attention_bias.weight[config.relative_attention_num_buckets // 2 + 1] = 40.0
        heads.v.weight[:, :SIZE] = torch.eye(SIZE)
        heads.o.weight[NEXT : NEXT + SIZE] = torch.eye(SIZE)
        for neuron, weights in enumerate(neurons(ids)):
            for channel, weight in weights.items():
                mlp.DenseReluDense.wi.weight[neuron, channel] = weight
        mlp.DenseReluDense.wo.weight[: mlp.DenseReluDense.wo.in_features // 2].fill_(0.01)
    return Subject(model, tokenizer, name="planted")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return planted()


@pytest.fixture(scope="module")
def store(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    rng, file = random.Random(0), tmp_path_factory.mktemp("texts") / "texts.txt"
    folder: Path = file.parent / "texts"
    folder.mkdir()
    for number in range(260):
        words = [rng.choice(WORDS) for _ in range(rng.choice((12, 30)))]
        (folder / f"{number}.txt").write_text(" ".join(words))
    with Store(file.with_suffix(".db")) as store:
        harvest(subject, ["mlp.0"], Corpus.load(str(folder)), store, window=16)
        yield store


def test_the_neurons_are_what_they_were_written_to_be(subject: Subject) -> None:
    assert set(subject.refused) == {"query.0", "key.0"}  # These are zero, and so change nothing.
    row = torch.tensor([subject.row("the cat sat on the mat the dog")])
    values = subject.read(row, ["mlp.0"])["mlp.0"][0, :, :3]
    wanted = torch.tensor(
        [[0, 0, 1], [1, 0, 0], *[[0, 0, 0]] * 2, [0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    )
    torch.testing.assert_close(values, wanted.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("neuron", "told"),
    [(0, "on ` cat` directly before ` sat`"), (1, "on ` dog`"), (2, "on ` the`, except directly before ` mat`")],
)
def test_a_label_says_what_stands_behind(subject: Subject, store: Store, neuron: int, told: str) -> None:
    features = store.features(f"planted:mlp.0:{neuron}")
    (result,) = label(features, store, subject, explainer=RuleExplainer(subject), scorers=[RuleSimulator()])
    assert result.explanation.text == f"fires {told}"
    assert result.score is not None and result.score.value is not None and result.score.value > 0.99


def test_what_stands_around_a_window_is_in_no_statistic(store: Store) -> None:
    (feature,) = store.features("planted:mlp.0:0")
    assert store.convention(feature.source).eos
    examples = store.evidence(feature).train
    assert examples and all("</s>" not in example.tokens and len(example.ids) <= 16 for example in examples)


def test_what_cuts_text_behind_a_token_says_so(subject: Subject) -> None:
    with pytest.raises(NeuronautError, match="planted is an encoder, .* guided explainer cut text"):
        make_explainer("guided", subject, ExplainerOptions())
