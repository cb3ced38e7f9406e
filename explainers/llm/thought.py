"""What a model thinks aloud before it replies, and how it is told from the reply."""

import re

_THOUGHT = re.compile(r"\A\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|\A.*^\s*</think(?:ing)?>", re.S | re.M | re.I)
"""A block of thought, also one that is not closed, or whose beginning a chat template has swallowed."""


def without_thought(text: str) -> str:
    """The reply without the block of thought that it begins with; nothing of one that is never closed."""
    return _THOUGHT.sub("", text, count=1)
