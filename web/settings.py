"""What a server may do, and where it listens."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from ..subject.errors import NeuronautError


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """The language model that sessions may ask."""

    name: str
    """As `-m` has it."""
    options: tuple[str, ...]
    """The options of a command that name it."""
    limits: Mapping[str, float]
    """The most that all sessions together may cost: any of usd, tokens and calls."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How `neuronaut serve` was started."""

    database: str
    """Path of the database file."""
    model: str | None = None
    """Where the model lies, if not where it was harvested from."""
    allow_compute: bool = False
    """Whether visitors may run the model."""
    allow_write: bool = False
    """Whether visitors may add and rate explanations."""
    language: LanguageModel | None = None
    """What sessions may ask; None for sessions that ask nobody."""
    token: str | None = None
    """What a visitor must show; None asks for nothing, which only a loopback address may do."""
    host: str = "127.0.0.1"
    port: int = 8420

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise NeuronautError(f"the token has {len(self.token)} characters; wanted at least {SHORTEST_TOKEN}")
        if self.token is None and not self.loopback:
            raise NeuronautError(
                f"others can reach {self.host}; add --token SECRET, or leave --host out to listen on this machine alone"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.host)


SHORTEST_TOKEN = 12
"""Characters."""


def is_loopback(host: str) -> bool:
    """Whether a name or address, without its port, is this machine's own."""
    bare = host.strip("[]").rstrip(".").lower()
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False
