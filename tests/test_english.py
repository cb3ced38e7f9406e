"""Rules in English: golden sentences for every kind of condition, and what holds of all of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.rules.english import describe, tell_headline, visible
from neuronaut.rules.language import (
    CLASSES,
    Class,
    Clause,
    Condition,
    Induction,
    Inside,
    Position,
    Regex,
    Repeat,
    Rule,
    Text,
    Token,
)


def rule(*when: Condition, unless: tuple[Condition, ...] = (), value: float = 4.0, **gains: float) -> Rule:
    return Rule(any=(Clause(when=when, unless=unless, value=value, gains=gains),))


SELF = Token(any=(" self",))
AFTER_BRACKET = Token(any=("(",), at=-1)

GOLDEN = {
    "fires on ` self`": rule(SELF),
    "fires on ` self` directly after `(`": rule(SELF, AFTER_BRACKET),
    "fires on `a`, `b`, `c`, `d` and `e`": rule(Token(any=tuple("abcde"))),
    "fires on `1`, `2`, `3`, `4`, `5` and `6`": rule(Token(any=tuple("123456"))),
    "fires on the words `red` and `blue`": rule(Regex(pattern=r"(?i)^\s?(?:red|blue)$")),
    "fires directly after the word `red` or `blue`": rule(Regex(pattern=r"(?i)^\s?(?:red|blue)$", at=-1)),
    "fires on tokens beginning with ` un`": rule(Regex(pattern=r"^\ un")),
    "fires on ` bell` anywhere after ` storm`, except anywhere after ` calm`": rule(
        Token(any=(" bell",)), Token(any=(" storm",), within="any"), unless=(Token(any=(" calm",), within="any"),)
    ),
    "fires on `blue`, less strongly on `red`, weakly on `grey`": rule(
        Token(any=("grey", "red", "blue")), blue=1.0, red=0.4, grey=0.1
    ),
    "fires on `Monday`, except directly after ` on` or ` On`": rule(
        Token(any=("Monday",)), unless=(Token(any=(" on", " On"), at=-1),)
    ),
    "fires on numbers directly after `$`, `€` or `£`": rule(Class(name="digit"), Token(any=tuple("$€£"), at=-1)),
    "fires on numbers that are also tokens with a leading space, most strongly ` 7`": rule(
        Class(name="digit"), Class(name="spaced"), **{" 7": 3.0, " 8": 0.1}
    ),
    "fires on white space directly after punctuation": rule(Class(name="whitespace"), Class(name="punctuation", at=-1)),
    "fires directly after a capitalised word": rule(Class(name="capitalised", at=-1)),
    "fires within 3 tokens after `def` or `class`": rule(Token(any=("def", "class"), within=3)),
    "fires on `:` directly after `def __init__(` and within 9 tokens after a line break": rule(
        Token(any=("(",), at=-1),
        Token(any=(" __init__",), at=-2),
        Token(any=("def",), at=-3),
        Token(any=(":",)),
        Class(name="newline", within=9),
    ),
    "fires on `b` directly after `a` and 3 tokens after `x`": rule(
        Token(any=("b",)), Token(any=("x",), at=-3), Token(any=("a",), at=-1)
    ),
    "fires on tokens ending in `ing`": rule(Regex(pattern="ing$")),
    "fires on tokens matching `/^[a-z]/`": rule(Regex(pattern="^[a-z]")),
    r"fires on `\n` directly after text matching `/import \w+$/`": rule(
        Token(any=("\n",)), Regex(pattern=r"import \w+$", of="text", at=-1)
    ),
    "fires directly after `def __init__(`": rule(Text(ending="def __init__(", at=-1)),
    "fires at the end of `New York`": rule(Text(ending="New York")),
    "fires at the end of `…" + "x" * 39 + "`": rule(Text(ending="x" * 80)),
    "fires in the first 3 tokens of a window": rule(Position(span=(0, 2))),
    "fires on ` self` at positions 5 to 8 of a window": rule(SELF, Position(span=(5, 8))),
    "fires at position 5 of a window": rule(Position(span=(5, 5))),
    "fires at the start of a window": rule(Position(span=(0, 0), every=4)),
    "fires from position 32 of a window on": rule(Position(span=(32, None))),
    "fires at every 4th position of a window": rule(Position(span=(0, None), every=4)),
    "fires at every 2nd position from 1 to 9 of a window": rule(Position(span=(1, 9), every=2)),
    "fires inside double quotes": rule(Inside(what="double")),
    "fires on ` self` inside parentheses, except inside a comment": rule(
        SELF, Inside(what="parentheses"), unless=(Inside(what="comment"),)
    ),
    "fires when a token follows the same token as earlier in the text (induction)": rule(Induction(n=1)),
    "fires when a token follows the same 2 tokens as earlier in the text (induction)": rule(Induction(n=2)),
    "fires on words when the token has occurred before": rule(Class(name="word"), Repeat()),
    "fires when the token has occurred at least 8 tokens before": rule(Repeat(gap=8)),
    "fires on every token": rule(),
    "fires on every token, most strongly `a`": rule(value=1.0, a=5.0),
    r"fires on `\n`, `\t`, `` a`b ``, ` \\` and `\x00`": rule(Token(any=("\n", "\t", "a`b", " \\", "\0"))),
}


@pytest.mark.parametrize("sentence", GOLDEN)
def test_a_rule_reads_as_a_person_would_say_it(sentence: str) -> None:
    assert describe(GOLDEN[sentence]) == sentence


def test_the_first_clause_is_the_headline_and_degrees_compare_with_it() -> None:
    said = Clause(when=(Token(any=(" said",)), Token(any=(" he",), at=-1)), value=1.0)
    blue = Clause(when=(Token(any=(" blue",)),), value=1.6)
    assert tell_headline(Rule(any=(blue, said))) == "fires on ` blue`"
    assert describe(Rule(any=(blue, said))) == "fires on ` blue`; less strongly on ` said` directly after ` he`"
    assert describe(Rule(any=(said, blue))) == "fires on ` said` directly after ` he`; more strongly on ` blue`"


def test_a_token_that_an_earlier_clause_names_in_a_context_fires_elsewhere_too() -> None:
    there, anywhere = Clause(when=(SELF, AFTER_BRACKET), value=2.0), Clause(when=(SELF,), value=1.0)
    assert describe(Rule(any=(there, anywhere))) == (
        "fires on ` self` directly after `(`; less strongly on ` self` elsewhere"
    )


def test_a_graded_set_in_a_context_says_that_all_of_it_needs_the_context() -> None:
    graded = rule(Token(any=("a", "b")), AFTER_BRACKET, a=1.0, b=0.5)
    assert describe(graded) == "fires on `a`, less strongly on `b`, in each case directly after `(`"


def test_exceptions_to_several_clauses_come_last() -> None:
    clauses = (Clause(when=(SELF,), value=1.0), Clause(when=(AFTER_BRACKET,), value=0.9))
    told = describe(Rule(any=clauses, unless=(Inside(what="triple"), Token(any=("x",), at=-2)), floor=0.4))
    assert told == (
        "fires on ` self`; also directly after `(`; never inside a triple-quoted string or 2 tokens after `x`; "
        "elsewhere at 40% of that"
    )


def test_a_rule_far_below_the_peak_fires_weakly() -> None:
    assert describe(rule(SELF, value=2.0), peak=10.0) == "fires weakly on ` self`"
    assert describe(rule(SELF, value=4.0), peak=10.0) == "fires on ` self`"


def test_tokens_that_the_clause_excepts_are_not_named() -> None:
    excepting = rule(Token(any=("a", "b", "c")), unless=(Token(any=("b", "z")),))
    assert describe(excepting) == "fires on `a` and `c`"
    everywhere = Rule(any=excepting.any, unless=(Token(any=("c",)), Inside(what="braces")))
    assert describe(everywhere) == "fires on `a`, except inside braces"


def test_what_the_named_tokens_imply_is_not_told() -> None:
    assert describe(rule(SELF, Class(name="word"), Position(span=(0, None)))) == "fires on ` self`"
    assert describe(rule(Token(any=("a", "b", "1")), Class(name="word"))) == "fires on `a` and `b`"


words_ = st.lists(st.sampled_from(["a", " b", "(", "\n", "``", "word", "7", "\\"]), min_size=1, max_size=12)
conditions_ = st.one_of(
    st.builds(lambda any, at: Token(any=tuple(any), at=at), words_, st.integers(-3, 0)),
    st.builds(lambda any, k: Token(any=tuple(any), within=k), words_, st.integers(1, 9)),
    st.builds(lambda any, at: Token(any=tuple(any), at=at), words_, st.integers(1, 3)),
    st.builds(lambda any, k: Token(any=tuple(any), after=k), words_, st.integers(1, 9)),
    st.builds(lambda name, at: Class(name=name, at=at), st.sampled_from(sorted(CLASSES)), st.integers(-3, 0)),
    st.builds(lambda what: Inside(what=what), st.sampled_from(["double", "comment", "quotes"])),
    st.builds(lambda n: Induction(n=n), st.integers(1, 3)),
    st.builds(lambda first, more: Position(span=(first, first + more)), st.integers(0, 9), st.integers(0, 9)),
)
clauses_ = st.builds(
    lambda when, unless, value, gains: Clause(when=tuple(when), unless=tuple(unless), value=value, gains=gains),
    st.lists(conditions_, max_size=5),
    st.lists(conditions_, max_size=5),
    st.floats(-1, 9),
    st.dictionaries(st.sampled_from(["a", "word", "7"]), st.floats(-1, 9)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(clauses_, min_size=1, max_size=9), st.lists(conditions_, max_size=3), st.floats(0, 9))
def test_every_rule_reads_as_one_line(clauses: list[Clause], unless: list[Condition], peak: float) -> None:
    spoken = Rule(any=tuple(clauses), unless=tuple(unless))
    told = describe(spoken, peak=peak)
    assert told == describe(Rule.parse(spoken.to_json()), peak=peak)
    assert told.startswith(tell_headline(spoken, peak=peak)) and told.startswith("fires ")
    assert told.isprintable()
    assert "  " not in told


@given(st.text(max_size=6), st.text(max_size=6))
def test_two_tokens_never_look_the_same(one: str, other: str) -> None:
    assert (visible(one) == visible(other)) == (one == other)


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ((Token(any=(" sat",), at=1),), "on ` cat` directly before ` sat`"),
        ((Token(any=(" sat", " ran"), at=2),), "on ` cat` 2 tokens before ` sat` or ` ran`"),
        ((Token(any=(" sat",), after=4),), "on ` cat` within 4 tokens before ` sat`"),
        ((Token(any=(" sat",), after="any"),), "on ` cat` anywhere before ` sat`"),
        ((Class(name="digit", at=1),), "on ` cat` directly before a number"),
        ((Token(any=(" on",), at=2), Token(any=(" sat",), at=1)), "on ` cat` directly before ` sat on`"),
        (
            (Token(any=(" the",), at=-1), Token(any=(" sat",), at=1)),
            "on ` cat` directly after ` the` and directly before ` sat`",
        ),
    ],
)
def test_what_stands_behind_a_token_is_what_it_stands_before(conditions: tuple[Condition, ...], told: str) -> None:
    clause = Clause(when=(Token(any=(" cat",)), *conditions), value=1.0)
    assert describe(Rule(any=(clause,))) == f"fires {told}"
