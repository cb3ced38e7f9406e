"""The token and activation lists of Bills et al. (2023), section "Explain", in our words.

Each window is a list of tokens with activations from 0 to 10, 10 being the highest shown. Where fewer than a
fifth of the values are above zero, the windows follow once more without their zeros, so that what fires is seen
side by side.
"""

from ..llm.render import excerpt, fenced, token_list
from .ask import Extent, PromptExplainer, Shown
from .examples import active_windows
from .explainer import TrainBatch, TrainEvidence

SPARSE = 0.2
"""Below this share of values above zero these are shown once more alone."""


class Oneshot(PromptExplainer):
    """Explains from lists of tokens with their activations."""

    name = "oneshot"
    extent = Extent(top=6, before=24, after=6)

    def show(self, evidence: TrainEvidence, batch: TrainBatch) -> Shown:  # noqa: ARG002
        """The windows with the highest peaks, spread over their ranks."""
        size = self._extent
        examples = active_windows(evidence, top=size.top, quantile=size.quantile)
        parts = [excerpt(example, before=size.before, after=size.after) for example in examples]
        highest = max(example.peak for example in examples)
        whole = [token_list(part, highest) for part in parts]
        above = [token_list(part, highest, zeros=False) for part in parts]
        sparse = sum(map(len, above)) < SPARSE * sum(map(len, whole))
        places = {
            "windows": fenced(_numbered(whole)),
            "above": f"\n\nThe same windows, only the tokens above 0:\n{fenced(_numbered(above))}" if sparse else "",
        }
        return Shown(places, tuple(example.window for example in examples), highest)


def _numbered(lists: list[list[str]]) -> list[str]:
    return [line for i, lines in enumerate(lists, start=1) for line in (f"window {i}", *lines)]
