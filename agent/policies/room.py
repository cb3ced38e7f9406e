"""Text of a bounded size: lines that are cut, sections of which the first parts are shown, tables row by row.

Whatever came from a corpus, a model or a measurement is spelled so that it stays data (render.py), and once only:
what is spelled is never spelled again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...explainers.llm.tokens import estimate
from ...explainers.render import ACTIVE_MARKS, CUT, fenced, spelled

LINE, LONG = 300, 800
"""Characters of a line, and of one that holds a claim, a rule or what an experiment came to."""
WHOLE_RULE = 1500
"""Characters of a rule, or of a text, that was found."""
NOTHING = "(none)"


def section(blocks: Iterable[Sequence[str]], count: int, *, tokens: int) -> str:
    """The first of `count` blocks of lines, as many as there is room for and one at least, in a fence, and how many
    there are beside them."""
    shown: list[str] = []
    taken = 0
    for lines in blocks:
        tokens -= cost(lines)
        if tokens < 0 and taken:
            break
        shown += lines
        taken += 1
    return (fenced(shown) + (f"\n... and {count - taken} more" if taken < count else "")) if taken else NOTHING


def cost(lines: Sequence[str]) -> int:
    """Tokens of lines, roughly."""
    return sum(estimate(line) + 1 for line in lines)


def line(text: str, most: int = LINE) -> str:
    """Any text on one line, cut where it is long."""
    return cut(spelled(text[: most + 1]), most)


def marked(text: str, most: int = LINE) -> str:
    """What a tool wrote, with the marks that it puts around tokens."""
    said = spelled(text[: most + 1])
    for mark in ACTIVE_MARKS:
        said = said.replace(spelled(mark), mark)
    return cut(said, most)


def plain(value: Any, most: int = LINE) -> str:
    """Any value as JSON on one line."""
    return line(json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False), most)


def cut(said: str, most: int) -> str:
    """A spelled line, cut where it is long."""
    return said if len(said) <= most else said[: most - 1] + CUT


def rows(found: Mapping[str, Any], *, tokens: int) -> list[str]:
    """What an experiment found, with numbers of two digits: single values first, whole, then tables row by row. The
    tables share the room, row for row, and each says how many of its rows are left out."""
    tables = {name: _table(value) for name, value in found.items() if isinstance(value, Mapping | list) and value}
    lines = [f"{line(name)}: {_said(value, WHOLE_RULE)}" for name, value in found.items() if name not in tables]
    lines = [one for i, one in enumerate(lines) if not i or cost(lines[: i + 1]) <= tokens]
    tokens -= cost(lines)
    shown = dict.fromkeys(tables, 0)
    for place in range(max(map(len, tables.values()), default=0)):
        for name, table in tables.items():
            if place == shown[name] < len(table) and tokens > 0:
                tokens -= cost([table[place]])
                shown[name] += 1
    for name, table in tables.items():
        left = len(table) - shown[name]
        lines += [f"{line(name)}:", *(f"   {row}" for row in table[: shown[name]])]
        lines += [f"   and {left} rows more"] if left else []
    return lines


def _table(value: Mapping[str, Any] | list[Any]) -> list[str]:
    """A row for each entry: in the order of the tool, numbers by name with the largest first."""
    if isinstance(value, list):
        if all(isinstance(one, int | float | str) and len(str(one)) < 40 for one in value):
            return [cut(", ".join(_said(one) for one in value), LONG)]
        return [_said(one) for one in value]
    entries = list(value.items())
    if all(isinstance(one, int | float) for one in value.values()):
        entries.sort(key=lambda pair: -abs(pair[1]))
    return [f"{marked(name)}: {_said(one)}" for name, one in entries]


def _said(value: Any, most: int = LINE) -> str:
    if isinstance(value, str):
        return marked(value, most)
    if isinstance(value, Mapping):
        return cut(", ".join(f"{marked(str(name))} {_said(one)}" for name, one in value.items()), most)
    return plain(_rounded(value), most)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.2g}")
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return {name: _rounded(one) for name, one in value.items()} if isinstance(value, Mapping) else value
