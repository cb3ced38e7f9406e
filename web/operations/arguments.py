"""Arguments of operations: what they share, and the one line that says what is wrong with them."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...subject.errors import NeuronautError

LONGEST_TEXT = 4000
"""Characters of a text that a model reads."""
TEXTS = 4
"""Texts in a call."""
_SHOWN = 60
"""Characters of a wrong argument that the error repeats."""


class ArgumentError(NeuronautError):
    """Arguments that an operation does not take; the message says what to change."""


class Arguments(BaseModel):
    """Arguments of an operation: nothing else is taken, and bounds are held."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Arguments":
        """Check arguments as they came. Raises ArgumentError, in one line."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ArgumentError(_explain(cls, error)) from None


FeatureAddress = Annotated[
    str,
    Field(
        min_length=3,
        max_length=300,
        description="Address of a feature, MODEL:SITE:INDEX or MODEL:SITE@DICTIONARY:INDEX, as search and list give "
        "it; for example demo:mlp.2:17. A trailing - is the negative tail.",
    ),
]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
"""A text that a model reads."""
Texts = Annotated[list[Text], Field(min_length=1, max_length=TEXTS)]
SourceName = Annotated[
    str | None, Field(max_length=300, description="Only features of this source, MODEL:SITE or MODEL:SITE@DICTIONARY.")
]
ModelName = Annotated[
    str | None, Field(max_length=300, description="Which model of the database; may be left out where it holds one.")
]


def _explain(model: type[Arguments], error: ValidationError) -> str:
    """What came, what was wanted, and which arguments there are."""
    problems = "; ".join(dict.fromkeys(_explain_one(model, dict(part)) for part in error.errors(include_url=False)))
    return f"{problems}; the arguments are {', '.join(map(_signature, model.model_fields.items()))}"


def _signature(item: tuple[str, Any]) -> str:
    name, field = item
    return f"{name} (needed)" if field.is_required() else name


def _explain_one(model: type[Arguments], part: Mapping[str, Any]) -> str:
    where = ".".join(map(str, part["loc"])) or "the call"
    if part["type"] == "missing":
        what = model.model_fields[where].description if where in model.model_fields else None
        return f"{where} is missing" + (f": {what.rstrip('.')}" if what else "")
    if part["type"] == "extra_forbidden":
        return f"{where} is no argument"
    given = repr(part["input"])
    given = given if len(given) <= _SHOWN else f"{given[:_SHOWN]}… ({len(given):,} characters)"
    return f"{where} is {given}: {part['msg'][:1].lower()}{part['msg'][1:]}"
