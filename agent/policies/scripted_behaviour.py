"""The scripted policy of behaviours: surveys, a circuit from the pruning, cuts inside and outside it. It asks nobody.

    propose   the MLPs alone; after the surveys the circuit that the pruning found, with each node's share and with its
              backups, and against it all heads of the layer with the largest attribution
    plan      surveys; then every round half of its experiments where the circuit expects silence: nodes inside cut
              beside nodes outside, the circuit alone, sets cut together, random halves of the rest, fresh prompts
    revise    nodes that cost another level than expected, by FAR or more, get the share that was measured; a circuit
              that does too little alone is looked for again at a higher threshold
    submit    the leader, when all of that was run

What it decides follows from the view alone. As a challenger it draws other random nodes and sets, once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...causal.circuits.nodes import parse_nodes
from ...llm.types import Reply
from ..loop.behaviour_lab import JOIN
from ..loop.experiments import AnyTool
from ..loop.hypotheses import Action, Call, Concede, Hypothesis, Propose, Submit, UseTools
from ..loop.levels import EDGES, levels_of
from ..loop.view import Done, View

FAR = 0.1
"""Between expected and measured share: how far apart they are, beside being of other levels, for a revision."""
ALONE = 0.8
"""What a circuit alone does at least, or else a larger one is looked for."""
REVISIONS = 3
STRICT = 0.96
"""Threshold of the second pruning."""
_PATTERN = 0.4
"""Share of attention from which on a head is called by its pattern."""
_PATTERNS = {
    "previous": "looks at the previous token",
    "duplicate": "looks at earlier copies of its token",
    "induction": "looks at what followed earlier copies of its token",
}
_TOLD = 24
"""Nodes that a text names."""
_SURVEYS = ("attribute_nodes", "find_circuit", "head_patterns", "direct_logits")


class ScriptedBehaviourPolicy:
    """Investigates a behaviour by a fixed programme."""

    name = "scripted"
    settings: Mapping[str, object] = {"version": 1}
    asked: Sequence[Reply] = ()

    def decide(self, view: View, actions: Sequence[str], tools: Sequence[AnyTool]) -> Action:
        """The next step of the programme."""
        known = {tool.name for tool in tools}
        if view.phase == "challenge":
            calls = [] if view.done else _challenges(view)
            return _used(view, calls, known) or Concede()
        if view.phase == "propose":
            return Propose(hypotheses=tuple(_first(view)))
        if "propose" in actions and (new := _proposals(view)):
            return Propose(hypotheses=tuple(new))
        for calls in _programme(view):
            if action := _used(view, calls, known):
                return action
        leader = view.leader
        if leader is None or leader.hypothesis.kind == "no_pattern":
            return Submit(answer="no_explanation")
        return Submit(answer=leader.name, reason="the programme is through")


def _used(view: View, calls: Sequence[Call], known: set[str]) -> UseTools | None:
    """Those of the calls that were not made before, less what was refused in this step."""
    made = {(done.tool, _key(done.args, call.args)) for done in view.done for call in calls if done.tool == call.tool}
    left = [call for call in calls if call.tool in known and (call.tool, _key(call.args, call.args)) not in made]
    if (rejection := view.last_rejection) is not None:
        left = [call for call in left if call.tool != rejection.tool]
        if rejection.tool is None:  # too little silence in the plan as a whole
            left = [call for call in left if call.args.get("expect") == "silence"]
    return UseTools(calls=tuple(left)) if left else None


def _key(args: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The arguments that a call names."""
    return repr([(name, _plain(args.get(name))) for name in sorted(asked)])


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


# Hypotheses


def _first(view: View) -> list[Hypothesis]:
    mlps = [node for node in view.about["nodes"] if node.startswith("mlp_out.")]
    nulls = [
        Hypothesis(text="Only the last token matters.", kind="token_identity"),
        Hypothesis(text="No pattern.", kind="no_pattern"),
    ]
    if not mlps:
        return nulls
    text = f"{view.about['task']} is done by the MLPs alone; no head matters."
    return [Hypothesis(text=text, kind="circuit", nodes=dict.fromkeys(mlps, 0.5)), *nulls]


def _proposals(view: View) -> list[Hypothesis]:
    """What the surveys and surprises say that no rival says yet."""
    new = [*_from_surveys(view), *_revised(view)]
    known = [rival.hypothesis.nodes for rival in view.rivals]
    return [hypothesis for hypothesis in new if hypothesis.nodes not in known]


def _from_surveys(view: View) -> Iterator[Hypothesis]:
    for done in _surveyed(view, "find_circuit"):
        assert done.measured is not None, "surveyed ones were measured"
        if nodes := dict(done.measured.found["proposal"]):
            yield Hypothesis(text=_told(view, nodes), kind="circuit", nodes=nodes)
    for done in _surveyed(view, "attribute_nodes"):
        assert done.measured is not None, "surveyed ones were measured"
        heads = [row["node"] for row in done.measured.found["nodes"] if row["node"].startswith("head.")]
        if heads:
            layer = heads[0].partition(":")[0]
            nodes = {node: 0.5 for node in view.about["nodes"] if node.startswith(f"{layer}:")}
            text = f"{view.about['task']} is done by the heads of layer {layer.removeprefix('head.')} alone."
            yield Hypothesis(text=text, kind="circuit", nodes=nodes)


def _revised(view: View) -> Iterator[Hypothesis]:
    """The leader with the shares that were measured, where these are others."""
    leader = view.leader
    revisions = sum(rival.hypothesis.parent is not None for rival in view.rivals)
    if leader is None or leader.hypothesis.kind != "circuit" or revisions >= REVISIONS:
        return
    seen = _seen(view)
    nodes = dict(leader.hypothesis.nodes)
    wrong = {node: value for node, value in seen.items() if _surprising(nodes.get(node, 0.0), value)}
    if wrong:
        nodes |= {node: round(value, 3) for node, value in wrong.items()}
        yield Hypothesis(text=_told(view, nodes), kind="circuit", nodes=nodes, parent=leader.name)


def _surprising(expected: float, value: float) -> bool:
    one, other = levels_of([expected, value])
    return bool(one != other) and abs(expected - value) >= FAR


def _seen(view: View) -> dict[str, float]:
    """By node, the mean share that went when it alone was cut."""
    values: dict[str, list[float]] = {}
    for done in view.done:
        if done.measured is None or done.survey:
            continue
        for item, value in zip(done.design.items, done.measured.values, strict=True):
            if "node" in item.about:
                values.setdefault(item.about["node"], []).append(value)
    return {node: sum(those) / len(those) for node, those in values.items()}


def _told(view: View, nodes: Mapping[str, float]) -> str:
    """A circuit in words."""
    patterns = _patterns(view)
    single = sorted((node for node in nodes if JOIN not in node), key=lambda node: -abs(nodes[node]))
    needed = [node for node in single if abs(nodes[node]) >= EDGES[1]]
    rest = [node for node in single if node not in needed]

    def named(node: str) -> str:
        return f"{node} ({patterns[node]})" if node in patterns else node

    text = f"{view.about['task']} needs {', '.join(map(named, needed[:_TOLD])) or 'no node by itself'}"
    if rest:
        text += f"; {', '.join(map(named, rest[:_TOLD]))} take part, and none of these is missed alone"
    together = [node.replace(JOIN, " and ") for node in nodes if JOIN in node]
    return text + "".join(f"; {both} back each other up" for both in together[:4]) + "."


def _patterns(view: View) -> dict[str, str]:
    """By head, what it is called for where it looks."""
    found: dict[str, str] = {}
    for done in _surveyed(view, "head_patterns"):
        assert done.measured is not None, "surveyed ones were measured"
        for kind, words in _PATTERNS.items():
            rows = done.measured.found.get(kind, [])
            found |= {row["head"]: words for row in rows if row["share"] >= _PATTERN}
    return found


def _surveyed(view: View, tool: str) -> list[Done]:
    return [done for done in view.done if done.tool == tool and done.measured is not None]


# Experiments


def _programme(view: View) -> Iterator[list[Call]]:
    """The rounds, in order; each is what is still wanted of it."""
    yield [Call(tool=tool, purpose="to see which nodes may matter, and how") for tool in _SURVEYS]
    leading = next(
        (rival.hypothesis for rival in view.rivals if rival.status == "live" and rival.hypothesis.nodes), None
    )
    if leading is None:
        return
    claimed, again = _circuit(view), max(0, len(_surveyed(view, "find_circuit")) - 1)
    if claimed:
        others = [node for node in _ranked(view) if node not in claimed][: max(2, len(claimed) // 2)]
        yield [Call(tool="cut_nodes", args={"nodes": [*claimed, *others][:64]}, purpose="does each cost what is said?")]
    yield [
        _call("cut_nodes", "is anything missed that is worth much?", choose="top", expect="silence"),
        _call("cut_together", "is anything outside needed, or are there backups outside?", expect="silence"),
        _call("keep_only", "does the circuit do it alone?", draw=again),
        _call("cut_together", "do its parts add up, or back each other up?", draw=again),
    ]
    if _weak_alone(view):
        yield [_call("find_circuit", "the circuit alone does too little", threshold=STRICT)]
    fresh = [
        _call("swap_prompts", "does the rest stay silent on fresh prompts?", prompts=1, expect="silence"),
        _call("swap_prompts", "are the shares the same on fresh prompts?", prompts=2, expect="activity"),
    ]
    yield [
        _call("cut_nodes", "are other nodes silent?", choose="random", expect="silence", draw=1 + again),
        _call("keep_only", "do random circuits do it, too?", expect="silence"),
        *(fresh if view.about["fresh"] else []),
        _call("cut_together", "are other halves of the rest silent?", expect="silence", draw=1),
    ]
    yield [
        _call("restore_nodes", "is anything outside enough by itself?", choose="top", expect="silence"),
        _call("keep_only", "which random circuits do it, too?", expect="silence", draw=1),
        _call("cut_together", "do its parts matter as much beside others?", draw=1 + again),
    ]


def _call(tool: str, purpose: str, **args: Any) -> Call:
    return Call(tool=tool, args=args, purpose=purpose)


def _challenges(view: View) -> list[Call]:
    last = [_call("swap_prompts", "does it break on fresh prompts?", prompts=3, expect="silence")]
    return [
        _call("cut_nodes", "is there a node outside that matters?", choose="random", expect="silence", draw=50),
        _call("cut_together", "do nodes outside matter together?", expect="silence", draw=50),
        *(last if view.about["fresh"] else []),
        _call("keep_only", "which part can be left out?", draw=50),
    ]


def _circuit(view: View) -> list[str]:
    """All single nodes that the latest pruning names, with backups."""
    found = _surveyed(view, "find_circuit")[-1:]
    texts = [text for done in found if done.measured for text in done.measured.found["proposal"]]
    return [str(node) for node in dict.fromkeys(n for t in texts for part in t.split(JOIN) for n in parse_nodes(part))]


def _ranked(view: View) -> list[str]:
    """Nodes by attribution, the largest first, as far as they were shown."""
    surveys = [done.measured for done in _surveyed(view, "attribute_nodes") if done.measured is not None]
    shown = [row["node"] for survey in surveys for row in survey.found["nodes"]]
    return list(dict.fromkeys([*shown, *view.about["nodes"]]))


def _weak_alone(view: View) -> bool:
    """Whether the circuit did too little alone, when it was last asked to."""
    alone = [done.measured.effect for done in view.done if done.tool == "keep_only" and done.measured is not None]
    return bool(alone) and (alone[-1] or 0.0) < ALONE
