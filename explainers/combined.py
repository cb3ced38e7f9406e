"""Both sides in one prompt: the windows that `highlight` shows, and the tokens and continuations of `output`.

A feature that writes nothing is still explained, by what it responds to.
"""

from ..llm.prompt import Prompt
from ..llm.render import fenced
from ..subject.model import Subject
from .ask import Extent, PromptExplainer, Shown
from .examples import active_windows
from .explainer import TrainBatch, TrainEvidence
from .highlight import active_lines
from .output import SETTINGS, Beginnings, Writings, output_places


class Combined(PromptExplainer):
    """Explains what a feature responds to and what it makes the model write."""

    name = "combined"
    extent = Extent(top=7, quantile=3)

    def __init__(
        self,
        subject: Subject,
        *,
        prompt: Prompt | None = None,
        temperature: float | None = 0.0,
        draw: int = 0,
        rules: bool = True,
        language: Prompt | None = None,
    ) -> None:
        """`rules` invites a rule for what it responds to."""
        super().__init__(prompt=prompt, temperature=temperature, draw=draw, rules=rules, language=language)
        self._writings = Writings(subject)

    @property
    def settings(self) -> dict[str, object]:
        return {**super().settings, "output": SETTINGS}

    def show(self, evidence: TrainEvidence, batch: TrainBatch) -> Shown:
        """Marked windows, tokens and continuations."""
        examples = active_windows(evidence, top=self._extent.top, quantile=self._extent.quantile)
        places = {
            "windows": fenced(active_lines(examples, self._extent)),
            **output_places(self._writings, evidence.feature, batch),
        }
        seen = (*(example.window for example in examples), *Beginnings.of(batch.background).digests)
        return Shown(places, tuple(dict.fromkeys(seen)), max(example.peak for example in examples))
