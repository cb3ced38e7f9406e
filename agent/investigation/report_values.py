"""What a report is made of: values that know nothing of the journal they came from."""

from dataclasses import asdict, dataclass
from typing import Any

from ...data.journal_values import Json


@dataclass(frozen=True, slots=True)
class Standing:
    """How a hypothesis stood after a round."""

    round: int
    log_odds: float
    """In nats, up to a constant that is common to the rivals."""
    share: float
    """Posterior share among the live rivals."""


@dataclass(frozen=True, slots=True)
class Forecasted:
    """What a hypothesis expected of an experiment against what was seen."""

    experiment: str
    n: int
    """Items that it had an opinion on."""
    expected: float
    """Mean over these, in units of the scale."""
    seen: float
    """Mean over the same items."""
    hits: float
    """Share of them on which the level it thought likeliest was seen."""
    brier: float
    for_odds: bool
    """Whether the experiment bears on the odds of rivals; effects of features bear on single claims."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A hypothesis with its record."""

    name: str
    origin: str
    body: Json
    """What was put up: text, kind, rule, nodes, promotes, suppresses, reads, parent."""
    status: str
    log_odds: float
    share: float
    resolved: int
    silences: int
    hits: float | None
    brier: float | None
    history: tuple[Standing, ...]
    forecasts: tuple[Forecasted, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """An experiment or survey: what was asked, and what came of it."""

    name: str
    tool: str
    purpose: str
    question: str
    survey: bool
    role: str
    round: int
    readout: str
    args: Json
    status: str
    """ok, error, or planned where nothing was observed yet."""
    reason: str | None
    result: Json
    """What the tool measured (experiments.Measured); empty where it failed."""
    items: tuple[Json, ...]
    """Label, value and its level, and by hypothesis what was expected; of experiments that went well."""
    forwards: int


@dataclass(frozen=True, slots=True)
class Report:
    """One investigation."""

    id: str
    kind: str
    target: str
    policy: str
    status: str
    """running, supported, open, no_explanation, budget or error."""
    reason: str | None
    verdict: str | None
    """What the evidence said when the explanation was frozen."""
    hypothesis: str | None
    """Name of the one that was frozen."""
    text: str | None
    rule: Json | None
    hash: str | None
    """Of text and rule when they were frozen, before the holdout was read."""
    explanation: int | None
    """Its id in the store."""
    baseline: Json | None
    """text, rule and scores of the explanation to beat."""
    scores: tuple[Json, ...]
    """On the holdout, as `records.Score` has them, without the windows' digests."""
    peeks: tuple[str, ...]
    """What the holdout was read for."""
    contenders: tuple[Contender, ...]
    """Every hypothesis, the leader first."""
    trials: tuple[Trial, ...]
    claims: tuple[Json, ...]
    """What it is said to write and read, by the leader, or by anyone if it was tested: hypothesis, claim, item,
    expected, values by experiment, verdict."""
    controls: tuple[Json, ...]
    """Negative ones: name, passed, value, low, high, what."""
    open: tuple[tuple[str, tuple[str, ...]], ...]
    """What is not settled, in plain words, each with the names that it is about."""
    rejected: tuple[str, ...]
    """Why decisions were not accepted."""
    spent: Json
    limits: Json
    settings: Json
    provenance: Json
    parent: str | None
    created: str
    ended: str | None
    predictions: int
    """Links of the chain of predictions."""
    broken: str | None
    """Where the chain does not hold; None where it holds."""

    @property
    def question(self) -> str:
        """What is asked of the target."""
        asked = "What does {} respond to, and what does it do?" if self.kind == "feature" else "What brings {} about?"
        return asked.format(self.target)

    @property
    def leader(self) -> Contender | None:
        """The hypothesis that was frozen, or the one ahead."""
        frozen = next((c for c in self.contenders if c.name == self.hypothesis), None)
        return frozen or next((c for c in self.contenders if c.status == "live"), None)

    @property
    def experiments(self) -> tuple[Trial, ...]:
        """Trials whose outcome was predicted."""
        return tuple(trial for trial in self.trials if not trial.survey)

    @property
    def surveys(self) -> tuple[Trial, ...]:
        """Trials that were looked up or measured without predictions."""
        return tuple(trial for trial in self.trials if trial.survey)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON."""
        return {**asdict(self), "question": self.question}

    def __str__(self) -> str:
        from .telling import text_of  # it needs this module

        return text_of(self)
