"""Every row of the architecture table, on a tiny random model of its family: proven, and found without the table."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from neuronaut.causal.attention import patterns
from neuronaut.causal.logit_attribution import logit_attribution
from neuronaut.causal.prompts import Batch
from neuronaut.subject.architecture import ARCHITECTURES
from neuronaut.subject.conformance import prove, unembed
from neuronaut.subject.discovery import discover
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.families import CONTEXT, VOCABULARY, byte_tokenizer, tiny_tokens

WIDTH, HEADS, NEURONS = 32, 4, 80
TOKENS = tiny_tokens(3, 10)

_IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
_ALL = _IDS | {
    "max_position_embeddings": CONTEXT,
    "hidden_size": WIDTH,
    "intermediate_size": NEURONS,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
}
_GROUPED = _ALL | {"num_key_value_heads": 2}
_GPT = _IDS | {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": 3, "n_head": HEADS, "n_inner": NEURONS}
_FEW_EXPERTS = _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_EXPERTS = _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
_SCALED = {"residual_multiplier": 0.4, "logits_scaling": 3.0, "embedding_multiplier": 2.0}

CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(ARCHITECTURES, _GROUPED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT),
    **dict.fromkeys(("gptj", "codegen"), _GPT | {"rotary_dim": 4, "n_ctx": CONTEXT}),
    **dict.fromkeys(("gpt_neox", "persimmon", "biogpt"), _ALL),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "olmoe"), _FEW_EXPERTS | {"shared_expert_intermediate_size": 16}),
    **dict.fromkeys(("mixtral", "phimoe", "gpt_oss"), _LOCAL_EXPERTS),
    "gpt_neo": _IDS
    | {"max_position_embeddings": CONTEXT, "hidden_size": WIDTH, "num_layers": 2, "num_heads": HEADS, "window_size": 4}
    | {"intermediate_size": NEURONS, "attention_types": [[["global", "local"], 1]]},
    "bloom": _IDS | {"hidden_size": WIDTH, "n_layer": 3, "n_head": HEADS},
    "falcon": _ALL | {"ffn_hidden_size": NEURONS, "parallel_attn": True},
    "mpt": _IDS | {"d_model": WIDTH, "n_layers": 3, "n_heads": HEADS, "max_seq_len": CONTEXT},
    "xglm": _IDS
    | {"max_position_embeddings": CONTEXT, "d_model": WIDTH, "ffn_dim": NEURONS}
    | {"num_layers": 3, "attention_heads": HEADS},
    "cohere": _GROUPED | {"logit_scale": 0.25},
    "cohere2": _GROUPED | {"logit_scale": 0.25},
    "vaultgemma": _GROUPED | {"final_logit_softcapping": 3.0, "head_dim": 8},
    "granite": _GROUPED | _SCALED,
    **dict.fromkeys(("helium", "hunyuan_v1_dense", "ministral"), _GROUPED | {"head_dim": 8}),
}
FIRST_PROJECTIONS = ("c_fc", "fc_in", "h_to_4h", "fc1", "up_proj", "mlp.gate", "router")
"""Parts of the names of modules that take the MLP's input: projections, and what chooses experts."""
every_family = pytest.mark.parametrize("family", ARCHITECTURES)


def tiny(family: str, **changes: Any) -> PreTrainedModel:
    """A model whose every parameter is random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **CONFIGS[family] | changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


@every_family
def test_every_row_is_proven_and_found_without_the_table(family: str) -> None:
    model, row = tiny(family), ARCHITECTURES[family]
    found = prove(model, row)
    scaled = {f"{kind}.{layer}" for kind in ("attn_out", "mlp_out") for layer in range(3)}
    assert set(found.refused) == (scaled if family == "granite" else set()), found.refused
    kinds = {site.partition(".")[0] for site in found.points}
    assert ("mlp" in kinds) == (row.mlp is not None) and ("resid_mid" in kinds) == row.has_resid_mid(model.config)
    if family != "granite":  # what is multiplied before it is added is no sum that can be looked for
        assert discover(model, name=family).ports(model.config) == {
            site: port._replace(copied=False) for site, port in row.ports(model.config).items()
        }


@every_family
def test_reads_and_beginnings_are_the_models_own(family: str) -> None:
    subject = Subject(tiny(family), byte_tokenizer(), name=family)
    values = subject.read(TOKENS, subject.sites)
    with torch.no_grad():
        hidden = subject.model(TOKENS, output_hidden_states=True, use_cache=False)
    for layer in range(subject.n_layers):
        torch.testing.assert_close(values[f"resid_pre.{layer}"], hidden.hidden_states[layer])
    last = values[f"resid_post.{subject.n_layers - 1}"]
    torch.testing.assert_close(unembed(subject.model, subject.architecture, last), hidden.logits, rtol=1e-4, atol=1e-4)
    of, sites = torch.arange(3) % 2, [site for site in subject.sites if site.startswith(("mlp", "head", "resid_post"))]
    rows = torch.cat([TOKENS[:2, :6][of], TOKENS[:, 6:]], dim=1)
    whole = subject.read(rows, sites)
    for site in sites:
        ends = subject.read_endings(TOKENS[:2, :6], TOKENS[:, 6:], [site], of=of)[site]
        torch.testing.assert_close(ends, whole[site][:, 6:], rtol=1e-3, atol=1e-3, msg=site)


@every_family
def test_mlp_in_is_what_the_first_projections_take(family: str) -> None:
    """All modules that take it, leaf projections of the MLP among them, beside a plain hook on each leaf."""
    subject = Subject(tiny(family), byte_tokenizer(), name=family)
    block = subject.model.base_model.get_submodule(f"{subject.architecture.layers}.1")
    taken: dict[str, torch.Tensor] = {}
    for name, module in block.named_modules():
        if not list(module.children()) and any(part in name for part in FIRST_PROJECTIONS):
            module.register_forward_pre_hook(lambda _, args, name=name: taken.update({name: args[0]}))
    value = subject.read(TOKENS, ["mlp_in.1", "resid_post.1"])["mlp_in.1"]
    assert taken and all(torch.equal(flat.reshape_as(value), value) for flat in taken.values()), taken.keys()
    with subject.editing({"mlp_in.1": torch.zeros_like}):
        edited = subject.read(TOKENS, ["mlp_in.1", "head.1", "resid_post.1"])
    plain = subject.read(TOKENS, ["head.1", "resid_post.1"])
    assert not edited["mlp_in.1"].any() and torch.equal(edited["head.1"], plain["head.1"])
    assert not torch.allclose(edited["resid_post.1"], plain["resid_post.1"], atol=1e-3)


@every_family
def test_the_parts_of_a_logit_add_up(family: str) -> None:
    subject = Subject(tiny(family), byte_tokenizer(), name=family)
    batch = Batch.of(subject, ["import os"])
    if family == "granite":
        with pytest.raises(NeuronautError, match="the branch itself is off by 0.6"):
            logit_attribution(subject, batch, token=5)
        return
    found = logit_attribution(
        subject, batch, token=5, split=["head.1", *(["mlp.1"] if "mlp.1" in subject.sites else [])]
    )
    with torch.no_grad():
        logit = subject.logits(batch.tokens)[0, -1, 5]
    if subject.architecture.softcap is None:
        torch.testing.assert_close(found.values.sum(), logit, rtol=1e-3, atol=1e-3)


def test_a_family_of_the_day_is_read_as_one_of_the_table() -> None:
    """Nothing knows the name; neurons, heads and the stream are those of its class."""
    model = tiny("llama")
    model.config.model_type = "brand_new"
    subject = Subject(model, byte_tokenizer(), name="new")
    known = Subject(tiny("llama"), byte_tokenizer(), name="known")
    assert subject.sites == known.sites and subject.refused == {}
    for site, value in subject.read(TOKENS, subject.sites).items():
        assert torch.equal(value, known.read(TOKENS, [site])[site])


def test_a_block_that_is_no_such_sum_is_refused_in_one_line() -> None:
    """OPT's MLP runs on rows that are joined to one, so that no module reads the stream as it is."""
    ids = {key: value for key, value in _ALL.items() if key != "pad_token_id"}
    config = AutoConfig.for_model("opt", **ids, pad_token_id=1, ffn_dim=NEURONS, word_embed_proj_dim=WIDTH)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(
        NeuronautError, match="'opt', which is not in the table, and its first block is no sum"
    ) as error:
        discover(model, name="an OPT")
    assert "\n" not in str(error.value)


def test_a_model_that_reads_ahead_is_refused() -> None:
    config = AutoConfig.for_model("bert", **_ALL | {"pad_token_id": 0})
    with pytest.raises(NeuronautError, match="its tokens read what stands behind them"):
        discover(AutoModelForCausalLM.from_config(config).eval(), name="an encoder")


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_what_a_mutated_block_adds_is_not_found(family: str) -> None:
    model = tiny(family)
    for block in model.base_model.layers:
        block.register_forward_hook(
            lambda _module, _args, output: (output[0] + 1, *output[1:]) if isinstance(output, tuple) else output + 1
        )
    with pytest.raises(NeuronautError, match="no sum of an attention and an MLP"):
        discover(model, name=family)


@every_family
def test_patterns_are_proven_or_refused_by_name(family: str) -> None:
    """Falcon and XGLM take another softmax, DiffLlama two, and gpt-oss has a sink beside the tokens."""
    subject = Subject(tiny(family), byte_tokenizer(), name=family)
    if family in ("falcon", "xglm", "diffllama", "gpt_oss"):
        with pytest.raises(NeuronautError, match="its attention calls softmax"):
            patterns(subject, TOKENS, [1])
        return
    pattern = patterns(subject, TOKENS, [1])[1]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
