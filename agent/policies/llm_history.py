"""Experiments and surveys as a language model is shown them: in order, the last plan with its results.

What came before has one line or two, which never change, so that the beginning of a prompt stays the same: the
headline, on how many items each rival of that time had the level right, and where the leader of that time was wrong.
The oldest ones are left out, a few at a time, where there is no room; any can be asked for in full (`help`).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...explainers.ask import in_steps
from ...llm.render import STEPS
from ...rules.language import Rule
from ..loop.levels import EDGES, LEVELS, levels_of
from ..loop.view import Done, Rival, View
from .text_budget import FIRST, cost, cut, line, marked, rows, section

OLDER, FIRST_PLANS, LAST = 700, 650, 1100
"""Tokens of all that is told in short, of the last plan while it is one of the EARLY first ones, and later, roughly."""
EARLY = 2
FULL = 120
"""Tokens from which on there is room for more than a headline."""
LEAST = 90
"""Tokens of items and what was found beside them, at least, where there is more than a headline."""
UNASKED = ("carriers", "candidates", "left_out", "tokens")
"""Parts of what was found that are shown only when the whole is asked for; the question names the pivots."""
BLOCK = 2
"""The oldest are left out by so many at a time."""
SEEN = 0.5
"""Share of an experiment's room that is for its items; what it found beside them has the rest."""
WRONG, RIGHT = 8, 4
"""Items of an experiment that are shown: those whose level a live rival did not expect, the leader's first, the
furthest off first, and others."""
SHORT = 60
"""Tokens of what an older survey found, roughly."""
MISSED = 4
"""Items of an older experiment that are shown: those on which the leader was wrong."""


def window_names(view: View) -> dict[str, str]:
    """The digest of each window, by its name in prompts."""
    return {f"w{number}": example.window for number, example in enumerate(view.examples, start=1)}


def results(experiments: Sequence[Done], view: View) -> str:
    """Lists experiments and surveys in order, the last plan with what it found."""
    last = max((trial.round for trial in experiments), default=0)
    older = [_in_short(trial, view) for trial in experiments if trial.round < last]
    newest = [trial for trial in experiments if trial.round == last]
    room = (FIRST_PLANS if last <= EARLY else LAST) // max(len(newest), 1)
    blocks = [_in_full(trial, view, room) if room >= FULL else _in_short(trial, view) for trial in newest]
    costs, skipped = list(map(cost, older)), 0
    over = sum(costs) - min(OLDER, OLDER + LAST - sum(map(cost, blocks)))
    while skipped < len(older) and over > 0:
        over -= sum(costs[skipped : skipped + BLOCK])
        skipped += BLOCK
    shown = section([*older[skipped:], *blocks], len(older[skipped:]) + len(blocks), tokens=OLDER + LAST)
    return f"({min(skipped, len(older))} before: ask help)\n{shown}" if skipped else shown


def result_in_full(name: str, view: View, tokens: int) -> str | None:
    """One result in about so many tokens; None where there is none of this name."""
    trial = next((trial for trial in view.done if trial.name == name), None)
    return None if trial is None else section([_in_full(trial, view, tokens, asked=True)], 1, tokens=tokens)


def hits(done: Done, name: str) -> tuple[int, int] | None:
    """On how many items a rival expected the level that was seen, and of how many; None where it has no opinion."""
    pairs = [(e, v) for e, v in _expected(done, name) if e is not None]
    if not pairs:
        return None
    predicted, observed = (levels_of(side, done.design.readout) for side in zip(*pairs, strict=True))
    return int((predicted == observed).sum()), len(pairs)


def _expected(done: Done, name: str) -> list[tuple[float | None, float]]:
    """A rival's expectation of each item, and what was seen."""
    if done.measured is None or name not in done.expected:
        return []
    return list(zip(done.expected[name], done.measured.values, strict=True))


def _headline(done: Done, view: View) -> str:
    names = {digest: name for name, digest in window_names(view).items()}
    args = {
        key: [names.get(str(v), v) for v in value] if key == "windows" else value for key, value in done.args.items()
    }
    role = " (a challenger's)" if done.role == "challenger" and view.phase != "challenge" else ""
    role += " (survey)" * done.survey
    text = f"{line(done.name)} {line(done.tool)}{role} {marked(json.dumps(args, ensure_ascii=False), 160)}"
    measured = done.measured
    if measured is None:
        return f"{text}: failed: {line(str(done.reason))}"
    if measured.effect is not None:
        between = "" if measured.low is None or measured.high is None else f" [{measured.low:.2g}, {measured.high:.2g}]"
        text += f": {measured.effect:.2g}{between} {line(measured.units)}"
    if measured.control is not None and measured.control.value is not None:
        text += f"; control {measured.control.value:.2g}"
    right = [(name, counts) for name in _told(done, view) if (counts := hits(done, name)) is not None]
    if right:
        text += f"; levels right: {', '.join(f'{name} {met} of {count}' for name, (met, count) in right)}"
    return text


def _told(done: Done, view: View) -> list[str]:
    """The rivals that predicted it, the leader of that time first; a challenger knows of the claim alone."""
    known = {rival.name for rival in view.rivals}
    return [name for name in done.expected if name in known]


def _in_short(done: Done, view: View) -> list[str]:
    """A headline, and a line of what a survey found first, or of what the leader of that time had wrong."""
    if done.survey:
        found = rows(_tables(done, view), tokens=SHORT)[:FIRST] or ["found: nothing"]
        return [_headline(done, view), *(f"   {cut(row, 4 * SHORT)}" for row in found)]
    leader = next((name for name in _told(done, view) if hits(done, name) is not None), None)
    wrong = [] if leader is None else [i for i, is_wrong in enumerate(_wrong(done, leader)) if is_wrong]
    if done.measured is None or not wrong:
        return [_headline(done, view)]
    items = "; ".join(f"{_label(done, i, 50)}: {done.measured.values[i] * _factor(done):.2g}" for i in wrong[:MISSED])
    more = f"; and {len(wrong) - MISSED} more" if len(wrong) > MISSED else ""
    return [_headline(done, view), f"   {line(str(leader))} missed {items}{more}"]


def _in_full(done: Done, view: View, tokens: int, *, asked: bool = False) -> list[str]:
    measured = done.measured
    lines = [_headline(done, view), f"   question: {marked(done.design.question)}"]
    if asked:
        lines.insert(1, f"   purpose: {line(done.purpose)}")
    if measured is None:
        return lines
    room = max(tokens - cost(lines), LEAST)
    if measured.values:
        counts = Counter(LEVELS[level] for level in levels_of(measured.values, done.design.readout))
        levels = ", ".join(f"{counts[level]} {level}" for level in LEVELS if counts[level])
        control = "" if measured.control is None else f"; control: {line(measured.control.what)}"
        whole = " (1 is all of the effect)" if done.design.readout == "effect" else ""
        items = [f"   seen: {levels}{whole}{control}", *_items(done, view, int(room * SEEN))]
        room -= cost(items)
        lines += items
    tables = rows(_tables(done, view, asked=asked), tokens=room)
    title = ["   found:"] if tables else ["   found: nothing"] if done.survey else []
    return [*lines, *title, *(f"     {row}" for row in tables)]


def _tables(done: Done, view: View, *, asked: bool = False) -> dict[str, Any]:
    """The results beside the items' intervals.

    A learned rule is on the scale on which rules are written, with the words for it first.
    """
    found = {} if done.measured is None else done.measured.found
    tables: dict[str, Any] = {k: v for k, v in found.items() if asked or k not in UNASKED or isinstance(v, Mapping)}
    if _intervals(done):
        del tables["items"]
    if done.tool == "learn_rule" and "rule" in tables:
        rule = in_steps(Rule.model_validate(tables.pop("rule")), view.scale)
        rule_json = json.dumps(rule.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
        tables = {"text": tables.pop("text"), "rule": rule_json, **tables}
    if done.tool == "run_texts" and "texts" in tables:
        tables = {"active on other tokens, too": _elsewhere(tables.pop("texts")), **tables}
    return tables


def _elsewhere(texts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By text, the tokens beside the asked one that are not silent; what was asked is among the items."""
    active = [
        {
            token: value
            for i, (token, value) in enumerate(zip(text["tokens"], text["values"], strict=True))
            if i != text["asked"] and value >= EDGES[1]
        }
        for text in texts
    ]
    return {f"text {number}": tokens for number, tokens in enumerate(active, start=1) if tokens}


def _intervals(done: Done) -> Mapping[str, Sequence[float]]:
    """By label, the value and the ends of the interval of every item, where a tool gives them."""
    items = {} if done.measured is None else done.measured.found.get("items")
    known = isinstance(items, Mapping) and all(isinstance(v, list | tuple) and len(v) == 3 for v in items.values())
    return items if items and known else {}


def _live(view: View) -> list[Rival]:
    return [rival for rival in view.rivals if rival.status == "live"]


def _wrong(done: Done, name: str) -> list[bool]:
    """By item, whether a rival expected another level than was seen; not where it expected none."""
    readout = done.design.readout
    return [
        e is not None and bool(levels_of([e], readout)[0] != levels_of([v], readout)[0])
        for e, v in _expected(done, name)
    ]


def _items(done: Done, view: View, tokens: int) -> list[str]:
    """Items with their values and what the live rivals expected, those first on which the leader was wrong."""
    assert done.measured is not None
    values, factor = done.measured.values, _factor(done)
    names = [r.name for r in _live(view) if r.name in done.expected]
    wrong = {name: _wrong(done, name) for name in names}
    leading = done.expected[names[0]] if names else (None,) * len(values)
    off = [abs(v - (e or 0.0)) for v, e in zip(values, leading, strict=True)]
    # The leader's misses first, then those of other rivals.
    rank = [
        0 if leading[i] is not None and wrong[names[0]][i] else 1 if any(w[i] for w in wrong.values()) else 2
        for i in range(len(values))
    ]
    order = sorted(range(len(values)), key=lambda i: (rank[i], -off[i]))
    chosen = [i for i in order if rank[i] < 2][:WRONG] + [i for i in order if rank[i] == 2][:RIGHT]
    lines: list[str] = []
    intervals = _intervals(done)
    for i in chosen:
        expectations = [
            f"{name} {e * factor:.2g}{' wrong' * wrong[name][i]}"
            for name in names
            if (e := done.expected[name][i]) is not None
        ]
        expected = f" (expected: {', '.join(expectations)})" if expectations else ""
        ends = intervals.get(done.design.items[i].label, ())[1:]
        between = f" [{', '.join(f'{end * factor:.2g}' for end in ends)}]" if ends else ""
        lines.append(f"   - {_label(done, i)}: {values[i] * factor:.2g}{between}{expected}")
        tokens -= cost(lines[-1:])
        if tokens < 0:
            break
    left = len(values) - len(lines)
    return [*lines, f"   - and {left} items more"] if left else lines


def _factor(done: Done) -> int:
    return 1 if done.design.readout == "effect" else STEPS


def _label(done: Done, place: int, most: int = 120) -> str:
    return marked(done.design.items[place].label, most)
