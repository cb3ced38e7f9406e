"""Sessions: an investigation from a target to its report, begun, resumed, and never run twice at once.

An investigation's id is the hash of what it is, so the same call again goes on where the last one stopped, or gives
the finished report. LangGraph's checkpoints say which node comes next; they lie beside the database, in
`NAME.checkpoints`, and are written before the next node begins. A lock file keeps a second process out. What features
of a source share is read once for all of them (`prepare`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..causal.circuits.tasks import Task
from ..data.store.journal import investigation_id
from ..data.store.journal_values import End, InvestigationRecord
from ..data.store.store import Store
from ..explainers.rule import RuleExplainer
from ..labelling.inputs import EvidenceLoader
from ..labelling.label import open_harvested
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
from .loop.feature_examiner import FeatureExaminer
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

ENDLESS = 1_000_000
"""Super-steps of LangGraph: budgets and rounds bound an investigation, not this."""
CHUNK = 48
"""Features that are made ready together."""


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
) -> Iterator[Session]:
    """Investigate features one after another; what features of a source share is read once. See `investigate`.

    >>> features = store.features("demo:mlp.1:17")
    >>> config = InvestigationConfig(limits=Limits(experiments=2))
    >>> [session.report.target for session in investigate_all(features, subject, store, config)]
    ['demo:mlp.1:17']
    """
    for members in chunks(features):
        source = None if sources is None else sources.get(members[0].source)
        dictionary = (source and source.revision) or _dictionary_revision(store, members[0].source)
        revision = f"{subject.revision} {dictionary}".strip()
        records = {f: fork or config.describe("feature", str(f), subject, revision) for f in members}
        left = [feature for feature, record in records.items() if session(store, record.id) is None]
        ready = (
            prepare(
                left, subject, store, sources=sources, scorers=config.scorers, client=config.client, seed=config.seed
            )
            if left
            else ()
        )
        prepared = {member.feature: member for member in ready}
        for feature, record in records.items():
            if feature in prepared:
                _run(store, record, prepared[feature].lab, prepared[feature].examiner, config, revision=revision)
            yield _finished(store, record.id)


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
    lab = BehaviourLab(subject, task, seed=config.seed)
    record = fork or config.describe("behaviour", lab.target, subject, subject.revision)
    if session(store, record.id) is None:
        _run(store, record, lab, BehaviourExaminer(lab), config, revision=subject.revision)
    return _finished(store, record.id)


def _dictionary_revision(store: Store, source: SourceId) -> str:
    return next((str(row["revision"]) for row in store.sources() if row["source"] == str(source)), "")


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


def prepare(
    features: Sequence[Feature],
    subject: Subject,
    store: Store,
    *,
    sources: Mapping[SourceId, Source] | None,
    scorers: Sequence[Scorer],
    client: LLMClient | None,
    seed: int,
) -> Iterator[Prepared]:
    """Makes labs and examiners for features of one source; evidence and one-shot explanations share their forwards."""
    source = open_harvested(store, subject, features[0].source, sources)
    loader = EvidenceLoader(store, subject, source, seed=seed)
    evidence = {feature: store.evidence(feature) for feature in features}
    batch = loader.train(list(evidence.values()))
    baselines = {explanation.feature: explanation for explanation in RuleExplainer(subject, seed=seed).explain(batch)}
    for part in batch.features:
        lab = FeatureLab(store, subject, source, part, batch, baseline=baselines[part.feature], seed=seed)
        examiner = FeatureExaminer(loader, lab, evidence[part.feature], batch, scorers, client=client)
        yield Prepared(part.feature, lab, examiner)
