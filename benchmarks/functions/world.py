"""The functions of a seed as a world: a subject without a model, text, and the truth about each unit."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache, partial

from ...subject.address import SourceId
from ...subject.function_subject import SITE, FunctionSubject
from ...subject.functions import PythonFunctions
from ...subject.sources import Neurons
from ...subject.words import frequent_words, word_tokenizer
from ..suite.truth import Cause, Unit
from ..suite.world import World
from .kinds import Kind, draw_kinds
from .texts import documents


@lru_cache(maxsize=4)
def build_world(seed: str, *, level: int, count: int = 160) -> World:
    """The functions of a level, and a corpus of so many documents of about 200 tokens."""
    key = hashlib.sha256(f"functions {seed}".encode()).hexdigest()
    kinds = [kind for kind in draw_kinds(seed) if kind.level == level]
    texts = documents(count, seed=key)
    # Also of those that only unit tests have.
    words = frequent_words(documents(count, seed="every word", whole=True))
    name = f"functions{level}-{key[:8]}"
    units = tuple(_make_unit(kind, index, name) for index, kind in enumerate(kinds))
    calls = {f"f{index}": partial(_run, unit) for index, unit in enumerate(units)}
    subject = FunctionSubject(PythonFunctions(calls, digest=f"{key} {level}"), word_tokenizer(words), name=name)
    source = Neurons(SourceId(name, SITE), len(units))
    return World(level, subject, source, texts, units)


def _run(unit: Unit, tokens: Sequence[str]) -> list[float]:
    return unit.truth(tokens)


def _make_unit(kind: Kind, index: int, model: str) -> Unit:
    """The truth. Causes and exceptions tell the words that edits prefer (suite/pairs.py); the condition decides."""
    causes = (Cause(here=kind.here, before=kind.before),) if kind.here or kind.before else ()
    return Unit(
        name=f"{kind.kind} {index}",
        kind=kind.kind,
        level=kind.level,
        address=f"{model}:{SITE}:{index}",
        index=index,
        description=kind.description,
        condition=kind.condition,
        scale=1.0,
        causes=causes,
        exceptions=(Cause(before=kind.unless),) if kind.unless else (),
    )
