"""Corpus text as it stands in a prompt: exactly readable, and unable to become anything but data.

Every token is spelled on one line and back again without loss: a line feed is ↵, a tab ⇥, and each character
that does not print, or that a rendering uses itself (the marks « » ‹ ›, the cuts ⋯ and ·, ↵, ⇥ and ⟨), is its code
point, ⟨U+00AB⟩. So text holds no line break, no tab and no mark of ours, and whatever it contains, it stays within
its line, between its tabs and inside its marks; `fenced` puts around the lines a fence that none of them holds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from ..data.records import Example

STEPS = 10
"""Activations are shown as whole numbers from 0 to this."""
ACTIVE = 3
"""From this number on a token is marked as active."""
ACTIVE_MARKS, SILENT_MARKS = ("«", "»"), ("‹", "›")
"""Marks around active tokens, and around tokens that are pointed out for staying silent."""
CUT = "⋯"
"""The mark where a window is not shown to its end."""
WORD_CUT = "·"
"""The mark where a word is cut into tokens, so that descriptions of pieces of words can be understood."""

_SPELLED = {"\n": "↵", "\t": "⇥"}
_OWN = frozenset("".join((*ACTIVE_MARKS, *SILENT_MARKS, CUT, WORD_CUT, *_SPELLED.values(), "⟨")))


def spelled(text: str) -> str:
    """The text on one line, without a character that prompts use as a mark; different texts differ."""
    return "".join(_SPELLED.get(c) or (f"⟨U+{ord(c):04X}⟩" if c in _OWN or not c.isprintable() else c) for c in text)


def unspelled(text: str) -> str:
    """The text that `spelled` spelled; code points that no text can hold are left as they stand."""
    characters = {mark: character for character, mark in _SPELLED.items()}

    def decode(mark: re.Match[str]) -> str:
        code = int(mark[1] or "0", 16)
        return characters.get(mark[0]) or (chr(code) if code < 0xD800 or 0xE000 <= code <= 0x10FFFF else mark[0])

    return re.sub("⟨U\\+([0-9A-F]{4,6})⟩|[↵⇥]", decode, text)


def quantised(activations: NDArray[np.float32], highest: float) -> NDArray[np.int64]:
    """Whole numbers 0 to 10, `min(10, floor(10 relu(x) / highest))` as in Bills et al. 2023; 0 where `highest` is."""
    if highest <= 0:
        return np.zeros(activations.shape, np.int64)
    shares = np.maximum(activations.astype(np.float64), 0.0) * STEPS / highest
    return np.minimum(np.floor(shares), STEPS).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The part of an example that is shown."""

    example: Example
    first: int
    """Position of the first token shown."""
    last: int
    """Position after the last token shown."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens shown."""
        return self.example.tokens[self.first : self.last]

    @property
    def activations(self) -> NDArray[np.float32]:
        """Activations shown, (token,)."""
        return self.example.activations[self.first : self.last]


def excerpt(example: Example, *, before: int, after: int, pivot: int | None = None) -> Excerpt:
    """At most so many tokens before and after the pivot, which is the peak unless it is given."""
    pivot = int(example.activations.argmax()) if pivot is None else pivot
    return Excerpt(example, max(0, pivot - before), min(len(example.tokens), pivot + after + 1))


def token_list(part: Excerpt, highest: float, *, zeros: bool = True) -> list[str]:
    """A line for each token: the token, a tab, its activation from 0 to 10; without those at 0 unless `zeros`."""
    values = quantised(part.activations, highest)
    return [f"{spelled(t)}\t{v}" for t, v in zip(part.tokens, values, strict=True) if zeros or v]


Marks = Sequence[bool] | NDArray[np.bool_]
"""Which of the tokens shown are marked, one for each."""


def marked(part: Excerpt, marks: Marks, *, silent: Marks | None = None) -> str:
    """The text on one line with the tokens of `marks` in «», and of the others those of `silent` in ‹›.

    Neighbouring ones share a pair. ⋯ stands at an end where the window goes on, · inside a word that is cut there.
    """
    pointed = np.zeros(len(part.tokens), bool) if silent is None else silent
    ends = [ACTIVE_MARKS if on else SILENT_MARKS if off else ("", "") for on, off in zip(marks, pointed, strict=True)]
    runs = groupby(zip(part.tokens, ends, strict=True), key=lambda pair: pair[1])
    text = "".join(f"{left}{_run([token for token, _ in run])}{right}" for (left, right), run in runs)
    return (CUT if part.first else "") + text + (CUT if part.last < len(part.example.tokens) else "")


def _run(tokens: Sequence[str]) -> str:
    """Tokens as running text, with the places shown where a word is cut."""
    pairs = zip(tokens, ["", *tokens], strict=False)
    return "".join(
        WORD_CUT * (before[-1:].isalnum() and token[:1].isalnum()) + spelled(token) for token, before in pairs
    )


def active(activations: NDArray[np.float32], highest: float) -> NDArray[np.bool_]:
    """Which tokens are marked: those shown as `ACTIVE` or more where `highest` is shown as 10."""
    return quantised(activations, highest) >= ACTIVE


def strongest(part: Excerpt, highest: float, *, count: int) -> str:
    """The strongest active tokens with their activations, in the order of the text: `« self» 10, «,» 3`."""
    values = quantised(part.activations, highest)
    best = sorted(np.flatnonzero(values >= ACTIVE), key=lambda i: (-part.activations[i], i))[:count]
    return ", ".join(f"{ACTIVE_MARKS[0]}{spelled(part.tokens[i])}{ACTIVE_MARKS[1]} {values[i]}" for i in sorted(best))


def fenced(lines: Sequence[str]) -> str:
    """The lines between two fences of tildes, longer than any run of tildes in them."""
    longest = max((len(run) for line in lines for run in re.findall("~+", line)), default=0)
    fence = "~" * max(3, longest + 1)
    return "\n".join((fence, *lines, fence))
