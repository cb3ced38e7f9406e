"""Tasks: pairs of clean and corrupted prompts that differ in what the answer is, and in as little else as possible.

A pair is aligned token by token. Its clean prompt asks for `answer`, its corrupted one for `wrong`, or at least not for
`answer`; each of the two is one token, the one that follows in the prompt's own tokenization. A task is read from a
JSONL file with the fields clean, corrupted, answer and wrong, or drawn by a generator (see `task_rows`), the same rows
for the same seed. A generator that finds too few rows, because the subject's tokenizer splits its words, refuses. On a
task that the subject does not do no circuit can be looked for: `baseline` says so.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .measures import Mean, Question, mean, metric
from .prompts import Pairs
from .runs import logits_at
from .task_rows import GENERATORS, Row, Texts, pairs_of, row_of

LEAST = 0.8
"""The share of clean prompts on which the answer must be above the wrong one for a task to be done at all."""
_FIELDS = ("clean", "corrupted", "answer", "wrong")
_TRIES = 20
"""Prompts drawn for each one wanted, before the tokenizer is taken to be unsuited."""


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """Pairs with a name."""

    name: str
    """A generator's, or the file's."""
    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs)

    @classmethod
    def of(cls, subject: Subject, name: str, rows: Sequence[Row]) -> Self:
        """From rows of ids; refuses what is not aligned."""
        return cls(name, pairs_of(subject, rows))

    def take(self, rows: Sequence[int]) -> "Task":
        """The task of these rows."""
        chosen, pairs = list(rows), self.pairs
        clean, corrupted = (side.take(chosen) for side in (pairs.clean, pairs.corrupted))
        return Task(self.name, Pairs(clean, corrupted, pairs.answers[chosen], pairs.wrong[chosen]))

    def logits(self, subject: Subject) -> tuple[Tensor, Tensor]:
        """Of the clean and the corrupted prompts at their last positions: (row, token) each."""
        clean, corrupted = (
            logits_at(subject, batch.tokens, batch.last) for batch in (self.pairs.clean, self.pairs.corrupted)
        )
        return clean, corrupted


def open_task(subject: Subject, name: str, *, rows: int = 64, seed: int = 0) -> Task:
    """A generator's task of this many rows, or the one in a JSONL file, all of it."""
    if name in GENERATORS:
        return generate(subject, name, rows=rows, seed=seed)
    if Path(name).is_file():
        return read_task(subject, name)
    raise NeuronautError(f"there is no task or file {name!r}; give {', '.join(GENERATORS)} or a JSONL of pairs")


def read_task(subject: Subject, path: str | Path) -> Task:
    """Read pairs from JSONL; an error names the line, and the tokens that do not stand side by side."""
    rows: list[Row] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(row_of(subject, _fields(line)))
        except NeuronautError as error:
            raise NeuronautError(f"line {number} of {path}: {str(error).removeprefix('pair 0 is ')}") from error
    if not rows:
        raise NeuronautError(f"{path} has no pairs; wanted one JSON object a line with {', '.join(_FIELDS)}")
    return Task.of(subject, Path(path).name, rows)


def _fields(line: str) -> Texts:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise NeuronautError(f"this is no JSON ({error}); wanted an object with {', '.join(_FIELDS)}") from error
    if not isinstance(data, dict) or not all(isinstance(data.get(name), str) for name in _FIELDS):
        raise NeuronautError(f"wanted an object with the texts {', '.join(_FIELDS)}; came {line[:60]}")
    clean, corrupted, answer, wrong = (data[name] for name in _FIELDS)
    if clean == corrupted or answer == wrong:
        raise NeuronautError(f"clean and corrupted, and answer and wrong, must differ; came {line[:60]}")
    return clean, corrupted, answer, wrong


def generate(subject: Subject, name: str, *, rows: int = 64, seed: int = 0) -> Task:
    """Draw a task of different rows."""
    if name not in GENERATORS:
        raise NeuronautError(f"there is no task {name!r}; there are {', '.join(GENERATORS)}")
    if rows < 1:
        raise NeuronautError(f"a task of {rows} rows has no prompts; wanted 1 row or more")
    rng, draw = random.Random(f"{name}:{seed}"), GENERATORS[name](subject)
    found: dict[str, Row] = {}
    for _ in range(_TRIES * rows):
        if (row := draw(rng)) is not None:
            found.setdefault(str(row.clean), row)
        if len(found) == rows:
            return Task.of(subject, name, list(found.values()))
    raise NeuronautError(
        f"of {_TRIES * rows} prompts drawn for {name}, {len(found)} are different, aligned and have one-token answers "
        f"in the tokens of {subject.name}, wanted {rows}; ask for fewer rows, or take induction or a JSONL of your own"
    )


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the subject makes of a task without edits."""

    task: str
    metric: str
    """Its formula's id."""
    clean: Mean
    corrupted: Mean
    accuracy: float
    """Share of the clean prompts on which the answer's logit is above the wrong one's."""
    corrupted_accuracy: float
    """Share of the corrupted prompts on which it is not."""


@torch.inference_mode()
def baseline(
    subject: Subject, task: Task, *, metric_name: str = "logit_difference", least: float = LEAST, seed: int = 0
) -> Baseline:
    """Measure the task's two sides; refuses one that the subject does on less than `least` of the clean prompts.

    Also refused is a task whose corrupted prompts leave the answer as likely as it was, for want of anything to
    explain. `seed` is the bootstrap's.
    """
    logits = task.logits(subject)
    question = Question(task.pairs.answers, task.pairs.wrong, logits[0])
    values, differences = (
        [metric(name)(side, question) for side in logits] for name in (metric_name, "logit_difference")
    )
    clean, corrupted = (mean(side, seed=seed) for side in values)
    right = [float((side > 0).float().mean()) for side in differences]
    found = Baseline(task.name, metric(metric_name).formula, clean, corrupted, right[0], 1 - right[1])
    if found.accuracy < least:
        raise NeuronautError(
            f"{subject.name} does not do {task.name}: the answer is above the wrong one in {found.accuracy:.0%} of "
            f"{len(task)} clean prompts, wanted {least:.0%}; choose another task or subject"
        )
    moved = mean(differences[0] - differences[1], seed=seed)
    if (moved.value if moved.interval is None else moved.interval.low) <= 0:
        raise NeuronautError(
            f"corrupting {task.name} does not lower the answer: its logit difference falls by {moved.value:.3g} on "
            f"average over {len(task)} pairs, interval {moved.interval}; corrupt what the answer depends on"
        )
    return found
