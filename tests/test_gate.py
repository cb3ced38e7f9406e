"""The gate on the built-in model: its dictionary, in two public layouts, passes; each with a seeded fault is refused or
told. The faults are put into the files, so that the whole way from there to the verdict is tried."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from neuronaut.cli.main import main
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.activations import read_together
from neuronaut.labelling.opening import sample
from neuronaut.subject.address import SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.formats import load_dictionary, save_dictionary
from neuronaut.subject.gate import check, sweep
from neuronaut.subject.model import Subject
from neuronaut.subject.opening import open_source

SITE = "resid_post.2"
SITES = ("resid_post.1", SITE, "resid_post.3", "resid_mid.2", "attn_out.2", "mlp_out.2")
WIDTH, FEATURES = 128, 1024
Tensors = dict[str, torch.Tensor]


@cache
def vectors() -> Mapping[str, torch.Tensor]:
    """Some tokens of the standard library at every site."""
    subject = Subject.load("demo")
    tokens = sample(subject, Corpus.load("stdlib"), window=64, tokens=1500)
    return read_together(subject, SITES, tokens, at=[SITE])


@cache
def topk() -> Dictionary:
    source = open_source(Subject.load("demo"), SourceId("demo", SITE, "sae"))
    assert isinstance(source, Dictionary)
    return source


@cache
def jumprelu() -> Dictionary:
    """The same features behind one threshold, at which as many are active, without taking b_dec off."""
    sae = topk()
    b_enc = sae.b_enc - sae.b_dec @ sae.W_enc
    linear = vectors()[SITE] @ sae.W_enc + b_enc
    threshold = linear.flatten().kthvalue(int(linear.numel() * (1 - sae.k / FEATURES))).values
    return replace(
        sae, kind="jumprelu", k=0, b_enc=b_enc, subtract_b_dec=False, threshold=threshold.expand(FEATURES).contiguous()
    )


def as_saelens(folder: Path, fault: Callable[[Tensors], Tensors]) -> None:
    save_dictionary(topk(), folder, dtype=torch.float32)
    save_file(
        {name: tensor.contiguous() for name, tensor in fault(topk().tensors()).items()},
        folder / "sae_weights.safetensors",
    )


def as_gemma_scope(folder: Path, fault: Callable[[Tensors], Tensors]) -> None:
    folder.mkdir(parents=True)
    tensors = {name.replace("W_", "w_"): tensor.contiguous() for name, tensor in fault(jumprelu().tensors()).items()}
    save_file(tensors, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "type": "sae", "hf_hook_point_in": "model.layers.2.output"}
    (folder / "config.json").write_text(json.dumps(config))


LAYOUTS = {"SAELens": as_saelens, "Gemma Scope 2": as_gemma_scope}
FAULTS: dict[str, Callable[[Tensors], Tensors]] = {
    "decoder in the other memory order": lambda t: {**t, "W_dec": t["W_dec"].T.reshape(FEATURES, WIDTH)},
    "encoder in the other memory order": lambda t: {**t, "W_enc": t["W_enc"].T.reshape(WIDTH, FEATURES)},
    "scale missing": lambda t: {**t, "W_enc": t["W_enc"] / 4, "W_dec": t["W_dec"] * 4, "b_dec": t["b_dec"] * 4},
    "scale folded twice": lambda t: {**t, "W_enc": t["W_enc"] * 4, "W_dec": t["W_dec"] / 4, "b_dec": t["b_dec"] / 4},
    "decoder bias missing": lambda t: {**t, "b_dec": torch.zeros(WIDTH)},
    "encoder bias missing": lambda t: {**t, "b_enc": torch.zeros(FEATURES)},
    "decoder's sign": lambda t: {**t, "W_dec": -t["W_dec"]},
    "encoder's sign": lambda t: {**t, "W_enc": -t["W_enc"]},
}


def read(folder: Path, site: str = SITE) -> Dictionary:
    return load_dictionary(folder, id=SourceId("demo", site, "sae"), d_site=WIDTH)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_clean_dictionary_passes_without_a_word(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path / "sae", lambda tensors: tensors)
    gate = check(read(tmp_path / "sae"), vectors()[SITE])
    assert gate.admitted and gate.fvu < 0.25 and gate.doubts == ()
    assert sweep(read(tmp_path / "sae"), vectors()).warning is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_or_doubted(tmp_path: Path, layout: str, fault: str) -> None:
    LAYOUTS[layout](tmp_path / "sae", FAULTS[fault])
    gate = check(read(tmp_path / "sae"), vectors()[SITE], force=True)
    assert not gate.admitted or gate.doubts


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("site", [site for site in SITES if site != SITE])
def test_another_layer_or_site_is_refused_or_told(tmp_path: Path, layout: str, site: str) -> None:
    LAYOUTS[layout](tmp_path / "sae", lambda tensors: tensors)
    with pytest.raises(NeuronautError, match=rf"was trained on resid_post\.2, but {site} is asked for"):
        read(tmp_path / "sae", site)
    dictionary = read(tmp_path / "sae")
    moved = replace(dictionary, id=replace(dictionary.id, site=site))
    warning = sweep(moved, vectors()).warning
    assert warning is not None and warning.startswith(f"{SITE} is rebuilt better")


def inspected(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(main, ["sources", "inspect", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    return row


def test_inspect_tells_what_it_is_and_how_it_fits(tmp_path: Path) -> None:
    as_gemma_scope(tmp_path / "sae", lambda tensors: tensors)
    row = inspected(str(tmp_path / "sae"), "demo")
    assert (row["format"], row["reads"], row["problem"]) == ("Gemma Scope 2", SITE, None)
    assert row["told_by"] == "w_enc, w_dec, b_enc, b_dec and threshold" and row["configuration"] == "config.json"
    assert isinstance(gate := row["gate"], dict) and isinstance(parts := row["parts"], dict)
    assert gate["admitted"] and gate["doubts"] == [] and gate["warning"] is None
    assert gate["fvu"] == pytest.approx(gate["sites"][SITE]) and set(gate["sites"]) > {"resid_post.1", "resid_mid.2"}
    assert (parts["kind"], parts["features"], parts["d_in"], parts["subtracts_b_dec"]) == (
        "jumprelu",
        FEATURES,
        WIDTH,
        False,
    )


def test_inspect_gives_the_figures_of_what_harvest_refuses(tmp_path: Path) -> None:
    as_saelens(tmp_path / "sae", FAULTS["decoder's sign"])
    text = CliRunner().invoke(main, ["sources", "inspect", str(tmp_path / "sae"), "demo"]).stdout
    assert "refused by harvest" in text and "wants a factor -1.00" in text and "nearby" in text


def test_inspect_prints_the_tensors_of_what_is_not_known(tmp_path: Path) -> None:
    save_file({"up": torch.ones(3, 2), "down": torch.ones(2, 3)}, tmp_path / "weights.safetensors")
    row = inspected(str(tmp_path))
    assert row["format"] is None and row["tensors"] == {"up": [3, 2], "down": [2, 3]} and row["parts"] is None
    text = CliRunner().invoke(main, ["sources", "inspect", str(tmp_path)]).stdout
    assert "up 3x2" in text and "not known" in text and "docs/extending/dictionary-format.md" in text


def test_inspect_tells_what_is_known_and_not_read(tmp_path: Path) -> None:
    save_file({"W_enc_3": torch.ones(6, 4), "b_enc_3": torch.ones(6)}, tmp_path / "W_enc_3.safetensors")
    row = inspected(str(tmp_path))
    assert row["format"] == "one layer of a cross-layer dictionary" and "W_dec_N side by side" in str(row["problem"])
    assert row["how"] is None


def test_options_of_a_model_want_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["sources", "inspect", str(tmp_path), "--corpus", "x.jsonl"])
    assert result.exit_code == 2 and "--corpus is of a MODEL" in result.output
