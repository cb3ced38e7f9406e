"""Controls with random matrices: same shapes and norms, the name is the recipe, and every verb opens them by it."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from neuronaut.cli.main import main
from neuronaut.data.store.store import Store
from neuronaut.subject.address import SourceId, name_random, split_random
from neuronaut.subject.formats import save_dictionary
from neuronaut.subject.model import Subject
from neuronaut.subject.opening import open_source
from tests import families, planted
from tests.test_cli import mirrored


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("demo~random-3", ("demo", 3)),
        ("a/b~random-0~random-12", ("a/b~random-0", 12)),
        ("demo", ("demo", None)),
        ("demo~random-", ("demo~random-", None)),
        ("~random-1", ("~random-1", None)),
    ],
)
def test_the_name_is_the_recipe(name: str, parts: tuple[str, int | None]) -> None:
    assert split_random(name) == parts
    if parts[1] is not None:
        assert name_random(parts[0], parts[1]) == name
        assert SourceId(name, "mlp.2").trained == SourceId(parts[0], "mlp.2")


def test_every_matrix_is_drawn_again_at_its_own_norm() -> None:
    state = torch.get_rng_state()
    trained, control = Subject.load("demo"), Subject.load("demo~random-0")
    assert torch.equal(torch.get_rng_state(), state)
    assert control.name == "demo~random-0"
    assert control.convention.bos == trained.convention.bos
    others = dict(control.model.named_parameters())
    for name, parameter in trained.model.named_parameters():
        if parameter.ndim < 2:
            assert torch.equal(parameter, others[name]), name
        else:
            assert float(others[name].norm()) == pytest.approx(float(parameter.norm()), rel=1e-4), name
            cosine = torch.nn.functional.cosine_similarity(parameter.flatten(), others[name].flatten(), dim=0)
            assert abs(cosine) < 0.05, name
    assert Subject.load("demo~random-0").revision == control.revision
    assert len({Subject.load(name).revision for name in ("demo", "demo~random-0", "demo~random-1")}) == 3


def test_tied_matrices_stay_tied(tmp_path: Path) -> None:
    model = families.tiny_model("gpt2")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for part in (model, families.byte_tokenizer()):
        part.save_pretrained(tmp_path / "tied")
    control = Subject.load(f"{tmp_path / 'tied'}~random-0")
    assert control.name == "tied~random-0"
    assert control.model.get_input_embeddings().weight is control.model.get_output_embeddings().weight


def test_a_dictionary_is_drawn_again_and_the_model_is_not() -> None:
    subject = Subject.load("demo")
    trained, control = (open_source(subject, SourceId.parse(f"demo:resid_post.2@{n}")) for n in ("sae", "sae~random-0"))
    assert float(control.W_dec.norm()) == pytest.approx(float(trained.W_dec.norm()), rel=1e-4)
    assert float(control.W_enc.norm()) == pytest.approx(float(trained.W_enc.norm()), rel=1e-4)
    assert torch.equal(control.b_enc, trained.b_enc) and control.k == trained.k
    assert control.W_enc.T.is_contiguous()
    assert control.revision != trained.revision


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A planted model's neurons and dictionary, and controls of both, with the model's folder."""
    folder = tmp_path_factory.mktemp("random")
    model, corpus = planted.build(documents=100).save(folder)
    database = folder / "random.db"
    common = ("--corpus", corpus, "--tokens", "all", "--window", 32, "-d", database)
    run("harvest", model, "mlp.2", *common)
    run("harvest", model, "mlp.2", "--randomize", "weights", *common)
    save_dictionary(mirrored(planted.WIDTH), folder / "eye", dtype=torch.float32)
    shown = run("harvest", model, "resid_post.1", "--sae", folder / "eye", "--randomize", "dictionary", *common)
    assert "only" in shown.output and "FVU" in shown.output
    return database, Path(model)


def test_verbs_open_a_control_by_its_name(harvested: tuple[Path, Path]) -> None:
    database, model = harvested
    name = f"{model.name}~random-0"
    with Store(database) as store:
        rows = {row["source"]: row for row in store.sources()}
    dictionary = f"{model.name}:resid_post.1@eye~random-0"
    assert set(rows) == {f"{model.name}:mlp.2", f"{name}:mlp.2", dictionary}
    assert rows[f"{name}:mlp.2"]["provenance"]["paths"][name] == f"{model.resolve()}~random-0"
    assert rows[f"{name}:mlp.2"]["model_revision"] != rows[f"{model.name}:mlp.2"]["model_revision"]
    for feature in (f"{name}:mlp.2:3", f"{model}~random-0:mlp.2:3", f"{dictionary}:3"):
        (tried,) = json.loads(run("try", feature, "the river", "-d", database, "--json").stdout)
        assert len(tried["actual"]) == len(tried["tokens"])
    run("label", f"{name}:mlp.2:0-4", "-d", database)
    run("label", f"{model.name}:mlp.2:0-4", "-d", database)
    groups = json.loads(run("summary", f"{model.name}:mlp.2", "-d", database, "--json").stdout)
    assert [group["group"] for group in groups[:-1]] == [f"{model.name}:mlp.2", f"{name}:mlp.2"]


def test_neurons_have_no_dictionary_to_draw_again(tmp_path: Path) -> None:
    shown = run("harvest", "demo", "mlp.2", "--randomize", "dictionary", "-d", tmp_path / "x.db", code=1)
    assert "mlp.2 is of neurons" in shown.output
