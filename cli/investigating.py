"""From what was typed to sessions: targets, who decides, what an interrupted investigation was begun with."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..agent.loop.budget import Limits
from ..agent.loop.policy import Policy
from ..agent.loop.run import Settings
from ..agent.policies.llm import LLMPolicy
from ..agent.policies.random_policy import RandomPolicy
from ..agent.policies.replay import ReplayPolicy
from ..agent.policies.scripted import ScriptedPolicy
from ..agent.policies.scripted_behaviour import ScriptedBehaviourPolicy
from ..agent.session import InvestigationConfig, Session, investigate, investigate_all
from ..data.store.journal_values import InvestigationRecord
from ..data.store.store import Store
from ..llm.client import LLMClient
from ..scorers.factory import ScorerOptions, make_scorers
from ..subject.errors import NeuronautError
from .causal.inputs import task_of
from .opening import LoadOptions, chosen_features, stored_sources, stored_subject

PAIRS = ("task", "rows", "pairs", "clean", "corrupted", "answer", "wrong")
"""Options that give the pairs of a behaviour."""
Hears = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class InvestigationRequest:
    """What was asked for."""

    targets: tuple[str, ...]
    policy: str
    transcript: str | None
    """Id of the investigation whose decisions are taken, of policy replay."""
    limits: Limits
    settings: Settings
    seed: int
    scorers: str
    pairs: Mapping[str, Any]
    load_options: LoadOptions
    degrees: float | None = 0.0
    """Temperature of the language model."""
    embedder: str | None = None
    begun: InvestigationRecord | None = None
    """The investigation to go on with."""

    @property
    def of_behaviour(self) -> bool:
        """Whether pairs were given, so that the target is a model."""
        return any(self.pairs[name] is not None for name in PAIRS if name != "rows")


def resumed(store: Store, id: str, request: InvestigationRequest) -> InvestigationRequest:
    """The request that an investigation was begun with."""
    row = store.journal.row(id)
    said = row["settings"]
    begun = InvestigationRecord(
        id=row["id"],
        kind=row["kind"],
        target=row["target"],
        policy=row["policy"],
        settings=said,
        provenance=row["provenance"],
        parent=row["parent"],
    )
    if (row["kind"] == "behaviour") != request.of_behaviour:
        what = (
            "a behaviour; give its pairs again, with --task or --pairs" if row["kind"] == "behaviour" else "a feature"
        )
        raise NeuronautError(f"{row['id']} is about {what}")
    target = row["target"].partition(" ")[0] if request.of_behaviour else row["target"]
    return replace(
        request,
        targets=(target,),
        policy=row["policy"],
        limits=Limits(**said["limits"]),
        settings=Settings(**said["settings"]),
        seed=said["seed"],
        begun=begun,
    )


def sessions(store: Store, request: InvestigationRequest, client: LLMClient | None, hears: Hears) -> Iterator[Session]:
    """Investigate all targets, one after another."""
    if request.of_behaviour:
        yield _behaviour(store, request, client, hears)
        return
    features = chosen_features(store, request.targets)
    subject = stored_subject(store, features[0].source.model, request.load_options)
    sources = stored_sources(store, subject, features, request.load_options)
    policy = _policy(store, request, client)
    options = ScorerOptions(client and client.llm, subject, sources, store.chosen_prompts(), embedder=request.embedder)
    judges = make_scorers(request.scorers, options)
    config = InvestigationConfig(
        policy=policy,
        limits=request.limits,
        seed=request.seed,
        client=client,
        scorers=judges,
        settings=request.settings,
        on_event=hears,
    )
    yield from investigate_all(features, subject, store, config, sources=sources, fork=request.begun)


def _behaviour(store: Store, request: InvestigationRequest, client: LLMClient | None, hears: Hears) -> Session:
    if len(request.targets) != 1:
        raise NeuronautError(
            f"{len(request.targets)} targets came with pairs of prompts; wanted one model, as in: "
            "neuronaut investigate demo --task induction"
        )
    subject = stored_subject(store, request.targets[0], request.load_options)
    task = task_of(subject, request.pairs, seed=request.seed)
    if request.begun is not None and request.begun.target != f"{subject.name} {task.name}":
        raise NeuronautError(f"{request.begun.id} is about {request.begun.target}, not {subject.name} {task.name}")
    config = InvestigationConfig(
        _policy(store, request, client), request.limits, request.seed, client, settings=request.settings, on_event=hears
    )
    return investigate(task, subject, store, config, fork=request.begun)


def _policy(store: Store, request: InvestigationRequest, client: LLMClient | None) -> Policy:
    """Who decides; of an investigation that was begun, the same as then."""
    made = POLICIES[request.policy](store, request, client)
    then = None if request.begun is None else request.begun.settings["policy"]
    if then is not None and json.loads(json.dumps(dict(made.settings))) != then:
        model = f"; it asked {then['model']}" if "model" in then else ""
        raise NeuronautError(
            f"{request.begun and request.begun.id} was begun with another {request.policy} policy{model}; "
            "give the options that it was begun with, or investigate anew"
        )
    return made


def _llm(store: Store, request: InvestigationRequest, client: LLMClient | None) -> Policy:
    del store
    if client is None:
        raise NeuronautError(
            "the policy llm asks a language model; name one with -m, for example -m openai:gpt-4o-mini"
        )
    return LLMPolicy(client, temperature=request.degrees)


def _replay(store: Store, request: InvestigationRequest, client: LLMClient | None) -> Policy:
    del client
    if request.transcript is None:
        raise NeuronautError("the policy replay takes the decisions of an investigation; name it with --transcript ID")
    return ReplayPolicy(store.journal.decisions(store.journal.row(request.transcript)["id"]))


def _scripted(store: Store, request: InvestigationRequest, client: LLMClient | None) -> Policy:
    del store, client
    return ScriptedBehaviourPolicy() if request.of_behaviour else ScriptedPolicy()


POLICIES: Mapping[str, Callable[[Store, InvestigationRequest, LLMClient | None], Policy]] = {
    "scripted": _scripted,
    "llm": _llm,
    "random": lambda _, request, __: RandomPolicy(seed=request.seed),
    "replay": _replay,
}


def limits_of(budget: str | None, *, asks: bool) -> Limits:
    """The budget; refuses limits on a language model where none is asked."""
    if budget is None:
        return Limits()
    limits = Limits.parse(budget)
    of_llm = [name for name in ("usd", "tokens", "calls") if asdict(limits)[name] is not None]
    if of_llm and not asks:
        raise NeuronautError(
            f"--budget {budget} limits a language model, and none is named; add -m, or limit fwd, experiments, minutes"
        )
    return limits
