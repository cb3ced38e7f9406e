"""How an effect grows with the strength of steering, and what else it does: doses, responses, side effects.

One edit is made at several strengths, each by itself. At each strength it has

    effect     the readout's mean change from the plain run over the prompts, with its interval
    rank       that effect among those of changes of the same norm in random directions, the same ones at all strengths
    kl, loss   on unrelated text, where it is at every position but BOS: KL(plain || edited), and the change of the
               text's own loss, both means over rows of nats per token, with their intervals

Strengths are multiples of the edit's quantile (`+=1q`: of the feature's own peak in the reference), or plain numbers.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .controls import random_directions, rank_among
from .doses import Dose, DoseResponse, trend, usable
from .edits import Edit
from .intervene import NOTHING, Materials, Report, edited_dictionaries
from .measures import LOGITS, divergence, fidelity, mean, text_loss
from .prompts import Batch, where
from .readouts import Readout
from .records import Trial, provenance_of
from .runs import AT_ONCE, gather, separately
from .units import Columns, Supply, compile_change, sites_of, units_of
from .work import Work, cost_of

STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
BOUND = 0.1
"""Nats per token of unrelated text: the KL up to which steering is called usable."""
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

    >>> from neuronaut.causal.readouts import answers
    >>> batch, text = Batch.of(subject, ["def f(self):", "import os"]), Batch.of(subject, ["class A:", "x = 1"])
    >>> edit = Edit.parse("mlp.1:17+=1")
    >>> response = dose_response(
    ...     subject, batch, edit, answers("log_probability", [5, 6]), text=text, strengths=(0.0, 1.0), controls=2
    ... )
    >>> [dose.strength for dose in response.doses]
    [0.0, 1.0]
    """
    (response,) = dose_responses(
        subject,
        batch,
        edit,
        [readout],
        text=text,
        strengths=strengths,
        reference=reference,
        controls=controls,
        bound=bound,
        seed=seed,
        materials=materials,
    )
    return response


@torch.inference_mode()
def dose_responses(
    subject: Subject,
    batch: Batch,
    edit: Edit,
    readouts: Sequence[Readout],
    *,
    text: Batch,
    strengths: Sequence[float] = STRENGTHS,
    reference: Batch | None = None,
    controls: int = 20,
    bound: float = BOUND,
    seed: int = 0,
    materials: Materials = NOTHING,
    work: Work | None = None,
) -> tuple[DoseResponse, ...]:
    """As `dose_response`, by readout; what is the same for several is run once.

    `work` is told what is being done; how much there is, `cost_of_doses` says.
    """
    _check(edit, strengths, text)
    work, chosen = work or Work(), sorted(set(map(float, strengths)))
    reference = text if reference is None else reference
    work.begin("steers the prompts")
    gathered = gather(subject, [edit], materials=materials, reference=reference)
    edits = [edit.model_copy(update={"value": strength}) for strength in chosen]
    measured = _measure_responses(subject, batch, edits, readouts, gathered, controls=controls, seed=seed)
    if not any(change for responses in measured for change in responses.changes):
        raise NeuronautError(f"edit {edit} changed nothing at strengths {chosen}; choose others, or another unit")
    work.begin("measures unrelated text")
    sides = _measure_side_effects(subject, text, edits, gathered)
    used = edited_dictionaries([edit], gathered)
    # The text stands where a trial has its source runs, so that the hash of the prompts is of all three.
    trial = Trial(
        prompts=batch.rows(), source_runs=text.rows(), reference=reference.rows(), edits=(edit,), metrics=(), answers=()
    )
    unit = _unit_of_strength(subject, edit, gathered)
    trusted = {name: fidelity(subject, dictionary, text) for name, dictionary in used.items()}
    built = [_build_doses(chosen, responses, sides, seed=seed) for responses in measured]
    return tuple(
        DoseResponse(
            edit=str(edit),
            readout=readout.name,
            formula=readout.formula,
            unit=unit,
            plain=mean(responses.plain, seed=seed),
            doses=doses,
            trend=trend(chosen, [dose.effect.value for dose in doses]),
            bound=bound,
            usable=usable(chosen, [dose.kl.value for dose in doses], bound=bound),
            dictionaries=trusted,
            provenance=provenance_of(subject, trial, sources=used),
            seed=seed,
        )
        for readout, responses, doses in zip(readouts, measured, built, strict=True)
    )


def cost_of_doses(
    subject: Subject, batch: Batch, readouts: Sequence[Readout], *, text: Batch, doses: int, controls: int, trusted: int
) -> float:
    """How many tokens `dose_responses` runs, as `work` counts them, where so many dictionaries are edited (`trusted`).

    Reading the reference is not in it.
    """
    runs, tokens = len({readout.run for readout in readouts}) * (1 + doses * (1 + controls)), text.tokens.numel()
    prompts = runs * cost_of(subject, batch.tokens.numel(), logits=len(batch))
    # A dictionary's fidelity takes four runs of the text, half of them with logits.
    return prompts + cost_of(subject, (1 + doses + 4 * trusted) * tokens, logits=(1 + doses + 2 * trusted) * tokens)


class _Responses(NamedTuple):
    """The readout of the prompts, plainly and under every edit."""

    plain: Tensor
    """(prompt,)."""
    steered: Tensor
    """(strength, prompt)."""
    controlled: Tensor
    """(strength, control): mean effects."""
    changes: tuple[float, ...]
    """By strength, the largest change of a coordinate at the site."""


def _measure_responses(
    subject: Subject,
    batch: Batch,
    edits: Sequence[Edit],
    readouts: Sequence[Readout],
    materials: Materials,
    *,
    controls: int,
    seed: int,
) -> list[_Responses]:
    """By readout; those that read the same run share it."""
    others = [control for edit in edits for control in random_directions(edit, count=controls, seed=seed)]
    found: dict[Readout, _Responses] = {}
    for run in dict.fromkeys(readout.run for readout in readouts):
        its = [readout for readout in readouts if readout.run is run]
        plain_output = run(subject, batch)
        plain = [readout.read(plain_output, plain_output) for readout in its]
        values, reports = separately(
            subject,
            batch,
            [*edits, *others],
            lambda output, its=its, plain=plain_output: torch.stack([readout.read(output, plain) for readout in its]),
            run=partial(run, subject),
            materials=materials,
            at_once=AT_ONCE,
        )
        # What changed nothing differs from the plain run by rounding alone.
        values[_idle(reports)] = torch.stack(plain)
        changes = tuple(report.max_change for report in reports[: len(edits)])
        for at, readout in enumerate(its):
            effects = (values[len(edits) :, at] - plain[at]).double().mean(1).view(len(edits), controls)
            found[readout] = _Responses(plain[at], values[: len(edits), at], effects, changes)
    return [found[readout] for readout in readouts]


def _idle(reports: Sequence[Report]) -> Tensor:
    """Which edits changed nothing: (edit,) of bool."""
    return torch.tensor([report.max_change == 0 for report in reports])


def _build_doses(strengths: Sequence[float], responses: _Responses, sides: Tensor, *, seed: int) -> tuple[Dose, ...]:
    effects = responses.steered - responses.plain

    def dose(at: int) -> Dose:
        controls = responses.controlled[at].tolist() if responses.changes[at] else []
        return Dose(
            strength=strengths[at],
            response=mean(responses.steered[at], seed=seed),
            effect=mean(effects[at], seed=seed),
            rank=rank_among(float(effects[at].double().mean()), controls) if controls else None,
            kl=mean(sides[at, :, 0], seed=seed),
            loss=mean(sides[at, :, 1], seed=seed),
            max_change=responses.changes[at],
        )

    return tuple(map(dose, range(len(strengths))))


def _measure_side_effects(subject: Subject, text: Batch, edits: Sequence[Edit], materials: Materials) -> Tensor:
    """KL and change of the loss on unrelated text: (edit, row, 2), in nats per token."""
    everywhere = [edit.model_copy(update={"positions": "all"}) for edit in edits]
    room = max(1, LOGITS // (text.tokens.shape[1] * len(subject.vocabulary)))

    def measure(part: slice) -> Tensor:
        block = text.take(range(part.start, part.stop))
        plain = subject.logits(block.tokens).float().log_softmax(-1)
        counted = where(subject, block, "all").to(plain.device)
        loss = text_loss(plain, block)

        def read(logits: Tensor) -> Tensor:
            kl = divergence(plain, logits.float().log_softmax(-1))
            per_token = (kl * counted).sum(1) / counted.sum(1)
            return torch.stack([per_token, text_loss(logits, block) - loss], dim=1)

        values, reports = separately(
            subject,
            block,
            everywhere,
            read,
            run=lambda rows: subject.logits(rows.tokens),
            materials=materials,
            at_once=room,
        )
        values[_idle(reports)] = 0
        return values

    return torch.cat([*subject.batching.batches(len(text), room, measure, work="rows with logits")], dim=1)


def _unit_of_strength(subject: Subject, edit: Edit, materials: Materials) -> tuple[float, ...] | None:
    """What one of strength is in activations, by unit."""
    if edit.quantile is None:
        return None
    units = units_of(subject, edit, sources=materials.sources, directions=materials.directions)
    reference = units.get(sites_of(edit, materials.sources).join(materials.reference).to(subject.device)).float()
    # Setting columns of nothing to one of strength shows the amounts themselves.
    bare = Columns(torch.arange(reference.shape[1], device=subject.device))
    unit_edit = edit.model_copy(update={"operation": "set", "value": 1.0, "control": None})
    return tuple(compile_change(unit_edit, bare, Supply(reference, None))(torch.zeros_like(reference[:1]))[0].tolist())


def _check(edit: Edit, strengths: Sequence[float], text: Batch) -> None:
    if edit.operation not in STEERING or edit.on_pattern or edit.control is not None:
        raise NeuronautError(f"edit {edit} has no strength to vary; steer with +=, =NUMBER or *= and without a control")
    if len(set(strengths)) < 2 or not all(map(math.isfinite, strengths)):
        raise NeuronautError(f"strengths {list(strengths)} are no curve; give at least two different finite numbers")
    if int(text.lengths.min()) < 2:
        raise NeuronautError("a row of the unrelated text has one token, so nothing to predict; give longer rows")
