"""The table of operations, and `perform`, through which every call goes.

An operation has arguments that are checked before anything is opened, says what it needs (the database alone, the
model, leave to write), and gives rows with the keys that the command of that name prints with --json. What it may
cost is bounded three times: by its arguments, by the time of a call, and by the characters of its result.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, Literal

from ...subject.errors import NeuronautError
from . import circuits, features, reading, running, stored, writing
from .arguments import ArgumentError, Arguments
from .context import Cancelled, Context
from .results import CHARACTERS, Result, cut

Need = Literal["store", "model", "write"]
READ: frozenset[Need] = frozenset({"store"})
COMPUTE: frozenset[Need] = frozenset({"store", "model"})
WRITE: frozenset[Need] = frozenset({"store", "model", "write"})
ALLOWING: Mapping[Need, str] = {"model": "--allow-compute", "write": "--allow-write"}
"""The options of a server that grant what operations need."""
SECONDS = 300.0
"""Longest time of a call."""
FEWER = "ask again with shorter texts, or one at a time"
LONGEST_ERROR = 1000
"""Characters of the line that says what went wrong."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation: its arguments, what it does, and what it needs."""

    arguments: type[Arguments]
    """Its docstring says what the operation is for."""
    function: Callable[[Context, Any], Result]
    needs: frozenset[Need] = READ
    rest: str = FEWER
    """How to get what is left out of a long result."""
    seconds: float = SECONDS
    """Longest time of a call."""

    @property
    def description(self) -> str:
        """What it is for, in words."""
        return cleandoc(self.arguments.__doc__ or "")

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its arguments."""
        schema = _without_titles(self.arguments.model_json_schema())
        # The docstring, which is the description already.
        del schema["description"]
        return schema


def _without_titles(schema: Any) -> Any:
    """A schema without what only repeats the names of its fields."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    # A field may itself be called title.
    kept = {name: part for name, part in schema.items() if name != "title" or not isinstance(part, str)}
    return {name: _without_titles(part) for name, part in kept.items()}


OPERATIONS: Mapping[str, Operation] = {
    "sources": Operation(stored.SourcesArguments, stored.sources, rest="ask for one with list"),
    "search": Operation(stored.SearchArguments, stored.search, rest="ask again with a smaller limit, and an offset"),
    "list": Operation(stored.ListArguments, stored.list_features, rest="ask again with a smaller limit, and an offset"),
    "show": Operation(stored.ShowArguments, stored.show, rest="ask again with a smaller count"),
    "similar": Operation(stored.SimilarArguments, stored.similar, rest="ask again with a smaller limit"),
    "find": Operation(features.FindArguments, features.find_features, COMPUTE, rest="ask again with a smaller count"),
    "try": Operation(features.TryArguments, features.try_feature, COMPUTE, rest=FEWER),
    "run": Operation(running.RunArguments, running.run, COMPUTE, rest=FEWER),
    "steer": Operation(running.SteerArguments, running.steer, COMPUTE, rest="ask again with fewer strengths or tokens"),
    "patch": Operation(running.PatchArguments, running.patch, COMPUTE, rest="ask again with fewer rows"),
    "sweep": Operation(circuits.SweepArguments, circuits.sweep, COMPUTE, rest="ask again for one layer or fewer units"),
    "circuit": Operation(circuits.CircuitArguments, circuits.circuit, COMPUTE, rest="ask again with fewer nodes"),
    "cut": Operation(circuits.CutArguments, circuits.cut, COMPUTE, rest=FEWER),
    "lens": Operation(reading.LensArguments, reading.lens, COMPUTE, rest="ask again for fewer sites or positions"),
    "heads": Operation(reading.HeadsArguments, reading.heads, COMPUTE, rest="ask again with a smaller top"),
    "attention": Operation(reading.AttentionArguments, reading.attention, COMPUTE, rest=FEWER),
    "attribute": Operation(reading.AttributeArguments, reading.attribute, COMPUTE, rest=FEWER),
    "label": Operation(writing.LabelArguments, writing.label, WRITE),
    "investigate": Operation(
        writing.InvestigateArguments,
        writing.investigate,
        WRITE,
        rest="the whole report is shown by: neuronaut sessions show ID",
        seconds=60.0 * (writing.MINUTES + 5),
    ),
}
"""By name, which is that of the command."""


def allowed(granted: Collection[Need]) -> dict[str, Operation]:
    """The operations that need no more than what is granted."""
    return {name: operation for name, operation in OPERATIONS.items() if operation.needs <= {*granted}}


def perform(
    name: str,
    arguments: Mapping[str, Any],
    context: Context,
    *,
    granted: Collection[Need] = ("store",),
    characters: int | None = CHARACTERS,
) -> Result:
    """Perform an operation; the result is cut to `characters` unless that is None.

    Raises NeuronautError, with one line that says how to mend the call: an ArgumentError where its arguments are
    wrong, Cancelled where its watch was.
    """
    if (operation := OPERATIONS.get(name)) is None:
        raise ArgumentError(f"there is no operation {name!r:.60}; wanted one of {', '.join(allowed(granted))}")
    if missing := operation.needs - {*granted}:
        options = " and ".join(ALLOWING[need] for need in ("model", "write") if need in missing)
        raise NeuronautError(f"{name} is not allowed here; whoever runs the server may start it with {options}")
    checked = operation.arguments.read(arguments)
    computes = "model" in operation.needs
    with context.models.turn(context.watch) if computes else nullcontext():
        context.watch.start(operation.seconds)
        try:
            result = operation.function(context, checked)
        except Cancelled:
            if not context.watch.late:
                raise
            raise NeuronautError(
                f"{name} was stopped after {operation.seconds:.0f} s, the most that a call may take; ask for less at a "
                "time (fewer texts, strengths, rows or experiments)"
            ) from None
    return result if characters is None else cut(result, characters, operation.rest)


def format_error(error: Exception) -> str:
    """The line that says what went wrong."""
    message = " ".join(str(error).split())[:LONGEST_ERROR]
    if isinstance(error, NeuronautError):
        return message
    return f"{type(error).__name__}: {message or 'no message'}; this was not expected"
