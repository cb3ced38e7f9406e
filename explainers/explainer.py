"""What every explainer is: it sees the training side of some features, and nothing else, and describes each."""

from collections.abc import Mapping
from typing import Protocol

from ..data.records import Explanation
from .batch import TrainBatch
from .llm.asking import Asking
from .prompt import Prompt


class Explainer(Protocol):
    """Turns training examples into explanations, by asking a language model or without one."""

    @property
    def name(self) -> str:
        """What it is called after `-e`."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """What, beside the evidence and the language model, determines an explanation; hashes of prompts included."""
        ...

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts that it renders; none where it asks nobody."""
        ...

    def explain(self, batch: TrainBatch) -> list[Explanation] | Asking[list[Explanation]]:
        """One explanation per feature, in order; what cannot be explained has a status and a reason, no text."""
        ...
