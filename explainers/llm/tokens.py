"""How many tokens a text comes to for a model whose tokenizer is not at hand.

Today's byte-pair tokenizers first cut text into much the same pieces: a word with the one sign before it, three
digits, signs with the blank before and the line ends after, white space. One pattern finds them, and each is
a token per so many characters. On English, Python, JSON and lists of tokens the sum is within 12% of cl100k's,
o200k's and DeepSeek's (measured); on other scripts it is up to 60% too high.
"""

import math
import re
from collections.abc import Sequence

from .values import Message

_PIECE = re.compile(
    r"(?P<word>(?:[ _]|[^\w\s])?(?:[A-Z]?[a-z]+|[A-Z]+))"
    r"|(?P<digits>[0-9]{1,3})"
    r"| ?(?P<signs>(?:(?=[\x00-\x7f])(?:[^\w\s]|_))+)\n*"
    r"|(?P<foreign>[^\x00-\x7f]+)"
    r"|(?P<space>\s+(?=\s)|\s+)"
)
_PER_TOKEN = {"word": 6, "digits": 3, "signs": 2, "foreign": 2.5, "space": 1}
"""Characters per token of a piece, blanks around it aside."""

_WORD = 9
"""Characters of the longest word that is still one token."""

MESSAGE, REPLY = 4, 3
"""Tokens that mark a message, and the place of the reply."""


def estimate(text: str) -> int:
    """Tokens of a text, roughly."""
    return sum(_tokens(piece) for piece in _PIECE.finditer(text))


def estimate_chat(messages: Sequence[Message]) -> int:
    """Tokens of a chat, roughly."""
    return sum(estimate(message.content) + MESSAGE for message in messages) + REPLY


def _tokens(piece: re.Match[str]) -> int:
    kind, length = piece.lastgroup or "space", len(piece.group().strip())
    return 1 if kind == "word" and length <= _WORD else max(1, math.ceil(length / _PER_TOKEN[kind]))
