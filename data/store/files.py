"""Files that appear under their name only when they are whole: a full disk or an interrupt leaves none half written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ...subject.errors import NeuronautError


@contextmanager
def open_whole(file: str | Path, *, make_folder: bool = False) -> Iterator[BinaryIO]:
    """Write FILE.partial, which takes the place of FILE after the block.

    With `make_folder`, its folder need not be there yet. After an exception FILE is as it was. What is there and is
    no file, as a pipe or a device, is written itself.
    """
    path = Path(file)
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                yield stream
            return
        # Of a link, what it points to is replaced.
        path = path.resolve()
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if path.exists():
                shutil.copymode(path, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise NeuronautError(
            f"{file} cannot be written ({error.strerror}), and nothing half written is left; "
            "make room there, or name a place elsewhere"
        ) from error
