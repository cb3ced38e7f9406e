"""The house's rules: who may import whom, what is packaged, and that importing does nothing."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("subject",),
    ("data", "rules", "causal"),
    ("llm",),
    ("explainers",),
    ("scorers",),
    ("labelling",),
    ("agent",),
    ("benchmarks",),
    ("web",),
    ("cli",),
)  # a folder imports from floors before its own
AGENT_FLOORS = (
    ("loop",),
    ("tools", "policies", "report"),
    ("session", "checks", "forking", "pooling", "summary"),
    ("replay",),
    ("rerun",),
)


def floors(groups: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    return {name: floor for floor, names in enumerate(groups) for name in names}


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """By module of this package, the modules of this package that it imports, lazily or not."""
    files = [path for folder in floors(FLOORS) for path in (ROOT / folder).rglob("*.py")]
    names = {path: _name(path) for path in files}
    known = set(names.values())
    return {name: frozenset(_imports(path, known)) for path, name in names.items()}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path, known: set[str]) -> list[str]:
    package = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            module = ".".join(filter(None, base))
            whole = (f"{module}.{alias.name}".strip(".") for alias in node.names)
            found += [name if name in known else module for name in whole]
    return found


@pytest.mark.parametrize("folder", floors(FLOORS))
def test_a_folder_imports_only_from_floors_below(folder: str) -> None:
    floor = floors(FLOORS)
    wrong = [
        (name, other)
        for name, others in imports().items()
        if name.split(".")[0] == folder
        for other in others
        if (home := other.split(".")[0]) != folder and floor.get(home, -1) >= floor[folder]
    ]
    assert not wrong


def test_inside_agent_the_loop_is_below_all_and_sessions_are_on_top() -> None:
    floor = floors(AGENT_FLOORS)
    pairs = [
        (name.split(".")[1], other.split(".")[1], name, other)
        for name, others in imports().items()
        for other in others
        if name.startswith("agent.") and other.startswith("agent.")
    ]
    assert len(pairs) > 100
    assert not [(name, other) for own, its, name, other in pairs if own != its and floor[its] >= floor[own]]


def test_no_two_files_import_each_other() -> None:
    every = imports()
    assert not [(name, other) for name, others in every.items() for other in others if name in every.get(other, ())]


MOST_POSITIONAL = 5


def test_no_call_of_our_own_has_many_positional_arguments() -> None:
    """Counted on the syntax tree; functions that take any number of parts (*parts) are apart."""
    trees = {path: ast.parse(path.read_text()) for folder in floors(FLOORS) for path in (ROOT / folder).rglob("*.py")}
    takes_parts: dict[str, bool] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                parts = isinstance(node, ast.FunctionDef) and node.args.vararg is not None
                takes_parts[node.name] = parts or takes_parts.get(node.name, False)
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (name := getattr(node.func, "id", getattr(node.func, "attr", ""))) in takes_parts
        and not takes_parts[name]
        and sum(not isinstance(argument, ast.Starred) for argument in node.args) > MOST_POSITIONAL
    ]
    assert not wrong


def test_every_package_is_packaged() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for folder in floors(FLOORS) for path in (ROOT / folder).rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)
    assert set(listed) == {".".join(("neuronaut", *folder.relative_to(ROOT).parts)) for folder in folders} | {
        "neuronaut"
    }


def test_importing_does_nothing() -> None:
    code = (
        "import sys, neuronaut, neuronaut.cli.main;"
        "heavy = {'torch', 'transformers', 'numpy', 'sentence_transformers', 'openai'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_there() -> None:
    import neuronaut

    assert all(getattr(neuronaut, name) is not None for name in neuronaut.__all__)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        neuronaut.nothing_like_this  # noqa: B018
