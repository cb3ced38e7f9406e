"""What all sessions of a database came to: how they ended, what stayed open, which tools told most, what failed."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..data.store.journal import Journal
from .loop.hypotheses import Hypothesis
from .loop.judging import rank_rivals
from .loop.view import Rival


@dataclass(frozen=True, slots=True)
class Group:
    """The sessions of one source, or of one model's behaviours."""

    name: str
    policy: str
    sessions: int
    ends: Mapping[str, int]
    """Sessions by status; "running" is one that has not ended."""
    open: Mapping[str, int]
    """Sessions that ended open, by the question that did: evidence, natural, counterfactual, context, controls."""
    ungraded: int
    """Sessions with a supported cause of which it is open how strongly it fires."""
    experiments: float
    """Median of a session, and so are the others."""
    forwards: float
    tokens: float
    minutes: float


@dataclass(frozen=True, slots=True)
class ToolRow:
    """What a tool told in all sessions."""

    tool: str
    experiments: int
    forwards: int
    nats: float
    """Sum over its experiments of the largest change of a rival's log odds against the leader."""
    failed: int

    @property
    def nats_per_1000(self) -> float | None:
        """Nats for a thousand forwards; None where there were none."""
        return 1000 * self.nats / self.forwards if self.forwards else None


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """All sessions of a database."""

    groups: tuple[Group, ...]
    tools: tuple[ToolRow, ...]
    """Those that told most for a forward first."""
    failures: Mapping[str, int]
    """Experiments that failed and calls that were refused, by reason; the most frequent first."""


def summarise(journal: Journal) -> SessionSummary:
    """Sum up every session of a journal."""
    rows = journal.rows()
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    rows_of_tools: list[ToolRow] = []
    failures: Counter[str] = Counter()
    for row in rows:
        source = row["target"].rpartition(":")[0] if row["kind"] == "feature" else row["target"].partition(" ")[0]
        groups[source if row["kind"] == "feature" else f"{source} behaviours", row["policy"]].append(row)
        of_tools, reasons = _read_session(journal, row)
        rows_of_tools += of_tools
        failures.update(reasons)
    tools = [_sum_tool([row for row in rows_of_tools if row.tool == name]) for name in {r.tool for r in rows_of_tools}]
    return SessionSummary(
        tuple(_group(journal, *key, members) for key, members in sorted(groups.items())),
        tuple(sorted(tools, key=lambda tool: (-(tool.nats_per_1000 or 0.0), tool.tool))),
        dict(failures.most_common()),
    )


def _group(journal: Journal, name: str, policy: str, rows: Sequence[Mapping[str, Any]]) -> Group:
    concluded = [journal.event_of(row["id"], "concluded") or {} for row in rows]
    frozen = [journal.event_of(row["id"], "frozen") or {} for row in rows]
    spent = [journal.spent(row["id"]) for row in rows]
    return Group(
        name=name,
        policy=policy,
        sessions=len(rows),
        ends=dict(Counter(row["status"] for row in rows)),
        open=dict(Counter(event["question"] for event in concluded if event.get("question"))),
        ungraded=sum(r["status"] == "supported" and bool(f.get("grading")) for r, f in zip(rows, frozen, strict=True)),
        experiments=median(charge.experiments for charge in spent),
        forwards=median(charge.forwards for charge in spent),
        tokens=median(charge.tokens for charge in spent),
        minutes=median(charge.minutes for charge in spent),
    )


def _read_session(journal: Journal, row: Mapping[str, Any]) -> tuple[list[ToolRow], list[str]]:
    """A row for each experiment of a session, and the reasons of its failures and refusals."""
    id = row["id"]
    experiments, observations = journal.experiments(id), journal.observations(id)
    hypotheses = {h["name"]: Hypothesis.model_validate(h["body"]) for h in journal.hypotheses(id)}
    changes = _changes(rank_rivals(hypotheses, experiments, observations, kind=row["kind"]))
    tools, reasons = [], []
    for experiment in experiments:
        if (observation := observations.get(experiment.name)) is not None:
            failed, forwards = observation.status != "ok", int(observation.cost.get("forwards", 0))
            tools.append(ToolRow(experiment.tool, 1, forwards, changes.get(experiment.name, 0.0), int(failed)))
            if failed:
                reasons.append(f"{experiment.tool} failed: {observation.reason or 'no reason'}")
    refused = (event.get("code", "before there were codes") for event in journal.events(id, kind="rejected"))
    return tools, [*reasons, *(f"refused, {code}" for code in refused)]


def _sum_tool(rows: Sequence[ToolRow]) -> ToolRow:
    """The rows of one tool as one."""
    return ToolRow(
        tool=rows[0].tool,
        experiments=sum(row.experiments for row in rows),
        forwards=sum(row.forwards for row in rows),
        nats=round(sum(row.nats for row in rows), 3),
        failed=sum(row.failed for row in rows),
    )


def _changes(rivals: Iterable[Rival]) -> dict[str, float]:
    """By experiment the largest change of a rival's log odds."""
    largest: dict[str, float] = {}
    for rival in rivals:
        for term in rival.terms:
            largest[term.experiment] = max(largest.get(term.experiment, 0.0), abs(term.log_odds))
    return largest
