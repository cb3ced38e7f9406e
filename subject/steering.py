"""Steering: what the subject writes while features are held at chosen activations.

A clamp sets one feature, by its source's error-preserving edit, at every position but BOS; no clamp is the slot
that the others are compared with. Nothing is cached between tokens: each step runs the whole rows, filled up on
the right, which a causal model cannot see from the left. A forward always holds SLOTS slots with all prompts
each, so that a continuation does not depend on what was asked for beside it, not even in its rounding. It takes
`tokens * ceil((clamps + 1) / SLOTS)` forwards of `SLOTS * prompts` rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .address import Feature
from .architecture import architecture_of
from .conformance import unembed
from .directions import checked_index
from .errors import NeuronautError
from .model import Subject
from .sources import Source

SLOTS = 4
"""Clamps, or none, that share a forward."""

Continuations = tuple[tuple[int, ...], ...]
"""The token ids that follow each prompt."""


@dataclass(frozen=True, slots=True)
class Clamp:
    """One feature held at one activation."""

    feature: Feature
    activation: float
    """In the source's units, as the feature counts them: 3.0 of a negative tail sets -3.0."""


class Steered(NamedTuple):
    """What follows each prompt with and without clamps."""

    plain: Continuations
    steered: tuple[Continuations, ...]
    """By clamp, in order."""


@torch.inference_mode()
def steer(
    subject: Subject,
    source: Source,
    clamps: Sequence[Clamp],
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int = 12,
    temperature: float = 0.0,
    seed: int = 0,
) -> Steered:
    """Continue each prompt (ids without BOS) by `tokens` tokens, under each clamp and under none.

    Greedy at temperature 0. Above it, tokens are sampled with Gumbel noise of the seed that is the same for every
    clamp and for none, so that continuations differ only by what was clamped. Raises NeuronautError where a clamp
    changed nothing, and where a prompt is empty or too long.
    """
    _check(subject, source, clamps, prompts, tokens)
    slots = (None, *clamps)
    written: list[Continuations] = []
    for start in range(0, len(slots), SLOTS):
        part = slots[start : start + SLOTS]
        edit = _Hold(source, part, prompts=prompts, first=int(subject.bos is not None))
        noise = _Noise(temperature, seed)
        written += _continue(subject, edit, prompts, tokens, noise)[: len(part)]
        edit.check()
    return Steered(written[0], tuple(written[1:]))


@dataclass(slots=True)
class _Hold:
    """The edit of a site's vectors under the clamps of one forward, and how much each has changed so far."""

    source: Source
    slots: Sequence[Clamp | None]
    prompts: Sequence[Sequence[int]]
    first: int
    """The first position that is edited."""
    changes: dict[Clamp, Tensor] = field(default_factory=dict)

    def __call__(self, vectors: Tensor) -> Tensor:
        """(row, position, width) -> the same; rows are the prompts of slot 0, of slot 1, and so on."""
        edited, count = vectors.clone(), len(self.prompts)
        real = min(map(len, self.prompts))
        for slot, clamp in enumerate(self.slots):
            if clamp is not None:
                rows = slice(slot * count, (slot + 1) * count)
                before = vectors[rows, self.first :]
                after = self._set(clamp, before.flatten(0, 1)).view_as(before)
                edited[rows, self.first :] = after
                change = (after - before)[:, :real].abs().max()
                self.changes[clamp] = torch.maximum(self.changes.get(clamp, change), change)
        return edited

    def _set(self, clamp: Clamp, vectors: Tensor) -> Tensor:
        sign = -1.0 if clamp.feature.negative else 1.0
        values = torch.full((len(vectors), 1), sign * clamp.activation, device=vectors.device)
        return self.source.edit(vectors, torch.tensor([clamp.feature.index], device=vectors.device), values)

    def check(self) -> None:
        """An error for a clamp that left every vector as it was."""
        for clamp in self.slots:
            if clamp is not None and not (clamp in self.changes and float(self.changes[clamp]) > 0):
                raise NeuronautError(
                    f"holding {clamp.feature} at {clamp.activation:g} changed nothing at {self.source.id.site}; "
                    "choose another activation, or a feature whose decoder vector is not zero"
                )


class _Noise:
    """What is added to the logits before the highest is chosen: nothing, or what makes that a sample."""

    def __init__(self, temperature: float, seed: int) -> None:
        self._temperature, self._generator = temperature, torch.Generator().manual_seed(seed)

    def added(self, logits: Tensor, prompts: int) -> Tensor:
        """(row, token) -> the same; equal noise for equal prompts."""
        if self._temperature == 0:
            return logits
        drawn = torch.rand((prompts, logits.shape[1]), generator=self._generator).clamp_min(1e-20)
        gumbel = -torch.log(-torch.log(drawn)).to(logits.device)
        return logits.float() / self._temperature + gumbel.repeat(len(logits) // prompts, 1)


def _continue(
    subject: Subject, edit: _Hold, prompts: Sequence[Sequence[int]], tokens: int, noise: _Noise
) -> list[Continuations]:
    """What follows the prompts in each of the SLOTS slots."""
    opening = [] if subject.bos is None else [subject.bos]
    begun = torch.tensor([len(opening) + len(prompt) for prompt in prompts])
    buffer = torch.zeros((len(prompts), int(begun.max()) + tokens), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        buffer[row, : begun[row]] = torch.tensor([*opening, *prompt])
    buffer, begun, rows = buffer.repeat(SLOTS, 1), begun.repeat(SLOTS), torch.arange(SLOTS * len(prompts))
    architecture = architecture_of(subject.model.config.model_type, name=subject.name)
    last = f"resid_post.{subject.n_layers - 1}"
    with subject.editing({edit.source.id.site: edit}):
        for ends in (begun + step for step in range(tokens)):
            residual = subject.read(buffer[:, : int(ends.max())], [last])[last][rows, ends - 1]
            logits = unembed(subject.model, architecture, residual)
            buffer[rows, ends] = noise.added(logits, len(prompts)).argmax(dim=1).cpu()
    written = [tuple(buffer[row, begun[row] : begun[row] + tokens].tolist()) for row in rows]
    return [tuple(written[i : i + len(prompts)]) for i in range(0, len(written), len(prompts))]


def _check(
    subject: Subject, source: Source, clamps: Sequence[Clamp], prompts: Sequence[Sequence[int]], tokens: int
) -> None:
    for clamp in clamps:
        checked_index(source, clamp.feature)
        if not math.isfinite(clamp.activation):
            raise NeuronautError(f"{clamp.feature} cannot be held at {clamp.activation}; give a finite activation")
    if not prompts or not all(prompts) or tokens < 1:
        raise NeuronautError(
            f"there is nothing to continue: {len(prompts)} prompts, the shortest of "
            f"{min(map(len, prompts), default=0)} tokens, by {tokens} tokens; give prompts of at least one token"
        )
    longest = max(map(len, prompts)) + tokens
    if longest >= subject.context:
        raise NeuronautError(
            f"a prompt and its continuation have {longest} tokens; {subject.name} takes at most "
            f"{subject.context - 1}; shorten the prompt or write fewer tokens"
        )
