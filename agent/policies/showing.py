"""What a language model is shown of a view: places to fill in a prompt, of bounded size however long it goes on.

Every section has its own room in tokens, and whatever is newest or leads is put in first: the last experiments with
their items, those before in one line each, and of the rest how many there are. Whatever comes from a corpus, a model
or a measurement stands on lines of its own between fences, spelled so that it cannot be anything else (render.py).
Nothing is shown that another run of the same step could find different, such as minutes: so a decision that was
interrupted is asked for in the same words, and paid for once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...data.records import Example
from ...explainers.ask import in_steps
from ...explainers.llm.tokens import estimate
from ...explainers.render import (
    ACTIVE_MARKS,
    CUT,
    SILENT_MARKS,
    STEPS,
    active,
    excerpt,
    fenced,
    marked,
    spelled,
    strongest,
)
from ...explainers.rules import Rule
from ..investigation.experiments import Tool
from ..investigation.hypotheses import NULLS
from ..investigation.levels import LEVELS, levels_of
from ..investigation.view import Done, Rival, View

KNOWN, RIVALS, EXPERIMENTS, SURVEYS = 4500, 2500, 3500, 1800
"""Tokens that each section has at most, roughly; of a section's parts the first is always shown."""
WHOLE = 3
"""Experiments, and surveys, of which more than a line is shown."""
WRONG, RIGHT = 10, 3
"""Items of an experiment that are shown: those whose level the leader did not expect, the furthest off first, and
others."""
NOTHING = "(none)"
_LINE, _LONG = 300, 800
"""Characters of a line, and of one that holds what was found, or a rule."""


def places(view: View, tools: Mapping[str, Tool[Any]]) -> dict[str, str]:
    """What is known, the rivals, experiments, surveys, what is left, and why the last decision was not taken. `tools`
    by name: their arguments are shown as far as they are not the usual ones."""
    done = [replace(one, args=_unusual(one, tools)) for one in reversed(view.done)]
    # With its number: the second time that the same is refused is another question, not answered from the log.
    refused = f"\nYour last decision, number {view.step}, was not carried out:\n"
    told = f"{refused}{fenced([_line(view.rejected, _LONG)])}\n" if view.rejected else ""
    return {
        "target": _line(view.target),
        "known": "\n\n".join(_behaviour(view) if view.kind == "behaviour" else _feature(view)),
        "rivals": _section((_rival(r, view) for r in _ordered(view.rivals)), len(view.rivals), tokens=RIVALS),
        "experiments": _trials([one for one in done if not one.survey], view, tokens=EXPERIMENTS),
        "surveys": _trials([one for one in done if one.survey], view, tokens=SURVEYS),
        "left": _left(view),
        "rejected": told,
    }


def window_names(view: View) -> dict[str, str]:
    """By what a window is called in prompts, its digest."""
    return {f"w{number}": example.window for number, example in enumerate(view.examples, start=1)}


# What is known from the start


def _feature(view: View) -> list[str]:
    highest = view.scale
    rows: dict[str, list[list[str]]] = {"Active windows": [], "Near misses": [], "Other windows": []}
    peaks = {e.tokens[int(e.activations.argmax())] for e in view.examples if active(e.activations, highest).any()}
    for name, example in zip(window_names(view), view.examples, strict=True):
        if active(example.activations, highest).any():
            part = excerpt(example, before=24, after=6)
            text = marked(part, active(part.activations, highest))
            rows["Active windows"].append([f"{name}: {text}", f"   {strongest(part, highest, count=4)}"])
        else:
            rows[_silent(example, peaks)].append([f"{name}: {_quiet(example, peaks)}"])
    parts = [f"{title}:\n{_section(found, len(found), tokens=KNOWN // 3)}" for title, found in rows.items()]
    if view.statistics is not None:
        parts.append(f"It is active on {view.statistics.density:.2%} of all tokens.")
    return [*parts, *_baseline(view)]


def _silent(example: Example, peaks: set[str]) -> str:
    return "Near misses" if peaks & set(example.tokens) else "Other windows"


def _quiet(example: Example, peaks: set[str]) -> str:
    """A silent window around a token on which the feature fires elsewhere, if it holds one."""
    found = [i for i, token in enumerate(example.tokens) if token in peaks]
    pivot = found[-1] if found else min(24, len(example.tokens) - 1)
    part = excerpt(example, before=24, after=6, pivot=pivot)
    return marked(part, [token in peaks for token in part.tokens], ends=SILENT_MARKS)


def _behaviour(view: View) -> list[str]:
    about = view.about
    lines = [f"metric: {about['metric']} = {about['formula']}"]
    lines += [f"{side}: {about[side]:.3g}" for side in ("clean", "corrupted")]
    for pair in about["prompts"]:
        clean, corrupted, answer, wrong = (spelled(str(pair[k])) for k in ("clean", "corrupted", "answer", "wrong"))
        lines += [f"clean prompt: {clean}{_mark(answer)}", f"corrupted prompt: {corrupted}{_mark(wrong)}"]
    nodes = _line(", ".join(about["nodes"]), 4 * _LONG)
    return [fenced([_cut(line, _LONG) for line in lines]), f"Nodes:\n{fenced([nodes])}", *_baseline(view)]


def _mark(token: str) -> str:
    return f"{ACTIVE_MARKS[0]}{token}{ACTIVE_MARKS[1]}"


def _baseline(view: View) -> list[str]:
    """The explanation to beat; a challenger is not told of it."""
    baseline = view.about.get("baseline")
    if view.phase == "challenge" or not baseline or not baseline.get("text"):
        return []
    lines = [_line(str(baseline["text"]), _LONG)]
    if baseline.get("rule"):
        lines.append(_rule(Rule.parse(baseline["rule"]), view))
    for score in baseline.get("scores", ())[:4]:
        if score["value"] is not None:
            lines.append(_line(f"{score['metric']} on {score['examples']} windows: {score['value']:.2f}"))
    return [f"The explanation to beat, with its scores on other text:\n{fenced(lines)}"]


# Rivals


def _ordered(rivals: Sequence[Rival]) -> list[Rival]:
    """Live ones as they stand, then those that are out, the last one first."""
    out = [rival for rival in rivals if rival.status != "live"]
    return [*(rival for rival in rivals if rival.status == "live"), *reversed(out)]


def _rival(rival: Rival, view: View) -> list[str]:
    claim = rival.hypothesis
    if rival.status != "live":
        return [_line(f"{rival.name} {rival.status}: {claim.text}")]
    standing = ""
    if view.phase != "challenge":
        share = "under 0.001" if rival.share < 0.001 else f"{rival.share:.3g}"
        standing = f", share of the odds {share}, {rival.resolved} predictions, {rival.silences} of silence"
        standing += "" if rival.hits is None else f", right on {rival.hits:.0%} of items"
    lines = [f"{rival.name} ({claim.kind.replace('_', ' ')}{standing})", f"   {_line(claim.text, _LONG)}"]
    if claim.rule is not None and claim.kind not in NULLS:
        lines.append(f"   rule: {_rule(claim.rule, view)}")
    if claim.nodes:
        lines.append(f"   nodes: {_json(claim.nodes, _LONG)}")
    for name in ("promotes", "suppresses", "reads"):
        if named := getattr(claim, name):
            lines.append(f"   {name}: {_json(named)}")
    return lines


def _rule(rule: Rule, view: View) -> str:
    return _json(in_steps(rule, view.scale).model_dump(mode="json", exclude_defaults=True), _LONG)


# Experiments


def _trials(done: Sequence[Done], view: View, *, tokens: int) -> str:
    """The last ones with what was found, the others in a line."""
    blocks = ([_headline(one, view), *(_details(one, view) if place < WHOLE else ())] for place, one in enumerate(done))
    return _section(blocks, len(done), tokens=tokens)


def _unusual(done: Done, tools: Mapping[str, Tool[Any]]) -> dict[str, Any]:
    usual = tools[done.tool].args().model_dump(mode="json") if done.tool in tools else {}
    return {key: value for key, value in done.args.items() if key not in usual or value != usual[key]}


def _headline(done: Done, view: View) -> str:
    names = {digest: name for name, digest in window_names(view).items()}
    args = {key: [names.get(str(v), v) for v in value] if key == "windows" else value
            for key, value in done.args.items()}  # fmt: skip
    said = f"{done.name} {done.tool} {_json(args, 160)}"
    measured = done.measured
    if measured is None:
        return _line(f"{said}: failed: {done.reason}")
    parts = [said]
    if measured.effect is not None:
        between = (
            "" if measured.low is None or measured.high is None else f" ({measured.low:.2g} to {measured.high:.2g})"
        )
        parts.append(f": {measured.effect:.2g}{between} {measured.units}")
    control = measured.control
    if control is not None and control.value is not None:
        parts.append(f"; control {control.value:.2g}")
    if right := _right(done, view):
        parts.append(f"; levels right: {right}")
    return _line("".join(parts), _LONG)


def _right(done: Done, view: View) -> str:
    """By live rival with an opinion, on how many items it expected the level that was seen."""
    found = []
    for rival in view.rivals:
        pairs = [(e, v) for e, v in _expected(done, rival.name) if e is not None]
        if rival.status == "live" and pairs:
            said, seen = (levels_of(side) for side in zip(*pairs, strict=True))
            found.append(f"{rival.name} {int((said == seen).sum())} of {len(pairs)}")
    return ", ".join(found)


def _expected(done: Done, name: str) -> list[tuple[float | None, float]]:
    """What a rival expected of each item, and what was seen."""
    if done.measured is None or name not in done.expected:
        return []
    return list(zip(done.expected[name], done.measured.values, strict=True))


def _details(done: Done, view: View) -> list[str]:
    measured = done.measured
    lines = [f"   purpose: {_line(done.purpose)}", f"   question: {_line(done.design.question)}"]
    if measured is None:
        return lines
    if measured.values:
        counts = Counter(LEVELS[level] for level in levels_of(measured.values))
        seen = ", ".join(f"{counts[level]} {level}" for level in LEVELS if counts[level])
        lines.append(f"   seen: {seen}" + (" (1 is all of the effect)" if done.design.readout == "effect" else ""))
        lines += _items(done, view)
    if measured.found:
        lines.append(f"   found: {_marked(json.dumps(dict(measured.found), ensure_ascii=False), _LONG)}")
    return lines


def _items(done: Done, view: View) -> list[str]:
    """Items with their values and what the live rivals expected."""
    assert done.measured is not None
    values, factor = done.measured.values, 1 if done.design.readout == "effect" else STEPS
    named = [r.name for r in view.rivals if r.status == "live" and r.name in done.expected]
    said = done.expected[named[0]] if named else (None,) * len(values)
    leader = [0.0 if value is None else value for value in said]
    wrong = levels_of(values) != levels_of(leader)
    order = sorted(range(len(values)), key=lambda i: -abs(values[i] - leader[i]))
    shown = [i for i in order if wrong[i]][:WRONG] + [i for i in order if not wrong[i]][:RIGHT]
    lines = []
    for i in shown:
        told = [f"{n} {e * factor:.2g}" for n in named if (e := done.expected[n][i]) is not None]
        expected = f" (expected: {', '.join(told)})" if told else ""
        lines.append(f"   - {_marked(done.design.items[i].label, 120)}: {values[i] * factor:.2g}{expected}")
    left = len(values) - len(shown)
    return [*lines, f"   - and {left} items more"] if left else lines


# Room


def _left(view: View) -> str:
    names = {"experiments": "experiments", "fwd": "prompts through the model"}
    found = [f"{view.left[kind]:,.0f} {name}" for kind, name in names.items() if kind in view.left]
    return ", ".join(found) or "no limit is set"


def _section(blocks: Iterable[Sequence[str]], count: int, *, tokens: int, most: int = _LONG) -> str:
    """The first of `count` blocks, as many as there is room for, in a fence, and how many there are beside them; lines
    have `most` characters at most."""
    shown: list[str] = []
    taken = 0
    for block in blocks:
        lines = [_cut(line, most) for line in block]
        tokens -= sum(estimate(line) + 1 for line in lines)
        if tokens < 0 and taken:
            break
        shown += lines
        taken += 1
    return (fenced(shown) + (f"\n... and {count - taken} more" if taken < count else "")) if taken else NOTHING


def _marked(text: str, most: int) -> str:
    """What a tool wrote, with the marks that it puts around tokens."""
    line = spelled(text[: most + 1])
    for mark in ACTIVE_MARKS:
        line = line.replace(spelled(mark), mark)
    return _cut(line, most)


def _json(value: Any, most: int = _LINE) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    return _line(json.dumps(value, ensure_ascii=False), most)


def _line(text: str, most: int = _LINE) -> str:
    """Any text on one line, cut where it is long."""
    return _cut(spelled(text[: most + 1]), most)


def _cut(line: str, most: int) -> str:
    return line if len(line) <= most else line[: most - 1] + CUT
