"""Operations that change the model while it runs: run, steer, patch."""

from typing import Annotated, Literal

from pydantic import Field

from ...subject.errors import NeuronautError
from .arguments import Text
from .context import Context
from .prompts import (
    EDIT_FORM,
    Controls,
    Edits,
    PairArguments,
    PromptArguments,
    Seed,
    ask_prompts,
    open_edits,
    open_task,
)
from .results import Result

Metric = Literal["logit_difference", "log_probability", "probability_difference", "kl", "rank", "loss"]


class RunArguments(PromptArguments):
    """See what the model says next, before and after edits: ablate a feature, set it, patch it.

    Gives the likeliest next tokens with their probabilities before and after, KL to the plain run in nats, what each
    edit did, and, for a single edit, how its KL over all prompts stands among those of controls. Without edits the
    plain run. `before` and `after` of `measures` are those of the answer; a rank of 0 is the likeliest token.
    """

    edits: Annotated[Edits, Field(description=f"Edits, all of which work together: {EDIT_FORM}.")] = []
    source_runs: Annotated[
        list[Text],
        Field(max_length=4, description="Where =patch takes values from: a text for each prompt, of as many tokens."),
    ] = []
    top: Annotated[int, Field(ge=1, le=20, description="Next tokens of each run.")] = 5
    controls: Controls = 20
    seed: Seed = 0


class SteerArguments(PromptArguments):
    """Steer a feature from weak to strong, and see the answer move, the side effects, and what the model writes.

    At each strength: how far the readout moves from the plain run, how that stands among random directions of the same
    norm, KL and loss on unrelated text (nats per token), and what is written after each prompt.
    """

    edit: Annotated[
        str,
        Field(
            min_length=3,
            max_length=500,
            description="What is steered; its number gives way to the strengths: demo:resid_post.2@sae:40+=1q adds, "
            "=1q sets (q: in units of its largest activation in reference text, not of its peak in the corpus), "
            "*=1 scales.",
        ),
    ]
    strengths: Annotated[
        list[Annotated[float, Field(ge=-100, le=100)]], Field(min_length=1, max_length=24, description="Strengths.")
    ] = [-2.0, -1.0, 0.0, 1.0, 2.0, 4.0]
    metric: Annotated[Metric | None, Field(description="Read out of the answer; kl if no answer is given.")] = None
    metrics: Annotated[
        list[Metric], Field(max_length=6, description="Several in its place; the rows of each follow one another.")
    ] = []
    tokens: Annotated[int, Field(ge=0, le=64, description="Tokens to write after each prompt.")] = 16
    temperature: Annotated[float, Field(ge=0, le=2, description="Of what is written; 0: the likeliest.")] = 0.0
    controls: Controls = 10
    text_rows: Annotated[
        int, Field(ge=1, le=64, description="Rows of unrelated text on which side effects are measured.")
    ] = 16
    seed: Seed = 0


class PatchArguments(PairArguments):
    """Put parts of one run into another, on pairs of prompts and in both directions.

    denoise puts clean values into the corrupted prompt and shows what suffices for the answer, noise puts corrupted
    values into the clean one and shows what is needed. `recovered` is 0 where nothing came of it, 1 where the whole
    prompt might as well have been exchanged. Pairs come from a task, or are your own. `controls` say how the
    logit difference that a single edit recovers stands among that of controls, in the rows of every metric.
    """

    edits: Annotated[
        Edits,
        Field(min_length=1, description=f"Edits, of which =patch moves values from one run to the other: {EDIT_FORM}."),
    ]
    metrics: Annotated[list[Metric], Field(min_length=1, max_length=6, description="What is measured.")] = [
        "logit_difference",
        "log_probability",
        "kl",
    ]
    values: Annotated[bool, Field(description="Also the values of every pair.")] = False
    controls: Controls = 10
    seed: Seed = 0


def run(context: Context, arguments: RunArguments) -> Result:
    """Run prompts, plain or edited."""
    from ...causal.results.run import run_rows

    if arguments.source_runs and not arguments.edits:
        raise NeuronautError("source_runs go with an edit =patch; add it to edits, for example resid_post.1=patch@3")
    setup = open_edits(context, arguments.model, arguments.edits)
    with context.watch.over(setup.subject):
        questions = ask_prompts(
            setup.subject, arguments.prompts, answer=arguments.answer, wrong=arguments.wrong, whole=not arguments.edits
        )
        rows, _ = run_rows(
            setup,
            questions,
            source_runs=arguments.source_runs,
            top=arguments.top,
            controls=arguments.controls if len(arguments.edits) == 1 else 0,
            seed=arguments.seed,
        )
    return Result(rows, questions.notes)


def steer(context: Context, arguments: SteerArguments) -> Result:
    """Steer prompts at several strengths."""
    from ...causal.results.steer import steer_curves

    if arguments.metric is not None and arguments.metrics:
        raise NeuronautError("metric is one readout and metrics are several; leave one of the two out")
    setup = open_edits(context, arguments.model, [arguments.edit], reference=True)
    with context.watch.over(setup.subject):
        questions = ask_prompts(setup.subject, arguments.prompts, answer=arguments.answer, wrong=arguments.wrong)
    curves = steer_curves(
        setup,
        questions,
        strengths=arguments.strengths,
        metrics=arguments.metrics or [arguments.metric],
        tokens=arguments.tokens,
        temperature=arguments.temperature,
        controls=arguments.controls,
        text_rows=arguments.text_rows,
        seed=arguments.seed,
        work=context.watch.work(),
    )
    told = [curve.response.describe() for curve in curves]
    if len(curves) > 1:
        told = [f"{curve.response.readout.replace('_', ' ')}: {text}" for curve, text in zip(curves, told, strict=True)]
    return Result([row for curve in curves for row in curve.rows], (*questions.notes, *told))


def patch(context: Context, arguments: PatchArguments) -> Result:
    """Patch pairs of prompts."""
    from ...causal.questions import count_wrong
    from ...causal.results.patch import patch_rows

    setup = open_edits(context, arguments.model, arguments.edits)
    with context.watch.over(setup.subject):
        task, notes = open_task(setup.subject, arguments, seed=arguments.seed)
        notes = (*notes, *filter(None, [count_wrong(setup.subject, task, seed=arguments.seed)]))
        controls = arguments.controls if len(arguments.edits) == 1 else 0
        rows = patch_rows(setup, task, metrics=arguments.metrics, controls=controls, seed=arguments.seed)
    if not arguments.values:
        for row in rows:
            del row["values"]
    return Result(rows, notes)
