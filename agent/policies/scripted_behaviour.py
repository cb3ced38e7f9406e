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

from ...causal.circuits.nodes import parse_nodes
from ..loop.behaviour_lab import JOIN
from ..loop.hypotheses import Action, Call, Hypothesis, Propose, UseTools
from ..loop.levels import EDGES, levels_of
from ..loop.view import View
from .programme import Programme, make_call
from .progress import PolicyState

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
_NAMED = 24
"""Nodes that a text names."""
_SURVEYS = ("attribute_nodes", "find_circuit", "head_patterns", "direct_logits")


class ScriptedBehaviourPolicy(Programme):
    """Investigates a behaviour by a fixed programme."""

    settings: Mapping[str, object] = {"version": 1}
    abstains = "nothing more is worth an experiment"
    ends = "the programme is through"

    def first_rivals(self, view: View) -> list[Hypothesis]:
        """The MLPs alone, and the nulls."""
        nulls = [
            Hypothesis(text="Only the last token matters.", kind="token_identity"),
            Hypothesis(text="No pattern.", kind="no_pattern"),
        ]
        mlps = [node for node in view.about["nodes"] if node.startswith("mlp_out.")]
        if not mlps:
            return nulls
        text = f"{view.about['task']} is done by the MLPs alone; no head matters."
        return [Hypothesis(text=text, kind="circuit", nodes=dict.fromkeys(mlps, 0.5)), *nulls]

    def challenge(self, state: PolicyState) -> Action | None:
        """Other random nodes and sets, once."""
        return None if state.view.done else _use(state, _challenges(state.view))

    def next_step(self, state: PolicyState) -> Action | None:
        """What surveys and surprises say that no rival says yet, then the rounds in order."""
        if new := _proposals(state):
            return Propose(hypotheses=tuple(new))
        return next((action for calls in _rounds(state) if (action := _use(state, calls)) is not None), None)


def _use(state: PolicyState, calls: Sequence[Call]) -> UseTools | None:
    """Those of the calls that were not run before, less what was refused in this step."""
    left = [call for call in calls if call.tool in state.tools and not state.has_run(call)]
    if (rejection := state.view.last_rejection) is not None:
        left = [call for call in left if call.tool != rejection.tool]
        if rejection.tool is None:  # too little silence in the plan as a whole
            left = [call for call in left if call.args.get("expect") == "silence"]
    return UseTools(calls=tuple(left)) if left else None


# Hypotheses


def _proposals(state: PolicyState) -> list[Hypothesis]:
    """What the surveys and surprises say that no rival says yet."""
    new = [*_from_surveys(state), *_revised(state)]
    circuits = [rival.hypothesis.nodes for rival in state.view.rivals]
    return [hypothesis for hypothesis in new if hypothesis.nodes not in circuits]


def _from_surveys(state: PolicyState) -> Iterator[Hypothesis]:
    view = state.view
    for measured in state.results("find_circuit"):
        if nodes := dict(measured.found["proposal"]):
            yield Hypothesis(text=_describe(state, nodes), kind="circuit", nodes=nodes)
    for measured in state.results("attribute_nodes"):
        heads = [row["node"] for row in measured.found["nodes"] if row["node"].startswith("head.")]
        if heads:
            layer = heads[0].partition(":")[0]
            nodes = {node: 0.5 for node in view.about["nodes"] if node.startswith(f"{layer}:")}
            text = f"{view.about['task']} is done by the heads of layer {layer.removeprefix('head.')} alone."
            yield Hypothesis(text=text, kind="circuit", nodes=nodes)


def _revised(state: PolicyState) -> Iterator[Hypothesis]:
    """The leader with the shares that were measured, where these are others."""
    leader = state.view.leader
    revisions = sum(rival.hypothesis.parent is not None for rival in state.view.rivals)
    if leader is None or leader.hypothesis.kind != "circuit" or revisions >= REVISIONS:
        return
    nodes = dict(leader.hypothesis.nodes)
    shares = _measured_shares(state.view)
    wrong = {node: share for node, share in shares.items() if _is_surprise(nodes.get(node, 0.0), share)}
    if wrong:
        nodes |= {node: round(share, 3) for node, share in wrong.items()}
        yield Hypothesis(text=_describe(state, nodes), kind="circuit", nodes=nodes, parent=leader.name)


def _is_surprise(expected: float, value: float) -> bool:
    levels = levels_of([expected, value])
    return bool(levels[0] != levels[1]) and abs(expected - value) >= FAR


def _measured_shares(view: View) -> dict[str, float]:
    """By node, the mean share that went when it alone was cut."""
    values: dict[str, list[float]] = {}
    for done in view.done:
        if done.measured is None or done.survey:
            continue
        for item, value in zip(done.design.items, done.measured.values, strict=True):
            if "node" in item.about:
                values.setdefault(item.about["node"], []).append(value)
    return {node: sum(shares) / len(shares) for node, shares in values.items()}


def _describe(state: PolicyState, nodes: Mapping[str, float]) -> str:
    """A circuit in words."""
    patterns = _patterns(state)
    single = sorted((node for node in nodes if JOIN not in node), key=lambda node: -abs(nodes[node]))
    needed = [node for node in single if abs(nodes[node]) >= EDGES[1]]
    rest = [node for node in single if node not in needed]

    def name(node: str) -> str:
        return f"{node} ({patterns[node]})" if node in patterns else node

    text = f"{state.view.about['task']} needs {', '.join(map(name, needed[:_NAMED])) or 'no node by itself'}"
    if rest:
        text += f"; {', '.join(map(name, rest[:_NAMED]))} take part, and none of these is missed alone"
    together = [node.replace(JOIN, " and ") for node in nodes if JOIN in node]
    return text + "".join(f"; {backups} back each other up" for backups in together[:4]) + "."


def _patterns(state: PolicyState) -> dict[str, str]:
    """By head, what it is called for where it looks."""
    patterns: dict[str, str] = {}
    for measured in state.results("head_patterns"):
        for kind, words in _PATTERNS.items():
            rows = measured.found.get(kind, [])
            patterns |= {row["head"]: words for row in rows if row["share"] >= _PATTERN}
    return patterns


# Experiments


def _rounds(state: PolicyState) -> Iterator[list[Call]]:
    """The rounds, in order; each is what is still wanted of it."""
    view = state.view
    yield [Call(tool=tool, purpose="to see which nodes may matter, and how") for tool in _SURVEYS]
    leading = next(
        (rival.hypothesis for rival in view.rivals if rival.status == "live" and rival.hypothesis.nodes), None
    )
    if leading is None:
        return
    claimed, again = _circuit(state), max(0, len(state.results("find_circuit")) - 1)
    if claimed:
        others = [node for node in _ranked(state) if node not in claimed][: max(2, len(claimed) // 2)]
        yield [Call(tool="cut_nodes", args={"nodes": [*claimed, *others][:64]}, purpose="does each cost what is said?")]
    yield [
        make_call("cut_nodes", "is anything missed that is worth much?", choose="top", expect="silence"),
        make_call("cut_together", "is anything outside needed, or are there backups outside?", expect="silence"),
        make_call("keep_only", "does the circuit do it alone?", draw=again),
        make_call("cut_together", "do its parts add up, or back each other up?", draw=again),
    ]
    if _is_weak_alone(state):
        yield [make_call("find_circuit", "the circuit alone does too little", threshold=STRICT)]
    fresh = [
        make_call("swap_prompts", "does the rest stay silent on fresh prompts?", prompts=1, expect="silence"),
        make_call("swap_prompts", "are the shares the same on fresh prompts?", prompts=2, expect="activity"),
    ]
    yield [
        make_call("cut_nodes", "are other nodes silent?", choose="random", expect="silence", draw=1 + again),
        make_call("keep_only", "do random circuits do it, too?", expect="silence"),
        *(fresh if view.about["fresh"] else []),
        make_call("cut_together", "are other halves of the rest silent?", expect="silence", draw=1),
    ]
    yield [
        make_call("restore_nodes", "is anything outside enough by itself?", choose="top", expect="silence"),
        make_call("keep_only", "which random circuits do it, too?", expect="silence", draw=1),
        make_call("cut_together", "do its parts matter as much beside others?", draw=1 + again),
    ]


def _challenges(view: View) -> list[Call]:
    last = [make_call("swap_prompts", "does it break on fresh prompts?", prompts=3, expect="silence")]
    return [
        make_call("cut_nodes", "is there a node outside that matters?", choose="random", expect="silence", draw=50),
        make_call("cut_together", "do nodes outside matter together?", expect="silence", draw=50),
        *(last if view.about["fresh"] else []),
        make_call("keep_only", "which part can be left out?", draw=50),
    ]


def _circuit(state: PolicyState) -> list[str]:
    """All single nodes that the latest pruning names, with backups."""
    texts = [text for measured in state.results("find_circuit")[-1:] for text in measured.found["proposal"]]
    return [str(node) for node in dict.fromkeys(n for t in texts for part in t.split(JOIN) for n in parse_nodes(part))]


def _ranked(state: PolicyState) -> list[str]:
    """Nodes by attribution, the largest first, as far as a survey lists them; then all others."""
    listed = [row["node"] for measured in state.results("attribute_nodes") for row in measured.found["nodes"]]
    return list(dict.fromkeys([*listed, *state.view.about["nodes"]]))


def _is_weak_alone(state: PolicyState) -> bool:
    """Whether the circuit did too little alone, when it was last asked to."""
    alone = [measured.effect for measured in state.results("keep_only")]
    return bool(alone) and (alone[-1] or 0.0) < ALONE
