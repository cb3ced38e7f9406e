r"""Rows of tasks: texts turned into aligned tokens, and the generators that draw rows by themselves.

Each generator takes a subject and gives what draws one row from a random number generator:

    induction   a random sequence (20 tokens) begun a second time; corrupted: the last token has changed places with
                another in the first copy, so what follows that one there is the wrong answer
    brackets    Python with an open bracket, `token = list(name, key`; corrupted: another kind of bracket
    variable    `def run(self, path, name):\n if name is None:\n` asks for ` name`; corrupted: the other argument
    ioi         "When Mary and John walked to the park, John handed the book to" asks for " Mary"; corrupted: Mary did
                the handing (after Wang et al., "Interpretability in the Wild", 2022)

The built-in subject prefers the answer in 100% of the clean induction rows (mean logit difference 19.8), 99% of the
brackets (6.6) and 96% of the variables (3.4), and in as many of the corrupted ones the wrong one (94%, 98%, 96%), over
256 rows each; it has none of the names of `ioi` as one token. It was right in at most 84% after `self.name =` in
an `__init__`, and by chance after `:param` in docstrings, so these are no generators here.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .prompts import Batch, Pairs, single_token

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
    one, other = (Batch.of(subject, side) for side in (clean, corrupted))
    return Pairs.aligned(subject, one, other, torch.tensor(answers), torch.tensor(wrong))


def row_of(subject: Subject, texts: Texts) -> Row:
    """The texts' tokens; refuses those that are not aligned, and answers that are not one token."""
    clean, corrupted, answer, wrong = texts
    one, other = (Batch.of(subject, [text]).ids()[0] for text in (clean, corrupted))
    row = Row(one, other, next_token(subject, clean, answer), next_token(subject, corrupted, wrong))
    pairs_of(subject, [row])
    return row


def next_token(subject: Subject, prompt: str, answer: str) -> int:
    """The one token that `answer` is after `prompt`, or by itself where the two are not split between them.

    SentencePiece tokenizers put a space before a text that stands alone, so alone it may be another token.
    """
    before, whole = subject.encode(prompt), subject.encode(prompt + answer)
    if len(whole) == len(before) + 1 and whole[:-1] == before:
        return whole[-1]
    return single_token(subject, answer)


Draw = Callable[[random.Random], Row | None]
"""Draws one row; None where the drawn prompt does not fit the subject's tokens."""


def _induction(subject: Subject) -> Draw:
    opening = [] if subject.bos is None else [subject.bos]
    special = {*opening, *subject.tokenizer.all_special_ids}
    words = [id for id in range(len(subject.vocabulary)) if id not in special]
    period = min(PERIOD, len(words), (subject.context - len(opening)) * 2 // 3)
    if period < 6:
        raise NeuronautError(f"{subject.name} has no room for induction: {subject.context} tokens, {len(words)} words")
    here = period // 2 - 1
    places = [place for place in range(period - 1) if abs(place - here) > 1]

    def draw(rng: random.Random) -> Row:
        first, there = rng.sample(words, period), rng.choice(places)
        swapped = list(first)
        swapped[here], swapped[there] = first[there], first[here]
        again = first[: here + 1]
        return Row(opening + first + again, opening + swapped + again, first[here + 1], first[there + 1])

    return draw


def _written(write: Callable[[random.Random], Texts]) -> Callable[[Subject], Draw]:
    """A generator of texts, as one of rows."""

    def generator(subject: Subject) -> Draw:
        def draw(rng: random.Random) -> Row | None:
            try:
                return row_of(subject, write(rng))
            except NeuronautError:
                return None

        return draw

    return generator


_WORDS = (
    "args", "base", "code", "context", "data", "encoding", "event", "filename", "files", "format", "frame",
    "header", "host", "index", "item", "key", "level", "lines", "message", "mode", "module", "name", "names",
    "node", "output", "parent", "parser", "path", "prefix", "request", "root", "size", "source", "start", "state",
    "test", "text", "token", "value", "version", "widget", "write",
)  # fmt: skip
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
    "Alice", "Anna", "Bob", "David", "Emma", "Frank", "George", "Henry", "Jack", "James", "Jane", "John", "Kate",
    "Laura", "Mark", "Mary", "Paul", "Peter", "Sarah", "Tom",
)  # fmt: skip
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
    "brackets": _written(_brackets),
    "variable": _written(_variable),
    "ioi": _written(_ioi),
}
"""By name, what makes a subject's draw."""
