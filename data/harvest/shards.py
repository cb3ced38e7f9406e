"""Shards: a corpus in parts that are harvested apart, in other processes or on other machines, and then absorbed.

Shard I of N has the documents whose ordinal is I - 1 modulo N. Its state lies in one file, which is its checkpoint
until all of it is read. Since a state is a function of the set of windows alone, absorbing all shards gives the harvest
of one process, bit for bit, however many there are and in whatever order they come.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ...subject.convention import Convention
from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.sources import Source
from ..corpus import Corpus
from ..records import HarvestResult
from ..splits import Splits
from .ending import conclude
from .harvest import Progress, check_sources, collect, describe, harvest_key
from .state import HarvestState, load_state, read_about, save_state
from .watch import Watch

if TYPE_CHECKING:
    from ..store.store import Store


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of a corpus."""

    number: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `3/16`; raises NeuronautError."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise NeuronautError(f"{text!r} is no shard; wanted its number and how many there are, as in 3/16")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class Part(NamedTuple):
    """What the file of a shard says of itself."""

    path: Path
    key: str
    """Hash of all that determines what is in it, but for its budget and the shard."""
    budget: int | None
    shard: Shard
    corpus: str
    """Its name, as it was harvested."""
    digest: str
    """Of the corpus."""
    whole: bool
    """Whether all of the shard is read."""
    request: Mapping[str, Any]
    """What was asked for, as who asked wrote it down."""
    convention: Convention | None
    """How the subject read the corpus; None until it is whole."""
    tokens: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what a file says, not its state; raises NeuronautError where it is no shard."""
        about = read_about(path)
        try:
            return cls(
                path=path,
                key=about["key"],
                budget=about["budget"],
                shard=Shard.parse(about["shard"]),
                corpus=about["corpus"],
                digest=about["digest"],
                whole=about["whole"],
                request=about["request"],
                convention=Convention(**about["convention"]) if about["whole"] else None,
                tokens=about["tokens"],
            )
        except KeyError as error:
            raise NeuronautError(f"{path} is the checkpoint of a whole harvest, and no shard of one") from error


def collect_shard(
    path: Path,
    shard: Shard,
    subject: Subject,
    sources: Sequence[Source],
    corpus: Corpus,
    *,
    splits: Splits,
    window: int,
    tokens: int | None,
    request: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Part:
    """Harvest a shard into a file, going on where that file is the beginning of it; `tokens` is of all shards.

    Raises NeuronautError where the file is of another harvest.
    """
    key = harvest_key(subject, sources, splits, window=window)
    about = {"key": key, "shard": str(shard), "digest": splits.digest, "request": dict(request or {}), "whole": False}
    if path.exists():
        part = Part.read(path)
        if (part.key, part.budget, part.shard) != (key, tokens, shard):
            raise NeuronautError(f"{path} is of another harvest, or of shard {part.shard}; name another file with -o")
        if part.whole:
            return part
    state = collect(
        subject,
        sources,
        corpus,
        splits,
        window=window,
        tokens=tokens,
        shard=(shard.number - 1, shard.count),
        checkpoint=path,
        about=about,
        progress=progress,
    )
    assert state.convention is not None
    whole = about | {"whole": True, "convention": asdict(state.convention)}
    save_state(path, state, about=describe(sources, corpus, tokens) | whole)
    return Part.read(path)


def read_parts(paths: Sequence[Path]) -> list[Part]:
    """Read what the files of a harvest say, in the order of its shards.

    Raises NeuronautError where they are not all the shards of one harvest, each once and whole.
    """
    if not paths:
        raise NeuronautError("no shard is named; give the files of all of them")
    parts = sorted(map(Part.read, paths), key=lambda part: part.shard.number)
    first = parts[0]
    for part in parts:
        if (part.key, part.budget, part.shard.count) != (first.key, first.budget, first.shard.count):
            raise NeuronautError(
                f"{part.path} ({part.shard}) and {first.path} ({first.shard}) are not of one harvest; their model, "
                "sites, corpus, window, seed, --tokens and number of shards must be the same"
            )
        if not part.whole:
            raise NeuronautError(
                f"{part.path} has only {part.tokens:,} tokens of shard {part.shard}; give its harvest again, it goes on"
            )
    numbers = [part.shard.number for part in parts]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise NeuronautError(f"shard {twice[0]}/{first.shard.count} is named twice; name each file once")
    if missing := sorted(set(range(1, first.shard.count + 1)) - set(numbers)):
        raise NeuronautError(
            f"of {first.shard.count} shards {', '.join(map(str, missing))} are missing; harvest them, or name them"
        )
    return parts


def absorb(
    parts: Sequence[Part],
    subject: Subject,
    sources: Sequence[Source],
    corpus: Corpus,
    store: "Store",
    *,
    window: int,
    seed: int,
    paths: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> HarvestResult:
    """Merge the shards of a harvest, which `read_parts` gave, and write it to the store.

    `subject`, `sources`, `corpus`, `window` and `seed` are the shards' own.
    """
    check_sources(store, subject, sources)
    watch = watch or Watch()
    state, total = HarvestState.empty(sources, window=window), sum(part.tokens for part in parts)
    watch.begins(0, total)
    for part in parts:
        shard = load_state(part.path, HarvestState.empty(sources, window=window))
        shard.convention = part.convention
        state.absorb(shard)
        watch.read(state.tokens)
    own = {"corpus": parts[0].digest, "paths": dict(paths or {})}
    return conclude(subject, sources, corpus, state, store, seed=seed, provenance=own, watch=watch)
