"""Texts of the policy's own, token by token.

A text stands at the window's start; its item is the token that is marked with «», or the last one: it is fixed before
anything is measured. The control has the same tokens in another order, measured at the same position.
"""

import re
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, StringConstraints

from ...causal.measures import mean
from ...subject.errors import NeuronautError
from ..investigation.experiments import Control, Design, Item, Measured
from ..investigation.lab import FeatureLab
from .places import Drawn, excerpt, generator, silent_window

SHOWN = 64
"""Tokens of a text that are told with their values."""
_MARKED = re.compile("([^«»]*)(?:«([^«»]+)»([^«»]*))?")

Words = Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class TextsArgs(Drawn, frozen=True):
    texts: tuple[Words, ...] = Field(
        (), max_length=64, description="texts to run; «» around a token marks the one that is asked, else the last one"
    )


class RunTexts:
    """Runs texts that you write and reads the feature at every token. The marked («») or last token of each is what is
    predicted; gives the mean over texts."""

    name: ClassVar[str] = "run_texts"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "feature"
    survey: ClassVar[bool] = False
    args: type[TextsArgs] = TextsArgs

    def design(self, args: TextsArgs, lab: FeatureLab) -> Design:
        """One item for each text, filled up with corpus text, which a causal model does not see."""
        if not args.texts:
            raise NeuronautError('run_texts was given no text; wanted some, as in {"texts": ["the old «river»"]}')
        rng = generator(lab, args.seed, "texts")
        items, control = [], []
        for number, text in enumerate(args.texts, start=1):
            ids, pivot = _read(text, lab)
            filling = silent_window(lab, rng, position=pivot).tolist()
            window = (*ids, *filling[len(ids) :])
            about = {"text": number, "tokens": len(ids)}
            items.append(Item(f"text {number}: {excerpt(lab, ids, pivot)}", window, pivot, about))
            shuffled = rng.permutation(ids[: pivot + 1]).tolist()
            if shuffled != ids[: pivot + 1]:
                control.append([[*shuffled, *window[pivot + 1 :]], pivot])
        return Design("What does it do on these texts?", "response", tuple(items), {"control": control})

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """The mean at the asked tokens; `found` has the value of every token."""
        rows = lab.read(np.array([item.ids for item in design.items], np.int64)) / lab.scale
        values = tuple(round(float(row[item.pivot]), 5) for row, item in zip(rows, design.items, strict=True))
        average = mean(values, seed=lab.seed)
        texts = [
            {
                "tokens": [lab.vocabulary[token] for token in item.ids[: min(item.about["tokens"], SHOWN)]],
                "values": [round(float(value), 3) for value in row[: min(item.about["tokens"], SHOWN)]],
                "asked": item.pivot,
            }
            for item, row in zip(design.items, rows, strict=True)
        ]
        control = None
        if design.plan["control"]:
            found = lab.respond([Item("shuffled", tuple(ids), pivot) for ids, pivot in design.plan["control"]])
            quiet = mean(found, seed=lab.seed)
            control = Control("the same tokens in another order", quiet.value, *(quiet.interval or ()))
        return Measured(
            values, average.value, *(average.interval or (None, None)), n=len(values), units="share of the scale",
            normalised_by=lab.normalised_by, control=control, found={"texts": texts},
        )  # fmt: skip


def _read(text: str, lab: FeatureLab) -> tuple[list[int], int]:
    """Token ids of a text without its marks, and the position of the token that is asked."""
    parts = _MARKED.fullmatch(text)
    if parts is None:
        raise NeuronautError(f"{text[:60]!r} has more marks than one pair of «»; mark one token")
    before, marked, after = (part or "" for part in parts.groups())
    ids, head = lab.subject.encode(before + marked + after), lab.subject.encode(before + marked)
    if not head or len(ids) > lab.width:
        raise NeuronautError(f"{text[:60]!r} has {len(ids)} tokens; wanted 1 to {lab.width}, as windows have")
    if ids[: len(head)] != head:
        raise NeuronautError(f"the mark in {text[:60]!r} ends inside a token; mark whole tokens")
    return ids, len(head) - 1
