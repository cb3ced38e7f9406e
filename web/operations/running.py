"""Operations that change the model while it runs: run, steer, patch."""

from typing import Annotated, Literal

from pydantic import Field

from ...subject.errors import NeuronautError
from .arguments import Arguments, ModelName, Text
from .context import Context
from .prompts import EDIT_FORM, Answer, Controls, Edits, PromptArguments, Seed, Wrong, ask_prompts, open_edits
from .results import Result

Metric = Literal["logit_difference", "log_probability", "probability_difference", "kl", "rank", "loss"]


class RunArguments(PromptArguments):
    """See what the model says next, before and after edits: ablate a feature, set it, patch it.

    Gives the likeliest next tokens with their probabilities before and after, KL to the plain run in nats, what each
    edit did, and, for a single edit, how its KL stands among those of controls. Without edits the plain run. `before`
    and `after` of `measures` are those of the answer.
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
            "=1q sets (q: in units of the feature's largest activation), *=1 scales.",
        ),
    ]
    strengths: Annotated[
        list[Annotated[float, Field(ge=-100, le=100)]], Field(min_length=1, max_length=12, description="Strengths.")
    ] = [-2.0, -1.0, 0.0, 1.0, 2.0, 4.0]
    metric: Annotated[Metric | None, Field(description="Read out of the answer; kl if no answer is given.")] = None
    tokens: Annotated[int, Field(ge=0, le=64, description="Tokens to write after each prompt.")] = 16
    temperature: Annotated[float, Field(ge=0, le=2, description="Of what is written; 0: the likeliest.")] = 0.0
    controls: Controls = 10
    seed: Seed = 0


class PatchArguments(Arguments):
    """Put parts of one run into another, on pairs of prompts and in both directions.

    denoise puts clean values into the corrupted prompt and shows what suffices for the answer, noise puts corrupted
    values into the clean one and shows what is needed. `recovered` is 0 where nothing came of it, 1 where the whole
    prompt might as well have been exchanged. Pairs come from a task, or are one pair of your own.
    """

    edits: Annotated[Edits, Field(min_length=1, description=f"Edits, =patch among them: {EDIT_FORM}.")]
    task: Annotated[
        Literal["induction", "brackets", "variable", "ioi"] | None, Field(description="Pairs from a generator.")
    ] = None
    rows: Annotated[int, Field(ge=1, le=64, description="Pairs that the generator draws.")] = 16
    clean: Annotated[Text | None, Field(description="One pair: the prompt that asks for the answer,")] = None
    corrupted: Annotated[Text | None, Field(description="one that asks for another, of as many tokens,")] = None
    answer: Answer = None
    wrong: Wrong = None
    metrics: Annotated[list[Metric], Field(min_length=1, max_length=6, description="What is measured.")] = [
        "logit_difference",
        "log_probability",
        "kl",
    ]
    values: Annotated[bool, Field(description="Also the values of every pair.")] = False
    controls: Controls = 10
    seed: Seed = 0
    model: ModelName = None


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
    from ...causal.results.steer import steer_rows

    setup = open_edits(context, arguments.model, [arguments.edit], reference=True)
    with context.watch.over(setup.subject):
        questions = ask_prompts(setup.subject, arguments.prompts, answer=arguments.answer, wrong=arguments.wrong)
        rows, response = steer_rows(
            setup,
            questions,
            strengths=arguments.strengths,
            metric=arguments.metric,
            tokens=arguments.tokens,
            temperature=arguments.temperature,
            controls=arguments.controls,
            seed=arguments.seed,
        )
    return Result(rows, (*questions.notes, response.describe()))


def patch(context: Context, arguments: PatchArguments) -> Result:
    """Patch pairs of prompts."""
    from ...causal.circuits import tasks
    from ...causal.questions import count_wrong, pair_remarks
    from ...causal.results.patch import patch_rows

    pair = {name: getattr(arguments, name) for name in ("clean", "corrupted", "answer", "wrong")}
    given = [text is not None for text in pair.values()]
    if (arguments.task is not None) == any(given) or any(given) != all(given):
        raise NeuronautError("wanted pairs in one way: a task, or all of clean, corrupted, answer and wrong")
    setup = open_edits(context, arguments.model, arguments.edits)
    subject = setup.subject
    with context.watch.over(subject):
        if arguments.task is not None:
            task = tasks.generate(subject, arguments.task, rows=arguments.rows, seed=arguments.seed)
        else:
            task = tasks.Task.of(subject, "one pair", [tasks.row_of(subject, tuple(pair.values()))])
        notes = [] if arguments.task else pair_remarks(subject, [pair])
        notes += filter(None, [count_wrong(subject, task, seed=arguments.seed)])
        controls = arguments.controls if len(arguments.edits) == 1 else 0
        rows = patch_rows(setup, task, metrics=arguments.metrics, controls=controls, seed=arguments.seed)
    if not arguments.values:
        for row in rows:
            del row["values"]
    return Result(rows, tuple(notes))
