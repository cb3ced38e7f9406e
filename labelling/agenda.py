"""Decides what is done next: a feature is explained, and its explanation judged once its control is known.

The control of a feature is the explained one before it in the order given, of the same source; that of the first is
the explained one after it. What an earlier call explained counts alike, so a call that was stopped and is given again
ends as if nothing had stopped it. Sources are taken in the order given, too. The windows that features share are run
through the subject for `BLOCK` features at a time; all else is done feature by feature.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

from ..data.records import Evidence, Explanation
from ..scorers.calibration import Calibration
from ..subject.address import Feature, SourceId
from .inputs import Columns, Control, EvidenceLoader, OnProgress

BLOCK = 256
"""Features whose shared windows are run together; each takes 0.7 MB in 2,624 windows of 64 tokens."""


class Work(NamedTuple):
    """What is known of a feature before it is explained."""

    evidence: Evidence
    columns: Columns

    @property
    def feature(self) -> Feature:
        """The feature."""
        return self.evidence.feature


class Explain(NamedTuple):
    """A feature to explain."""

    work: Work


class Judge(NamedTuple):
    """An explanation to judge."""

    work: Work
    explanation: Explanation
    control: Control


Item = Explain | Judge


class WorkerItem(NamedTuple):
    """Items that a worker performs together."""

    items: Sequence[Item]
    calibrations: list[Calibration | None]
    """What is known of the scorers as judges."""


class TimeIsOver(Exception):
    """Nothing more is to be begun."""


@dataclass(slots=True)
class Agenda:
    """What is to be done with some features, each named once.

    `items` gives what can be begun; `add_explanation` tells what came of an `Explain`.
    """

    features: Sequence[Feature]
    skipped: set[Feature]
    """Of these, those that are done: controls only."""
    read_explanation: Callable[[Feature], Explanation]
    """Reads the explanation of a feature that is not to be explained again."""
    open_loader: Callable[[SourceId], EvidenceLoader]
    on_progress: OnProgress
    """Is told what is begun; what is not begun by the time that it raises TimeIsOver is left."""
    explain: bool = True
    """Whether features are explained; else what is read is judged."""
    _orders: dict[SourceId, list[Feature]] = field(default_factory=dict, init=False)
    _places: dict[Feature, int] = field(default_factory=dict, init=False)
    _explained: dict[Feature, Explanation] = field(default_factory=dict, init=False)
    _open: dict[Feature, Work] = field(default_factory=dict, init=False)
    """Features that are being explained, or wait for their control."""
    _unjudged: dict[Feature, Explanation] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for feature in self.features:
            order = self._orders.setdefault(feature.source, [])
            self._places[feature] = len(order)
            order.append(feature)

    def items(self) -> Iterator[Item | None]:
        """What can be begun; None while something that is begun has to be done first."""
        try:
            for source, order in self._orders.items():
                for start in range(0, len(order), BLOCK):
                    yield from self._begin(source, order[start : start + BLOCK])
        except TimeIsOver:
            pass
        while self._open:
            yield from self._take_ready()
            if self._open:
                yield None

    def add_explanation(self, explanation: Explanation) -> None:
        """Add what came of explaining a feature; one without a text is not judged."""
        feature = explanation.feature
        self._explained[feature] = _strip(explanation)
        if explanation.text is None:
            del self._open[feature]
        else:
            self._unjudged[feature] = explanation

    def _begin(self, source: SourceId, block: Sequence[Feature]) -> Iterator[Item]:
        left = [feature for feature in block if feature not in self.skipped]
        if not left:
            return
        self.on_progress(str(source), 0, 0)
        loader = self.open_loader(source)
        # What is wrong with the evidence is found before the long pass.
        loader.evidence(left[0])
        # Of the whole block, done or not: matrix products round by their width.
        columns = loader.columns(block, on_progress=self.on_progress)
        for feature in left:
            yield from self._take_ready()
            self.on_progress(str(feature), 0, 0)
            self._open[feature] = Work(loader.evidence(feature), columns[feature])
            if self.explain:
                yield Explain(self._open[feature])
            else:
                self.add_explanation(self.read_explanation(feature))

    def _take_ready(self) -> Iterator[Judge]:
        """The explanations whose control is known by now."""
        for feature, explanation in list(self._unjudged.items()):
            control = self._find_control(explanation)
            if control is not None:
                del self._unjudged[feature]
                yield Judge(self._open.pop(feature), explanation, control)

    def _find_control(self, explanation: Explanation) -> Control | None:
        """The control of an explanation; None while it is not known."""
        order, place = self._orders[explanation.feature.source], self._places[explanation.feature]
        before, after = range(place - 1, -1, -1), range(place + 1, len(order))
        try:
            # Read one by one: of ten thousand features the first is nearly always the one.
            other = self._find((order[i] for i in chain(before, after)), lambda known: known.text is not None)
            # Only a rule is compared with another rule.
            ruled = self._find((order[i] for i in before), lambda k: k.rule is not None) if explanation.rule else None
        except _NotYet:
            return None
        rule = ruled or other
        return Control(other, rule and rule.rule)

    def _find(self, features: Iterable[Feature], holds: Callable[[Explanation], bool]) -> Explanation | None:
        """The first explanation of which something holds; raises _NotYet where one before it is not known."""
        for feature in features:
            if feature not in self._explained:
                if self.explain and feature not in self.skipped:
                    raise _NotYet
                self._explained[feature] = _strip(self.read_explanation(feature))
            if holds(self._explained[feature]):
                return self._explained[feature]
        return None


def group_items(items: Iterable[Item | None], *, most: int) -> Iterator[list[Item] | None]:
    """Items that follow each other, are of one kind and of one source, in groups of at most so many.

    None where the next can be begun only when another is done.
    """
    group: list[Item] = []
    for item in items:
        if group and (item is None or _kind(item) != _kind(group[0])):
            yield group
            group = []
            if item is None:
                # What was waited for may be done by now.
                continue
        if item is None:
            yield None
            continue
        group.append(item)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


def _kind(item: Item) -> tuple[type, SourceId]:
    return type(item), item.work.feature.source


class _NotYet(Exception):
    """A feature is not explained yet."""


def _strip(explanation: Explanation) -> Explanation:
    """The explanation without the windows seen and provenance: all that a control needs."""
    return replace(explanation, seen=(), provenance={})
