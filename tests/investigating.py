"""Small parts to try investigations on: a planted subject, a tool that reads training windows, and plain policies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from pydantic import BaseModel

from neuronaut.agent.loop.budget import Limits
from neuronaut.agent.loop.experiments import Design, Item, Measured
from neuronaut.agent.loop.feature_lab import FeatureLab
from neuronaut.agent.loop.graph import build as build_graph
from neuronaut.agent.loop.graph import first_state
from neuronaut.agent.loop.hypotheses import Action, Call, Concede, Hypothesis, Propose, Submit, UseTools
from neuronaut.agent.loop.nodes import Nodes
from neuronaut.agent.loop.run import InvestigationRun, Settings
from neuronaut.agent.loop.view import View
from neuronaut.agent.session import Prepared, SourceSessions
from neuronaut.agent.tools.base import FeatureTool
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.store.journal_values import InvestigationRecord
from neuronaut.data.store.store import Store
from neuronaut.rules.language import Rule
from neuronaut.subject.address import Feature
from neuronaut.subject.model import Subject
from tests.planted import build

RIVER_NOT_DRY = 3


@cache
def subject() -> Subject:
    """The planted subject."""
    planted = build(documents=1)
    return Subject(planted.model, planted.tokenizer, name="planted")


def harvested(path: str = ":memory:", *, documents: int = 60, texts: Sequence[str] | None = None) -> Store:
    """A store with the evidence of the planted neurons."""
    store = Store(path)
    corpus = texts if texts is not None else build(documents=documents).corpus
    harvest(subject(), ["mlp.2"], Corpus.of("planted", corpus), store, seed=0)
    return store


def prepared(store: Store, index: int = RIVER_NOT_DRY) -> Prepared:
    """A planted neuron ready to be investigated."""
    feature = Feature.parse(f"planted:mlp.2:{index}")
    return SourceSessions(store, subject(), feature.source).prepare(feature)


class WindowsArgs(BaseModel):
    """Which windows are read."""

    silent: bool = False
    number: int = 12
    skip: int = 0
    """Tokens that are cut off the windows' beginnings, which makes other windows of them."""


@dataclass
class Windows(FeatureTool[WindowsArgs]):
    """Reads training windows at their highest, or their lowest, activation."""

    name = "windows"
    runs: int = 0
    break_: Callable[[], None] | None = None
    """Called before each measurement."""

    def design(self, args: WindowsArgs, lab: FeatureLab) -> Design:
        """A window a row; the silent ones that hold a token on which it fires elsewhere come first."""
        peak_tokens = {int(e.ids[e.activations.argmax()]) for e in lab.examples[:5]}
        items = []
        for example in lab.examples:
            ids = tuple(int(token) for token in example.ids)
            near = [
                i for i, token in enumerate(ids) if token in peak_tokens and example.activations[i] < lab.scale / 10
            ]
            place = int(example.activations.argmin() if args.silent else example.activations.argmax())
            items.append(
                Item(example.tokens[place], ids, near[0] if near and args.silent else place, {"near": bool(near)})
            )
        if args.silent:
            items.sort(key=lambda item: not item.about["near"])
        items = [_cut(item, args.skip) for item in items[: args.number]]
        return Design("what does it do here?", "response", tuple(items))

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """Mean activation."""
        self.runs += 1
        if self.break_ is not None:
            self.break_()
        values = lab.respond(design.items)
        return Measured(values, float(np.mean(values)), None, None, len(values), "share of the scale", "its scale")


def _cut(item: Item, skip: int) -> Item:
    skip = min(skip, max(item.pivot - 1, 0))
    return Item(item.label, item.ids[skip:] + item.ids[:skip], item.pivot - skip, item.about)


@dataclass
class Plain:
    """Proposes one rule, reads windows for some rounds, and submits; as a challenger it concedes."""

    rule: str
    rounds: int = 6
    words: str = "a claim"
    number: int = 12
    eager: bool = False
    """Whether its first experiments stand beside its proposal."""
    name: str = "plain"
    asked: Sequence[Any] = ()
    views: list[View] = field(default_factory=list)

    @property
    def settings(self) -> Mapping[str, object]:
        """Nothing but its rounds."""
        return {"rounds": self.rounds}

    def decide(self, view: View, actions: Sequence[str], tools: Sequence[Any]) -> Action:
        """By the phase and the round."""
        del actions, tools
        self.views.append(view)
        if view.phase == "propose":
            calls = self._reading(view.round) if self.eager else ()
            return Propose(hypotheses=(Hypothesis(text=self.words, rule=Rule.parse(self.rule)),), calls=calls)
        if view.phase == "challenge":
            return Concede(reason=self.words)
        if view.round >= self.rounds:
            return Submit(answer="H3", reason=self.words)
        return UseTools(calls=self._reading(view.round))

    def _reading(self, skip: int) -> tuple[Call, ...]:
        return (
            Call(tool="windows", args={"number": self.number, "skip": skip}, purpose=self.words),
            Call(tool="windows", args={"number": self.number + 1, "skip": skip, "silent": True}),
        )


TRUE_RULE = '{"any":[{"when":[{"token":[" river"]}],"unless":[{"token":[" dry"],"at":-1}],"value":1.0}]}'
LABEL_RULE = '{"any":[{"when":[{"token":[" river"]}],"value":1.0}]}'


def work_of(
    store: Store,
    one: Prepared,
    policy: Any,
    *,
    tools: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    settings: Settings | None = None,
    id: str = "inv",
    tell: Callable[[Mapping[str, Any]], None] | None = None,
) -> InvestigationRun:
    """One investigation with toy tools."""
    store.journal.begin(InvestigationRecord(id, "feature", str(one.feature), policy.name, {}, {}))
    return InvestigationRun(
        id=id,
        store=store,
        lab=one.lab,
        examiner=one.examiner,
        tools=tools or {"windows": Windows()},
        policy=policy,
        limits=limits or Limits(),
        settings=settings or Settings(),
        tell=tell or (lambda _: None),
        revision="revision",
        price=lambda _: 0.0,
    )


def run(work: InvestigationRun, checkpointer: Any = None) -> dict[str, Any]:
    """Run an investigation to its end, or go on with it, and give its row."""
    from langgraph.checkpoint.memory import InMemorySaver

    graph = build_graph(Nodes(work), checkpointer=checkpointer or InMemorySaver())
    config = {"configurable": {"thread_id": work.id}, "recursion_limit": 1_000_000}
    begun = bool(graph.get_state(config).values)
    graph.invoke(None if begun else first_state(work.id), config, durability="sync")
    return work.journal.row(work.id)
