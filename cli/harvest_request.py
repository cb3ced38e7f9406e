"""What a harvest was asked for, as plain data: other processes open it, and the files of shards keep it."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..data.corpus import Corpus
from ..data.harvest.shards import Part, Shard, collect_shard
from ..data.harvest.windows import check_window
from ..data.splits import Splits
from ..labelling.opening import (
    LoadOptions,
    absolute,
    check_name,
    load_corpus,
    load_subject,
    open_sources,
    pass_gate,
    places,
    settle_bos,
)
from ..labelling.workers import tell
from ..subject.address import name_random
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .common import say

WINDOW = 64
"""Tokens in a window, where the model has room for them."""


class OpenHarvest(NamedTuple):
    """What a harvest reads, opened."""

    subject: Subject
    sources: list[Source]
    corpus: Corpus
    window: int
    paths: dict[str, str]
    """Where the model and its dictionaries lie, for the store."""


@dataclass(frozen=True, slots=True)
class HarvestRequest:
    """The model, the sites and the text of a harvest."""

    model: str
    sites: tuple[str, ...]
    load_options: LoadOptions
    corpus: str | None = None
    tokens: int | None = None
    """None: all there are."""
    window: int | None = None
    seed: int = 0
    name: str | None = None
    """The dictionary's, in addresses."""
    model_name: str | None = None
    text_column: str | None = None
    encoding: str = "utf-8"
    force: bool = False
    randomize: str | None = None
    random_seed: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; raises NeuronautError."""
        try:
            options, sites = LoadOptions(**values["load_options"]), tuple(values["sites"])
            return cls(**{**values, "load_options": options, "sites": sites})
        except (KeyError, TypeError) as error:
            raise NeuronautError(
                f"the shard does not say what it was harvested from ({error}); give its harvest again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The request as JSON has it, its files and folders from the root."""
        options = self.load_options
        along = options.along
        found = replace(
            options,
            sae=options.sae and absolute(options.sae),
            along=along if along is None or along.startswith("token:") else absolute(along),
        )
        corpus = self.corpus and (absolute(self.corpus) if self.corpus != "stdlib" else self.corpus)
        return asdict(replace(self, model=absolute(self.model), corpus=corpus, load_options=found))

    def open_corpus(self) -> Corpus:
        """Open the text, before any model is loaded: a wrong name shows at once."""
        column = self.text_column or ("messages" if self.load_options.chat else "text")
        return load_corpus(
            self.model,
            self.corpus,
            tokens=self.tokens,
            text_column=column,
            encoding=self.encoding,
            chat=self.load_options.chat,
        )

    def open(self) -> OpenHarvest:
        """Load the model and open its sources and the text."""
        options, model, model_name = self.load_options, self.model, self.model_name
        check_name(self.name, options)
        if self.randomize == "weights":
            model = name_random(model, self.random_seed)
            model_name = model_name and name_random(model_name, self.random_seed)
        text = self.open_corpus()
        subject = load_subject(model, options, name=model_name)
        seed_of_dictionary = self.random_seed if self.randomize == "dictionary" else None
        sources = open_sources(subject, self.sites, options, name=self.name, seed=seed_of_dictionary)
        subject = settle_bos(subject, sources, asked=options.bos)
        text = text.map(subject.render_chat) if options.chat else text
        window = self.window or fit_window(subject)
        check_window(subject, window)
        return OpenHarvest(subject, sources, text, window, places(subject, model, sources, options))

    def pass_gate(self, opened: OpenHarvest) -> None:
        """Try its dictionaries on the text, and say how well they do; raises NeuronautError where one does not fit."""
        force = self.force or self.randomize is not None
        for line in pass_gate(opened.subject, opened.sources, opened.corpus, window=opened.window, force=force):
            say(line)


def fit_window(subject: Subject) -> int:
    """WINDOW tokens, or as many as the model has room for, which is said."""
    room = subject.room
    if room < WINDOW:
        say(f"windows have {room} tokens, not {WINDOW}: {subject.name} has {subject.context} positions")
    return min(WINDOW, room)


def harvest_shard(
    request: HarvestRequest,
    opened: OpenHarvest,
    splits: Splits,
    shard: Shard,
    path: Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> Part:
    """Harvest one shard of what was asked for into its file."""
    return collect_shard(
        path,
        shard,
        opened.subject,
        opened.sources,
        opened.corpus,
        splits=splits,
        window=opened.window,
        tokens=request.tokens,
        request=request.to_json(),
        progress=progress,
    )


class ShardFile(NamedTuple):
    """The file of a shard, as a worker hands it over."""

    path: Path
    content: bytes | None
    """What is in it, where the worker may be on another machine."""


@contextmanager
def open_shard_worker(
    request: HarvestRequest, splits: Splits, folder: Path, devices: Sequence[str], *, remote: bool
) -> "Generator[Callable[[Shard], ShardFile]]":
    """A worker that harvests shards into files of a folder, on its device; see `labelling.workers`.

    One that is `remote` may not share the folder with whoever runs it.
    """

    def perform(shard: Shard) -> ShardFile:
        device = devices[(shard.number - 1) % len(devices)] if devices else request.load_options.device
        own = replace(request, load_options=replace(request.load_options, device=device))
        path = folder / f"{shard.number}of{shard.count}.npz"
        harvest_shard(request, own.open(), splits, shard, path, progress=lambda done: tell((shard.number, done)))
        return ShardFile(path, path.read_bytes() if remote else None)

    yield perform
