"""Sessions: an investigation from a target to its report, begun, resumed, and never run twice at once.

An investigation's id is the hash of what it is, so the same call again goes on where the last one stopped, or gives
the finished report. LangGraph's checkpoints say which node comes next; they lie beside the database, in
`NAME.checkpoints`, and are written before the next node begins. A lock file keeps a second process out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ...data.journal import opened_id
from ...data.journal_values import End, Opened
from ...data.store import Store
from ...explainers.llm.desk import Desk
from ...explainers.llm.prices import cost
from ...explainers.rule import RuleExplainer
from ...scorers.scorer import Scorer
from ...scorers.simulation import RuleSimulator
from ...subject.address import Feature, SourceId
from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.sources import Source
from ..bench import Bench
from ..label import CHUNK, opened
from ..policies.policy import Policy
from ..tools.table import tools_for
from .budget import Limits
from .ending import Ending
from .examining import FeatureExaminer
from .graph import build, first_state
from .lab import FeatureLab
from .report import Report, assemble
from .steps import Settings, Steps, Work

if TYPE_CHECKING:
    from collections.abc import Generator

Listener = Callable[[Mapping[str, Any]], None]
_ENDLESS = 1_000_000
"""Super-steps of LangGraph: budgets and rounds bound an investigation, not this."""


@dataclass(frozen=True, slots=True)
class Session:
    """A finished investigation."""

    id: str
    status: End
    reason: str
    report: Report


@dataclass(frozen=True, slots=True)
class Manner:
    """How targets are investigated."""

    policy: Policy
    challenger: Policy
    limits: Limits = Limits()
    settings: Settings = Settings()
    seed: int = 0
    desk: Desk | None = None
    scorers: Sequence[Scorer] = ()
    on_event: Listener | None = None

    def said(self) -> dict[str, Any]:
        """All that determines an investigation beside its target and the policy's name."""
        return {"policy": dict(self.policy.settings), "challenger": dict(self.challenger.settings),
                "limits": asdict(self.limits), "settings": asdict(self.settings), "seed": self.seed}  # fmt: skip

    def price(self, reply: Any) -> float:
        """Dollars of a reply; nothing is spent where no price is known, and no limit in dollars is allowed then."""
        price = None if self.desk is None else self.desk.price
        return 0.0 if price is None else cost(price, reply.input_tokens, reply.output_tokens)


def investigate_features(
    features: Sequence[Feature], subject: Subject, store: Store, manner: Manner, *,
    sources: Mapping[SourceId, Source] | None = None, parent: Opened | None = None,
) -> Iterator[Session]:  # fmt: skip
    """Investigate features one after another; what they share is read once for all features of a source."""
    if manner.limits.usd is not None and manner.desk is not None and manner.desk.price is None:
        raise NeuronautError("a budget in dollars needs the model's price; say it with --price in=0.15,out=0.60")
    by_source: dict[SourceId, list[Feature]] = {}
    for feature in dict.fromkeys(features):
        by_source.setdefault(feature.source, []).append(feature)
    for source_id, members in by_source.items():
        bench = Bench(store, subject, opened(store, subject, source_id, sources), seed=manner.seed)
        for start in range(0, len(members), CHUNK):
            yield from _chunk(bench, members[start : start + CHUNK], manner, parent)


def _chunk(bench: Bench, features: Sequence[Feature], manner: Manner, parent: Opened | None) -> Iterator[Session]:
    """Features whose evidence is read, and whose one-shot explanations are made, in shared forwards."""
    store, subject = bench.store, bench.subject
    openings = {feature: parent or _opened(feature, bench, manner) for feature in features}
    left = [feature for feature, opening in openings.items() if _ended(store, opening.id) is None]
    labs = _labs(bench, left, manner) if left else {}
    for feature, opening in openings.items():
        ended = _ended(store, opening.id)
        if ended is None:
            lab, examiner = labs[feature]
            revision = f"{subject.revision} {getattr(bench.source, 'revision', '')}".strip()
            run(store, opening, lab, examiner, manner, revision=revision)
            ended = _ended(store, opening.id)
        assert ended is not None
        yield ended


def _opened(feature: Feature, bench: Bench, manner: Manner) -> Opened:
    said = manner.said()
    provenance = {
        "model": bench.subject.revision, "dictionary": getattr(bench.source, "revision", None),
        "libraries": {name: version(name) for name in ("neuronaut", "torch", "transformers", "langgraph")},
        "llm": None if manner.desk is None else {"model": manner.desk.llm.model, "endpoint": manner.desk.llm.endpoint},
    }  # fmt: skip
    id = opened_id("feature", str(feature), manner.policy.name, {**said, "revision": provenance["model"]})
    return Opened(id, "feature", str(feature), manner.policy.name, said, provenance)


def _labs(
    bench: Bench, features: Sequence[Feature], manner: Manner
) -> dict[Feature, tuple[FeatureLab, FeatureExaminer]]:
    evidence = {feature: bench.store.evidence(feature) for feature in features}
    batch = bench.train(list(evidence.values()))
    baselines = {made.feature: made for made in RuleExplainer(bench.subject, seed=manner.seed).explain(batch)}
    found = {}
    scorers = manner.scorers or (RuleSimulator(seed=manner.seed),)
    for part in batch.features:
        lab = FeatureLab(bench.store, bench.subject, bench.source, part, batch,
                         baseline=baselines[part.feature], seed=manner.seed)  # fmt: skip
        examiner = FeatureExaminer(bench, lab, evidence[part.feature], batch, scorers, desk=manner.desk)
        found[part.feature] = lab, examiner
    return found


def run(store: Store, opening: Opened, lab: Any, examiner: Any, manner: Manner, *, revision: str) -> None:
    """Begin or go on with one investigation, to its end."""
    journal = store.journal
    with _alone(store.path, opening.id), _checkpoints(store.path) as checkpointer:
        journal.begin(opening)
        journal.reopen(opening.id)
        ending = Ending(
            store, examiner, explainer=f"investigate:{manner.policy.name}", provenance=opening.provenance,
            assemble=lambda id: assemble(journal, id).to_json(),
        )  # fmt: skip
        work = Work(
            opening.id, journal, lab, tools_for(lab.kind), manner.policy, manner.challenger, manner.limits,
            manner.settings, ending, manner.on_event or (lambda _: None), revision, manner.price,
        )  # fmt: skip
        work.event("begun", {"target": opening.target, "policy": opening.policy, "settings": opening.settings,
                             "limits": asdict(manner.limits)}, key="begun")  # fmt: skip
        graph = build(Steps(work), checkpointer=checkpointer)
        config = {"configurable": {"thread_id": opening.id}, "recursion_limit": _ENDLESS}
        known = graph.get_state(config).values
        graph.invoke(None if known else first_state(opening.id), config, durability="sync")


def _ended(store: Store, id: str) -> Session | None:
    """The finished investigation of this id; None where it is not finished."""
    row = next((row for row in store.journal.rows() if row["id"] == id), None)
    if row is None or row["ended"] is None or row["status"] == "error":
        return None
    return Session(id, row["status"], row["reason"], Report.of(row["report"]))


@contextmanager
def _alone(path: str, id: str) -> "Generator[None]":
    """Hold the investigation's lock; an error where another process has it."""
    if path == ":memory:":
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.{id}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise NeuronautError(
            f"investigation {id} is running in another process; wait for it, or stop it, then run this again"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _checkpoints(path: str) -> "Generator[Any]":
    """LangGraph's checkpoints, in a file beside the database."""
    if path == ":memory:":
        from langgraph.checkpoint.memory import InMemorySaver

        yield InMemorySaver()
        return
    import sqlite3

    from langgraph.checkpoint.sqlite import SqliteSaver

    connection = sqlite3.connect(f"{path}.checkpoints", check_same_thread=False, timeout=60)
    try:
        yield SqliteSaver(connection)
    finally:
        connection.close()
