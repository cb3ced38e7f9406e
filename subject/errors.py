"""The exceptions that a user is meant to read."""


class NeuronautError(Exception):
    r"""Something the user can mend: what came, what was wanted, what to do, in one line.

    >>> try:
    ...     Feature.parse("demo:mlp.1")
    ... except NeuronautError as error:
    ...     print("one line:", "\n" not in str(error))
    one line: True
    """


class UnknownNameError(NeuronautError):
    """A name that stands for nothing here; the message lists the names there are. Wrong usage on the command line."""
