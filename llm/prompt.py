"""Prompts are Markdown files: one file is one chat, and code only fills in what changes.

`## system`, `## user` and `## assistant` open a message; turns before the last are worked examples. `$name` is a
place to fill (`string.Template`; `$$` is a dollar). The values filled in are data: they are never searched for
places or headings, so text from a corpus cannot become an instruction's form. A prompt is identified by the
hash of its file, which is stored with every result.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Self

from ..subject.errors import NeuronautError
from .types import Message, Role

_HEADING = re.compile(r"^## (system|user|assistant)[ \t]*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A chat with places to fill."""

    name: str
    text: str
    """The file as it is."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a prompt file; its name is the file's without `.md`."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise NeuronautError(
                f"the prompt {path} cannot be read ({error}); give a Markdown file in UTF-8"
            ) from error
        prompt = cls(path.stem, text)
        prompt.messages()
        return prompt

    @property
    def hash(self) -> str:
        """The first 16 hex digits of SHA-256 over the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def places(self) -> frozenset[str]:
        """Names of the places to fill."""
        return frozenset(name for message in self.messages() for name in Template(message.content).get_identifiers())

    def messages(self) -> tuple[Message, ...]:
        """The messages, not filled in."""
        parts = _HEADING.split(self.text)
        roles, bodies = parts[1::2], parts[2::2]
        if not roles or roles[-1] != "user":
            raise NeuronautError(
                f"the prompt {self.name} ends with {roles[-1] if roles else 'no message'}; wanted headings "
                "`## system`, `## user` or `## assistant`, the last one `## user`"
            )
        return tuple(Message(_role(role), body.strip("\n")) for role, body in zip(roles, bodies, strict=True))

    def render(self, places: Mapping[str, str]) -> tuple[Message, ...]:
        """The messages with every place filled; an error where the prompt wants another place."""
        if unknown := sorted(self.places - places.keys()):
            raise NeuronautError(
                f"the prompt {self.name} has a place ${unknown[0]}, but there are: "
                f"{', '.join('$' + name for name in sorted(places))}; mend the prompt file"
            )
        try:
            return tuple(Message(m.role, Template(m.content).substitute(places)) for m in self.messages())
        except ValueError as error:
            raise NeuronautError(
                f"the prompt {self.name} has a lone dollar ({error}); write $$ for a dollar"
            ) from error


def _role(text: str) -> Role:
    return "system" if text == "system" else "user" if text == "user" else "assistant"
