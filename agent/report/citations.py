"""Text in which every number and every quote names its source, and a lint that finds those that do not.

A source stands in square brackets after what it is the source of: `0.94 (0.91 to 0.97) [o7]`. Names of sources are
experiments (o7, o2-o5), hypotheses (H2, for their words), and the parts of the journal in `PARTS`. Text is built
by `line` from plain words, which may hold neither numbers nor quotes, and from `Cited` pieces, which cannot be made
without a source. A citation covers what stands before it in its clause; clauses end at a semicolon, at a full stop
before a space, and at the end of the line. A number inside of a name (o7, H2, mlp.2, demo:mlp.2:17) is no number.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

PARTS = ("holdout", "roles", "baseline", "ledger", "chain", "controls", "journal")
"""Sources beside experiments and hypotheses: the reading of the holdout, the roles of nodes, the one-shot explanation,
what was spent, the predictions with their hashes, the negative controls, and all else that the journal says."""

_NAME = rf"(?:o\d+(?:-o\d+)?|H\d+|{'|'.join(PARTS)})"
_CITATION = re.compile(rf" ?\[({_NAME}(?:, {_NAME})*)\]")
_QUOTE = re.compile('“[^”]*”|"[^"]*"|`[^`]*`')
_NUMBER = re.compile(r"(?<![\w.:@/#-])[-+−±$]*(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?:st|nd|rd|th|[kMBx%])?(?!\w)")
_CLAUSE = re.compile(r";|\.(?=\s|$)|\n")


class Cited(NamedTuple):
    """A piece of text with its sources."""

    text: str
    sources: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.text} [{', '.join(self.sources)}]"


def cite(text: str, sources: Iterable[str]) -> Cited:
    """A number, with its interval and units, and where it comes from."""
    names = runs(sources)
    if unknown := [name for name in names if not re.fullmatch(_NAME, name)] or not names:
        raise ValueError(f"{text!r} has no source; came {unknown or names}, wanted names such as o7, H2 or holdout")
    return Cited(text, names)


def quote(text: str, sources: Iterable[str]) -> Cited:
    """Words of a policy, a model or the corpus, as they are, and where they come from."""
    return cite("“" + text.replace("“", '"').replace("”", '"') + "”", sources)


def cite_name(text: str) -> str | Cited:
    """A name as plain words where it reads as one, else as a quote from the journal."""
    return quote(text, ["journal"]) if find_uncited(text) else text


def line(*parts: str | Cited) -> str:
    """Joins the parts; a ValueError where plain words hold a number or a quote."""
    for part in parts:
        if isinstance(part, str) and (bare := find_uncited(part)):
            raise ValueError(f"{bare[0]!r} has no source; give it one with `cited` or `quoted`")
    return "".join(map(str, parts))


def find_uncited(text: str, known: Collection[str] | None = None) -> list[str]:
    """The numbers and quotes without a source, and with `known`, the sources that are none of these names."""
    held: list[str] = []

    def hold(match: re.Match[str]) -> str:
        held.append(match[0])
        return f"\x00{len(held) - 1}\x00"

    # What a quote holds is not looked into: neither its numbers nor what reads like a citation in it.
    masked = _QUOTE.sub(hold, text.replace("\x00", ""))
    missing: list[str] = []
    for clause in _CLAUSE.split(masked):
        *covered, bare = _CITATION.sub("\x01", clause).split("\x01")
        del covered
        missing += [held[int(m[1])] if m[1] else m[0] for m in re.finditer(f"\x00(\\d+)\x00|{_NUMBER.pattern}", bare)]
    if known is not None:
        missing += [name for names in _CITATION.findall(masked) for name in _missing(names, known)]
    return missing


def runs(names: Iterable[str]) -> tuple[str, ...]:
    """Shortens names: three or more experiments in a row become one, so o1, o2, o3, o5 are o1-o3, o5."""
    names = list(names)
    experiments = sorted({int(name[1:]) for name in names if re.fullmatch(r"o\d+", name)})
    others = [name for name in dict.fromkeys(names) if not re.fullmatch(r"o\d+", name)]
    groups: list[list[int]] = []
    for number in experiments:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return (*(name for group in groups for name in _run(group)), *others)


def _run(group: Sequence[int]) -> list[str]:
    return [f"o{group[0]}-o{group[-1]}"] if len(group) > 2 else [f"o{number}" for number in group]


def _missing(names: str, known: Collection[str]) -> list[str]:
    ends = [end for name in names.split(", ") for end in name.split("-")]
    return [end for end in ends if end not in known and end not in PARTS]


def visible(text: str) -> str:
    """The text on one line, with every character that does not print spelled out."""
    return "".join(_SPELLED.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


_SPELLED = {"\n": "↵", "\t": "⇥"}
