"""Prompts as rows of tokens, and which of their positions a rule means.

Rows are padded on the right, where a causal model's real positions cannot see the padding (an encoder is told by ids
below 0 what is padding), so that neither padding nor the other rows of a batch change a result. Tokens stay on the
CPU; the subject moves what it runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Self

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .edits import indices, read_quoted


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens for one forward pass.

    >>> batch = Batch.of(subject, ["def f(self):", "import os"])
    >>> len(batch), batch.lengths.tolist() == [len(row) for row in batch.ids()]
    (2, True)
    """

    tokens: Tensor
    """(row, position) ids, padded on the right: with 0, for an encoder with -1."""
    lengths: Tensor
    """(row,): how many of a row's tokens are real."""

    @classmethod
    def of(cls, subject: Subject, prompts: Sequence[str | Sequence[int]]) -> Self:
        """Texts (BOS goes before each where the subject has one), or ids as they are."""
        rows = [subject.row(p) if isinstance(p, str) else list(p) for p in prompts]
        if not rows or not all(rows):
            raise NeuronautError(f"{'a prompt is empty' if rows else 'there is no prompt'}; give prompts with tokens")
        tokens = torch.full((len(rows), max(map(len, rows))), 0 if subject.causal else -1)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
        return cls(tokens, torch.tensor([len(ids) for ids in rows]))

    @classmethod
    def from_padded(cls, tokens: Tensor, mask: Tensor) -> Self:
        """Rows as a tokenizer pads them, on whichever side; `mask` (row, position) is 1 at the real tokens."""
        lengths = mask.sum(1).cpu()
        width = int(lengths.max())
        # A stable sort brings the real tokens of each row to its front, in their order.
        order = mask.cpu().argsort(dim=1, descending=True, stable=True)[:, :width]
        rows = tokens.cpu().gather(1, order)
        return cls(rows.masked_fill(torch.arange(width) >= lengths[:, None], 0), lengths)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def last(self) -> Tensor:
        """The last real position of each row: (row,)."""
        return self.lengths - 1

    @property
    def real(self) -> Tensor:
        """Where tokens are not padding: (row, position), bool."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    def take(self, rows: Sequence[int] | Tensor) -> Self:
        """The batch of these rows, which may repeat; its width stays."""
        chosen = torch.as_tensor(rows)
        return type(self)(self.tokens[chosen], self.lengths[chosen])

    def ids(self) -> list[list[int]]:
        """Each row's real token ids."""
        return [row[:length] for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]

    def rows(self) -> tuple[tuple[int, ...], ...]:
        """As `ids`, in the form that records keep."""
        return tuple(map(tuple, self.ids()))


def where(subject: Subject, batch: Batch, rule: str) -> Tensor:
    """The positions that `rule` means (see `edits`): (row, position), bool.

    Raises NeuronautError where a row is too short for a position, and where no row has the token.
    """
    position = torch.arange(batch.tokens.shape[1])
    if rule == "every":
        return batch.real
    if rule == "all":
        is_bos = (position == 0) & (batch.tokens == (-1 if subject.bos_id is None else subject.bos_id))
        closing = position >= batch.lengths[:, None] - len(subject.eos_suffix)
        return batch.real & ~is_bos & ~closing
    if rule == "last":
        return position == batch.last[:, None]
    return (
        _mark_token(subject, batch, read_quoted(rule)) if rule.startswith('"') else _mark_numbers(batch, indices(rule))
    )


def _mark_numbers(batch: Batch, numbers: list[int]) -> Tensor:
    """The positions of these numbers, in each row: (row, position), bool."""
    mask = torch.zeros_like(batch.tokens, dtype=torch.bool)
    for number in numbers:
        places = batch.lengths + number if number < 0 else torch.full_like(batch.lengths, number)
        outside = (places < 0) | (places >= batch.lengths)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise NeuronautError(
                f"position {number} is outside row {row}, which has {int(batch.lengths[row])} tokens, "
                f"0 to {int(batch.last[row])}; name a position that every edited row has"
            )
        mask[torch.arange(len(batch)), places] = True
    return mask


def _mark_token(subject: Subject, batch: Batch, text: str) -> Tensor:
    """The positions of the tokens that read so: (row, position), bool."""
    ids = [id for id, string in enumerate(subject.vocabulary) if string == text]
    mask = torch.isin(batch.tokens, torch.tensor(ids, dtype=torch.long)) & batch.real
    if not mask.any():
        tokens = " ".join(map(repr, subject.decode_tokens(batch.ids()[0][:12])))
        raise NeuronautError(
            f"no row has the token {text!r}; the first begins {tokens}; write the token as shown there"
        )
    return mask


def single_token(subject: Subject, text: str) -> int:
    """The id of a text that is one token, or an error that shows its tokens."""
    ids = subject.encode(text)
    if len(ids) != 1:
        tokens = " ".join(map(repr, subject.decode_tokens(ids)))
        raise NeuronautError(
            f"answer {text!r} is {len(ids)} tokens ({tokens}); wanted one, often with a leading space; of several, "
            "neuronaut run gives the log-probability as long as nothing is edited"
        )
    return ids[0]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Clean and corrupted prompts that are aligned token by token, with the answer and a wrong one to each.

    >>> pairs = Pairs.of(subject, [("x = [1, 2", "x = (1, 2", "]", ")")])
    >>> subject.decode_tokens(pairs.answers.tolist())
    (']',)
    """

    clean: Batch
    corrupted: Batch
    answers: Tensor
    """(row,) ids: the token that the clean prompt asks for."""
    wrong: Tensor
    """(row,) ids: the token that the corrupted prompt asks for, or another wrong one."""

    @classmethod
    def of(cls, subject: Subject, rows: Sequence[tuple[str, str, str, str]]) -> Self:
        """Read (clean, corrupted, answer, wrong) texts; refuses a pair whose tokens do not stand side by side."""
        clean = Batch.of(subject, [row[0] for row in rows])
        corrupted = Batch.of(subject, [row[1] for row in rows])
        answers, wrong = (torch.tensor([single_token(subject, row[at]) for row in rows]) for at in (2, 3))
        return cls.aligned(subject, clean, corrupted, answers, wrong)

    @classmethod
    def aligned(cls, subject: Subject, clean: Batch, corrupted: Batch, answers: Tensor, wrong: Tensor) -> Self:
        """As `of`, from token ids."""
        counts = [len(clean), len(corrupted), len(answers), len(wrong)]
        if len(set(counts)) != 1:
            raise NeuronautError(
                f"{counts} clean prompts, corrupted ones, answers and wrong ones; wanted as many of each"
            )
        for row, (clean_ids, corrupted_ids) in enumerate(zip(clean.ids(), corrupted.ids(), strict=True)):
            if len(clean_ids) != len(corrupted_ids):
                raise NeuronautError(_describe_misalignment(subject, row, clean_ids, corrupted_ids))
        return cls(clean, corrupted, answers, wrong)

    def __len__(self) -> int:
        return len(self.clean)

    def take(self, rows: Sequence[int] | Tensor) -> Self:
        """The pairs of these rows."""
        chosen = torch.as_tensor(rows)
        return type(self)(
            self.clean.take(chosen), self.corrupted.take(chosen), self.answers[chosen], self.wrong[chosen]
        )


def _describe_misalignment(subject: Subject, row: int, clean: list[int], corrupted: list[int]) -> str:
    blocks = SequenceMatcher(None, clean, corrupted, autojunk=False).get_opcodes()
    _, start, end, other_start, other_end = next(b for b in blocks if b[2] - b[1] != b[4] - b[3])
    texts = ["".join(subject.decode_tokens(ids)) for ids in (clean[start:end], corrupted[other_start:other_end])]
    return (
        f"pair {row} is not aligned: {len(clean)} clean tokens, {len(corrupted)} corrupted; from position {start} on "
        f"the clean prompt has {texts[0]!r} ({end - start} tokens) where the corrupted has {texts[1]!r} "
        f"({other_end - other_start}); choose words of equally many tokens"
    )
