"""Rows of a table in a file, each with the number of its line: JSON lines or CSV, gzipped or not.

A file is cut into lines at line feeds before it is decoded, so that a line has the number that an editor
shows. Of a feature's page at Neuronpedia (.json) the explanations are the rows. Whatever cannot be read is
an error that names the file and the line.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from ...subject.errors import NeuronautError
from .database import Row

EXPLANATIONS = "explanations"
"""Name of the folders that hold explanations in Neuronpedia's tree."""


class Line(NamedTuple):
    """A row, and the line of the file on which it begins, from 1."""

    number: int
    row: Row


def list_tables(name: str) -> list[Path]:
    """List the file itself, or of a folder: all files in folders called `explanations`, or else those in itself."""
    path = Path(name).expanduser()
    if path.is_dir():
        below = sorted((file for file in path.rglob("*") if _form(file) in FORMS), key=_sort_key)
        files = [file for file in below if file.parent.name == EXPLANATIONS]
        files = files or [file for file in below if file.parent == path]
        if not files:
            raise NeuronautError(f"the folder {path} holds no explanations; wanted files {_WANTED}")
        return files
    if not path.exists():
        raise NeuronautError(f"there is no file or folder {path}; check the path")
    if _form(path) not in FORMS:
        raise NeuronautError(f"{path} is of no kind that can be imported; wanted a file {_WANTED}, or a folder of them")
    return [path]


def read(path: Path) -> Iterator[Line]:
    """The rows of a file, one in memory at a time."""
    return FORMS[_form(path)](path)


def malformed(path: Path, number: int, what: object) -> NeuronautError:
    """The error for a line that cannot be read."""
    return NeuronautError(f"{path}:{number}: {what}; nothing is imported until that is mended")


def _json_rows(path: Path) -> Iterator[Line]:
    for number, text in enumerate(_decoded(path), 1):
        if not text.strip():
            continue
        try:
            row = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            what = getattr(error, "msg", error)
            raise malformed(path, number, f"this is no JSON ({what}), wanted one object a line") from None
        if not isinstance(row, dict):
            raise malformed(path, number, f"this is a JSON {type(row).__name__}, wanted one object a line")
        yield Line(number, row)


def _page_rows(path: Path) -> Iterator[Line]:
    """The explanations of a feature's page, or of a list of pages; the first is row 1."""
    try:
        content = json.loads("".join(_decoded(path)), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise malformed(
            path, getattr(error, "lineno", 1), f"this is no JSON ({getattr(error, 'msg', error)})"
        ) from None
    pages = content if isinstance(content, list) else [content]
    if not all(isinstance(page, dict) and isinstance(page.get("explanations", []), list) for page in pages):
        raise malformed(path, 1, "this is no page of a feature, nor a list of them; wanted an object with explanations")
    named = [({key: page.get(key) for key in ("modelId", "layer", "index")}, page) for page in pages]
    rows = [whose | dict(row) for whose, page in named for row in page.get("explanations", [])]
    yield from (Line(number, row) for number, row in enumerate(rows, 1))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _csv_rows(path: Path) -> Iterator[Line]:
    reader = csv.reader(_decoded(path), strict=True)
    header: list[str] | None = None
    begins = 1
    try:
        for cells in reader:
            number, begins = begins, reader.line_num + 1
            if header is None:
                header = cells
            elif cells and len(cells) != len(header):
                raise malformed(path, number, f"{len(cells)} fields came, wanted {len(header)} as in the first line")
            elif cells:
                yield Line(number, {name: _unguard(cell) or None for name, cell in zip(header, cells, strict=True)})
    except csv.Error as error:
        raise malformed(path, reader.line_num, f"this is no CSV ({error})") from None


_RUN = r"[=+\-@\t\r\n]"
"""What a cell begins with that a spreadsheet takes for a formula."""


def guard_cell(value: object) -> object:
    """The value of a cell, a text with `'` before it where a spreadsheet would run it; numbers are as they are.

    Reading takes one `'` off again; so one is put before a text that has some already, too.
    """
    return f"'{value}" if isinstance(value, str) and re.match(f"'*{_RUN}", value) else value


def _unguard(cell: str) -> str:
    return cell[1:] if re.match(f"'+{_RUN}", cell) else cell


FORMS: Mapping[str, Callable[[Path], Iterator[Line]]] = {".jsonl": _json_rows, ".csv": _csv_rows, ".json": _page_rows}
"""How files are read, by the end of their names before a `.gz`."""
_WANTED = "ending in " + " or ".join((*FORMS, *(f"{form}.gz" for form in FORMS)))


def _form(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _sort_key(path: Path) -> list[tuple[int, str]]:
    """A key that sorts batch-2 before batch-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", str(path))]


def _decoded(path: Path) -> Iterator[str]:
    """The lines with their ends, the first without a byte order mark."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as raw:
            for number, line in enumerate(raw, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise malformed(path, number, "this is not UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise NeuronautError(f"{path} cannot be read after line {number} ({error}); is it whole?") from None
