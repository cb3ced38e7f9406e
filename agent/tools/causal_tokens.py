"""What a feature writes, read off the weights: no text is run."""

from typing import ClassVar, Literal

from pydantic import Field

from ...subject.address import Feature
from ...subject.directions import Promoted, direction, promoted
from ...subject.errors import NeuronautError
from ..investigation.experiments import Design, Measured
from ..investigation.lab import FeatureLab
from .causal_effects import among
from .places import Drawn, generator

OTHERS = 50
"""Features of the same source that it is compared with."""


class PromotedArgs(Drawn, frozen=True):
    """Arguments of `promoted_tokens`."""

    count: int = Field(10, ge=1, le=50, description="tokens to list at either end")


class PromotedTokens:
    """Looks up, in the weights, which tokens the feature raises and lowers on its direct path to the output. The
    headline is how many standard deviations of the vocabulary the top token stands out by; other features of the same
    source are the control. Later layers may undo or add to this: `ablate` and `steer` measure it."""

    name: ClassVar[str] = "promoted_tokens"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "feature"
    survey: ClassVar[bool] = True
    args: type[PromotedArgs] = PromotedArgs

    def design(self, args: PromotedArgs, lab: FeatureLab) -> Design:
        width, own = lab.source.width, lab.feature.index
        drawn = generator(lab, args.seed, "other features").permutation(width)
        others = [index for index in drawn.tolist() if index != own][:OTHERS]
        question = f"Which tokens does the direction that {lab.target} writes raise and lower?"
        return Design(question, "effect", (), {"count": args.count, "others": others})

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        own = promoted(lab.subject, lab.source, lab.feature, count=design.plan["count"])
        if not own.top:
            raise NeuronautError(f"{lab.target} writes nothing that reaches the output directly; ablate or steer it")
        others = [
            promoted(lab.subject, lab.source, Feature(lab.source.id, index, lab.feature.negative), count=1)
            for index in design.plan["others"]
        ]
        writing = [_outstanding(one) for one in others if one.top]
        height = _outstanding(own)
        what = f"{len(writing)} other features of {lab.source.id}"
        control, rank = among(height, writing, what) if writing else (None, {})
        exact = direction(lab.subject, lab.source, lab.feature).exact
        found = {
            name: [{"token": one.token, "deviations": round(one.value / own.spread, 3)} for one in part]
            for name, part in (("raises", own.top), ("lowers", own.bottom))
        }
        return Measured(
            (), height, None, None, len(lab.vocabulary), "standard deviations over the vocabulary",
            "standard deviation over the vocabulary of what the direction adds to logits", control,
            {**found, "exact": exact, "others_that_write_nothing": len(others) - len(writing), **rank},
        )  # fmt: skip


def _outstanding(found: Promoted) -> float:
    return found.top[0].value / found.spread
