import builtins
import gzip
import importlib.util
import io
import json
import os
import sys
import threading
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronaut.data import stdlib
from neuronaut.data.corpus import Corpus, Document
from neuronaut.data.readers import _read_dataset
from neuronaut.subject.errors import NeuronautError

TEXTS = ["Ein Satz über Öl.", "line one\nline two", "日本語の文"]


def texts(corpus: Corpus) -> list[str]:
    return [document.text for _, document in corpus]


def jsonl(rows: list[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_of_can_be_read_again_and_names_its_documents():
    corpus = Corpus.of("three", iter(TEXTS))
    assert list(corpus) == list(corpus) == [(i, Document(f"three:{i}", text)) for i, text in enumerate(TEXTS)]


def test_two_passes_at_once_do_not_disturb_each_other(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(jsonl([{"text": text} for text in TEXTS]))
    corpus = Corpus.load(tmp_path / "a.jsonl")
    assert all(left == right for left, right in zip(corpus, corpus, strict=True))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("column", ["text", "body"])
def test_tables_give_their_column_and_count_rows_without_text(tmp_path: Path, name: str, column: str):
    values = [TEXTS[0], None, TEXTS[1], "  \n", TEXTS[2]]
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"id": range(5), column: values}), path, row_group_size=2)
    else:
        text = jsonl([{"id": 1, column: value} for value in values])
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    corpus = Corpus.load(path, text_column=column)
    assert texts(corpus) == texts(corpus) == TEXTS
    assert corpus.skipped == {"empty documents": 2}
    assert [ordinal for ordinal, _ in corpus] == [0, 1, 2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, name: str):
    if name == "a.jsonl":
        (tmp_path / name).write_text(jsonl([{"title": "x", "body": "y"}]))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"title": ["x"], "body": ["y"]}), tmp_path / name)
    with pytest.raises(NeuronautError, match=r"no 'text', only title, body; choose with --text-column"):
        Corpus.load(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', r"a.jsonl:2 is not JSON"),
        ('{"text": "a"}\n\n["b"]\n', r"a.jsonl:3 is a JSON list; want one object a line"),
        ('{"text": "a"}\n{"text": 3}\n', r"a.jsonl:2: 'text' is int, not text"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: str, message: str):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(NeuronautError, match=message):
        list(Corpus.load(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz"])
def test_a_file_that_is_not_what_its_suffix_says(tmp_path: Path, name: str):
    (tmp_path / name).write_text("plain text")
    with pytest.raises(NeuronautError, match=name):
        Corpus.load(tmp_path / name)


def test_a_truncated_gzip_is_an_error_not_a_shorter_corpus(tmp_path: Path):
    whole = gzip.compress(jsonl([{"text": os.urandom(500).hex()} for _ in range(50)]).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NeuronautError, match="cannot read a.jsonl.gz"):
        list(Corpus.load(tmp_path / "a.jsonl.gz"))


def test_lone_surrogates_are_left_out_and_counted(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n')
    corpus = Corpus.load(tmp_path / "a.jsonl")
    assert texts(corpus) == ["fine 😀"]
    assert corpus.skipped == {"documents with lone surrogates": 1}


@given(
    paragraphs=st.lists(st.text("ab \n", min_size=1, max_size=3000), min_size=1, max_size=20), compressed=st.booleans()
)
def test_a_text_file_is_cut_without_losing_a_character(tmp_path_factory, paragraphs: list[str], compressed: bool):
    text = "start\n" + "\n\n".join(paragraphs)
    path = tmp_path_factory.mktemp("cut") / ("a.txt.gz" if compressed else "a.txt")
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    corpus = Corpus.load(path)
    pieces = [document.text for document in corpus._read(corpus.skipped)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 4 * 1024 + 4 * 1024


def test_a_text_file_is_cut_at_blank_lines(tmp_path: Path):
    paragraphs = [f"paragraph {i} " + "word " * 100 + "\n\n" for i in range(2000)]
    (tmp_path / "book.txt").write_text("".join(paragraphs))
    documents = [document for _, document in Corpus.load(tmp_path / "book.txt")]
    assert [document.name for document in documents[:2]] == ["book.txt#0", "book.txt#1"]
    assert all(document.text.startswith("paragraph") for document in documents)
    assert all(16_384 <= len(document.text) < 18_000 for document in documents[:-1])


def test_an_endless_line_is_cut_too(tmp_path: Path):
    (tmp_path / "line.txt").write_text("x" * 3_000_000)
    assert {len(text) for text in texts(Corpus.load(tmp_path / "line.txt"))} <= {65_536, 3_000_000 % 65_536}


def test_a_folder_gives_its_text_files_in_order_and_counts_the_rest(tmp_path: Path):
    for name in ("b.py", "a/z.md", "a/sub/y.txt", ".git/config", "node_modules/x.js", "a/__pycache__/m.txt", ".env"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x00\x00")
    (tmp_path / "latin.txt").write_bytes("Öl".encode("latin-1"))
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    corpus = Corpus.load(tmp_path)
    assert [document.name for _, document in corpus] == ["a/sub/y.txt", "a/z.md", "b.py"]
    assert texts(corpus) == ["text of a/sub/y.txt", "text of a/z.md", "text of b.py"]
    assert corpus.skipped == {
        "hidden or generated files and folders": 4,
        "binary files": 1,
        "files that are not utf-8": 1,
        "empty documents": 1,
        "links to folders and special files": 1,
    }
    assert "Öl" in texts(Corpus.load(tmp_path, encoding="latin-1"))


def test_a_large_file_in_a_folder_is_cut(tmp_path: Path):
    (tmp_path / "large.txt").write_text("a line of text\n\n" * 70_000)
    (tmp_path / "small.txt").write_text("a line of text\n\n" * 6_000)
    names = [document.name for _, document in Corpus.load(tmp_path)]
    assert names.count("small.txt") == 1
    assert len(names) > 60


@pytest.mark.parametrize("before", [0, 10, 2_000_000])
def test_a_file_that_is_not_utf8_is_told_with_its_first_wrong_byte(tmp_path: Path, before: int):
    content = "ö".encode() * (before // 2) + b"\xd6l"
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(NeuronautError, match=rf"a.txt is not utf-8: byte {before} is 0xd6; .*--encoding latin-1"):
        list(Corpus.load(tmp_path / "a.txt"))
    assert "".join(texts(Corpus.load(tmp_path / "a.txt", encoding="latin-1"))) == content.decode("latin-1")


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert texts(Corpus.load(tmp_path / "a.txt")) == ["hello"]


def test_an_unknown_encoding(tmp_path: Path):
    with pytest.raises(NeuronautError, match="'klingon' is no encoding"):
        Corpus.load(tmp_path, encoding="klingon")


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('\n{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        ("{ not JSON }\nbut text\n", ["{ not JSON }\nbut text\n"]),
        ("[1, 2]\n", ["[1, 2]\n"]),
    ],
)
def test_standard_input_can_be_read_twice(monkeypatch: pytest.MonkeyPatch, content: str, expected: list[str]):
    monkeypatch.setattr(sys, "stdin", Stdin(content.encode()))
    corpus = Corpus.load("-")
    assert corpus.name == "stdin"
    assert texts(corpus) == texts(corpus) == expected


def test_a_pipe_can_be_read_twice(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"text": "one"}\n',))
    writer.start()
    corpus = Corpus.load(pipe)
    writer.join()
    assert texts(corpus) == texts(corpus) == ["one"]


def test_the_temporary_file_goes_with_the_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", Stdin(b"some text"))
    corpus = Corpus.load("-")
    assert len(list(tmp_path.iterdir())) == 1
    del corpus
    assert list(tmp_path.iterdir()) == []


def test_stdlib_is_the_standard_library():
    documents = {document.name: document.text for _, document in Corpus.load("stdlib")}
    assert documents["json/decoder.py"] == dict(stdlib.modules())["json/decoder.py"]
    assert not any(name.startswith("test/") for name in documents)


def test_nothing_there_says_what_to_do():
    with pytest.raises(NeuronautError, match=r"there is no file or folder ./nothing.*--corpus stdlib"):
        Corpus.load("./nothing")
    with pytest.raises(NeuronautError, match=r"there is no file or folder news.jsonl.gz"):
        Corpus.load("news.jsonl.gz")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is installed")
def test_a_dataset_needs_its_extra():
    with pytest.raises(NeuronautError, match=r"pip install 'neuronaut\[datasets\]'"):
        Corpus.load("wikitext")


def test_a_dataset_is_streamed_from_its_train_split(tmp_path: Path):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text(jsonl([{"text": text} for text in TEXTS]))
    (tmp_path / "test.jsonl").write_text(jsonl([{"text": "not of the train split"}]))
    corpus = Corpus("local", partial(_read_dataset, str(tmp_path), "text"))
    assert texts(corpus) == texts(corpus) == TEXTS


def test_parquet_needs_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(NeuronautError, match=r"pip install 'neuronaut\[parquet\]'"):
        Corpus.load(tmp_path / "a.parquet")


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_corpus_is_an_error(tmp_path: Path, content: str):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(NeuronautError, match="holds no text"):
        Corpus.load(tmp_path / "a.txt")
    (tmp_path / "b.bin").write_bytes(b"\0")
    with pytest.raises(NeuronautError, match="left out: .*1 binary files"):
        Corpus.load(tmp_path)


@given(count=st.integers(1, 9), size=st.integers(1, 40))
def test_shards_together_are_the_corpus(count: int, size: int):
    corpus = Corpus.of("numbers", [str(i) if i % 5 else " " for i in range(1, size + 1)] + ["end"])
    parts = [pair for index in range(count) for pair in corpus.shard(index, count)]
    assert sorted(parts, key=lambda pair: pair[0]) == list(corpus)
    assert all(ordinal % count == 1 for ordinal, _ in corpus.shard(1, count))


@given(characters=st.integers(1, 30))
def test_head_stops_with_the_document_that_reaches_its_size(characters: int):
    head = Corpus.of("tens", ["x" * 10, "y" * 10, "z" * 10]).head(characters)
    assert len(texts(head)) == -(-characters // 10)


def test_one_document_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.jsonl"
    path.write_text(jsonl([{"text": f"document {i} " * 100} for i in range(2000)]))
    files = []
    real_open = builtins.open
    monkeypatch.setattr(Path, "open", lambda self, mode: files.append(real_open(self, mode)) or files[-1])
    corpus = Corpus.load(path)
    next(iter(corpus))
    assert all(file.closed for file in files)
    stream = iter(corpus)
    for _ in range(10):
        next(stream)
    assert files[-1].tell() < path.stat().st_size / 10
