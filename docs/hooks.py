"""What mkdocs does to the pages: the verbs' real help, the repository's other texts, the notebooks.

Pages are written so that their links work where the repository is read: `../benchmarks/README.md` from a page in docs/.
The site has these texts as pages of its own, and the links are turned to them.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data/demo/README.md": "demo-model.md",
    "examples/label_your_model.ipynb": "examples/label_your_model.md",
    "examples/trace_a_behaviour.ipynb": "examples/trace_a_behaviour.md",
    "examples/superposition.ipynb": "examples/superposition.md",
}
"""By path in the repository, the page of the site."""
PICTURES = {"benchmarks/labels.png": "labels.png", "benchmarks/sweep.png": "sweep.png"}
HELP = "<!-- help -->"
WIDTH = 88
"""Characters of a line of help."""

_FENCE = re.compile(r"^( *```+\w+) [^\n`{]*$", re.M)
_TITLED = re.compile(r'^( *```+\w+)[^\n`{]*?( title="[^"]*")[^\n`{]*$', re.M)
_LINK = re.compile(r"(\]\()([^)#\s:]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the texts and pictures that lie outside docs/."""
    for path, name in PAGES.items():
        files.append(File.generated(config, name, content=_text(path)))
    for path, name in PICTURES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the help, turn links, and take the checker's marks off the fences."""
    del config, files
    source = page.file.src_uri
    if source.startswith("verbs/") and HELP in markdown:
        markdown = markdown.replace(HELP, help_of(Path(source).stem))
    markdown = _LINK.sub(lambda link: link[1] + _resolve_link(link[2], source), markdown)
    return _FENCE.sub(lambda fence: fence[1] + _title(fence[0]), markdown)


def help_of(verb: str) -> str:
    """The help of a verb and of what is below it, each in a block."""
    from neuronaut.cli.main import main

    root = click.Context(main, info_name="neuronaut")
    command = main.get_command(root, verb)
    assert command is not None, f"docs/verbs/{verb}.md is about no verb"
    return "## Options\n\n" + "\n\n".join(_help(command, verb, root))


def _help(command: click.Command, name: str, parent: click.Context) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    parts = [f"```text\n{command.get_help(context)}\n```"]
    for below in command.list_commands(context) if isinstance(command, click.Group) else ():
        inner = command.get_command(context, below)
        assert inner is not None
        parts += [f"### {context.command_path.removeprefix('neuronaut ')} {below}", *_help(inner, below, context)]
    return parts


def _title(fence: str) -> str:
    match = _TITLED.match(fence)
    return match[2] if match else ""


def _resolve_link(target: str, source: str) -> str:
    """A link of a page as it is on the site; one to nowhere known is left for mkdocs to complain about."""
    homes = {name: path for path, name in (PAGES | PICTURES).items()}
    here = homes.get(source, f"docs/{source}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
    page = (PAGES | PICTURES).get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
    return target if page is None else posixpath.relpath(page, posixpath.dirname(source) or ".")


def _text(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    return notebook_page(json.loads(text)) if path.endswith(".ipynb") else text


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its texts, its code, and the outputs that are kept in it."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [shown for output in cell["outputs"] if (shown := _output(output))]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![output](data:image/png;base64,{data['image/png'].strip()})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
