"""Answers as the tokens that they are after a prompt, and what the subject makes of each way of writing them.

A text is other tokens with a space before it than without, and a prompt that ends in a space has a token of its own
where running text has the space in the next word's token. So an answer is read at its place, as the tokens by which
the tokens of prompt and answer together go on; where these do not begin with the prompt's tokens, both the tokens that
the subject is run on and those of running text are told. An answer of several tokens is worth their sum:

    ln p(answer | prompt) = sum over i of ln p(token i | prompt, tokens before i)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from os.path import commonprefix

import torch

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .prompts import Batch
from .runs import logits_of


@dataclass(frozen=True, slots=True)
class Answer:
    """One way in which an answer may follow a prompt."""

    text: str
    ids: tuple[int, ...]
    prompt: tuple[int, ...]
    """What the tokens follow, without BOS: the prompt's ids, or those of running text that the two have in common."""


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer with what the subject makes of it."""

    text: str
    tokens: tuple[str, ...]
    log_probability: float
    """Sum over the tokens, each after those before it, in nats."""

    @property
    def probability(self) -> float:
        """Of the whole, 0 to 1."""
        return exp(self.log_probability)


def answer_after(subject: Subject, prompt: str, text: str) -> Answer:
    """The answer's tokens after the prompt's, or by itself where the two are not split between them.

    SentencePiece tokenizers put a space before a text that stands alone, so alone it may be other tokens.
    """
    before, whole = subject.encode(prompt), subject.encode(prompt + text)
    together = whole[: len(before)] == before
    ids = whole[len(before) :] if together else subject.encode(text)
    if not ids:
        raise NeuronautError(f"answer {text!r} has no token; give a text that follows the prompt")
    return Answer(text, tuple(ids), tuple(before))


def splits(subject: Subject, prompt: str, text: str) -> bool:
    """Whether the tokens of prompt and answer together begin with those of the prompt."""
    before = subject.encode(prompt)
    return subject.encode(prompt + text)[: len(before)] == before


def ways_of(subject: Subject, prompt: str, text: str) -> list[Answer]:
    """The answer as it was given, and the way of writing it that running text may have instead: at most two."""
    given = answer_after(subject, prompt, text)
    before, whole = list(given.prompt), subject.encode(prompt + text)
    if whole[: len(before)] != before:
        common = commonprefix([before, whole])
        rest = tuple(whole[len(common) :])
        return [given, Answer("".join(subject.decode_tokens(rest)), rest, tuple(common))]
    other = text.lstrip(" ") if text.startswith(" ") else f" {text}"
    if not other or (prompt.endswith(" ") and other.startswith(" ")):
        return [given]
    return [given, answer_after(subject, prompt, other)]


@torch.inference_mode()
def read_answers(subject: Subject, answers: Sequence[Answer]) -> list[Reading]:
    """The log-probability of each answer after its prompt, all in one forward."""
    opening = subject.bos_prefix
    batch = Batch.of(subject, [[*opening, *answer.prompt, *answer.ids] for answer in answers])
    starts = [len(opening) + len(answer.prompt) for answer in answers]
    if 0 in starts:
        raise NeuronautError("an answer follows no token; give a longer prompt")
    places = [
        (row, start - 1 + at)
        for row, (answer, start) in enumerate(zip(answers, starts, strict=True))
        for at in range(len(answer.ids))
    ]
    wanted = torch.tensor([id for answer in answers for id in answer.ids], device=subject.device)
    logprobs = logits_of(subject, batch.tokens, torch.tensor(places)).float().log_softmax(-1)
    found = logprobs.gather(1, wanted[:, None])[:, 0].double().split([len(answer.ids) for answer in answers])
    return [
        Reading(answer.text, subject.decode_tokens(answer.ids), float(part.sum()))
        for answer, part in zip(answers, found, strict=True)
    ]
