"""The subject on tiny random models of every family: proofs, refusals, reads, edits, loading and token strings."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPTNeoXForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from neuronaut.subject.architecture import ARCHITECTURES, Architecture, Port, Projections
from neuronaut.subject.conformance import unembed
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject, join_sites
from neuronaut.subject.vocabulary import byte_alphabet, token_strings
from tests.families import (
    D_HEAD,
    D_MODEL,
    FAMILIES,
    HEADS,
    NEURONS,
    VOCABULARY,
    byte_tokenizer,
    tiny_model,
    tiny_subject,
    tiny_tokens,
)

TOKENS = tiny_tokens()
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def read_all(subject: Subject) -> dict[str, Tensor]:
    return subject.read(TOKENS, subject.sites)


def layer_of(subject: Subject, index: int) -> Any:
    row = ARCHITECTURES[subject.model.config.model_type]
    return subject.model.base_model.get_submodule(f"{row.layers}.{index}")


# --- what the sites are, by independent computations -------------------------------------------


@every_family
def test_every_site_is_proven(family: str) -> None:
    subject = tiny_subject(family)
    kinds = [
        "resid_pre",
        "query",
        "key",
        "value",
        "head",
        "attn_out",
        "resid_mid",
        "mlp_in",
        "mlp",
        "mlp_out",
        "resid_post",
    ]
    if family == "gpt_neox":
        kinds.remove("resid_mid")
    assert subject.refused == {}
    assert subject.sites == ("embed", *(f"{kind}.{layer}" for layer in range(3) for kind in kinds))


@every_family
def test_sites_are_what_transformers_records(family: str) -> None:
    subject = tiny_subject(family)
    values = read_all(subject)
    with torch.no_grad():
        hidden = subject.model(TOKENS, output_hidden_states=True).hidden_states
    assert torch.equal(values["embed"], hidden[0])
    for layer in range(3):
        assert torch.equal(values[f"resid_pre.{layer}"], hidden[layer])
    for layer in range(2):
        assert torch.equal(values[f"resid_post.{layer}"], hidden[layer + 1])
    # The last hidden state that transformers records has been through the final norm.
    row = ARCHITECTURES[subject.model.config.model_type]
    final = subject.model.base_model.get_submodule(row.final_norm)
    assert torch.equal(final(values["resid_post.2"]), hidden[3])
    assert not torch.allclose(values["resid_post.2"], hidden[3], atol=0.1)
    torch.testing.assert_close(unembed(subject.model, row, values["resid_post.2"]), subject.logits(TOKENS))


@every_family
def test_residual_stream_adds_up(family: str) -> None:
    subject = tiny_subject(family)
    values = read_all(subject)
    for layer in range(3):
        middle = values[f"resid_pre.{layer}"] + values[f"attn_out.{layer}"]
        if family != "gpt_neox":
            torch.testing.assert_close(values[f"resid_mid.{layer}"], middle)
        torch.testing.assert_close(values[f"resid_post.{layer}"], middle + values[f"mlp_out.{layer}"])


@every_family
@pytest.mark.parametrize("start", [1, TOKENS.shape[1] - 1])
def test_endings_of_a_beginning_are_read_as_whole_rows_are(family: str, start: int) -> None:
    subject = tiny_subject(family)
    beginnings, of = TOKENS[:2, :start], torch.arange(len(TOKENS)) % 2
    endings = TOKENS[:, start:]
    rows = torch.cat([beginnings[of], endings], dim=1)
    whole = subject.read(rows, subject.sites)
    for site in subject.sites:
        found = subject.read_endings(beginnings, endings, [site], of=of)[site]
        torch.testing.assert_close(found, whole[site][:, start:], rtol=1e-4, atol=1e-4)


def values_per_head(subject: Subject, layer: Any, residual: Tensor) -> Tensor:
    """Each head's value vectors, from the weights: (row, head, position, d_head)."""
    kind = subject.model.config.model_type
    if kind == "gpt2":
        flat = layer.attn.c_attn(layer.ln_1(residual)).chunk(3, dim=-1)[2]
        return flat.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    if kind == "gpt_neox":
        fused = layer.attention.query_key_value(layer.input_layernorm(residual))
        return fused.unflatten(-1, (HEADS, 3, -1))[..., 2, :].transpose(1, 2)
    flat = layer.self_attn.v_proj(layer.input_layernorm(residual))
    return flat.unflatten(-1, (2, -1)).transpose(1, 2).repeat_interleave(HEADS // 2, dim=1)


@every_family
def test_head_is_pattern_times_values(family: str) -> None:
    subject = tiny_subject(family)
    values = read_all(subject)
    subject.model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = subject.model(TOKENS, output_attentions=True).attentions
    for index, pattern in enumerate(patterns):
        layer = layer_of(subject, index)
        z = pattern @ values_per_head(subject, layer, values[f"resid_pre.{index}"])
        torch.testing.assert_close(values[f"head.{index}"], z.transpose(1, 2).flatten(2), rtol=1e-4, atol=1e-5)


def neurons_of(subject: Subject, layer: Any, values: dict[str, Tensor], index: int) -> Tensor:
    kind = subject.model.config.model_type
    row = ARCHITECTURES[kind]
    before = values[f"resid_pre.{index}" if f"resid_mid.{index}" not in values else f"resid_mid.{index}"]
    normed = layer.get_submodule(row.resid_mid)(before)
    if kind == "gpt2":
        return layer.mlp.act(layer.mlp.c_fc(normed))
    if kind == "gpt_neox":
        return layer.mlp.act(layer.mlp.dense_h_to_4h(normed))
    return layer.mlp.act_fn(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)


@every_family
def test_neurons_are_what_the_down_projection_takes(family: str) -> None:
    subject = tiny_subject(family)
    values = read_all(subject)
    for index in range(3):
        expected = neurons_of(subject, layer_of(subject, index), values, index)
        torch.testing.assert_close(values[f"mlp.{index}"], expected)


def test_widths_are_measured() -> None:
    llama = tiny_subject("llama")
    assert {kind: llama.width(f"{kind}.1") for kind in ("resid_pre", "head", "attn_out", "mlp", "mlp_out")} == {
        "resid_pre": D_MODEL,
        "head": HEADS * D_HEAD,
        "attn_out": D_MODEL,
        "mlp": NEURONS,
        "mlp_out": D_MODEL,
    }
    assert tiny_subject("gpt2").width("mlp.0") == 4 * D_MODEL
    assert (llama.n_layers, llama.n_heads, llama.d_model, llama.context, llama.bos) == (3, HEADS, D_MODEL, 64, None)


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_proven_too(family: str, dtype: torch.dtype) -> None:
    subject = Subject(tiny_model(family).to(dtype=dtype), byte_tokenizer(), name="half")
    assert subject.refused == {}
    assert subject.read(TOKENS, ["mlp.1"])["mlp.1"].dtype == dtype


# --- a wrong table is refused -------------------------------------------------------------------


def with_row(monkeypatch: pytest.MonkeyPatch, family: str, row: Architecture) -> Subject:
    kind = tiny_model(family).config.model_type
    monkeypatch.setitem(ARCHITECTURES, kind, row)
    return tiny_subject(family)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gpt_neox_sequential", "llama", "gemma2"])
def test_swapped_branches_are_refused(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    row = ARCHITECTURES[tiny_model(family).config.model_type]
    swapped = replace(
        row, attention=row.mlp, mlp=row.attention, attention_norm=row.mlp_norm, mlp_norm=row.attention_norm
    )
    subject = with_row(monkeypatch, family, swapped)
    for layer in range(3):
        assert {f"{kind}.{layer}" for kind in ("head", "attn_out", "mlp", "mlp_out")} <= subject.refused.keys()
        assert f"resid_pre.{layer}" in subject.sites


def test_swapped_branches_of_equal_width_fire_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_model("gpt_neox").config
    config.intermediate_size = D_MODEL
    row = ARCHITECTURES["gpt_neox"]
    assert Subject(GPTNeoXForCausalLM(config), byte_tokenizer(), name="right").refused == {}
    monkeypatch.setitem(ARCHITECTURES, "gpt_neox", replace(row, attention=row.mlp, mlp=row.attention))
    refused = Subject(GPTNeoXForCausalLM(config), byte_tokenizer(), name="swapped").refused
    assert refused["head.0"] == refused["mlp_out.2"] == "its hook fired out of forward order"


class ActivationAsNeurons(Architecture):
    """The classic mistake for gated MLPs: the activation function's output, which lacks the product with up."""

    def ports(self, config: Any) -> dict[str, Port]:
        wrong = {f"mlp.{layer}": Port(f"layers.{layer}.mlp.act_fn", "output") for layer in range(3)}
        return super().ports(config) | wrong


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_activation_function_as_neurons_is_refused(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    row = ARCHITECTURES[family]
    wrong = ActivationAsNeurons(**{name: getattr(row, name) for name in row.__dataclass_fields__})
    subject = with_row(monkeypatch, family, wrong)
    assert subject.refused.keys() == {f"{kind}.{layer}" for kind in ("mlp_in", "mlp") for layer in range(3)}
    assert "mlp.down_proj" in subject.refused["mlp.0"]
    assert "is off by" in subject.refused["mlp.0"]
    with pytest.raises(NeuronautError, match=f"site mlp.1 of {family} is refused: .* is off by"):
        subject.read(TOKENS, ["mlp.1"])


@pytest.mark.parametrize(
    ("family", "change", "refused"),
    [
        pytest.param("llama", {"mlp": "mlp.act_fn"}, "mlp_out.0", id="act_fn as projection"),
        pytest.param("llama", {"mlp": "mlp.up_proj"}, "mlp.0", id="up projection as down projection"),
        pytest.param("gemma2", {"attention_norm": None}, "attn_out.0", id="contribution before its norm"),
        pytest.param("gemma2", {"softcap": None}, "resid_post.2", id="undeclared soft-cap"),
        pytest.param("gemma2", {"resid_mid": "post_attention_layernorm"}, "resid_mid.0", id="wrong norm"),
        pytest.param("gpt_neox", {"parallel": None}, "resid_mid.0", id="parallel taken for sequential"),
        pytest.param("gpt2", {"final_norm": "h.0.ln_1"}, "resid_post.2", id="wrong final norm"),
        pytest.param("gpt2", {"attention": "attn.c_porj"}, "head.0", id="no such module"),
        pytest.param("gpt2", {"neurons": "n_embd"}, "mlp.0", id="wrong width"),
        pytest.param("gpt2", {"projections": Projections(("c_attn",), groups=0)}, "value.0", id="thirds by head"),
        pytest.param("gpt2", {"projections": Projections(("c_proj",))}, "key.0", id="a projection of another width"),
        pytest.param("gpt_neox", {"projections": Projections(("query_key_value",))}, "value.0", id="heads by thirds"),
        pytest.param(
            "gpt_neox",
            {"projections": Projections(("query_key_value",), groups=0, order=("key", "query", "value"))},
            "query.0",
            id="keys as queries",
        ),
        pytest.param(
            "llama", {"projections": Projections(("q_proj", "v_proj", "k_proj"))}, "key.0", id="values as keys"
        ),
        pytest.param("llama", {"neurons_by": ("self_attn.q_proj",)}, "mlp_in.0", id="attention's input as the MLP's"),
        pytest.param("llama", {"neurons_by": ("mlp.gate_proj", "mlp.act_fn")}, "mlp_in.0", id="gate without up"),
    ],
)
def test_mutated_rows_are_refused(
    monkeypatch: pytest.MonkeyPatch, family: str, change: dict[str, Any], refused: str
) -> None:
    subject = with_row(monkeypatch, family, replace(ARCHITECTURES[family], **change))
    assert refused in subject.refused
    assert refused not in subject.sites
    with pytest.raises(NeuronautError, match=f"site {refused} of {family} is refused: "):
        subject.width(refused)


def test_a_module_that_runs_twice_is_refused() -> None:
    model: Any = tiny_model("gpt2")
    model.transformer.h[1].mlp = model.transformer.h[0].mlp
    subject = Subject(model, byte_tokenizer(), name="shared")
    assert subject.refused["mlp.1"] == "its hook fired 2 times in one forward pass"
    assert {"mlp.0", "mlp_out.0", "mlp.1", "mlp_out.1"} <= subject.refused.keys()
    assert "mlp.2" in subject.sites


def test_a_module_that_never_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(ARCHITECTURES["gpt2"], attention="attn.attn_dropout")
    assert "fired 0 times" in with_row(monkeypatch, "gpt2", row).refused["head.0"]


def test_nan_is_no_proof() -> None:
    model: Any = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[0, 0] = torch.nan
    refused = Subject(model, byte_tokenizer(), name="broken").refused
    assert "nan" in refused["mlp_out.1"]
    assert "mlp_out.0" not in refused


def test_a_huge_coordinate_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1e9
    monkeypatch.setitem(ARCHITECTURES, "llama", replace(ARCHITECTURES["llama"], mlp="self_attn.o_proj"))
    assert "mlp_out.0" in Subject(model, byte_tokenizer(), name="massive").refused


# --- reading ------------------------------------------------------------------------------------


def test_reads_agree_with_each_other() -> None:
    subject = tiny_subject("gpt2")
    together = read_all(subject)
    for site in subject.sites:
        assert torch.equal(subject.read(TOKENS, [site])[site], together[site])
    backwards = subject.read(TOKENS, ["resid_post.1", "mlp.0", "mlp.0", "embed", "resid_pre.0"])
    assert list(backwards) == ["resid_post.1", "mlp.0", "embed", "resid_pre.0"]
    assert all(torch.equal(value, together[site]) for site, value in backwards.items())


@pytest.mark.parametrize(
    ("site", "blocks", "norms"), [("embed", 0, 0), ("head.0", 0, 0), ("mlp.1", 1, 0), ("resid_post.1", 2, 0)]
)
def test_a_read_stops_after_its_last_site(site: str, blocks: int, norms: int) -> None:
    subject = tiny_subject("gpt2")
    model: Any = subject.model
    finished: list[str] = []
    for layer in model.transformer.h:
        layer.ln_1.register_forward_hook(lambda *_: finished.append("start"))
        layer.mlp.register_forward_hook(lambda *_: finished.append("block"))
    model.transformer.ln_f.register_forward_hook(lambda *_: finished.append("norm"))
    model.lm_head.register_forward_hook(lambda *_: finished.append("head"))
    subject.read(TOKENS, ["embed", site])
    assert (finished.count("block"), finished.count("norm"), finished.count("head")) == (blocks, norms, 0)
    assert finished.count("start") == {"embed": 0, "head.0": 1, "mlp.1": 2, "resid_post.1": 2}[site]


def state(model: PreTrainedModel) -> tuple[object, ...]:
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = tuple((len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules())
    return weights, hooks, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state()


def assert_unchanged(model: PreTrainedModel, before: tuple[Any, ...]) -> None:
    after: tuple[Any, ...] = state(model)
    assert all(torch.equal(before[0][name], tensor) for name, tensor in after[0].items())
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])


def test_reading_and_editing_leave_the_model_as_it_was() -> None:
    subject = tiny_subject("llama")
    foreign = subject.model.get_input_embeddings().register_forward_hook(lambda *_: None)
    before = state(subject.model)
    read_all(subject)
    subject.logits(TOKENS)
    with subject.editing({"mlp.1": torch.zeros_like, "resid_mid.0": torch.zeros_like}):
        read_all(subject)
    assert_unchanged(subject.model, before)
    foreign.remove()


def test_an_exception_leaves_no_hook() -> None:
    subject = tiny_subject("gpt2")
    before = state(subject.model)

    def fail(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), subject.editing({"resid_mid.1": fail, "mlp.2": fail}):
        subject.read(TOKENS, ["head.0", "resid_post.2"])
    with pytest.raises(NeuronautError), subject.editing({"mlp.0": torch.zeros_like, "mlp.9": torch.zeros_like}):
        pass
    assert_unchanged(subject.model, before)
    assert subject.read(TOKENS, ["resid_post.2"])["resid_post.2"].isfinite().all()


def test_a_hook_that_no_longer_fires_is_an_error() -> None:
    subject = tiny_subject("gpt2")
    model: Any = subject.model
    model.transformer.h[0].mlp = torch.nn.Identity()
    with pytest.raises(NeuronautError, match="the hook at mlp.0 of gpt2 fired 0 times"):
        subject.read(TOKENS, ["mlp.0", "resid_post.1"])
    with pytest.raises(NeuronautError, match="the hook at mlp.0 of gpt2 fired 0 times"):
        subject.read(TOKENS, ["mlp.0"])
    model.transformer.h[0].mlp = model.transformer.h[1].mlp
    with pytest.raises(NeuronautError, match="the hook at mlp.1 of gpt2 fired 2 times"):
        subject.read(TOKENS, ["mlp.1", "resid_post.1"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 65, dtype=torch.long), "a row has 65 tokens; gpt2 takes at most 64"),
        (torch.tensor([[0, VOCABULARY]]), "token id 300 is outside the vocabulary of gpt2, 0 to 299"),
        (torch.tensor([[-1, 3]]), "token id -1 is outside"),
        (torch.zeros(4, dtype=torch.long), "wanted .row, position."),
        (torch.zeros(1, 4), "dtype torch.float32"),
        (torch.zeros(1, 0, dtype=torch.long), r"shape \(1, 0\)"),
    ],
)
def test_bad_tokens_are_refused(tokens: Tensor, message: str) -> None:
    subject = tiny_subject("gpt2")
    with pytest.raises(NeuronautError, match=message):
        subject.read(tokens, ["embed"])
    with pytest.raises(NeuronautError, match=message):
        subject.logits(tokens)


def test_unknown_sites_name_the_known_ones() -> None:
    subject = tiny_subject("gpt_neox")
    with pytest.raises(NeuronautError, match=r"no site 'mlp.3'; it has embed, resid_pre.0-2, query.0-2, .*mlp.0-2"):
        subject.read(TOKENS, ["mlp.3"])
    with pytest.raises(NeuronautError, match="no site 'resid_mid.0'"):
        subject.width("resid_mid.0")
    with pytest.raises(NeuronautError, match="no site to read; gpt_neox has embed"):
        subject.read(TOKENS, [])
    assert join_sites(["embed", "mlp.0", "mlp.2", "mlp.3"]) == "embed, mlp.0, mlp.2-3"


# --- editing ------------------------------------------------------------------------------------


@every_family
def test_identity_edits_change_no_bit(family: str) -> None:
    subject = tiny_subject(family)
    plain = subject.logits(TOKENS)
    with torch.no_grad():
        assert torch.equal(plain, subject.model(TOKENS).logits)
    with subject.editing(dict.fromkeys(subject.sites, torch.clone)):
        assert torch.equal(subject.logits(TOKENS), plain)


@every_family
def test_edits_flow_on(family: str) -> None:
    subject = tiny_subject(family)
    plain, sites = subject.logits(TOKENS), [site for site in subject.sites if site.endswith(".1")]
    for site in sites:
        with subject.editing({site: lambda tensor: tensor + 1.0}):
            assert not torch.allclose(subject.logits(TOKENS), plain)
            shifted = subject.read(TOKENS, [site])[site]
        torch.testing.assert_close(shifted, subject.read(TOKENS, [site])[site] + 1.0)
    assert torch.equal(subject.logits(TOKENS), plain)


def test_editing_resid_mid_changes_both_paths() -> None:
    subject = tiny_subject("llama")
    layer = layer_of(subject, 1)
    wanted = torch.randn(*TOKENS.shape, D_MODEL, generator=torch.Generator().manual_seed(1))
    # Whatever the order of the edits, the later site has the last word.
    with subject.editing({"resid_mid.1": lambda _: wanted, "attn_out.1": torch.zeros_like}):
        edited = subject.read(TOKENS, ["resid_post.1", "resid_mid.1"])
    with torch.no_grad():
        expected = wanted + layer.mlp(layer.post_attention_layernorm(wanted))
    torch.testing.assert_close(edited["resid_mid.1"], wanted)
    torch.testing.assert_close(edited["resid_post.1"], expected)


def test_ablating_a_head_removes_its_output_alone() -> None:
    subject = tiny_subject("llama")
    plain = subject.read(TOKENS, ["head.0", "attn_out.0"])

    def without_head_two(z: Tensor) -> Tensor:
        heads = z.unflatten(-1, (HEADS, D_HEAD)).clone()
        heads[..., 2, :] = 0
        return heads.flatten(-2)

    with subject.editing({"head.0": without_head_two}):
        ablated = subject.read(TOKENS, ["attn_out.0"])["attn_out.0"]
    columns = slice(2 * D_HEAD, 3 * D_HEAD)
    weight = layer_of(subject, 0).self_attn.o_proj.weight[:, columns]
    torch.testing.assert_close(plain["attn_out.0"] - ablated, plain["head.0"][..., columns] @ weight.T)


# --- loading ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer(["hello world " * 9]).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_saved_model_comes_back(saved: Path) -> None:
    memory, loaded = tiny_subject("llama"), Subject.load(str(saved))
    assert loaded.name == "tiny-llama"
    assert loaded.revision == memory.revision != tiny_subject("llama", seed=1).revision
    assert torch.equal(loaded.logits(TOKENS), memory.logits(TOKENS))
    assert not any(module.training for module in loaded.model.modules())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    renamed = Subject.load(str(saved), dtype="bfloat16", name="other")
    assert (renamed.name, renamed.logits(TOKENS).dtype) == ("other", torch.bfloat16)


def test_loading_is_silent_and_leaves_no_trace(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verbosity, bars = logging.get_verbosity(), logging.set_tqdm_hook(None)
    before = list(warnings.filters), torch.get_rng_state()
    logging.set_verbosity_info()
    try:
        Subject.load(str(saved))
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(verbosity)
        assert logging.set_tqdm_hook(bars) is None
    assert list(warnings.filters) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert capfd.readouterr() == ("", "")


def test_the_device_is_found_where_none_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Subject.load(str(saved), device="auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if not torch.cuda.device_count():
        with pytest.raises(NeuronautError, match="device 'cuda' is not there"):
            Subject.load(str(saved), device="auto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype 'float8' is not known; wanted one of: float32, bfloat16, float16"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there; this machine has: cpu"),
        ({"device": "meta"}, "device 'meta' is not there"),
        ({"device": "toaster"}, "device 'toaster' is not there"),
        ({"name": "a b"}, "model name 'a b' does not fit"),
        ({"name": "a:b"}, "model name 'a:b' does not fit"),
    ],
)
def test_bad_options_are_refused(saved: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(NeuronautError, match=message) as caught:
        Subject.load(str(saved), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere/at/all", "there is no folder ./nowhere/at/all; give an existing folder"),
        ("nobody/nothing", "cannot get the config.json of nobody/nothing from the Hugging Face hub .* local folder"),
    ],
)
def test_a_name_that_stands_for_nothing(name: str, message: str) -> None:
    with pytest.raises(NeuronautError, match=message) as caught:
        Subject.load(name)
    assert "\n" not in str(caught.value)


def test_an_unsound_folder_is_one_clear_error(copy: Path) -> None:
    def failure() -> str:
        with pytest.raises(NeuronautError) as caught:
            Subject.load(str(copy))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    edit_config(copy, num_hidden_layers=4)
    assert "num_hidden_layers is 4, and the weights have 3 layers" in failure()
    edit_config(copy, num_hidden_layers=3, intermediate_size=NEURONS + 1)
    assert f"intermediate_size {NEURONS + 1} asks for" in failure()
    edit_config(copy, model_type="bert")
    assert "num_hidden_layers is 3, and the weights have 0 layers" in failure()
    edit_config(copy, model_type="llama", intermediate_size=NEURONS)
    (copy / "tokenizer.json").rename(copy / "aside")
    assert "cannot read the tokenizer" in failure()
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot read the safetensors weights" in failure()
    (copy / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), copy / "pytorch_model.bin")
    assert "no other format is read" in failure()
    (copy / "config.json").write_text("{")
    assert "config.json is not readable JSON" in failure()
    (copy / "config.json").unlink()
    assert "is not a model: it has no config.json" in failure()


def test_a_file_is_not_a_folder(saved: Path) -> None:
    with pytest.raises(NeuronautError, match="is a file; give the folder"):
        Subject.load(str(saved / "model.safetensors"))


def test_the_headless_base_model_is_refused() -> None:
    with pytest.raises(NeuronautError, match="without unembedding"):
        Subject(tiny_model("gpt2").base_model, byte_tokenizer(), name="base")


# --- token strings ------------------------------------------------------------------------------

TEXT = "def run(self):\n\treturn self.ça # 🙂 done\n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer([TEXT] * 50)


def test_byte_level_strings_join_to_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    subject = Subject(tiny_model("gpt2"), tokenizer, name="text")
    ids = subject.encode(TEXT)
    assert "".join(subject.decode_tokens(ids)) == TEXT
    assert {" self", " 🙂", "\t", "\n", "<|endoftext|>"} <= set(subject.vocabulary)
    assert subject.bos not in ids
    assert len(subject.vocabulary) == VOCABULARY


def test_bytes_that_are_no_text_are_shown_as_bytes() -> None:
    subject = tiny_subject("gpt2")
    assert subject.decode_tokens(subject.encode("é🙂")) == tuple(f"\\x{byte:02x}" for byte in "é🙂".encode())


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(max_codepoint=127)))
def test_any_ascii_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    strings = token_strings(tokenizer, count=VOCABULARY)
    assert "".join(strings[id] for id in tokenizer.encode(text, add_special_tokens=False)) == text


def test_byte_alphabet_is_the_tokenizers_own() -> None:
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    strings = token_strings(byte_tokenizer(), count=257)
    assert all(strings[1 + rank] for rank in range(256))


def test_sentencepiece_strings() -> None:
    pieces = {"<unk>": 0, "▁the": 1, "▁": 2, "cat": 3, "<0x0A>": 4, "<0xE2>": 5, "▁▁▁": 6}
    backend = Tokenizer(models.BPE(pieces, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")
    expected = ("<unk>", " the", " ", "cat", "\n", "\\xe2", "   ", "<s>", "<unused-8>", "<unused-9>")
    assert token_strings(tokenizer, count=10) == expected
