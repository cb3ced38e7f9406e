"""Experiments as data with their provenance: what was run, on what, with which results, so that it can be run again.

A trial is all that decides an outcome but the model and the dictionaries, which the outcome names by their revisions.
On the same machine the same trial gives the same outcome, to the bit; `replay` runs a stored outcome's trial again and
first refuses a subject, dictionary or library other than the one it was run with.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, Self

import torch
import transformers
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .edits import Edit
from .intervene import Materials, edited_dictionaries
from .measures import Question, fidelity, metric
from .prompts import Batch
from .runs import Comparison, alike, compare, gather

Rows = tuple[tuple[int, ...], ...]
"""Token ids, BOS included, of each prompt."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)

    @classmethod
    def load(cls, text: str) -> Self:
        """Read what `model_dump_json()` wrote."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "JSON"
            raise NeuronautError(f"this is no stored {cls.__name__.lower()}: {where}: {first['msg']}") from error


class Trial(_Data):
    """Prompts run plainly and under all of the edits together, and what is measured of both."""

    prompts: Rows
    edits: tuple[Edit, ...]
    metrics: tuple[str, ...]
    answers: tuple[int, ...]
    """By prompt, the id of the answer."""
    wrong: tuple[int, ...] | None = None
    source_runs: Rows | None = Field(
        None, validation_alias=AliasChoices("donors", "source_runs"), serialization_alias="donors"
    )
    """The prompts that patches take their values from, row by row."""
    reference: Rows | None = None
    """The text that means, draws and quantiles are of."""
    directions: dict[str, tuple[float, ...]] = {}


class Done(_Data):
    """What an edit did."""

    fired: int
    places: dict[int, tuple[int, ...]]
    max_change: float


class Trust(_Data):
    """How well a dictionary rebuilds the site on the trial's prompts; see `fidelity`."""

    unexplained: float | None
    loss: float | None
    rebuilt_loss: float | None


class Provenance(_Data):
    """What an outcome rests on beside its trial."""

    model: str
    revision: str
    dictionaries: dict[str, str]
    """By `SITE@NAME`, the revision; of directions too."""
    torch: str
    transformers: str
    attention: str
    """The implementation that both runs used."""
    dtype: str
    device: str
    prompts: str
    """First 16 hex digits of the SHA-256 of all the token ids: prompts, source runs, reference."""
    formulas: dict[str, str]
    """By metric."""


class Outcome(_Data):
    """A trial with its results: a record that can be stored and run again."""

    trial: Trial
    before: dict[str, tuple[float, ...]]
    """By metric, each prompt's value without edits."""
    after: dict[str, tuple[float, ...]]
    done: tuple[Done, ...]
    """By edit."""
    dictionaries: dict[str, Trust]
    """By `SITE@NAME`, for each dictionary that is edited."""
    provenance: Provenance


class TrialRun(NamedTuple):
    """A trial's outcome, and the logits and reports that it was measured on."""

    outcome: Outcome
    comparison: Comparison


def run(subject: Subject, trial: Trial, *, sources: Mapping[str, Source] | None = None) -> Outcome:
    """Run a trial; dictionaries and directions go by their `SITE@NAME`. KL is taken to the run without edits."""
    return run_with_logits(subject, trial, sources=sources).outcome


def run_with_logits(subject: Subject, trial: Trial, *, sources: Mapping[str, Source] | None = None) -> TrialRun:
    """Run a trial as `run` does, and keep its logits and reports too, which no record holds."""
    sources = {} if sources is None else sources
    _check(subject, trial)
    batch = Batch.of(subject, trial.prompts)
    directions = {name: torch.tensor(values) for name, values in trial.directions.items()}
    reference, source_run = (
        None if rows is None else Batch.of(subject, rows) for rows in (trial.reference, trial.source_runs)
    )
    references = Materials(sources=sources, directions=directions)
    materials = gather(subject, trial.edits, materials=references, reference=reference, source_run=source_run)
    comparison = compare(subject, batch, trial.edits, materials=materials)
    wrong = None if trial.wrong is None else torch.tensor(trial.wrong)
    question = Question(torch.tensor(trial.answers), wrong, comparison.before)

    def measure_all(logits: torch.Tensor) -> dict[str, tuple[float, ...]]:
        return {name: tuple(metric(name)(logits, question).tolist()) for name in trial.metrics}

    done = tuple(
        Done(fired=report.fired, places=dict(report.places), max_change=report.max_change)
        for report in comparison.reports
    )
    before, after = measure_all(comparison.before), measure_all(comparison.after)
    edited = edited_dictionaries(trial.edits, references)
    trust = {name: Trust(**asdict(fidelity(subject, dictionary, batch))) for name, dictionary in edited.items()}
    provenance = provenance_of(subject, trial, sources=sources)
    outcome = Outcome(trial=trial, before=before, after=after, done=done, dictionaries=trust, provenance=provenance)
    return TrialRun(outcome, comparison)


def replay(subject: Subject, outcome: Outcome, *, sources: Mapping[str, Source] | None = None) -> Outcome:
    """Run a stored outcome's trial again, on the very model, dictionaries and libraries, or not at all."""
    here = provenance_of(subject, outcome.trial, sources=sources or {}).model_dump()
    for name, stored in outcome.provenance.model_dump().items():
        if here[name] != stored:
            raise NeuronautError(f"the record was made with {name} {stored}, here it is {here[name]}; run it there")
    return run(subject, outcome.trial, sources=sources)


def provenance_of(subject: Subject, trial: Trial, *, sources: Mapping[str, Source]) -> Provenance:
    """What a run of this trial, here and now, rests on."""
    config: Any = subject.model.config
    with alike(subject, trial.edits):
        attention = str(config._attn_implementation)
    return Provenance(
        model=subject.name,
        revision=subject.revision,
        dictionaries={name: sources[name].revision for name in _list_dictionaries(trial) if name in sources},
        torch=torch.__version__,
        transformers=transformers.__version__,
        attention=attention,
        dtype=str(subject.model.dtype).removeprefix("torch."),
        device=_name_device(subject.device),
        prompts=prompts_hash(trial.prompts, trial.source_runs, trial.reference),
        formulas={name: metric(name).formula for name in trial.metrics},
    )


def prompts_hash(*parts: Sequence[Sequence[int]] | None) -> str:
    """First 16 hex digits of the SHA-256 of token ids."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _list_dictionaries(trial: Trial) -> list[str]:
    return sorted({f"{edit.site}@{edit.dictionary}" for edit in trial.edits if edit.dictionary})


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _check(subject: Subject, trial: Trial) -> None:
    counts = {len(trial.prompts), len(trial.answers), len(trial.prompts if trial.wrong is None else trial.wrong)}
    if len(counts) != 1:
        raise NeuronautError(f"the trial has {len(trial.prompts)} prompts and not as many answers; give one to each")
    if trial.source_runs is not None and [*map(len, trial.source_runs)] != [*map(len, trial.prompts)]:
        raise NeuronautError("the trial's source runs are not aligned with its prompts; give rows of as many tokens")
    for id in (*trial.answers, *(trial.wrong or ())):
        if not 0 <= id < len(subject.vocabulary):
            raise NeuronautError(f"answer {id} is no token of {subject.name}, 0 to {len(subject.vocabulary) - 1}")
