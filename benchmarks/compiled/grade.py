"""Circuits of compiled programs, found by a search and by sessions, graded by the parts that the program uses.

    circuit     the search of `neuronaut circuit` alone
    scripted    an investigation of the behaviour by the scripted policy: the nodes of its answer

accuracy        share of all heads and MLPs that are rightly in the circuit or out of it
precision       share of the found ones that the program uses;  recall: share of those it uses that were found
roles           share of the parts that the program uses whose proven roles are exactly the true ones; heads that read
                all places alike have none, and a part that was not found has none proven
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ...agent.session import SCRIPTED, InvestigationConfig, investigate
from ...causal.circuits.find import CircuitSettings, find_circuit
from ...causal.circuits.nodes import nodes_of
from ...causal.circuits.roles import find_roles
from ...causal.circuits.tasks import Row, Task
from ...data.store.store import Store
from ...subject.errors import NeuronautError
from .model import CompiledSubject, build_subject
from .programs import PROGRAMS, Program


@dataclass(frozen=True, slots=True)
class NodeGrade:
    """The circuit that one column found of one program."""

    program: str
    column: str
    status: str
    """How the session ended; "found" of a search."""
    found: tuple[str, ...]
    true: tuple[str, ...]
    accuracy: float
    precision: float | None
    """None where nothing was found."""
    recall: float
    roles: float
    seconds: float


def task_of(subject: CompiledSubject, program: Program, *, pairs: int, seed: int = 0) -> Task:
    """Pairs of prompts of a program that differ in one token and in the answer."""
    rng, ids = random.Random(f"{program.name} {seed}"), subject.subject.vocabulary.index
    rows: dict[str, Row] = {}
    while len(rows) < pairs:
        clean, corrupted, answer, wrong = program.draw(rng)
        one, other = (subject.subject.row(" ".join(side)) for side in (clean, corrupted))
        rows.setdefault(" ".join(clean), Row(one, other, ids(f" {answer}"), ids(f" {wrong}")))
    return Task.of(subject.subject, program.name, list(rows.values()))


class Found(NamedTuple):
    """What a column found of a program."""

    status: str
    nodes: Sequence[str]
    roles: Mapping[str, Any]
    """As `Roles.to_json` gives them; empty where none were looked for."""


def _search(subject: CompiledSubject, task: Task, config: InvestigationConfig) -> Found:
    report = find_circuit(subject.subject, task, settings=CircuitSettings(controls=2, subsets=2, seed=config.seed))
    roles = find_roles(subject.subject, task, report.circuit, seed=config.seed)
    return Found("found", list(map(str, report.circuit)), roles.to_json())


def _investigate(subject: CompiledSubject, task: Task, config: InvestigationConfig) -> Found:
    with Store(":memory:") as store:
        session = investigate(task, subject.subject, store, config)
    named = {contender.name: contender for contender in session.report.contenders}
    answer = named.get(session.report.hypothesis or "")
    nodes = [] if answer is None else list(answer.body.get("nodes") or ())
    return Found(session.status, nodes, session.report.roles or {})


COLUMNS: Mapping[str, Callable[[CompiledSubject, Task, InvestigationConfig], Found]] = {
    "scripted": _investigate,
    "circuit": _search,
}


def grade_programs(
    columns: Sequence[str] = tuple(COLUMNS),
    config: InvestigationConfig = SCRIPTED,
    *,
    programs: Sequence[str] = tuple(PROGRAMS),
    pairs: int = 24,
) -> Iterator[NodeGrade]:
    """The grade of each column on each program, as it is there."""
    for names, known in ((columns, COLUMNS), (programs, PROGRAMS)):
        if unknown := [name for name in names if name not in known]:
            raise NeuronautError(f"there is no {unknown[0]!r} here; there are {', '.join(known)}")
    subject = build_subject()
    for name in programs:
        task = task_of(subject, PROGRAMS[name], pairs=pairs, seed=config.seed)
        for column in columns:
            began = time.monotonic()
            found = COLUMNS[column](subject, task, config)
            yield grade_nodes(subject, name, column, found, seconds=round(time.monotonic() - began, 1))


def grade_nodes(subject: CompiledSubject, program: str, column: str, found: Found, *, seconds: float) -> NodeGrade:
    """Compare found nodes and their roles with those that the program uses."""
    every = set(map(str, nodes_of(subject.subject)))
    true, own = subject.nodes[program], set(found.nodes)
    claims = [claim for claim in found.roles.get("claims", ()) if claim["status"] == "proven"]
    proven = {node: {claim["role"] for claim in claims if claim["node"] == node} for node in true}
    roles = {
        node: {role for site, role in PROGRAMS[program].roles.items() if node.split(":")[0] == site} for node in true
    }
    return NodeGrade(
        program,
        column,
        found.status,
        tuple(sorted(own)),
        tuple(sorted(true)),
        accuracy=sum((node in own) == (node in true) for node in every) / len(every),
        precision=len(own & true) / len(own) if own else None,
        recall=len(own & true) / len(true),
        roles=sum(proven[node] == roles[node] for node in true) / len(true),
        seconds=seconds,
    )


def grades_to_json(grades: Sequence[NodeGrade]) -> list[dict[str, Any]]:
    """The grades as plain JSON."""
    return [asdict(grade) for grade in grades]


def table(grades: Sequence[NodeGrade]) -> str:
    """Markdown, a line for each column and program, and the means of each column."""
    lines = [
        "| program | by | status | accuracy | precision | recall | roles | missed | too many | seconds |",
        "| --- | --- | --- | --: | --: | --: | --: | --- | --- | --: |",
    ]
    for grade in grades:
        missed, extra = (sorted(set(a) - set(b)) for a, b in ((grade.true, grade.found), (grade.found, grade.true)))
        numbers = (grade.accuracy, grade.precision, grade.recall, grade.roles)
        cells = " | ".join("–" if number is None else f"{number:.2f}" for number in numbers)
        names = " | ".join(" ".join(nodes) or "–" for nodes in (missed, extra))
        status = grade.status.replace("_", " ")
        lines.append(f"| {grade.program} | {grade.column} | {status} | {cells} | {names} | {grade.seconds:.1f} |")
    for column in dict.fromkeys(grade.column for grade in grades):
        own = [grade for grade in grades if grade.column == column]
        means = (sum(values) / len(values) if values else 0.0 for values in (
            [grade.accuracy for grade in own],
            [grade.precision for grade in own if grade.precision is not None],
            [grade.recall for grade in own],
            [grade.roles for grade in own],
        ))  # fmt: skip
        cells = " | ".join(f"{mean:.2f}" for mean in means)
        lines.append(f"| mean of {len(own)} | {column} |  | {cells} |  |  | {sum(g.seconds for g in own):.1f} |")
    return "\n".join(lines)
