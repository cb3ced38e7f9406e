"""Scores explanations by simulation, as published: a language model reads one and predicts each token's activation.

The highest-peaking holdout windows and as many random ones are simulated ("top_random"); the random half of the same
judgements is the set "random". The truth is the raw activation, the prediction the expected value on the simulator's
scale (0 to 10), so the correlation is the preferred score and nothing is calibrated (see published_metrics.py). The
same simulator is asked on some features twice more, without an explanation and with another feature's (controls.py):
the score of an explanation is worth what it has above theirs. How the model is asked is the backend's part.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..data.padding import pad_ids
from ..data.records import Example, Judgements, Role
from ..llm.prompt import Prompt
from ..llm.tasks import LLMTask
from ..llm.types import Reply, Request
from .controls import ALL, SAMPLE, Controls, judged_texts
from .holdout import Holdout
from .scorer import Case
from .simulation import token_predictions

NO_EXPLANATION = "(no explanation is given)"
"""Stands in the explanation's place when the simulator is asked without one."""

CALIBRATED = 1
"""Windows of either kind that a simulator is calibrated on: each is a call in every role."""


class Reading(NamedTuple):
    """The values that one reply gives for one window."""

    values: NDArray[np.float32]
    """Expected value at each token, from 0 to the backend's top; NaN where the reply has none."""
    missing: dict[str, int]
    """Tokens without a value, by reason."""
    notes: dict[str, float]
    """Means over tokens that describe how the values were read, for the provenance."""

    @classmethod
    def nothing(cls, tokens: int, reason: str) -> "Reading":
        """Make a reading without a value at any token."""
        return cls(np.full(tokens, np.nan, np.float32), {reason: tokens}, {})


class Backend(Protocol):
    """One way to have a language model predict the activations in a window."""

    @property
    def name(self) -> str:
        """The backend's name after `-s simulation:`."""
        ...

    @property
    def prompt(self) -> Prompt:
        """The prompt that the backend fills."""
        ...

    @property
    def top(self) -> int:
        """The highest value of the backend's scale."""
        ...

    def request(self, explanation: str, tokens: Sequence[str]) -> Request:
        """Write the request about one window."""
        ...

    def read(self, reply: Reply, *, tokens: int) -> Reading:
        """Read one value per token of the window; a reply that is no answer has none."""
        ...


class LLMSimulator:
    """Scores explanations by how well a language model that reads them predicts activations.

    >>> LLMSimulator(JsonBackend(), windows=3).name
    'simulation'
    """

    name = "simulation"
    keeps_judgements = True
    compares = True

    def __init__(self, backend: Backend, *, windows: int = 5, controls: Controls = SAMPLE, seed: int = 0) -> None:
        """`windows` top windows and as many random ones, which the seed chooses, are simulated.

        A feature whose controls are judged takes three times the calls.
        """
        self._backend, self._windows, self._controls, self._seed = backend, windows, controls, seed

    @property
    def settings(self) -> Mapping[str, object]:
        """All that, beside the case, determines a judgement."""
        backend = self._backend
        return {
            "by": backend.name,
            "prompt": {backend.prompt.name: backend.prompt.hash},
            "scale": backend.top,
            "windows": self._windows,
            "controls": self._controls.mode,
            "seed": self._seed,
        }

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompt of the backend."""
        return (self._backend.prompt,)

    def for_calibration(self) -> tuple[Self, int]:
        """The same simulator with all controls, and how many windows of either kind it is calibrated on."""
        simulator = copy.copy(self)
        simulator._controls, simulator._windows = ALL, CALIBRATED
        return simulator, CALIBRATED

    def judge(self, case: Case) -> LLMTask[list[Judgements]]:
        """Judge the explanation, the baselines and the controls on "top_random" and "random".

        Nothing is asked about an explanation without text.
        """
        texts = judged_texts(case, controls=self._controls, nothing=NO_EXPLANATION)
        if not texts:
            return []
        windows = self._choose_windows(case.holdout)
        requests = [self._backend.request(text, w.tokens) for text in texts.values() for w in windows]
        replies = (yield requests) if requests else []
        n = len(windows)
        judgements = [
            self._judgements(case, role, windows, replies[i * n : (i + 1) * n]) for i, role in enumerate(texts)
        ]
        return [part for parts in judgements for part in parts] + self._baseline_judgements(case, windows)

    def _choose_windows(self, holdout: Holdout) -> list[Example]:
        """Choose as many top windows as random ones, the highest-peaking first, then the random ones."""
        tops = sorted((e for e in holdout.examples if e.kind == "top"), key=lambda e: (-e.peak, e.window))
        randoms = sorted((e for e in holdout.examples if e.kind == "random"), key=lambda e: e.window)
        n = min(self._windows, len(tops), len(randoms))
        picks = np.random.default_rng(self._seed).permutation(len(randoms))[:n]
        return [*tops[:n], *(randoms[i] for i in picks)]

    def _judgements(
        self, case: Case, role: Role, windows: Sequence[Example], replies: Sequence[Reply]
    ) -> list[Judgements]:
        """Lay one role's predictions on both sets beside the truth."""
        readings = [self._backend.read(r, tokens=len(w.ids)) for r, w in zip(replies, windows, strict=True)]
        predicted = _stack([reading.values for reading in readings])
        judgements = []
        for name, rows in _sets(windows).items():
            missing = sum((Counter(reading.missing) for reading in readings[rows]), Counter[str]())
            provenance = {
                "by": self._backend.name,
                "prompt": {self._backend.prompt.name: self._backend.prompt.hash},
                "windows": len(windows[rows]),
                "scale": self._backend.top,
                "calls": [reply.key for reply in replies[rows]],
                **_mean_notes(readings[rows]),
            }
            reasons = dict(missing) if windows else {"no holdout windows": 1}
            judgements.append(
                self._make_judgements(
                    case,
                    examples=name,
                    role=role,
                    windows=windows[rows],
                    predicted=predicted[rows],
                    missing=reasons,
                    provenance=provenance,
                )
            )
        return judgements

    def _baseline_judgements(self, case: Case, windows: Sequence[Example]) -> list[Judgements]:
        """Judge the baselines, for which no language model is asked."""
        if not windows:
            return []
        ids = pad_ids([w.ids for w in windows], width=max(len(w.ids) for w in windows))
        predictions = token_predictions(case.baselines, ids)
        return [
            self._make_judgements(
                case,
                examples=name,
                role=role,
                windows=windows[rows],
                predicted=predicted[rows],
                missing={},
                provenance={"by": "table"},
            )
            for role, predicted in predictions.items()
            for name, rows in _sets(windows).items()
        ]

    def _make_judgements(
        self,
        case: Case,
        examples: str,
        role: Role,
        windows: Sequence[Example],
        predicted: NDArray[np.float32],
        missing: dict[str, int],
        provenance: dict[str, object],
    ) -> Judgements:
        true = np.full(predicted.shape, np.nan, np.float32)
        for row, window in zip(true, windows, strict=True):
            row[: len(window.activations)] = window.activations
        digests = tuple(w.window for w in windows)
        return Judgements(
            scorer=self.name,
            examples=examples,
            role=role,
            kind="activation",
            true=true,
            predicted=predicted,
            threshold=case.holdout.peak / 2,
            windows=digests,
            missing=missing,
            provenance=provenance,
        )


def _sets(windows: Sequence[Example]) -> dict[str, slice]:
    """The rows of each set among the chosen windows, whose second half is random."""
    return {"top_random": slice(0, None), "random": slice(len(windows) // 2, None)}


def _stack(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The rows as (row, item), NaN behind the shorter ones' ends."""
    stacked = np.full((len(rows), max(map(len, rows), default=0)), np.nan, np.float32)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return stacked


def _mean_notes(readings: Sequence[Reading]) -> dict[str, float]:
    """The mean of each note over the windows that have it."""
    names = dict.fromkeys(name for reading in readings for name in reading.notes)
    return {name: float(np.mean([r.notes[name] for r in readings if name in r.notes])) for name in names}
