"""Untrusted text for a page: characters that do not print are spelled out, and what is very long is cut with a note."""

from typing import Any

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


def token(text: str) -> str:
    """A token on one line: line ends and tabs are signs, what is long is cut."""
    signs = cut(text, LONGEST_TOKEN).replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍")
    return spell(signs)
