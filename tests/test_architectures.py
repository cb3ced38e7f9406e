"""Every row of the architecture table, on a tiny random model of its family: proven, and found without the table."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from neuronaut.causal.edits import Edit
from neuronaut.causal.intervene import apply
from neuronaut.causal.logit_attribution import logit_attribution
from neuronaut.causal.prompts import Batch
from neuronaut.subject.architecture import ARCHITECTURES, Architecture
from neuronaut.subject.attention import patterns
from neuronaut.subject.attention_claims import KINDS
from neuronaut.subject.conformance import EXPERTS, prove, unembed
from neuronaut.subject.discovery import discover
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.loading import take_text_tower
from neuronaut.subject.model import Subject, join_sites
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
_LATENT = (
    _GROUPED
    | {"num_key_value_heads": HEADS, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    | {"q_lora_rank": 12, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10}
    | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
)
"""Latent attention, whose values have a width of their own, and experts from the second layer on."""
_SCALED = {"residual_multiplier": 0.4, "logits_scaling": 3.0, "embedding_multiplier": 2.0}

CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(ARCHITECTURES, _GROUPED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT),
    **dict.fromkeys(("gptj", "codegen"), _GPT | {"rotary_dim": 4, "n_ctx": CONTEXT}),
    **dict.fromkeys(("gpt_neox", "persimmon", "biogpt"), _ALL),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "olmoe"), _FEW_EXPERTS | {"shared_expert_intermediate_size": 16}),
    **dict.fromkeys(("mixtral", "phimoe", "gpt_oss"), _LOCAL_EXPERTS),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _LATENT),
    "opt": _ALL | {"pad_token_id": 1, "ffn_dim": NEURONS, "word_embed_proj_dim": WIDTH},
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
NO_HEADS = ("diffllama", "deepseek_v2", "deepseek_v3")
"""The families whose heads have no queries, keys and values of their own: two patterns each, or keys from a latent."""
NO_PATTERN = ("falcon", "xglm", "diffllama", "gpt_oss")
"""The families whose attention is not one softmax of PyTorch's over the tokens."""
every_family = pytest.mark.parametrize(
    "family", [name for name, row in ARCHITECTURES.items() if row.bidirectional is not True]
)


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
    experts = {f"mlp.{layer}" for layer in range(model.config.num_hidden_layers) if _has_experts(model, row, layer)}
    heads = {f"{kind}.{layer}" for kind in KINDS for layer in range(3)} if family in NO_HEADS else set[str]()
    assert set(found.refused) == heads | (scaled if family == "granite" else experts), found.refused
    assert {found.refused[site] for site in experts} <= {EXPERTS}
    kinds = {site.partition(".")[0] for site in found.points}
    assert ("resid_mid" in kinds) == row.has_resid_mid(model.config)
    # What is multiplied before it is added, or joined to one row, is no sum that can be looked for; and the first block
    # is taken to stand for all.
    if family not in ("granite", "opt", "deepseek_v2", "deepseek_v3"):
        rows = (discover(model, name=family), row)
        ports, known = (
            {site: port._replace(copied=False) for site, port in any_row.ports(model.config).items()}
            for any_row in rows
        )
        unknown = experts | heads
        assert ports == {site: port for site, port in known.items() if site not in unknown}


def _has_experts(model: PreTrainedModel, row: Architecture, layer: int) -> bool:
    block = model.base_model.get_submodule(f"{row.layers}.{layer}")
    return row.experts is not None and not hasattr(block.get_submodule(row.experts), "down_proj")


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
def test_head_is_what_attention_makes_of_query_key_and_value(family: str) -> None:
    """Against the scores and the pattern that the model computes, where its softmax can be watched."""
    subject = Subject(tiny(family), byte_tokenizer(), name=family)
    if family in NO_HEADS:
        with pytest.raises(NeuronautError, match="site value.1 of .* is refused: "):
            subject.read(TOKENS, ["value.1"])
        return
    values = subject.read(TOKENS, ["query.1", "key.1", "value.1", "head.1"])
    kv = subject.heads("value.1")
    assert kv and subject.heads("query.1") == HEADS and kv == subject.heads("key.1")
    assert (
        values["query.1"].shape[-1] // HEADS == values["key.1"].shape[-1] // kv == values["head.1"].shape[-1] // HEADS
    )
    per_head = values["value.1"].unflatten(-1, (kv, -1)).repeat_interleave(HEADS // kv, 2).transpose(1, 2)
    if family not in NO_PATTERN:
        mixed = patterns(subject, TOKENS, [1])[1] @ per_head
        torch.testing.assert_close(mixed.transpose(1, 2).flatten(2), values["head.1"], rtol=1e-4, atol=1e-4)
    half = {f"{kind}.1": torch.zeros_like for kind in KINDS}
    with subject.editing(half):
        edited = subject.read(TOKENS, [*half, "head.1"])
    assert not any(vectors.any() for vectors in edited.values())


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


_ROUTED = _GROUPED | {
    "num_key_value_heads": HEADS,
    "head_dim": 8,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
_ROUTED |= {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
NEW: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "nanochat": (_GROUPED, {}),
    "granite_swa": (_GROUPED, {}),
    "hyperclovax": (_GROUPED, {}),
    "lfm2": (_GROUPED, {}),
    "flex_olmo": (_GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 1}, {}),
    "glm4_moe": (_ROUTED, {"mlp.1-2": "experts take the MLP's place"}),
    "dots1": (_ROUTED, {"mlp.1-2": "experts take the MLP's place"}),
    "ctrl": (_IDS | {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": 3, "n_head": HEADS, "dff": NEURONS}, {}),
    "lfm3": (
        _GROUPED | {"layer_types": ["conv", "full_attention", "full_attention"]},
        {
            "query.0, key.0, value.0, head.0": "the config calls this layer 'conv', which has no heads of attention",
            "query.1-2, key.1-2, value.1-2": "no modules were found beside the attention's output projection",
        },
    ),
}
"""Families that are not in the table, with a small config of each, and part of the reason by the sites refused."""


@pytest.mark.parametrize("family", NEW)
def test_a_family_that_is_not_in_the_table_is_found_and_proven(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert family not in ARCHITECTURES
    config, refused = NEW[family]
    monkeypatch.setitem(CONFIGS, family, config)
    subject = Subject(tiny(family), byte_tokenizer(), name=family)
    why = {
        reason: [site for site, own in subject.refused.items() if own == reason] for reason in subject.refused.values()
    }
    assert {
        join_sites(sites): next((part for part in refused.values() if part in reason), reason)
        for reason, sites in why.items()
    } == refused
    values = subject.read(TOKENS, subject.sites)
    with torch.no_grad():
        hidden = subject.model(TOKENS, output_hidden_states=True, use_cache=False).hidden_states
    for layer in range(subject.n_layers):
        torch.testing.assert_close(values[f"resid_pre.{layer}"], hidden[layer])
        added = values[f"attn_out.{layer}"] + values[f"mlp_out.{layer}"]
        torch.testing.assert_close(
            values[f"resid_pre.{layer}"] + added, values[f"resid_post.{layer}"], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("family", "config", "why"),
    [
        ("doge", _GROUPED, r"its block 0 \(DogeDecoderLayer\) is no sum of an attention and an MLP"),
        ("mamba", _ALL, r"its block 0 \(MambaBlock\) is no sum of an attention and an MLP"),
        ("rwkv", _ALL, r"its block 0 \(RwkvBlock\) is no sum of an attention and an MLP"),
        ("xlstm", _IDS | {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4}, "gives no num_attention_heads"),
        ("xmod", _ALL | {"is_decoder": True, "pad_token_id": 1}, "do not run through it .ValueError: Input language"),
    ],
)
def test_a_family_that_cannot_be_found_is_refused_with_the_reason(
    family: str, config: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doge scales the stream channel by channel, Mamba and RWKV have no attention, xLSTM no heads of it."""
    monkeypatch.setitem(CONFIGS, family, config)
    with pytest.raises(NeuronautError, match=why) as error:
        Subject(tiny(family), byte_tokenizer(), name=family)
    assert "\n" not in str(error.value)


def test_a_block_that_is_no_such_sum_is_refused_in_one_line() -> None:
    """A family whose blocks scale what they add, as Granite's do."""
    model = tiny("granite")
    model.config.model_type = "brand_new"
    with pytest.raises(
        NeuronautError, match="'brand_new', of which the table has no row, and its block 0 .* is no sum"
    ) as error:
        Subject(model, byte_tokenizer(), name="new")
    assert "\n" not in str(error.value)


def test_an_opt_of_another_build_is_refused_in_one_line() -> None:
    """OPT-350M norms behind its sums; some of the family have no final norm, and so none of their logits is proven."""
    with pytest.raises(NeuronautError, match="of which the table has no row, and its block 0 .* is no sum"):
        Subject(tiny("opt", do_layer_norm_before=False), byte_tokenizer(), name="opt-350m")
    subject = Subject(tiny("opt", _remove_final_layer_norm=True), byte_tokenizer(), name="bare")
    assert set(subject.refused) == {"resid_post.2"} and "cannot be computed" in subject.refused["resid_post.2"]


def test_a_stream_that_is_several_at_once_is_refused() -> None:
    """Gemma 3n keeps four versions of the residual stream, which its blocks mix."""
    own = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    shape = {"head_dim": 8, "num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 3}
    config = AutoConfig.for_model("gemma3n_text", **_GROUPED | own | shape, activation_sparsity_pattern=None)
    with pytest.raises(NeuronautError, match=r"its blocks pass tensors of shape \(4, 2, 8, 32\)"):
        discover(AutoModelForCausalLM.from_config(config).eval(), name="a Gemma 3n")


_IMAGES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def image_model(family: str) -> PreTrainedModel:
    """A model of text and images, small."""
    config = AutoConfig.for_model(family)
    text = _GROUPED | {"head_dim": 8, "model_type": config.text_config.model_type}
    images = _IMAGES | {"image_size": 28, "patch_size": 14, "model_type": config.vision_config.model_type}
    config = AutoConfig.for_model(family, text_config=text, vision_config=images)
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval()


@pytest.mark.parametrize("family", ["gemma3", "llava", "mistral3", "internvl", "idefics3"])
def test_the_text_of_an_image_model_is_read_by_its_text_class(family: str) -> None:
    whole = image_model(family)
    subject = Subject(take_text_tower(whole, name=family), byte_tokenizer(), name=family)
    assert len(subject.sites) == 34 and not subject.refused
    with torch.no_grad():
        torch.testing.assert_close(subject.logits(TOKENS), whole(input_ids=TOKENS, use_cache=False).logits)
    assert take_text_tower(subject.model, name=family) is subject.model


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("aya_vision", "read by its Cohere2ForCausalLM is off by"),
        ("qwen2_vl", "no ...ForCausalLM of its text alone"),
        ("paligemma", "read what stands behind them"),
    ],
)
def test_an_image_model_whose_text_is_not_its_classes_is_refused(family: str, why: str) -> None:
    """Aya Vision leaves the scale of its logits out, Qwen2-VL has positions of its own, PaliGemma reads both ways."""
    with pytest.raises(NeuronautError, match=why):
        take_text_tower(image_model(family), name=family)


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
    if family in NO_PATTERN:
        with pytest.raises(NeuronautError, match="its attention calls softmax"):
            patterns(subject, TOKENS, [1])
        return
    pattern = patterns(subject, TOKENS, [1])[1]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))


def test_scores_that_are_masked_twice_are_edited() -> None:
    """GPT-Neo adds two masks, so that masked scores are minus infinity before and after."""
    subject = Subject(tiny("gpt_neo"), byte_tokenizer(), name="gpt_neo")
    batch = Batch.of(subject, ["abcdef"])
    with apply(subject, batch, [Edit.parse("score.1:1*=0.5")]) as ledger:
        subject.logits(batch.tokens)
    assert 0 < ledger.reports[0].max_change < torch.inf
