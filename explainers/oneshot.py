"""Explains from the token and activation lists of Bills et al. (2023), section "Explain", in our words.

Each window is a list of tokens with activations from 0 to 10, 10 being the highest shown. Where fewer than a
fifth of the values are above zero, the windows follow once more without their zeros, so that what fires is seen
side by side.
"""

from ..llm.render import excerpt, fenced, token_list
from .ask import PromptExplainer, PromptFill
from .examples import Extent, active_windows
from .explainer import TrainBatch, TrainEvidence

SPARSE = 0.2
"""Where a smaller share of the values is above zero, those are shown once more alone."""


class Oneshot(PromptExplainer):
    """Explains from lists of tokens with their activations.

    >>> Oneshot().settings["temperature"]
    0.0
    """

    name = "oneshot"
    extent = Extent(top=6, before=24, after=6)

    def fill(self, evidence: TrainEvidence, batch: TrainBatch) -> PromptFill:  # noqa: ARG002
        """Fill in the windows with the highest peaks, spread over their ranks."""
        extent = self._extent
        examples = active_windows(evidence, top=extent.top, quantile=extent.quantile)
        parts = [excerpt(example, before=extent.before, after=extent.after) for example in examples]
        highest = max(example.peak for example in examples)
        whole = [token_list(part, highest) for part in parts]
        above = [token_list(part, highest, zeros=False) for part in parts]
        sparse = sum(map(len, above)) < SPARSE * sum(map(len, whole))
        places = {
            "windows": fenced(_number_lists(whole)),
            "above": f"\n\nThe same windows, only the tokens above 0:\n{fenced(_number_lists(above))}"
            if sparse
            else "",
        }
        return PromptFill(places, tuple(example.window for example in examples), highest)


def _number_lists(lists: list[list[str]]) -> list[str]:
    return [line for i, lines in enumerate(lists, start=1) for line in (f"window {i}", *lines)]
