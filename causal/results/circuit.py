"""The row of a circuit with nodes cut."""

from ..circuits.evaluate import Cut
from ..measures import Effect
from .common import Row
from .patch import effect_row


def cut_row(cut: Cut) -> Row:
    """What is left of the behaviour in the circuit alone and in the model, as means over the pairs."""
    return {"cut": [str(node) for node in cut.nodes], "alone": _left(cut.alone), "model": _left(cut.model)}


def _left(effect: Effect) -> Row:
    row = effect_row(effect)
    del row["values"], row["direction"]
    return row
