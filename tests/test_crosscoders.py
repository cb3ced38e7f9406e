"""Dictionaries of several sites: the layouts they are read from, their edits at every site, the gate, training.

The references are the formulas of the layouts, written out; an edit is held to what the model gives when a hook of the
test's own adds the feature's decoder rows.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from neuronaut.causal.attribution_patching import attribution_patching
from neuronaut.causal.edits import Edit
from neuronaut.causal.generation import generate
from neuronaut.causal.grids import Grid
from neuronaut.causal.intervene import Materials, apply
from neuronaut.causal.logit_attribution import logit_attribution
from neuronaut.causal.measures import Effect, fidelity
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.readouts import activation
from neuronaut.causal.runs import compare, gather, patching
from neuronaut.causal.sweeps import sweep
from neuronaut.cli.main import main
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.activations import read_columns
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.store.store import Store
from neuronaut.data.training import run
from neuronaut.data.training.run import train
from neuronaut.data.training.trainer import Recipe, Trainer
from neuronaut.labelling.inspect import describe
from neuronaut.labelling.opening import LoadOptions, open_sources, pass_gate, try_dictionary
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.directions import direction
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.formats import load_dictionary, save_crosscoder
from neuronaut.subject.formats_layers import MissingLayersError
from neuronaut.subject.model import Subject
from neuronaut.subject.opening import open_dictionary
from neuronaut.subject.sources import join_vectors, split_vectors
from tests.families import tiny_tokens
from tests.test_transcoders import LAYER, subject, transcoder

D, F, LAYERS = 12, 30, 3
Tensors = dict[str, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def write(folder: Path, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, object] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {key: value.contiguous().clone() for key, value in tensors.items()}
    if name.endswith(".pt"):
        torch.save(contiguous, folder / name)
    else:
        save_file(contiguous, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(path: Path, site: str, **options: object) -> Dictionary:
    return load_dictionary(path, id=SourceId("m", site, "x"), d_site=D, **options)


# Layouts


@pytest.mark.parametrize("skip", [False, True])
def test_layers_of_gemma_scope_2(tmp_path: Path, skip: bool) -> None:
    """A file a layer with a slot for each layer of the model; what comes before a layer holds zeros."""
    vectors = [draw(9, D, seed=layer) for layer in range(LAYERS)]
    whole = torch.zeros(LAYERS, 9, D)
    for layer in range(LAYERS):
        tensors = {"w_enc": draw(D, F), "w_dec": draw(F, LAYERS, D), "b_enc": draw(F), "b_dec": draw(D)}
        tensors["w_dec"][:, :layer] = 0
        tensors |= {"threshold": torch.full((F,), 0.4), **({"affine_skip_connection": draw(D, D)} if skip else {})}
        write(tmp_path / "clt" / "width_1k", f"params_layer_{layer}.safetensors", tensors)
        codes = vectors[layer] @ tensors["w_enc"] + tensors["b_enc"]
        codes = codes * (codes > 0.4)
        whole += torch.einsum("bf,fld->lbd", codes, tensors["w_dec"])
        whole[layer] += tensors["b_dec"] + (vectors[layer] @ tensors["affine_skip_connection"] if skip else 0.0)
        dictionary = load(tmp_path / "clt" / "width_1k", f"mlp_in.{layer}")
        assert dictionary.reads == (f"mlp_in.{layer}",)
        assert dictionary.writes == tuple(f"mlp_out.{later}" for later in range(layer, LAYERS))
        torch.testing.assert_close(dictionary.encode(vectors[layer]), codes)
    first = load(tmp_path / "clt" / "width_1k", "mlp_in.0")
    assert first.companions is not None
    rebuilt = split_vectors(first.reconstruct(vectors[0]), first.writes)
    for other in first.companions():
        for site, part in split_vectors(
            other.reconstruct(vectors[int(other.id.site.partition(".")[2])]), other.writes
        ).items():
            rebuilt[site] = rebuilt[site] + part
    torch.testing.assert_close(join_vectors(rebuilt, first.writes), whole.transpose(0, 1).flatten(1))


def test_a_layer_of_gemma_scope_2s_crosscoder_reads_one_site_of_several(tmp_path: Path) -> None:
    config = {"type": "crosscoder", "hf_hook_point_in": "model.layers.{4,9}.output"}
    tensors = {"w_enc": draw(D, F), "w_dec": draw(F, 2, D), "b_enc": draw(F), "b_dec": draw(D)}
    for layer in range(2):
        write(tmp_path, f"params_layer_{layer}.safetensors", {**tensors, "threshold": torch.zeros(F)}, config)
    dictionary = load(tmp_path, "resid_post.9")
    assert (dictionary.reads, dictionary.writes) == (("resid_post.9",), ("resid_post.4", "resid_post.9"))
    torch.testing.assert_close(dictionary.W_dec, tensors["w_dec"].flatten(1))
    torch.testing.assert_close(dictionary.b_dec, torch.cat([torch.zeros(D), tensors["b_dec"]]))
    with pytest.raises(NeuronautError, match=r"for each of resid_post\.4, resid_post\.9, and resid_post\.5 is asked"):
        load(tmp_path, "resid_post.5")


@pytest.mark.parametrize("threshold", [False, True])
def test_layers_of_circuit_tracer(tmp_path: Path, threshold: bool) -> None:
    """W_enc_N and W_dec_N side by side; a decoder has slots from its own layer on."""
    (tmp_path / "config.yaml").write_text("feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n")
    for layer in range(LAYERS):
        tensors = {f"W_enc_{layer}": draw(F, D), f"b_enc_{layer}": draw(F), f"b_dec_{layer}": draw(D)}
        tensors |= {f"threshold_{layer}": torch.full((F,), 0.3)} if threshold else {}
        write(tmp_path, f"W_enc_{layer}.safetensors", tensors)
        decoder = draw(F, LAYERS - layer, D)
        write(tmp_path, f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": decoder})
        vectors, dictionary = draw(7, D), load(tmp_path, f"resid_mid.{layer}")
        codes = vectors @ tensors[f"W_enc_{layer}"].T + tensors[f"b_enc_{layer}"]
        codes = codes * (codes > 0.3) if threshold else codes.relu()
        torch.testing.assert_close(dictionary.encode(vectors), codes)
        written = torch.einsum("bf,fld->bld", codes, decoder)
        written[:, 0] += tensors[f"b_dec_{layer}"]
        torch.testing.assert_close(dictionary.reconstruct(vectors), written.flatten(1))
        assert dictionary.writes == tuple(f"mlp_out.{later}" for later in range(layer, LAYERS))


def crosscoder_tensors() -> Tensors:
    return {"W_enc": draw(2, D, F), "W_dec": draw(F, 2, D), "b_enc": draw(F), "b_dec": draw(2, D)}


HOOKS = ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"]


def close_to_formula(dictionary: Dictionary, tensors: Tensors, threshold: Tensor | float) -> None:
    vectors = draw(8, 2, D)
    codes = torch.einsum("bld,ldf->bf", vectors, tensors["W_enc"]) + tensors["b_enc"]
    codes = codes * (codes > threshold)
    torch.testing.assert_close(dictionary.encode(vectors.flatten(1)), codes)
    rebuilt = torch.einsum("bf,fld->bld", codes, tensors["W_dec"]) + tensors["b_dec"]
    torch.testing.assert_close(dictionary.reconstruct(vectors.flatten(1)), rebuilt.flatten(1))
    assert dictionary.reads == dictionary.writes == ("resid_post.1", "resid_post.3")


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_a_crosscoder_and_its_own_layout(tmp_path: Path, threshold: float | None) -> None:
    tensors = crosscoder_tensors()
    more = {} if threshold is None else {"threshold": torch.full((F,), threshold)}
    dictionary = load(write(tmp_path / "a", "cc.safetensors", tensors | more, {"hook_names": HOOKS}), "resid_post.3")
    close_to_formula(dictionary, tensors, threshold or 0.0)
    save_crosscoder(dictionary, tmp_path / "b")
    again = load(tmp_path / "b", "resid_post.3")
    assert again.revision == dictionary.revision
    close_to_formula(again, tensors, threshold or 0.0)


@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("code", [None, 1, 2, 4])
def test_dictionary_learnings_crosscoders(tmp_path: Path, features_first: bool, code: int | None) -> None:
    tensors = crosscoder_tensors()
    decoder = tensors["W_dec"] if features_first else tensors["W_dec"].transpose(0, 1)
    file = {"encoder.weight": tensors["W_enc"], "encoder.bias": tensors["b_enc"]}
    file |= {"decoder.weight": decoder, "decoder.bias": tensors["b_dec"]}
    norms = tensors["W_dec"].norm(dim=2)
    threshold = {None: torch.zeros(F), 1: 9 / norms.sum(1), 2: 9 / norms.norm(dim=1), 4: torch.full((F,), 9.0)}[code]
    if code is not None:
        file |= {"k": torch.tensor(4), "threshold": torch.tensor(9.0), "code_normalization_id": torch.tensor(code)}
    path = write(tmp_path, "ae.pt", file, {"hook_names": HOOKS, "trainer": {"dict_class": "BatchTopKCrossCoder"}})
    close_to_formula(load(path, "resid_post.3", allow_pickle=True), tensors, threshold)


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        ({}, {}, "2 sites, or models, and its configuration names none"),
        ({}, {"hook_point": HOOKS[1]}, r"names 1, resid_post\.3; wanted 2 sites .* import --evidence"),
        ({"W_dec": draw(F, 2, D + 1)}, {"hook_names": HOOKS}, r"W_dec \(30, 2, 13\)"),
        ({"b_dec": draw(D)}, {"hook_names": HOOKS}, r"b_dec \(12,\)"),
        ({"W_enc": draw(2, F, D)}, {"hook_names": HOOKS}, r"W_enc \(2, 30, 12\)"),
        ({"gate": draw(F)}, {"hook_names": HOOKS}, "gate in a crosscoder"),
        ({}, {"hook_names": HOOKS[::-1]}, r"trained on resid_post\.1, but resid_post\.3 is asked"),
        ({}, {"hook_names": ["blocks.1.ln1", HOOKS[1]]}, "none of the sites"),
        ({}, {"hook_names": [1, 2]}, "hook_names is"),
    ],
)
def test_what_is_no_crosscoder_is_refused(
    tmp_path: Path, change: Tensors, config: dict[str, object], reason: str
) -> None:
    with pytest.raises(NeuronautError, match=reason):
        load(write(tmp_path, "cc.safetensors", crosscoder_tensors() | change, config), "resid_post.3")


def test_a_layer_alone_cannot_be_judged(tmp_path: Path) -> None:
    tensors = {"w_enc": draw(D, F), "w_dec": draw(F, 4, D), "b_enc": draw(F), "b_dec": draw(D)}
    tensors["w_dec"][:, :2] = 0
    write(tmp_path / "clt" / "x", "params_layer_2.safetensors", {**tensors, "threshold": torch.zeros(F)})
    dictionary = load(tmp_path / "clt" / "x", "mlp_in.2")
    assert dictionary.writes == ("mlp_out.2", "mlp_out.3") and dictionary.companions is not None
    with pytest.raises(MissingLayersError, match="layers 0, 1, 3 of 4 are not in"):
        list(dictionary.companions())


# Edits

WIDTH = 64
READS = ("resid_post.0", "resid_post.1")


@cache
def cross_layer() -> Dictionary:
    """The neurons of a layer, which write to the next MLP's output as well."""
    own = transcoder(LAYER)
    more = draw(own.width, own.d_out, seed=5) * 0.3
    return Dictionary(
        id=SourceId("relu", f"mlp_in.{LAYER}", "clt"),
        kind="standard",
        W_enc=own.W_enc,
        W_dec=torch.cat([own.W_dec, more], dim=1),
        b_enc=own.b_enc,
        b_dec=torch.cat([own.b_dec, torch.zeros(own.d_out)]),
        subtract_b_dec=False,
        targets=(f"mlp_out.{LAYER}", f"mlp_out.{LAYER + 1}"),
        companions=lambda: iter(()),
    )


@cache
def crosscoder() -> Dictionary:
    d = subject().d_model
    return Dictionary(
        id=SourceId("relu", READS[-1], "cc"),
        kind="standard",
        W_enc=draw(2 * d, F),
        W_dec=draw(F, 2 * d, seed=1),
        b_enc=draw(F),
        b_dec=draw(2 * d),
        subtract_b_dec=False,
        targets=READS,
        inputs=READS,
    )


def prompts(seed: int = 0) -> Batch:
    tokens = tiny_tokens(3, 10, seed=seed)
    tokens[:, 0] = 0  # BOS
    return Batch(tokens, torch.tensor([10, 10, 10]))


def logits_with(changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
    with subject().editing(changes):
        return subject().logits(prompts().tokens)[:, -1]


def materials(source: Dictionary) -> Materials:
    return Materials(sources={f"{source.id.site}@{source.id.dictionary}": source})


def test_an_edit_of_a_cross_layer_feature_adds_its_decoder_at_every_site() -> None:
    source, index = cross_layer(), 5
    plain = subject().read(prompts().tokens, [source.id.site])[source.id.site]
    change = 2.0 - source.encode(plain.flatten(0, 1))[:, index].unflatten(0, plain.shape[:2])
    change[:, 0] = 0  # BOS is not edited.
    rows = split_vectors(source.W_dec[index], source.writes)
    changes = {site: lambda x, row=row: x + change[..., None] * row for site, row in rows.items()}
    outcome = compare(subject(), prompts(), [Edit.parse(f"mlp_in.{LAYER}@clt:5=2")], materials=materials(source))
    torch.testing.assert_close(outcome.after, logits_with(changes), rtol=1e-4, atol=1e-4)
    assert outcome.reports[0].fired == 1 and (outcome.after - outcome.before).abs().max() > 0.01


@pytest.mark.parametrize("text", ["5=2", "5,7*=3", "3=mean", "5=patch"])
def test_an_edit_of_a_crosscoders_feature_keeps_the_error_at_every_site(text: str) -> None:
    """The vectors of the plain run, plus the change, at all sites: no site sees what the one before was changed by."""
    source, edit = crosscoder(), Edit.parse(f"{READS[-1]}@cc:{text}")
    given = gather(subject(), [edit], materials=materials(source), reference=prompts(3), source_run=prompts(4))
    read = subject().read(prompts().tokens, READS)
    vectors = join_vectors(read, READS)[:, 1:].flatten(0, 1)
    features = torch.tensor(edit.units)
    now = source.encode(vectors, features)
    wanted: Mapping[str, Callable[[], Tensor | float]] = {
        "5=2": lambda: 2.0,
        "5,7*=3": lambda: 3 * now,
        "3=mean": lambda: source.encode(_text_vectors(3), features).mean(0),
        "5=patch": lambda: source.encode(_text_vectors(4), features),
    }
    moved = (torch.zeros_like(now) + wanted[text]() - now) @ source.W_dec[features]
    parts = split_vectors(moved.unflatten(0, (3, 9)), READS)

    def put(site: str, tensor: Tensor) -> Tensor:
        return torch.cat([tensor[:, :1], read[site][:, 1:] + parts[site]], dim=1)

    outcome = compare(subject(), prompts(), [edit], materials=given)
    torch.testing.assert_close(
        outcome.after, logits_with({site: partial(put, site) for site in READS}), rtol=1e-4, atol=1e-4
    )
    assert (outcome.after - outcome.before).abs().max() > 0.01


def _text_vectors(seed: int) -> Tensor:
    return join_vectors(subject().read(prompts(seed).tokens, READS), READS)[:, 1:].flatten(0, 1)


def test_an_edit_that_changes_nothing_leaves_every_logit() -> None:
    edit = Edit.parse(f"{READS[-1]}@cc:5*=1")
    with apply(subject(), prompts(), [edit], materials=materials(crosscoder()), may_idle=True) as ledger:
        after = subject().logits(prompts().tokens)
    torch.testing.assert_close(after, subject().logits(prompts().tokens))
    assert ledger.reports[0].max_change == 0


def test_what_no_forward_pass_can_do_is_refused() -> None:
    edit, given = Edit.parse(f"{READS[-1]}@cc:5=2"), materials(crosscoder())
    with pytest.raises(NeuronautError, match=r"changes resid_post\.0, which comes before resid_post\.1.* no text"):
        generate(subject(), prompts(), [edit], tokens=2, materials=given)
    with (
        pytest.raises(NeuronautError, match=r"mlp\.0:1=0 changes the same prompt; give it alone"),
        apply(subject(), prompts(), [edit, Edit.parse("mlp.0:1=0")], materials=given),
    ):
        pass
    with pytest.raises(NeuronautError, match="the attribution of a logit is of one site"):
        logit_attribution(subject(), prompts(), token=3, split=[crosscoder()])
    pairs = Pairs(prompts(), prompts(4), torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))
    patch = Edit.parse(f"{READS[-1]}@cc:5=patch")
    with pytest.raises(NeuronautError, match="a prediction by gradients is of one site"):
        attribution_patching(subject(), pairs, Grid.of(patch), materials=given)


def logits_patched(source: Dictionary, base: Batch, donor: Batch, unit: int, place: int) -> Tensor:
    """One forward with hooks: at a position, what a feature's activation in the donor adds at every site."""
    run, ahead = subject(), source.writes == source.reads
    here, there = (
        source.encode(join_vectors(run.read(batch.tokens, source.reads), source.reads)[:, place])[:, unit]
        for batch in (base, donor)
    )
    rows = split_vectors((there - here)[:, None] * source.W_dec[unit], source.writes)
    plain = run.read(base.tokens, source.writes)

    def put(site: str, tensor: Tensor) -> Tensor:
        moved = tensor.clone()
        moved[:, place] = (plain[site] if ahead else tensor)[:, place] + rows[site]
        return moved

    with run.editing({site: partial(put, site) for site in source.writes}):
        return run.logits(base.tokens)[:, -1]


@pytest.mark.parametrize("make", [cross_layer, crosscoder])
@pytest.mark.parametrize("at_once", [3, 64])
def test_each_cell_of_a_sweep_is_the_feature_patched_by_hand(make: Callable[[], Dictionary], at_once: int) -> None:
    source = make()
    pairs = Pairs.aligned(subject(), prompts(), prompts(4), torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))
    edit = Edit.parse(f"{source.id.site}@{source.id.dictionary}:0=patch")
    grid = Grid.of(edit, units=[*range(6)], positions=["9", "4"])
    found = sweep(subject(), pairs, grid, metrics=("logit_difference",), materials=materials(source), at_once=at_once)
    largest, each = 0.0, torch.arange(3)
    for cell in found.cells:
        assert cell.edit.units is not None
        for name, base, donor in (("denoise", pairs.corrupted, pairs.clean), ("noise", pairs.clean, pairs.corrupted)):
            logits = logits_patched(source, base, donor, cell.edit.units[0], int(str(cell.edit.positions)))
            wanted = logits[each, pairs.answers] - logits[each, pairs.wrong]
            effect = cell.effect("logit_difference", name)
            assert isinstance(effect, Effect)
            assert effect.patched == pytest.approx(wanted.tolist(), abs=1e-4)
            largest = max(largest, *(abs(a - b) for a, b in zip(effect.patched, effect.corrupted, strict=True)))
        alone = patching(subject(), pairs, [cell.edit], materials=materials(source), may_idle=True)
        assert cell.max_change["noise"] == pytest.approx(alone["noise"].reports[0].max_change, rel=1e-4, abs=1e-6)
    assert largest > 0.01
    assert found.provenance.dictionaries == {f"{source.id.site}@{source.id.dictionary}": source.revision}


def test_a_sweep_of_a_crosscoder_reads_the_plain_run_once_for_all_cells() -> None:
    pairs = Pairs.aligned(subject(), prompts(), prompts(4), torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))
    grid = Grid.of(Edit.parse(f"{READS[-1]}@cc:0=patch"), units=range(F))
    ran: list[int] = []
    hook = subject().model.base_model.register_forward_pre_hook(lambda *_: ran.append(1))
    with hook:
        sweep(subject(), pairs, grid, metrics=("kl",), materials=materials(crosscoder()), at_once=3 * F)
    # Whatever else is measured once, no cell has a plain run of its own.
    assert len(ran) < F


def test_text_is_written_under_a_cross_layer_feature() -> None:
    edit = Edit.parse(f"mlp_in.{LAYER}@clt:5=40")
    written = generate(subject(), prompts(), [edit], tokens=3, materials=materials(cross_layer()))
    alone = generate(subject(), prompts(), [edit], tokens=3, materials=materials(cross_layer()), cached=False)
    assert written.tokens == alone.tokens and written.reports[0].max_change > 1


def test_the_direction_is_what_stands_behind_the_last_site() -> None:
    clt, cc = (direction(subject(), source, Feature(source.id, 4)).vector for source in (cross_layer(), crosscoder()))
    torch.testing.assert_close(clt, cross_layer().W_dec[4].unflatten(0, (2, -1)).sum(0))
    torch.testing.assert_close(cc, crosscoder().W_dec[4].chunk(2)[1])


def test_a_readout_and_the_fidelity_see_all_sites() -> None:
    feature = Feature(crosscoder().id, 4)
    readout = activation(crosscoder(), feature)
    vectors = join_vectors(subject().read(prompts().tokens, READS), READS)[:, -1]
    torch.testing.assert_close(
        readout.read(readout.run(subject(), prompts()), torch.zeros(0)), crosscoder().encode(vectors)[:, 4]
    )
    assert fidelity(subject(), cross_layer(), prompts()).unexplained is None
    found = fidelity(subject(), crosscoder(), prompts())
    assert found.unexplained is not None and found.unexplained > 1 and found.rebuilt_loss != found.loss


# On the built-in model

SITES = ("resid_post.1", "resid_post.2")


@pytest.fixture(scope="module")
def demo() -> Subject:
    return Subject.load("demo")


@pytest.fixture(scope="module")
def stdlib() -> Corpus:
    lines = Path(torch.__file__).with_name("functional.py").read_text(encoding="utf-8").splitlines()
    return Corpus.of("lines", ["\n".join(lines[i : i + 20]) for i in range(0, 1600, 20)])


@pytest.fixture(scope="module")
def principal(demo: Subject, stdlib: Corpus) -> Tensors:
    """A crosscoder of both tails of half of the principal components of two sites together."""
    ids = [demo.encode(document.text)[:63] for _, document in stdlib]
    rows = torch.tensor([[demo.bos, *row] for row in ids if len(row) == 63])
    x = join_vectors(demo.read(rows, SITES), SITES)[:, 1:].flatten(0, 1)
    mean = x.mean(0)
    basis = torch.linalg.svd(x - mean, full_matrices=False)[2][:100].T
    encoder = torch.cat([basis, -basis], dim=1)
    return {
        "W_enc": encoder.unflatten(0, (2, -1)),
        "W_dec": encoder.T.unflatten(1, (2, -1)),
        "b_enc": -mean @ encoder,
        "b_dec": mean.unflatten(0, (2, -1)),
    }


FAULTS: dict[str, Callable[[Tensors], Tensors]] = {
    "encoders exchanged": lambda t: {**t, "W_enc": t["W_enc"].flip(0)},
    "decoders exchanged": lambda t: {**t, "W_dec": t["W_dec"].flip(1)},
    "encoder transposed": lambda t: {**t, "W_enc": t["W_enc"].transpose(1, 2).reshape(t["W_enc"].shape)},
    "decoder transposed": lambda t: {**t, "W_dec": t["W_dec"].permute(1, 2, 0).reshape(t["W_dec"].shape)},
    "sign of one decoder": lambda t: {**t, "W_dec": t["W_dec"] * torch.tensor([1.0, -1.0])[:, None]},
    "sign of the encoder": lambda t: {**t, "W_enc": -t["W_enc"]},
    "scale of one decoder": lambda t: {**t, "W_dec": t["W_dec"] * torch.tensor([3.0, 1.0])[:, None]},
    "scale of one encoder": lambda t: {**t, "W_enc": t["W_enc"] * torch.tensor([1.0, 4.0])[:, None, None]},
    "bias of one site": lambda t: {**t, "b_dec": t["b_dec"] * torch.tensor([[0.0], [1.0]])},
    "sites exchanged": lambda t: {**FAULTS["encoders exchanged"](t), **_only(FAULTS["decoders exchanged"](t))},
}


def _only(tensors: Tensors) -> Tensors:
    return {"W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"].flip(0)}


def put_crosscoder(folder: Path, tensors: Tensors) -> Path:
    return write(
        folder, "cc.safetensors", tensors, {"hook_names": [f"blocks.{site[-1]}.hook_resid_post" for site in SITES]}
    )


def open_at(demo: Subject, folder: Path) -> Dictionary:
    return open_dictionary(demo, SourceId("demo", SITES[-1], "cc"), str(folder))


def test_a_clean_crosscoder_passes_without_a_word(
    demo: Subject, stdlib: Corpus, principal: Tensors, tmp_path: Path
) -> None:
    tried = try_dictionary(demo, open_at(demo, put_crosscoder(tmp_path, principal)), stdlib, window=64, force=False)
    assert tried.gate.doubts == () and tried.sweep.warning is None
    assert set(tried.gate.sites) == set(SITES) and max(fit.fvu for fit in tried.gate.sites.values()) < 0.2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_crosscoder_is_refused_or_told(
    demo: Subject, stdlib: Corpus, principal: Tensors, tmp_path: Path, fault: str
) -> None:
    source = open_at(demo, put_crosscoder(tmp_path, FAULTS[fault](principal)))
    tried = try_dictionary(demo, source, stdlib, window=64, force=True)
    assert not tried.gate.admitted or tried.gate.doubts or tried.sweep.warning
    if fault == "sites exchanged":
        assert tried.sweep.best == "resid_post.2 for resid_post.1 in both"


def write_layers(demo: Subject, folder: Path, corpus: Corpus) -> Path:
    """A CLT of two layers of the model's own kind: each latent is a principal component of what the MLP reads, and
    writes what a linear fit gives of both MLPs' outputs."""
    (folder / "clt").mkdir(parents=True)
    (folder / "clt" / "config.yaml").write_text("feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n")
    ids = [demo.encode(document.text)[:63] for _, document in corpus]
    rows = torch.tensor([[demo.bos, *row] for row in ids if len(row) == 63])
    sites = [*(f"mlp_in.{layer}" for layer in range(4)), *(f"mlp_out.{layer}" for layer in range(4))]
    read = {site: tensor[:, 1:].flatten(0, 1) for site, tensor in demo.read(rows, sites).items()}
    left = {layer: read[f"mlp_out.{layer}"] - read[f"mlp_out.{layer}"].mean(0) for layer in range(4)}
    for layer in range(4):
        x = read[f"mlp_in.{layer}"]
        encoder = torch.cat([torch.eye(128), -torch.eye(128)], dim=1)
        codes = (x - x.mean(0)) @ encoder
        codes = codes.relu()
        decoders = []
        for later in range(layer, 4):
            solved = torch.linalg.lstsq(codes.T @ codes + 10 * torch.eye(256), codes.T @ left[later]).solution
            left[later] = left[later] - codes @ solved
            decoders.append(solved)
        save_file(
            {
                f"W_enc_{layer}": encoder.T.contiguous(),
                f"b_enc_{layer}": -x.mean(0) @ encoder,
                f"b_dec_{layer}": read[f"mlp_out.{layer}"].mean(0),
            },
            folder / "clt" / f"W_enc_{layer}.safetensors",
        )
        save_file({f"W_dec_{layer}": torch.stack(decoders, 1)}, folder / "clt" / f"W_dec_{layer}.safetensors")
    return folder / "clt"


def test_the_layers_of_a_transcoder_are_judged_together(demo: Subject, stdlib: Corpus, tmp_path: Path) -> None:
    folder = write_layers(demo, tmp_path, stdlib)
    sources = open_sources(demo, [], LoadOptions(sae=str(folder)), name="clt")
    assert [str(source.id) for source in sources] == [f"demo:mlp_in.{layer}@clt" for layer in range(4)]
    second = sources[1]
    assert isinstance(second, Dictionary) and second.writes == ("mlp_out.1", "mlp_out.2", "mlp_out.3")
    (line,) = pass_gate(demo, [second], stdlib, window=64, force=False)
    assert line.startswith("demo:mlp_in.1@clt: FVU 0.") and "(mlp_out.1 0." in line
    one, other = folder / "W_dec_1.safetensors", folder / "W_enc_2.safetensors"
    swapped = {name: -tensor for name, tensor in load_file(one).items()}
    save_file(swapped, one)
    again = open_sources(demo, ["mlp_in.1"], LoadOptions(sae=str(folder)), name="clt")
    with pytest.raises(NeuronautError, match="does not rebuild the vectors of mlp_out"):
        list(pass_gate(demo, again, stdlib, window=64, force=False))
    other.unlink()
    again = open_sources(demo, ["mlp_in.1"], LoadOptions(sae=str(folder)), name="clt")
    with pytest.raises(NeuronautError, match="layers 2 of 4 are not in"):
        list(pass_gate(demo, again, stdlib, window=64, force=False))
    (line,) = pass_gate(demo, again, stdlib, window=64, force=True)
    assert line.startswith("Warning: demo:mlp_in.1@clt is not tried")


def test_activations_reach_the_store_and_every_reader(
    demo: Subject, stdlib: Corpus, principal: Tensors, tmp_path: Path
) -> None:
    source = open_at(demo, put_crosscoder(tmp_path / "cc", principal))
    with Store(tmp_path / "x.db") as store:
        harvest(demo, [source], stdlib, store, tokens=4000, paths={str(source.id): str(tmp_path / "cc")})
        (row,) = store.sources()
        assert (row["kind"], row["writes"]) == ("crosscoder", "resid_post.1, resid_post.2")
        told = describe(store, Feature(source.id, 7))["writes"]
    norms = source.written_norms()[7].tolist()
    assert [(one["site"], pytest.approx(one["norm"])) for one in told] == list(zip(SITES, norms, strict=True))
    ids = np.array([demo.encode("def forward(self, input):\n    return torch.add(input, 1)")])
    tokens = torch.tensor([[demo.bos, *ids[0].tolist()]])
    vectors = join_vectors(demo.read(tokens, SITES), SITES)[0, 1:]
    own = read_columns(demo, source, ids, [7, 9])[0]
    np.testing.assert_allclose(own, source.encode(vectors)[:, [7, 9]].numpy(), atol=1e-4)
    address = str(Feature(source.id, 7))
    result = CliRunner().invoke(main, ["show", address, "-d", str(tmp_path / "x.db")])
    assert result.exit_code == 0 and "writes, by its decoder's norm: resid_post.1" in result.output


# Training


def test_planted_features_of_two_sites_are_found() -> None:
    """Features share their activation and have a direction of their own at each site, whose vectors differ in size."""
    width, planted, active = 24, 48, 2
    true = [normalize(draw(planted, width, seed=seed), dim=1) for seed in (1, 2)]
    generator = torch.Generator().manual_seed(0)

    def vectors(count: int) -> Tensor:
        on = torch.rand(count, planted, generator=generator) < active / planted
        codes = on * (0.5 + torch.rand(count, planted, generator=generator))
        return torch.cat([codes @ true[0] + 0.2, 30 * (codes @ true[1]) - 5], dim=1)

    recipe = Recipe("batchtopk", width=80, k=active, tokens=500 * 256, batch=256, rate=4e-3)
    sample = vectors(4096)
    trainer = Trainer(recipe, sample, sample, auto=True, sites=2)
    while trainer.seen < recipe.tokens:
        batch = vectors(recipe.batch)
        trainer.step(batch, batch)
    id = SourceId("m", "resid_post.1", "mine")
    sites = ("resid_post.0", "resid_post.1")
    dictionary = trainer.dictionary(id, sample, targets=sites, inputs=sites)
    decoders = [normalize(part, dim=1) for part in split_vectors(dictionary.W_dec, sites).values()]
    both = torch.stack([decoder @ own.T for decoder, own in zip(decoders, true, strict=True)]).amin(0)
    assert (both.amax(0) > 0.9).double().mean() > 0.75
    test = vectors(2048)
    for true_part, part in zip(test.chunk(2, 1), dictionary.reconstruct(test).chunk(2, 1), strict=True):
        assert (true_part - part).square().sum() / (true_part - true_part.mean(0)).square().sum() < 0.3


def test_a_stopped_training_of_a_crosscoder_goes_on_to_the_same_weights(
    demo: Subject, stdlib: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MEASURED", 512)
    monkeypatch.setattr(run, "BUFFER_TOKENS", 1500)
    id = SourceId("demo", SITES[-1], "mine")
    recipe = Recipe("batchtopk", width=64, k=8, tokens=5000, batch=256)
    whole = train(demo, id, stdlib, tmp_path / "whole", recipe, sites=SITES)
    calls = iter(range(1000))
    assert train(demo, id, stdlib, tmp_path / "part", recipe, sites=SITES, stop=lambda: next(calls) == 12) is None
    part = train(demo, id, stdlib, tmp_path / "part", recipe, sites=SITES)
    assert whole is not None and part is not None
    for name, tensor in whole.dictionary.tensors().items():
        assert torch.equal(part.dictionary.tensors()[name], tensor), name
    assert part.gate == whole.gate and part.loss == whole.loss and set(part.gate.sites) == set(SITES)
    again = open_dictionary(demo, id, str(tmp_path / "part"))
    assert again.revision == whole.dictionary.revision and 0 < part.loss.recovered < 1


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        (["resid_post.2"], "two sites or more"),
        (["resid_post.2", "resid_post.1"], "in the order of the forward pass"),
        (["mlp.1", "resid_post.1"], "of one width"),
    ],
)
def test_sites_that_make_no_crosscoder_are_refused(
    demo: Subject, stdlib: Corpus, tmp_path: Path, sites: list[str], reason: str
) -> None:
    recipe = Recipe("batchtopk", width=64, k=8, tokens=5000, batch=256)
    with pytest.raises(NeuronautError, match=reason):
        train(demo, SourceId("demo", sites[-1], "mine"), stdlib, tmp_path / "x", recipe, sites=sites)
    assert not (tmp_path / "x").exists()
