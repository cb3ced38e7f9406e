"""Explains from marked windows as in `highlight`, beside windows in which the feature stays silent.

A near miss holds a token on which the feature fires elsewhere, so whatever sets it apart is in the text before
that token; other silent windows show what the corpus is like. Both keep the model from naming what is common to
all text, or a token alone where its context decides.
"""

from ..llm.render import fenced
from .ask import PromptExplainer, PromptFill
from .examples import Extent, active_windows, silent_windows
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
        silent = silent_windows(evidence, batch, examples, extent)
        places = {
            "windows": fenced(active_lines(examples, extent)),
            "near_misses": fenced(silent.lines(silent.near_misses)) if silent.near_misses else NONE_FOUND,
            "silent": fenced(silent.lines(silent.others)) if silent.others else NONE_FOUND,
        }
        windows = (*examples, *silent.examples)
        return PromptFill(places, tuple(e.window for e in windows), max(e.peak for e in examples))
