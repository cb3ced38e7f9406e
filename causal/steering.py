"""How an effect grows with the strength of steering, and what else it does: doses, responses, side effects.

One edit is made at several strengths, each by itself. At each strength it has

    effect     the readout's mean change from the plain run over the prompts, with its interval
    rank       that effect among those of changes of the same norm in random directions, the same ones at all strengths
    kl, loss   on unrelated text, where it is at every position but BOS: KL(plain || edited), and the change of the
               text's own loss, both means over rows of nats per token, with their intervals

Strengths are multiples of the edit's quantile (`+=1q`: of the feature's own peak in the reference), or plain numbers.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..subject.dictionary import Dictionary
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .controls import random_directions, rank_among
from .doses import Dose, DoseResponse, trend, usable
from .edits import Edit
from .intervene import NOTHING, Materials, Report, RowEdit, apply
from .measures import fidelity, mean, text_loss
from .prompts import Batch, where
from .readouts import Readout
from .records import Trial, provenance_of
from .runs import AT_ONCE, gather
from .units import Columns, Supply, change, units_of

STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
BOUND = 0.1
"""Nats per token of unrelated text: the KL up to which steering is called usable."""
LOGITS = 2**26
"""Logits of unrelated text that a forward computes at most, or those of one row."""
STEERING = frozenset({"add", "set", "scale"})
"""The operations that have a strength."""


@torch.inference_mode()
def dose_response(
    subject: Subject,
    batch: Batch,
    edit: Edit,
    readout: Readout,
    *,
    text: Batch,
    strengths: Sequence[float] = STRENGTHS,
    reference: Batch | None = None,
    controls: int = 20,
    bound: float = BOUND,
    seed: int = 0,
    materials: Materials = NOTHING,
) -> DoseResponse:
    """Steer prompts at several strengths (see the module), with the side effects on unrelated `text`.

    `edit` adds, sets or scales, and its value gives way to the strengths; quantiles are of `reference`, by default the
    text. Raises NeuronautError for an edit without strength, and where no strength changes anything.
    """
    _check(edit, strengths, text)
    chosen = sorted(set(map(float, strengths)))
    reference = text if reference is None else reference
    patch_values = gather(subject, [edit], materials=materials, reference=reference)
    edits = [edit.model_copy(update={"value": strength}) for strength in chosen]
    seen = _responses(subject, batch, edits, readout, patch_values, controls=controls, seed=seed)
    if not any(seen.changes):
        raise NeuronautError(f"edit {edit} changed nothing at strengths {chosen}; choose others, or another unit")
    doses = _doses(chosen, seen, _side_effects(subject, text, edits, patch_values), seed=seed)
    named = f"{edit.site}@{edit.dictionary}"
    used = {name: one for name, one in patch_values.sources.items() if name == named and isinstance(one, Dictionary)}
    rows = [tuple(map(tuple, one.ids())) for one in (batch, text, reference)]
    # The text stands where a trial has its source runs, so that the hash of the prompts is of all three.
    trial = Trial(prompts=rows[0], source_runs=rows[1], reference=rows[2], edits=(edit,), metrics=(), answers=())
    return DoseResponse(
        edit=str(edit),
        readout=readout.name,
        formula=readout.formula,
        unit=_unit(subject, edit, patch_values),
        plain=mean(seen.plain, seed=seed),
        doses=doses,
        trend=trend(chosen, [dose.effect.value for dose in doses]),
        bound=bound,
        usable=usable(chosen, [dose.kl.value for dose in doses], bound=bound),
        dictionaries={name: fidelity(subject, one, text) for name, one in used.items()},
        provenance=provenance_of(subject, trial, sources=used),
        seed=seed,
    )


class _Responses(NamedTuple):
    """What the prompts showed."""

    plain: Tensor
    """(prompt,)."""
    steered: Tensor
    """(strength, prompt)."""
    controlled: Tensor
    """(strength, control): mean effects."""
    changes: tuple[float, ...]
    """By strength, the largest change of a coordinate at the site."""


def _responses(
    subject: Subject,
    batch: Batch,
    edits: Sequence[Edit],
    readout: Readout,
    materials: Materials,
    *,
    controls: int,
    seed: int,
) -> _Responses:
    others = [control for edit in edits for control in random_directions(edit, count=controls, seed=seed)]
    whole = readout.run(subject, batch)
    plain = readout.read(whole, whole)
    values, reports = _each(
        subject,
        batch,
        [*edits, *others],
        lambda rows: readout.run(subject, rows),
        lambda shown: readout.read(shown, whole),
        materials=materials,
        rows=AT_ONCE,
    )
    effects = (values[len(edits) :] - plain).double().mean(1)
    changes = tuple(report.max_change for report in reports[: len(edits)])
    return _Responses(plain, values[: len(edits)], effects.view(len(edits), controls), changes)


def _doses(strengths: Sequence[float], seen: _Responses, sides: Tensor, *, seed: int) -> tuple[Dose, ...]:
    effects = seen.steered - seen.plain

    def dose(at: int) -> Dose:
        controls = seen.controlled[at].tolist()
        return Dose(
            strength=strengths[at],
            response=mean(seen.steered[at], seed=seed),
            effect=mean(effects[at], seed=seed),
            rank=rank_among(float(effects[at].double().mean()), controls) if controls else None,
            kl=mean(sides[at, :, 0], seed=seed),
            loss=mean(sides[at, :, 1], seed=seed),
            max_change=seen.changes[at],
        )

    return tuple(map(dose, range(len(strengths))))


def _side_effects(subject: Subject, text: Batch, edits: Sequence[Edit], materials: Materials) -> Tensor:
    """KL and change of the loss on unrelated text: (edit, row, 2), in nats per token."""
    everywhere = [edit.model_copy(update={"positions": "all"}) for edit in edits]
    room = max(1, LOGITS // (text.tokens.shape[1] * len(subject.vocabulary)))
    found: list[Tensor] = []
    for start in range(0, len(text), room):
        block = text.take(range(start, min(start + room, len(text))))
        plain = subject.logits(block.tokens).float().log_softmax(-1)
        counted = where(subject, block, "all").to(plain.device)
        loss = text_loss(plain, block)

        def read(
            logits: Tensor, block: Batch = block, plain: Tensor = plain, counted: Tensor = counted, loss: Tensor = loss
        ) -> Tensor:
            divergence = (plain.exp() * (plain - logits.float().log_softmax(-1))).sum(-1)
            per_token = (divergence * counted).sum(1) / counted.sum(1)
            return torch.stack([per_token, text_loss(logits, block) - loss], dim=1)

        run = lambda rows: subject.logits(rows.tokens)  # noqa: E731
        found.append(_each(subject, block, everywhere, run, read, materials=materials, rows=room)[0])
    return torch.cat(found, dim=1)


def _each(
    subject: Subject,
    batch: Batch,
    edits: Sequence[Edit],
    run: Callable[[Batch], Tensor],
    read: Callable[[Tensor], Tensor],
    *,
    materials: Materials,
    rows: int,
) -> tuple[Tensor, tuple[Report, ...]]:
    """Each edit by itself on the batch, about `rows` rows a forward: what is read, (edit, ...), and the reports."""
    at_once = max(1, rows // len(batch))
    found: list[Tensor] = []
    reports: list[Report] = []
    for start in range(0, len(edits), at_once):
        part = edits[start : start + at_once]
        copies = batch.take(torch.arange(len(batch)).repeat(len(part)))
        placed = [RowEdit(edit, tuple(range(at * len(batch), (at + 1) * len(batch)))) for at, edit in enumerate(part)]
        with apply(subject, copies, placed, materials=materials, may_idle=True) as ledger:
            shown = run(copies)
        found += [read(one) for one in shown.split(len(batch))]
        reports += ledger.reports
    return torch.stack(found), tuple(reports)


def _unit(subject: Subject, edit: Edit, materials: Materials) -> tuple[float, ...] | None:
    """What one of strength is in activations, by unit."""
    if edit.quantile is None:
        return None
    units = units_of(subject, edit, sources=materials.sources, directions=materials.directions)
    reference = units.get(materials.reference[edit.site].to(subject.device)).float()
    # Setting columns of nothing to one of strength shows the amounts themselves.
    bare = Columns(torch.arange(reference.shape[1], device=subject.device))
    one = edit.model_copy(update={"operation": "set", "value": 1.0, "control": None})
    return tuple(change(one, bare, Supply(reference, None))(torch.zeros_like(reference[:1]))[0].tolist())


def _check(edit: Edit, strengths: Sequence[float], text: Batch) -> None:
    if edit.operation not in STEERING or edit.on_pattern or edit.control is not None:
        raise NeuronautError(f"edit {edit} has no strength to vary; steer with +=, =NUMBER or *= and without a control")
    if len(set(strengths)) < 2 or not all(map(math.isfinite, strengths)):
        raise NeuronautError(f"strengths {list(strengths)} are no curve; give at least two different finite numbers")
    if int(text.lengths.min()) < 2:
        raise NeuronautError("a row of the unrelated text has one token, so nothing to predict; give longer rows")
