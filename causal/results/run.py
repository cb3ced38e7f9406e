"""Rows of `run`: what comes next, before and after edits."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

from ...subject.errors import NeuronautError
from ..controls import rank_among_controls
from ..prompts import Batch
from ..questions import Questions
from ..readouts import NextToken, last_logits, next_tokens
from ..records import Outcome, Trial, run_with_logits
from ..setup import CausalSetup
from .common import Row, rank_row, report_row

METRICS = ("kl", "log_probability", "rank", "logit_difference")
"""What is measured of a run; the last needs a wrong answer."""


class Ran(NamedTuple):
    """A row for each prompt, and the outcome to be recorded."""

    rows: list[Row]
    outcome: Outcome | None
    """None where nothing was edited."""


def run_rows(
    setup: CausalSetup,
    questions: Questions,
    *,
    source_runs: Sequence[str] = (),
    top: int = 5,
    controls: int = 0,
    seed: int = 0,
) -> Ran:
    """Run prompts, as they are or before and after the edits of the setup.

    Each row has the `top` likeliest next tokens with their probabilities, `measures` (KL in nats), what each edit did,
    and how a single edit stands among so many `controls` of each sort. `source_runs` are the texts that patches take
    their values from. Raises NeuronautError where these do not go with the edits.
    """
    if not setup.edits:
        return Ran(_run_plain(setup, questions, top), None)
    rows, outcome = _run_edited(setup, questions, source_runs, top)
    ranks = _rank_controls(setup, questions, outcome.trial, controls, seed) if controls else []
    return Ran([row | {"controls": ranks} for row in rows], outcome)


def _run_plain(setup: CausalSetup, questions: Questions, top: int) -> list[Row]:
    logits = last_logits(setup.subject, questions.batch)
    nothing: Row = {"measures": {}, "edits": [], "dictionaries": {}, "controls": []}
    return [
        _prompt_row(setup, questions, number, next_tokens(setup.subject, row, None, top=top)) | nothing
        for number, row in enumerate(logits)
    ]


def _run_edited(
    setup: CausalSetup, questions: Questions, source_runs: Sequence[str], top: int
) -> tuple[list[Row], Outcome]:
    outcome, comparison = run_with_logits(
        setup.subject, _build_trial(setup, questions, source_runs), sources=setup.dictionaries
    )
    measured = [
        {name: {"before": outcome.before[name][number], "after": outcome.after[name][number]} for name in outcome.after}
        for number in range(len(questions.texts))
    ]
    shared: Row = {
        "edits": [report_row(report) for report in comparison.reports],
        "dictionaries": {name: trust.model_dump() for name, trust in outcome.dictionaries.items()},
    }
    rows = [
        _prompt_row(setup, questions, number, next_tokens(setup.subject, before, after, top=top))
        | {"measures": measured[number], **shared}
        for number, (before, after) in enumerate(zip(comparison.before, comparison.after, strict=True))
    ]
    return rows, outcome


def _prompt_row(setup: CausalSetup, questions: Questions, number: int, following: Sequence[NextToken]) -> Row:
    readings = questions.readings[number]
    likeliest = setup.subject.vocabulary[int(questions.answers[number])]
    ways = [{**asdict(reading), "probability": reading.probability} for reading in readings]
    return {
        "prompt": questions.texts[number],
        "tokens": questions.tokens(setup.subject, number),
        "answer": "".join(readings[0].tokens) if readings else likeliest,
        "next": [token._asdict() for token in following],
        **({"answers": ways} if ways else {}),
    }


def _build_trial(setup: CausalSetup, questions: Questions, source_runs: Sequence[str]) -> Trial:
    patched = any(edit.needs_source_run for edit in setup.edits)
    if bool(source_runs) is not patched or len(source_runs) not in (0, len(questions.texts)):
        raise NeuronautError(
            f"{len(source_runs)} source runs for {len(questions.texts)} prompts; =patch takes its values from source "
            "runs, one for each prompt, and other edits take none"
        )
    wrong = questions.wrong
    return Trial(
        prompts=questions.batch.rows(),
        edits=setup.edits,
        metrics=METRICS if wrong is not None else METRICS[:-1],
        answers=tuple(questions.answers.tolist()),
        wrong=None if wrong is None else tuple(wrong.tolist()),
        source_runs=Batch.of(setup.subject, source_runs).rows() if source_runs else None,
        reference=None if setup.reference is None else setup.reference.rows(),
        directions={name: tuple(vector.tolist()) for name, vector in setup.directions.items()},
    )


def _rank_controls(setup: CausalSetup, questions: Questions, trial: Trial, count: int, seed: int) -> list[Row]:
    """How the edit's KL stands among those of its controls."""
    source_run = None if trial.source_runs is None else Batch.of(setup.subject, trial.source_runs)
    ranks = rank_among_controls(
        setup.subject,
        questions.batch,
        setup.edits[0],
        answers=questions.answers,
        count=count,
        materials=setup.gather_materials(source_run),
        reference=setup.reference,
        seed=seed,
    )
    return [rank_row(sort, rank, metric="kl") for sort, rank in ranks.items()]
