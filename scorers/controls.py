"""The texts that a judge is asked about: the explanation, and on some features two controls beside it.

The controls say what a judge's score is worth: without an explanation (role "empty", the floor that the texts alone
allow), and with another feature's ("shuffled"). They cost twice as much as the score itself and say the same of
every feature, so they are judged on a sample of features unless all are wanted. Whether a feature is in the sample
depends on the feature alone: a run that is stopped and given again judges the same ones.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from ..data.records import Role
from ..subject.address import Feature
from .scorer import Case

SHARE = 10
"""Of so many features one is in the sample."""
ControlMode = Literal["all", "sample", "none"]


@dataclass(frozen=True, slots=True)
class Controls:
    """Which features' controls are judged.

    >>> Controls("none").include(Feature.parse("demo:mlp.1:17"))
    False
    """

    mode: ControlMode = "sample"
    first: Feature | None = None
    """In the sample, whatever its hash: the first feature of a run, so that a short run has some."""

    def include(self, feature: Feature) -> bool:
        """Whether this feature's controls are judged."""
        drawn = int.from_bytes(hashlib.sha256(str(feature).encode()).digest()[:8]) % SHARE == 0
        return self.mode == "all" or self.mode == "sample" and (drawn or feature == self.first)


ALL, SAMPLE, NONE = Controls("all"), Controls("sample"), Controls("none")


def judged_texts(case: Case, *, controls: Controls, nothing: str) -> dict[Role, str]:
    """The texts to judge, each on one line, by role.

    There is none where the explanation has no text, and no "shuffled" where there is no other explanation.
    `nothing` stands for the explanation in the role "empty".
    """
    if not case.explanation.text:
        return {}
    texts: dict[Role, str | None] = {"explanation": case.explanation.text}
    if controls.include(case.explanation.feature):
        texts |= {"empty": nothing, "shuffled": case.other and case.other.text}
    return {role: " ".join(text.split()) for role, text in texts.items() if text is not None}
