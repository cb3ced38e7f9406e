"""A model is addressed by its name or by the folder it was harvested from; two folders of one name are told apart."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from neuronaut.cli.main import main
from neuronaut.data.store.store import Store
from neuronaut.labelling.opening import LoadOptions, load_subject, places, stored_subject
from neuronaut.subject.errors import NeuronautError

from .families import byte_tokenizer, tiny_model


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a/x and b/x, two models of other weights, a corpus, and x.db with a harvest of a/x."""
    root = tmp_path_factory.mktemp("folders")
    text = "the quick brown fox jumps over the lazy dog while a slow green turtle sleeps under one old bridge\n"
    for number, folder in enumerate(("a", "b")):
        tiny_model("gpt2", seed=number).save_pretrained(root / folder / "x")
        byte_tokenizer([text]).save_pretrained(root / folder / "x")
    documents = root / "corpus"
    documents.mkdir()
    words = text.split()
    for number in range(40):
        shuffled = [words[(7 * number + step * (number + 1)) % len(words)] for step in range(80)]
        (documents / f"{number}.txt").write_text(" ".join(shuffled), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        done = harvest("./a/x", "mlp.0")
        assert done.exit_code == 0, done.output
    return root


def harvest(model: str, site: str, *options: str) -> Result:
    return run("harvest", model, site, "--corpus", "corpus", "--tokens", "4k", "--window", "16", "-d", "x.db", *options)


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


NAMES = ("x", "./a/x", "a/x", "a/x/", "./b/../a/x")


def without_time(text: str) -> str:
    return re.sub(r"about [\d.,]+ (s|min|h)\b", "about some time", text)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "{}:mlp.0:3"),
        ("similar", "{}:mlp.0:3"),
        ("list", "{}:mlp.0"),
        ("search", "dog", "--source", "{}:mlp.0"),
        ("try", "{}:mlp.0:3", "the quick dog"),
        ("export", "--source", "{}:mlp.0"),
        ("label", "{}:mlp.0:3", "--dry-run"),
    ],
)
def test_a_folder_is_addressed_as_it_lies(arguments: tuple[str, ...], name: str) -> None:
    by_name = run(*(part.format("x") for part in arguments), "-d", "x.db")
    result = run(*(part.format(name) for part in arguments), "-d", "x.db")
    assert result.exit_code == 0, result.output
    # How long it takes is measured anew each time.
    assert without_time(result.stdout) == without_time(by_name.stdout)
    assert result.stdout or arguments[0] == "search"


def test_the_absolute_path_and_a_link_are_the_same_folder(place: Path) -> None:
    link = place / "link"
    if not link.exists():
        link.symlink_to(place / "a" / "x")
    with Store("x.db") as store:
        for name in (str(place / "a" / "x"), "./link"):
            assert str(store.feature(f"{name}:mlp.0:3")) == "x:mlp.0:3"
            assert [str(f) for f in store.features(f"{name}:mlp.0:1,2")] == ["x:mlp.0:1", "x:mlp.0:2"]


def test_label_score_and_investigate_take_the_folder() -> None:
    labelled = run("label", "./a/x:mlp.0:3-5", "-d", "x.db", "--json")
    assert labelled.exit_code == 0, labelled.output
    scored = run("score", "a/x:mlp.0:3-5", "-d", "x.db")
    assert scored.exit_code == 0, scored.output
    done = run("investigate", "./a/x:mlp.0:3", "--budget", "experiments=2", "-d", "x.db")
    assert done.exit_code in (0, 3, 4), done.output
    assert "x:mlp.0:3" in run("sessions", "-d", "x.db", "--json").stdout


def test_an_unharvested_folder_of_a_known_name_is_not_taken_for_it() -> None:
    result = run("show", "./b/x:mlp.0:3", "-d", "x.db")
    assert result.exit_code == 1
    assert "folder ./b/x was not harvested" in result.output
    assert "a/x" in result.output


@pytest.mark.parametrize("site", ["mlp.0", "mlp.1"])
def test_a_second_folder_of_one_name_is_refused_and_another_name_offered(site: str) -> None:
    result = harvest("./b/x", site)
    assert result.exit_code == 1
    assert "--model-name" in result.output
    with Store("x.db") as store:
        assert {row["model_revision"] for row in store.sources() if row["model"] == "x"} == {
            store.sources()[0]["model_revision"]
        }


def test_with_another_name_both_are_there_and_told_apart(tmp_path: Path) -> None:
    database = str(tmp_path / "both.db")
    options = ("mlp.0", "--corpus", "corpus", "--tokens", "4k", "--window", "16", "-d", database)
    assert run("harvest", "a/x", *options, "--model-name", "first").exit_code == 0
    with Store(database) as store:
        assert str(store.feature("x:mlp.0:3")) == "first:mlp.0:3"  # no other is called so
    assert run("harvest", "b/x", *options, "--model-name", "second").exit_code == 0
    with Store(database) as store:
        assert str(store.feature("./a/x:mlp.0:3")) == "first:mlp.0:3"
        assert str(store.feature("./b/x:mlp.0:3")) == "second:mlp.0:3"
        with pytest.raises(NeuronautError, match=r"x could be first \(.*a/x\) or second \(.*b/x\)"):
            store.feature("x:mlp.0:3")
    tried = run("try", "b/x:mlp.0:3", "the quick dog", "-d", database, "--json")
    assert tried.exit_code == 0, tried.output


def test_a_name_for_a_model_is_checked() -> None:
    result = harvest("./b/x", "mlp.0", "--model-name", "../up")
    assert result.exit_code == 1
    assert "model name '../up'" in result.output


def test_a_model_is_opened_by_its_folder_under_its_name() -> None:
    with Store("x.db") as store:
        assert stored_subject(store, "./a/x", LoadOptions(device="cpu")).name == "x"
    with Store(":memory:") as empty:
        assert stored_subject(empty, "./b/x", LoadOptions(device="cpu")).name == "x"


def test_a_folder_called_demo_is_not_the_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    subject = load_subject("demo", LoadOptions(device="cpu"))
    assert places(subject, "demo", [], LoadOptions()) == {"demo": "demo"}
