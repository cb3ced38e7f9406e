"""A tiny random encoder of every family that the table has, and tokenizers as encoders have them, for any test."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from neuronaut.subject.model import Subject

VOCABULARY, CONTEXT, WIDTH, HEADS, NEURONS = 300, 64, 32, 4, 80
WORDS = ("the", "cat", "dog", "sat", "ran", "on", "a", "mat", "and", "walk", "##ing", "##ed", ".", ",", "'", "(", ")")

_IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_ALL = _IDS | {
    "max_position_embeddings": CONTEXT,
    "hidden_size": WIDTH,
    "intermediate_size": NEURONS,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
}
_T5 = _IDS | {"d_model": WIDTH, "d_kv": 12, "d_ff": NEURONS, "num_layers": 3, "num_heads": HEADS}
_GATED = _T5 | {"feed_forward_proj": "gated-gelu"}
_LOCAL = {"local_attention": 6, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _ALL),
    "electra": ("electra", _ALL | {"embedding_size": 16}),
    "roberta": ("roberta", _ALL),
    "camembert": ("camembert", _ALL),
    "xlm-roberta": ("xlm-roberta", _ALL),
    "modernbert": ("modernbert", _ALL | _LOCAL | {"cls_token_id": 2, "sep_token_id": 3}),
    "t5": ("t5", _T5),
    "t5_gated": ("t5", _GATED),
    "mt5": ("mt5", _GATED),
    "umt5": ("umt5", _GATED),
}
"""Every encoder of the architecture table, with its config; T5 as it was first, and as v1.1, whose MLP is gated."""
UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "distilbert": (
        "distilbert",
        _IDS
        | {"dim": WIDTH, "hidden_dim": NEURONS, "n_layers": 3, "n_heads": HEADS, "max_position_embeddings": CONTEXT},
    ),
    "mpnet": ("mpnet", _ALL),
    "ernie": ("ernie", _ALL),
    "deberta-v2": ("deberta-v2", _ALL),
    "esm": ("esm", _ALL | {"mask_token_id": 5, "position_embedding_type": "rotary"}),
}
"""Encoders that the table lacks."""


def tiny_encoder(name: str, *, seed: int = 0) -> PreTrainedModel:
    """An encoder without a head, whose every parameter is random, so that none drops out."""
    family, settings = (ENCODERS | UNKNOWN)[name]
    config = AutoConfig.for_model(family, **settings)
    kind = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def wordpiece_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A BERT tokenizer of a few words: [CLS] before a text and [SEP] behind it."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", **names)


def sentencepiece_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A T5 tokenizer of a few words: </s> behind a text, nothing before it."""
    spelled = [word[2:] if word.startswith("##") else f"\u2581{word}" if word.isalpha() else word for word in words]
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *spelled]
    scores = [(piece, -float(bool(rank))) for rank, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tiny_encoder_subject(name: str, *, seed: int = 0) -> Subject:
    """A tiny random encoder as a subject named after its family."""
    tokenizer = sentencepiece_tokenizer() if "t5" in name else wordpiece_tokenizer()
    return Subject(tiny_encoder(name, seed=seed), tokenizer, name=name)
