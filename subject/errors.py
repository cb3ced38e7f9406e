"""The one exception that a user is meant to read."""


class NeuronautError(Exception):
    """Something the user can mend: what came, what was wanted, what to do, in one line."""
