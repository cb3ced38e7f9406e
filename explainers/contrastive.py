"""Explains from marked windows as in `highlight`, beside windows in which the feature stays silent.

A near miss holds a token on which the feature fires elsewhere, so whatever sets it apart is in the text before
that token; other silent windows show what the corpus is like. Both keep the model from naming what is common to
all text, or a token alone where its context decides.
"""

from ..llm.render import SILENT_MARKS, excerpt, fenced, marked
from .ask import Extent, PromptExplainer, PromptFill
from .examples import SilentWindows, active_windows, silent_windows
from .explainer import TrainBatch, TrainEvidence
from .highlight import active_lines

NONE_FOUND = "(none was found)"


class Contrastive(PromptExplainer):
    """Explains from marked windows and silent ones.

    >>> Contrastive(temperature=0.7).name
    'contrastive'
    """

    name = "contrastive"
    extent = Extent(top=8, quantile=3, near_misses=6, silent=3)

    def fill(self, evidence: TrainEvidence, batch: TrainBatch) -> PromptFill:
        """Fill in active windows, near misses, and other silent windows."""
        extent = self._extent
        examples = active_windows(evidence, top=extent.top, quantile=extent.quantile)
        silent = silent_windows(evidence, batch, examples, near_misses=extent.near_misses, others=extent.silent)
        near, others = _format_silent(silent, extent, {e.tokens[int(e.activations.argmax())] for e in examples})
        places = {
            "windows": fenced(active_lines(examples, extent)),
            "near_misses": fenced(near) if near else NONE_FOUND,
            "silent": fenced(others) if others else NONE_FOUND,
        }
        windows = (*examples, *(near.example for near in silent.near_misses), *silent.others)
        return PromptFill(places, tuple(e.window for e in windows), max(e.peak for e in examples))


def _format_silent(silent: SilentWindows, extent: Extent, peaks: set[str]) -> tuple[list[str], list[str]]:
    near, others = [], []
    for i, (example, position) in enumerate(silent.near_misses, start=1):
        part = excerpt(example, before=extent.before, after=extent.after, pivot=position)
        near.append(f"{i}. {marked(part, [token in peaks for token in part.tokens], ends=SILENT_MARKS)}")
    for i, example in enumerate(silent.others, start=1):
        part = excerpt(
            example, before=extent.before, after=extent.after, pivot=min(extent.before, len(example.tokens) - 1)
        )
        others.append(f"{i}. {marked(part, [False] * len(part.tokens))}")
    return near, others
