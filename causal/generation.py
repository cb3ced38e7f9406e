"""Text that the subject writes under edits, one token a step, with or without a cache of keys and values.

A row grows as it is written, so that a rule may mean other positions of it from step to step, while a cache keeps what
earlier positions were. Hence one law: whether an edit touches a position is decided once, on the row as it stands when
that position is first run, and holds for every later step. Then the cache is exact: whole rows that are run anew at
every step give the same text.

    all, every   the prompt's tokens that these mean, and every written one
    last         the prompt's last token, and every written one: each was the last when it was run
    3, 2-5, -1   these positions of the prompt
    " Mary"      the tokens that read so, the prompt's and the written ones

The scope keeps an edit to the prompt (`prefill`), to what is written (`decode`), or lets it have both (`every`). The
last written token is never run, because nothing is asked after it.

Rows of different lengths are filled up on the left, so that all of them grow in the same column, and the positions of
each are counted from its own first token; filling and company move a logit by rounding only.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .edits import Edit
from .generation_edits import GrowingEdit, Scope, check_applied, compile_growing
from .intervene import NOTHING, Materials, Report, RowEdit, hooks_by_site
from .prompts import Batch


@dataclass(frozen=True, slots=True)
class Generated:
    """What was written after each prompt."""

    tokens: tuple[tuple[int, ...], ...]
    """By row, the ids; a token that stopped the row is the last of them."""
    texts: tuple[str, ...]
    logprobs: tuple[tuple[float, ...], ...]
    """By row, each token's log-probability under the edited model at temperature 1, in nats."""
    reports: tuple[Report, ...]
    """By edit. `fired` counts the forward passes in which it touched anything (with a cache, one for the prompt and one
    for each step after it), `places` are positions of the whole row, the prompt's first."""


@torch.inference_mode()
def generate(
    subject: Subject,
    batch: Batch,
    edits: Sequence[Edit | RowEdit] = (),
    *,
    tokens: int,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    scope: Scope = "every",
    cached: bool = True,
    stop: Collection[int] = (),
    materials: Materials = NOTHING,
    may_idle: bool = False,
) -> Generated:
    """Continue each row by `tokens` tokens, or up to one of the ids in `stop`; `tokens` forward passes at most.

    Greedy at temperature 0. Above it each row samples from its own stream of random numbers, which `seed` and the row's
    number decide, or its own seed where there is one for each row; other rows and the edits leave it as it is, so that
    texts of one seed differ only by what was edited. `cached=False` runs whole rows at every step.

    Raises NeuronautError for what does not fit together and, unless they `may_idle`, for edits that changed nothing.

    >>> batch = Batch.of(subject, ["def f(self"])
    >>> len(generate(subject, batch, tokens=3).tokens[0])
    3
    """
    _check(subject, batch, tokens, temperature)
    rows = _Rows(subject, batch, tokens=tokens, cached=cached)
    running = [
        compile_growing(
            subject, batch, item, scope=scope, materials=materials, offset=rows.offset, columns=rows.columns
        )
        for item in edits
    ]
    noise, last = _Noise(temperature, seed, len(batch)), torch.tensor(sorted(stop), dtype=torch.long)
    alive = torch.ones(len(batch), dtype=torch.bool)
    written: list[_Step] = []
    with subject.editing(hooks_by_site(running)):
        while True:
            logits = rows.logits(running)
            chosen = noise.add_to(logits).argmax(1)
            logprobs = logits.log_softmax(1).gather(1, chosen[:, None])[:, 0]
            written.append(_Step(chosen.cpu(), logprobs.cpu(), alive))
            alive = alive & ~torch.isin(written[-1].chosen, last)
            if len(written) == tokens or not alive.any():
                break
            rows.append(written[-1].chosen, alive, running)
    reports = tuple(edit.report(rows.offset) for edit in running)
    check_applied(running, reports, forwards=len(written), may_idle=may_idle)
    return _collect_steps(subject, written, reports)


@dataclass(frozen=True, eq=False, slots=True)
class _Step:
    """One token of each row: (row,) each."""

    chosen: Tensor
    logprobs: Tensor
    counts: Tensor
    """bool: whether the row had not come to its end before."""


def _collect_steps(subject: Subject, written: Sequence[_Step], reports: tuple[Report, ...]) -> Generated:
    chosen = torch.stack([step.chosen for step in written], dim=1)
    logprobs = torch.stack([step.logprobs for step in written], dim=1)
    counts = torch.stack([step.counts for step in written], dim=1)
    if not logprobs.isfinite().all():
        raise NeuronautError("the logits under these edits are no finite numbers; choose a smaller strength")
    ids = tuple(tuple(row[counted].tolist()) for row, counted in zip(chosen, counts, strict=True))
    scores = tuple(tuple(row[counted].tolist()) for row, counted in zip(logprobs, counts, strict=True))
    return Generated(ids, tuple("".join(subject.decode_tokens(row)) for row in ids), scores, reports)


class _Rows:
    """Rows that grow on the right and are filled up on the left."""

    def __init__(self, subject: Subject, batch: Batch, *, tokens: int, cached: bool) -> None:
        width = batch.tokens.shape[1]
        self._subject, self._cached, self._past = subject, cached, None
        self.offset = width - batch.lengths
        """(row,): the columns before a row's first token."""
        self.columns, self._end = width + tokens, width
        place = torch.arange(self.columns) - self.offset[:, None]
        self._real, self._place = (place >= 0).to(subject.device), place.clamp_min(0).to(subject.device)
        self._ids = torch.zeros((len(batch), self.columns), dtype=torch.long, device=subject.device)
        self._ids[:, :width] = batch.tokens.gather(1, place[:, :width] % width).to(subject.device)

    def append(self, chosen: Tensor, alive: Tensor, running: Sequence[GrowingEdit]) -> None:
        """One token to every row: (row,) ids, and whether the row still counts."""
        for edit in running:
            edit.decide(self._end, chosen, alive)
        self._ids[:, self._end] = chosen.to(self._ids.device)
        self._end += 1

    def logits(self, running: Sequence[GrowingEdit]) -> Tensor:
        """What comes after the rows as they stand: (row, token), float32."""
        columns = slice(0 if self._past is None else self._end - 1, self._end)
        for edit in running:
            edit.aim(columns)
        output = self._subject.model(
            self._ids[:, columns],
            attention_mask=self._real[:, : self._end].long(),
            position_ids=self._place[:, columns],
            past_key_values=self._past,
            use_cache=self._cached,
            logits_to_keep=1,
        )
        self._past = output.past_key_values if self._cached else None
        return output.logits[:, -1].float()


class _Noise:
    """Added to the logits before the highest is chosen: nothing, or Gumbel noise, which makes it a sample."""

    def __init__(self, temperature: float, seed: int | Sequence[int], rows: int) -> None:
        streams = (
            [(seed, row) for row in range(rows)] if isinstance(seed, int) else [(row_seed, 0) for row_seed in seed]
        )
        if len(streams) != rows or min(min(stream) for stream in streams) < 0:
            raise NeuronautError(f"seeds {seed} do not fit {rows} rows; give one, or one for each, at least 0")
        # Neighbouring seeds are spread, so that row 1 of seed 0 is not row 0 of seed 1.
        states = [int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0]) for stream in streams]
        self._temperature, self._streams = temperature, [torch.Generator().manual_seed(state) for state in states]

    def add_to(self, logits: Tensor) -> Tensor:
        """(row, token) -> the same."""
        if self._temperature == 0:
            return logits
        drawn = [torch.empty(logits.shape[1], dtype=torch.float64).exponential_(generator=g) for g in self._streams]
        return logits / self._temperature - torch.stack(drawn).log().to(logits)


def _check(subject: Subject, batch: Batch, tokens: int, temperature: float) -> None:
    longest = int(batch.lengths.max()) + tokens
    if tokens < 1 or longest > subject.context:
        raise NeuronautError(
            f"the longest row and {tokens} written tokens have {longest}; {subject.name} takes at most "
            f"{subject.context}; shorten the prompts, or write fewer tokens, at least 1"
        )
    if not (math.isfinite(temperature) and temperature >= 0):
        raise NeuronautError(f"temperature {temperature} is not 0 or above; give 0 for the likeliest token")
    if int(batch.tokens.max()) >= len(subject.vocabulary):
        raise NeuronautError(
            f"token id {int(batch.tokens.max())} is outside the vocabulary of {subject.name}, 0 to "
            f"{len(subject.vocabulary) - 1}; encode the prompts with its own tokenizer"
        )
