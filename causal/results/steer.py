"""Rows of `steer`: a readout, its side effects and what the model writes, at each strength of an edit."""

from collections.abc import Sequence
from typing import NamedTuple

from ...subject.errors import NeuronautError
from ..doses import Dose, DoseResponse
from ..generation import generate
from ..intervene import RowEdit
from ..prompts import Batch
from ..questions import Questions
from ..readouts import Readout, answers
from ..setup import CausalSetup
from ..steering import dose_responses
from .common import Row, ends

SIDE_ROWS = 16
"""Rows of unrelated text on which side effects are measured."""


class Steered(NamedTuple):
    """A row for each strength, and what they were made of."""

    rows: list[Row]
    response: DoseResponse


def steer_rows(
    setup: CausalSetup,
    questions: Questions,
    *,
    strengths: Sequence[float],
    metric: str | None = None,
    tokens: int = 0,
    temperature: float = 0.0,
    controls: int = 20,
    seed: int = 0,
) -> Steered:
    """Steer prompts with the setup's edit, whose number gives way to each of the strengths.

    `metric` is what is read out; where it is None, that which the answers allow. So many `tokens` are written after
    each prompt. Raises NeuronautError where there is no reference text, on which side effects are measured.
    """
    (steered,) = steer_curves(
        setup,
        questions,
        strengths=strengths,
        metrics=[metric],
        tokens=tokens,
        temperature=temperature,
        controls=controls,
        seed=seed,
    )
    return steered


def steer_curves(
    setup: CausalSetup,
    questions: Questions,
    *,
    strengths: Sequence[float],
    metrics: Sequence[str | None],
    tokens: int = 0,
    temperature: float = 0.0,
    controls: int = 20,
    seed: int = 0,
) -> list[Steered]:
    """As `steer_rows`, by metric; what is the same for all of them is measured and written once."""
    if setup.reference is None or len(setup.edits) != 1:
        raise NeuronautError(f"{len(setup.edits)} edits; wanted one, and reference text to measure its side effects on")
    responses = dose_responses(
        setup.subject,
        questions.batch,
        setup.edits[0],
        [_choose_readout(questions, metric) for metric in metrics],
        strengths=strengths,
        text=_spread_rows(setup.reference),
        reference=setup.reference,
        controls=controls,
        seed=seed,
        materials=setup.materials,
    )
    texts = _write_texts(setup, questions, responses[0], tokens=tokens, temperature=temperature, seed=seed)
    return [
        Steered([_row(response, dose, written) for dose, written in zip(response.doses, texts, strict=True)], response)
        for response in responses
    ]


def _spread_rows(reference: Batch) -> Batch:
    """A few rows from all over the text."""
    return reference.take(range(0, len(reference), max(1, len(reference) // SIDE_ROWS))[:SIDE_ROWS])


def _choose_readout(questions: Questions, metric: str | None) -> Readout:
    """The metric of that name, or the one that the answers allow."""
    answered = all(questions.readings)
    name = metric or ("logit_difference" if questions.wrong is not None else "log_probability" if answered else "kl")
    wrong = None if questions.wrong is None else questions.wrong.tolist()
    return answers(name, questions.answers.tolist(), wrong=wrong)


def _write_texts(
    setup: CausalSetup, questions: Questions, response: DoseResponse, *, tokens: int, temperature: float, seed: int
) -> list[list[str]]:
    """What follows each prompt, by strength; a prompt's random numbers are the same at all strengths."""
    count, strengths = len(questions.texts), [dose.strength for dose in response.doses]
    if not tokens:
        return [[] for _ in strengths]
    edits = [
        RowEdit(setup.edits[0].model_copy(update={"value": strength}), tuple(range(at * count, (at + 1) * count)))
        for at, strength in enumerate(strengths)
    ]
    texts = generate(
        setup.subject,
        questions.batch.take([*range(count)] * len(strengths)),
        edits,
        tokens=tokens,
        temperature=temperature,
        seed=[seed + row for row in range(count)] * len(strengths),
        materials=setup.gather_materials(),
        may_idle=True,
    ).texts
    return [list(texts[at * count : (at + 1) * count]) for at in range(len(strengths))]


def _row(response: DoseResponse, dose: Dose, texts: Sequence[str]) -> Row:
    rank = dose.rank
    return {
        "edit": response.edit,
        "strength": dose.strength,
        "readout": response.readout,
        "response": dose.response.value,
        "effect": dose.effect.value,
        **ends(dose.effect.interval),
        "n": dose.effect.n,
        "percentile": rank and rank.percentile,
        "p": rank and rank.p,
        "kl": dose.kl.value,
        "loss": dose.loss.value,
        "max_change": dose.max_change,
        "texts": list(texts),
    }
