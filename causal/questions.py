"""Prompts with the answers that they are asked for, and what is easily overlooked in them and in pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.quoting import quoted
from .answers import Reading, answer_after, read_answers, splits, ways_of
from .circuits.tasks import Task, baseline, next_token
from .prompts import Batch
from .readouts import last_logits


@dataclass(frozen=True, slots=True, eq=False)
class Questions:
    """Prompts with the answer that each is asked for."""

    texts: tuple[str, ...]
    batch: Batch
    answers: Tensor
    """(row,) ids: the answers that were given, or the subject's own likeliest next tokens."""
    wrong: Tensor | None
    """(row,) ids."""
    readings: tuple[tuple[Reading, ...], ...]
    """By row, the ways of writing the answer that was given, the given one first; none where none was given."""
    notes: tuple[str, ...]
    """What is easily overlooked in the prompts, and in how the answers are written."""

    def tokens(self, subject: Subject, row: int) -> list[str]:
        """The strings of a prompt's tokens, BOS included."""
        return list(subject.decode_tokens(self.batch.ids()[row]))


def ask(subject: Subject, rows: Sequence[Mapping[str, str | None]], *, whole: bool = False) -> Questions:
    """Read prompts: each row has `prompt`, and `answer` and `wrong`, which may be None.

    An answer is one token, or the first of several where only the `whole` is looked at, in its readings. Raises
    NeuronautError where some rows have a wrong answer and others none.
    """
    texts = tuple(str(row["prompt"]) for row in rows)
    batch = Batch.of(subject, texts)
    own = last_logits(subject, batch).argmax(-1).tolist()
    answers = [
        likeliest if (answer := row["answer"]) is None else _read_token(subject, text, answer, whole=whole)
        for text, row, likeliest in zip(texts, rows, own, strict=True)
    ]
    wrong = [
        None if (other := row["wrong"]) is None else next_token(subject, text, other)
        for text, row in zip(texts, rows, strict=True)
    ]
    if len({other is None for other in wrong}) != 1:
        number = wrong.index(None) + 1
        raise NeuronautError(f"prompt {number} has no wrong answer and others have; give one to each, or to none")
    against = None if None in wrong else torch.tensor(wrong)
    readings = tuple(_read_ways(subject, text, row["answer"]) for text, row in zip(texts, rows, strict=True))
    notes = (*subject.remarks(texts), *dict.fromkeys(filter(None, map(_describe_ways, readings))))
    return Questions(texts, batch, torch.tensor(answers), against, readings, notes=notes)


def _read_token(subject: Subject, prompt: str, text: str, *, whole: bool = False) -> int:
    return answer_after(subject, prompt, text).ids[0] if whole else next_token(subject, prompt, text)


def _read_ways(subject: Subject, prompt: str, answer: str | None) -> tuple[Reading, ...]:
    return () if answer is None else tuple(read_answers(subject, ways_of(subject, prompt, answer)))


def _describe_ways(readings: Sequence[Reading]) -> str | None:
    """Say which way of writing an answer leads, where that is not the given one, and what several tokens are."""
    if not readings:
        return None
    given, best = readings[0], max(readings, key=lambda reading: reading.log_probability)
    tokens = " ".join(map(quoted, given.tokens))
    words = f"the answer is {tokens}, probability {given.probability:.3g}"
    if best is not given:
        other = " ".join(map(quoted, best.tokens))
        return f"{words}; {other} is likelier, {best.probability:.3g}: mind the space between prompt and answer"
    return f"{words}, log-probability {given.log_probability:.3f}" if len(given.tokens) > 1 else None


def pair_remarks(subject: Subject, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines on what is easily overlooked in pairs, each with clean, corrupted, answer and wrong."""
    subject.require_causal("an answer is a next token, and it has no next-token logits")
    joined = [
        row
        for row in rows
        if not splits(subject, row["clean"], row["answer"]) or not splits(subject, row["corrupted"], row["wrong"])
    ]
    lines = subject.remarks([row[name] for row in rows for name in ("clean", "corrupted")])
    if joined:
        lines.append(
            f"in {len(joined)} of {len(rows)} pairs the prompt's last token is another when the answer follows, as in "
            f"{quoted(joined[0]['clean'][-20:])} and {quoted(joined[0]['answer'])}: begin the answer with the space "
            "instead of ending the prompt in it"
        )
    return lines


def count_wrong(subject: Subject, task: Task, *, seed: int) -> str | None:
    """Say how many pairs of a task the subject gets wrong. Raises NeuronautError where it does not do the task."""
    if not (wrong := round((1 - baseline(subject, task, seed=seed).accuracy) * len(task))):
        return None
    return f"{subject.name} gets {wrong} of {len(task)} pairs of {task.name} wrong: they are counted as they are"
