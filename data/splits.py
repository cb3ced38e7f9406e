"""Splits: which documents explainers see, and which ones explanations are scored on.

Near-duplicate documents fall into one split. Each document is reduced to a MinHash signature of its
runs of four words; documents that share a band of the signature, and agree in at least three tenths of
all of it with the document of smallest content hash in that band, are joined, and connected documents
are a cluster. Of two documents that share a fraction J of their runs, the signatures agree in about J:
one word in twenty changed gives J = 0.69, one in ten 0.49, joined with a probability above 0.99 and
0.94; unrelated texts lie near 0.02. What is compared are whole documents: a short quotation inside a
long text joins nothing.

A cluster's split follows from its smallest content hash and the seed alone, so neither the order of
the documents nor the sharding matters, and a text keeps its split when the corpus grows around it
(below a hundred clusters splits go by rank instead, so that none is empty).
Words are taken from bytes: runs of letters, digits and underscores in any script, except that each
Chinese, Japanese or Korean character is a word. Memory: about 400 bytes per document.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..subject.errors import NeuronautError
from .corpus import Corpus
from .records import SPLITS, Split

BANDS, ROWS = 48, 4
WORDS = 4
ALIKE = 0.3
"""Fraction of two signatures that must agree."""
FRACTIONS = {"train": 0.5, "select": 0.2, "holdout": 0.3}
FEW = 100
SAMPLE, PASSAGE = 256, 1024
"""Passages in the sample, and characters in a passage."""
PIECE = 1 << 18
"""Characters whose words are hashed at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """The cluster and the split of every document of a corpus, by ordinal."""

    clusters: NDArray[np.int64]
    """Smallest ordinal of the document's cluster, shape (document,)."""
    splits: NDArray[np.int8]
    """Index into SPLITS, shape (document,)."""
    characters: NDArray[np.int64]
    """Length of each document, shape (document,)."""
    sample: tuple[str, ...]
    """Passages from all over the corpus: enough to tell how many characters make a token."""
    digest: str
    """Hash of the corpus's texts in their order."""
    seed: int

    def cluster(self, ordinal: int) -> int:
        """The smallest ordinal among the document's near-duplicates, itself included."""
        return int(self.clusters[ordinal])

    def split(self, ordinal: int) -> int:
        """The document's split, as an index into SPLITS."""
        return int(self.splits[ordinal])


def assign(corpus: Corpus, *, seed: int = 0, fewest: int = len(SPLITS)) -> Splits:
    """Read the corpus once and give every document its cluster and its split.

    Raises NeuronautError where there are fewer clusters than `fewest`; of fewer than splits, train comes first, then
    the holdout.
    """
    signatures, contents, characters = bytearray(), array("Q"), array("q")
    sample: list[tuple[float, str]] = []
    for _, document in corpus:
        content = _hash_content(document.text)
        signatures += signature(document.text).tobytes()
        contents.append(content)
        characters.append(len(document.text))
        sample = _update_sample(sample, document.text, content)
    content = np.frombuffer(contents, np.uint64)
    clusters = _clusters(np.frombuffer(signatures, np.uint16).reshape(len(content), -1), content)
    return Splits(
        clusters=clusters,
        splits=_splits(corpus.name, clusters, content, seed=seed, fewest=fewest),
        characters=np.frombuffer(characters, np.int64),
        sample=tuple(text for _, text in sample),
        digest=_digest(content),
        seed=seed,
    )


def find_digest(corpus: Corpus) -> str:
    """The `digest` of a corpus's splits, without these."""
    return _digest(np.array([_hash_content(document.text) for _, document in corpus], np.uint64))


def part(split: Split, document: str) -> Split:
    """The split of evidence that a document of a stored split belongs to: half of `select` is `tune`, by its name."""
    if split != "select":
        return split
    return "tune" if hashlib.blake2b(document.encode(), digest_size=1).digest()[0] & 1 else "select"


def chance(values: NDArray[np.uint64] | NDArray[np.int64], *, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for every integer, uniform, and independent of its neighbours' and of other seeds'."""
    salt = _mix(np.array([seed], np.int64).view(np.uint64))
    return (_mix(values.view(np.uint64) ^ salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _hash_content(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _digest(content: NDArray[np.uint64]) -> str:
    return hashlib.blake2b(content.tobytes(), digest_size=16).hexdigest()


def _update_sample(sample: list[tuple[float, str]], text: str, content: int) -> list[tuple[float, str]]:
    """The passages of lowest draw among the sample's and the text's."""
    draws = chance(np.uint64(content) + np.arange(-(-len(text) // PASSAGE), dtype=np.uint64), seed=0)
    (low,) = np.nonzero(draws < (sample[-1][0] if len(sample) == SAMPLE else 1.0))
    passages = [(float(draws[number]), text[number * PASSAGE : (number + 1) * PASSAGE]) for number in low]
    return sorted(sample + passages)[:SAMPLE] if passages else sample


def signature(text: str) -> NDArray[np.uint16]:
    """The low 16 bits of the smallest of each of 192 hashes over the text's runs of words. Shape (192,)."""
    smallest = np.full(BANDS * ROWS, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(text), PIECE):
        runs = _runs(_words(text[start : start + PIECE]))
        for block in range(0, len(runs), 1024):
            hashes = runs[block : block + 1024, None] * _MULTIPLIERS + _ADDENDS
            np.minimum(smallest, hashes.min(axis=0), out=smallest)
    return smallest.astype(np.uint16)


def _words(text: str) -> NDArray[np.uint64]:
    """Hash of every word: the sum over its bytes of a random number by byte times one by place. Shape (word,)."""
    data = np.frombuffer(text.encode(), np.uint8)
    inside = _BYTES[data] != 0
    starts = inside & (data >= _FIRST_OF_CJK)
    starts[1:] |= inside[1:] & ~inside[:-1]
    starts[0] = inside[0]
    (begin,) = np.nonzero(starts)
    if not len(begin):
        return np.zeros(0, np.uint64)
    data = data[begin[0] :]
    begin -= begin[0]
    place = np.arange(len(data)) - np.repeat(begin, np.diff(begin, append=len(data)))
    return _mix(np.add.reduceat(_BYTES[data] * _PLACES[place % len(_PLACES)], begin))


def _runs(words: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Hash of every run of WORDS words; of what there is, where there are fewer. Shape (run,)."""
    words = np.pad(words, (0, max(0, WORDS - len(words))))
    rolled = np.zeros(len(words) - WORDS + 1, np.uint64)
    for place in range(WORDS):
        rolled = rolled * _PLACES[0] + words[place : place + len(rolled)]
    return (_mix(rolled) >> np.uint64(32)).astype(np.uint32)


def _clusters(signatures: NDArray[np.uint16], content: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Smallest ordinal of each document's connected component. Shape (document,)."""
    parent = list(range(len(content)))

    def root(ordinal: int) -> int:
        while parent[ordinal] != ordinal:
            parent[ordinal] = ordinal = parent[parent[ordinal]]
        return ordinal

    for left, right in _pairs(signatures, content):
        low, high = sorted((root(left), root(right)))
        parent[high] = low
    return np.array([root(ordinal) for ordinal in range(len(content))], np.int64)


def _pairs(signatures: NDArray[np.uint16], content: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Documents that share a band, each with the one of smallest content hash there, if their signatures agree."""
    bands = signatures.view(np.uint64)
    by_band: list[NDArray[np.int64]] = []
    for band in bands.T:
        order = np.lexsort((content, band))
        ranked = band[order]
        first = np.arange(len(order))
        first[1:][ranked[1:] == ranked[:-1]] = 0
        pairs = np.stack([order, order[np.maximum.accumulate(first)]], axis=1)
        by_band.append(pairs[pairs[:, 0] != pairs[:, 1]])
    pairs = np.unique(np.concatenate(by_band), axis=0)
    for start in range(0, len(pairs), 4096):
        left, right = pairs[start : start + 4096].T
        alike = (signatures[left] == signatures[right]).mean(axis=1) >= ALIKE
        yield from pairs[start : start + 4096][alike].tolist()


def _splits(
    name: str, clusters: NDArray[np.int64], content: NDArray[np.uint64], *, seed: int, fewest: int
) -> NDArray[np.int8]:
    """Index into SPLITS of every document, by its cluster's smallest content hash. Shape (document,)."""
    roots, cluster = np.unique(clusters, return_inverse=True)
    if len(roots) < fewest:
        raise NeuronautError(
            f"the corpus {name!r} has {len(roots)} document(s), near-duplicates counted once; "
            f"{', '.join(SPLITS)} need at least {len(SPLITS)}: give more text"
        )
    smallest = np.full(len(roots), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, cluster, content)
    draw = chance(smallest, seed=seed)
    bounds = np.cumsum([FRACTIONS[split] for split in SPLITS[:-1]])
    if len(roots) < FEW:
        draw = draw.argsort().argsort()
        train, holdout = max(1, len(roots) // 2), max(1, round(FRACTIONS["holdout"] * len(roots)))
        bounds = np.array([train, max(train, len(roots) - holdout)])
    return np.searchsorted(bounds, draw, side="right").astype(np.int8)[cluster]


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection that scatters neighbours."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _byte_table() -> NDArray[np.uint64]:
    """A random number per byte that belongs to words, the same for both cases of a letter; 0 for the others."""
    letters = [chr(byte).lower() for byte in range(256)]
    numbers = _mix(
        np.array([ord(letter) if letter < "\x80" else byte for byte, letter in enumerate(letters)], np.uint64)
    )
    return np.where(
        [letter >= "\x80" or letter.isalnum() or letter == "_" for letter in letters], numbers, np.uint64(0)
    )


_FIRST_OF_CJK = 0xE3
"""UTF-8 characters that begin with this byte or a later one are Chinese, Japanese, Korean or rarer."""
_BYTES = _byte_table()
_PLACES = _mix(np.arange(1000, 1064, dtype=np.uint64)) | np.uint64(1)
_MULTIPLIERS = _mix(np.arange(2000, 2000 + BANDS * ROWS, dtype=np.uint64)).astype(np.uint32) | np.uint32(1)
_ADDENDS = _mix(np.arange(3000, 3000 + BANDS * ROWS, dtype=np.uint64)).astype(np.uint32)
