"""What operations on prompts share: prompts with answers, edits, and a model opened with what the edits refer to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ...subject.errors import NeuronautError
from .arguments import Arguments, ModelName, Texts
from .context import Context

if TYPE_CHECKING:
    from ...causal.edits import Edit
    from ...causal.questions import Questions
    from ...causal.setup import CausalSetup
    from ...subject.address import SourceId
    from ...subject.model import Subject

EDITS = 16
"""Edits in a call."""
EDIT_FORM = (
    "SITE[:UNITS]CHANGE[@POSITIONS], with the feature's full address if you like: the site mlp.2 (neurons), head.1, "
    "resid_post.2 or resid_post.2@sae (a dictionary); the units 17, 0-9 or all if left out; the change =0 (ablate), "
    "=mean, =1.5, *=2, +=1.5, +=1q (q: the unit's largest activation in reference text), >=0, =patch (values of "
    "another run); the positions last, 3-5 or '\" name\"', all if left out. For example demo:mlp.2:17=0"
)
Answer = Annotated[
    str | None,
    Field(max_length=200, description="The next token that is asked about, with its space; the likeliest by default."),
]
Wrong = Annotated[str | None, Field(max_length=200, description="The token that the answer is set against.")]
Positions = Annotated[str, Field(max_length=100, description="Of the prompt: last, all, 3-5, -2 or '\" name\"'.")]
Controls = Annotated[int, Field(ge=0, le=50, description="Controls of each sort that a single edit is ranked among.")]
Seed = Annotated[int, Field(ge=0, le=2**31, description="Of what is random.")]
Edits = Annotated[list[Annotated[str, Field(min_length=3, max_length=500)]], Field(max_length=EDITS)]


class PromptArguments(Arguments):
    """Prompts with their answer."""

    prompts: Annotated[Texts, Field(description="Prompts, each by itself.")]
    answer: Answer = None
    wrong: Wrong = None
    model: ModelName = None


def open_edits(context: Context, model: str | None, texts: Sequence[str], *, reference: bool = False) -> "CausalSetup":
    """The model with edits and the dictionaries that they name; `reference` text also where no edit needs it."""
    from ...causal.edits import Edit
    from ...causal.setup import CausalSetup
    from ...labelling.opening import stored_reference

    name = context.choose_model(model)
    edits = tuple(Edit.parse(text.removeprefix(f"{name}:")) for text in texts)
    ids = {f"{edit.site}@{edit.dictionary}": _source(context, name, edit) for edit in edits if edit.dictionary}
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


def _source(context: Context, model: str, edit: "Edit") -> "SourceId":
    from ...subject.address import SourceId

    known = context.store.known_source(f"{model}:{edit.site}@{edit.dictionary}")
    return SourceId.parse(str(known))


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
