"""Sessions: an investigation from a target to its report, begun, resumed, and never run twice at once.

An investigation's id is the hash of what it is, so the same call again goes on where the last one stopped, or gives
the finished report. LangGraph's checkpoints say which node comes next; they lie beside the database, in
`NAME.checkpoints`, and are written before the next node begins. A lock file keeps a second process out. What features
of a source share is read once for all of them (`prepare`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..causal.circuits.tasks import Task
from ..data.records import Explanation
from ..data.store.journal import investigation_id
from ..data.store.journal_values import End, InvestigationRecord
from ..data.store.store import Store
from ..explainers.battery.battery import run_battery
from ..explainers.guided import tell_findings
from ..explainers.rule import RuleExplainer
from ..labelling.harvested import open_harvested
from ..labelling.inputs import Columns, EvidenceLoader, OnProgress
from ..llm.client import LLMClient
from ..llm.prices import cost
from ..llm.types import Reply
from ..scorers.scorer import Scorer
from ..subject.address import Feature, SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .loop.behaviour_examiner import BehaviourExaminer
from .loop.behaviour_lab import BehaviourLab
from .loop.budget import Limits
from .loop.feature_examiner import FeatureExaminer, Holdouts
from .loop.feature_lab import FeatureLab
from .loop.graph import build, first_state
from .loop.nodes import Nodes
from .loop.policy import Policy
from .loop.resuming import checkpoints, code_revision, hold_lock
from .loop.run import InvestigationRun, Settings
from .loop.target import Examiner, Lab
from .report.assemble import Report, assemble
from .tools.table import tools_for

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from ..labelling.workers import Workers

ENDLESS = 1_000_000
"""Super-steps of LangGraph: budgets and rounds bound an investigation, not this."""
_NO_ENCODERS = "the experiments of an investigation cut text behind a token"
CHUNK = 256
"""Features whose shared windows are run together; each takes 0.7 MB in 2,624 windows of 64 tokens."""


@dataclass(frozen=True, slots=True)
class Session:
    """A finished investigation.

    >>> session = investigate("demo:mlp.1:17", subject, store, InvestigationConfig(limits=Limits(experiments=2)))
    >>> session.status in ("supported", "open", "no_explanation", "budget")
    True
    """

    id: str
    status: End
    """supported, open, no_explanation, budget or error."""
    reason: str
    report: Report
    """All of it; `print` shows it in short."""


@dataclass(frozen=True, slots=True)
class InvestigationConfig:
    """Settings of investigations.

    >>> InvestigationConfig(limits=Limits(experiments=20, minutes=5), seed=1).policy_for("feature").name
    'scripted'
    """

    policy: Policy | None = None
    """Decides what is tried, as proposer and, apart, as challenger; None for the scripted one, which asks nobody."""
    limits: Limits = Limits()
    seed: int = 0
    client: LLMClient | None = None
    """What a language model is asked through."""
    scorers: Sequence[Scorer] = ()
    """Judge an explanation that has no rule; one that has is simulated by code."""
    settings: Settings = Settings()
    on_event: Callable[[Mapping[str, Any]], None] | None = None
    """Hears every event as it is written."""
    on_progress: OnProgress | None = None
    """Hears of what features share as it is read."""

    def __post_init__(self) -> None:
        if self.limits.usd is not None and self.client is not None and self.client.price is None:
            raise NeuronautError(
                f"a budget of usd={self.limits.usd:g} needs the price of {self.client.llm.model}; "
                "say it with --price in=0.15,out=0.60"
            )

    def policy_for(self, kind: str) -> Policy:
        """The policy that decides about a target of this kind."""
        if self.policy is not None:
            return self.policy
        from .policies.scripted import ScriptedPolicy
        from .policies.scripted_behaviour import ScriptedBehaviourPolicy

        return ScriptedPolicy() if kind == "feature" else ScriptedBehaviourPolicy()

    def describe(
        self, kind: Literal["feature", "behaviour"], target: str, subject: Subject, revision: str
    ) -> InvestigationRecord:
        """The record of an investigation: all that determines it, and its provenance."""
        policy = self.policy_for(kind)
        settings = {
            "policy": dict(policy.settings),
            "limits": asdict(self.limits),
            "settings": asdict(self.settings),
            "seed": self.seed,
            "revision": revision,
        }
        llm = None if self.client is None else {"model": self.client.llm.model, "endpoint": self.client.llm.endpoint}
        libraries = {name: version(name) for name in ("neuronaut", "torch", "transformers", "langgraph")}
        provenance = {
            "model": subject.revision,
            "revision": revision,
            "libraries": libraries,
            "llm": llm,
            "git": code_revision(),
        }
        return InvestigationRecord(
            id=investigation_id(kind, target, policy.name, settings),
            kind=kind,
            target=target,
            policy=policy.name,
            settings=settings,
            provenance=provenance,
        )

    def price(self, reply: Reply) -> float:
        """Dollars of a reply; 0 where no price is known, since then no limit in dollars is allowed."""
        price = None if self.client is None else self.client.price
        return 0.0 if price is None else cost(price, reply.input_tokens, reply.output_tokens)


SCRIPTED = InvestigationConfig()


def investigate(
    target: str | Feature | Task,
    subject: Subject,
    store: Store,
    config: InvestigationConfig = SCRIPTED,
    *,
    sources: Mapping[SourceId, Source] | None = None,
    fork: InvestigationRecord | None = None,
) -> Session:
    """Investigates a feature (its address) or a behaviour (a task of clean and corrupted prompts), to the end.

    The same call again resumes or returns the finished session. `fork` is an investigation that was copied from
    another (replay.py).

    >>> session = investigate("demo:mlp.1:17", subject, store, InvestigationConfig(limits=Limits(experiments=2)))
    >>> print(session.report.kind)
    feature
    """
    if isinstance(target, Task):
        return _behaviour(target, subject, store, config, fork)
    feature = store.feature(target) if isinstance(target, str) else target
    return next(investigate_all([feature], subject, store, config, sources=sources, fork=fork))


def investigate_all(
    features: Sequence[Feature],
    subject: Subject,
    store: Store,
    config: InvestigationConfig = SCRIPTED,
    *,
    sources: Mapping[SourceId, Source] | None = None,
    fork: InvestigationRecord | None = None,
    workers: "Workers[SessionItem, str] | None" = None,
    seeds: Sequence[int] = (),
    on_skip: Callable[[int], None] = lambda _: None,
) -> Iterator[Session]:
    """Investigate features; what features of a source share is read once, before the first. See `investigate`.

    They are investigated one after another, or by `workers`, each of which performs `perform_session` with an equal
    config; then they come as they end, those that ended before first. With `seeds` each is investigated once by each.
    `on_skip` is called, before anything is run, with the number of sessions that ended before.

    >>> features = store.features("demo:mlp.1:17")
    >>> config = InvestigationConfig(limits=Limits(experiments=2))
    >>> [session.report.target for session in investigate_all(features, subject, store, config)]
    ['demo:mlp.1:17']
    """
    subject.require_causal(_NO_ENCODERS)
    configs = [replace(config, seed=seed) for seed in seeds or (config.seed,)]
    ended = {row["id"] for row in store.journal.rows() if row["ended"] is not None}

    def plan(
        members: Sequence[Feature],
    ) -> tuple[list[SourceSessions], list[tuple[SourceSessions, InvestigationRecord]]]:
        by_seed = [SourceSessions(store, subject, members[0].source, own, sources=sources) for own in configs]
        return by_seed, [(sessions, sessions.record(feature, fork)) for feature in members for sessions in by_seed]

    plans = [(members, *plan(members)) for members in chunks(features)]
    on_skip(sum(record.id in ended for _, _, items in plans for _, record in items))
    while plans:  # each is let go once its features are done
        members, by_seed, items = plans.pop(0)
        done = {record.id for _, record in items if record.id in ended}
        named = {str(feature): feature for feature in members}
        open_targets = {record.target for _, record in items if record.id not in done}
        left = [feature for name, feature in named.items() if name in open_targets]
        columns = by_seed[0].read(left) if left else {}
        if workers is not None:
            yield from (_finished(store, id) for id in done)
            open_items = ((sessions, named[r.target]) for sessions, r in items if r.id not in done)
            work = (SessionItem(feature, sessions.seed, columns[feature]) for sessions, feature in open_items)
            yield from (_finished(store, id) for id in workers.run(work))
            continue
        for sessions, record in items:
            if record.id not in done:
                sessions.run(record, named[record.target], columns[named[record.target]])
            yield _finished(store, record.id)


class SessionItem(NamedTuple):
    """A feature that a worker process investigates."""

    feature: Feature
    seed: int
    columns: Columns
    """Its activations on the windows that all features share."""


def perform_session(
    store: Store, subject: Subject, config: InvestigationConfig, sources: Mapping[SourceId, Source] | None
) -> Callable[[SessionItem], str]:
    """Return the function with which a worker investigates a feature, and gives the id of the session."""
    opened: dict[tuple[SourceId, int], SourceSessions] = {}

    def perform(item: SessionItem) -> str:
        key = item.feature.source, item.seed
        if key not in opened:
            opened[key] = SourceSessions(store, subject, key[0], replace(config, seed=item.seed), sources=sources)
        record = opened[key].record(item.feature)
        opened[key].run(record, item.feature, item.columns)
        return record.id

    return perform


def session(store: Store, id: str) -> Session | None:
    """The finished session of this id; None where there is none, or it has not ended."""
    row = next((row for row in store.journal.rows() if row["id"] == id), None)
    if row is None or row["ended"] is None:
        return None
    return Session(id, row["status"], row["reason"], assemble(store.journal, id))


def _finished(store: Store, id: str) -> Session:
    finished = session(store, id)
    assert finished is not None, "an investigation that was run to its end has ended"
    return finished


def _behaviour(
    task: Task, subject: Subject, store: Store, config: InvestigationConfig, fork: InvestigationRecord | None
) -> Session:
    subject.require_causal(_NO_ENCODERS)
    lab = BehaviourLab(subject, task, seed=config.seed)
    record = fork or config.describe("behaviour", lab.target, subject, subject.revision)
    if session(store, record.id) is None:
        _run(store, record, lab, BehaviourExaminer(lab), config, revision=subject.revision)
    return _finished(store, record.id)


def _run(
    store: Store,
    record: InvestigationRecord,
    lab: Lab,
    examiner: Examiner,
    config: InvestigationConfig,
    *,
    revision: str,
) -> None:
    """Begins or goes on with one investigation, to its end."""
    with hold_lock(store.path, record.id), checkpoints(store.path) as checkpointer:
        store.journal.begin(record)
        run = InvestigationRun(
            id=record.id,
            store=store,
            lab=lab,
            examiner=examiner,
            tools=tools_for(lab.kind, inside=lab.subject.inside),
            policy=config.policy_for(lab.kind),
            limits=config.limits,
            settings=config.settings,
            tell=config.on_event or (lambda _: None),
            revision=revision,
            price=config.price,
            provenance=record.provenance,
            client=config.client,
        )
        begun = {"target": record.target, "policy": record.policy, "settings": record.settings}
        run.event("begun", {**begun, "limits": asdict(config.limits)}, key="begun")
        graph = build(Nodes(run), checkpointer=checkpointer)
        thread: RunnableConfig = {"configurable": {"thread_id": record.id}, "recursion_limit": ENDLESS}
        resumed = bool(graph.get_state(thread).values)
        try:
            graph.invoke(None if resumed else first_state(record.id), thread, durability="sync")
        finally:
            store.journal.seal(record.id)


class Prepared(NamedTuple):
    """A feature ready to be investigated."""

    feature: Feature
    lab: FeatureLab
    examiner: Examiner


def chunks(features: Sequence[Feature]) -> Iterator[list[Feature]]:
    """Groups features that are read together: of one source, so many at a time."""
    by_source: dict[SourceId, list[Feature]] = {}
    for feature in dict.fromkeys(features):
        by_source.setdefault(feature.source, []).append(feature)
    for members in by_source.values():
        yield from (members[start : start + CHUNK] for start in range(0, len(members), CHUNK))


class SourceSessions:
    """One source, open for sessions with its features."""

    def __init__(
        self,
        store: Store,
        subject: Subject,
        source: SourceId,
        config: InvestigationConfig = SCRIPTED,
        *,
        sources: Mapping[SourceId, Source] | None = None,
    ) -> None:
        self._store, self._subject, self._config, self._id = store, subject, config, source
        self._sources = sources or {}

    @property
    def seed(self) -> int:
        """Of its sessions."""
        return self._config.seed

    def record(self, feature: Feature, fork: InvestigationRecord | None = None) -> InvestigationRecord:
        """What the investigation of a feature is."""
        return fork or self._config.describe("feature", str(feature), self._subject, self.revision)

    @cached_property
    def revision(self) -> str:
        """Of the subject and the dictionary."""
        opened = self._sources.get(self._id)
        stored = (str(row["revision"]) for row in self._store.sources() if row["source"] == str(self._id))
        return f"{self._subject.revision} {(opened and opened.revision) or next(stored, '')}".strip()

    @cached_property
    def _loader(self) -> EvidenceLoader:
        source = open_harvested(self._store, self._subject, self._id, self._sources)
        return EvidenceLoader(self._store, self._subject, source, seed=self._config.seed)

    def read(self, features: Sequence[Feature]) -> dict[Feature, Columns]:
        """Run the windows that these features share through the subject, once for all of them."""
        # What is wrong with the evidence is found before the long pass.
        self._loader.evidence(features[0])
        return self._loader.columns(features, on_progress=self._config.on_progress)

    def prepare(self, feature: Feature, columns: Columns | None = None) -> Prepared:
        """Make the lab and the examiner of a feature.

        What there is to beat is the best label that is stored, else what the rule explainer says; where nobody is asked
        it must have a rule, with which to begin. The battery is run for whoever is asked.
        """
        config, loader, evidence = self._config, self._loader, self._loader.evidence(feature)
        own = self.read([feature]) if columns is None else {feature: columns}
        batch = loader.train([evidence], own)
        (part,) = batch.features
        label = stored_label(self._store, feature, needs_rule=config.client is None)
        if label is None:
            (label,) = RuleExplainer(self._subject, seed=config.seed).explain(batch)
        told: Sequence[str] = ()
        if config.client is not None and label.text is not None:
            told = tell_findings(run_battery(self._subject, batch, [part])[feature], batch.vocabulary)
        lab = FeatureLab(self._store, self._subject, loader.source, part, batch, baseline=label, seed=config.seed)
        holdouts = Holdouts(loader, evidence, own)
        examiner = FeatureExaminer(holdouts, lab, batch, config.scorers, client=config.client, battery=told)
        return Prepared(feature, lab, examiner)

    def run(self, record: InvestigationRecord, feature: Feature, columns: Columns) -> None:
        """Begin or go on with the investigation of a feature, to its end."""
        ready = self.prepare(feature, columns)
        _run(self._store, record, ready.lab, ready.examiner, self._config, revision=self.revision)


def stored_label(store: Store, feature: Feature, *, needs_rule: bool) -> Explanation | None:
    """The best explanation of a feature that is stored, investigations apart: these are not begun with each other."""
    for stored in store.explanations(feature):
        explanation = stored.explanation
        usable = explanation.text is not None and (explanation.rule is not None or not needs_rule)
        if usable and "investigation" not in explanation.provenance:
            return explanation
    return None
