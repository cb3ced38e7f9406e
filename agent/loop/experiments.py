"""What an experiment is: inputs that a tool has chosen, a value for each, and a control beside them.

A tool works in two steps, so that predictions can be written down in between. `design` chooses the inputs, without
measuring them; `measure` measures exactly these. A survey measures what makes no difference between rivals by
itself (weights, neighbours, known explanations, a learned rule): it is kept and can be cited, and no verdict
comes of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel

Readout = Literal["response", "effect"]
"""response: a feature's activation at the pivot of a window; effect: what an intervention changes."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is measured and predicted."""

    label: str
    """For people: the token, the node, what was changed."""
    ids: tuple[int, ...] = ()
    """Response: token ids of the window, BOS not counted, as long as the pool's windows."""
    pivot: int = 0
    """Response: position in `ids` that is measured."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Effect: what the item is of, as plain JSON: {"token": " the"}, {"node": "head.2:0"}, {"keep": [...]}."""


@dataclass(frozen=True, slots=True)
class Design:
    """An experiment before it is run."""

    question: str
    """What is asked, in a sentence."""
    readout: Readout
    items: tuple[Item, ...]
    plan: Mapping[str, Any] = field(default_factory=dict)
    """What `measure` needs beside the items, as plain JSON (its control's inputs, for example)."""


@dataclass(frozen=True, slots=True)
class Control:
    """The same measurement where nothing should come of it."""

    what: str
    """For example "20 random directions of the same norm"."""
    value: float | None
    """Mean of the control, in the units of the result."""
    low: float | None = None
    high: float | None = None
    """95% range of the control's values."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What an experiment measured. A tool that cannot measure raises NeuronautError: a failure is no number."""

    values: tuple[float, ...]
    """By item, in units of the scale (levels.py); empty for surveys."""
    effect: float | None
    """The headline: what the tool's docstring says, in `units`."""
    low: float | None
    high: float | None
    """Ends of its 95% interval; None where there is none."""
    n: int
    units: str
    """Of the effect, for example "share of the scale", "nats"."""
    normalised_by: str
    """What 1 is in `values`, for example "median peak of the 12 strongest training examples: 3.2"."""
    control: Control | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else there is to know, as plain JSON: tables by name, curves, tokens. Shown to policies and in the
    report, cut where long."""


A = TypeVar("A", bound=BaseModel)
L = TypeVar("L")


class Tool(ABC, Generic[A, L]):
    """One kind of experiment, with arguments A, in a lab L. Its class docstring is what policies are told about it."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised whenever the same arguments would give another result: part of what an experiment is known by."""
    target: ClassVar[Literal["feature", "behaviour"]]
    survey: ClassVar[bool] = False
    inside: ClassVar[bool] = False
    """Whether it looks into the model, and does not only read the target's activations on text."""
    args: type[A]
    """Pydantic model of the arguments; every one has a default and a description."""

    def __init_subclass__(cls) -> None:
        """Takes the model of the arguments from the type parameter."""
        super().__init_subclass__()
        arguments = [get_args(base)[0] for base in vars(cls).get("__orig_bases__", ()) if get_args(base)]
        if arguments and isinstance(arguments[0], type):
            cls.args = arguments[0]

    @abstractmethod
    def design(self, args: A, lab: L) -> Design:
        """Chooses the inputs; deterministic in (args, what the lab knows, its seed). No holdout text."""

    @abstractmethod
    def measure(self, design: Design, lab: L) -> Measured:
        """Measures exactly these items, and the control; everything is charged to the lab's counter."""


AnyTool = Tool[Any, Any]
"""Of either kind of target; what it takes is checked against `args`, and `target` says which lab it wants."""


def design_to_json(design: Design) -> dict[str, Any]:
    """A design as the journal keeps it."""
    # `asdict` would copy every token id by itself, which takes longer than all else that planning does.
    items = [{"label": i.label, "ids": i.ids, "pivot": i.pivot, "about": i.about} for i in design.items]
    return {"question": design.question, "readout": design.readout, "items": items, "plan": design.plan}


def design_from_json(stored: Mapping[str, Any]) -> Design:
    """A design from the journal."""
    items = [Item(item["label"], tuple(item["ids"]), item["pivot"], item["about"]) for item in stored["items"]]
    return Design(stored["question"], stored["readout"], tuple(items), stored["plan"])
