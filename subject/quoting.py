"""Text of a corpus or a model on one line: whatever does not print is spelled out, so that it commands nothing."""

_SPELLED = {"\n": "↵", "\t": "⇥"}


def visible(text: str) -> str:
    """Put the text on one line, with every character that does not print spelled out."""
    return "".join(_SPELLED.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def quoted(text: str) -> str:
    """Put a text in quotes, so that its spaces are seen."""
    mark = "'" if '"' in text else '"'
    return f"{mark}{visible(text)}{mark}"
