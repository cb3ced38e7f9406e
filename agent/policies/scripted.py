"""The scripted policy of features: scans that leave nothing out, a rule learned from them, experiments against it.

    propose   the one-shot rule and its weaker versions (`rivals`)
    plan      FIRST: the vocabulary at 0 and -1, in places where it fires and in silent ones, and how much context it
              needs; a rule is learned from all that was measured, and put up where it is new
              SECOND: the same further back, pairs, positions, what is open, near misses
              then edits aimed at the likeliest rule and its closest rival, with other draws each time
    revise    whenever the likeliest rule was surprised since a rule was learned last, at most REVISIONS times
    claims    when nothing surprises any more: what it writes and reads is looked up, claimed and tested
    submit    the leader; the verdict is code's

What it decides follows from the view alone. As a challenger it edits at the leader's boundary and scans where nobody
has, with draws of its own, and concedes.

The first rivals of a rule are what is left of it when a part of what it says is dropped. Each says less than the rule
does, so that experiments which tell them apart are experiments on the dropped part.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log
from typing import Any

from ...data.records import Example
from ...rules.english import describe
from ...rules.evaluate import simulate
from ...rules.language import Class, Clause, Condition, Position, Regex, Rule, Token
from ...rules.telling import can_be_told, shorten_to_tell
from ..loop.decisions import MISSES
from ..loop.hypotheses import Action, Call, Hypothesis, Propose, UseTools
from ..loop.judging import ODDS, RESOLVED, SILENCES
from ..loop.view import Rival, View
from .programme import Programme, make_call
from .progress import LEARN, PolicyState, makes_claims

REVISIONS = 7
AIMED = 28
"""Edits of which the outcome is open, at most."""
CALM = 2
"""Edits in a row without a surprise after which a rule is believed."""
FIRM = log(ODDS)
EDIT, COUNT = "edit_at_random", 24
DENSE = 0.3
"""Share of the examples' tokens on which a first rival may expect activity."""


def _edit(purpose: str, *, seed: int, **args: Any) -> Call:
    return make_call(EDIT, purpose, seed=seed, count=COUNT, **args)


def _scan(offset: int, carriers: str, count: int, **args: Any) -> Call:
    where = "where it fires" if carriers == "active" else "where it is silent"
    return make_call(
        "scan_vocabulary",
        f"which tokens at {offset} matter {where}",
        offset=offset,
        carriers=carriers,
        count=count,
        **args,
    )


OUT, READ = 3.0, 0.25
"""Standard deviations over the vocabulary, and share of the activation, from which on something is claimed."""
SURVEYS = (make_call("promoted_tokens", "what it writes"), make_call("upstream", "what it reads", count=3))
EFFECTS = (
    make_call("ablate", "whether what it is said to write goes with it"),
    make_call("steer", "whether what it is said to write comes with it", count=2),
    make_call("cut_upstream", "whether it needs what it is said to read"),
)
FIRST = (
    _scan(0, "silent", 2),
    _scan(0, "near_miss", 1),
    _scan(0, "active", 1),
    _scan(-1, "silent", 1),
    _scan(-1, "near_miss", 1),
    _scan(-1, "active", 2),
    _scan(-2, "silent", 1),
    make_call("prune_context", "how much context it needs", count=3),
)
SECOND = (
    _edit("edits that know of no rule", seed=1),
    _edit("whether each of its conditions is needed", seed=2, boundary=True),
    _scan(-2, "near_miss", 1),
    _scan(-2, "active", 1),
    make_call("mine_near_misses", "what silences it on its own tokens", count=40),
    make_call("probe_state", "whether an earlier copy matters", what="repeat"),
    make_call("probe_state", "whether quotes matter", what="double"),
    make_call("swap_pairs", "whether the previous token matters, or what is open", count=4),
    make_call("sweep_positions", "whether the position matters", count=2),
)

CHALLENGE = (
    make_call("edit_at_random", "an edit of its conditions", boundary=True, seed=101, count=40),
    make_call("edit_at_random", "edits that know of no rule", seed=102, count=40),
    _scan(0, "near_miss", 1, seed=103),
    _scan(-1, "active", 1, seed=104),
)


class ScriptedPolicy(Programme):
    """Investigates a feature by a fixed programme, without asking anybody."""

    settings: Mapping[str, object] = {"version": 1, "revisions": REVISIONS, "aimed": AIMED}
    abstains = "nothing predicts better than the base rate"
    ends = "nothing surprises it any more, or no experiment is left"

    def first_rivals(self, view: View) -> list[Hypothesis]:
        """The one-shot rule and its weaker versions; the tokens at the peaks where there is none."""
        baseline = view.about.get("baseline") or {}
        if not baseline.get("rule"):
            return [hypothesis(at_peaks(view.examples, view.scale))]
        own, *weaker = rivals(Rule.parse(baseline["rule"]), baseline["text"])
        return [own, *(rival for rival in weaker if not _is_dense(rival, view))]

    def challenge(self, state: PolicyState) -> Action | None:
        """Other draws at the leader's boundary, and offsets that the proposer left out."""
        return state.use(CHALLENGE)

    def next_step(self, state: PolicyState) -> Action | None:
        """A sure edit after refusals; else surveys of what matters, revisions, aimed edits, and claims."""
        if (action := _after_refusal(state)) is not None:
            return action
        first, second = (_in_order(calls, state.view.seed) for calls in (FIRST, SECOND))
        action = state.use(first) or _revise(state) or _propose_positions(state)
        return action or state.use(second) or _aim(state) or _claim(state)


def _in_order(calls: Sequence[Call], seed: int) -> list[Call]:
    """The calls as they are listed, or in another order for every other seed, so that runs do not err alike."""
    return random.Random(seed).sample(calls, len(calls)) if seed else list(calls)


def _is_dense(claim: Hypothesis, view: View) -> bool:
    """Whether it expects activity nearly everywhere, so that hardly any experiment could ask it for silence."""
    assert claim.rule is not None, "weaker versions are rules"
    least = claim.rule.fires_from(view.scale / 2)
    active = [value > least for example in view.examples for value in simulate(claim.rule, example.tokens)]
    return sum(active) > DENSE * len(active)


def _after_refusal(state: PolicyState) -> Action | None:
    """An edit that will hardly be refused, after one or two refusals.

    One where silence is expected, if there was too little of that; a plain one before exploring ends for want of plans.
    """
    view, purpose = state.view, "another one, since a plan was refused"
    rejection = view.last_rejection
    if state.misses == 1 and rejection is not None and rejection.code == "silence_quota":
        return UseTools(calls=(_edit(purpose, seed=1000 + view.step, expect="silence"),))
    if state.misses == MISSES - 1:
        return UseTools(calls=(_edit(purpose, seed=1000 + view.step),))
    return None


def _revise(state: PolicyState) -> Action | None:
    """Learns a rule from all that was measured if the best one was surprised, and puts it up."""
    best = state.best
    if state.learned and not state.since:
        new = [rule for rule in _last_learned(state) if not state.proposed(rule)]
        if new:
            return Propose(hypotheses=tuple(hypothesis(rule, parent=best.name if best else None) for rule in new))
    if LEARN not in state.tools or len(state.learned) >= REVISIONS or not state.since:
        return None
    if state.learned and best is not None and not state.surprises(best.name, state.since):
        return None
    return UseTools(calls=(make_call(LEARN, "the rule that fits all that was measured"),))


def _last_learned(state: PolicyState) -> list[Rule]:
    """The rule that was learned last, and the longer one that fits more, where there is one.

    A list of words may leave none of those that can be told for its exception, which only the longer one has then.
    """
    found = state.learned[-1].found
    return [Rule.parse(json.dumps(found[key])) for key in ("rule", "longer") if found.get(key) is not None]


def _propose_positions(state: PolicyState) -> Action | None:
    """Puts up that the position matters, where moving the pivot surprised the best rule and showed that."""
    best = state.best
    done = next((done for done in state.responses if done.tool == "sweep_positions"), None)
    if best is None or best.hypothesis.rule is None or done is None or done.measured is None:
        return None
    sweep, width = done.measured.found, state.view.about["window"]
    if sweep.get("every") is None or not state.surprises(best.name, [done]):
        return None
    last, every = sweep["last"], sweep["every"]
    span = (sweep["first"], last if last < width - every else None)
    claims = at_positions(best.hypothesis.rule, Position(span=span, every=every))
    new = [c.model_copy(update={"parent": best.name}) for c in claims if c.rule and not state.proposed(c.rule)]
    return Propose(hypotheses=tuple(new)) if new else None


def _aim(state: PolicyState) -> Action | None:
    """Edits against the best rule, until nothing surprises and the bars of a verdict are met."""
    best, count = state.best, state.count(EDIT)
    if best is None or count >= AIMED:
        return None
    calm = [done for done in state.since if done.tool == EDIT and not state.surprises(best.name, [done])]
    if len(calm) >= CALM and _is_firm(state, best):
        return None
    rival, seed = _closest(state, best), 1 + count
    kinds: list[dict[str, Any]] = [{"boundary": True}, {"expect": "silence"} if best.silences < SILENCES else {}]
    if rival is not None:
        pair = {"aimed": True, "rivals": [best.name, rival.name]}
        kinds = [{**pair, "expect": "silence"}, {**pair, "expect": "activity"}, *kinds]
    turned = [kinds[(count + i) % len(kinds)] for i in range(len(kinds))]
    calls = [_edit(f"whether {best.name} holds", seed=seed, **kind) for kind in turned]
    return next((action for call in calls if (action := state.use([call])) is not None), None)


def _closest(state: PolicyState, best: Rival) -> Rival | None:
    """The likeliest other rival from which edits may tell it."""
    others = (rival for rival in state.others(best) if rival.hypothesis.rule is not None)
    return next((rival for rival in others if not state.inseparable(best, rival)), None)


def _is_firm(state: PolicyState, best: Rival) -> bool:
    """Whether a verdict for this rival would not fail for want of experiments."""
    ahead = all(
        best.log_odds - rival.log_odds > FIRM
        or (rival.hypothesis.rule is not None and state.alike(best, rival) and state.inseparable(best, rival))
        for rival in state.others(best)
    )
    return best.resolved >= RESOLVED and best.silences >= SILENCES and ahead


def _claim(state: PolicyState) -> Action | None:
    """Looks up what the feature writes and reads, claims it, and tests the claims."""
    leader = state.view.leader
    if leader is None or leader.hypothesis.kind != "rule":
        return None
    if (action := state.use(SURVEYS)) is not None:
        return action
    if any(makes_claims(rival.hypothesis) for rival in state.view.rivals):
        return state.use(EFFECTS)
    claims = _claims(state)
    if not any(claims.values()):
        return None
    return Propose(hypotheses=(leader.hypothesis.model_copy(update={**claims, "parent": leader.name}),))


def _claims(state: PolicyState) -> dict[str, tuple[str, ...]]:
    """What stands out of the surveys, as a hypothesis's fields."""
    tokens = state.survey("promoted_tokens")
    components = state.survey("upstream").get("components", ())
    return {
        "promotes": _outstanding(tokens.get("raises", ())),
        "suppresses": _outstanding(tokens.get("lowers", ())),
        "reads": tuple(component["node"] for component in components if component["share"] >= READ),
    }


def _outstanding(tokens: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The tokens that are moved at least half as much as the first one, and by OUT deviations."""
    moved = {row["token"]: abs(row["deviations"]) for row in tokens}
    return tuple(token for token, value in moved.items() if value >= max(OUT, max(moved.values()) / 2))


FROM_PEAKS = 12
"""Examples whose peak tokens are a first guess, where there is no other."""


def rivals(rule: Rule, text: str) -> list[Hypothesis]:
    """The rule and those of its weaker versions that say something else, none twice, and none that it always fires."""
    claims = {rule.to_json(): Hypothesis(text=text, rule=rule)}
    for weaker in _weaker(rule):
        if all(clause.when for clause in weaker.any):
            claims.setdefault(weaker.to_json(), hypothesis(weaker))
    return list(claims.values())


def hypothesis(rule: Rule, *, parent: str | None = None) -> Hypothesis:
    """A rule as a hypothesis in its own words, as many as can be told."""
    more = "" if can_be_told(rule) else "; and more, as its rule says"
    return Hypothesis(text=describe(shorten_to_tell(rule)) + more, rule=rule, parent=parent)


def at_positions(rule: Rule, position: Position) -> list[Hypothesis]:
    """Hypotheses that nothing but the position matters, and that it matters beside what a rule says."""
    top = max(clause.value for clause in rule.any)
    clauses = (_update(c, when=(*(w for w in c.when if not isinstance(w, Position)), position)) for c in rule.any)
    alone = Rule(any=(Clause(when=(position,), value=top),))
    beside = _with_clauses(rule, clauses)
    return [hypothesis(alone), hypothesis(beside)] if beside != alone else [hypothesis(alone)]


def at_peaks(examples: Sequence[Example], scale: float) -> Rule:
    """A rule of the tokens at which the strongest examples peak, whatever stands before."""
    tokens = [example.tokens[int(example.activations.argmax())] for example in examples[:FROM_PEAKS]]
    return Rule(any=(Clause(when=(Token(any=tuple(dict.fromkeys(tokens))),), value=float(f"{scale:.3g}")),))


def _weaker(rule: Rule) -> Iterator[Rule]:
    clauses = rule.any
    yield _with_clauses(rule, (_update(clause, unless=()) for clause in clauses), unless=())
    if all(_current(clause) for clause in clauses):
        yield _with_clauses(rule, (_update(clause, when=_current(clause), unless=()) for clause in clauses), unless=())
    if len(clauses) > 1:
        yield rule.model_copy(update={"any": clauses[:1]})
    yield _with_clauses(rule, (_update(clause, when=_nearest(clause)) for clause in clauses))


def _with_clauses(rule: Rule, clauses: Iterable[Clause], **fields: object) -> Rule:
    """The rule with these clauses, none twice."""
    distinct = {clause.model_dump_json(): clause for clause in clauses}
    return rule.model_copy(update={"any": tuple(distinct.values()), **fields})


def _update(clause: Clause, **fields: object) -> Clause:
    return clause.model_copy(update=fields)


def _current(clause: Clause) -> tuple[Condition, ...]:
    """What a clause says of the current token alone."""
    return tuple(condition for condition in clause.when if _reach(condition) == 0)


def _nearest(clause: Clause) -> tuple[Condition, ...]:
    """Without its conditions on the farthest of the places that it looks at."""
    reaches = {_reach(condition) for condition in clause.when}
    return tuple(c for c in clause.when if len(reaches) < 2 or _reach(c) < max(reaches))


def _reach(condition: Condition) -> int:
    """How far back a condition looks; farther than any token where it depends on all of the text."""
    if isinstance(condition, Token | Class) or (isinstance(condition, Regex) and condition.of == "token"):
        return condition.reach
    return 1_000_000
