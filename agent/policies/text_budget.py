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

LINE, LONG = 200, 500
"""Characters of a line, and of one that holds a claim, a rule or what an experiment came to."""
WHOLE_RULE = 1200
"""Characters of a rule, or of a text, that was found."""
ROW, NAME = 200, 60
"""Characters of a row of a table, and of what is a name at most, not a sentence."""
FIRST = 2
"""Single values that are shown whatever room there is: the words for a rule, and the rule."""
NOTHING = "(none)"


def section(blocks: Iterable[Sequence[str]], count: int, *, tokens: int) -> str:
    """The first of `count` blocks of lines, in a fence: as many as there is room for, and of the first what there is.

    How many there are beside them is said below.
    """
    lines_shown: list[str] = []
    taken = 0
    for lines in blocks:
        if taken and cost(lines) > tokens:
            break
        for text in lines:
            if tokens > 0:
                lines_shown.append(fit(text, tokens))
                tokens -= cost(lines_shown[-1:])
        taken += 1
    return (fenced(lines_shown) + (f"\n... and {count - taken} more" if taken < count else "")) if taken else NOTHING


def cost(lines: Sequence[str]) -> int:
    """The number of tokens of lines, roughly."""
    return sum(estimate(line) + 1 for line in lines)


def fit(text: str, tokens: int) -> str:
    """Cuts a spelled line to about so many tokens."""
    while (needed := cost([text])) > tokens and len(text) > 1:
        text = cut(text, max(1, min(len(text) - 1, len(text) * tokens // needed)))
    return text


def line(text: str, most: int = LINE) -> str:
    """Puts any text on one line, cut where it is long."""
    return cut(spelled(text[: most + 1]), most)


def marked(text: str, most: int = LINE) -> str:
    """Spells what a tool wrote, with the marks that it puts around tokens."""
    text = spelled(text[: most + 1])
    for mark in ACTIVE_MARKS:
        text = text.replace(spelled(mark), mark)
    return cut(text, most)


def plain(value: Any, most: int = LINE) -> str:
    """Writes any value as JSON on one line."""
    return line(json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False), most)


def cut(text: str, most: int) -> str:
    """Cuts a spelled line where it is long."""
    return text if len(text) <= most else text[: most - 1] + CUT


def rows(results: Mapping[str, Any], *, tokens: int) -> list[str]:
    """Results of an experiment, with numbers of two digits: single values first, then tables row by row, remarks last.

    The tables share the room, row for row, and each says how many of its rows are left out; those for which there is
    no room are named at the end.
    """
    tables = {name: _table(value) for name, value in results.items() if isinstance(value, Mapping | list) and value}
    tables = dict(sorted(tables.items(), key=lambda pair: _is_remarks(results[pair[0]])))
    single = [(name, value) for name, value in results.items() if name not in tables and value not in (None, [], {})]
    lines = [f"{line(name)}: {_as_text(value, WHOLE_RULE)}" for name, value in single]
    lines = [row for i, row in enumerate(lines) if i < FIRST or cost(lines[: i + 1]) <= tokens]
    tokens -= cost(lines)
    shown = dict.fromkeys(tables, 0)
    for place in range(max(map(len, tables.values()), default=0)):
        for name, table in tables.items():
            if place == shown[name] < len(table) and tokens > 0:
                tokens -= cost([table[place]])
                shown[name] += 1
    for name, table in tables.items():
        left = len(table) - shown[name]
        if shown[name]:
            lines += [f"{line(name)}:", *(f"   {row}" for row in table[: shown[name]])]
            lines += [f"   and {left} more"] if left else []
    unshown = [f"{line(name)} ({len(table)} rows)" for name, table in tables.items() if not shown[name]]
    return [*lines, f"not shown: {', '.join(unshown)}"] if unshown else lines


def _is_remarks(value: Any) -> bool:
    """Whether a list is of sentences."""
    return isinstance(value, list) and any(isinstance(part, str) and len(part) > NAME for part in value)


def _table(value: Mapping[str, Any] | list[Any]) -> list[str]:
    """A row for each entry: in the order of the tool, numbers by name with the largest first."""
    if _is_remarks(value):
        return [_as_text(part, 2 * NAME) for part in value]
    if isinstance(value, Mapping):
        return [f"{_name(name)}: {_as_text(part, ROW)}" for name, part in _largest(value)]
    if all(isinstance(part, int | float | str) for part in value):
        return [cut(", ".join(map(_name, value)), LONG)]
    return [_row(part) if isinstance(part, Mapping) else _as_text(part, ROW) for part in value]


def _row(entry: Mapping[str, Any]) -> str:
    """What an entry is of, then its numbers."""
    fields = sorted(entry.items(), key=lambda pair: not isinstance(pair[1], str))
    return cut(", ".join(f"{line(name)} {_name(value)}" for name, value in fields), ROW)


def _largest(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The entries, numbers with the largest first."""
    if all(isinstance(part, int | float) for part in value.values()):
        return sorted(value.items(), key=lambda pair: -abs(pair[1]))
    return list(value.items())


def _name(value: Any) -> str:
    """A value within a row; text whose ends could be mistaken stands in quotes."""
    if isinstance(value, str) and re.fullmatch(r"[\w.:]+|\w.*[\w»]", value):
        return _as_text(value, ROW)
    return marked(json.dumps(_rounded(value), ensure_ascii=False), ROW)


def _as_text(value: Any, most: int) -> str:
    return marked(value if isinstance(value, str) else json.dumps(_rounded(value), ensure_ascii=False), most)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.2g}")
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return {name: _rounded(part) for name, part in _largest(value)} if isinstance(value, Mapping) else value
