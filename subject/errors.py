"""The exceptions that a user is meant to read."""


class NeuronautError(Exception):
    """Something the user can mend: what came, what was wanted, what to do, in one line."""


class UnknownNameError(NeuronautError):
    """A name that stands for nothing here; the message lists the names there are. Wrong usage on the command line."""
