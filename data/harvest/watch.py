"""What a harvest tells of its progress; imported by the command line, so it imports nothing heavy."""

from collections.abc import Callable

Told = Callable[[int, int], None]
"""Is told how much is done, and of how much."""


class Watch:
    """Is told how far a harvest is; this one does nothing with it."""

    def begins(self, done: int, of: int) -> None:
        """Of about so many tokens, so many were read before."""

    def read(self, tokens: int) -> None:
        """So many tokens are read."""

    def mined(self, windows: int, of: int) -> None:
        """The text is read; silent windows were looked for in so many windows."""

    def writes(self) -> None:
        """What is measured is now written to the store."""

    def ranked(self, features: int, of: int) -> None:
        """Beside the writing: of so many features the tokens that they raise were found. Called by another thread."""
