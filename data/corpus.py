"""Corpora: named streams of documents that can be read again from the start as often as needed.

A corpus numbers what its reader yields. Only documents with text get a number, so a document's ordinal
depends on the corpus alone and is the same for every pass and every shard. One document is in memory
at a time.

How a source becomes documents:
    stdlib               every module of Python's standard library
    FILE.jsonl           one document a line, from one field; FILE.parquet: one a row, from one column
    any other file       its paragraphs, grouped at blank lines into documents of about 16 kB (less in a
                         file below 640 kB, so that there are enough of them to be split); text and JSONL
                         may be compressed (.gz)
    FOLDER               one document a file, in sorted order, whatever its suffix; files above 1 MiB are
                         grouped as above
    -                    standard input, JSONL where its first line is a JSON object, else text
    NAME or NAME:SUBSET  the train split of a Hugging Face dataset, streamed
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Self

from ..subject.errors import NeuronautError
from .readers import Document, Reader, open_reader

__all__ = ["Corpus", "Document"]


class Corpus:
    """A named stream of documents; iterating yields `(ordinal, document)`, from the start each time.

    >>> corpus = Corpus.of("mine", ["A first document.", "And a second one."])
    >>> [document.text for _, document in corpus]
    ['A first document.', 'And a second one.']
    """

    def __init__(self, name: str, read: Reader) -> None:
        self.name = name
        self.skipped: Counter[str] = Counter()
        """Counts of the documents that the latest whole pass left out, by reason."""
        self._read = read

    @classmethod
    def of(cls, name: str, texts: Iterable[str]) -> Self:
        """A corpus of texts that are in memory."""
        documents = [Document(f"{name}:{number}", text) for number, text in enumerate(texts)]
        return cls(name, lambda _skipped: iter(documents))

    @classmethod
    def load(
        cls, source: str | Path, *, text_column: str = "text", encoding: str = "utf-8", chat: bool = False
    ) -> Self:
        """The corpus that `source` names; see the top of this module.

        `text_column` is the field or column of JSONL, Parquet and datasets that holds the text; of a `chat` it holds
        lists of messages, and the documents are these as JSON.
        Raises NeuronautError where there is nothing to read, or where it cannot be read as text.
        """
        name = "stdin" if source == "-" else str(source)
        corpus = cls(name, open_reader(str(source), column=text_column, encoding=encoding, chat=chat))
        # A wrong column or encoding should show now, not when the model has been loaded.
        next(iter(corpus))
        return corpus

    def __iter__(self) -> Iterator[tuple[int, Document]]:
        skipped: Counter[str] = Counter()
        ordinal = 0
        for document in self._read(skipped):
            if reason := _reason_unfit(document.text):
                skipped[reason] += 1
            else:
                yield ordinal, document
                ordinal += 1
        self.skipped = skipped
        if ordinal == 0:
            left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "nothing"
            raise NeuronautError(f"the corpus {self.name!r} holds no text (left out: {left_out}); give another one")

    def shard(self, index: int, count: int) -> Iterator[tuple[int, Document]]:
        """The documents whose ordinal is `index` modulo `count`, with their ordinals in the whole corpus."""
        return ((ordinal, document) for ordinal, document in self if ordinal % count == index)

    def map(self, change: Callable[[str], str]) -> "Corpus":
        """The corpus with every document's text changed."""
        return Corpus(self.name, partial(_map, self._read, change))

    def named(self, name: str) -> "Corpus":
        """The same text under another name."""
        return Corpus(name, self._read)

    def head(self, characters: int) -> "Corpus":
        """The corpus up to the document that reaches so many characters; for streams too long to read whole."""
        return Corpus(f"{self.name}[:{characters}]", partial(_head, self._read, characters))


def _map(read: Reader, change: Callable[[str], str], skipped: Counter[str]) -> Iterator[Document]:
    return (Document(document.name, change(document.text)) for document in read(skipped))


def _head(read: Reader, characters: int, skipped: Counter[str]) -> Iterator[Document]:
    for document in read(skipped):
        yield document
        characters -= len(document.text)
        if characters <= 0:
            return


def _reason_unfit(text: str) -> str:
    """Why a text can be no document; empty where it can."""
    if not text.strip():
        return "empty documents"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "documents with lone surrogates"
    return ""
