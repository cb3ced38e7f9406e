"""Explains the input and the output side in one prompt: the windows of `highlight`, the tokens and continuations of
`output`.

A feature that writes nothing is still explained, by what it responds to.
"""

from ..llm.prompt import Prompt
from ..llm.render import fenced
from ..subject.model import Subject
from .ask import PromptExplainer, PromptFill
from .examples import Extent, active_windows
from .explainer import TrainBatch, TrainEvidence
from .highlight import active_lines
from .output import SETTINGS, Beginnings, OutputEffects, fill_output_places


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
        self._effects = OutputEffects(subject)

    @property
    def settings(self) -> dict[str, object]:
        """The settings of every prompt explainer, and those of the output side."""
        return {**super().settings, "output": SETTINGS}

    def fill(self, evidence: TrainEvidence, batch: TrainBatch) -> PromptFill:
        """Fill in marked windows, tokens and continuations."""
        examples = active_windows(evidence, top=self._extent.top, quantile=self._extent.quantile)
        places = {
            "windows": fenced(active_lines(examples, self._extent)),
            **fill_output_places(self._effects, evidence.feature, batch, in_words=True),
        }
        digests = (*(example.window for example in examples), *Beginnings.of(batch.background).digests)
        return PromptFill(places, tuple(dict.fromkeys(digests)), max(example.peak for example in examples))
