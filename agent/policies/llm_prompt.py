"""A view as a language model is shown it: texts for a prompt's places, of bounded size however long it goes on.

Every section has its own room in tokens. What never changes comes first, then results in their order (llm_history.py),
then what moves with every step.
Whatever comes from a corpus, a model or a measurement stands on lines of its own between fences, spelled so that it
cannot be anything else (render.py).
Nothing is shown that another run of the same step could find different, such as minutes: so a decision that was
interrupted is asked for in the same words, and paid for once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, exp
from typing import Any

from ...data.records import Example
from ...explainers.ask import in_steps
from ...llm import render
from ...llm.render import ACTIVE_MARKS, active, excerpt, spelled, strongest
from ...rules.language import Rule
from ..loop.experiments import AnyTool
from ..loop.hypotheses import NULLS
from ..loop.judging import HITS, ODDS, RESOLVED, SILENCES
from ..loop.odds import odds_as_sum
from ..loop.view import Done, Rival, View
from .llm_history import hits, result_in_full, results, window_names
from .llm_specs import tool_help
from .text_budget import LONG, cut, line, plain, section

RIVALS, REJECTED = 700, 200
"""Tokens of rivals, and of what was not carried out, roughly."""
KNOWN = {"Active windows": 450, "Near misses": 180, "Other windows": 60}
"""Tokens of windows, roughly."""
PROMPTS, NODES = 450, 500
"""Tokens of a behaviour's metric and prompts, and of the names of its nodes, roughly."""
BEFORE, AFTER = 12, 2
"""Tokens that are shown before and after a pivot."""
BASELINE, BATTERY = 120, 150
"""Tokens of the label to beat, and of what the battery measured, roughly."""
TOLD = (("top_random", "correlation"), ("counterfactual", "correlation"), ("counterfactual", "agreement"))
"""Scores of the label that are told, by set of examples and metric."""
LEADING = 1200
"""Characters of the leader's rule."""
WORST, TERMS = 3, 4
"""Experiments that a refuted rival was wrong on most, which are named, and the last terms of odds, which are shown one
by one."""
TOKENS_BEFORE = 3
"""Tokens before a peak that are shown one by one."""


def places(view: View, tools: Mapping[str, AnyTool]) -> dict[str, str]:
    """Fills a prompt's places: what is known, results, the rivals, what is left, what was refused last.

    `tools` by name: their arguments are shown as far as they are not the usual ones.
    """
    done = [replace(trial, args=_without_defaults(trial, tools)) for trial in view.done]
    return {
        "target": line(view.target),
        "known": "\n\n".join(_behaviour(view) if view.kind == "behaviour" else _feature(view)),
        "rivals": section((_rival(r, view) for r in _ordered(view.rivals)), len(view.rivals), tokens=RIVALS),
        "standing": _leader_status(view),
        "results": results(done, view),
        "left": _left(view),
        "rejected": _rejected(view, tools),
    }


def whole(name: str, view: View, tokens: int) -> str | None:
    """A result or a hypothesis in full, in about so many tokens; None where there is none of this name."""
    rival = next((rival for rival in view.rivals if rival.name == name), None)
    if rival is None:
        return result_in_full(name, view, tokens)
    return section([_rival(rival, view, most=8 * LONG)], 1, tokens=tokens)


def _rejected(view: View, tools: Mapping[str, AnyTool]) -> str:
    """What of the last decision was not carried out, each with its fault, and what the tools at fault take."""
    last = [refused for refused in view.refused if refused.step == view.step - 1]
    reasons = [refused.rejection.reason for refused in last] or [view.rejected or ""]
    if not any(reasons):
        return ""
    digests = {digest: name for name, digest in window_names(view).items()}
    reasons = [re.sub(r"\b[0-9a-f]{16,}\b", lambda digest: digests.get(digest[0], digest[0]), r) for r in reasons]
    named = dict.fromkeys(r.rejection.tool or "" for r in last if r.rejection.code == "bad_call")
    usage = [tool_help(tools[name]) for name in named if name in tools]
    # With its number: the second time that the same is refused is another question, not answered from the log.
    title = f"\nOf your last decision, number {view.step}, this was not carried out:"
    faults = section(([line(reason, LONG)] for reason in reasons), len(reasons), tokens=REJECTED)
    return "\n".join([title, faults, *usage[:1]]) + "\n"


def _without_defaults(done: Done, tools: Mapping[str, AnyTool]) -> dict[str, Any]:
    usual = tools[done.tool].args().model_dump(mode="json") if done.tool in tools else {}
    return {key: value for key, value in done.args.items() if key not in usual or value != usual[key]}


# What is known from the start


def _feature(view: View) -> list[str]:
    highest = view.scale
    rows: dict[str, list[list[str]]] = {title: [] for title in KNOWN}
    peaks = {e.tokens[int(e.activations.argmax())] for e in view.examples if active(e.activations, highest).any()}
    for name, example in zip(window_names(view), view.examples, strict=True):
        if active(example.activations, highest).any():
            part = excerpt(example, before=BEFORE, after=AFTER)
            text = cut(render.marked(part, active(part.activations, highest)), LONG)
            details = [strongest(part, highest, count=2), _tokens(example)]
            rows["Active windows"].append([f"{name}: {text}", f"   {cut('; '.join(details), LONG)}"])
        else:
            rows[_silent_kind(example, peaks)].append([f"{name}: {cut(_silent_text(example, peaks), LONG)}"])
    # Of all strengths: the weakest ones alternate with the strongest, so that room for some shows both.
    rows["Active windows"] = _from_both_ends(rows["Active windows"])
    parts = [f"{title}:\n{section(blocks, len(blocks), tokens=KNOWN[title])}" for title, blocks in rows.items()]
    if view.statistics is not None and view.statistics.active is not None:
        parts.append(f"It is not silent on {view.statistics.active:.2%} of all tokens.")
    return [*parts, *_baseline(view)]


def _from_both_ends(blocks: Sequence[list[str]]) -> list[list[str]]:
    """Two from the beginning, one from the end, in turn."""
    left, order = list(blocks), []
    while left:
        order += [*left[:2], *left[2:][-1:]]
        left = left[2:-1]
    return order


def _tokens(example: Example) -> str:
    """The strongest token and those before it one by one, since a rule is about tokens."""
    peak = int(example.activations.argmax())
    return f"tokens: {plain(example.tokens[max(0, peak - TOKENS_BEFORE) : peak + 1])}"


def _silent_kind(example: Example, peaks: set[str]) -> str:
    return "Near misses" if peaks & set(example.tokens) else "Other windows"


def _silent_text(example: Example, peaks: set[str]) -> str:
    """A silent window around a token on which the feature fires elsewhere, if it holds one."""
    positions = [i for i, token in enumerate(example.tokens) if token in peaks]
    pivot = positions[-1] if positions else min(BEFORE, len(example.tokens) - 1)
    part = excerpt(example, before=BEFORE, after=AFTER, pivot=pivot)
    return render.marked(part, [False] * len(part.tokens), silent=[token in peaks for token in part.tokens])


def _behaviour(view: View) -> list[str]:
    about = view.about
    # The formula's id ends in its version.
    formula = re.sub(r"/\d+$", "", about["formula"])
    lines = [f"metric: {about['metric']} = {formula}"]
    lines += [f"its mean over {side} prompts: {about[side]:.3g}" for side in ("clean", "corrupted")]
    for pair in about["prompts"]:
        clean, corrupted, answer, wrong = (spelled(str(pair[k])) for k in ("clean", "corrupted", "answer", "wrong"))
        lines += [f"clean prompt: {clean}{_mark(answer)}", f"corrupted prompt: {corrupted}{_mark(wrong)}"]
    nodes = line(", ".join(about["nodes"]), 4 * LONG)
    title = "The metric, and some prompts, each with its own answer marked after it, which is wrong for the other one:"
    told = section([[cut(text, LONG) for text in lines]], 1, tokens=PROMPTS)
    return [f"{title}\n{told}", f"Nodes:\n{section([[nodes]], 1, tokens=NODES)}", *_baseline(view)]


def _mark(token: str) -> str:
    return f"{ACTIVE_MARKS[0]}{token}{ACTIVE_MARKS[1]}"


def _baseline(view: View) -> list[str]:
    """What the battery measured, and the label to beat; a challenger is told of neither."""
    baseline = view.about.get("baseline")
    if view.phase == "challenge" or not baseline:
        return []
    # Its lines were spelled when they were made.
    parts, battery = [], [[cut(" ".join(part.splitlines()), LONG)] for part in baseline.get("battery", ())]
    if battery:
        parts.append(f"Measured beforehand:\n{section(battery, len(battery), tokens=BATTERY)}")
    if not baseline.get("text"):
        return parts
    rule = Rule.parse(baseline["rule"]) if baseline.get("rule") else None
    lines = [line(str(baseline["text"]), LONG)]
    for score in baseline.get("scores", ()):
        if score["value"] is not None and (score["examples"], score["metric"]) in TOLD:
            lines.append(line(f"{score['metric']} on {score['examples']} windows: {score['value']:.2f}"))
    up = next((rival.name for rival in view.rivals if rule is not None and rival.hypothesis.rule == rule), None)
    put_up = f", put up as {up}" if up else ""
    scored = ", with its scores on other text" if len(lines) > 1 else ""
    return [*parts, f"The label to beat{put_up}{scored}:\n{section([lines], 1, tokens=BASELINE)}"]


# Rivals


def _ordered(rivals: Sequence[Rival]) -> list[Rival]:
    """Live ones as they stand, then those that are out, the last one first."""
    out = [rival for rival in rivals if rival.status != "live"]
    return [*(rival for rival in rivals if rival.status == "live"), *reversed(out)]


def _rival(rival: Rival, view: View, *, most: int = LONG) -> list[str]:
    claim = rival.hypothesis
    if rival.status != "live" and most == LONG:
        return [f"{rival.name} {rival.status}: {line(claim.text)}", *_refutation(rival, view)]
    standing = f"{line(claim.kind.replace('_', ' '))}"
    if view.phase != "challenge":
        standing += f", revises {line(claim.parent)}" if claim.parent else ""
        share = "under 0.001" if rival.share < 0.001 else f"{rival.share:.3g}"
        standing += f"; share of the odds {share}; {_record(rival)}"
    # What leads is to be broken, which takes all of it.
    room = most if rival is not view.leader else max(most, LEADING)
    lines = [f"{rival.name} ({standing})", *_odds(rival, view), f"   {line(claim.text, room)}"]
    # The words of a null say what its rule says.
    if claim.rule is not None and (claim.kind not in NULLS or most > LONG):
        lines.append(f"   rule: {_rule(claim.rule, view, room)}")
    if claim.nodes:
        lines.append(f"   nodes: {plain(claim.nodes, most)}")
    effects = {"promotes": claim.promotes, "suppresses": claim.suppresses, "reads": claim.reads}
    lines += [f"   {name}: {plain(items)}" for name, items in effects.items() if items]
    return lines


def _odds(rival: Rival, view: View) -> list[str]:
    if view.phase == "challenge" or not (rival.terms or rival.prior):
        return []
    shown = 1 if rival.hypothesis.kind in NULLS and rival is not view.leader else TERMS
    return [f"   {odds_as_sum(rival, terms=shown)}"]


def _record(rival: Rival) -> str:
    if rival.hypothesis.kind == "no_pattern":
        return "no opinion but the base rate of levels"
    record = f"{rival.resolved} experiments predicted, {rival.silences} of silence"
    if rival.cause is not None:
        record += f"; right on {rival.cause:.0%} of their items whether they are strong"
    return record if rival.hits is None else f"{record}; right level on {rival.hits:.0%} of their items"


def _refutation(rival: Rival, view: View) -> list[str]:
    """The experiment after which a rival was out, and those that it was wrong on most."""
    counts_by_name = [(done.name, counts) for done in view.done if (counts := hits(done, rival.name)) is not None]
    if not counts_by_name or view.leader is None:
        return []
    behind = exp(min(view.leader.log_odds - rival.log_odds, 20))
    odds = f"1 to {behind:.3g}" if behind < 1e6 else "1 to over a million"
    worst = sorted(counts_by_name, key=lambda pair: pair[1][0] / pair[1][1])[:WORST]
    missed = ", ".join(f"{name} {right} of {count}" for name, (right, count) in worst if right < count)
    fall = f"out after {counts_by_name[-1][0]}, {odds} against {view.leader.name}; {_record(rival)}"
    return [line(f"   {fall}" + (f"; worst on {missed}" if missed else ""))]


def _leader_status(view: View) -> str:
    """What is missing for the leader to be supported; to a challenger, how often the claim was right."""
    leader = view.leader
    if leader is None:
        return ""
    if view.phase == "challenge":
        scored = [counts for done in view.done if (counts := hits(done, leader.name)) is not None]
        right, count = (sum(column) for column in zip(*scored, strict=True)) if scored else (0, 0)
        return f"\nIn your experiments the claim had the right level on {right} of {count} items.\n" if scored else ""
    tried = ", ".join(done.name for done in view.done if done.role == "challenger")
    sentences = [f"A challenger tried to break the leader of its time: {tried}."] if tried else []
    experiments = [done for done in view.done if not done.survey]
    if experiments:
        silent = sum(done.of_silence for done in experiments)
        sentences.append(f"Of {len(experiments)} experiments {silent} were of silence for the leader of their time.")
    if leader.resolved:
        missing = _missing(leader, [rival for rival in view.rivals if rival.status == "live" and rival is not leader])
        sentences.append(
            f"{leader.name} leads" + (f"; missing: {', '.join(missing)}." if missing else " and meets every bar.")
        )
    return "\n" + " ".join(sentences) + "\n" if sentences else ""


def _missing(leader: Rival, others: Sequence[Rival]) -> list[str]:
    """The bars that a leader does not meet."""
    odds, ahead = 0.0, "a rival that predicts otherwise"
    if others:
        nearest = max(others, key=lambda rival: rival.log_odds)
        odds = exp(min(leader.log_odds - nearest.log_odds, 20))
        ahead = f"odds of {ODDS:g} to 1 over {nearest.name}, now {odds:.3g}, unless it only ever predicted the same"
    hit, what = (
        (leader.hits, "the right level on") if leader.cause is None else (leader.cause, "told whether strong on")
    )
    hit = hit or 0.0
    return [
        *([f"{RESOLVED - leader.resolved} predictions"] if leader.resolved < RESOLVED else []),
        *([f"{SILENCES - leader.silences} predictions of silence"] if leader.silences < SILENCES else []),
        *([ahead] if odds <= ODDS else []),
        *([f"{what} {HITS:.0%} of items, now {hit:.0%}"] if hit < HITS else []),
    ]


def _rule(rule: Rule, view: View, most: int = LONG) -> str:
    return plain(in_steps(rule, view.scale).model_dump(mode="json", exclude_defaults=True), most)


# Room


def _left(view: View) -> str:
    names = {"experiments": "experiments", "fwd": "prompts through the model"}
    # Rounded up: whoever has a part of an experiment left may run one.
    amounts = [f"{ceil(view.left[kind]):,} {name}" for kind, name in names.items() if kind in view.left]
    return ", ".join(amounts) or "no limit is set"
