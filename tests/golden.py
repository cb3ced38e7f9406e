"""Golden files: renderings that change only on purpose.

`tests/golden/NAME.txt` holds the messages of a rendered prompt. Run the tests with NEURONAUT_GOLDEN=1 to write
them anew, and read the difference before committing it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from neuronaut.llm.types import Message

FOLDER = Path(__file__).parent / "golden"


def check(name: str, messages: Sequence[Message]) -> None:
    """Compare messages with the golden file of this name; each is `=== role ===`, then its content."""
    path, shown = FOLDER / f"{name}.txt", "".join(f"=== {m.role} ===\n{m.content}\n" for m in messages)
    if os.environ.get("NEURONAUT_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    assert path.exists(), f"no golden file {path}; write it with NEURONAUT_GOLDEN=1"
    assert shown == path.read_text(encoding="utf-8")
