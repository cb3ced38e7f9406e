"""One investigation at work: its parts, and what stands in its journal.

Rows of the journal are only ever added, so what was read once is kept, and only what is new is read.
"""

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ...data.store.journal import Journal
from ...data.store.journal_values import Charge, Experiment, Observation
from ...data.store.store import Store
from ...llm.client import LLMClient
from ...llm.types import Reply
from .budget import Limits
from .experiments import AnyTool, design_from_json
from .hypotheses import Hypothesis
from .judging import OddsUpdater, Outcome, outcome_of
from .policy import Policy
from .target import Examiner, Lab
from .view import Rival

if TYPE_CHECKING:
    from collections.abc import Generator


@dataclass(frozen=True, slots=True)
class Settings:
    """How long an investigation may go on by itself, beside its budget."""

    rounds: int = 40
    """Plans that are run at most."""
    hide_names: bool = False
    """Whether the target's name is kept from policies."""


class RivalState(NamedTuple):
    """How the rivals stand, and on what."""

    rivals: tuple[Rival, ...]
    experiments: list[Experiment]
    observations: dict[str, Observation]


@dataclass(kw_only=True)
class InvestigationRun:
    """One investigation and all its parts."""

    id: str
    store: Store
    lab: Lab
    examiner: Examiner
    tools: Mapping[str, AnyTool]
    policy: Policy
    limits: Limits
    settings: Settings
    tell: Callable[[Mapping[str, Any]], None]
    """Hears every event."""
    revision: str
    """Of the subject and the dictionary."""
    price: Callable[[Reply], float]
    """Dollars of a reply."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Of the explanation that is stored at the end."""
    client: LLMClient | None = None
    """What scorers ask a language model through."""
    _hypotheses: dict[str, Hypothesis] = field(default_factory=dict)
    _rival_state: RivalState = RivalState((), [], {})
    _updater: OddsUpdater | None = None
    _taken_count: int = 0
    """Observations that the lab knows of."""

    @property
    def journal(self) -> Journal:
        """The journal of hypotheses, predictions and observations."""
        return self.store.journal

    def baseline(self) -> Mapping[str, Any] | None:
        """What there was to beat; None before the baseline is read."""
        return self.journal.event_of(self.id, "baseline")

    def hypotheses(self) -> dict[str, Hypothesis]:
        """By name, in the order in which they were put up."""
        for row in self.journal.hypotheses(self.id, after=len(self._hypotheses)):
            self._hypotheses[row["name"]] = Hypothesis.model_validate(row["body"])
        return self._hypotheses

    def rival_state(self) -> RivalState:
        """How the rivals stand, and on what."""
        known, hypotheses = self._rival_state, self.hypotheses()
        experiments = self.journal.experiments(self.id, known=known.experiments)
        observations = self.journal.observations(self.id, known=known.observations)
        new = len(experiments) > len(known.experiments) or len(observations) > len(known.observations)
        if new or len(hypotheses) > len(known.rivals):
            self._updater = self._updater or OddsUpdater(self.lab.kind)
            rivals = self._updater.after(hypotheses, experiments, observations)
            self._rival_state = RivalState(rivals, experiments, observations)
        return self._rival_state

    def outcome(self) -> Outcome:
        """The verdict of the evidence so far."""
        return outcome_of(*self.rival_state())

    def catch_up(self) -> None:
        """Lets the lab know what was observed, in order, each once."""
        _, experiments, observations = self.rival_state()
        by_name = {experiment.name: experiment for experiment in experiments}
        for name, observation in list(observations.items())[self._taken_count :]:
            self._taken_count += 1
            if observation.status == "ok" and not by_name[name].survey:
                self.lab.take(design_from_json(by_name[name].design), observation.result["values"])

    def exhausted(self, share: float | None = None) -> str | None:
        """The kinds of budget that are used up, in words; None where none is."""
        spent = self.journal.spent(self.id)
        return self.limits.exhausted(spent) if share is None else self.limits.exhausted(spent, share=share)

    def event(self, kind: str, payload: Mapping[str, Any], *, key: str) -> None:
        """Writes an event down once, and tells it."""
        row = self.journal.event(self.id, kind, payload, key=key)
        if row is not None:
            self.tell({"investigation": self.id, **row})

    @contextmanager
    def charged(self, key: str, kind: str) -> "Generator[None]":
        """Charges the forward passes of the block, and what scorers asked in it, once for its key."""
        before, before_llm = self.lab.meter.rows, self._llm_spent()
        with self.lab.meter.counting(self.lab.subject):
            yield
        calls, tokens, usd = (now - then for now, then in zip(self._llm_spent(), before_llm, strict=True))
        charge = Charge(forwards=self.lab.meter.rows - before, calls=int(calls), tokens=int(tokens), usd=usd)
        self.journal.charge(self.id, key, kind, charge)

    def _llm_spent(self) -> tuple[float, float, float]:
        """Calls, tokens and dollars of the client so far; answers from the log cost nothing."""
        if self.client is None:
            return 0, 0, 0.0
        spent = self.client.spent
        return spent.calls, spent.input_tokens + spent.output_tokens, spent.usd
