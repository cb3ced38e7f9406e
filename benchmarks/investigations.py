"""Investigations and their baselines on the same planted units, graded by the truth (suite/grade.py).

Worlds are built one after another; in each, one column (columns.py) after another explains the units from a harvest
of its own, so that none profits from another's experiments. Each finding is graded and written as a line of
JSON as soon as it is there; a line that is in the file already is not made again, if the world and all settings are
the same. `comparing` makes the tables.

Forward passes (prompts that were run) and seconds are counted from one finding to the next; work that the units of a
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
from typing import Any, ClassVar, NamedTuple, Self

from ..agent.loop.resuming import code_revision
from ..agent.loop.target import Meter
from ..agent.session import InvestigationConfig
from ..data.store.store import Store
from ..subject.errors import NeuronautError
from .columns import COLUMNS, SWAPPED, SWAPPED_OF, Finding, Findings, swap_findings
from .suite import Grade, Grader, Unit, World, grader
from .suite.kinds import LEVELS

DEFAULT = ("scripted", "one-shot", "text-only", "random", "swapped", "token-only")
"""Columns that ask no language model."""
SIZE = 20
"""Units of a world at most."""


class Place(NamedTuple):
    """A world before it is built."""

    level: int
    seed: str
    units: int
    documents: int
    suite: str = ""
    """What it is of, if not the planted suite."""

    @property
    def name(self) -> str:
        """The name in lines; a private seed is given by its hash."""
        suite = self.suite and f"{self.suite}, "
        return f"{suite}level {self.level}, {format_seed(self.seed)}, {self.units} units, {self.documents} documents"


@dataclass(frozen=True, slots=True)
class Line:
    """The finding of one column on one unit, with its grade."""

    place: str
    column: str
    settings: str
    """Hash of all settings that determine the finding, beside the place."""
    grade: Grade
    found: Finding
    description: str
    """The truth about the unit, in words."""
    forwards: int
    seconds: float
    code: Mapping[str, Any] | None = None
    """Revision of this code, where it runs from its own repository."""

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> Self:
        """Read what `asdict` returned, also after JSON."""
        claims = {name: row["found"][name] for name in ("promotes", "suppresses", "reads")}
        finding = Finding(**{**row["found"], **{k: None if v is None else tuple(v) for k, v in claims.items()}})
        return cls(**{**row, "grade": Grade(**row["grade"]), "found": finding})


@dataclass(frozen=True, slots=True)
class Plan:
    """The worlds and columns of a run."""

    levels: tuple[int, ...] = tuple(LEVELS)
    units: int = 20
    """Of each level."""
    seed: int | str = 0
    """A number in public, any other string in private."""
    columns: tuple[str, ...] = DEFAULT
    config: InvestigationConfig = InvestigationConfig()
    documents: int = 120
    """Of each world."""
    known: ClassVar[Sequence[int]] = tuple(LEVELS)
    """The levels that there are."""
    suite: ClassVar[str] = "planted"

    def __post_init__(self) -> None:
        columns = (*COLUMNS, SWAPPED)
        if unknown := [name for name in self.columns if name not in columns]:
            raise NeuronautError(f"there is no policy {unknown[0]!r} here; there are {', '.join(columns)}")
        if unknown := [level for level in self.levels if level not in self.known]:
            raise NeuronautError(f"there is no level {unknown[0]}; the levels are 1 to {max(self.known)}")
        if SWAPPED in self.columns and SWAPPED_OF not in self.columns:
            raise NeuronautError(f"{SWAPPED} are explanations of {SWAPPED_OF}; name {SWAPPED_OF}, too")
        if "llm" in self.columns and self.config.policy is None:
            raise NeuronautError(
                "the policy llm asks a language model; name one with -m, for example -m openai:gpt-4o-mini"
            )

    @property
    def total(self) -> int:
        """The number of lines."""
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

    def open(self, place: Place) -> tuple[World, Grader]:
        """Build a world, and its grader."""
        world = World.build(place.level, place.seed, units=place.units, documents=place.documents)
        with Store(":memory:") as store:
            world.harvest(store)
            return world, grader(world, store)

    def settings(self, column: str) -> str:
        """Hash of the settings that determine a column's findings."""
        settings = COLUMNS[SWAPPED_OF if column == SWAPPED else column].settings(self.config)
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


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

    The databases are kept in the folder `keep`, if there is one, as WORLD-COLUMN.db. `hear` is called with every line.
    """
    earlier = {_key(line): line for line in read(out)} if out is not None and out.exists() else {}
    lines: list[Line] = []
    with ExitStack() as stack:
        file = None if out is None else stack.enter_context(out.open("a", encoding="utf-8"))
        for place in plan.places():
            for line in _world_lines(plan, place, earlier, keep):
                if file is not None and _key(line) not in earlier:
                    file.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
                    file.flush()
                lines.append(line)
                if hear is not None:
                    hear(line)
    return lines


def read(out: Path) -> list[Line]:
    """The lines of a file; a last one that was cut off by a kill is removed from it."""
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


def _world_lines(plan: Plan, place: Place, earlier: Mapping[Key, Line], keep: Path | None) -> Iterator[Line]:
    """The lines of one world, which is built only if some are missing."""
    of_world = [line for line in earlier.values() if line.place == place.name]
    by_column = {
        name: [x for x in of_world if (x.column, x.settings) == (name, plan.settings(name))] for name in plan.columns
    }
    if all(len(lines) == place.units for lines in by_column.values()):
        for lines in by_column.values():
            yield from lines
        return
    world, judge = plan.open(place)
    for column in sorted(plan.columns, key=lambda name: name == SWAPPED):
        explained = {line.grade.unit for line in by_column[column]}
        missing = [unit for unit in world.units if unit.address not in explained]
        yield from list(by_column[column])
        for line in _column_lines(
            plan, place=place, column=column, units=missing, world=world, judge=judge, others=by_column, keep=keep
        ):
            by_column[column].append(line)
            yield line


def _column_lines(
    plan: Plan,
    place: Place,
    column: str,
    units: Sequence[Unit],
    world: World,
    judge: Grader,
    others: Mapping[str, Sequence[Line]],
    keep: Path | None,
) -> Iterator[Line]:
    """The graded findings of one column on the units; `others` are the lines of the columns before."""
    if not units:
        return
    base = {"place": place.name, "column": column, "settings": plan.settings(column), "code": code_revision()}
    if column == SWAPPED:
        findings = {line.grade.unit: line.found for line in others[SWAPPED_OF]}
        missing = {unit.address for unit in units}
        for unit, finding in swap_findings(world.units, findings):
            if unit.address in missing:
                yield grade_finding(unit, finding, judge, forwards=0, seconds=0.0, **base)
        return
    with tempfile.TemporaryDirectory() as scratch:
        name = f"{world.subject.name}-{column}.db"
        with Store(str((keep or Path(scratch)) / name)) as store:
            if not store.sources():
                world.harvest(store)
            for metered in meter_findings(world, COLUMNS[column].explain(units, world, store, plan.config)):
                yield grade_finding(
                    metered.unit, metered.finding, judge, forwards=metered.forwards, seconds=metered.seconds, **base
                )


class Metered(NamedTuple):
    """A finding with its cost."""

    unit: Unit
    finding: Finding
    forwards: int
    seconds: float


def meter_findings(world: World, findings: Findings) -> Iterator[Metered]:
    """Findings with the forward passes and seconds that each took."""
    meter = Meter()
    while True:
        rows, began = meter.rows, time.monotonic()
        with meter.counting(world.subject):
            explained = next(findings, None)
        if explained is None:
            return
        unit, finding = explained
        yield Metered(unit, finding, meter.rows - rows, round(time.monotonic() - began, 3))


def grade_finding(unit: Unit, finding: Finding, judge: Grader, **base: Any) -> Line:
    """A finding as a line. Causal claims count where there is something to claim or something was claimed."""
    pairs = {
        "promoted": (finding.promotes, unit.promotes),
        "suppressed": (finding.suppresses, unit.suppresses),
        "upstream": (finding.reads, unit.upstream),
    }
    claims = {name: claimed for name, (claimed, true) in pairs.items() if claimed or true}
    grade = judge.grade(unit, finding.rule, **({} if unit.abstain else claims))
    return Line(grade=grade, found=finding, description=unit.description, **base)
