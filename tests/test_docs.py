"""The documentation: every block parses, every verb has a page, every page is in the navigation; and the checker that
says so fails where it should."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from neuronaut.cli.main import VERBS

ROOT = Path(__file__).parent.parent
RUN = frozenset({"run"})
PACKAGES = ("agent", "causal", "cli", "data", "explainers", "labelling", "llm", "rules", "scorers", "subject", "tests")


def _checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("neuronaut_docs_check", ROOT / "docs" / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


docs = _checker()


def failures(folder: Path, text: str) -> list[str]:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return [str(failure) for failure in docs.check(page, marks=RUN)]


@pytest.mark.parametrize("file", [*docs.pages(), *docs.notebooks()], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_block_parses(file: Path) -> None:
    assert [str(failure) for failure in docs.check(file)] == []


def test_every_verb_has_a_page_with_its_help() -> None:
    verbs = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "verbs").glob("*.md")}
    assert set(verbs) - {"index"} == set(VERBS)
    assert [verb for verb, text in verbs.items() if verb != "index" and text.count("<!-- help -->") != 1] == []


def test_every_page_is_in_the_navigation() -> None:
    listed: list[str] = []
    todo = list(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    while todo:
        entry = todo.pop()
        if isinstance(entry, str):
            listed.append(entry)
        else:
            todo += entry if isinstance(entry, list) else entry.values()
    assert {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (
            "```bash\nneuronaut list --no-such-option\n```\n",
            "page.md:2: neuronaut list --no-such-option: No such option",
        ),
        ("```bash\nneuronaut lst\n```\n", "No such command"),
        ("```bash\ncd x && neuronaut show | head\n```\n", "Missing argument"),
        ("```console\n$ neuronaut list --limit many\n```\n", "not a valid integer"),
        ("```console\n$ neuronaut list \\\n    --limit 0\n```\n", "page.md:2: neuronaut list --limit 0: "),
        ("- a list\n\n    ```bash\n    neuronaut list --sort size\n    ```\n", "page.md:4: "),
        ("Give `neuronaut show --no-such X`.\n", "page.md:1: neuronaut show has no option --no-such"),
        ("Give `neuronaut shoe X`.\n", "neuronaut has no shoe"),
        ("```python\nfrom neuronaut import Store, Shop\n```\n", "page.md:2: neuronaut has no Shop"),
        ("```python\nfrom neuronaut.rules.language import Law\n```\n", "has no Law"),
        ("```python\nx = (\n```\n", "page.md:2: "),
        ("```console run\n$ neuronaut --version\nneuronaut, version 9\n```\n", "+neuronaut, version "),
        ("```console run\n$ neuronaut models -d none.db\n```\n", "+Error: "),
        ("```console run\n$ neuronaut models -d none.db\n…\n```\n", "models -d none.db: fails"),
        ("```python run\nprint(2)\n```\n\n```text output\n3\n```\n", "-3\n+2"),
        ("```python run\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```console run\n$ cat words.txt\nother\n```\n", "other"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, text: str, wrong: str) -> None:
    (found,) = failures(tmp_path, text)
    assert wrong in found


@pytest.mark.parametrize(
    "text",
    [
        '```bash\nA=1 neuronaut run demo "x = (1" --answer ")" | head -1; neuronaut --help   # it\'s | fine\n```\n',
        "```console run\n$ neuronaut --version\nneuronaut, version …\n```\n",
        '```text title="words.txt"\none\ntwo\nthree\n```\n\n```console run\n$ cat words.txt\none\n…\n```\n',
        "```python run\nx = 2\n```\n\n```python run\nprint(x)\n```\n\n```text output\n2\n```\n",
        "```python slow\n1 / 0\n```\n",
        "Give `neuronaut list --json`, not `--no-such`.\n",
    ],
)
def test_what_is_right_passes(tmp_path: Path, text: str) -> None:
    assert failures(tmp_path, text) == []


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a  \nb\n\n", "a\nb\n", True),
        ("a\n", "a\nb\n", False),
        ("a … c\n", "a b c\n", True),
        ("a … c\n", "a b\nb c\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nd\n", True),
        ("a\n…\n", "b\nc\n", False),
        ("in 3.2 s, 40 rows/s\n", "in 14 s, 1,234.5 rows/s\n", True),
        ("in 3.2 s, 40/s\n", "in 14 s, 1,234.5/s\n", True),
        ("score 0.91\n", "score 0.92\n", False),
        ("", "", True),
        ("", "a\n", False),
    ],
)
def test_outputs_are_compared_exactly_but_for_dots_and_times(expected: str, actual: str, same: bool) -> None:
    assert docs.matches(expected, actual) is same


NAMED = re.compile(r"`(_?[A-Za-z][\w.]*)(?:\([^`]*\))?`")


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "extending").glob("*.md")), ids=lambda page: page.stem)
def test_what_a_recipe_names_is_in_the_code(page: Path) -> None:
    """Names in backticks, functions with their arguments included; `..._yours` stands for the reader's own."""
    code = "\n".join(path.read_text() for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
    words = set(re.findall(r"\w+", code))
    names = {name for name in NAMED.findall(page.read_text()) if not name.endswith("_yours")}
    assert {name for name in names if not set(name.split(".")) <= words} == set()
