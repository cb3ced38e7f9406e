"""A tiny random-weight model of every supported family, and a small tokenizer, for any test."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from neuronaut.subject.model import Subject

VOCABULARY, CONTEXT, D_MODEL, NEURONS, HEADS, D_HEAD = 300, 64, 24, 80, 4, 8
"""D_MODEL, HEADS * D_HEAD and NEURONS all differ, so that no width passes for another."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": D_MODEL,
    "intermediate_size": NEURONS,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_GROUPED: dict[str, Any] = _COMMON | {"num_key_value_heads": 2, "head_dim": D_HEAD}
_SLIDING: dict[str, Any] = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": CONTEXT,
    "n_embd": D_MODEL,
    "n_layer": 3,
    "n_head": HEADS,
}

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2)),
    "gpt2_n_inner": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2, n_inner=NEURONS)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_COMMON, use_parallel_residual=True)),
    "gpt_neox_sequential": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_COMMON, use_parallel_residual=False)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_GROUPED, sliding_window=4)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_COMMON, num_key_value_heads=2, use_sliding_window=True, **_SLIDING)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_GROUPED)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_GROUPED, **_SLIDING, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
    ),
    "gemma3_text": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_GROUPED, **_SLIDING, final_logit_softcapping=3.0)),
}
"""Every family of the architecture table, some twice, with the features that set it apart."""


def tiny_model(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A model of the family whose every parameter (norms and biases too) is random, so that none drops out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[family]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def byte_tokenizer(texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, of at most VOCABULARY tokens; id 0 is BOS."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def tiny_subject(family: str = "gpt2", *, seed: int = 0) -> Subject:
    """A tiny random model as a subject named after its family."""
    return Subject(tiny_model(family, seed=seed), byte_tokenizer(), name=family)


def tiny_tokens(rows: int = 3, positions: int = 12, *, seed: int = 0) -> torch.Tensor:
    """Random token ids, shape (rows, positions)."""
    return torch.randint(VOCABULARY, (rows, positions), generator=torch.Generator().manual_seed(seed))
