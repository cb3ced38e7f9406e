"""How much of a rule can be told: a headline of at most 15 words, and at most 25 more."""

from itertools import permutations

from .english import STRONG, count_words, describe, tell_headline
from .ground import named_tokens
from .language import Clause, Condition, Rule, Token
from .tree import names_current

WORDS, HEADLINE = 40, 15
"""Most words of a description, and of its first clause."""


def can_be_told(rule: Rule) -> bool:
    """Whether the whole rule, and its first clause, can be said in the words that there are, without contradiction."""
    short = count_words(tell_headline(rule)) <= HEADLINE and count_words(describe(rule)) <= WORDS
    return short and not any(_contradict(one, other) for one, other in permutations(rule.any, 2))


def _contradict(one: Clause, other: Clause) -> bool:
    """Whether one clause excepts what the other needs and is as strong there."""
    return not {*one.unless}.isdisjoint(other.when) and highest(other) >= STRONG * highest(one)


def highest(clause: Clause) -> float:
    """The highest activation that a clause predicts."""
    return max(clause.gains.values(), default=clause.value)


def shorten_to_tell(rule: Rule) -> Rule:
    """As much of a rule as can be told: the clauses from the first on, each with the strongest of its tokens.

    What experiments have measured stays in the rule itself, however long that makes it.
    """
    if can_be_told(rule):
        return rule
    shorter = Rule(any=(_shorten_clause(rule.any[0]),), floor=rule.floor)
    for clause in rule.any[1:]:
        longer = shorter.model_copy(update={"any": (*shorter.any, _shorten_clause(clause))})
        if not can_be_told(longer):
            break
        shorter = longer
    whole = shorter.model_copy(update={"unless": rule.unless})
    return whole if can_be_told(whole) else shorter


def _shorten_clause(clause: Clause) -> Clause:
    """The clause with fewer tokens, exceptions and conditions, until it can be a headline."""
    shorter = clause
    for members, conditions, exceptions in ((4, 3, 2), (2, 3, 2), (2, 2, 1), (2, 2, 0), (1, 2, 0), (1, 1, 0)):
        strongest = sorted(clause.gains, key=lambda token: -clause.gains[token])
        named = tuple(token for token in strongest if token in named_tokens(clause)) or named_tokens(clause)
        when = [c.model_copy(update={"any": named}) if names_current(c) else c for c in clause.when]
        shorter = clause.model_copy(
            update={
                "when": tuple(cut_set(c, members) for c in when[:conditions]),
                "unless": tuple(cut_set(c, members) for c in clause.unless[:exceptions]),
                "gains": {token: clause.gains[token] for token in strongest[:members]},
            }
        )
        if can_be_told(Rule(any=(shorter,))):
            break
    return shorter


def cut_set(condition: Condition, members: int = 4) -> Condition:
    """The condition with no more tokens than can be told."""
    if not isinstance(condition, Token):
        return condition
    return condition.model_copy(update={"any": condition.any[:members]})
