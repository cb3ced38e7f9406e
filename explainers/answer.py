"""Reads a language model's reply: the text after `[EXPLANATION]:`, its headline, and a rule where there is one.

The last such line counts, so that drafts may precede it. What models put around it is taken off: a block of
thought, bold type, quotation marks, code fences, a label without its brackets. Nothing is guessed: a reply
without the label, or one that declines in words, is unparsed with a reason. A text begins with its headline: what
stands after `[HEADLINE]:` where the text begins so or has room for it, else its own first sentence if that is short.
Of a rule only the spelling is mended, as far as it has one meaning; a faulty one is left out with the reason, and the
text stands.
"""

import json
import re
from dataclasses import dataclass
from typing import Literal

from ..llm.render import WORD_CUT, unspelled
from ..llm.thought import without_thought
from ..rules.language import Rule
from ..rules.telling import HEADLINE, WORDS
from ..subject.errors import NeuronautError


@dataclass(frozen=True, slots=True)
class Answer:
    """The explanation that a reply gives, or why it gives none."""

    status: Literal["explained", "no_pattern", "failed"]
    text: str | None = None
    """The explanation; None unless the status is "explained"."""
    headline: str | None = None
    """Its beginning, a sentence of at most 15 words; None where it has none."""
    reason: str | None = None
    """Why there is none: "unparsed: ...", or the model's words that there is no pattern."""
    rule: Rule | None = None
    rule_error: str | None = None
    """Why a rule that the reply holds was left out."""


_LABEL = re.compile(
    r"^[ \t>*_#`-]*(?:\[[ ]*(?P<known>(?i:HEADLINE|EXPLANATION|RULE))[ ]*\][ \t*_`]*[::]?"
    r"|(?P<bare>(?i:HEADLINE|EXPLANATION|RULE))[ \t*_`]*(?:[::]|$)|\[(?P<other>[A-Z][A-Z ]*)\][*_]*[::])"
    r"(?:[*_`]+(?=\s|$))?"
    r"|\[(?P<inline>RULE)\]:?[ \t`]*(?=\{)",
    re.M,
)
"""`[EXPLANATION]:` at the start of a line, in any dress, and `[RULE]:` also within one before a brace. Any other
label in brackets ends what stands before it."""
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)\w*[ \t]*$\n?", re.M)
_WRAPPERS = (("**", "**"), ("__", "__"), ('"', '"'), ("“", "”"), ("`", "`"), ("*", "*"))
_NO_PATTERN = re.compile(r"no (?:clear |common |consistent |discernible )?pattern\b(?!-)", re.I)
_DECLINED = re.compile(
    r"(?:i(?:['’]m| am) sorry|sorry)[,.]? (?:but|i)\b|as an ai\b|"
    r"(?:i can(?:no|['’])t|i can not|i won['’]t|i will not|i(?:['’]m| am) (?:unable|not able) to) "
    r"(?:help|assist|provide|explain|identify|determine|comply|do|fulfil|answer|analy[sz]e)",
    re.I,
)
_COURTESY = re.compile(
    r"\n[ \t]*(?:i hope|hope (?:this|that|it)|(?:please )?let me know|(?:please )?feel free"
    r"|(?:i(?:['’]m| am) )?happy to|if you(?:['’]d| would| have| need| want)|would you like)\b.*",
    re.I | re.S,
)
"""What a model says to its reader on a line of its own; an explanation speaks to nobody."""
_QUOTED = re.compile(r"`[^`]*`|\([^()]*\)")
_OPEN_END = re.compile(
    r"[(“]\w[^)”]*$|\w[,;:-]$|(?<!word)(?<!token)(?<!letter)(?<!article)(?<!junction)(?<!position)"
    r" (?:an?|the|and|or|of|than|as)$"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[^a-z\s]|$)|[.!?]?(?:;| — | – )")
_NO_RULE = frozenset({"", "none", "null", "n/a", "no rule"})


def read_answer(reply: str) -> Answer:
    """Read a reply; what cannot be read becomes an answer with the status "failed", never an error."""
    answer = without_thought(reply)
    sections = _split_sections(answer)
    if "EXPLANATION" not in sections:
        return Answer("failed", reason="unparsed: no [EXPLANATION] line")
    text = _first_paragraph(sections["EXPLANATION"])
    if not any(character.isalnum() for character in text):
        return Answer("failed", reason="unparsed: nothing after [EXPLANATION]")
    if len(_FENCE.findall(answer)) % 2:
        return Answer("failed", reason=f"cut: a fence is not closed: {text[-200:]}")
    if _is_cut(text):
        return Answer("failed", reason=f"cut: the reply ends amid a sentence: {text[-200:]}")
    if _DECLINED.match(text):
        return Answer("failed", reason=f"unparsed: declined in words: {text[:200]}")
    if _NO_PATTERN.match(text):
        return Answer("no_pattern", reason=f"the reader answered: {text}")
    text, headline = _join(_first_paragraph(sections.get("HEADLINE", "")), text)
    rule, error = _read_rule(sections.get("RULE", ""))
    return Answer("explained", text, headline, rule=rule, rule_error=error)


def _join(headline: str, text: str) -> tuple[str, str | None]:
    """A text that begins with its headline, and the headline."""
    headline = headline.rstrip(".;:, ")
    if not headline or _count_words(headline) > HEADLINE:
        return text, headline_of(text)
    if text.casefold().startswith(headline.casefold()):
        return text, text[: len(headline)]
    if _count_words(headline) + _count_words(text) <= WORDS:
        return f"{headline}. {text}", headline
    return text, headline_of(text)


def headline_of(text: str) -> str | None:
    """The first sentence of a text, or what stands before its first semicolon or dash; None if over 15 words.

    >>> headline_of("the negation ` not` after a verb; not at the start of a line.")
    'the negation ` not` after a verb'
    """
    end = _SENTENCE_END.search(_mask_quoted(text))
    headline = text[: end.start()] if end else text
    return headline if 0 < _count_words(headline) <= HEADLINE else None


def _count_words(text: str) -> int:
    """Words, each quotation being one."""
    return len(_mask_quoted(text).split())


def _mask_quoted(text: str) -> str:
    """The text with a letter for each character in backticks: what is quoted neither ends a sentence nor has words."""
    return re.sub(r"`[^`]*`", lambda quoted: "x" * len(quoted[0]), text)


def _is_cut(text: str) -> bool:
    """Whether a text ends within a quotation or a bracket, or at a word that another must follow.

    Backticks and brackets may be what a text is about, so a text that ends as a sentence does is whole.
    """
    if text[-1] in ".!?":
        return False
    prose = _QUOTED.sub("", text)
    return bool(_OPEN_END.search(prose)) or "`" in prose


def _split_sections(text: str) -> dict[str, str]:
    """The text that follows each label up to the next one; of equal labels the last counts."""
    labels = list(_LABEL.finditer(text))
    ends = [*(label.start() for label in labels[1:]), len(text)]
    return {(m[m.lastgroup or 0]).upper(): text[m.end() : end] for m, end in zip(labels, ends, strict=False)}


def _first_paragraph(section: str) -> str:
    """The first paragraph on one line, without what only dresses it."""
    # A fence that the label stands in ends the explanation; what follows it is chatter.
    fenced = next((part for part in _FENCE.split(section) if part.strip()), "")
    first = re.split(r"\n[ \t]*\n", fenced.strip(), maxsplit=1)[0]
    text = " ".join(_COURTESY.sub("", first).split())
    for _ in range(2):
        text = next((unwrapped for ends in _WRAPPERS if (unwrapped := _unwrap(text, *ends)) is not None), text)
    return text


def _unwrap(text: str, left: str, right: str) -> str | None:
    """The text without a pair that encloses it all, or that was opened before the label and closes here."""
    closed = text.endswith(right) and len(text) > len(right)
    inner = text.removesuffix(right)
    if closed and text.startswith(left) and left not in inner[len(left) :] and right not in inner[len(left) :]:
        return inner[len(left) :].strip()
    return inner.strip() if closed and left == right == "**" and left not in inner else None


def _read_rule(section: str) -> tuple[Rule | None, str | None]:
    """The section's first JSON object as a rule, or why there is none; None twice where none was given."""
    opening = re.search(r"\[\s*\{|\{", section)
    if opening is None:
        text = " ".join(_FENCE.sub("", section).split())
        return None, None if text.strip("`*\"'.()").lower() in _NO_RULE else f"no JSON object after [RULE]: {text[:80]}"
    try:
        given, _ = json.JSONDecoder().raw_decode(section, opening.start())
        rule = Rule.parse(json.dumps(_mend(given)))
        return (None, "the rule looks at tokens behind the current one") if rule.looks_ahead else (rule, None)
    except ValueError as error:
        return None, f"the rule is not JSON: {error}"
    except RecursionError:
        return None, "the rule is not JSON: nested too deeply"
    except NeuronautError as error:
        return None, str(error)


def _mend(given: object) -> object:
    """The rule that a JSON value can only mean: clauses without their frame, text with the marks of a prompt."""
    if isinstance(given, list):
        given = {"any": given}
    elif isinstance(given, dict) and "value" in given and "any" not in given:
        given = {"any": [given]}
    return _unmarked(given)


def _unmarked(value: object) -> object:
    """The value with every string in it spelled back: no text holds a prompt's marks, which spell other characters."""
    match value:
        case str():
            return unspelled(value.replace(WORD_CUT, ""))
        case list():
            return [_unmarked(part) for part in value]
        case dict():
            return {_unmarked(key): _unmarked(part) for key, part in value.items()}
        case _:
            return value
