"""Checks that the documentation says what the program does.

Every fenced block is checked by what its first line says it is:

- `console` (after `$ `) and `bash`: each `neuronaut` command is parsed by the real command line, without running it.
- `console run`: run, and its output compared. `console slow`: the same, only with --slow.
- `python`: compiled, and each name that it imports from neuronaut must exist. `python run` and `python slow` are
  executed, the blocks of a page in one namespace; a `text output` block right after one is what it prints.
- a block with `title="FILE"` is written to FILE in the page's folder before anything runs.

Commands run in a folder of the page's own, with a `demo.db` that `neuronaut demo` made: what a reader has after
`make demo`. It is made once and kept in build/docs-check until the code that makes it changes. Standard output is
compared, and standard error too where the command fails. In what a page shows, `…` stands for anything on a line,
and alone on a line for any lines; numbers of seconds and rates may differ. Output depends on the Python that runs
it, since the built-in corpus is its standard library.
"""

import ast
import contextlib
import difflib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import click

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "docs-check"
MAKES_DATABASE = ("subject", "data", "rules", "explainers", "labelling", "scorers", "cli/demo.py")
"""What decides what is in demo.db."""
ANYTHING = "…"
FAILED = (1, 2)
"""Exit codes of errors; 3 and 4 are answers of `investigate`."""

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+)(?P<info>[^`]*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_INLINE = re.compile(r"`neuronaut (?P<verb>[a-z]+)(?P<rest>[^`]*)`")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
_SLOW = re.compile(r"opening \S+")
"""What only a slow machine says."""
_TIMED = re.compile(r"\d[\d,.]*(?= ?(?:\w*/s|s|ms|us|seconds|minutes)\b)")


class Failure(NamedTuple):
    """Something that a page says and the program does not do."""

    file: Path
    line: int
    """Line in the file; of a notebook, the number of the cell."""
    what: str

    def __str__(self) -> str:
        shown = self.file.relative_to(ROOT) if self.file.is_relative_to(ROOT) else self.file
        return f"{shown}:{self.line}: {self.what}"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    file: Path
    line: int
    """Of its first line of text."""
    language: str
    marks: frozenset[str]
    title: str | None
    text: str


class Command(NamedTuple):
    """One command of a console block, and what the page says it prints."""

    line: int
    text: str
    expected: str


@dataclass(slots=True)
class Page:
    """Where the blocks of one file run."""

    folder: Path
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__page__"})


def pages() -> list[Path]:
    """Every Markdown file that is checked."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def notebooks() -> list[Path]:
    """Every notebook that is checked."""
    return sorted((ROOT / "examples").glob("*.ipynb"))


def blocks(file: Path) -> list[Block]:
    """The fenced blocks of a Markdown file, or the code cells of a notebook."""
    if file.suffix == ".ipynb":
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        code = [(number, cell) for number, cell in enumerate(cells, start=1) if cell["cell_type"] == "code"]
        return [
            Block(file, number, "python", frozenset({"slow"}), None, "".join(cell["source"])) for number, cell in code
        ]
    parsed: list[Block] = []
    opened: re.Match[str] | None = None
    begun, inside = 0, list[str]()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if opened is None:
            if opened := _FENCE.match(line):
                begun, inside = number + 1, []
        elif line.strip() == opened["ticks"]:
            title = _TITLE.search(opened["info"])
            words = _TITLE.sub("", opened["info"]).split()
            text = "".join(f"{part}\n" for part in inside)
            name = title[1] if title else None
            parsed.append(Block(file, begun, words[0] if words else "", frozenset(words[1:]), name, text))
            opened = None
        else:
            inside.append(line.removeprefix(opened["indent"]))
    return parsed


def commands(block: Block) -> list[Command]:
    """The commands of a console block, each with its output; the lines of a bash block, without any."""
    parsed: list[Command] = []
    lines = iter(enumerate(block.text.splitlines(), start=block.line))
    for number, line in lines:
        if block.language == "console" and not line.startswith("$ "):
            if parsed:
                parsed[-1] = parsed[-1]._replace(expected=f"{parsed[-1].expected}{line}\n")
            continue
        text = line.removeprefix("$ ")
        while text.endswith("\\"):
            text = text[:-1] + next(lines, (0, ""))[1].strip()
        parsed.append(Command(number, text, ""))
    return parsed


# Parsing


def neuronaut_calls(text: str) -> list[list[str]]:
    """The arguments of each call of `neuronaut` in a line of shell."""
    calls = [shlex.split(part) for part in _shell_parts(text)]
    bare = ([word for word in call if not re.match(r"[A-Z_]+=", word)] for call in calls)
    return [call[1:] for call in bare if call and call[0] == "neuronaut"]


def _shell_parts(text: str) -> list[str]:
    """A line cut at what parts commands, outside of quotes, without its comment."""
    parts, quote = [""], ""
    for before, char in zip(" " + text, text, strict=False):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "#" and before.isspace():
            break
        elif char in "|;&<>()":
            parts.append("")
            continue
        parts[-1] += char
    return parts


def parse(arguments: Sequence[str]) -> None:
    """Parse a command line as `neuronaut` would, to the last option. Raises what it raises."""
    from neuronaut.cli.main import main

    context, rest = main.make_context("neuronaut", list(arguments)), list(arguments)
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, rest = context.command.resolve_command(context, rest)
        assert name is not None and command is not None, "an unknown verb is a usage error"
        context = command.make_context(name, rest, parent=context)


def parse_failures(block: Block) -> Iterator[Failure]:
    """What of a block can be found wrong without running it."""
    from neuronaut.subject.errors import NeuronautError

    if block.language in ("console", "bash"):
        for command in commands(block):
            try:
                for call in neuronaut_calls(command.text):
                    parse(call)
            except click.exceptions.Exit:
                pass
            except (click.ClickException, NeuronautError, ValueError) as error:
                reason = error.format_message() if isinstance(error, click.ClickException) else error
                yield Failure(block.file, command.line, f"{command.text}: {reason}")
    elif block.language == "python":
        try:
            tree = ast.parse(block.text)
        except SyntaxError as error:
            yield Failure(block.file, block.line + (error.lineno or 1) - 1, f"{error.msg}")
        else:
            yield from _import_failures(block, tree)


def _import_failures(block: Block, tree: ast.Module) -> Iterator[Failure]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "neuronaut":
            continue
        module = import_module(node.module or "")
        for alias in node.names:
            # The public names are listed; looking one up would import torch.
            there = alias.name in getattr(module, "__all__", ()) or hasattr(module, alias.name)
            if not there:
                yield Failure(
                    block.file, block.line + node.lineno - 1, f"{node.module} has no {alias.name}, which is imported"
                )


def options_of(command: click.Command) -> set[str]:
    """Every option of a command and of the commands below it."""
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        options |= options_of(below)
    return options


def prose_failures(file: Path) -> Iterator[Failure]:
    """Commands in running text whose verb or option does not exist, and links from outside docs/ that lead nowhere."""
    from neuronaut.cli.main import VERBS, main

    inside = False
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if _FENCE.match(line):
            inside = not inside
        if inside:
            continue
        for call in _INLINE.finditer(line):
            verb = call["verb"]
            if verb not in VERBS:
                yield Failure(file, number, f"neuronaut has no {verb}")
                continue
            command = main.get_command(click.Context(main), verb)
            assert command is not None
            for option in sorted({*_OPTION.findall(call["rest"])} - options_of(command)):
                yield Failure(file, number, f"neuronaut {verb} has no option {option}")
        if file.parent == ROOT:
            for target in _LINK.findall(line):
                if not (file.parent / target).exists():
                    yield Failure(file, number, f"the link to {target} leads nowhere")


# Running


def matches(expected: str, actual: str) -> bool:
    """Whether an output is what a page shows, but for `…` and for numbers of seconds and rates."""
    pattern = ""
    for line in _normal(expected).splitlines():
        anything = line.strip() == ANYTHING
        pattern += r"(?:.*\n)*?" if anything else ".*".join(map(re.escape, line.split(ANYTHING))) + r"\n"
    return re.fullmatch(pattern, _normal(actual)) is not None


def _normal(text: str) -> str:
    lines = [_TIMED.sub("N", line.rstrip()) for line in text.strip("\n").splitlines() if not _SLOW.fullmatch(line)]
    return "".join(f"{line}\n" for line in lines)


class Ran(NamedTuple):
    """What came of a command."""

    printed: str
    """Standard output, and standard error after it where it failed."""
    failed: bool


def run_command(text: str) -> Ran:
    """Run a line of shell; one that is a single call of `neuronaut` in this process, which is faster."""
    if len(calls := neuronaut_calls(text)) == 1 and shlex.split(text, comments=True)[1:] == calls[0]:
        from click.testing import CliRunner

        from neuronaut.cli.main import main

        result = CliRunner().invoke(main, calls[0], prog_name="neuronaut")
        return _ran(result.stdout, result.stderr, result.exit_code)
    with tempfile.TemporaryDirectory() as bin:
        shim = Path(bin) / "neuronaut"
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m neuronaut "$@"\n', encoding="utf-8")
        shim.chmod(0o755)
        path = f"{bin}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", text], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
    return _ran(done.stdout, done.stderr, done.returncode)


def _ran(out: str, err: str, code: int) -> Ran:
    return Ran(out + err if code in FAILED else out, code in FAILED)


def run_failures(block: Block, after: Block | None, page: Page) -> Iterator[Failure]:
    """What comes out otherwise when a block is run; `after` is the block that follows it."""
    if block.language == "console":
        for command in commands(block):
            ran = run_command(command.text)
            failures = list(_compare(block.file, command.line, command.text, command.expected, ran.printed))
            if ran.failed and not failures and "Error: " not in command.expected:
                # Dots stand for any lines, but not for those of an error.
                failures.append(Failure(block.file, command.line, f"{command.text}: fails\n{ran.printed}"))
            yield from failures
        return
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, f"{block.file.name}:{block.line}", "exec"), page.namespace)
    # A page's code may raise anything; the page fails, and the others are still checked.
    except Exception:
        yield Failure(block.file, block.line, f"raises\n{traceback.format_exc(limit=-3)}")
        return
    if after is not None and after.language == "text" and "output" in after.marks:
        yield from _compare(block.file, after.line, "the output", after.text, printed.getvalue())


def _compare(file: Path, line: int, what: str, expected: str, actual: str) -> Iterator[Failure]:
    if not matches(expected, actual):
        shown = difflib.unified_diff(
            expected.strip("\n").splitlines(),
            actual.strip("\n").splitlines(),
            "on the page",
            "printed",
            lineterm="",
            n=1,
        )
        yield Failure(file, line, "\n".join((f"{what}: another output", *shown)))


def check(
    file: Path, *, marks: frozenset[str] = frozenset(), database: Callable[[], Path] | None = None
) -> list[Failure]:
    """Check a page; blocks with one of `marks` are run, in a folder of their own with a copy of the database."""
    failures = [] if file.suffix == ".ipynb" else list(prose_failures(file))
    all_blocks = blocks(file)
    for block in all_blocks:
        failures += parse_failures(block)
    if not any(block.marks & marks for block in all_blocks) or failures:
        return failures
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        page = Page(Path(folder))
        if database is not None:
            shutil.copy(database(), page.folder / "demo.db")
        os.chdir(page.folder)
        try:
            for block, after in zip(all_blocks, [*all_blocks[1:], None], strict=True):
                if block.title is not None:
                    (page.folder / block.title).write_text(block.text, encoding="utf-8")
                if block.marks & marks:
                    failures += run_failures(block, after, page)
        finally:
            os.chdir(here)
    return failures


def demo_database() -> Path:
    """The database that `neuronaut demo` makes, made anew where the code behind it has changed."""
    digest = hashlib.sha256(sys.version.encode())
    for part in MAKES_DATABASE:
        files = [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*"))
        for file in files:
            if file.is_file() and file.suffix != ".pyc":
                digest.update(file.read_bytes())
    kept = KEPT / digest.hexdigest()[:16] / "demo.db"
    if not kept.exists():
        shutil.rmtree(KEPT, ignore_errors=True)
        kept.parent.mkdir(parents=True)
        click.echo("making demo.db (about two minutes)", err=True)
        made = kept.with_name("making.db")
        subprocess.run(
            [sys.executable, "-m", "neuronaut", "demo", "--db", str(made)], check=True, stdout=subprocess.DEVNULL
        )
        made.rename(kept)
    return kept


@click.command()
@click.option("--slow", is_flag=True, help="Run what takes minutes, too: slow blocks and the notebooks.")
@click.option("--parse-only", is_flag=True, help="Run nothing.")
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
def main(slow: bool, parse_only: bool, files: tuple[Path, ...]) -> None:
    """Check FILES, or the README, CONTRIBUTING, docs/ and the notebooks."""
    # Read by torch when it is imported; the outputs on the pages are of one thread and of this width.
    os.environ.update(OMP_NUM_THREADS="1", COLUMNS="100")
    os.environ.pop("NEURONAUT_DB", None)
    marks = frozenset() if parse_only else frozenset({"run", "slow"}) if slow else frozenset({"run"})
    failures: list[Failure] = []
    for file in [file.resolve() for file in files] or [*pages(), *notebooks()]:
        begun = time.monotonic()
        failed = check(file, marks=marks, database=demo_database)
        failures += failed
        shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
        click.echo(f"{shown}: {f'{len(failed)} wrong' if failed else 'right'}, {time.monotonic() - begun:.1f} s")
        for failure in failed:
            click.echo(f"\n{failure}\n", err=True)
    if failures:
        raise click.ClickException(f"{len(failures)} places are wrong; mend the page, or the program")


if __name__ == "__main__":
    main()
