"""The protocols of targets: a lab, in which tools experiment, and an examiner, for the end.

A feature and a behaviour each have both. The lab shows nothing of the holdout; the examiner reads it, once.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from ...data.records import Example, Explanation, Score, Statistics
from ...data.store.journal_values import Experiment, Observation
from ...subject.model import Subject
from .controls import ControlResult, Supported, evidence_for_odds, permuted_and_dead, supporter
from .experiments import Design
from .hypotheses import Hypothesis


class Finalist(NamedTuple):
    """A hypothesis that is likely enough to be the answer, as it predicts text that decides nothing else."""

    name: str
    value: float
    """Mean of the correlations on the natural and the edited windows of `select`."""
    error: float | None
    """Its standard error; None where there are too few windows for one."""
    length: int
    """Conditions, tokens and gains of its rule."""
    told: bool = True
    """Whether its words can say all of the rule; such a one goes before others that predict as well."""


Question = Literal["evidence", "natural", "counterfactual", "context", "controls"]
"""What stayed open: what the experiments say, the holdout as it was found, its edited pairs, those that keep the token,
and the negative controls."""


class Shortfall(NamedTuple):
    """Why scores do not support an explanation."""

    question: Question
    reason: str


class Examined(NamedTuple):
    """What the holdout shows."""

    scores: Sequence[Score]
    label_scores: Sequence[Score] = ()
    """Of the label that there was before, on the same windows."""
    added: Sequence[Mapping[str, Any]] = ()
    """By set of examples and metric, what the explanation is ahead of the label: value, ci_low and ci_high of the
    paired difference, n, and the reason where there is none."""


class Meter:
    """Counts the prompts that pass through a subject: one for each row of each forward pass."""

    def __init__(self) -> None:
        self.rows = 0

    @contextmanager
    def counting(self, subject: Subject) -> Generator[None]:
        """Counts every forward pass within the block, whoever asks for it."""

        def count(tokens: Tensor) -> None:
            self.rows += len(tokens)

        with subject.watching(count):
            yield


class Lab(Protocol):
    """One target, ready for experiments."""

    subject: Subject
    seed: int
    meter: Meter
    """Counts every prompt that is run through the subject."""
    rivals: Mapping[str, Hypothesis]
    """The live hypotheses by name, the leader first; set before a tool designs an experiment."""

    scale: float
    """What 1 is in experiments' values."""

    @property
    def kind(self) -> Literal["feature", "behaviour"]:
        """Whether the target is a feature or a behaviour."""
        ...

    @property
    def target(self) -> str:
        """The target's name: a feature's address, or the subject and the task."""
        ...

    @property
    def examples(self) -> tuple[Example, ...]:
        """Training examples, the strongest first; a behaviour has none."""
        ...

    @property
    def statistics(self) -> Statistics | None:
        """The harvest's statistics of a feature; None of a behaviour."""
        ...

    def about(self) -> dict[str, Any]:
        """What policies are told beside the examples, as plain JSON."""
        ...

    def nulls(self) -> list[Hypothesis]:
        """The two rivals that are always there."""
        ...

    def fault(self, hypothesis: Hypothesis) -> str | None:
        """Why a hypothesis cannot be put up here, in one line; None where it can."""
        ...

    def expect(self, hypothesis: Hypothesis, design: Design) -> tuple[float | None, ...]:
        """What a hypothesis expects of each item, in units of the scale; None where it has no opinion."""
        ...

    def take(self, design: Design, values: Sequence[float]) -> None:
        """Notes what an experiment measured."""
        ...


class Examiner(Protocol):
    """Examines explanations of one target."""

    def refusal(self) -> Explanation | None:
        """Why there is nothing to investigate; None where there is."""
        ...

    def baseline(self) -> dict[str, Any]:
        """What an investigation has to beat: `text`, `rule`, `scores` on `select`."""
        ...

    def compare(self, finalists: Mapping[str, Hypothesis]) -> list[Finalist]:
        """The finalists on `select`; none where a target has no such text."""
        ...

    def holdout(self, text: str, hypothesis: Hypothesis) -> Examined:
        """All scores on the holdout; to be called once."""
        ...

    def roles(self, hypothesis: Hypothesis) -> dict[str, Any] | None:
        """What each node of a hypothesis does, as `Roles.to_json` says, or `reason` why not; None where it has none."""
        ...

    def random_control(self, experiments: Sequence[Experiment], supported: Supported) -> ControlResult | None:
        """Whether the experiments leave the leader unsupported where another is measured; None where there is none."""
        ...

    def indescribable(self, hypothesis: Hypothesis, grading: str | None) -> str | None:
        """Why a hypothesis is no explanation although it predicts; None where it is one."""
        ...

    def shortfall(self, scores: Sequence[Score]) -> Shortfall | None:
        """Why an explanation with these holdout scores is not supported; None where it may be."""
        ...

    def explanation(self, text: str, hypothesis: Hypothesis) -> Explanation | None:
        """The hypothesis as an explanation for the store; None where there is no feature that it is of."""
        ...


def run_controls(
    lab: Lab,
    examiner: Examiner,
    *,
    hypotheses: Mapping[str, Hypothesis],
    experiments: Sequence[Experiment],
    observations: Mapping[str, Observation],
    leader: str,
) -> list[ControlResult]:
    """Whether false observations leave the leader unsupported; nothing where no experiment bears on the odds."""
    used, values = evidence_for_odds(experiments, observations, lab.kind)
    if not used:
        return []
    supported = supporter(hypotheses, used, observations, leader, lab.kind)
    random_control = examiner.random_control(used, supported)
    return [*permuted_and_dead(values, supported, seed=lab.seed), *([random_control] if random_control else [])]
