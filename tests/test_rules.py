"""Rules: their JSON, their faults, and the grid evaluator against a naive one that reads token by token."""

import json
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neuronaut.rules.evaluate import BITS, LOOKBACK, TokenGrid, clause_matches, matches, predict, scan_states, simulate
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
from neuronaut.subject.errors import NeuronautError

# A second implementation, one token at a time and from the definitions.


def naive_holds(condition: Condition, tokens: list[str], i: int) -> bool:
    if isinstance(condition, Token | Class | Regex | Text):
        back = i if condition.within == "any" else condition.within
        ahead = len(tokens) if condition.after == "any" else condition.after
        places = [i + condition.at] if back is None else range(i - back, i)
        places = places if ahead is None else range(i + 1, i + ahead + 1)
        return any(naive_placed(condition, tokens, place) for place in places if 0 <= place < len(tokens))
    if isinstance(condition, Position):
        first, last = condition.span
        return i in range(first, len(tokens) if last is None else last + 1, condition.every)
    if isinstance(condition, Inside):
        return bool(naive_state("".join(tokens[:i])) & {condition.what, *alias(condition.what)})
    n = 0 if isinstance(condition, Repeat) else condition.n
    gap = condition.gap if isinstance(condition, Repeat) else 1
    return any(j >= n and tokens[j - n : j + 1] == tokens[i - n : i + 1] for j in range(i - gap + 1))


def alias(what: str) -> tuple[str, ...]:
    return ("single", "double", "triple") if what == "quotes" else ()


def naive_placed(condition: Token | Class | Regex | Text, tokens: list[str], place: int) -> bool:
    so_far = "".join(tokens[: place + 1])
    if isinstance(condition, Token):
        return tokens[place] in condition.any
    if isinstance(condition, Class):
        return CLASSES[condition.name](tokens[place])
    if isinstance(condition, Text):
        return so_far.endswith(condition.ending)
    return re.search(condition.pattern, tokens[place] if condition.of == "token" else so_far[-LOOKBACK:]) is not None


def naive_state(text: str) -> set[str]:
    """Read the text by consuming from its front whatever the current mode says comes next."""
    brackets, mode, done = [], "", 0
    while done < len(text):
        rest = text[done:]
        if rest[0] == "\\" and len(rest) > 1 and rest[1] != "\n":
            done += 2
            continue
        step = 1
        if mode == "":
            quote = rest[0] if rest[0] in "'\"" else None
            word = re.search(r"\w*\Z", text[:done])
            plain = word is not None and word[0] and not re.fullmatch(r"(?i)[rbuf]|[rR]?[bBfF]|[bBfF][rR]", word[0])
            if quote and rest.startswith(quote * 3) and not (quote == "'" and plain):
                mode, step = quote * 3, 3
            elif quote and not (quote == "'" and plain):
                mode = quote
            elif rest[0] == "#":
                mode = "#"
            elif rest[0] in "([{":
                brackets.append(rest[0])
            elif rest[0] in ")]}":
                opener = "([{"[")]}".index(rest[0])]
                if opener in brackets:
                    brackets.remove(opener)
        elif len(mode) == 3:
            if rest.startswith(mode):
                mode, step = "", 3
        elif rest[0] == "\n" or (rest[0] == mode and mode != "#"):
            mode = ""
        done += step
    names = {"'": "single", '"': "double", "'''": "triple", '"""': "triple", "#": "comment"}
    kinds = {"(": "parentheses", "[": "brackets", "{": "braces"}
    found = {kinds[bracket] for bracket in brackets}
    return found | ({names[mode]} if mode else set())


def naive_predict(rule: Rule, tokens: list[str], i: int) -> float:
    if any(naive_holds(condition, tokens, i) for condition in rule.unless):
        return 0.0
    values = [
        clause.gains.get(tokens[i], clause.value)
        for clause in rule.any
        if all(naive_holds(condition, tokens, i) for condition in clause.when)
        and not any(naive_holds(condition, tokens, i) for condition in clause.unless)
    ]
    return max(values, default=rule.floor)


PIECES = [
    "a",
    " a",
    "b",
    "ab",
    "A",
    " Ab",
    "7",
    "12",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    '"',
    '"""',
    "'",
    "#",
    "\n",
    " ",
    "\\",
]
MORE_PIECES = ["", "r'", '""', "_x", "é", "\t", "'s", "�"]
tokens_ = st.sampled_from(PIECES + MORE_PIECES)
windows_ = st.lists(st.lists(tokens_, max_size=14), min_size=1, max_size=4)
places_ = st.one_of(
    st.builds(lambda at: {"at": at}, st.integers(-4, 0)),
    st.builds(lambda k: {"within": k}, st.integers(1, 16) | st.just("any")),
)
both_sides_ = st.one_of(
    places_,
    st.builds(lambda at: {"at": at}, st.integers(1, 16)),
    st.builds(lambda k: {"after": k}, st.integers(1, 16) | st.just("any")),
)
spans_ = st.tuples(st.integers(0, 5), st.none() | st.integers(0, 6)).map(
    lambda s: (s[0], None if s[1] is None else s[0] + s[1])
)
patterns_ = st.sampled_from(["a", "^a", r"\d+$", r"[(\[]$", "(?i)AB", r"a\W*b$"])
conditions_ = st.one_of(
    st.builds(
        lambda any, place: Token(any=tuple(any), **place), st.lists(tokens_, min_size=1, max_size=4), both_sides_
    ),
    st.builds(lambda name, place: Class(name=name, **place), st.sampled_from(sorted(CLASSES)), both_sides_),
    st.builds(lambda pattern, place: Regex(pattern=pattern, **place), patterns_, both_sides_),
    st.builds(lambda pattern, place: Regex(pattern=pattern, of="text", **place), patterns_, places_),
    st.builds(lambda text, place: Text(ending="".join(text) or "a", **place), st.lists(tokens_, max_size=3), places_),
    st.builds(lambda span, every: Position(span=span, every=every), spans_, st.integers(1, 4)),
    st.builds(lambda what: Inside(what=what), st.sampled_from(sorted(BITS))),
    st.builds(lambda gap: Repeat(gap=gap), st.integers(1, 5)),
    st.builds(lambda n: Induction(n=n), st.integers(1, 4)),
)
values_ = st.floats(-8, 8, width=32)
clauses_ = st.builds(
    lambda when, unless, value, gains: Clause(when=tuple(when), unless=tuple(unless), value=value, gains=gains),
    st.lists(conditions_, max_size=3),
    st.lists(conditions_, max_size=1),
    values_,
    st.dictionaries(tokens_, values_, max_size=3),
)
rules_ = st.builds(
    lambda clauses, unless, floor: Rule(any=tuple(clauses), unless=tuple(unless), floor=floor),
    st.lists(clauses_, min_size=1, max_size=3),
    st.lists(conditions_, max_size=1),
    values_,
)


@settings(max_examples=300, deadline=None)
@example(Inside(what="quotes"), [["a", "\n", "'s", "a"]])
@given(conditions_, windows_)
def test_a_condition_holds_where_the_naive_reading_says(condition: Condition, windows: list[list[str]]) -> None:
    grid = TokenGrid.of(windows)
    held = matches(condition, grid)
    for row, window in zip(held, windows, strict=True):
        assert row[: len(window)].tolist() == [naive_holds(condition, window, i) for i in range(len(window))]
        assert not row[len(window) :].any()


@settings(max_examples=200, deadline=None)
@given(rules_, windows_)
def test_a_rule_predicts_what_the_naive_reading_says(rule: Rule, windows: list[list[str]]) -> None:
    predicted = predict(rule, TokenGrid.of(windows))
    assert predicted.dtype == np.float32
    for row, window in zip(predicted, windows, strict=True):
        expected = [naive_predict(rule, window, i) for i in range(len(window))]
        assert row.tolist() == expected + [0.0] * (len(row) - len(window))
        assert simulate(rule, window) == expected


@settings(max_examples=200, deadline=None)
@given(rules_)
def test_json_reads_back_to_the_same_rule(rule: Rule) -> None:
    text = rule.to_json()
    assert Rule.parse(text) == rule
    assert "\n" not in text
    assert json.loads(text)["version"] == 1


def test_json_is_compact_and_leaves_defaults_out() -> None:
    rule = Rule(any=(Clause(when=(Token(any=("a",), at=-1), Repeat(), Position(span=(0, None))), value=1.5),))
    assert rule.to_json() == (
        '{"version":1,"any":[{"when":[{"at":-1,"token":["a"]},{"repeat":1},{"position":[0,null]}],"value":1.5}]}'
    )


def test_conditions_are_values() -> None:
    assert len({Repeat(), Repeat(gap=1), Token(any=("a",)), Token(any=("a",), at=-1)}) == 3


def test_every_kind_reads_as_documented() -> None:
    text = """{"any": [{"when": [{"token": " self"}, {"class": "digit", "within": 3}, {"regex": "ing$", "of": "text"},
      {"text": "def __init__(", "at": -1}, {"position": [null, 8], "every": 4}, {"inside": "double"}, {"repeat": 2},
      {"induction": 1}], "value": 2, "gains": {" self": 3}}], "unless": [{"token": ["on", "off"], "at": -1}]}"""
    when = (
        Token(any=(" self",)),
        Class(name="digit", within=3),
        Regex(pattern="ing$", of="text"),
        Text(ending="def __init__(", at=-1),
        Position(span=(0, 8), every=4),
        Inside(what="double"),
        Repeat(gap=2),
        Induction(n=1),
    )
    exception = Token(any=("on", "off"), at=-1)
    rule = Rule(any=(Clause(when=when, value=2.0, gains={" self": 3.0}),), unless=(exception,))
    assert Rule.parse(text) == rule
    assert '{"repeat":2},{"induction":1}' in rule.to_json()
    assert rule.length() == 9 + 3 + 1


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ("fires on cats", "$:", "Invalid JSON"),
        ("[]", "$:", "object"),
        ('{"any": []}', "$.any:", "at least 1"),
        ('{"any": [{"value": 1}], "version": 2}', "$.version:", "1"),
        ('{"any": [{"when": []}]}', "$.any[0].value:", "required"),
        ('{"any": [{"value": 1}, {"value": "high"}]}', "$.any[1].value:", "number"),
        ('{"any": [{"value": NaN}]}', "$.any[0].value:", "finite"),
        ('{"any": [{"value": 1, "wenn": []}]}', "$.any[0].wenn:", "not permitted"),
        ('{"any": [{"value": 1, "when": [{"prev": ["a"]}]}]}', "$.any[0].when[0]:", "induction"),
        ('{"any": [{"value": 1, "when": [{"any": ["a"]}]}]}', "$.any[0].when[0]:", "token"),
        ('{"any": [{"value": 1, "when": [{"token": []}]}]}', "$.any[0].when[0].token:", "at least 1"),
        ('{"any": [{"value": 1, "when": [{"text": "a", "at": 1}]}]}', "$.any[0].when[0]:", "at 0 or below"),
        ('{"any": [{"value": 1, "when": [{"regex": "a", "of": "text", "after": 2}]}]}', "$.any[0].when[0]:", "below"),
        ('{"any": [{"value": 1, "when": [{"token": "a", "after": 1, "within": 2}]}]}', "$.any[0].when[0]:", "keep one"),
        ('{"any": [{"value": 1, "when": [{"token": "a", "at": -1, "within": 2}]}]}', "$.any[0].when[0]:", "keep one"),
        ('{"any": [{"value": 1, "when": [{"token": "a", "within": 0}]}]}', "$.any[0].when[0].within:", "from 1 on"),
        ('{"any": [{"value": 1, "when": [{"token": "a", "class": "word"}]}]}', "$.any[0].when[0].class:", "permitted"),
        ('{"any": [{"value": 1}], "unless": [{"class": "noun"}]}', "$.unless[0].class:", "'identifier'"),
        ('{"any": [{"value": 1}], "unless": [{"position": [5, 3]}]}', "$.unless[0].position:", "first <= last"),
        ('{"any": [{"value": 1}], "unless": [{"regex": "(a"}]}', "$.unless[0].regex:", "regular expression"),
    ],
)
def test_a_fault_is_named_by_its_path_in_one_line(text: str, path: str, hint: str) -> None:
    with pytest.raises(NeuronautError) as raised:
        Rule.parse(text)
    message = str(raised.value)
    assert message.startswith(f"the rule at {path}")
    assert hint in message
    assert "\n" not in message
    assert "<" not in message.replace("<=", "")


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a|a)*b",
        "((ab?))*",
        "(a*){2,}",
        "(?:a|b){3}",
        r"(a)\1",
        "(?P<x>a)",
        "(?x)a",
        "a(?#c)+",
        "(a+)(?x: )+",
        "a*b*c*d*",
        "[[a]",
        "(",
        "a**",
        "[a--b]",
        "a{99999999999999}",
        "x" * 101,
    ],
)
def test_unsafe_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="for Regex"):
        Regex(pattern=pattern)


@pytest.mark.parametrize(
    "pattern",
    ["ing$", r"(?i)^\s*the$", r"\d+(\.\d+)?", "(?:ab)+", "[]+*]+?", r"\(+\)", "(?<!a)b|c", "a{2,3}+", r"[^\]]*"],
)
def test_harmless_patterns_are_accepted(pattern: str) -> None:
    assert Regex(pattern=pattern).pattern == pattern


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ('say "hello', {"double"}),
        ('say "hello" ', set()),
        (r'"a\" b', {"double"}),
        ('"never closed\n', set()),
        ('"""doc\n', {"triple"}),
        ('"""doc\n""', {"triple"}),
        ('"""doc"""', set()),
        ('x = ""', set()),
        ("x = ''\"", {"double"}),
        ("don't", set()),
        ("rb'a", {"single"}),
        ("f(a[0], {", {"parentheses", "braces"}),
        ("f)(", {"parentheses"}),
        ("'('", set()),
        ("x  # it's (", {"comment"}),
        ("x  # it's (\n", set()),
        ("# a # b", {"comment"}),
        ("'#", {"single"}),
    ],
)
def test_what_is_open_after_a_text(text: str, opened: set[str]) -> None:
    bits = [0, *(bits for _, bits in scan_states(text))][-1]
    assert {name for name, bit in BITS.items() if bits & bit and name != "quotes"} == opened


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("digit", ["7", " 12", "٣"], ["", "a1", "1.5", "½"]),
        ("word", ["a", " Paris", "naïve", "हिन्दी", "中文"], ["", " ", "don't", "a_b", "x1"]),
        ("capitalised", ["Paris", " A"], ["PARIS", "paris", "McX"]),
        ("uppercase", ["NASA", " A"], ["Nasa", "A1"]),
        ("lowercase", ["self", " ñ"], ["Self", "a1", "中文"]),
        ("punctuation", ["(", " ==", "_", "…"], ["", " ", "a)", "( )"]),
        ("whitespace", [" ", "\n\n", "\t"], ["", " a"]),
        ("newline", ["\n", " \n  ", ":\n"], [" ", "\\n"]),
        ("identifier", ["_x1", " self", "名"], ["1x", "a b", "a."]),
        ("spaced", [" a", "  ("], ["a", " ", "", "a "]),
    ],
)
def test_token_classes(name: str, inside: list[str], outside: list[str]) -> None:
    grid = TokenGrid.of([inside + outside])
    held = matches(Class.model_validate({"class": name}), grid)[0].tolist()
    assert held == [True] * len(inside) + [False] * len(outside)


def test_ids_with_a_vocabulary_and_token_strings_give_the_same_grid() -> None:
    vocabulary = ("<s>", "a", "b", "a", "never used")
    grid = TokenGrid(vocabulary, np.array([[1, 2, 3, 2], [2, 1, -1, -1]]))
    assert grid.strings == ("a", "b")
    assert matches(Repeat(gap=1), grid).tolist() == [[False, False, True, True], [False] * 4]
    assert grid.codes.tolist() == TokenGrid.of([["a", "b", "a", "b"], ["b", "a"]]).codes.tolist()


def test_padding_before_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="padding"):
        TokenGrid(("a",), np.array([[-1, 0]]))


def test_a_text_condition_survives_another_tokenizer() -> None:
    rule = Rule(any=(Clause(when=(Token(any=("self",)), Text(ending="def __init__(", at=-1)), value=1.0),))
    assert simulate(rule, ["def", " __init__", "(", "self", ",", " self"]) == [0, 0, 0, 1, 0, 0]
    assert simulate(rule, ["de", "f __in", "it__(", "self"]) == [0, 0, 0, 1]


def test_an_exception_silences_and_a_gain_overrides() -> None:
    monday = Clause(
        when=(Token(any=("Mon", "Tue")),), unless=(Token(any=("on",), at=-1),), value=2.0, gains={"Tue": 0.5}
    )
    rule = Rule(
        any=(monday, Clause(value=1.0, when=(Token(any=("Tue",)),))), unless=(Inside(what="comment"),), floor=0.25
    )
    assert simulate(rule, ["Mon", "on", "Mon", "Tue", "#", "Mon"]) == [2.0, 0.25, 0.25, 1.0, 0.25, 0.0]
    assert clause_matches(monday, TokenGrid.of([["Mon", "on", "Mon"]])).tolist() == [[True, False, False]]


def test_an_empty_grid_predicts_nothing() -> None:
    rule = Rule(any=(Clause(when=(Induction(n=1), Inside(what="double"), Text(ending="a")), value=1.0),))
    assert predict(rule, TokenGrid.of([])).shape == (0, 0)
    assert simulate(rule, []) == []


def test_a_rule_says_whether_it_looks_ahead() -> None:
    for place, ahead in ({"at": 1}, True), ({"after": "any"}, True), ({"at": -1}, False), ({"within": 2}, False):
        conditions = (Repeat(), Class(name="digit", **place))
        assert Rule(any=(Clause(unless=conditions, value=1),)).looks_ahead is ahead
