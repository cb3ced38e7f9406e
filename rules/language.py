"""The rule language: an executable twin of an explanation, written as JSON.

A rule predicts one activation per token. Its clauses are alternatives: a clause matches a token where
every condition of `when` holds and none of `unless` does, and then predicts `value`, or `gains[token]`
where the current token is listed there. The rule predicts 0 where a condition of its own `unless` holds,
else the highest prediction of the clauses that match, else `floor`.

    {"any": [{"when": [{"token": [" self"]}, {"text": "(", "at": -1}], "value": 4.2, "gains": {" self": 5.0}}],
     "unless": [{"inside": "comment"}]}

A condition is recognised by its one key: token, class, regex, text, position, inside, repeat or induction.
Conditions read token strings and the text they join to, never ids. Offsets that reach past the start of the window, or
past its end, hold no token, so a condition there is false. In a model that reads from left to right nothing behind a
token matters to it; of an encoder, whose tokens read both sides, rules may also name tokens behind the current one
(`"at": 1`, `"after": 3`), and only there are such conditions learned.

A rule may hold only regular expressions that cannot take exponential time. Backtracking explodes where a
repeated group can match the same text in several ways. So a group that is repeated may hold neither a
repetition nor alternatives, and there are no back-references, named groups, conditionals, comments or flags
other than a leading `(?i)`. A few unbounded repetitions side by side cost a polynomial, which the short texts
that rules search keep small.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from ..subject.errors import NeuronautError

ClassName = Literal[
    "digit",
    "word",
    "capitalised",
    "uppercase",
    "lowercase",
    "punctuation",
    "whitespace",
    "newline",
    "identifier",
    "spaced",
]
InsideName = Literal["single", "double", "triple", "quotes", "parentheses", "brackets", "braces", "comment"]

Activation = Annotated[float, Field(ge=-1e30, le=1e30)]
"""A predicted activation in the source's own units, within what float32 holds."""


def _is_word(token: str) -> bool:
    body = token.strip()
    return bool(body) and all(unicodedata.category(character)[0] in "LM" for character in body)


def _is_capitalised(token: str) -> bool:
    body = token.strip()
    return _is_word(token) and body[0].isupper() and body[1:] == body[1:].lower()


def _is_punctuation(token: str) -> bool:
    body = token.strip()
    return bool(body) and not any(character.isalnum() or character.isspace() for character in body)


CLASSES: Mapping[ClassName, Callable[[str], bool]] = {
    "digit": lambda token: token.strip().isdecimal(),
    "word": _is_word,
    "capitalised": _is_capitalised,
    "uppercase": lambda token: _is_word(token) and token.isupper(),
    "lowercase": lambda token: _is_word(token) and token.islower(),
    "punctuation": _is_punctuation,
    "whitespace": str.isspace,
    "newline": lambda token: "\n" in token,
    "identifier": lambda token: token.strip().isidentifier(),
    "spaced": lambda token: token[:1].isspace() and not token.isspace(),
}
"""What each token class means. White space around the token is ignored, except by the last two and `whitespace`.

digit: decimal digits only. word: letters and combining marks of any script. capitalised, uppercase, lowercase:
a word so written; one capital letter is both of the first two. punctuation: no letter, digit or space.
whitespace: nothing but white space. newline: has a line feed in it. identifier: letters, digits and underscores,
no digit first. spaced: begins with white space and has more after it, so it starts a word in most tokenizers.
"""


class _Part(BaseModel, frozen=True):
    """A frozen piece of a rule; Python code may use field names, JSON only the documented keys."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


def _check_reach(value: object) -> object:
    if value is None or value == "any" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError('wanted a number of tokens from 1 on, or "any"')


Reach = Annotated[int | Literal["any"], BeforeValidator(_check_reach)]
"""How many tokens away; "any": to the window's start, or end."""
ANYWHERE = 1_000_000
"""Farther back than any window begins."""


class _Placed(_Part, frozen=True):
    """A condition on the token at an offset, or on any one of some tokens before, or behind, the current one."""

    at: int = 0
    """Offset of the token: 0 the current one, -1 the one before it, 1 the one behind it."""
    within: Reach | None = None
    """Where given, the condition must hold at one of the offsets -1 to -within; "any": at any earlier token."""
    after: Reach | None = None
    """Where given, the condition must hold at one of the offsets 1 to `after`; "any": at any later token."""

    @property
    def reach(self) -> int:
        """How many tokens before the current one the condition looks at most."""
        return ANYWHERE if self.within == "any" else self.within or max(-self.at, 0)

    @property
    def ahead(self) -> int:
        """How many tokens behind the current one the condition looks at most."""
        return ANYWHERE if self.after == "any" else self.after or max(self.at, 0)

    @property
    def place(self) -> tuple[int, Reach | None, Reach | None]:
        """Where it looks: equal where two conditions look at the same tokens."""
        return self.at, self.within, self.after

    @property
    def is_current(self) -> bool:
        """Whether it looks at the current token alone."""
        return self.place == (0, None, None)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(map(bool, self.place)) > 1:
            raise ValueError('"at", "within" and "after" exclude each other; keep one')
        return self


def _look_back(condition: "Regex | Text") -> None:
    if condition.ahead:
        raise ValueError("text is searched up to a token, so that it can be at 0 or below; name tokens behind it")


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Token(_Placed, frozen=True):
    """The token is one of these exact strings. `{"token": [" self", "self"], "at": -1}`."""

    key: ClassVar[str] = "token"
    any: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        min_length=1, validation_alias="token", serialization_alias="token"
    )


class Class(_Placed, frozen=True):
    """The token belongs to one of `CLASSES`. `{"class": "digit", "within": 3}`."""

    key: ClassVar[str] = "class"
    name: ClassName = Field(validation_alias="class", serialization_alias="class")


class Regex(_Placed, frozen=True):
    """Python's `re.search` finds the pattern in the token, or in the text up to its end. `{"regex": "ing$"}`."""

    key: ClassVar[str] = "regex"
    pattern: str = Field(min_length=1, max_length=100, validation_alias="regex", serialization_alias="regex")
    of: Literal["token", "text"] = "token"
    """What is searched: the token, or the last 64 characters of the window's text up to the token's end."""

    @model_validator(mode="after")
    def _text_is_before(self) -> Self:
        if self.of == "text":
            _look_back(self)
        return self

    @field_validator("pattern")
    @classmethod
    def _safe(cls, pattern: str) -> str:
        check_pattern(pattern)
        return pattern


class Text(_Placed, frozen=True):
    """The window's text up to the token's end ends with this. `{"text": "def __init__(", "at": -1}`.

    However the text is cut into tokens, the condition holds as long as one of them ends where it does.
    """

    key: ClassVar[str] = "text"
    ending: str = Field(min_length=1, max_length=500, validation_alias="text", serialization_alias="text")

    @model_validator(mode="after")
    def _text_is_before(self) -> Self:
        _look_back(self)
        return self


class Position(_Part, frozen=True):
    """The token's position in the window is in an inclusive range. `{"position": [1, null], "every": 4}`."""

    key: ClassVar[str] = "position"
    span: tuple[int, int | None] = Field(validation_alias="position", serialization_alias="position")
    """First and last position; 0 is the first token after BOS, and no last position means to the window's end."""
    every: int = Field(default=1, ge=1)
    """Only every so-manyth position, counted from the first of the range."""

    @field_validator("span", mode="before")
    @classmethod
    def _open_start(cls, span: object) -> object:
        return (0, span[1]) if isinstance(span, list | tuple) and len(span) == 2 and span[0] is None else span

    @field_validator("span")
    @classmethod
    def _ordered(cls, span: tuple[int, int | None]) -> tuple[int, int | None]:
        first, last = span
        if first < 0 or (last is not None and last < first):
            raise ValueError("wanted [first, last] with 0 <= first <= last, null for an open end")
        return span


class Inside(_Part, frozen=True):
    """A quotation, bracket or comment is open where the current token starts. `{"inside": "double"}`.

    `evaluate.scan_states` is the scanner. single, double: a one-line string in such quotes; triple: either
    triple quote; quotes: any of the three; parentheses `(`, brackets `[`, braces `{`; comment: `#` to the line's end.
    """

    key: ClassVar[str] = "inside"
    what: InsideName = Field(validation_alias="inside", serialization_alias="inside")


class Repeat(_Part, frozen=True):
    """The current token also stands at least `gap` tokens earlier in the window. `{"repeat": 1}`."""

    key: ClassVar[str] = "repeat"
    gap: int = Field(default=1, ge=1, validation_alias="repeat")

    @model_serializer
    def _keyed(self) -> dict[str, int]:
        return {self.key: self.gap}


class Induction(_Part, frozen=True):
    """The current token and the `n` before it stand together earlier in the window, too. `{"induction": 1}`."""

    key: ClassVar[str] = "induction"
    n: int = Field(default=1, ge=1, le=16, validation_alias="induction")

    @model_serializer
    def _keyed(self) -> dict[str, int]:
        return {self.key: self.n}


KINDS = (Token, Class, Regex, Text, Position, Inside, Repeat, Induction)


def _tag(value: object) -> str | None:
    """Name the union's member, in angle brackets, which no JSON key in the path of a fault has."""
    if isinstance(value, KINDS):
        return f"<{value.key}>"
    keys = value if isinstance(value, dict) else ()
    return next((f"<{kind.key}>" for kind in KINDS if kind.key in keys), None)


Condition = Annotated[
    Annotated[Token, Tag("<token>")]
    | Annotated[Class, Tag("<class>")]
    | Annotated[Regex, Tag("<regex>")]
    | Annotated[Text, Tag("<text>")]
    | Annotated[Position, Tag("<position>")]
    | Annotated[Inside, Tag("<inside>")]
    | Annotated[Repeat, Tag("<repeat>")]
    | Annotated[Induction, Tag("<induction>")],
    Discriminator(
        _tag,
        custom_error_type="condition",
        custom_error_message=f"wanted a condition, an object with one of the keys {', '.join(k.key for k in KINDS)}",
    ),
]


class Clause(_Part, frozen=True):
    """One pattern and what it predicts; with no condition in `when` it matches every token."""

    when: tuple[Condition, ...] = ()
    """All of these hold."""
    unless: tuple[Condition, ...] = ()
    """None of these holds."""
    value: Activation
    gains: dict[str, Activation] = Field(default_factory=dict)
    """By current token, what is predicted instead of `value`."""


class Rule(_Part, frozen=True):
    """Alternatives, exceptions to all of them, and what is predicted where nothing matches.

    >>> rule = Rule.parse('{"any": [{"when": [{"token": ["self"]}, {"token": ["("], "at": -1}], "value": 2.0}]}')
    >>> simulate(rule, ["def", " f", "(", "self", ")"])
    [0.0, 0.0, 0.0, 2.0, 0.0]
    """

    version: Literal[1] = 1
    any: tuple[Clause, ...] = Field(min_length=1)
    unless: tuple[Condition, ...] = ()
    """Where any of these holds, the prediction is 0."""
    floor: Activation = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read JSON; a NeuronautError names the path of the first fault."""
        try:
            return cls.model_validate_json(text, by_alias=True, by_name=False)
        except ValidationError as error:
            raise NeuronautError(format_fault(error, what="the rule")) from None

    def to_json(self) -> str:
        """Compact JSON, one line, defaults left out; `Rule.parse` reads it back to an equal rule."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps({"version": self.version, **fields}, ensure_ascii=False, separators=(",", ":"))

    def fires_from(self, half: float) -> float:
        """Above which prediction the rule says that the unit fires, where it does above `half`.

        Half of the rule's own highest value, at most `half`: a rule holds means, and these are below what the unit can
        do where its activation varies, though the rule says rightly where that is.
        """
        highest = max(
            max(clause.value, *clause.gains.values()) if clause.gains else clause.value for clause in self.any
        )
        return min(half, highest / 2) if highest > 0 else half

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Those of its clauses, exceptions included, and its own exceptions."""
        return (*self.unless, *(part for clause in self.any for part in (*clause.when, *clause.unless)))

    @property
    def looks_ahead(self) -> bool:
        """Whether a condition is on tokens behind the current one, which matter in an encoder alone."""
        return any(isinstance(condition, _Placed) and condition.ahead > 0 for condition in self.conditions)

    def length(self) -> int:
        """The number of conditions, token strings in them, and gains."""
        conditions = self.conditions
        strings = sum(len(condition.any) for condition in conditions if isinstance(condition, Token))
        return len(conditions) + strings + sum(len(clause.gains) for clause in self.any)


@lru_cache(maxsize=4096)
def parse_rule(text: str) -> Rule:
    """Read a rule as `Rule.parse` does, once for each text: rules are frozen, so all its readers share one."""
    return Rule.parse(text)


def format_fault(error: ValidationError, *, what: str) -> str:
    """The first fault of `what`, in one line: where in the JSON, what was wanted, what came."""
    first = error.errors(include_url=False)[0]
    steps = [step for step in first["loc"] if not re.fullmatch("<[a-z]+>", str(step))]
    path = "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    value = repr(first["input"])
    value = value if len(value) <= 60 else value[:59] + "…"
    return f"{what} at {path}: {first['msg'].removeprefix('Value error, ')}; got {value}; correct it there"


UNBOUNDED = 3
"""How many of `*`, `+` and `{n,}` a pattern may hold."""

_ATOM = re.compile(
    r"""\\.                                # an escape
      | \[\^?\]?(?:\\.|[^\]\\])*\]         # a set of characters
      | \((?:\?(?:[:=!]|<[=!]))?           # the start of a group
      | (?P<repeat>[*+?]|\{\d*,?\d*\})     # a repetition
      | .""",
    re.VERBOSE | re.DOTALL,
)


def check_pattern(pattern: str) -> None:
    """Raise ValueError, with what to change, unless the pattern compiles and is safe to run."""
    groups = [False]  # per open group, outermost first: whether it holds a repetition or alternatives
    unbounded, before, varied = 0, "(", False
    for match in _ATOM.finditer(pattern.removeprefix("(?i)")):
        atom = match[0]
        if match["repeat"] and before == "(":
            raise ValueError("of the groups (?...) only (?:, (?=, (?!, (?<=, (?<! and a leading (?i) are allowed")
        if match["repeat"] and before != "repeat":
            if before == ")" and varied and atom != "?":
                raise ValueError("a repeated group may hold neither a repetition nor alternatives")
            groups[-1] = True
            unbounded += atom in "*+" or atom.endswith(",}")
        _check_atom(atom)
        if atom == ")" and len(groups) > 1:
            varied = groups.pop()
            groups[-1] |= varied
        elif atom.startswith("("):
            groups.append(False)
        elif atom == "|":
            groups[-1] = True
        before = "repeat" if match["repeat"] else atom
    if unbounded > UNBOUNDED:
        raise ValueError(f"more than {UNBOUNDED} of the repetitions *, + and {{n,}}; shorten the pattern")
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ValueError(f"not a Python regular expression: {error}") from None


def _check_atom(atom: str) -> None:
    if re.fullmatch(r"\\[1-9]", atom):
        raise ValueError("back-references are not allowed")
    if atom.startswith("[") and re.search(r"\[|--|&&|~~|\|\|", re.sub(r"\\.", "", atom[1:])):
        raise ValueError(r"in a set of characters, escape [ as \[ and write none of --, &&, ~~ and || in it")
