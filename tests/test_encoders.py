"""Encoders as subjects: proven, read exactly in batches of any lengths, and refused where there is no next token."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from neuronaut.cli.main import main
from neuronaut.data.harvest.activations import neurons, read_columns, read_last, read_pivots, tiles
from neuronaut.subject.architecture import ARCHITECTURES
from neuronaut.subject.attention import patterns
from neuronaut.subject.conformance import prove
from neuronaut.subject.discovery import discover
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.formats_report import report_on
from neuronaut.subject.model import Subject
from tests.encoders import (
    CONTEXT,
    ENCODERS,
    HEADS,
    UNKNOWN,
    WORDS,
    sentencepiece_tokenizer,
    tiny_encoder,
    tiny_encoder_subject,
    wordpiece_tokenizer,
)

every_encoder = pytest.mark.parametrize("name", ENCODERS)
SITES = ("resid_mid.1", "mlp.1", "head.2", "attn_out.2", "resid_post.2")


def windows(*lengths: int, width: int = 9, seed: int = 0) -> np.ndarray:
    """Random windows of these lengths, padded to one width. (row, position)"""
    rows = np.random.default_rng(seed).integers(5, 20, (len(lengths), width))
    return np.where(np.arange(width) < np.array(lengths)[:, None], rows, -1)


@every_encoder
def test_every_row_is_proven_and_found_without_the_table(name: str) -> None:
    model = tiny_encoder(name)
    row = ARCHITECTURES[ENCODERS[name][0]]
    found = prove(model, row)
    assert found.refused == {} and len(found.points) == 34
    assert {check.claim.partition(".")[0] for check in found.checks} and all(c.error is not None for c in found.checks)
    ports, known = (
        {site: port._replace(copied=False) for site, port in any_row.ports(model.config).items()}
        for any_row in (discover(model, name=name), row)
    )
    assert ports == known


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_encoder_that_the_table_lacks_is_found(name: str) -> None:
    subject = tiny_encoder_subject(name)
    assert not subject.causal and subject.refused == {} and len(subject.sites) == 34


@every_encoder
def test_sites_are_the_models_own(name: str) -> None:
    subject = tiny_encoder_subject(name)
    tokens = torch.from_numpy(windows(9, 9))
    values = subject.read(tokens, subject.sites)
    with torch.no_grad():
        whole = subject.model(tokens, output_hidden_states=True)
    for layer in range(subject.n_layers):
        torch.testing.assert_close(values[f"resid_pre.{layer}"], whole.hidden_states[layer])
    last = values["resid_post.2"]
    path = subject.architecture.final_norm
    finished = last if path is None else subject.model.get_submodule(path)(last)
    torch.testing.assert_close(finished, whole.last_hidden_state)
    values_of = {kind: values[f"{kind}.1"] for kind in ("value", "head")}
    heads = values_of["value"].unflatten(-1, (HEADS, -1)).transpose(1, 2)
    mixed = patterns(subject, tokens, [1])[1] @ heads
    torch.testing.assert_close(mixed.transpose(1, 2).flatten(2), values_of["head"], rtol=1e-4, atol=1e-4)


@every_encoder
def test_a_row_is_the_same_alone_and_in_any_batch(name: str) -> None:
    """Rows of many lengths, beside the model itself on one row without padding."""
    subject = tiny_encoder_subject(name)
    rows = windows(9, 3, 1, 7, 9, 5)
    sources = neurons(subject, SITES)
    for source in sources:
        read = read_columns(subject, source, rows, range(source.width))
        for ids, together in zip(rows, read, strict=True):
            own = ids[ids >= 0]
            framed = [*subject.bos_prefix, *own.tolist(), *subject.eos_suffix]
            alone = subject.read(torch.tensor([framed]), [source.id.site])[source.id.site][0, len(subject.bos_prefix) :]
            torch.testing.assert_close(torch.from_numpy(together[: len(own)]), alone[: len(own)], rtol=1e-4, atol=1e-4)
            assert not together[len(own) :].any()


@every_encoder
def test_a_window_has_the_same_bits_whatever_batch_it_came_in(name: str) -> None:
    subject = tiny_encoder_subject(name)
    sources = neurons(subject, ["mlp.1", "resid_post.2"])
    full, mixed = windows(*[9] * 40), windows(*[9] * 40)
    mixed[1:] = windows(*range(1, 10), *range(1, 10), *range(1, 10), *range(1, 10), 4, 5, 6, seed=1)
    for one, other in zip(tiles(subject, sources, full), tiles(subject, sources, mixed), strict=True):
        if one.rows.start == 0:
            assert torch.equal(one.activations[0], other.activations[0])


@every_encoder
def test_tokens_read_both_sides_and_pivots_have_their_windows(name: str) -> None:
    subject = tiny_encoder_subject(name)
    (source,) = neurons(subject, ["mlp.2"])
    rows = windows(9, 9)
    rows[1, :4] = rows[0, :4]
    pivots, features = np.array([3, 3]), np.array([0, 0])
    values = read_pivots(subject, source, rows, pivots, features)
    assert values[0] != values[1]
    np.testing.assert_array_equal(values, read_columns(subject, source, rows, [0])[:, 3, 0])
    with pytest.raises(NeuronautError, match="is an encoder"):
        read_last(subject, source, [(1, 2)], [0])


@every_encoder
def test_edits_reach_all_that_reads_the_stream(name: str) -> None:
    """The stream put to zero between the branches leaves what the MLP makes of nothing."""
    subject = tiny_encoder_subject(name)
    tokens = torch.from_numpy(windows(9, 4))
    with subject.editing({"resid_mid.1": torch.zeros_like}):
        edited = subject.read(tokens, ["resid_mid.1", "mlp_out.1", "resid_post.1"])
    assert float(edited["resid_mid.1"].abs().max()) < 1e-4
    block = subject.model.get_submodule(f"{subject.architecture.layers}.1")
    norms = subject.architecture.stream_norms
    wanted = block.get_submodule(norms[1])(edited["mlp_out.1"]) if norms else edited["mlp_out.1"]
    torch.testing.assert_close(edited["resid_post.1"], wanted, rtol=1e-4, atol=1e-4)


def mutations() -> list[tuple[str, dict[str, Any], str]]:
    return [
        ("bert", {"stream_norms": ("attention.output.LayerNorm", "attention.output.LayerNorm")}, "mlp.1"),
        ("bert", {"stream_norms": None}, "resid_mid.1"),
        ("bert", {"attention": "attention.self.value"}, "head.1"),
        ("roberta", {"mlp": "intermediate.dense"}, "mlp.1"),
        ("modernbert", {"resid_mid": "attn_norm"}, "resid_mid.1"),
        ("modernbert", {"final_norm": "embeddings.norm"}, "resid_post.2"),
        ("t5_gated", {"mlp": "layer.1.DenseReluDense.wi_0"}, "mlp.1"),
        ("t5", {"final_norm": None}, "resid_post.2"),
    ]


@pytest.mark.parametrize(("name", "change", "site"), mutations())
def test_mutated_rows_are_refused(name: str, change: dict[str, Any], site: str) -> None:
    row = replace(ARCHITECTURES[ENCODERS[name][0]], **change)
    assert site in prove(tiny_encoder(name), row).refused


def test_an_encoder_that_is_taken_for_causal_is_refused() -> None:
    masked = AutoModelForMaskedLM.from_config(tiny_encoder("bert").config).eval()
    found = prove(masked, replace(ARCHITECTURES["bert"], bidirectional=False))
    assert not found.points and "tokens behind a token change nothing at resid_post.1 is off" in found.refused["mlp.1"]
    assert not Subject(masked, wordpiece_tokenizer(), name="bert").causal


def test_a_family_that_reads_both_sides_where_its_config_says_so() -> None:
    """As EmbeddingGemma, a Gemma 3 without a mask."""
    settings = {**ENCODERS["bert"][1], "head_dim": 8, "num_key_value_heads": 2, "use_bidirectional_attention": True}
    model = AutoModel.from_config(AutoConfig.for_model("gemma3_text", **settings)).eval()
    subject = Subject(model, wordpiece_tokenizer(), name="gemma")
    assert not subject.causal and subject.refused == {}


def test_an_encoder_without_a_mask_is_refused() -> None:
    """A hook that spoils the mask stands for a family that does not take one."""
    model = tiny_encoder("bert")
    model.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | {"attention_mask": None}), with_kwargs=True)
    found = prove(model, ARCHITECTURES["bert"])
    assert (
        not found.points and "padding behind a row changes nothing at resid_post.1 is off by" in found.refused["mlp.1"]
    )


def test_rows_have_what_the_tokenizer_puts_around_a_text() -> None:
    bert = tiny_encoder_subject("bert")
    assert bert.row("the cat") == bert.tokenizer("the cat")["input_ids"] == [2, 5, 6, 3]
    assert bert.convention.sentence == "BOS before and EOS behind each row: its tokenizer adds [CLS] and [SEP]"
    assert bert.room == CONTEXT - 3
    never = Subject(bert.model, wordpiece_tokenizer(), name="bert", bos="never")
    assert never.row("the cat") == [5, 6] and not never.convention.agrees(bert.convention)
    t5 = tiny_encoder_subject("t5")
    assert t5.row("the cat") == t5.tokenizer("the cat")["input_ids"] and t5.row("the cat")[-1] == 1
    assert t5.convention.sentence == "EOS behind each row: its tokenizer adds </s>"


def test_roberta_keeps_its_first_positions() -> None:
    subject = tiny_encoder_subject("roberta")
    assert subject.context == CONTEXT - 1
    full = windows(subject.room, width=subject.room)
    assert np.isfinite(read_columns(subject, neurons(subject, ["mlp.1"])[0], full, [0])).all()


def test_strings_of_pieces_join_to_the_text() -> None:
    for tokenizer in (wordpiece_tokenizer(), sentencepiece_tokenizer()):
        subject = Subject(tiny_encoder("bert"), tokenizer, name="x")
        assert "".join(subject.decode_tokens(subject.encode("the cat walking, and"))) == " the cat walking, and"


def test_what_needs_the_next_token_says_so() -> None:
    subject = tiny_encoder_subject("bert")
    with pytest.raises(NeuronautError, match="bert is an encoder, .* it has no next-token logits"):
        subject.logits(torch.tensor([[2, 5, 3]]))
    with pytest.raises(NeuronautError, match="is an encoder, .* rows are read whole"):
        subject.read_endings(torch.tensor([[2]]), torch.tensor([[5]]), ["mlp.1"], of=torch.tensor([0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder and texts on disk, as the command line wants them."""
    folder, rng = tmp_path_factory.mktemp("encoder"), random.Random(0)
    tiny_encoder("bert").save_pretrained(folder / "bert")
    wordpiece_tokenizer().save_pretrained(folder / "bert")
    (folder / "texts").mkdir()
    for number in range(60):
        (folder / "texts" / f"{number}.txt").write_text(" ".join(rng.choices(WORDS[:9], k=30)))
    return folder


@pytest.mark.parametrize("command", ["patch", "sweep", "circuit"])
def test_pairs_are_refused_before_anything_is_said_about_their_answers(folder: Path, command: str) -> None:
    edits = {"patch": ["mlp.1:0=patch"], "sweep": ["mlp.1:0=patch", "--over", "layers"], "circuit": []}[command]
    pair = ["--clean", "the cat", "--corrupted", "the dog", "--answer", "sat", "--wrong", "ran"]
    result = CliRunner().invoke(main, [command, str(folder / "bert"), *edits, *pair])
    assert result.exit_code == 1
    assert "Error: bert is an encoder" in result.output and "answer follows" not in result.output


@pytest.mark.parametrize("kind", ["topk", "transcoder", "crosscoder"])
def test_a_dictionary_is_trained_whose_loss_is_not_measured(folder: Path, tmp_path: Path, kind: str) -> None:
    site = {"topk": "resid_post.1", "transcoder": "mlp_in.1", "crosscoder": "resid_post.0-1"}[kind]
    sizes = ["--width", "64", "-k", "4", "--tokens", "2k", "--window", "16", "--out", str(tmp_path / "own")]
    arguments = ["train", str(folder / "bert"), site, "--kind", kind, "--corpus", str(folder / "texts"), *sizes]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "loss recovered not measured: an encoder has no next-token loss\n" in result.output
    card = json.loads((tmp_path / "own" / "card.json").read_text())
    assert card["loss"] is None and card["loss_reason"] and 0 < card["fvu"] < math.inf
    assert report_on(str(tmp_path / "own")).readable


def test_padding_inside_a_row_is_refused() -> None:
    subject = tiny_encoder_subject("bert")
    with pytest.raises(NeuronautError, match="pad rows at their end only"):
        subject.read(torch.tensor([[2, -1, 3]]), ["mlp.1"])
