"""Marked windows as in `highlight`, beside windows in which the feature stays silent.

A near miss holds a token on which the feature fires elsewhere, so whatever sets it apart is in the text before
that token; other silent windows show what the corpus is like. Both keep a reader from naming what is common to
all text, or a token alone where its context decides.
"""

from ..llm.render import SILENT_MARKS, excerpt, fenced, marked
from .ask import Extent, PromptExplainer, Shown
from .examples import Silent, active_windows, silent_windows
from .explainer import TrainBatch, TrainEvidence
from .highlight import active_lines

NONE_FOUND = "(none was found)"


class Contrastive(PromptExplainer):
    """Explains from marked windows and silent ones."""

    name = "contrastive"
    extent = Extent(top=8, quantile=3, near_misses=6, silent=3)

    def show(self, evidence: TrainEvidence, batch: TrainBatch) -> Shown:
        """Active windows, near misses, and other silent windows."""
        size = self._extent
        examples = active_windows(evidence, top=size.top, quantile=size.quantile)
        silent = silent_windows(evidence, batch, examples, near_misses=size.near_misses, others=size.silent)
        near, others = _silent_lines(silent, size, {e.tokens[int(e.activations.argmax())] for e in examples})
        places = {
            "windows": fenced(active_lines(examples, size)),
            "near_misses": fenced(near) if near else NONE_FOUND,
            "silent": fenced(others) if others else NONE_FOUND,
        }
        shown = (*examples, *(near.example for near in silent.near_misses), *silent.others)
        return Shown(places, tuple(e.window for e in shown), max(e.peak for e in examples))


def _silent_lines(silent: Silent, size: Extent, peaks: set[str]) -> tuple[list[str], list[str]]:
    near, others = [], []
    for i, (example, position) in enumerate(silent.near_misses, start=1):
        part = excerpt(example, before=size.before, after=size.after, pivot=position)
        near.append(f"{i}. {marked(part, [token in peaks for token in part.tokens], ends=SILENT_MARKS)}")
    for i, example in enumerate(silent.others, start=1):
        part = excerpt(example, before=size.before, after=size.after, pivot=min(size.before, len(example.tokens) - 1))
        others.append(f"{i}. {marked(part, [False] * len(part.tokens))}")
    return near, others
