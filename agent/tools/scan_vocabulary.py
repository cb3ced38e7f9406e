"""Scans of the vocabulary: every token at one offset from the pivot, so that exceptions and further causes show."""

from collections import Counter
from dataclasses import replace

from pydantic import Field

from ...explainers.battery.measurements import choose_tokens
from ...rules.english import visible
from ...rules.language import Token
from ..loop.experiments import Design, Measured
from ..loop.feature_lab import FeatureLab
from .base import FeatureTool
from .places import OfClaim, Where, find_places, tell_pivots
from .window_edits import (
    FLIPS_SHOWN,
    Expecting,
    changed_copy,
    conditions,
    design_changes,
    filter_by_expectation,
    flipped,
    measure_changes,
)


class ScanArgs(OfClaim, Expecting, frozen=True):
    """Arguments of `scan_vocabulary`."""

    offset: int = Field(0, le=0, ge=-32, description="where the token is put: 0 replaces the pivot, -1 the one before")
    carriers: Where = Field(
        "active",
        description="active: windows where it fires; near_miss: silent places of tokens on which it fires; silent: of "
        "other tokens",
    )
    count: int = Field(3, ge=1, le=12, description="how many carriers, each of another pivot token where possible")
    most: int = Field(900, ge=10, le=20000, description="most windows to run; of a larger vocabulary a part is taken")


class ScanVocabulary(FeatureTool[ScanArgs]):
    """Puts every token of the vocabulary at an offset from the pivot. In windows where the feature fires, or in near
    misses; gives the share of tokens that flip it, and which: the decisive test for token sets, exceptions (offset -1,
    near_miss) and second causes (offset 0, near_miss).
    """

    name = "scan_vocabulary"

    def design(self, args: ScanArgs, lab: FeatureLab) -> Design:
        """Every chosen token in every carrier."""
        back = -args.offset
        # The first token is the control's, so it is never the scan's.
        carriers = find_places(
            lab, args.carriers, args.count, before=back + 1, windows=args.windows, seed=args.seed, about=args.about
        )
        tokens, left_out = _tokens(lab, back, each=max(args.most // len(carriers), 1))
        items = [
            changed_copy(
                place,
                place.put(place.pivot - back, token),
                carrier=number,
                label=f"{visible(lab.vocabulary[token])} at {args.offset} of carrier {number}",
                group=f"carrier {number}",
                put=lab.vocabulary[token],
            )
            for number, place in enumerate(carriers, start=1)
            for token in tokens
        ]
        items = filter_by_expectation(lab, items, args.expect)
        what = "the pivot token itself is" if back == 0 else f"the token {back} before the pivot is"
        return design_changes(
            f"What happens when {what} replaced, in {len(carriers)} {args.carriers.replace('_', ' ')} windows of "
            f"{tell_pivots(lab, carriers)}?",
            lab,
            carriers,
            items,
            seed=args.seed,
            about={"tokens": len(tokens), "left_out": left_out},
        )

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The share of tokens that flip the carrier, and the tokens that flip most carriers."""
        measured = measure_changes(design, lab)
        flips = flipped(measured.values, [item.about["was"] for item in design.items])
        tried = Counter(item.about["put"] for item in design.items)
        counts = Counter(item.about["put"] for item, flip in zip(design.items, flips, strict=True) if flip)
        common = {token: count for token, count in counts.most_common(FLIPS_SHOWN) if 2 * count > tried[token]}
        return replace(measured, found={**measured.found, "flipping most carriers": common})


def _tokens(lab: FeatureLab, back: int, *, each: int) -> tuple[list[int], str]:
    """Token ids to try, and what was left out."""
    chosen = choose_tokens(lab, back, most=each, named=_named_by_rules(lab))
    if not chosen.left_out:
        return chosen.tokens, "nothing"
    return chosen.tokens, (
        f"{chosen.left_out} of {chosen.every} tokens: taken were those that rivals name, the nearest to known "
        "causes, the most frequent ones, and an even sample of the rest"
    )


def _named_by_rules(lab: FeatureLab) -> list[int]:
    """Tokens that the rules of rivals name."""
    names: set[str] = set()
    for hypothesis in lab.rivals.values():
        if hypothesis.rule is not None:
            tokens = [part for part in conditions(hypothesis.rule) if isinstance(part, Token)]
            names |= {text for token in tokens for text in token.any}
    return [token for token, text in enumerate(lab.vocabulary) if text in names]
