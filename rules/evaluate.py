"""Evaluate rules on many windows at once.

A `TokenGrid` interns the windows' token strings. A condition on a token is evaluated once per distinct
string and spread over the windows by indexing. Text conditions are found in the one string that all
windows join to; open quotations, brackets and comments by one scan of every window's text (`scan_states`);
repeats by sorting n-grams. Masks that are slow to compute are computed on first use and kept with the grid.

Shapes: W windows of up to P tokens; masks and predictions are (W, P), False and 0 on padding.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .language import (
    CLASSES,
    Class,
    Clause,
    Condition,
    Induction,
    Inside,
    InsideName,
    Position,
    Reach,
    Regex,
    Repeat,
    Rule,
    Text,
    Token,
)

Mask = NDArray[np.bool_]

LOOKBACK = 64
"""Characters of text before a token's end that a regex `of` text is searched in."""


class TokenGrid:
    """Windows of tokens, as codes of the distinct strings that occur in them."""

    strings: tuple[str, ...]
    """The distinct token strings."""
    codes: NDArray[np.int32]
    """Index into `strings`, -1 on padding, shape (W, P)."""
    present: Mask
    """Where there is a token, shape (W, P)."""

    def __init__(self, vocabulary: Sequence[str], ids: NDArray[np.integer]) -> None:
        """Windows as ids of `vocabulary`, shape (W, P); a negative id is padding and may only end a window."""
        used, inverse = np.unique(ids, return_inverse=True)
        spelled = [vocabulary[int(i)] if i >= 0 else None for i in used]
        self.strings = tuple(dict.fromkeys(string for string in spelled if string is not None))
        self.index = {string: code for code, string in enumerate(self.strings)}
        codes = [-1 if string is None else self.index[string] for string in spelled]
        self.codes = np.array(codes, dtype=np.int32)[inverse].reshape(ids.shape)
        self.present = self.codes >= 0
        if (self.present[:, 1:] & ~self.present[:, :-1]).any():
            raise ValueError("a token after padding; pad windows at their end only")
        self._tables: dict[object, Mask] = {}
        self._searched: dict[str, Mask] = {}
        self._since_first: dict[int, NDArray[np.int64]] = {}

    @classmethod
    def of(cls, windows: Sequence[Sequence[str]]) -> Self:
        """Windows of token strings, of any lengths."""
        index = {token: i for i, token in enumerate(dict.fromkeys(token for window in windows for token in window))}
        ids = np.full((len(windows), max(map(len, windows), default=0)), -1, dtype=np.int32)
        for row, window in zip(ids, windows, strict=True):
            row[: len(window)] = [index[token] for token in window]
        return cls(tuple(index), ids)

    def map_strings(self, key: object, holds: Callable[[str], bool]) -> Mask:
        """Where the token's string satisfies `holds`; evaluated once per string and kept under `key`."""
        if key not in self._tables:
            self._tables[key] = np.array([*map(holds, self.strings), False], dtype=np.bool_)
        return self._tables[key][self.codes]

    @cached_property
    def text(self) -> str:
        """The text of all windows, joined."""
        return "".join([self.strings[code] for code in self.codes[self.present].tolist()])

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Where in `text` each token ends, shape (W, P)."""
        return np.cumsum(self._lengths).reshape(self.codes.shape)

    @cached_property
    def begins(self) -> NDArray[np.int64]:
        """Where in `text` each window begins, shape (W, 1)."""
        return (self.ends - self._lengths)[:, :1]

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return np.array([*map(len, self.strings), 0], dtype=np.int64)[self.codes]

    @cached_property
    def open(self) -> NDArray[np.uint8]:
        """What is open where each token starts, as bits of `BITS`, shape (W, P)."""
        bits = np.zeros(self.codes.shape, dtype=np.uint8)
        if not bits.size:
            return bits
        starts = self.ends - self._lengths
        for row, begin, end, start in zip(bits, self.begins[:, 0], self.ends[:, -1], starts, strict=True):
            changes = np.array([(0, 0), *scan_states(self.text[begin:end])])
            row[:] = changes[np.searchsorted(changes[:, 0], start - begin, side="right") - 1, 1]
        return bits

    def since_first(self, n: int) -> NDArray[np.int64]:
        """Tokens since the n+1 tokens that end here first stood in the window, 0 where they are new, shape (W, P)."""
        if n not in self._since_first:
            # 0 stands before a window's start: no two n-grams of a window that reach back past it are equal.
            codes = self.codes.astype(np.int64) + 1
            grams = codes
            for _ in range(n):
                before = np.zeros_like(grams)
                before[:, 1:] = grams[:, :-1]
                grams = _ranks(before * (len(self.strings) + 1) + codes) + 1
            rows = np.arange(len(codes))[:, None] * (grams.max(initial=0) + 1)
            _, first, inverse = np.unique(rows + grams, return_index=True, return_inverse=True)
            since = np.arange(grams.size) - first[inverse.ravel()]
            self._since_first[n] = since.reshape(grams.shape)
        return self._since_first[n]

    def search(self, pattern: str) -> Mask:
        """Where the pattern is found in the last `LOOKBACK` characters up to the token's end, shape (W, P)."""
        if pattern not in self._searched:
            search, text = re.compile(pattern).search, self.text
            froms = np.maximum(self.begins, self.ends - LOOKBACK)
            spans = zip(froms.ravel().tolist(), self.ends.ravel().tolist(), strict=True)
            hits = [search(text[start:end]) is not None for start, end in spans]
            self._searched[pattern] = np.array(hits, dtype=np.bool_).reshape(self.codes.shape)
        return self._searched[pattern]

    def ending(self, text: str) -> Mask:
        """Where the window's text up to the token's end ends with `text`, shape (W, P)."""
        hits = np.zeros(len(self.text) + 1, dtype=np.bool_)
        at = self.text.find(text)
        while at >= 0:
            hits[at + len(text)] = True
            at = self.text.find(text, at + 1)
        return hits[self.ends] & (self.ends - len(text) >= self.begins)


def matches(condition: Condition, grid: TokenGrid) -> Mask:
    """Where the condition holds, shape (W, P)."""
    return _holds(condition, grid) & grid.present


def predict(rule: Rule, grid: TokenGrid) -> NDArray[np.float32]:
    """The rule's activation at every token, shape (W, P)."""
    best = np.full(grid.codes.shape, -np.inf, dtype=np.float32)
    for clause in rule.any:
        where = clause_matches(clause, grid)
        best[where] = np.maximum(best[where], _values(clause, grid)[grid.codes[where]])
    best[np.isneginf(best)] = rule.floor
    for exception in rule.unless:
        best[matches(exception, grid)] = 0.0
    best[~grid.present] = 0.0
    return best


def clause_matches(clause: Clause, grid: TokenGrid) -> Mask:
    """Where all of `when` and none of `unless` holds, shape (W, P)."""
    where = grid.present.copy()
    for condition in clause.when:
        where &= matches(condition, grid)
    for exception in clause.unless:
        where &= ~matches(exception, grid)
    return where


def simulate(rule: Rule, tokens: Sequence[str]) -> list[float]:
    """The rule's activation at every token of one window.

    >>> rule = Rule.parse('{"any": [{"when": [{"token": ["self"]}], "value": 2.0}]}')
    >>> simulate(rule, ["def", "self"])
    [0.0, 2.0]
    """
    return predict(rule, TokenGrid.of([tokens]))[0].tolist()


def _holds(condition: Condition, grid: TokenGrid) -> Mask:
    """Where the condition holds, and anything on padding."""
    match condition:
        case Token():
            return _place(condition, _is_among(condition.any, grid))
        case Class():
            return _place(condition, grid.map_strings(condition.name, CLASSES[condition.name]))
        case Regex(of="text"):
            return _place(condition, grid.search(condition.pattern))
        case Regex():
            search = re.compile(condition.pattern).search
            holds = grid.map_strings(("regex", condition.pattern), lambda token: bool(search(token)))
            return _place(condition, holds)
        case Text():
            return _place(condition, grid.ending(condition.ending))
        case Position():
            return _in_span(condition, grid.codes.shape)
        case Inside():
            return grid.open & BITS[condition.what] != 0
        case Repeat():
            return grid.since_first(0) >= condition.gap
        case Induction():
            return grid.since_first(condition.n) > 0


def _ranks(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(values, return_inverse=True)[1].reshape(values.shape)


def _is_among(strings: Sequence[str], grid: TokenGrid) -> Mask:
    table = np.zeros(len(grid.strings) + 1, dtype=np.bool_)
    table[[grid.index[string] for string in strings if string in grid.index]] = True
    return table[grid.codes]


def _place(condition: Token | Class | Regex | Text, mask: Mask) -> Mask:
    """Where the condition holds at its offset or offsets, from the mask of the tokens that satisfy it."""
    if condition.within is not None:
        return _any_before(mask, condition.within)
    if condition.after is not None:
        return _any_before(mask[:, ::-1], condition.after)[:, ::-1]
    return _shift(mask, -condition.at) if condition.at <= 0 else _shift(mask[:, ::-1], condition.at)[:, ::-1]


def _any_before(mask: Mask, reach: Reach) -> Mask:
    """Where the mask holds at one of so many tokens before."""
    placed = np.zeros_like(mask)
    if reach == "any":
        placed[:, 1:] = np.logical_or.accumulate(mask[:, :-1], axis=1)
        return placed
    for offset in range(1, min(reach, mask.shape[1] - 1) + 1):
        placed |= _shift(mask, offset)
    return placed


def _shift(mask: Mask, by: int) -> Mask:
    if by == 0:
        return mask
    shifted = np.zeros_like(mask)
    shifted[:, by:] = mask[:, :-by]
    return shifted


def _in_span(condition: Position, shape: tuple[int, ...]) -> Mask:
    first, last = condition.span
    allowed = np.zeros(shape, dtype=np.bool_)
    allowed[:, first : None if last is None else last + 1 : condition.every] = True
    return allowed


def _values(clause: Clause, grid: TokenGrid) -> NDArray[np.float32]:
    """The clause's prediction for each string and, unused, for padding."""
    values = np.full(len(grid.strings) + 1, clause.value, dtype=np.float32)
    for token, gain in clause.gains.items():
        if token in grid.index:
            values[grid.index[token]] = gain
    return values


BITS: dict[InsideName, int] = {
    "single": 1,
    "double": 2,
    "triple": 4,
    "quotes": 7,
    "parentheses": 8,
    "brackets": 16,
    "braces": 32,
    "comment": 64,
}
"""The bit of each kind of quotation, bracket and comment in `scan_states`."""

_MARK = re.compile(r"\\[^\n]|['\"#()\[\]{}\n]")
_PREFIXES = frozenset({"r", "b", "u", "f", "rb", "br", "fr", "rf"})
_DEPTHS = {"(": BITS["parentheses"], "[": BITS["brackets"], "{": BITS["braces"]}
_OPENERS = {")": "(", "]": "[", "}": "{"}
_DELIMITERS = {
    "": 0,
    "#": BITS["comment"],
    "'": BITS["single"],
    '"': BITS["double"],
    "'''": BITS["triple"],
    '"""': BITS["triple"],
}


def scan_states(text: str) -> Iterator[tuple[int, int]]:
    """Scan a text and yield `(offset, bits)`: from this offset on, this is open; nothing is open at 0.

    One scan from left to right: the state at an offset depends on the text before it only, so that a causal model
    could have computed it. The rules are those of source code, with enough give for prose. A backslash hides the next
    character, other than a line feed. Outside quotations and comments: `#` opens a comment to the line's end; each
    kind of bracket is counted on its own, and a closing one without its opening one is ignored; a quote opens a
    one-line string, which the same quote or the line's end closes, but a `'` after a letter, digit or underscore is an
    apostrophe, unless these are a prefix of Python's strings (r, b, u, f and pairs of them); a third quote right after
    an empty string opens a triple-quoted one, which three such quotes in a row close. Inside quotations and comments
    nothing else opens or closes.
    """
    depth = dict.fromkeys(_DEPTHS, 0)
    opened = ""  # the delimiter of the open quotation, "#" in a comment
    run, run_end = "", 0  # adjacent quotes that may come to open or close a triple-quoted string
    for mark in _MARK.finditer(text):
        character, at = mark[0], mark.start()
        run = run if at == run_end else ""
        if character == "\n":
            opened = opened if len(opened) == 3 else ""
        elif character in "'\"":
            opened, run = _add_quote(character, opened, run, apostrophe=_is_apostrophe(text, at))
            run_end = at + 1
        elif opened:
            continue
        elif character == "#":
            opened = "#"
        elif character in depth:
            depth[character] += 1
        elif character in _OPENERS:
            depth[_OPENERS[character]] = max(0, depth[_OPENERS[character]] - 1)
        yield mark.end(), _DELIMITERS[opened] | sum(_DEPTHS[bracket] for bracket, count in depth.items() if count)


def _add_quote(quote: str, opened: str, run: str, *, apostrophe: bool) -> tuple[str, str]:
    """The open delimiter and the run of quotes after one more quote."""
    if not opened and run == quote * 2:
        return quote * 3, ""
    if not opened:
        return ("", "") if quote == "'" and apostrophe else (quote, quote)
    if opened == quote:
        return "", (run + quote if run == quote else "")
    if opened == quote * 3:
        return ("", "") if run == quote * 2 else (opened, run + quote)
    return opened, ""


def _is_apostrophe(text: str, at: int) -> bool:
    """Whether a quote at this offset would follow a word that is no string prefix."""
    word = re.search(r"\w+\Z", text[max(0, at - 3) : at])
    return word is not None and word[0].lower() not in _PREFIXES
