"""Interventions as data: one typed, JSON-serialisable edit, and the short text that means the same.

    EDIT   := SITE[@DICTIONARY][:UNITS] CHANGE [@POSITIONS[>KEYS]] [#SEED] [~CONTROL]

SITE is a site of the subject (`mlp.2`, `resid_post.2`, `head.1`), `pattern.L`, the attention weights of layer L
after their softmax, or `score.L`, what they are the softmax of. UNITS are numbers (`17`, `3,5-9`): heads at `head.L`,
`query.L`, `pattern.L` and `score.L`, key/value heads at `key.L` and `value.L` (each serves a group of query heads),
features of a dictionary, coordinates elsewhere; a trailing `-` counts their negative tails (3 of a negative tail is an
activation of -3); a word names a direction that is passed in, `[0.5,-1]` is one. Without units the whole vector, or
every head, is meant.

    CHANGE   what each touched unit becomes                       =patch       its value in another run (the source run)
    =0       zero (`=zero`)                                       =mean        its mean over the reference
    =1.5     that activation                                      =resample    its value at a random reference vector
    =0..3    clamped between the two; `>=0` and `<=3` bound one   +=2noise     itself plus Gaussian noise of that many
    *=2      that multiple of itself                                           standard deviations of the reference
    +=1.5    itself plus that much (steering)                     =uniform     pattern: equal weights on allowed keys
                                                                  =knockout    pattern: no weight, the rest made up to 1

A number may be given in units of the unit's own activations: `1.5q` is one and a half times the largest activation in
the reference, `1.5q99` that multiple of the 99th percentile of those above zero. Heads, whole vectors and all the
features of a dictionary at once have no one activation, so they are never set, clamped or added to. In a pattern `=0`
takes an edge's weight away and leaves the others; keys that the model masks stay masked. Scores take `=0`, `=1.5`,
`*=2`, `+=1.5` and `=patch`; the query's weights still add up to 1.

POSITIONS: `all` (the default: every token but padding and BOS), `every` (BOS too), `last`, `3`, `2-5`, `1,4,-2`
(position 0 is the row's first token, BOS where there is one; negative from the row's end), or `" Mary"`: the tokens
that read exactly so, with JSON's escapes for what cannot be typed (`"\\n"`). Of a pattern they are the queries, and
KEYS (the same words, `every` by default) the keys.

SEED seeds what is drawn at random. `~CONTROL` turns the edit into its own control: at every touched position a vector
of the same norm as the change, in one direction drawn from that seed, is added instead.

    mlp.2:17=0    head.1:3=mean    resid_post.2@sae:40+=1.5q    resid_post.1=patch@last    pattern.1:3=knockout@last>0
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..subject.errors import NeuronautError

Operation = Literal["zero", "set", "scale", "add", "clamp", "mean", "resample", "noise", "patch", "uniform", "knockout"]

PATTERN = frozenset({"zero", "set", "scale", "patch", "uniform", "knockout"})
"""The operations that an attention pattern takes."""
SCORE = frozenset({"zero", "set", "scale", "add", "patch"})
"""The operations that attention scores take."""
_ONLY_PATTERN = frozenset({"uniform", "knockout"})
_ONE_NUMBER = frozenset({"set", "add", "clamp"})
"""The operations that need a unit with one activation."""
_WITH_HEADS = frozenset({"head", "query", "key", "value", "pattern", "score"})
"""The kinds of sites whose units are heads."""
_VALUED = frozenset({"set", "scale", "add", "noise"})
_DRAWN = frozenset({"resample", "noise"})
_REFERRED = frozenset({"mean", "resample", "noise"})

_MOST = 2**24
"""How many units or positions a list may name."""
_QUOTED = r'"(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_WHOLE = "[0-9]{1,9}"
_INDEX = rf"(?:-{_WHOLE}|{_WHOLE}(?:-{_WHOLE})?)"
_POSITIONS = rf"all|every|last|{_INDEX}(?:,{_INDEX})*|{_QUOTED}"
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?"
_UNITS = rf"{_WHOLE}(?:-{_WHOLE})?(?:,{_WHOLE}(?:-{_WHOLE})?)*"
_QUANTILE = r"(?:q(?P<quantile>[0-9]+(?:\.[0-9]+)?)?)?"
_SITE = re.compile(rf"[a-z_]+(\.{_WHOLE})?")
_NAME = r"[A-Za-z][\w-]*"
_TEXT = re.compile(
    rf"(?P<site>{_SITE.pattern})(?:@(?P<dictionary>[^:@\s=]+?))?"
    rf"(?::(?:(?P<units>{_UNITS})(?P<tail>-?)|(?P<direction>{_NAME}|\[[^\]]*\])))?"
    r"(?P<sign>\*=|\+=|<=|>=|=)(?P<change>[^@\#~\s]+)"
    rf"(?:@(?P<positions>{_POSITIONS})(?:>(?P<keys>{_POSITIONS}))?)?"
    rf"(?:\#(?P<seed>{_WHOLE}))?(?:~(?P<control>{_WHOLE}))?"
)
_CHANGES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (operation, re.compile(pattern))
    for operation, pattern in (
        ("zero", r"=(?:zero|[+-]?0+(?:\.0*)?)"),
        ("word", r"=(?P<word>mean|resample|patch|uniform|knockout)"),
        ("clamp", rf"=(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER}){_QUANTILE}"),
        ("clamp", rf"<=(?P<high>{_NUMBER}){_QUANTILE}"),
        ("clamp", rf">=(?P<low>{_NUMBER}){_QUANTILE}"),
        ("set", rf"=(?P<value>{_NUMBER}){_QUANTILE}"),
        ("scale", rf"\*=(?P<value>{_NUMBER})"),
        ("noise", rf"\+=(?P<value>{_NUMBER})?noise"),
        ("add", rf"\+=(?P<value>{_NUMBER}){_QUANTILE}"),
    )
)
"""Every change as text, in the order in which they are tried."""

_EXAMPLES = 'mlp.2:17=0, head.1:3=mean@last, resid_post.2@sae:40+=1.5q, pattern.1:3=knockout@last>0, mlp.2=patch@" a"'


def _check_positions(rule: str) -> str:
    if not re.fullmatch(_POSITIONS, rule):
        raise NeuronautError(
            f'positions {rule!r} are not understood; wanted all, every, last, 3, 2-5, 1,4,-2 or a token such as " Mary"'
        )
    if rule.startswith('"'):
        return json.dumps(read_quoted(rule), ensure_ascii=False)
    if rule not in ("all", "every", "last"):
        indices(rule)  # A falling range is an error that says so.
    return rule


def read_quoted(rule: str) -> str:
    """The token that a rule in quotes means."""
    return json.loads(rule, strict=False)


Positions = Annotated[str, AfterValidator(_check_positions)]


class Edit(BaseModel):
    """One intervention; see the module for what each part means. Raises NeuronautError where it makes no sense.

    >>> edit = Edit.parse("head.1:3=mean@last")
    >>> edit.site, edit.units, edit.operation, edit.positions
    ('head.1', (3,), 'mean', 'last')
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    site: str
    dictionary: str | None = None
    units: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    direction: str | tuple[float, ...] | None = None
    """The name of a direction that is passed in, or the direction itself: (width of the site,)."""
    negative: bool = False
    """Whether the units' activations are counted as their negative tails."""
    operation: Operation
    value: float | None = None
    """For set, scale, add and noise: an activation, a multiple, an amount, standard deviations."""
    low: float | None = None
    high: float | None = None
    quantile: Annotated[float, Field(gt=0, le=100)] | None = None
    """Where given, `value`, `low` and `high` are multiples of this percentile of the unit's own activations."""
    positions: Positions = "all"
    keys: Positions | None = None
    """Only of a pattern: the key positions; every one where it is None."""
    seed: Annotated[int, Field(ge=0)] = 0
    control: Annotated[int, Field(ge=0)] | None = None
    """Where given, the seed of the random direction that takes the place of the change."""

    @property
    def layer(self) -> int | None:
        """The site's layer; None for `embed`."""
        return int(self.site.partition(".")[2]) if "." in self.site else None

    @property
    def on_pattern(self) -> bool:
        """Whether it edits an attention pattern, or the scores behind it, instead of a site's vectors."""
        return self.site.startswith(("pattern.", "score."))

    @property
    def _has_heads(self) -> bool:
        return self.site.partition(".")[0] in _WITH_HEADS and self.dictionary is None and self.direction is None

    @property
    def needs_reference(self) -> bool:
        """Whether it draws on the vectors of reference text at its site."""
        return self.operation in _REFERRED or self.quantile is not None

    @property
    def needs_source_run(self) -> bool:
        """Whether it takes its values from another run."""
        return self.operation == "patch"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an edit from the command line's text, or from JSON where it begins with `{`."""
        if text.lstrip().startswith("{"):
            return cls._load(lambda: cls.model_validate_json(text), text)
        match = _TEXT.fullmatch(text.strip())
        fields = match and _parse_change(match["sign"] + match["change"])
        if match is None or fields is None:
            raise NeuronautError(f"edit {text!r} is not SITE[:UNITS]CHANGE[@POSITIONS]; some that are: {_EXAMPLES}")
        fields |= {name: match[name] for name in ("dictionary", "keys", "control") if match[name]}
        fields |= {name: match[name] for name in ("positions", "seed") if match[name]}
        if match["units"]:
            fields |= {"units": tuple(indices(match["units"])), "negative": bool(match["tail"])}
        elif direction := match["direction"]:
            listed = direction.startswith("[")
            fields["direction"] = tuple(direction[1:-1].split(",")) if listed else direction
        return cls._load(lambda: cls.model_validate({"site": match["site"], **fields}), text)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Self:
        """Read an edit from the object that `model_dump()` gives."""
        return cls._load(lambda: cls.model_validate(dict(data)), str(dict(data)))

    @classmethod
    def _load(cls, make: Callable[[], Self], text: str) -> Self:
        try:
            return make()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "JSON"
            raise NeuronautError(f"edit {text!r}: {where}: {first['msg']}; some edits: {_EXAMPLES}") from error

    def __str__(self) -> str:
        """The text that parses to this edit."""
        dictionary = f"@{self.dictionary}" if self.dictionary else ""
        keys = f">{self.keys}" if self.keys else ""
        places = f"@{self.positions}{keys}" if keys or self.positions != "all" else ""
        seed = f"#{self.seed}" if self.seed else ""
        control = "" if self.control is None else f"~{self.control}"
        return f"{self.site}{dictionary}{self._format_target()}{self._format_change()}{places}{seed}{control}"

    def _format_target(self) -> str:
        if self.units is not None:
            return f":{ranges(self.units)}{'-' if self.negative else ''}"
        if self.direction is None:
            return ""
        if isinstance(self.direction, str):
            return f":{self.direction}"
        return f":[{','.join(map(_format_number, self.direction))}]"

    def _format_change(self) -> str:
        quantile = "" if self.quantile is None else "q" if self.quantile == 100 else f"q{_format_number(self.quantile)}"
        if self.operation == "clamp":
            low, high = (None if bound is None else _format_number(bound) for bound in (self.low, self.high))
            bounds_text = f"={low}..{high}" if low and high else f">={low}" if low else f"<={high}"
            return bounds_text + quantile
        value = "" if self.value is None else _format_number(self.value)
        forms = {"set": f"={value}{quantile}", "scale": f"*={value}", "add": f"+={value}{quantile}"}
        forms |= {"zero": "=0", "noise": f"+={value}noise"}
        return forms.get(self.operation, f"={self.operation}")

    @model_validator(mode="after")
    def _check_sense(self) -> Self:
        for wrong, message in self._check_rules():
            if wrong:
                raise NeuronautError(f"edit of {self.site} by {self.operation}: {message}")
        return self

    def _check_rules(self) -> Iterable[tuple[bool, str]]:
        """Yields whether the edit breaks each rule, with the message for it."""
        scalar = self.units is not None or self.direction is not None
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        kind = self.site.partition(".")[0]
        well_named = self.direction is None or isinstance(self.direction, tuple) or re.fullmatch(_NAME, self.direction)
        yield not _SITE.fullmatch(self.site), "a site reads like mlp.2, resid_post.0, head.1, embed or pattern.1"
        yield not well_named, "a direction's name begins with a letter and has letters, digits, _ and -"
        yield (
            isinstance(self.direction, tuple) and not any(self.direction),
            "the direction is zero; give one that is not",
        )
        yield (
            (self.value is None) is (self.operation in _VALUED),
            "set, scale, add and noise take a value, no other does",
        )
        yield bool(bounds) is not (self.operation == "clamp"), "clamp takes low, high or both, no other does"
        yield len(bounds) == 2 and bounds[0] > bounds[1], f"low {self.low} is above high {self.high}"
        yield self.quantile is not None and self.operation not in _ONE_NUMBER, "quantiles go with set, add and clamp"
        yield self.seed != 0 and self.operation not in _DRAWN, "a seed goes with resample and noise"
        yield self.units is not None and self.direction is not None, "it has units and a direction; give one of them"
        yield (self.negative and (self.units is None or self._has_heads), "only activations have a negative tail")
        yield self.dictionary is not None and self.direction is not None, "a direction needs no dictionary"
        if kind in ("pattern", "score"):
            operations = PATTERN if kind == "pattern" else SCORE
            yield self.operation not in operations, f"a {kind} takes {', '.join(sorted(operations))}"
            yield not re.fullmatch(rf"{kind}\.{_WHOLE}", self.site), f"a {kind} has a layer, such as {kind}.1"
            yield self.dictionary is not None or self.direction is not None, f"a {kind} has heads, no other units"
            yield self.quantile is not None or self.control is not None, f"a {kind} has no quantiles and no control"
        else:
            yield self.operation in _ONLY_PATTERN, "it is for attention patterns, such as pattern.1:3"
            yield self.keys is not None, "only a pattern and scores have keys"
            whole = not scalar or self._has_heads
            yield (
                whole and self.operation in _ONE_NUMBER,
                (
                    "a head or a whole vector has no one activation; name units, or use zero, scale, mean, resample, "
                    "noise or patch"
                ),
            )


def _parse_change(text: str) -> dict[str, Any] | None:
    """The fields of `=0`, `+=1.5q` and so on; None where it is none of them."""
    for operation, pattern in _CHANGES:
        if match := pattern.fullmatch(text):
            groups = match.groupdict()
            fields: dict[str, Any] = {name: groups[name] for name in ("value", "low", "high") if groups.get(name)}
            if operation == "noise":
                fields.setdefault("value", 1.0)
            if "quantile" in groups and re.search(r"q[\d.]*$", text):
                fields["quantile"] = groups["quantile"] or 100
            return fields | {"operation": groups.get("word") or operation}
    return None


def indices(rule: str) -> list[int]:
    """The numbers of `3,5-9,-2`, in their order; a range includes both ends."""
    numbers: list[int] = []
    for part in rule.split(","):
        # A range from the row's end to its beginning, such as -3-1, would mean both of its ends and nothing between.
        match = re.fullmatch(rf"(-{_WHOLE})|({_WHOLE})(?:-({_WHOLE}))?", part)
        first, last = (0, -1) if match is None else (int(match[1] or match[2]), int(match[1] or match[3] or match[2]))
        if last < first:
            raise NeuronautError(f"{rule!r} is not a list of numbers and rising ranges such as 3,5-9")
        if len(numbers) + last - first >= _MOST:
            raise NeuronautError(f"{rule!r} names more than {_MOST:,} numbers; leave them out to mean all")
        numbers.extend(range(first, last + 1))
    return list(dict.fromkeys(numbers))


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in short, in their order: `3,5-9`."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _format_number(number: float) -> str:
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
