"""Untrusted text for a page: characters that do not print are spelled out, and what is very long is cut with a note."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..agent.report.markup import TICKED, Html, el, join
from ..agent.report.report import short

LONGEST = 20_000
"""Characters of one text on a page."""
LONGEST_TOKEN = 200
"""Characters of one token on a page."""

_SPACES = {"\n", "\r\n", "\t"}


def shown(value: Any) -> Any:
    """What a template prints in place of a value: markup as it is, text without what commands a browser or the eye.

    Controls, ANSI escapes, and turns of the writing direction are spelled out; line ends stay.
    """
    if hasattr(value, "__html__") or not isinstance(value, str):
        return value
    return spell(cut(value, LONGEST))


def spell(text: str) -> str:
    r"""The text with every character that does not print spelled out, as `\u202e`; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in _SPACES else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def cut(text: str, longest: int) -> str:
    """The text, or its beginning with a note of how much there is."""
    return text if len(text) <= longest else f"{text[: longest // 2]}… (cut: {len(text):,} characters)"


def token(text: str) -> Html:
    """A token on one line: line ends and tabs are signs, and spaces that stand alone; what is long is cut."""
    return spaced(_sign_spaces(cut(text, LONGEST_TOKEN)).replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍"))


def spaced(text: str) -> Html:
    """The text, five spaces or more in a row as a sign and their number: else indentation is all that is seen."""
    pieces = _SPACE_RUN.split(spell(text))
    return join(el("small", f"␣{len(piece)}") if place % 2 else piece for place, piece in enumerate(pieces))


_SPACE_RUN = re.compile("( {5,})")

NOTHING = "–"
"""In place of a number that there is not."""
_PARTS = re.compile(r"(?:`[^`]*`|;(?! )|[^;`])+|`")
"""What stands between semicolons, those in backticks apart."""
_MARKED = re.compile("\ue000(.*?)\ue001", re.DOTALL)


def described(text: str | None) -> Html:
    """A description: tokens in backticks as code with their spaces kept, what a search matched as marks."""
    pieces = TICKED.split(cut(text or "", LONGEST))
    return join(_marks(piece) if place % 2 == 0 else _code(piece) for place, piece in enumerate(pieces))


def _code(text: str) -> Html:
    return el("code", _marks(_sign_spaces(text)))


def _sign_spaces(text: str) -> str:
    return text if text.strip(" ") else "␣" * len(text)


def matches(text: str | None) -> str:
    """The parts of a description that hold what a search matched; empty where none does."""
    return "; ".join(part.strip() for part in _PARTS.findall(text or "") if "\ue000" in part)


def _marks(text: str) -> Html:
    """The text with marks; one without its end, as where a match goes across a backtick, is left out."""
    pieces = [piece.replace("\ue000", "").replace("\ue001", "") for piece in _MARKED.split(text)]
    return join(el("mark", spaced(piece)) if place % 2 else spaced(piece) for place, piece in enumerate(pieces))


def _hundredths(value: float | None) -> str:
    return NOTHING if value is None else f"{value:z.2f}"


def _interval(row: Mapping[str, Any]) -> str:
    return NOTHING if row["ci_low"] is None else f"{row['ci_low']:z.2f} to {row['ci_high']:z.2f}"


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,}"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "described": described,
    "matches": matches,
    "token": token,
    "hundredths": _hundredths,
    "interval": _interval,
    "count": _count,
    "short": lambda value: NOTHING if value is None else short(value),
    "percent": lambda value: NOTHING if value is None else f"{value:.3%}",
    "day": lambda text: NOTHING if text is None else text[:16].replace("T", " "),
    "pretty": lambda value: json.dumps(value, ensure_ascii=False, indent=1),
    "words": lambda text: "KL" if text == "kl" else text.replace("_", " "),
}
"""What templates write values with."""
