"""A configuration that disagrees with its weights, or says what cannot be: one line with file and field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from neuronaut.cli.main import main
from neuronaut.subject.address import SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.formats import load_dictionary
from neuronaut.subject.gate import MARGIN, Sweep, foreign_script, main_script
from neuronaut.subject.model import Subject

from .families import D_MODEL, HEADS, byte_tokenizer, tiny_model

D, F = 12, 30
ID = SourceId("demo", "resid_post.2", "sae")


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(NeuronautError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Models


@pytest.fixture(params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A saved model of three layers; what is changed below is its config.json."""
    tiny_model(request.param).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def own(folder: Path, field: str) -> str:
    """The name of a field in this family's config.json."""
    names = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd"}
    names |= {"hidden_act": "activation_function", "max_position_embeddings": "n_positions"}
    config = json.loads((folder / "config.json").read_text())
    return field if field in config else names[field]


def change(folder: Path, field: str, value: object) -> str:
    """Change a field of the configuration; returns what loading says."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    return refusal(lambda: Subject.load(str(folder)))


@pytest.mark.parametrize("layers", [1, 2, 4, 7])
def test_layers_that_the_file_does_not_hold(folder: Path, layers: int) -> None:
    field = own(folder, "num_hidden_layers")
    assert f"config.json: {field} is {layers}, and the weights have 3 layers" in change(folder, field, layers)


@pytest.mark.parametrize(
    "field", ["num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings"]
)
@pytest.mark.parametrize("value", [0, -1, 2.5, "4", True, [3], {"a": 1}, 10**30])
def test_a_count_that_is_none(folder: Path, field: str, value: object) -> None:
    name = own(folder, field)
    said = change(folder, name, value)
    assert f"config.json: {name} is {repr(value)[:60]}; wanted a whole number from 1" in said


def test_a_width_that_the_weights_do_not_have(folder: Path) -> None:
    name = own(folder, "hidden_size")
    wide = 2 * D_MODEL
    said = change(folder, name, wide)
    assert f"{name} {wide}" in said and "asks for" in said and "config.json" in said


def test_heads_that_do_not_divide_the_width(folder: Path) -> None:
    assert "config.json" in change(folder, own(folder, "num_attention_heads"), HEADS + 3)


@pytest.mark.parametrize("value", ["nosuch", "", 3, ["gelu"]])
def test_an_activation_function_that_does_not_exist(folder: Path, value: object) -> None:
    name = own(folder, "hidden_act")
    said = change(folder, name, value)
    assert f"config.json: {name} is {value!r}; wanted the name of an activation function" in said


@pytest.mark.parametrize("value", [3, ["gpt2"], {}, True])
def test_a_model_type_that_is_no_text(folder: Path, value: object) -> None:
    assert f"config.json: model_type is {value!r}; wanted a text" in change(folder, "model_type", value)


CONTENTS = {
    "a list": ("[1, 2]", "holds a list"),
    "a number": ("3", "holds a int"),
    "nested": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "is nested too deep"),
    "cut off": ('{"model_type": ', "is not readable JSON"),
    "not text": (b"\xff\xfe\x00", "is not readable JSON"),
    "nothing": ("", "is not readable JSON"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_config_that_is_no_object(folder: Path, name: str) -> None:
    content, message = CONTENTS[name]
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refusal(lambda: Subject.load(str(folder)))
    assert "config.json" in said and message in said


@pytest.mark.parametrize(
    "field", ["rope_parameters", "layer_types", "bos_token_id", "tie_word_embeddings", "rms_norm_eps"]
)
@pytest.mark.parametrize("value", ["x", [[]], {"rope_type": 3}, 10**400])
def test_whatever_else_is_wrong_is_one_line_or_does_not_matter(folder: Path, field: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    try:
        subject = Subject.load(str(folder))
    except NeuronautError as error:
        assert "\n" not in str(error) and "config.json" in str(error) or "tokenizer" in str(error)
    else:
        assert subject.n_layers == 3


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[1]", "{}", "[" * 100_000, '{"model": 3}'])
def test_a_tokenizer_that_makes_no_sense_is_one_line_or_does_not_matter(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    try:
        Subject.load(str(folder))
    except NeuronautError as error:
        assert "\n" not in str(error) and "tokenizer" in str(error)


# Dictionaries


def tensors(*names: str) -> dict[str, torch.Tensor]:
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shapes[name], generator=random) for name in (*("W_enc", "W_dec", "b_enc", "b_dec"), *names)
    }


def dictionary(folder: Path, config: object, *names: str, file: str = "sae_weights.safetensors") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    if file.endswith(".npz"):
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors(*names).items()}
        np.savez(folder / file, **arrays)
    else:
        save_file(tensors(*names), folder / file)
    if config is not None:
        (folder / "cfg.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def load(folder: Path) -> object:
    return load_dictionary(folder, id=ID, d_site=D)


SOUND: dict[str, Any] = {"architecture": "standard", "d_in": D, "d_sae": F, "normalize_activations": "none"}


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("d_in", "12", "a whole number"),
        ("d_sae", 0, "a whole number"),
        ("d_sae", 30.0, "a whole number"),
        ("d_sae", F + 1, f"{F + 1}, as d_sae of its cfg.json says"),
        ("d_in", D - 1, f"{D - 1}, as d_in of its cfg.json says"),
        ("k", "40", "a number, 0 or more"),
        ("k", float("inf"), "a number, 0 or more"),
        ("architecture", ["standard"], "a text"),
        ("architecture", {"a": 1}, "a text"),
        ("activation_fn", 3, "a text"),
        ("activation_fn_kwargs", [1], "an object"),
        ("activation_fn_kwargs", {"k": "40"}, "a number, 0 or more"),
        ("normalize_activations", ["none"], "a text, true or false"),
        ("apply_b_dec_to_input", "false", "true or false"),
        ("rescale_acts_by_decoder_norm", 1, "true or false"),
        ("metadata", [1], "an object"),
        ("metadata", {"hook_name": 3}, "a text"),
        ("metadata", {"model_from_pretrained_kwargs": "x"}, "an object"),
        ("hook_name", ["blocks.2.hook_resid_post", 2], "a text, or a list of texts"),
    ],
)
def test_a_field_of_a_dictionary_that_is_wrong_is_named(tmp_path: Path, field: str, value: object, wanted: str) -> None:
    said = refusal(lambda: load(dictionary(tmp_path / "sae", SOUND | {field: value})))
    inner = next(iter(value)) if isinstance(value, dict) and field != "architecture" else field
    assert "cfg.json" in said and inner in said and wanted in said


def test_k_of_a_topk_is_whole(tmp_path: Path) -> None:
    config = SOUND | {"architecture": "topk", "k": 4.5}
    assert "k 4.5" in refusal(lambda: load(dictionary(tmp_path / "sae", config)))


@pytest.mark.parametrize("name", [name for name in CONTENTS if name != "not text"])
def test_a_dictionarys_config_that_is_no_object(tmp_path: Path, name: str) -> None:
    content, message = CONTENTS[name]
    assert isinstance(content, str)
    said = refusal(lambda: load(dictionary(tmp_path / "sae", content)))
    assert "cfg.json" in said and message in said


@pytest.mark.parametrize("value", ["2.0", 0, -1, None, [2.0]])
def test_a_scale_that_is_none(tmp_path: Path, value: object) -> None:
    folder = dictionary(tmp_path / "sae", SOUND | {"normalize_activations": "expected_average_only_in"})
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": value}))
    said = refusal(lambda: load(folder))
    assert "scaling_factor" in said if value is not None else "--norm-scale" in said


def test_jumprelu_weights_without_a_config_are_not_guessed(tmp_path: Path) -> None:
    """SAELens takes b_dec off first where Gemma Scope does not, and their tensors have the same names."""
    folder = dictionary(tmp_path / "sae", None, "threshold")
    said = refusal(lambda: load(folder))
    assert "no cfg.json" in said and "apply_b_dec_to_input" in said
    # What it says to write is read, and makes the difference.
    config = json.loads(said[said.index("{") : said.index("}") + 1])
    assert config == {"architecture": "jumprelu", "d_in": D, "d_sae": F, "apply_b_dec_to_input": True}
    vectors, encoded = torch.randn(5, D, generator=torch.Generator().manual_seed(1)), []
    for subtract in (True, False):
        (folder / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": subtract}))
        encoded.append(load_dictionary(folder, id=ID, d_site=D).encode(vectors))
        t = tensors("threshold")
        linear = (vectors - t["b_dec"] * subtract) @ t["W_enc"] + t["b_enc"]
        torch.testing.assert_close(encoded[-1], linear * (linear > t["threshold"].clamp(min=0)))
    assert not torch.equal(*encoded)


def test_gemma_scopes_own_file_still_reads_without_a_config(tmp_path: Path) -> None:
    read = load_dictionary(dictionary(tmp_path / "sae", None, "threshold", file="params.npz"), id=ID, d_site=D)
    assert read.kind == "jumprelu" and not read.subtract_b_dec


# The gate


@pytest.mark.parametrize(
    ("declared", "other", "warns"),
    [
        (0.0004, 0.0001, None),
        (0.30, 0.30 - MARGIN / 2, None),
        (0.30, 0.10, "resid_post.3 is rebuilt better"),
        (1.7, 1.2, "fits none of them"),
        (1.7, 0.3, "resid_post.3 is rebuilt better"),
        (float("nan"), float("nan"), "fits none of them"),
        (0.2, 0.9, None),
    ],
)
def test_another_site_is_named_only_where_it_is_clearly_better(
    declared: float, other: float, warns: str | None
) -> None:
    warning = Sweep("resid_post.2", {"resid_post.2": declared, "resid_post.3": other}).warning
    assert (warning is None) if warns is None else (warning is not None and warns in warning)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, world 123", "Latin"),
        ("Съешь же ещё этих мягких булок, and tea", "Cyrillic"),
        ("我能吞下玻璃而不伤身体", "CJK"),
        ("मैं काँच खा सकता हूँ", "Devanagari"),
        ("123 --- !", None),
        ("", None),
        ("abcдеж", None),
    ],
)
def test_the_script_of_a_text(text: str, script: str | None) -> None:
    assert main_script([text]) == script


def test_only_another_script_than_the_vocabularys_is_suspect() -> None:
    assert foreign_script(["Съешь"], [" the", "ing"]) is not None
    assert foreign_script(["Съешь"], ["ешь", "ть", "a"]) is None
    assert foreign_script(["text"], [" the"]) is None


def test_a_refusal_names_the_corpus_language_where_that_is_likely(tmp_path: Path) -> None:
    words = ["Съешь", "же", "ещё", "этих", "мягких", "французских", "булок", "да", "выпей", "чаю"]
    documents = [" ".join(words[(i * j + j) % 10] for j in range(120)) for i in range(1, 30)]
    (tmp_path / "ru.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
    width = 128
    folder = tmp_path / "sae"
    folder.mkdir()
    save_file(
        {
            "W_enc": torch.eye(width),
            "W_dec": torch.eye(width),
            "b_enc": -torch.ones(width),
            "b_dec": 9 * torch.ones(width),
        },
        folder / "sae_weights.safetensors",
    )
    (folder / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": width, "d_sae": width}))
    arguments = [
        "harvest",
        "demo",
        "resid_post.2",
        "--sae",
        str(folder),
        "--tokens",
        "4k",
        "-d",
        str(tmp_path / "x.db"),
    ]
    refused = CliRunner().invoke(main, [*arguments, "--corpus", str(tmp_path / "ru.jsonl")])
    assert refused.exit_code == 1
    assert "the corpus is mostly Cyrillic and the model's vocabulary Latin" in refused.output
    native = CliRunner().invoke(main, [*arguments, "--corpus", "stdlib"])
    assert native.exit_code == 1 and "mostly" not in native.output
