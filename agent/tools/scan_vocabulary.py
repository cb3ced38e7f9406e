"""Scans of the vocabulary: every token at one offset from the pivot, so that exceptions and further causes show."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field
from torch.nn.functional import normalize

from ...rules.english import visible
from ...rules.language import Token
from ..loop.experiments import Design, Measured
from ..loop.feature_lab import FeatureLab
from .base import FeatureTool
from .places import ACTIVE, Carried, Where, common_tokens, find_places, special_tokens, training_windows
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

KNOWN = 20
"""Tokens that stand at the offset before active places, whose neighbours in the embedding are tried first."""


class ScanArgs(Carried, Expecting, frozen=True):
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
    """Puts every token of the vocabulary at an offset from the pivot, in windows where the feature fires or in near
    misses. Gives the share of tokens that flip it, and which: the decisive test for token sets, exceptions (offset -1,
    near_miss) and second causes (offset 0, near_miss).
    """

    name = "scan_vocabulary"

    def design(self, args: ScanArgs, lab: FeatureLab) -> Design:
        """Every chosen token in every carrier."""
        back = -args.offset
        # The first token is the control's, so it is never the scan's.
        carriers = find_places(lab, args.carriers, args.count, before=back + 1, windows=args.windows, seed=args.seed)
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
            f"What happens when {what} replaced, in {len(carriers)} {args.carriers.replace('_', ' ')} windows?",
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
    special = special_tokens(lab)
    every = [token for token, text in enumerate(lab.vocabulary) if token not in special and text]
    if len(every) <= each:
        return every, "nothing"
    allowed = set(every)
    shares = (_named_by_rules(lab), _nearest(lab, back, allowed), common_tokens(lab))
    chosen: dict[int, None] = {}
    for number, part in enumerate(shares, start=1):
        room = each * number // 4
        for token in part:
            if len(chosen) >= room:
                break
            if token in allowed:
                chosen.setdefault(token)
    rest = [token for token in every if token not in chosen]
    even = np.linspace(0, len(rest) - 1, each - len(chosen)).round().astype(int)
    tokens = sorted({*chosen, *(rest[i] for i in even)})
    return tokens, (
        f"{len(every) - len(tokens)} of {len(every)} tokens: taken were those that rivals name, the nearest to known "
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


def _nearest(lab: FeatureLab, back: int, allowed: set[int]) -> list[int]:
    """Tokens by the cosine of their input embedding with the nearest of those that stand there at active places."""
    windows = training_windows(lab)
    rows, positions = np.nonzero(windows.values[:, back:] >= ACTIVE)
    counts = np.bincount(windows.ids[rows, positions])
    causes = np.argsort(-counts, kind="stable")[: min(KNOWN, np.count_nonzero(counts))]
    table: Any = lab.subject.model.get_input_embeddings()
    vectors = normalize(table.weight.detach().float(), dim=1)
    likeness = (vectors @ vectors[causes.tolist()].T).amax(dim=1)
    return [token for token in likeness.argsort(descending=True, stable=True).tolist() if token in allowed]
