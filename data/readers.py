"""Readers: from the name of a corpus to its documents.

A reader yields documents from the start each time it is called, one in memory at a time, and counts in
its argument, by reason, what it leaves out. What is wrong with a file becomes one line (NeuronautError);
in a folder a file that is no text is left out and counted instead.
"""

import codecs
import gzip
import importlib
import json
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader, TextIOWrapper
from itertools import starmap
from pathlib import Path
from typing import BinaryIO, TextIO

from ..subject.convention import is_chat
from ..subject.errors import NeuronautError
from . import stdlib

PIECE = 16_384
"""Characters after which a text is cut at the next blank line."""
WHOLE = 1 << 20
"""Bytes up to which a file in a folder is one document."""
GENERATED = frozenset({"__pycache__", "node_modules"})
PATH_STARTS = (".", "/", "~")
UNREADABLE = (OSError, EOFError, zlib.error)


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the name that leads back to it: `json/decoder.py`, `news.jsonl:17`, `book.txt#3`.

    >>> Document("notes.txt", "Some text.").name
    'notes.txt'
    """

    name: str
    text: str


Reader = Callable[[Counter[str]], Iterator[Document]]


@dataclass(frozen=True, slots=True)
class File:
    """A file, what its documents are called, and how to read it."""

    path: Path
    label: str
    column: str
    encoding: str
    chat: bool = False
    """Whether the column holds lists of messages, which become JSON."""
    keeps: object = None
    """The temporary file that `path` names, which is removed when nothing holds it."""

    @contextmanager
    def open_text(self) -> Iterator[TextIO]:
        """The file as text, decompressed."""
        try:
            with _open_bytes(self.path) as raw, TextIOWrapper(raw, _codec(self.encoding)) as text:
                yield text
        except UnicodeDecodeError:
            offset, value = self.undecodable_byte() or (0, 0)
            raise NeuronautError(
                f"{self.label} is not {self.encoding}: byte {offset} is {value:#04x}; "
                "give the encoding that it has, for example --encoding latin-1"
            ) from None
        except UNREADABLE as error:
            raise NeuronautError(f"cannot read {self.label}: {error}; is it whole, and is its suffix right?") from None

    def undecodable_byte(self) -> tuple[int, int] | None:
        """Offset and value of the first byte that is not in the file's encoding."""
        decoder = codecs.getincrementaldecoder(_codec(self.encoding))()
        start = 0
        with _open_bytes(self.path) as raw:
            while True:
                chunk = raw.read(WHOLE)
                pending = len(decoder.getstate()[0])
                try:
                    decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    return start - pending + error.start, error.object[error.start]
                if not chunk:
                    return None
                start += len(chunk)


def open_reader(source: str, *, column: str, encoding: str, chat: bool = False) -> Reader:
    """The reader of a corpus by its name on the command line; NeuronautError where there is no such thing."""
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise NeuronautError(f"{encoding!r} is no encoding that Python knows; utf-8 and latin-1 are two") from None
    if source == "stdlib":
        return _read_stdlib
    if source == "-":
        return _spool(sys.stdin.buffer, File(Path(), "stdin", column, encoding, chat))
    path = Path(source).expanduser()
    if path.is_dir():
        return partial(_read_folder, path, encoding)
    file = File(path, path.name, column, encoding, chat)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if path.is_file():
        return partial(FORMATS.get(kind, _read_text), file)
    if path.exists():
        with path.open("rb") as pipe:
            return _spool(pipe, file)
    if source.startswith(PATH_STARTS) or kind in {".txt", *FORMATS}:
        raise NeuronautError(f"there is no file or folder {source}; check the path, or use: --corpus stdlib")
    return partial(_read_dataset, source, column, chat)


def _read_stdlib(_skipped: Counter[str]) -> Iterator[Document]:
    return starmap(Document, stdlib.modules())


def _spool(stream: BinaryIO, file: File) -> Reader:
    """A reader of a stream, which can be read only once, from a temporary copy.

    The copy is read as JSONL where its first line is a JSON object.
    """
    spool = tempfile.NamedTemporaryFile(prefix="neuronaut-")  # noqa: SIM115 (the File holds it open)
    shutil.copyfileobj(stream, spool)
    spool.flush()
    file = replace(file, path=Path(spool.name), keeps=spool)
    with file.open_text() as text:
        first = next((line for line in text if line.strip()), "")
    with suppress(json.JSONDecodeError):
        if isinstance(json.loads(first), dict):
            return partial(_read_jsonl, file)
    return partial(_read_text, file)


def _read_text(file: File, _skipped: Counter[str]) -> Iterator[Document]:
    # A small file is cut finer, for it must give documents to every split.
    size = min(PIECE, max(PIECE // 16, file.path.stat().st_size // 40))
    with file.open_text() as text:
        for number, piece in enumerate(_cut_pieces(text, size)):
            yield Document(f"{file.label}#{number}", piece)


def _cut_pieces(text: TextIO, size: int) -> Iterator[str]:
    """Cut at the first blank line after `size` characters; without one, at the line that passes four times that."""
    lines: list[str] = []
    length = 0
    while line := text.readline(4 * size):
        lines.append(line)
        length += len(line)
        if length >= (4 * size if line.strip() else size):
            yield "".join(lines)
            lines, length = [], 0
    if lines:
        yield "".join(lines)


def _read_jsonl(file: File, _skipped: Counter[str]) -> Iterator[Document]:
    with file.open_text() as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            name = f"{file.label}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise NeuronautError(f"{name} is not JSON ({error.msg}); want one object a line") from None
            if not isinstance(row, dict):
                raise NeuronautError(f"{name} is a JSON {type(row).__name__}; want one object a line")
            yield Document(name, _read_field(row, file.column, name, chat=file.chat))


def _read_parquet(file: File, _skipped: Counter[str]) -> Iterator[Document]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise NeuronautError(f"{file.label} needs pyarrow; run: pip install 'neuronaut[parquet]'") from None
    try:
        table = parquet.ParquetFile(file.path)
    except (OSError, ValueError) as error:
        raise NeuronautError(f"{file.label} is not a Parquet file: {error}; give another one") from None
    number = 0
    with table:
        _check_column(table.schema_arrow.names, file.column, file.label)
        for batch in table.iter_batches(batch_size=256, columns=[file.column]):
            for value in batch.column(0).to_pylist():
                name = f"{file.label}:{number}"
                yield Document(name, _read_field({file.column: value}, file.column, name, chat=file.chat))
                number += 1


FORMATS: Mapping[str, Callable[[File, Counter[str]], Iterator[Document]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _read_folder(folder: Path, encoding: str, skipped: Counter[str]) -> Iterator[Document]:
    for path in _walk(folder, skipped):
        file = File(path, path.relative_to(folder).as_posix(), "", encoding)
        if reason := _reason_no_text(file):
            skipped[reason] += 1
        elif path.stat().st_size > WHOLE:
            yield from _read_text(file, skipped)
        else:
            with file.open_text() as text:
                yield Document(file.label, text.read())


def _walk(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in GENERATED:
            skipped["hidden or generated files and folders"] += 1
        elif path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _walk(path, skipped)
        else:
            skipped["links to folders and special files"] += 1


def _reason_no_text(file: File) -> str:
    """Why a file in a folder is left out; empty where it is text."""
    try:
        with file.path.open("rb") as raw:
            if b"\0" in raw.read(8192):
                return "binary files"
        return f"files that are not {file.encoding}" if file.undecodable_byte() else ""
    except UNREADABLE:
        return "unreadable files"


def _read_dataset(source: str, column: str, chat: bool, _skipped: Counter[str]) -> Iterator[Document]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise NeuronautError(
            f"there is no file or folder {source}; if it is a Hugging Face dataset, "
            "run: pip install 'neuronaut[datasets]'"
        ) from None
    name, _, subset = source.partition(":")
    try:
        rows = datasets.load_dataset(name, subset or None, split="train", streaming=True)
        for number, row in enumerate(rows):
            yield Document(f"{source}:{number}", _read_field(row, column, f"{source}:{number}", chat=chat))
    except NeuronautError:
        raise
    except Exception as error:  # the library's errors have no base in common
        message = str(error).partition("\n")[0] or type(error).__name__
        raise NeuronautError(
            f"{source} is no file or folder, and as a Hugging Face dataset it gives: {message}; "
            "check the name (NAME or NAME:SUBSET) and the network"
        ) from None


def _read_field(row: Mapping[str, object], column: str, where: str, *, chat: bool) -> str:
    """The text of a row, of a `chat` its messages as JSON; null is the empty text, which a corpus leaves out."""
    _check_column(list(row), column, where)
    value = row[column]
    if chat and is_chat(value):
        return json.dumps(value, ensure_ascii=False)
    if chat:
        raise NeuronautError(f"{where}: {column!r} is no chat; wanted a list of messages with role and content")
    if is_chat(value):
        raise NeuronautError(f"{where}: {column!r} is a chat; add --chat to put it into the model's template")
    if value is not None and not isinstance(value, str):
        raise NeuronautError(f"{where}: {column!r} is {type(value).__name__}, not text; choose with --text-column")
    return value or ""


def _check_column(columns: list[str], column: str, where: str) -> None:
    if column not in columns:
        raise NeuronautError(f"{where} has no {column!r}, only {', '.join(columns)}; choose with --text-column")


def _codec(encoding: str) -> str:
    """utf-8 with or without a byte order mark, and every other encoding as it is."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _open_bytes(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
