"""Rows of `steer`: a readout, its side effects and what the model writes, at each strength of an edit."""

from collections.abc import Sequence
from typing import NamedTuple

from ...subject.errors import NeuronautError
from ..doses import Dose, DoseResponse
from ..generation import generate
from ..intervene import Materials, RowEdit, edited_dictionaries
from ..prompts import Batch
from ..questions import Questions
from ..readouts import Readout, answers
from ..setup import CausalSetup
from ..steering import cost_of_doses, dose_responses
from ..work import Work, cost_of
from .common import Row, ends

TEXT_ROWS = 16
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
    text_rows: int = TEXT_ROWS,
    seed: int = 0,
    work: Work | None = None,
) -> Steered:
    """Steer prompts with the setup's edit, whose number gives way to each of the strengths.

    `metric` is what is read out; where it is None, that which the answers allow. So many `tokens` are written after
    each prompt. Side effects are measured on `text_rows` rows of the setup's reference text. `work` is told how far it
    is. Raises NeuronautError where there is no reference text.
    """
    (steered,) = steer_curves(
        setup,
        questions,
        strengths=strengths,
        metrics=[metric],
        tokens=tokens,
        temperature=temperature,
        controls=controls,
        text_rows=text_rows,
        seed=seed,
        work=work,
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
    text_rows: int = TEXT_ROWS,
    seed: int = 0,
    work: Work | None = None,
) -> list[Steered]:
    """As `steer_rows`, by metric; what is the same for all of them is measured and written once."""
    if setup.reference is None or len(setup.edits) != 1:
        raise NeuronautError(f"{len(setup.edits)} edits; wanted one, and reference text to measure its side effects on")
    work, text = work or Work(), _spread_rows(setup.reference, text_rows)
    readouts = [_choose_readout(questions, metric) for metric in metrics]
    cost = _cost(setup, questions, readouts, text, doses=len(set(strengths)), controls=controls, tokens=tokens)
    with work.counted(setup.subject):
        work.begin("reads the reference text", left=cost)
        materials = setup.gather_materials()
        responses = dose_responses(
            setup.subject,
            questions.batch,
            setup.edits[0],
            readouts,
            strengths=strengths,
            text=text,
            reference=setup.reference,
            controls=controls,
            seed=seed,
            materials=materials,
            work=work,
        )
        work.begin("writes")
        texts = _write_texts(
            setup, questions, responses[0], materials, tokens=tokens, temperature=temperature, seed=seed
        )
    return [
        Steered([_row(response, dose, written) for dose, written in zip(response.doses, texts, strict=True)], response)
        for response in responses
    ]


def _cost(
    setup: CausalSetup,
    questions: Questions,
    readouts: Sequence[Readout],
    text: Batch,
    *,
    doses: int,
    controls: int,
    tokens: int,
) -> float:
    """How many tokens are run in all, as `work` counts them."""
    subject, edit, rows = setup.subject, setup.edits[0], doses * len(questions.texts)
    layers = (1 + (edit.layer or 0)) / subject.n_layers
    reference = layers * setup.reference.tokens.numel() if edit.needs_reference and setup.reference else 0.0
    trusted = len(edited_dictionaries([edit], setup.materials))
    curves = cost_of_doses(
        subject, questions.batch, readouts, text=text, doses=doses, controls=controls, trusted=trusted
    )
    read = doses * questions.batch.tokens.numel() + rows * (tokens - 1)
    written = cost_of(subject, read, logits=rows * tokens) if tokens else 0.0
    return reference + curves + written


def _spread_rows(reference: Batch, rows: int) -> Batch:
    """So many rows from all over the text, or all."""
    return reference.take(range(0, len(reference), max(1, len(reference) // rows))[:rows])


def _choose_readout(questions: Questions, metric: str | None) -> Readout:
    """The metric of that name, or the one that the answers allow."""
    answered = all(questions.readings)
    name = metric or ("logit_difference" if questions.wrong is not None else "log_probability" if answered else "kl")
    wrong = None if questions.wrong is None else questions.wrong.tolist()
    return answers(name, questions.answers.tolist(), wrong=wrong)


def _write_texts(
    setup: CausalSetup,
    questions: Questions,
    response: DoseResponse,
    materials: Materials,
    *,
    tokens: int,
    temperature: float,
    seed: int,
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
        materials=materials,
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
