"""Rivals of a rule: what is left of it when a part of what it says is dropped.

Each says less than the rule does, so that experiments which tell them apart are experiments on the dropped part.
"""

from collections.abc import Iterable, Iterator, Sequence

from ...data.records import Example
from ...explainers.english import describe
from ...explainers.rules import Class, Clause, Condition, Position, Regex, Rule, Token
from ..investigation.hypotheses import Hypothesis

FROM_PEAKS = 12
"""Examples whose peak tokens are a first guess, where there is no other."""


def rivals(rule: Rule, text: str) -> list[Hypothesis]:
    """The rule and those of its weaker versions that say something else, none twice, and none that it always fires."""
    found = {rule.to_json(): Hypothesis(text=text, rule=rule)}
    for weaker in (one for one in _weaker(rule) if all(clause.when for clause in one.any)):
        found.setdefault(weaker.to_json(), hypothesis(weaker))
    return list(found.values())


def hypothesis(rule: Rule, *, parent: str | None = None) -> Hypothesis:
    """A rule as a hypothesis in its own words."""
    return Hypothesis(text=describe(rule), rule=rule, parent=parent)


def at_positions(rule: Rule, position: Position) -> list[Hypothesis]:
    """That nothing but the position matters, and that it matters beside what a rule says."""
    top = max(clause.value for clause in rule.any)
    clauses = (_update(c, when=(*(w for w in c.when if not isinstance(w, Position)), position)) for c in rule.any)
    alone = Rule(any=(Clause(when=(position,), value=top),))
    both = _of(rule, clauses)
    return [hypothesis(alone), hypothesis(both)] if both != alone else [hypothesis(alone)]


def at_peaks(examples: Sequence[Example], scale: float) -> Rule:
    """The tokens at which the strongest examples peak, whatever stands before."""
    tokens = [example.tokens[int(example.activations.argmax())] for example in examples[:FROM_PEAKS]]
    return Rule(any=(Clause(when=(Token(any=tuple(dict.fromkeys(tokens))),), value=float(f"{scale:.3g}")),))


def _weaker(rule: Rule) -> Iterator[Rule]:
    clauses = rule.any
    yield _of(rule, (_update(clause, unless=()) for clause in clauses), unless=())
    if all(_current(clause) for clause in clauses):
        yield _of(rule, (_update(clause, when=_current(clause), unless=()) for clause in clauses), unless=())
    if len(clauses) > 1:
        yield rule.model_copy(update={"any": clauses[:1]})
    yield _of(rule, (_update(clause, when=_nearest(clause)) for clause in clauses))


def _of(rule: Rule, clauses: Iterable[Clause], **fields: object) -> Rule:
    """The rule with these clauses, none twice."""
    each = {clause.model_dump_json(): clause for clause in clauses}
    return rule.model_copy(update={"any": tuple(each.values()), **fields})


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
        return condition.within or -condition.at
    return 1_000_000
