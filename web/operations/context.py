"""What an operation works on: the open database, the model once it is loaded, and who waits for the result.

A `ModelCache` outlives calls: it loads the weights of one model at a time, when they are first needed, and keeps them
with the dictionaries that were opened on them. Calls that need the model take turns. A `Watch` belongs to one call. It
is asked before every forward pass, so that a call ends soon after it was cancelled, or when its time is over.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...labelling.load_options import LoadOptions
from ...subject.errors import NeuronautError
from ...subject.pace import Pace

if TYPE_CHECKING:
    from ...causal.work import Work
    from ...data.store.store import Store
    from ...llm.client import LLMClient
    from ...subject.address import SourceId
    from ...subject.model import Subject
    from ...subject.sources import Source

UNIT = "tokens' work"
_TURN = 0.1
"""Seconds between looks at whether a call that waits for its turn was cancelled."""


class Cancelled(BaseException):
    """The call was cancelled, or its time is over.

    No Exception, as KeyboardInterrupt is none: nothing on the way may take it for a failure of an experiment.
    """


@dataclass(slots=True)
class Watch:
    """Who waits for a call: is told how it goes, and may cancel it."""

    on_progress: Callable[[str, str], None] = lambda _what, _line: None
    """Told what is being done, and the line that says as well how much of it and, where that is known, of how much."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    forwards: int = 0
    """Forward passes so far."""
    _ends: float | None = None
    _pace: Pace = field(default_factory=Pace)

    def start(self, seconds: float) -> None:
        """Let the time of the call begin."""
        self._ends = time.monotonic() + seconds

    @property
    def late(self) -> bool:
        """Whether the time of the call is over."""
        return self._ends is not None and time.monotonic() > self._ends

    def check(self) -> None:
        """Raise Cancelled where the call was cancelled, or where its time is over."""
        if self.cancelled.is_set() or self.late:
            raise Cancelled("the call was cancelled")

    def doing(self, what: str, done: float = 0, total: float = 0) -> None:
        """Tell what is being done, where `total` is above 0 with how much of it and about how long is left."""
        self.check()
        self.on_progress(what, self._pace.format(what, done, total))

    def work(self, *, minutes: float | None = None) -> "Work":
        """Work that the watch tells of, and is asked in; its time begins now."""
        from ...causal.work import Work

        def tell(work: Work) -> None:
            self.check()
            total, ends = max(work.done, work.expected) if work.expected else 0.0, self._ends
            line = self._pace.format(work.doing, work.done, total, UNIT, most=work.most)
            if ends is not None and (self._pace.left or 0) > ends - time.monotonic():
                line += ", which is more than a request may take: ask for less"
            self.on_progress(work.doing, line)

        work = Work(minutes=minutes)
        work.on_progress = tell
        return work

    @contextmanager
    def over(self, subject: "Subject") -> Generator[None]:
        """Within the block the watch is asked before every forward pass of the subject, and tells their number."""

        def ran(_: object) -> None:
            self.forwards += 1
            self.doing("forward passes", self.forwards)

        with subject.watching(ran):
            yield


class ModelCache:
    """Loads the model when it is first needed, once, and opens each dictionary once."""

    def __init__(self, load_options: LoadOptions | None = None) -> None:
        """`load_options` say where the model lies, if not where it was harvested from, and on which device it runs."""
        self.load_options = load_options or LoadOptions()
        self._loaded: dict[tuple[str, LoadOptions, str | None], Subject] = {}
        self._sources: dict[SourceId, Source] = {}
        self._turn = threading.Lock()

    @contextmanager
    def turn(self, watch: Watch) -> Generator[None]:
        """Wait until no other call uses the model."""
        while not self._turn.acquire(timeout=_TURN):
            watch.check()
        try:
            yield
        finally:
            self._turn.release()

    def load(self, model: str, load_options: LoadOptions, *, name: str | None = None) -> "Subject":
        """As `load_subject`, but a model that is loaded already is not loaded again."""
        from ...labelling.opening import load_subject

        key = (model, load_options, name)
        if key not in self._loaded:
            # The weights of the one before are let go first, since two may not fit.
            self._loaded.clear()
            self._sources.clear()
            self._loaded[key] = load_subject(model, load_options, name=name)
        return self._loaded[key]

    def open_source(self, store: "Store", subject: "Subject", source: "SourceId") -> "Source":
        """Open a source of the store where it was harvested from. Raises NeuronautError where it is another now."""
        from ...labelling.opening import stored_sources
        from ...subject.address import Feature

        if source not in self._sources:
            self._sources |= stored_sources(store, subject, [Feature(source, 0)], self.load_options)
        return self._sources[source]


OpenClient = Callable[["Store"], "AbstractContextManager[LLMClient | None]"]
"""Opens the client of a language model, for one call; None where there is no such model."""


@contextmanager
def nobody(_: "Store") -> "Generator[LLMClient | None]":
    """Ask no language model."""
    yield None


@dataclass(frozen=True, slots=True)
class Context:
    """What one call works on."""

    store: "Store"
    models: ModelCache
    watch: Watch = field(default_factory=Watch)
    open_client: OpenClient = nobody
    """Opens the language model that explains and judges."""

    def choose_model(self, name: str | None) -> str:
        """The model of that name in the database, or its only one."""
        known = self.store.models()
        if name is not None and (found := self.store.model(name)) in known:
            return found
        if name is None and len(known) == 1:
            return known[0]
        what = "no model is named" if name is None else f"nothing of {name} is in the database"
        raise NeuronautError(f"{what}; wanted model to be one of {', '.join(known) or 'none, it is empty'}")

    def subject(self, model: str, sources: "Iterable[SourceId]" = ()) -> "Subject":
        """The model, which reads text as the harvests of these sources did, or as its latest one."""
        from ...labelling.opening import stored_subject

        self.watch.doing(f"opening {model}")
        options = self.models.load_options
        return stored_subject(self.store, model, options, sources=sources, load=self.models.load)

    def source(self, subject: "Subject", source: "SourceId") -> "Source":
        """A source of the store, open."""
        return self.models.open_source(self.store, subject, source)
