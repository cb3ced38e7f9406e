"""An embedder's folder is data: code that lies in it is not run."""

import json
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from neuronaut.cli.main import main
from neuronaut.data.store.search import Embedder
from neuronaut.data.store.store import Store
from neuronaut.subject.errors import NeuronautError

from .stored import explanation, harvest_result

OWN = "sentence_transformers.models.Transformer"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose every means of bringing a class names one that leaves a file behind when it is imported."""
    folder = tmp_path / "embedder"
    folder.mkdir()
    code = f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\nclass Evil:\n    pass\n"
    (folder / "evil_module.py").write_text(code)
    auto = {name: "evil_module.Evil" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    (folder / "config_sentence_transformers.json").write_text("{}")
    return folder


def name_modules(folder: Path, content: object) -> None:
    (folder / "modules.json").write_text(content if isinstance(content, str) else json.dumps(content))


def module(kind: object) -> dict[str, object]:
    return {"idx": 0, "name": "0", "path": "", "type": kind}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([module("evil_module.Evil")], "names 'evil_module.Evil', which is no part of sentence-transformers"),
        ([module(OWN), module("evil_module.Evil")], "names 'evil_module.Evil'"),
        ([module("sentence_transformers_evil.Evil")], "names 'sentence_transformers_evil.Evil'"),
        ([module(None)], "names None"),
        (["evil_module.Evil"], "names 'evil_module.Evil'"),
        ({"a": 1}, "holds a dict; wanted a list of modules"),
        ("[" * 100_000, "modules.json is nested too deep"),
        ("{", "modules.json is not readable JSON"),
    ],
)
def test_a_foreign_class_in_modules_json_is_refused_and_not_imported(
    folder: Path, modules: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_modules(folder, modules)
    monkeypatch.chdir(folder)  # from which a bare module's name could be imported
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(NeuronautError, match="modules.json") as caught:
        Embedder(str(folder)).embed(["a"])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("modules", [[module(OWN)], None])
def test_an_auto_map_in_the_config_is_not_followed(folder: Path, modules: object) -> None:
    if modules is not None:
        name_modules(folder, modules)
    with pytest.raises(NeuronautError, match="no embedding model"):
        Embedder(str(folder)).embed(["a"])
    assert not (folder.parent / "ran").exists()


def test_search_says_so_in_one_line(folder: Path, tmp_path: Path) -> None:
    name_modules(folder, [module("evil_module.Evil")])
    database = str(tmp_path / "x.db")
    with Store(database) as store:
        store.write_harvest(harvest_result())
        store.add_explanation(explanation())
    result = CliRunner().invoke(main, ["search", "--embedder", str(folder), "self", "-d", database])
    assert result.exit_code == 1
    assert "code that comes with a model is not run" in result.output and result.output.count("\n") == 1


def test_the_library_is_one_that_runs_no_code_of_a_model() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert "sentence-transformers>=6.0" in project["dependencies"]
    assert int(version("sentence-transformers").partition(".")[0]) >= 6
