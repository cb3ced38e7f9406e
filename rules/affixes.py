"""What tokens have in common: the word they spell, how they begin, how they end.

A family maps every string of a vocabulary to what its members share, so that the sums of all members are one
`bincount`. Each member is a condition of the rule language that also holds for tokens never seen: a regular
expression, or the exact token for the family of tokens themselves.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .language import Regex, Token

LONGEST = 100
"""Characters that a regular expression may have."""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One way in which tokens are alike."""

    name: str
    members: tuple[str, ...]
    """What is shared, by code."""
    codes: NDArray[np.int32]
    """The member that each token id belongs to, the number of members for none; the last entry is "no token"."""

    def only(self, ids: NDArray[np.integer]) -> "Family":
        """The family among some token ids (id,), with codes by place in `ids`, and the members that occur there."""
        found, codes = np.unique(self.codes[ids], return_inverse=True)
        members = tuple(self.members[code] for code in found.tolist() if code < len(self.members))
        return Family(self.name, members, np.array([*codes.tolist(), len(members)], np.int32))

    def condition(self, members: Sequence[str], *, at: int) -> Token | Regex | None:
        """The token at an offset is one of these members; None where no pattern of allowed length says so."""
        if self.name == "token":
            return Token(any=tuple(members), at=at)
        pattern = _PATTERNS[self.name](members)
        return Regex(pattern=pattern, at=at) if len(pattern) <= LONGEST else None


def _alternatives(members: Sequence[str]) -> str:
    escaped = [re.escape(member) for member in members]
    return escaped[0] if len(escaped) == 1 else f"(?:{'|'.join(escaped)})"


_PATTERNS: dict[str, Callable[[Sequence[str]], str]] = {
    "word": lambda members: rf"(?i)^\s?{_alternatives(members)}$",
    "beginning": lambda members: f"^{_alternatives(members)}",
    "ending": lambda members: f"{_alternatives(members)}$",
}


def _word(token: str) -> str | None:
    body = token[1:] if token[:1].isspace() else token
    return body.lower() if body.isalpha() and body.lower().upper().lower() == body.lower() else None


def _beginning(length: int) -> Callable[[str], str | None]:
    def begins(token: str) -> str | None:
        start = token[:length]
        return start if len(token) >= length and start.strip().isalpha() and start == start.rstrip() else None

    return begins


def _ending(length: int) -> Callable[[str], str | None]:
    def ends(token: str) -> str | None:
        end = token[-length:]
        return end if len(token) >= length and end.isalpha() else None

    return ends


_SHARED: tuple[tuple[str, Callable[[str], str | None]], ...] = (
    ("token", lambda token: token),
    ("word", _word),
    *(("beginning", _beginning(length)) for length in (5, 4, 3, 2)),
    *(("ending", _ending(length)) for length in (4, 3, 2, 1)),
)


def families(vocabulary: Sequence[str]) -> tuple[Family, ...]:
    """The families of a vocabulary; a member that a single string has belongs to the family of tokens alone."""
    found = []
    for name, share in _SHARED:
        shared = [share(token) for token in vocabulary]
        counts: dict[str, int] = {}
        for member in shared:
            if member is not None:
                counts[member] = counts.get(member, 0) + 1
        members = [member for member, count in counts.items() if name == "token" or count > 1]
        code = {member: i for i, member in enumerate(members)}
        codes = [len(members) if member is None else code.get(member, len(members)) for member in shared]
        found.append(Family(name, tuple(members), np.array([*codes, len(members)], np.int32)))
    return tuple(found)
