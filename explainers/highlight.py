"""Explains from windows of running text with the active tokens marked, the strongest beside their activations."""

from collections.abc import Sequence

from ..data.records import Example
from ..llm.render import active, excerpt, fenced, marked, strongest
from .ask import PromptExplainer, PromptFill
from .examples import Extent, active_windows
from .explainer import TrainBatch, TrainEvidence

STRONGEST = 4
"""Tokens of a window whose activations are given."""


class Highlight(PromptExplainer):
    """Explains from marked windows.

    >>> Highlight(rules=False).prompts[0].name
    'highlight'
    """

    name = "highlight"
    extent = Extent(top=8, quantile=4)

    def fill(self, evidence: TrainEvidence, batch: TrainBatch) -> PromptFill:  # noqa: ARG002
        """Fill in the windows with the highest peaks, then weaker ones."""
        examples = active_windows(evidence, top=self._extent.top, quantile=self._extent.quantile)
        places = {"windows": fenced(active_lines(examples, self._extent))}
        return PromptFill(places, tuple(e.window for e in examples), max(e.peak for e in examples))


def active_lines(examples: Sequence[Example], extent: Extent) -> list[str]:
    """Write two lines for each window: the marked text, and its strongest tokens."""
    highest = max(example.peak for example in examples)
    lines = []
    for i, example in enumerate(examples, start=1):
        part = excerpt(example, before=extent.before, after=extent.after)
        lines += [
            f"{i}. {marked(part, active(part.activations, highest))}",
            f"   {strongest(part, highest, count=STRONGEST)}",
        ]
    return lines
