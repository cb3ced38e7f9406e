"""The house's rules: who may import whom, what is packaged, and that importing does nothing."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("subject", "causal", "data", "explainers", "scorers", "agent", "benchmarks", "cli")


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported_folders(path: Path) -> set[str]:
    """Folders of this package that a module imports, lazily or not."""
    depth = len(path.relative_to(ROOT).parts) - 1
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == depth + 1:
            found.add(node.module.split(".")[0])
    return found & set(ORDER)


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_only_from_folders_to_its_left(folder: str) -> None:
    allowed = set(ORDER[: ORDER.index(folder)])
    wrong = {str(p.relative_to(ROOT)): bad for p in modules(folder) if (bad := imported_folders(p) - allowed)}
    assert not wrong


def test_every_package_is_packaged() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(("neuronaut", *p.parent.relative_to(ROOT).parts))
        for f in ORDER
        for p in modules(f)
        if p.name == "__init__.py"
    }
    assert set(listed) == found | {"neuronaut"}


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
