"""JSON files that come with models and dictionaries: whatever is wrong with one is an error that names it."""

import json
from pathlib import Path
from typing import TypeVar

from .errors import NeuronautError

T = TypeVar("T")


def read_json(path: Path, kind: type[T], *, wanted: str) -> T:
    """The content of a file, which must be of this kind; `wanted` says so in words."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise NeuronautError(f"{path} is nested too deep to be read; wanted {wanted}") from error
    except (ValueError, OSError) as error:
        raise NeuronautError(f"{path} is not readable JSON ({error}); fetch it again") from error
    if not isinstance(content, kind):
        raise NeuronautError(f"{path} holds a {type(content).__name__}; wanted {wanted}")
    return content
