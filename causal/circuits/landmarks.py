"""Landmarks: the places of a task's prompts that the roles of heads are about, and the attention edges between them.

They follow from the pairs alone: the end of each clean prompt, where the answer's and the wrong word stand before it,
the words that the corruption changes, and the repeats that it changes (a query whose earlier copy in the clean prompt
is none in the corrupted one). Edges are masks (row, query, key) over the clean prompts:

    answer, wrong, source   from the end to the answer's word, the wrong word, a changed word
    itself                  from the end to itself
    repeat                  from the end to a repeat of the wrong word
    duplicate               from a repeat to its earlier copy
    induction               from a repeat to the token after its earlier copy
    previous                from that token to the earlier copy

Two further prompts tell the word from its place: in the `mirrored` one the answer's and the wrong word are exchanged
wherever they stand; in the `exchanged` one only their first places are, and the repeat stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...subject.model import Subject
from ..heads import mark_duplicate
from ..prompts import Batch, Pairs

EdgeName = Literal["answer", "wrong", "source", "itself", "repeat", "duplicate", "induction", "previous"]


@dataclass(frozen=True, eq=False, slots=True)
class Landmarks:
    """The places of clean prompts, all masks (row, position) or (row, query, key), bool, on the CPU."""

    pairs: Pairs
    answer: Tensor
    """(row, position): the answer's word, before the end."""
    wrong: Tensor
    source: Tensor
    """(row, position): words that the corruption changes."""
    repeats: Tensor
    """(row, position)."""
    edges: Mapping[EdgeName, Tensor]

    @classmethod
    def of(cls, pairs: Pairs) -> "Landmarks":
        """Find them in the tokens of the pairs."""
        tokens, other = pairs.clean.tokens, pairs.corrupted.tokens
        real, place = pairs.clean.real, torch.arange(tokens.shape[1])
        end = place == pairs.clean.last[:, None]
        before = place < pairs.clean.last[:, None]
        answer, wrong = ((tokens == ids[:, None]) & before for ids in (pairs.answers, pairs.wrong))
        source = (tokens != other) & real
        duplicate = mark_duplicate(tokens) & ~mark_duplicate(other) & real[:, :, None]
        repeats = duplicate.any(-1)
        after = _shift(duplicate)
        copies, followers = duplicate.any(1), after.any(1)
        previous = followers[:, :, None] & copies[:, None] & (place[:, None] - place == 1)
        ends: dict[EdgeName, Tensor] = {
            "answer": answer,
            "wrong": wrong,
            "source": source & before,
            "itself": end,
            "repeat": repeats & wrong,
        }
        edges: dict[EdgeName, Tensor] = {name: end[:, :, None] & keys[:, None] for name, keys in ends.items()}
        edges |= {"duplicate": duplicate, "induction": after, "previous": previous}
        edges["answer"] = edges["answer"] & ~after
        return cls(pairs, answer, wrong, source, repeats, {name: edges[name] for name in get_args(EdgeName)})

    def has(self, name: EdgeName) -> bool:
        """Whether every prompt has such an edge."""
        return bool(self.edges[name].any(-1).any(-1).all())

    @property
    def listed(self) -> bool:
        """Whether the answer's and the wrong word both stand in every prompt."""
        return bool(self.answer.any(-1).all() and self.wrong.any(-1).all())

    @property
    def repeat_is_last(self) -> bool:
        """Whether a repeat is the end itself, so that no head carries it there."""
        return bool((self.repeats & (torch.arange(self.repeats.shape[1]) == self.pairs.clean.last[:, None])).any())

    def mirrored(self) -> Batch:
        """The clean prompts with the answer's and the wrong word exchanged wherever they stand."""
        return self._exchange(torch.ones_like(self.answer))

    def exchanged(self) -> Batch | None:
        """The clean prompts with the two words exchanged but for repeats; None where that is not both of them."""
        first = ~self.repeats
        if not ((self.answer & first).any(-1).all() and (self.wrong & first).any(-1).all() and self.repeats.any()):
            return None
        return self._exchange(first)

    def _exchange(self, where: Tensor) -> Batch:
        clean, tokens = self.pairs.clean, self.pairs.clean.tokens
        exchanged = torch.where(self.answer & where, self.pairs.wrong[:, None], tokens)
        return Batch(torch.where(self.wrong & where, self.pairs.answers[:, None], exchanged), clean.lengths)

    def describe(self, subject: Subject) -> str:
        """The first pair's landmarks in words, as token and position."""
        clean = self.pairs.clean
        masks = {"answer": self.answer, "wrong": self.wrong, "changed": self.source, "repeat": self.repeats}
        masks["end"] = torch.arange(clean.tokens.shape[1]) == clean.last[:, None]
        parts: list[str] = []
        for name, mask in masks.items():
            places = mask[0].nonzero()[:, 0].tolist()
            texts = subject.decode_tokens(clean.tokens[0, places].tolist())
            if places:
                parts.append(
                    f"{name} " + ", ".join(f"{text!r} at {at}" for text, at in zip(texts, places, strict=True))
                )
        return "; ".join(parts)


def _shift(keys: Tensor) -> Tensor:
    """The keys one step on, none beyond the query: (row, query, key)."""
    place = torch.arange(keys.shape[-1])
    return keys.roll(1, dims=2) & (place[:, None] >= place) & (place > 0)
