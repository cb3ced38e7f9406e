"""Features and sources by the address in a path or a query; what is not there is a 404."""

from ..data.store.store import Store
from ..subject.address import Feature
from ..subject.errors import NeuronautError


class NotHere(NeuronautError):
    """What was asked for is not in the database."""


def find_feature(store: Store, address: str) -> Feature:
    """The feature of an address; NotHere where the database has none."""
    try:
        return store.feature(address)
    except NeuronautError as error:
        raise NotHere(str(error)) from error


def find_source(store: Store, name: str | None) -> str | None:
    """The source of a name, None for none or ""; NotHere where the database has none."""
    if not name:
        return None
    try:
        return store.known_source(name)
    except NeuronautError as error:
        raise NotHere(str(error)) from error
