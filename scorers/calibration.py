"""Calibrates judges: on a few built-in units whose truth is known, a judge must be better with the explanation.

The units come in twos (calibration.json): in the same sentences one is active at the marked word of the first half,
the other at that of the second half, so each one's explanation is the other's wrong one. Their prompts are the same,
and whoever does not follow the description answers both alike: without an explanation every judge has a balanced
accuracy of one half, whatever it makes of the texts. Three different calls serve two units.

A judge is calibrated by its own questions, so all that judges holdout windows is calibrated without further code. One
that needs more windows than the units have, or a subject to steer (`intruder`, `output`), is not. The calls are in
the log, so a judge is paid for once; what it reached stands in the provenance of every score.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from ..data.judges import name_judge
from ..data.records import Example, Explanation, Judgements, Kind, Role
from ..llm.client import LLMClient
from ..llm.prompt import Prompt
from ..llm.tasks import LLMTask, gather, run_task
from ..llm.types import Chat, Reply, Request
from ..subject.address import Feature
from ..subject.errors import NeuronautError
from .holdout import Baselines, Holdout
from .metrics import agreement, correlation
from .scorer import Case, Scorer

UNITS = Path(__file__).with_name("calibration.json")
MARGIN = 0.2
"""A judge is better with the true explanation by at least this much, in balanced accuracy or correlation."""
PEAK = 10.0
"""Activation of a built-in unit where it is active; it is 0 elsewhere."""


@runtime_checkable
class Calibrated(Scorer, Protocol):
    """A scorer whose judge can be calibrated."""

    def for_calibration(self) -> tuple[Self, int]:
        """The same judge with all controls, and how many windows of either kind it is calibrated on."""
        ...


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well a judge knows the built-in units; what it left unanswered counts as chance."""

    metric: str
    """"balanced_accuracy", or for simulations "correlation"."""
    values: Mapping[Role, float]
    """With the true explanation ("explanation"), without one ("empty") and with a wrong one ("shuffled")."""
    repeated: float
    """Share of the replies that are the prompt's worked example over again."""
    failed: str = ""
    """How many calls had no reply, and why; empty where none."""

    @property
    def passed(self) -> bool:
        """Whether the judge's scores count."""
        others = max(value for role, value in self.values.items() if role != "explanation")
        return self.repeated < 0.5 and self.values["explanation"] - others >= MARGIN

    def as_dict(self) -> dict[str, object]:
        """The metric, and its value by role, for provenance."""
        return {"metric": self.metric, **{role: round(value, 3) for role, value in self.values.items()}}

    def __str__(self) -> str:
        values = self.values
        said = (
            f"{self.metric.replace('_', ' ')} {values['explanation']:.2f} with the true explanation of built-in units, "
            f"{values['empty']:.2f} without any, {values['shuffled']:.2f} with a wrong one"
        )
        return f"repeats the prompt's example in {self.repeated:.0%} of its replies; {said}" if self.repeated else said


class AdmittedScorer:
    """A scorer whose judge counts; its judgements say why.

    >>> AdmittedScorer(Detection()).name
    'detection'
    """

    def __init__(self, scorer: Scorer, calibration: Calibration | None = None) -> None:
        """Without a calibration the judge is taken as it is."""
        self._scorer, self.calibration = scorer, calibration
        self.name, self.keeps_judgements, self.compares = scorer.name, scorer.keeps_judgements, scorer.compares
        self._note = "none" if calibration is None else calibration.as_dict()

    @property
    def settings(self) -> Mapping[str, object]:
        """Those of the scorer."""
        return self._scorer.settings

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Those of the scorer."""
        return self._scorer.prompts

    def judge(self, case: Case) -> LLMTask[list[Judgements]]:
        """Judge as the scorer does."""
        judgements = yield from run_task(self._scorer.judge(case))
        note = {"calibration": self._note}
        return [
            replace(part, provenance={**part.provenance, **note}) if "calls" in part.provenance else part
            for part in judgements
        ]


def calibrate(scorers: Sequence[Scorer], client: LLMClient | None) -> list[Scorer]:
    """Calibrate the judges of scorers that ask a language model; the others are returned as they are.

    Raises NeuronautError for a judge that fails. A rehearsal asks as well, so that the calls are counted. Where the
    budget or a batch leaves the calls open, nobody is judged now.
    """
    if client is None:
        return list(scorers)
    found = client.ask(gather([_calibration(scorer) for scorer in scorers]))
    if found is None or client.mode == "rehearsal":
        return list(scorers)
    return [
        scorer if calibration is None else _admit(scorer, calibration, client)
        for scorer, calibration in zip(scorers, found, strict=True)
    ]


def found_calibrations(scorers: Sequence[Scorer]) -> list[Calibration | None]:
    """What `calibrate` found of each; None where it was not calibrated."""
    return [scorer.calibration if isinstance(scorer, AdmittedScorer) else None for scorer in scorers]


def admit(scorers: Sequence[Scorer], calibrations: Sequence[Calibration | None]) -> list[Scorer]:
    """The scorers that `calibrate` made of equal ones, where it found this."""
    return [
        scorer if calibration is None else AdmittedScorer(scorer, calibration)
        for scorer, calibration in zip(scorers, calibrations, strict=True)
    ]


def _admit(scorer: Scorer, calibration: Calibration, client: LLMClient) -> Scorer:
    if calibration.passed and not calibration.failed:
        return AdmittedScorer(scorer, calibration)
    judge = name_judge(client.llm.model, client.llm.endpoint, [prompt.hash for prompt in scorer.prompts])
    if calibration.failed:
        raise NeuronautError(
            f"{judge} could not be calibrated as judge for {scorer.name}: {calibration.failed}; give the command "
            "again, which asks these alone once more, or add --no-calibration"
        )
    raise NeuronautError(
        f"{judge} is refused as judge for {scorer.name}: {calibration} (wanted: {MARGIN} above both); "
        "use another -m, or --no-calibration to let its scores count all the same"
    )


def _calibration(scorer: Scorer) -> LLMTask[Calibration | None]:
    """Calibrate one judge; None where nothing can be asked."""
    if not isinstance(scorer, Calibrated):
        return None
    judge, windows = scorer.for_calibration()
    exchanged: list[_Exchange] = []
    tasks = [_watch(run_task(judge.judge(case)), exchanged) for case in _cases(windows)]
    judgements = [part for parts in (yield from gather(tasks)) for part in parts]
    if not exchanged:
        return None
    sets = {part.examples for part in judgements}
    # Of several sets the whole one, of which the others are parts.
    examples = max(sets, key=lambda name: sum(part.true.size for part in judgements if part.examples == name))
    parts = [part for part in judgements if part.examples == examples]
    roles: tuple[Role, ...] = ("explanation", "empty", "shuffled")
    values: dict[Role, float] = {role: _value([part for part in parts if part.role == role]) for role in roles}
    metric = "correlation" if parts[0].kind == "activation" else "balanced_accuracy"
    repeated = float(np.mean([exchange.repeated for exchange in exchanged]))
    failed = {exchange.reply.key: exchange.reply for exchange in exchanged if exchange.reply.status == "failed"}
    why = next((reply.reason for reply in failed.values()), "")
    return Calibration(metric, values, repeated, f"{len(failed)} calls failed ({why})" if failed else "")


class _Exchange(NamedTuple):
    request: Request
    reply: Reply

    @property
    def repeated(self) -> bool:
        """Whether the reply is a worked example of its prompt."""
        if not isinstance(self.request, Chat):
            return False
        examples = {_squeeze(m.content) for m in self.request.messages if m.role == "assistant"}
        return _squeeze(self.reply.text).startswith(tuple(examples)) if examples else False


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _watch(task: LLMTask[list[Judgements]], exchanged: list[_Exchange]) -> LLMTask[list[Judgements]]:
    """Run a task, and note what it asks and is answered."""
    replies: Sequence[Reply] | None = None
    while True:
        try:
            requests = next(task) if replies is None else task.send(replies)
        except StopIteration as stop:
            return stop.value
        replies = yield requests
        exchanged += map(_Exchange, requests, replies)


def _value(parts: Sequence[Judgements]) -> float:
    """The metric over all units at once; what is not answered counts as chance."""
    true, predicted = (
        np.concatenate([getattr(part, side).ravel() for part in parts]) for side in ("true", "predicted")
    )
    items = ~np.isnan(true)
    true, predicted = true[items][:, None], predicted[items][:, None]
    answered = np.isfinite(predicted)
    filled, coverage = np.nan_to_num(predicted), float(answered.mean())
    if parts[0].kind == "activation":
        return coverage * (correlation(true, filled, answered).value or 0.0)
    value = agreement(true, filled, answered, threshold=parts[0].threshold).value
    return 0.5 if value is None else 0.5 + coverage * (value - 0.5)


def _cases(windows: int) -> Iterator[Case]:
    """The cases of the built-in units, with at most so many active and so many silent windows each."""
    for number, sides in enumerate(json.loads(UNITS.read_text(encoding="utf-8"))):
        texts = [side["sentences"][:windows] for side in sides]
        vocabulary = tuple(dict.fromkeys(token for side in texts for text in side for token in _tokens(text)))
        for own, other in ((0, 1), (1, 0)):
            examples = [
                _example(f"{number}.{side}.{i}", text, vocabulary, active=side == own)
                for side in (0, 1)
                for i, text in enumerate(texts[side])
            ]
            # Units of the same sentences have one name, so that the same is asked about both.
            feature = Feature.parse(f"calibration:mlp.0:{number}")
            explanation = Explanation(feature, sides[own]["explanation"], "calibration")
            wrong = replace(explanation, text=sides[other]["explanation"])
            nothing = np.zeros(len(vocabulary), np.float32)
            yield Case(
                explanation,
                Holdout(feature, PEAK, vocabulary, {}, tuple(examples)),
                Baselines(nothing, nothing, None),
                wrong,
            )


def _tokens(text: str) -> list[str]:
    words = re.sub("[«»]", "", text).split()
    return [words[0], *(f" {word}" for word in words[1:])]


def _example(digest: str, text: str, vocabulary: Sequence[str], *, active: bool) -> Example:
    """A sentence in which a unit is active at the marked word, or nowhere."""
    tokens = _tokens(text)
    marked = np.array(["«" in word for word in text.split()])
    kind: Kind = "top" if active else "random"
    return Example(
        tokens=tuple(tokens),
        ids=np.array([vocabulary.index(token) for token in tokens], np.int64),
        activations=(PEAK * (marked & active)).astype(np.float32),
        kind=kind,
        split="holdout",
        document="",
        window=digest,
    )
