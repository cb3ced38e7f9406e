"""What operations on prompts share: prompts with answers, edits, and a model opened with what the edits refer to."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from ...subject.errors import NeuronautError
from .arguments import Arguments, ModelName, Text, Texts
from .context import Context

if TYPE_CHECKING:
    from ...causal.circuits.tasks import Task
    from ...causal.questions import Questions
    from ...causal.setup import CausalSetup
    from ...subject.address import SourceId
    from ...subject.model import Subject

EDITS = 16
"""Edits in a call."""
PAIRS = 64
"""Pairs of prompts in a call."""
EDIT_FORM = (
    "SITE[:UNITS]CHANGE[@POSITIONS], with the feature's full address if you like: the site mlp.2 (neurons), head.1, "
    "resid_post.2 or resid_post.2@sae (a dictionary); the units 17, 0-9 or all if left out; the change =0 (ablate), "
    "=mean, =1.5, *=2, +=1.5, +=1q (q: the unit's largest activation in reference text), >=0, =patch (values of "
    'another run); the positions last, 3-5 or the token " name" in double quotes, all if left out; a first token that '
    "the model itself puts in front is 0. For example demo:mlp.2:17=0"
)
Answer = Annotated[
    str | None,
    Field(max_length=200, description="The next token that is asked about, with its space; the likeliest by default."),
]
Wrong = Annotated[str | None, Field(max_length=200, description="The token that the answer is set against.")]
Positions = Annotated[
    str,
    Field(max_length=100, description='Of the prompt: last, all, 3-5, -2 or a token in double quotes, as in " name".'),
]
Controls = Annotated[int, Field(ge=0, le=50, description="Controls of each sort that a single edit is ranked among.")]
Seed = Annotated[int, Field(ge=0, le=2**31, description="Of what is random.")]
Edits = Annotated[list[Annotated[str, Field(min_length=3, max_length=500)]], Field(max_length=EDITS)]


class PromptArguments(Arguments):
    """Prompts with their answer."""

    prompts: Annotated[Texts, Field(description="Prompts, each by itself.")]
    answer: Answer = None
    wrong: Wrong = None
    model: ModelName = None


class Pair(Arguments):
    """Two prompts that differ in what the answer is."""

    clean: Text
    corrupted: Text
    answer: Annotated[str, Field(min_length=1, max_length=200)]
    wrong: Annotated[str, Field(min_length=1, max_length=200)]


class PairArguments(Arguments):
    """Pairs of prompts, given in one of three ways."""

    task: Annotated[
        Literal["induction", "brackets", "variable", "ioi"] | None, Field(description="Pairs from a generator.")
    ] = None
    rows: Annotated[int, Field(ge=1, le=PAIRS, description="Pairs that the generator draws.")] = 16
    clean: Annotated[Text | None, Field(description="Of one pair, the prompt that asks for the answer.")] = None
    corrupted: Annotated[
        Text | None, Field(description="Of one pair, a prompt of as many tokens that asks for wrong.")
    ] = None
    answer: Annotated[
        str | None, Field(max_length=200, description="Of one pair, the next token after clean, with its space.")
    ] = None
    wrong: Annotated[
        str | None, Field(max_length=200, description="Of one pair, the next token after corrupted, with its space.")
    ] = None
    pairs: Annotated[
        list[Pair], Field(max_length=PAIRS, description="Several pairs, each with clean, corrupted, answer and wrong.")
    ] = []
    model: ModelName = None


class OpenTask(NamedTuple):
    """Pairs that are read, and what is easily overlooked in them."""

    task: "Task"
    notes: tuple[str, ...]


def open_task(subject: "Subject", arguments: PairArguments, *, seed: int) -> OpenTask:
    """Draw or read the pairs. Raises NeuronautError where they are given in no way, or in several."""
    from ...causal.circuits import tasks
    from ...causal.questions import pair_remarks

    one = {name: getattr(arguments, name) for name in ("clean", "corrupted", "answer", "wrong")}
    given = [text is not None for text in one.values()]
    if (arguments.task is not None) + bool(arguments.pairs) + any(given) != 1 or any(given) != all(given):
        raise NeuronautError("wanted pairs in one way: a task, or pairs, or all of clean, corrupted, answer and wrong")
    if arguments.task is not None:
        return OpenTask(tasks.generate(subject, arguments.task, rows=arguments.rows, seed=seed), ())
    rows = [pair.model_dump() for pair in arguments.pairs] or [one]
    read = [tasks.row_of(subject, (row["clean"], row["corrupted"], row["answer"], row["wrong"])) for row in rows]
    name = f"{len(rows)} pairs" if len(rows) > 1 else "one pair"
    return OpenTask(tasks.Task.of(subject, name, read), tuple(pair_remarks(subject, rows)))


def open_edits(context: Context, model: str | None, texts: Sequence[str], *, reference: bool = False) -> "CausalSetup":
    """The model with edits and the dictionaries that they name; `reference` text also where no edit needs it."""
    from ...causal.edits import Edit
    from ...causal.setup import CausalSetup
    from ...labelling.opening import stored_reference

    name = context.choose_model(model)
    edits = tuple(Edit.parse(text.removeprefix(f"{name}:")) for text in texts)
    ids = known_sources(context, name, (f"{edit.site}@{edit.dictionary}" for edit in edits if edit.dictionary))
    if named := next((edit for edit in edits if isinstance(edit.direction, str)), None):
        raise NeuronautError(
            f"{named} names a direction of a file; give that on the command line: neuronaut run --direction"
        )
    subject = context.subject(name, ids.values())
    needed = reference or any(edit.needs_reference for edit in edits)
    return CausalSetup(
        subject,
        edits,
        {key: context.source(subject, id) for key, id in ids.items()},
        reference=stored_reference(context.store, subject) if needed else None,
    )


def known_sources(context: Context, model: str, names: Iterable[str]) -> "dict[str, SourceId]":
    """By `SITE@NAME`, the dictionaries of the database."""
    from ...subject.address import SourceId

    return {name: SourceId.parse(str(context.store.known_source(f"{model}:{name}"))) for name in names}


def ask_prompts(
    subject: "Subject",
    prompts: Sequence[str],
    *,
    answer: str | None = None,
    wrong: str | None = None,
    whole: bool = False,
) -> "Questions":
    """The prompts with the answer that all are asked for."""
    from ...causal.questions import ask

    return ask(subject, [{"prompt": text, "answer": answer, "wrong": wrong} for text in prompts], whole=whole)
