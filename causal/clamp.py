"""Steered continuations: what the subject writes while features are held at chosen activations.

A clamp sets one feature, by its source's error-preserving edit, at every position but BOS; no clamp is the slot that
the others are compared with. A forward always holds SLOTS slots with all prompts each, so that a continuation does not
depend on what was asked for beside it, not even in its rounding. It takes `tokens * ceil((clamps + 1) / SLOTS)`
forwards of `SLOTS * prompts` whole rows: no cache, which rounds otherwise, so that two tokens that tie fall out alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..subject.address import Feature
from ..subject.directions import checked_index
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .edits import Edit
from .generation import generate
from .intervene import Materials, RowEdit
from .prompts import Batch

SLOTS = 4
"""Clamps, or none, that share a forward, as long as it fits into memory."""
WRITTEN = "continued rows"
"""What a subject's batching calls its rows."""

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

    Greedy at temperature 0. Above it a prompt's noise is the same for every clamp and for none, so that continuations
    differ only by what was clamped. Raises NeuronautError where a clamp changed nothing, and where a prompt is empty
    or too long.
    """
    if not prompts or not all(prompts):
        raise NeuronautError(
            f"there is nothing to continue: {len(prompts)} prompts, the shortest of "
            f"{min(map(len, prompts), default=0)} tokens; give prompts of at least one token"
        )
    edits = [_compile_clamp(source, clamp) for clamp in clamps]
    rows, count = [[*subject.bos_prefix, *prompt] for prompt in prompts], len(prompts)
    # Under a name a source of any sort is held by its own edit.
    materials = Materials(sources={f"{source.id.site}@{_material_name(source)}": source})
    streams = torch.randint(2**31, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    slots = (None, *edits)

    def write(part: slice) -> list[Continuations]:
        clamped = [(edit, at * count) for at, edit in enumerate(slots[part]) if edit]
        held = [RowEdit(edit, tuple(range(first, first + count))) for edit, first in clamped]
        copies = max(1, subject.batching.most(WRITTEN, SLOTS * count) // count)
        continuations = generate(
            subject,
            Batch.of(subject, rows * copies),
            held,
            tokens=tokens,
            temperature=temperature,
            seed=streams * copies,
            cached=False,
            materials=materials,
        ).tokens
        return [continuations[at * count : (at + 1) * count] for at in range(part.stop - part.start)]

    parts = subject.batching.batches(len(slots), SLOTS * count, write, work=WRITTEN, per=count)
    written = [continuations for part in parts for continuations in part]
    return Steered(written[0], tuple(written[1:]))


def _material_name(source: Source) -> str:
    return source.id.dictionary or "neurons"


def _compile_clamp(source: Source, clamp: Clamp) -> Edit:
    index = checked_index(source, clamp.feature)
    if not math.isfinite(clamp.activation):
        raise NeuronautError(f"{clamp.feature} cannot be held at {clamp.activation}; give a finite activation")
    value = -clamp.activation if clamp.feature.negative else clamp.activation
    return Edit(site=source.id.site, dictionary=_material_name(source), units=(index,), operation="set", value=value)
