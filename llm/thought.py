"""Takes a model's thinking out of its reply, whatever marks it stands between.

A server that knows its model gives thoughts apart from the text. Elsewhere they stand in it, between tags or in
channels, of which the last one called final holds the answer. A block of thought begins the reply or a line, so that a
mark which is only mentioned in a sentence, or within a JSON string, opens none. One that is never closed leaves
nothing after it, and one whose beginning a chat template has swallowed takes all that stands before its end.
"""

import re
from collections.abc import Callable

_TAG = r"(?:think|thinking|thoughts?|reasoning|reflection|scratchpad|seed:think)"
_MARKS = (
    (rf"<{_TAG}>", rf"</{_TAG}>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|channel>thought\b", r"<channel\|>"),
)
"""Beginning and end as most models write them, then Mistral's, Kimi's, Cohere's and Gemma's."""
_FINAL = r"<\|channel\|>final[^<]*<\|message\|>"
_CLOSES = "|".join(closes for _, closes in _MARKS)
_THINKING = (
    # Channels, as GPT-OSS writes them; the last form is what a tokenizer leaves that drops their marks.
    rf"\A\s*(?:<\|start\|>assistant)?(?:(?=<\|channel\|>).*{_FINAL}|<\|channel\|>.*)",
    rf"\A.*<\|start\|>assistant{_FINAL}",
    r"\Aanalysis.*assistantfinal",
    "|".join(rf"^[ \t]*{opens}.*?(?:{closes}|\Z)" for opens, closes in _MARKS),
    rf"\A.*^[ \t]*(?:{_CLOSES})",
    # No thinking, but no part of the answer either.
    r"(?:<\|(?:end|return|END_RESPONSE)\|>|</answer>)\s*\Z|\A\s*(?:<\|START_RESPONSE\|>|<answer>)",
)
_PATTERNS = tuple(re.compile(pattern, re.S | re.M | re.I) for pattern in _THINKING)


def without_thought(text: str) -> str:
    """The reply without its thinking; nothing of a reply that only thinks."""
    return _replace_thought(text, lambda _: "")


def blank_thought(text: str) -> str:
    """The same with blanks in the place of the thinking, so that all else stands where it stood."""
    return _replace_thought(text, lambda thought: " " * len(thought[0]))


def _replace_thought(text: str, replacement: Callable[[re.Match[str]], str]) -> str:
    for pattern in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
