"""What a harvest does when its text is read: it mines silent windows and near misses, orders all, and writes it.

Mining runs the subject on the pool, a uniform sample of the corpus that the state carries along. Another thread does it
while what is known already is written to the store. Two threads never run the subject at once: hooks would meet.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import torch

from ...subject.address import SourceId
from ...subject.dictionary import Dictionary
from ...subject.direction_matrix import Directions
from ...subject.errors import NeuronautError
from ...subject.head_norms import HeadNorms
from ...subject.head_writes import HeadWrites
from ...subject.model import Subject
from ...subject.sources import Neurons, Source
from ..corpus import Corpus
from ..records import ExampleList, HarvestResult, Kind, Mined, SourceResult, TokenCounts
from .activations import TILE_ROWS, WINDOWS
from .attended import find_attended, find_refusal
from .lists import Lists
from .mining import Mining
from .scan import SUM_UNIT
from .state import POOL, HarvestState
from .top_tokens import rank_tokens
from .watch import Told, Watch

if TYPE_CHECKING:
    from ..store.store import Store

WRITING_SECONDS = 1e-4
"""What writing a feature's row and lists takes, but for the lists that are mined, on a slow machine."""
T = TypeVar("T")


def finish(
    subject: Subject,
    sources: Sequence[Source],
    corpus: Corpus,
    state: HarvestState,
    *,
    seed: int = 0,
    mining: Told = lambda *_: None,
) -> HarvestResult:
    """Mine silent examples and near misses, order everything, and name the documents.

    The result takes over the memory of the state's lists, which are empty afterwards.
    `mining` is told of how many windows the silent ones were looked for so far, and of how many there are.
    """
    ending = _Ending(subject, sources, corpus, state, seed=seed)
    mining(0, ending.mined)
    return _add_mined(ending.result(), ending.mine(mining))


class _Ending:
    """What is left to do when the text is read: to mine, which runs the subject, and what may be done beside it."""

    def __init__(
        self, subject: Subject, sources: Sequence[Source], corpus: Corpus, state: HarvestState, *, seed: int
    ) -> None:
        """Take over the memory of the lists, which are empty afterwards, and do all else that runs the subject."""
        state.prune()
        if state.tokens == 0:
            raise NeuronautError(
                f"the budget took no window of the corpus {corpus.name!r}; give a larger --tokens, or a larger corpus"
            )
        self._subject = subject.with_convention(state.convention or subject.convention)
        self._corpus, self._state, self._counts = corpus, state, _count_tokens(state)
        self._pool = state.table.pool(POOL)
        self._mining = Mining(sources, state, self._pool)
        self._results = tuple(_source_result(self._subject, source, state) for source in sources)
        self._provenance = _describe_run(self._subject, sources, self._counts, seed=seed)

    @property
    def mined(self) -> int:
        """How many windows are mined."""
        return self._mining.windows

    def mine(self, progress: Told) -> Mined:
        """Look for silent examples and near misses."""
        return self._mining.run(self._subject, progress=progress)

    def result(self) -> HarvestResult:
        """All but what is mined, with the names of the documents, for which the corpus is read once more."""
        names = {ordinal: document.name for ordinal, document in self._corpus}
        subject, table = self._subject, self._state.table
        return HarvestResult(
            model=subject.name,
            revision=subject.revision,
            corpus=self._corpus.name,
            tokens=self._state.tokens,
            counts=self._counts,
            window=table.tokens.shape[1],
            windows=table.tokens,
            splits=table.split,
            documents=tuple(map(names.__getitem__, (table.uid >> 20).tolist())),
            pool=self._pool,
            vocabulary=subject.vocabulary,
            sources=self._results,
            provenance=self._provenance,
        )


def _add_mined(result: HarvestResult, mined: Mined) -> HarvestResult:
    sources = (replace(source, lists={**source.lists, **mined[source.source]}) for source in result.sources)
    return replace(result, sources=tuple(sources))


def _describe_run(subject: Subject, sources: Sequence[Source], counts: TokenCounts, *, seed: int) -> dict[str, object]:
    """What the numbers of a harvest depend on."""
    return {
        "seed": seed,
        "rows": subject.batching.most(WINDOWS, TILE_ROWS),
        "device": str(subject.device),
        "torch": torch.__version__,
        "dtype": subject.dtype,
        "convention": asdict(subject.convention),
        "counts": asdict(counts),
        **_describe_heads(subject, sources),
        **_describe_directions(sources),
    }


def _describe_heads(subject: Subject, sources: Sequence[Source]) -> dict[str, object]:
    """Why the examples of heads have no source tokens; nothing where they have them, or there are no heads."""
    heads = (str(source.id) for source in sources if isinstance(source, HeadNorms | HeadWrites))
    reasons = {name: find_refusal(subject, SourceId.parse(name).site) for name in heads}
    refused = {name: reason for name, reason in reasons.items() if reason}
    return {"no_source_tokens": refused} if refused else {}


def _describe_directions(sources: Sequence[Source]) -> dict[str, object]:
    """The names of directions and how these were found, by source; nothing where there are none."""
    matrices = [source for source in sources if isinstance(source, Directions)]
    told = {str(source.id): {"names": list(source.names), "found": list(source.provenance)} for source in matrices}
    return {"directions": told} if told else {}


def _count_tokens(state: HarvestState) -> TokenCounts:
    given = state.given
    beyond = given.tokens - state.tokens
    return TokenCounts(given.tokens, beyond, state.special, own_bos=given.own_bos, spelled=given.spelled)


def _source_result(subject: Subject, source: Source, state: HarvestState) -> SourceResult:
    own, several = state.sources[str(source.id)], len(source.writes) > 1
    tokens = state.tokens - int(own.uncounted[0])
    lists: dict[Kind, ExampleList] = {}
    kinds: dict[Kind, Lists | None] = {"top": own.top, "quantile": own.quantile, "bottom": own.bottom}
    for kind, part in kinds.items():
        if part is not None:
            feature, uid, activations = part.drain()
            window = np.searchsorted(state.table.uid, uid)
            lists[kind] = ExampleList(feature.astype(np.int32), window.astype(np.int32), activations)
    if isinstance(source, HeadNorms | HeadWrites) and find_refusal(subject, source.id.site) is None:
        lists = {kind: find_attended(subject, source, part, state.table.tokens) for kind, part in lists.items()}
    return SourceResult(
        source=str(source.id),
        kind=subject.unit_kind if isinstance(source, Neurons) else _kind_of(source),
        width=source.width,
        signed=source.signed,
        revision=source.revision,
        tokens=tokens,
        count=own.count,
        mean=own.sum / SUM_UNIT / max(tokens, 1),
        peak=own.peak,
        trough=own.trough,
        histogram=own.histogram,
        lists={kind: part for kind, part in lists.items() if len(part.features)},
        norms=source.written_norms().cpu().numpy() if isinstance(source, Dictionary) and several else None,
    )


def _kind_of(source: Source) -> str:
    if isinstance(source, Directions):
        return "directions"
    if len(source.reads) > 1:
        return "crosscoder"
    return "dictionary" if source.writes == source.reads else "transcoder"


def conclude(
    subject: Subject,
    sources: Sequence[Source],
    corpus: Corpus,
    state: HarvestState,
    store: "Store",
    *,
    seed: int,
    provenance: Mapping[str, object],
    watch: Watch,
) -> HarvestResult:
    """Finish a state that has read all it should, and write it to the store with its `provenance`.

    Another thread mines while this one writes all else, and then finds the tokens that features raise.
    Other writers wait for a database that is being written, so the writing begins when what is left of mining takes
    about as long as what can be written meanwhile.
    """
    ending = _Ending(subject, sources, corpus, state, seed=seed)
    watch.mined(0, ending.mined)
    soon, began = Event(), time.monotonic()
    ahead = WRITING_SECONDS * sum(source.width for source in sources)

    def tell(done: int, of: int) -> None:
        if (time.monotonic() - began) / done * (of - done) <= ahead:
            soon.set()
        if not soon.is_set():
            watch.mined(done, of)

    with _Beside() as beside:
        mined = beside.submit(ending.mine, tell)
        mined.add_done_callback(lambda _: soon.set())
        result = ending.result()
        result = replace(result, provenance={**result.provenance, **provenance, **_describe_sites(sources)})
        soon.wait()
        watch.writes()
        ranked = beside.submit(partial(rank_tokens, subject, sources, result.sources), watch.ranked)
        store.write_harvest(result, mined)
        # Others may write while the rest of the tokens is sought.
        tokens = ranked.result()
    result = _add_mined(result, mined.result())
    found = zip(result.sources, tokens, strict=True)
    result = replace(result, sources=tuple(replace(source, top_tokens=own) for source, own in found))
    store.write_tokens(result.sources)
    return result


class _Beside:
    """Another thread, which does work in turn, and ends it when the block is left and it next tells of its progress."""

    def __init__(self) -> None:
        self._thread, self._given_up = ThreadPoolExecutor(1, thread_name_prefix="harvest"), Event()

    def submit(self, work: Callable[[Told], T], told: Told) -> Future[T]:
        """Let it do work, which tells of its progress."""

        def tell(done: int, of: int) -> None:
            if self._given_up.is_set():
                raise CancelledError
            told(done, of)

        return self._thread.submit(work, tell)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._thread.shutdown(cancel_futures=True)


def _describe_sites(sources: Sequence[Source]) -> dict[str, object]:
    """The sites that are written, by source, and those that are read where they are several; nothing of neurons."""
    writes = {str(source.id): ", ".join(source.writes) for source in sources if source.writes != (source.id.site,)}
    reads = {str(source.id): ", ".join(source.reads) for source in sources if len(source.reads) > 1}
    return {name: sites for name, sites in (("writes", writes), ("reads", reads)) if sites}
