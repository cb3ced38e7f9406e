"""Windows: documents as runs of tokens, the unit that everything is harvested in.

A document is cut into consecutive windows of one length that do not overlap; the last one, or the only one of a short
document, is what is left, and ends in padding. A window never spans two documents. Its uid is made of the document's
ordinal and its number therein, so it is the same for every batch size and sharding.

A budget of N tokens takes a uniform sample of windows from the whole corpus, not its beginning: of each
document the same fraction, N / (tokens expected in the corpus), namely the windows whose uids have the
lowest hashes; which way a document's fraction of a window is rounded is drawn too. That expectation
comes from the documents' lengths and the characters per token of a sample, both known before the first
window, so every shard takes exactly its part of the same sample. It comes out within a few per cent of
N. Where the corpus is more than 16 times the budget, only documents of low hash are tokenised at all.

Another thread reads and tokenises the next documents while these windows are used. It is one group of documents ahead,
so memory is bounded; what comes, and in which order, does not depend on it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...subject.errors import NeuronautError
from ..corpus import Corpus, Document
from ..padding import cut
from ..splits import Splits, chance

if TYPE_CHECKING:
    from ...subject.model import Subject

NUMBERS = 1 << 20
"""Windows that one document may have."""
SPARE, DOCUMENTS = 16, 1000
"""A budget is drawn from documents of this many times its size, and from about this many at least."""
GROUP = 1 << 18
"""Characters that are tokenised at once."""


class WindowBatch(NamedTuple):
    """Windows with where they come from."""

    tokens: NDArray[np.int64]
    """Token ids without BOS, PADDING behind a window's end, shape (row, position)."""
    uid: NDArray[np.int64]
    """Document ordinal * 2**20 + number of the window in its document, shape (row,)."""
    cluster: NDArray[np.int64]
    """Smallest ordinal of the document's near-duplicates, shape (row,)."""
    split: NDArray[np.int8]
    """Index into SPLITS, shape (row,)."""


@dataclass(slots=True)
class Given:
    """Counts of what a shard's documents hold, whether a budget takes it or not."""

    tokens: int = 0
    """Tokens of the documents that were read, BOS not counted."""
    own_bos: int = 0
    """Documents that begin with a BOS of their own, which is left out."""
    spelled: int = 0
    """Documents that spell special tokens, read as text."""


class _Choice(NamedTuple):
    """The windows that a budget takes."""

    documents: NDArray[np.bool_]
    """Which documents are tokenised, shape (document,)."""
    rate: float
    """Fraction of their windows that is taken."""


def windows(
    corpus: Corpus,
    subject: "Subject",
    splits: Splits,
    *,
    window: int = 64,
    tokens: int | None = None,
    shard: tuple[int, int] = (0, 1),
    rows: int = 32,
    given: Given | None = None,
) -> Iterator[WindowBatch]:
    """Yield the windows of `window` tokens of one shard in batches of `rows`, the last of which may be smaller.

    `tokens` bounds, to within a few per cent, the tokens of all shards together (None: all there are).
    `shard` is (index, count). What its documents hold is added to `given`.
    Raises NeuronautError for a window that the subject's context cannot hold, or a budget below one window.
    """
    check_window(subject, window)
    if tokens is not None and tokens < window:
        raise NeuronautError(f"a budget of {tokens} tokens is less than one window of {window}; give a larger --tokens")
    choice = _choose_documents(subject, splits, tokens)
    parts = _cut_documents(
        corpus,
        subject=subject,
        splits=splits,
        choice=choice,
        window=window,
        shard=shard,
        given=Given() if given is None else given,
    )
    return _batches(parts, rows)


def check_window(subject: "Subject", window: int) -> None:
    """Refuse a window that the subject's context cannot hold."""
    room = subject.room
    if not 0 < window <= room:
        bos = " and BOS" if subject.bos_prefix else ""
        bos = bos if subject.causal else " and what stands around them"
        raise NeuronautError(
            f"a window of {window} tokens{bos} do not fit {subject.context} positions; give --window 1 to {room}"
        )


def _choose_documents(subject: "Subject", splits: Splits, tokens: int | None) -> _Choice:
    """The documents that a budget of tokens is drawn from, and the fraction of their windows that it takes."""
    documents = np.ones(len(splits.clusters), bool)
    if tokens is None:
        return _Choice(documents, 1.0)
    expected = _expected_tokens(subject, splits)
    part = max(SPARE * tokens / max(1.0, expected.sum()), DOCUMENTS / len(documents))
    documents = chance(np.arange(len(documents)), seed=splits.seed) < part
    return _Choice(documents, tokens / max(1.0, expected[documents].sum()))


def expected_tokens(subject: "Subject", splits: Splits, tokens: int | None) -> int:
    """About how many tokens a harvest with this budget reads."""
    total = round(float(_expected_tokens(subject, splits).sum()))
    return total if tokens is None else min(tokens, total)


def documents_to_read(subject: "Subject", splits: Splits, tokens: int | None) -> NDArray[np.bool_]:
    """The documents that a budget is drawn from, (document,): they are tokenised, whether it takes them or not."""
    return _choose_documents(subject, splits, tokens).documents


def _expected_tokens(subject: "Subject", splits: Splits) -> NDArray[np.float64]:
    """About how many tokens each document has, (document,), by the characters per token of a sample."""
    sampled = sum(map(len, subject.encode_all(splits.sample)))
    return (splits.characters * (max(1, sampled) / sum(map(len, splits.sample)))).astype(np.float64)


def _cut_documents(
    corpus: Corpus,
    subject: "Subject",
    splits: Splits,
    choice: _Choice,
    window: int,
    shard: tuple[int, int],
    given: Given,
) -> Iterator[WindowBatch]:
    """The chosen windows, document by document."""
    for ordinal, document, ids in _encode_ahead(_groups(corpus, choice.documents, shard), subject):
        given.own_bos += subject.brings_bos(document.text)
        given.spelled += subject.spells_special(document.text)
        given.tokens += len(ids)
        rows = cut(ids, window)
        count = len(rows)
        if count > NUMBERS:
            raise NeuronautError(
                f"the document {document.name} has {count} windows; {NUMBERS} are possible: cut it into several"
            )
        number = _draw_windows(ordinal, count, choice.rate, splits.seed)
        cluster = np.full(len(number), splits.cluster(ordinal))
        split = np.full(len(number), splits.split(ordinal), np.int8)
        yield WindowBatch(rows[number], ordinal * NUMBERS + number, cluster, split)


def _encode_ahead(
    groups: Iterator[list[tuple[int, Document]]], subject: "Subject"
) -> Iterator[tuple[int, Document, list[int]]]:
    """Documents with their ordinals and token ids, those of the next group read by another thread meanwhile."""

    def encode_next() -> list[tuple[int, Document, list[int]]]:
        group = next(groups, [])
        encoded = subject.encode_all([document.text for _, document in group]) if group else []
        return [(ordinal, document, ids) for (ordinal, document), ids in zip(group, encoded, strict=True)]

    with ThreadPoolExecutor(1, thread_name_prefix="tokens") as pool:
        coming = pool.submit(encode_next)
        while documents := coming.result():
            coming = pool.submit(encode_next)
            yield from documents


def _draw_windows(ordinal: int, count: int, rate: float, seed: int) -> NDArray[np.int64]:
    """Which of a document's `count` windows are taken, in their order; each has the chance `rate`."""
    # Other seeds than the documents' choice: the three draws must be independent.
    rounding = float(chance(np.array([ordinal]), seed=seed ^ 1 << 32)[0])
    draws = chance(ordinal * NUMBERS + np.arange(count), seed=seed ^ 1 << 33)
    return np.sort(np.argsort(draws)[: int(count * rate + rounding)])


def _groups(
    corpus: Corpus, documents: NDArray[np.bool_], shard: tuple[int, int]
) -> Iterator[list[tuple[int, Document]]]:
    """The chosen documents of the shard in groups that are tokenised together."""
    group: list[tuple[int, Document]] = []
    size = 0
    for ordinal, document in corpus.shard(*shard):
        if ordinal >= len(documents):
            raise NeuronautError(f"the corpus {corpus.name!r} grew while it was being read; run the command again")
        if documents[ordinal]:
            group.append((ordinal, document))
            size += len(document.text)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _batches(parts: Iterator[WindowBatch], rows: int) -> Iterator[WindowBatch]:
    """The same windows in batches of `rows`, the last of which may be smaller."""
    waiting: list[WindowBatch] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part.uid)
        if count >= rows:
            joined, whole = join_batches(waiting), count - count % rows
            yield from (_slice(joined, start, start + rows) for start in range(0, whole, rows))
            waiting, count = [_slice(joined, whole, count)], count - whole
    if count:
        yield join_batches(waiting)


def join_batches(parts: Sequence[WindowBatch]) -> WindowBatch:
    """One batch of the windows of several, in their order."""
    tokens, uid, cluster, split = zip(*parts, strict=True)
    return WindowBatch(np.concatenate(tokens), np.concatenate(uid), np.concatenate(cluster), np.concatenate(split))


def _slice(batch: WindowBatch, start: int, stop: int) -> WindowBatch:
    span = slice(start, stop)
    return WindowBatch(batch.tokens[span], batch.uid[span], batch.cluster[span], batch.split[span])
