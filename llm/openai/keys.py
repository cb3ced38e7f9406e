"""Keeps keys out of what is kept or shown of a server's text, since servers echo what they were sent.

What looks like a key is hidden in every text about an error. The keys that this process knows are hidden in whatever
comes, also cut short: any `PIECE` characters in a row of one are.
"""

import base64
import re
from collections.abc import Iterable
from urllib.parse import quote, urlsplit

HIDDEN = "[key]"
PIECE = 8
"""Characters of a known key that give it away. Shorter keys are placeholders, such as none or EMPTY."""

_LOOKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(Bearer|Basic)\s+[^\s\"',;}]{6,}", re.I), rf"\1 {HIDDEN}"),
    (re.compile(r"(://)[^/\s@]+(?=@)"), rf"\1{HIDDEN}"),
    (re.compile(r"([?&](?:[\w-]*key|[\w-]*token|code|sig|signature|password)=)[^&\s\"']+", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf|nvapi|pplx|r8|ghp)[-_][\w*.…-]{5,}|\bAIza[\w*.…-]{5,}"), HIDDEN),
    (
        re.compile(
            r"((?:(?:api|access|secret|auth|subscription)[-_ ]?(?:key|token)|authorization|password)"
            rf"[\"']?\s*(?:provided)?\s*[:=]\s*[\"']?)(?!Bearer|Basic|{re.escape(HIDDEN)})[^\s\"',;&}}]{{6,}}",
            re.I,
        ),
        rf"\1{HIDDEN}",
    ),
)


def hide_keys(text: str) -> str:
    """The text without what looks like a key."""
    for look, replacement in _LOOKS:
        text = look.sub(replacement, text)
    return text


def hide_login(url: str) -> str:
    """The URL without the name and password that it holds."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class KnownKeys:
    """The keys that a client sends, which come back from nowhere else."""

    def __init__(self, keys: Iterable[str]) -> None:
        spellings = {spelled for key in keys for spelled in (key, quote(key, safe=""), key.replace("/", "\\/"))}
        self._pieces = {key[start : start + PIECE] for key in spellings for start in range(len(key) - PIECE + 1)}

    @classmethod
    def of(cls, endpoint: str, api_key: str) -> "KnownKeys":
        """The API key, and the password in the endpoint's URL also as a header holds it."""
        login = urlsplit(endpoint).netloc.rpartition("@")[0]
        return cls([api_key, login.partition(":")[2], base64.b64encode(login.encode()).decode()])

    def hide(self, text: str) -> str:
        """The text without a known key or a part of one."""
        found = [piece for piece in self._pieces if piece in text]
        if not found:
            return text
        places = sorted(match.start() for piece in found for match in re.finditer(f"(?={re.escape(piece)})", text))
        parts, position = list[str](), 0
        for place in places:
            if place > position or not parts:
                parts += [text[position:place], HIDDEN]
            position = place + PIECE
        return "".join([*parts, text[position:]])
