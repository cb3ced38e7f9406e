"""The exceptions that a user is meant to read."""


class NeuronautError(Exception):
    r"""Something the user can mend: what came, what was wanted, what to do, in one line.

    >>> try:
    ...     Feature.parse("demo:mlp.1")
    ... except NeuronautError as error:
    ...     print("one line:", "\n" not in str(error))
    one line: True
    """

    def __str__(self) -> str:
        """The message, in which whatever does not print is spelled out: it may repeat text from anywhere."""
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


class UnknownNameError(NeuronautError):
    """A name that stands for nothing here; the message lists the names there are. Wrong usage on the command line."""
