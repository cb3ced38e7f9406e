"""The names of sources and features: `MODEL:SITE[@DICTIONARY]:INDEX[-]`.

A source is named without the index. A selection names many features of one source: an index, a
range `0-99` (both ends included), a list `5,17,40-60`, `all`, `alive` or `random:100`, each with
an optional trailing `-` for the negative tail. A model or a dictionary called `NAME~random-SEED` is NAME with every
matrix drawn again (randomize.py).
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

from .errors import NeuronautError

_SOURCE = re.compile(
    # Half of a surrogate pair is no character, and cannot be stored.
    r"(?P<model>[^:@\s\ud800-\udfff]+):(?P<site>[a-z_]+(\.[0-9]{1,9})?)(@(?P<dictionary>[^:@\s\ud800-\udfff]+))?"
)
_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
LONGEST_NAME = 200
"""Characters of a model's or a dictionary's name."""
_RANDOM = re.compile(r"(?P<base>.+)~random-(?P<seed>[0-9]{1,9})", re.DOTALL)
_MOST_INDICES = 2**24
"""How many features a list of indices may name; a source as wide as that is meant by `all`."""


@lru_cache(maxsize=1024)
def check_name(name: str, *, what: str, parts: int = 1) -> None:
    """Refuse a name that would be a path, an option or a terminal's command where it is used.

    `parts` is how many names a `/` may join, two for OWNER/NAME.

    >>> check_name("google/gemma-3-270m", what="model", parts=2)
    """
    pieces = name.split("/")
    faults = {
        "is empty": not name,
        f"has {len(name)} characters, wanted at most {LONGEST_NAME}": len(name) > LONGEST_NAME,
        "holds characters that do not print": not name.isprintable(),
        "begins with -": name.startswith("-"),
        "has a part that is empty, . or ..": any(piece in ("", ".", "..") for piece in pieces),
        "reads as a path": len(pieces) > parts or "\\" in name,
    }
    if fault := next((fault for fault, holds in faults.items() if holds), None):
        raise NeuronautError(f"the {what} name {name[:LONGEST_NAME]!r} {fault}; give another, such as gpt2 or res-jb")


def harvest_command(model: str, site: str = "SITE") -> str:
    """The command that harvests a site, with all that it needs: only the built-in model has a corpus of its own.

    >>> harvest_command("gpt2", "mlp.5")
    'neuronaut harvest gpt2 mlp.5 --corpus FILE'
    """
    return f"neuronaut harvest {model} {site}{'' if split_random(model)[0] == 'demo' else ' --corpus FILE'}"


def split_random(name: str) -> tuple[str, int | None]:
    """The name before `~random-SEED`, and the seed; the name itself and None where it has no such ending.

    >>> split_random("demo~random-3"), split_random("demo")
    (('demo', 3), ('demo', None))
    """
    match = _RANDOM.fullmatch(name)
    return (name, None) if match is None else (match["base"], int(match["seed"]))


def name_random(name: str, seed: int) -> str:
    """The name of what `name` is with its matrices drawn again from `seed`."""
    return f"{name}~random-{seed}"


@dataclass(frozen=True, slots=True)
class SourceId:
    """The name of a family of features at a site.

    >>> str(SourceId.parse("demo:resid_post.2@sae"))
    'demo:resid_post.2@sae'
    """

    model: str
    site: str
    dictionary: str | None = None
    """Name of the SAE or transcoder; None for the neurons (or coordinates) themselves."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `gpt2:mlp.5` or `gpt2:resid_pre.8@res-jb`; anything else is a NeuronautError."""
        if (match := _SOURCE.fullmatch(text)) is None:
            raise NeuronautError(f"{text!r} is not MODEL:SITE or MODEL:SITE@NAME; an example: gpt2:mlp.5")
        return cls(match["model"], match["site"], match["dictionary"])

    @property
    def trained(self) -> Self:
        """The source of which this one is a control with random matrices; itself where it is none."""
        dictionary = self.dictionary and split_random(self.dictionary)[0]
        return replace(self, model=split_random(self.model)[0], dictionary=dictionary)

    def check(self) -> None:
        """Refuse names that are not safe as names of files: every way into a database checks them (NeuronautError)."""
        check_name(self.model, what="model", parts=2)
        if self.dictionary is not None:
            check_name(self.dictionary, what="dictionary")

    def __str__(self) -> str:
        return f"{self.model}:{self.site}" + (f"@{self.dictionary}" if self.dictionary else "")


@dataclass(frozen=True, slots=True)
class Feature:
    """The address of one unit of a source.

    >>> feature = Feature.parse("demo:resid_post.2@sae:40")
    >>> feature.source.dictionary, feature.index, feature.negative
    ('sae', 40, False)
    """

    source: SourceId
    index: int
    negative: bool = False
    """Whether the negative tail is meant: what drives the activation far below zero."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `gpt2:mlp.5:131`, with a trailing `-` for the negative tail; anything else is a NeuronautError."""
        source, _, index = text.rpartition(":")
        if not re.fullmatch(r"[0-9]{1,9}-?", index):
            raise NeuronautError(f"{text!r} is not MODEL:SITE:INDEX; an example: gpt2:mlp.5:131")
        return cls(SourceId.parse(source), int(index.rstrip("-")), index.endswith("-"))

    def __str__(self) -> str:
        return f"{self.source}:{self.index}{'-' if self.negative else ''}"


@dataclass(frozen=True, slots=True)
class Selection:
    """Many features of one source, still to be resolved against what the store holds.

    >>> Selection.parse("demo:mlp.1:0-2").indices
    (0, 1, 2)
    """

    source: SourceId
    kind: str
    """One of "indices", "all", "alive", "random"."""
    indices: tuple[int, ...] = ()
    count: int = 0
    """How many features to draw; only for kind "random"."""
    negative: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `gpt2:mlp.5:0-99`, `gpt2:mlp.5:alive`, `gpt2:mlp.5:random:100`; a bare source means `alive`."""
        if match := re.fullmatch(r"(?P<source>.+):random:(?P<count>[1-9][0-9]{0,8})(?P<negative>-?)", text):
            source = SourceId.parse(match["source"])
            return cls(source, "random", count=int(match["count"]), negative=bool(match["negative"]))
        if _SOURCE.fullmatch(text):
            return cls(SourceId.parse(text), "alive")
        source, colon, selector = text.rpartition(":")
        if not colon or not _SOURCE.fullmatch(source):
            raise _no_features(text)
        negative = selector.endswith("-")
        selector = selector.removesuffix("-")
        if selector in ("all", "alive"):
            return cls(SourceId.parse(source), selector, negative=negative)
        return cls(SourceId.parse(source), "indices", _indices(text, selector), negative=negative)


def _no_features(text: str) -> NeuronautError:
    return NeuronautError(
        f"{text!r} does not name features; wanted MODEL:SITE:INDEX, such as gpt2:mlp.5:131, with an index like 131, "
        "0-99, 5,17,40-60, all, alive or random:100"
    )


def _indices(text: str, selector: str) -> tuple[int, ...]:
    indices: list[int] = []
    for part in selector.split(","):
        match = _PART.fullmatch(part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise _no_features(text)
        span = range(int(match[1]), int(match[2] or match[1]) + 1)
        if len(indices) + len(span) > _MOST_INDICES:
            raise NeuronautError(f"{text!r} names more than {_MOST_INDICES:,} features; wanted fewer at a time, or all")
        indices.extend(span)
    return tuple(dict.fromkeys(indices))
