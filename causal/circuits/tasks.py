"""Tasks: pairs of clean and corrupted prompts that differ in what the answer is, and in as little else as possible.

A pair is aligned token by token. Its clean prompt asks for `answer`, its corrupted one for `wrong`, or at least not for
`answer`; each of the two is one token, the one that follows in the prompt's own tokenization. A task is read from a
JSONL file with the fields clean, corrupted, answer and wrong, or drawn by a generator, the same rows for the same seed.
A generator that finds too few rows, because the subject's tokenizer splits its words, refuses. On a task that the
subject does not do no circuit can be looked for: `baseline` says so.

Each generator takes a subject and gives what draws one row from a random number generator:

    induction   a random sequence (20 tokens) begun a second time; corrupted: the last token has changed places with
                another in the first copy, so what follows that one there is the wrong answer
    brackets    Python with an open bracket, `token = list(name, key`; corrupted: another kind of bracket
    variable    `def run(self, path, name):\\n if name is None:\\n` asks for ` name`; corrupted: the other argument
    ioi         "When Mary and John walked to the park, John handed the book to" asks for " Mary"; corrupted: Mary did
                the handing (after Wang et al., "Interpretability in the Wild", 2022)

The built-in subject prefers the answer in 100% of the clean induction rows (mean logit difference 19.8), 99% of the
brackets (6.6) and 96% of the variables (3.4), and in as many of the corrupted ones the wrong one (94%, 98%, 96%), over
256 rows each; it has none of the names of `ioi` as one token. It was right in at most 84% after `self.name =` in
an `__init__`, and by chance after `:param` in docstrings, so these are no generators here.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ..answers import answer_after
from ..measures import Mean, Question, mean, metric
from ..prompts import Batch, Pairs, single_token
from ..runs import in_parts, logits_at

PERIOD = 20
"""Tokens of an induction row's sequence, where they fit the subject."""

Texts = tuple[str, str, str, str]
"""Clean, corrupted, answer, wrong."""


class Row(NamedTuple):
    """A pair as token ids, BOS included."""

    clean: list[int]
    corrupted: list[int]
    answer: int
    wrong: int


def pairs_of(subject: Subject, rows: Sequence[Row]) -> Pairs:
    """The rows as a batch of pairs; refuses what is not aligned."""
    clean, corrupted, answers, wrong = zip(*rows, strict=True)
    clean_batch, corrupted_batch = (Batch.of(subject, side) for side in (clean, corrupted))
    return Pairs.aligned(subject, clean_batch, corrupted_batch, torch.tensor(answers), torch.tensor(wrong))


def row_of(subject: Subject, texts: Texts) -> Row:
    """The texts' tokens; refuses those that are not aligned, and answers that are not one token."""
    clean, corrupted, answer, wrong = texts
    clean_ids, corrupted_ids = (Batch.of(subject, [text]).ids()[0] for text in (clean, corrupted))
    row = Row(clean_ids, corrupted_ids, next_token(subject, clean, answer), next_token(subject, corrupted, wrong))
    pairs_of(subject, [row])
    return row


def next_token(subject: Subject, prompt: str, answer: str) -> int:
    """The one token that `answer` is after `prompt` (answers.py); refuses one of several."""
    ids = answer_after(subject, prompt, answer).ids
    return ids[0] if len(ids) == 1 else single_token(subject, answer)


Draw = Callable[[random.Random], Row | None]
"""Draws one row; None where the drawn prompt does not fit the subject's tokens."""


def _induction(subject: Subject) -> Draw:
    bos = subject.bos_prefix
    special = {*bos, *subject.tokenizer.all_special_ids}
    words = [id for id in range(len(subject.vocabulary)) if id not in special]
    period = min(PERIOD, len(words), (subject.context - len(bos)) * 2 // 3)
    if period < 6:
        raise NeuronautError(f"{subject.name} has no room for induction: {subject.context} tokens, {len(words)} words")
    here = period // 2 - 1
    places = [place for place in range(period - 1) if abs(place - here) > 1]

    def draw(rng: random.Random) -> Row:
        first, there = rng.sample(words, period), rng.choice(places)
        swapped = list(first)
        swapped[here], swapped[there] = first[there], first[here]
        again = first[: here + 1]
        return Row(bos + first + again, bos + swapped + again, first[here + 1], first[there + 1])

    return draw


def _row_generator(write: Callable[[random.Random], Texts]) -> Callable[[Subject], Draw]:
    """Makes a generator of rows out of one of texts; a row that does not fit the tokens is None."""

    def generator(subject: Subject) -> Draw:
        def draw(rng: random.Random) -> Row | None:
            try:
                return row_of(subject, write(rng))
            except NeuronautError:
                return None

        return draw

    return generator


_WORDS = (
    "args",
    "base",
    "code",
    "context",
    "data",
    "encoding",
    "event",
    "filename",
    "files",
    "format",
    "frame",
    "header",
    "host",
    "index",
    "item",
    "key",
    "level",
    "lines",
    "message",
    "mode",
    "module",
    "name",
    "names",
    "node",
    "output",
    "parent",
    "parser",
    "path",
    "prefix",
    "request",
    "root",
    "size",
    "source",
    "start",
    "state",
    "test",
    "text",
    "token",
    "value",
    "version",
    "widget",
    "write",
)
_BRACKETS = ("()", "[]", "{}")
_OPEN = ("    {0} = {1}{open}{2}, {3}", "    {0} = {open}{1}, {2}", "        return {0}{open}{1}, {2}")


def _brackets(rng: random.Random) -> Texts:
    (opens, closes), (other, wrong) = rng.sample(_BRACKETS, 2)
    template, words = rng.choice(_OPEN), rng.sample(_WORDS, 4)
    clean, corrupted = (template.format(*words, open=kind) for kind in (opens, other))
    return clean, corrupted, closes, wrong


def _variable(rng: random.Random) -> Texts:
    name, *arguments = rng.sample(_WORDS, 3)
    answer, wrong = rng.sample(arguments, 2)
    template = f"    def {name}(self, {', '.join(arguments)}):\n        if {{}} is None:\n           "
    return template.format(answer), template.format(wrong), f" {answer}", f" {wrong}"


_NAMES = (
    "Alice",
    "Anna",
    "Bob",
    "David",
    "Emma",
    "Frank",
    "George",
    "Henry",
    "Jack",
    "James",
    "Jane",
    "John",
    "Kate",
    "Laura",
    "Mark",
    "Mary",
    "Paul",
    "Peter",
    "Sarah",
    "Tom",
)
_SCENES = (
    "When {0} and {1} walked to the {place}, {who} handed the {thing} to",
    "After {0} and {1} met at the {place}, {who} sent a {thing} to",
    "While {0} and {1} were in the {place}, {who} passed the {thing} to",
)
_PLACES, _THINGS = ("park", "school", "store", "house", "office"), ("book", "ball", "letter", "key", "phone")


def _ioi(rng: random.Random) -> Texts:
    names = rng.sample(_NAMES, 2)
    answer, wrong = rng.sample(names, 2)
    scene, place, thing = rng.choice(_SCENES), rng.choice(_PLACES), rng.choice(_THINGS)
    clean, corrupted = (scene.format(*names, who=who, place=place, thing=thing) for who in (wrong, answer))
    return clean, corrupted, f" {answer}", f" {wrong}"


GENERATORS: Mapping[str, Callable[[Subject], Draw]] = {
    "induction": _induction,
    "brackets": _row_generator(_brackets),
    "variable": _row_generator(_variable),
    "ioi": _row_generator(_ioi),
}
"""By name, what makes a subject's draw."""


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
        return Task(self.name, self.pairs.take(list(rows)))

    def logits(self, subject: Subject) -> tuple[Tensor, Tensor]:
        """Of the clean and the corrupted prompts at their last positions: (row, token) each."""
        clean, corrupted = (
            torch.cat(in_parts(subject, batch, lambda rows: logits_at(subject, rows.tokens, rows.last)))
            for batch in (self.pairs.clean, self.pairs.corrupted)
        )
        return clean, corrupted


def open_task(subject: Subject, name: str, *, rows: int = 64, seed: int = 0) -> Task:
    """A generator's task of this many rows, or the one in a JSONL file, all of it.

    >>> len(open_task(subject, "induction", rows=8))
    8
    """
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
            rows.append(row_of(subject, _read_fields(line)))
        except NeuronautError as error:
            raise NeuronautError(f"line {number} of {path}: {str(error).removeprefix('pair 0 is ')}") from error
    if not rows:
        raise NeuronautError(f"{path} has no pairs; wanted one JSON object a line with {', '.join(_FIELDS)}")
    return Task.of(subject, Path(path).name, rows)


def _read_fields(line: str) -> Texts:
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
    drawn: dict[str, Row] = {}
    for _ in range(_TRIES * rows):
        if (row := draw(rng)) is not None:
            drawn.setdefault(str(row.clean), row)
        if len(drawn) == rows:
            return Task.of(subject, name, list(drawn.values()))
    raise NeuronautError(
        f"of {_TRIES * rows} prompts drawn for {name}, {len(drawn)} are different, aligned and have one-token answers "
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
    result = Baseline(
        task=task.name,
        metric=metric(metric_name).formula,
        clean=clean,
        corrupted=corrupted,
        accuracy=right[0],
        corrupted_accuracy=1 - right[1],
    )
    if result.accuracy < least:
        raise NeuronautError(
            f"{subject.name} does not do {task.name}: the answer is above the wrong one in {result.accuracy:.0%} of "
            f"{len(task)} clean prompts, wanted {least:.0%}; choose another task or subject"
        )
    moved = mean(differences[0] - differences[1], seed=seed)
    if (moved.value if moved.interval is None else moved.interval.low) <= 0:
        raise NeuronautError(
            f"corrupting {task.name} does not lower the answer: its logit difference falls by {moved.value:.3g} on "
            f"average over {len(task)} pairs, interval {moved.interval}; corrupt what the answer depends on"
        )
    return result
