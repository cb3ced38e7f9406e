"""Text of a bounded size: lines that are cut, sections of which the first parts are shown, tables row by row.

Whatever came from a corpus, a model or a measurement is spelled so that it stays data (render.py), and once only:
what is spelled is never spelled again.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...llm.prices import estimate
from ...llm.render import ACTIVE_MARKS, CUT, fenced, spelled

LINE, LONG = 300, 800
"""Characters of a line, and of one that holds a claim, a rule or what an experiment came to."""
WHOLE_RULE = 1500
"""Characters of a rule, or of a text, that was found."""
ROW, NAME = 200, 60
"""Characters of a row of a table, and of what is a name at most, not a sentence."""
FIRST = 2
"""Single values that are shown whatever room there is: the words for a rule, and the rule."""
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
    """What an experiment found, with numbers of two digits: single values first, then tables row by row, remarks last.
    The tables share the room, row for row, and each says how many of its rows are left out."""
    tables = {name: _table(value) for name, value in found.items() if isinstance(value, Mapping | list) and value}
    tables = dict(sorted(tables.items(), key=lambda pair: _remarks(found[pair[0]])))
    single = [(name, value) for name, value in found.items() if name not in tables and value not in (None, [], {})]
    lines = [f"{line(name)}: {_said(value, WHOLE_RULE)}" for name, value in single]
    lines = [one for i, one in enumerate(lines) if i < FIRST or cost(lines[: i + 1]) <= tokens]
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
        lines += [f"   and {left} more"] if left else []
    return lines


def _remarks(value: Any) -> bool:
    """Whether a list is of sentences."""
    return isinstance(value, list) and any(isinstance(one, str) and len(one) > NAME for one in value)


def _table(value: Mapping[str, Any] | list[Any]) -> list[str]:
    """A row for each entry: in the order of the tool, numbers by name with the largest first."""
    if _remarks(value):
        return [_said(one, 2 * NAME) for one in value]
    if isinstance(value, Mapping):
        return [f"{_name(name)}: {_said(one, ROW)}" for name, one in _largest(value)]
    if all(isinstance(one, int | float | str) for one in value):
        return [cut(", ".join(map(_name, value)), LONG)]
    return [_row(one) if isinstance(one, Mapping) else _said(one, ROW) for one in value]


def _row(entry: Mapping[str, Any]) -> str:
    """What an entry is of, then its numbers."""
    told = sorted(entry.items(), key=lambda pair: not isinstance(pair[1], str))
    return cut(", ".join(f"{line(name)} {_name(one)}" for name, one in told), ROW)


def _largest(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The entries, numbers with the largest first."""
    if all(isinstance(one, int | float) for one in value.values()):
        return sorted(value.items(), key=lambda pair: -abs(pair[1]))
    return list(value.items())


def _name(value: Any) -> str:
    """A value within a row; text whose ends could be mistaken stands in quotes."""
    if isinstance(value, str) and re.fullmatch(r"[\w.:]+|\w.*[\w»]", value):
        return _said(value, ROW)
    return marked(json.dumps(_rounded(value), ensure_ascii=False), ROW)


def _said(value: Any, most: int) -> str:
    return marked(value if isinstance(value, str) else json.dumps(_rounded(value), ensure_ascii=False), most)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.2g}")
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return {name: _rounded(one) for name, one in _largest(value)} if isinstance(value, Mapping) else value
