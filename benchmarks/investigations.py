"""Investigations against what they have to beat, on the same planted units, graded by the truth (suite/grade.py).

Worlds are built one after another; in each, one column (columns.py) after another explains the units from a harvest
of its own, so that none profits from another's experiments. Each finding is graded and written down as a line of
JSON as soon as it is there; what is in the file already is not made again, if the world and all settings are the
same. `comparing` makes the tables.

Forward passes (prompts that were run) and seconds are counted from one finding to the next; what the units of a
world share, such as reading the background, is counted with the first.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..agent.loop.resuming import code_revision
from ..agent.loop.target import Meter
from ..agent.session import InvestigationConfig
from ..data.store.store import Store
from ..subject.errors import NeuronautError
from .columns import COLUMNS, SWAPPED, SWAPPED_OF, Explaining, Found, swapped
from .suite import Grade, Grader, Unit, World, grader
from .suite.kinds import LEVELS

DEFAULT = ("scripted", "one-shot", "text-only", "random", "swapped", "token-only")
"""Columns that ask no language model."""
SIZE = 20
"""Units of a world at most."""


class Place(NamedTuple):
    """Which world, before it is built."""

    level: int
    seed: str
    units: int
    documents: int

    @property
    def name(self) -> str:
        """As lines have it; a private seed is told by its hash."""
        return f"level {self.level}, {format_seed(self.seed)}, {self.units} units, {self.documents} documents"


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one unit in one column."""

    place: str
    column: str
    settings: str
    """Hash of all that determines what is found, beside the place."""
    grade: Grade
    found: Found
    description: str
    """Of the unit, as it is in truth."""
    forwards: int
    seconds: float
    code: Mapping[str, Any] | None = None
    """Revision of this code, where it runs from its own repository."""

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> Self:
        """Read what `asdict` gave."""
        listed = {name: row["found"][name] for name in ("promotes", "suppresses", "reads")}
        found = Found(**{**row["found"], **{k: None if v is None else tuple(v) for k, v in listed.items()}})
        return cls(**{**row, "grade": Grade(**row["grade"]), "found": found})


@dataclass(frozen=True, slots=True)
class Plan:
    """Which worlds and which columns."""

    levels: tuple[int, ...] = tuple(LEVELS)
    units: int = 20
    """Of each level."""
    seed: int | str = 0
    """A number in public, any other string in private."""
    columns: tuple[str, ...] = DEFAULT
    config: InvestigationConfig = InvestigationConfig()
    documents: int = 120
    """Of each world."""

    def __post_init__(self) -> None:
        known = (*COLUMNS, SWAPPED)
        if unknown := [name for name in self.columns if name not in known]:
            raise NeuronautError(f"there is no policy {unknown[0]!r} here; there are {', '.join(known)}")
        if unknown := [level for level in self.levels if level not in LEVELS]:
            raise NeuronautError(f"there is no level {unknown[0]}; the levels are 1 to {max(LEVELS)}")
        if SWAPPED in self.columns and SWAPPED_OF not in self.columns:
            raise NeuronautError(f"{SWAPPED} are explanations of {SWAPPED_OF}; name {SWAPPED_OF}, too")
        if "llm" in self.columns and self.config.policy is None:
            raise NeuronautError(
                "the policy llm asks a language model; name one with -m, for example -m openai:gpt-4o-mini"
            )

    @property
    def total(self) -> int:
        """How many lines it comes to."""
        return len(self.levels) * self.units * len(self.columns)

    def places(self) -> list[Place]:
        """The worlds, those of a level of about the same size."""
        count = -(-self.units // SIZE)
        sizes = [self.units // count + (number < self.units % count) for number in range(count)]
        return [
            Place(level, f"{self.seed}/{number}" if number else str(self.seed), size, self.documents)
            for level in self.levels
            for number, size in enumerate(sizes)
        ]

    def settings(self, column: str) -> str:
        """Hash of what determines a column's findings."""
        said = COLUMNS[SWAPPED_OF if column == SWAPPED else column].settings(self.config)
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:12]


def format_seed(seed: int | str) -> str:
    """A seed in words that may be published."""
    number, _, part = str(seed).partition("/")
    of = f", part {part}" if part else ""
    if number.lstrip("-").isdigit():
        return f"public seed {number}{of}"
    return f"private seed with sha256 {hashlib.sha256(number.encode()).hexdigest()[:12]}{of}"


def run(
    plan: Plan, *, out: Path | None = None, keep: Path | None = None, hear: Callable[[Line], None] | None = None
) -> list[Line]:
    """All lines of a plan, those that `out` has and those that are made now, which are added to it.

    The databases are kept in the folder `keep`, if there is one, as WORLD-COLUMN.db. `hear` is told every line.
    """
    known = {_key(line): line for line in read(out)} if out is not None and out.exists() else {}
    found: list[Line] = []
    with ExitStack() as stack:
        file = None if out is None else stack.enter_context(out.open("a", encoding="utf-8"))
        for place in plan.places():
            for line in _lines(plan, place, known, keep):
                if file is not None and _key(line) not in known:
                    file.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
                    file.flush()
                found.append(line)
                if hear is not None:
                    hear(line)
    return found


def read(out: Path) -> list[Line]:
    """The lines of a file. A last one that was cut off by a kill is taken away."""
    text = out.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        out.write_text(whole, encoding="utf-8")
    try:
        return [Line.of_json(json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError, KeyError) as error:
        raise NeuronautError(f"{out} does not hold results of this benchmark ({error}); name another file") from error


Key = tuple[str, str, str, str]


def _key(line: Line) -> Key:
    return line.place, line.column, line.settings, line.grade.unit


def _lines(plan: Plan, place: Place, known: Mapping[Key, Line], keep: Path | None) -> Iterator[Line]:
    """The lines of one world, which is built only if some are missing."""
    here = [line for line in known.values() if line.place == place.name]
    of = {name: [x for x in here if (x.column, x.settings) == (name, plan.settings(name))] for name in plan.columns}
    if all(len(lines) == place.units for lines in of.values()):
        for lines in of.values():
            yield from lines
        return
    world = World.build(place.level, place.seed, units=place.units, documents=place.documents)
    made: dict[str, list[Line]] = {}
    with Store(":memory:") as store:
        world.harvest(store)
        judge = grader(world, store)
    for column in sorted(plan.columns, key=lambda name: name == SWAPPED):
        made[column] = list(of[column])
        done = {line.grade.unit for line in of[column]}
        left = [unit for unit in world.units if unit.address not in done]
        yield from of[column]
        for line in _column(
            plan, place=place, column=column, units=left, world=world, judge=judge, made=made, keep=keep
        ):
            made[column].append(line)
            yield line


def _column(
    plan: Plan,
    place: Place,
    column: str,
    units: Sequence[Unit],
    world: World,
    judge: Grader,
    made: Mapping[str, Sequence[Line]],
    keep: Path | None,
) -> Iterator[Line]:
    """What one column says of the units, graded."""
    if not units:
        return
    base = {"place": place.name, "column": column, "settings": plan.settings(column), "code": code_revision()}
    if column == SWAPPED:
        of = {line.grade.unit: line.found for line in made[SWAPPED_OF]}
        wanted = {unit.address for unit in units}
        for unit, found in swapped(world.units, of):
            if unit.address in wanted:
                yield graded(unit, found, judge, forwards=0, seconds=0.0, **base)
        return
    with tempfile.TemporaryDirectory() as scratch:
        name = f"{world.subject.name}-{column}.db"
        with Store(str((keep or Path(scratch)) / name)) as store:
            if not store.sources():
                world.harvest(store)
            explaining = COLUMNS[column].explain(units, world, store, plan.config)
            for unit, found, forwards, seconds in metered(world, explaining):
                yield graded(unit, found, judge, forwards=forwards, seconds=seconds, **base)


def metered(world: World, explaining: Explaining) -> Iterator[tuple[Unit, Found, int, float]]:
    """Findings with the forward passes and seconds that each took."""
    meter = Meter()
    while True:
        rows, began = meter.rows, time.monotonic()
        with meter.counting(world.subject):
            one = next(explaining, None)
        if one is None:
            return
        yield *one, meter.rows - rows, round(time.monotonic() - began, 3)


def graded(unit: Unit, found: Found, judge: Grader, **base: Any) -> Line:
    """A finding as a line. Causal claims count where there is something to claim or something was claimed."""
    pairs = {
        "promoted": (found.promotes, unit.promotes),
        "suppressed": (found.suppresses, unit.suppresses),
        "upstream": (found.reads, unit.upstream),
    }
    claims = {name: said for name, (said, true) in pairs.items() if said or true}
    grade = judge.grade(unit, found.rule, **({} if unit.abstain else claims))
    return Line(grade=grade, found=found, description=unit.description, **base)
