"""Simulates in one pass, as published: every token of the window stands before a tab and `unknown`, and the
prediction at a token is the distribution over the values at its tab, where a measured value would come next.

The prompt is put together from token ids, never from text: `ids(token) + TAB + UNKNOWN + NEWLINE` for each token of the
subject. So every token has exactly one tab, in order, whatever its string: tabs, newlines, pieces of an
emoji, chat markup (which is spelled out, not obeyed) or nothing. The worked examples, where the values after the
first few lines are revealed, are put together in the same way, so that the model sees one form throughout.
The model reads from left to right, so a prediction depends on the tokens before it alone, as the feature does.

Some tokenizers have no single token for 10; the whole prompt then has a scale from 0 to 9.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..llm.prompt import Prompt
from ..llm.render import STEPS
from ..llm.types import Message, Probe, Reply
from ..subject.errors import NeuronautError
from .llm_simulation import Reading
from .published_metrics import expected_values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT = Path(__file__).with_name("simulate_all.md")
UNKNOWN = "unknown"
Ids = tuple[int, ...]
_MARK = "\ue000{}\ue001"
"""Holds a place in the conversation while the chat format is put around it."""
_EXPLANATION = _MARK.format("explanation")
_MARKED = re.compile(_MARK.format("(.*?)"))


class Pieces:
    """Token ids of pieces of text, each by itself as it would be cut in its place."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        # Its own copy: a tokenizer takes one thread at a time, and a local model goes on using its own.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._cache: dict[tuple[str, str], Ids] = {}
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if len(token.content.strip()) > 1]
        self._markup = re.compile(f"(?={'|'.join(map(re.escape, added))})" if added else "(?!)")
        self.tab, self.newline = self.after("a", "\t"), self.after("a", "\n")
        self.unknown = self.after("\t", UNKNOWN)
        values = [self.after("\t", str(value)) for value in range(STEPS + 1)]
        self.top = STEPS if len(values[STEPS]) == 1 else STEPS - 1
        """The highest value that is one token."""
        self.values: Ids = tuple(chain.from_iterable(values[: self.top + 1]))
        """The token of each value from 0 to the top."""
        self._check()

    def after(self, before: str, text: str) -> Ids:
        """The ids of a text that follows another, or of the text alone where the two are not cut apart."""
        if (before, text) not in self._cache:
            self._cache[before, text] = _encode_after(before, text, self._encode_untrusted)
        return self._cache[before, text]

    def template(self, text: str, *, first: bool) -> Ids:
        """The ids of trusted text, in which the tokenizer's special tokens count as such."""
        return self._encode(text) if first else _encode_after("a", text, self._encode)

    def lines(self, text: str) -> Ids:
        """The ids of lines with tabs, cut at every newline and tab."""
        return tuple(chain.from_iterable(self._split_lines(text)))

    def _split_lines(self, text: str) -> Iterator[Ids]:
        before = "\n"
        for piece in re.split(r"([\t\n])", text):
            separator = {"\t": self.tab, "\n": self.newline}.get(piece)
            yield self.after(before, piece) if separator is None else separator
            before = piece if separator is not None else before

    def _encode_untrusted(self, text: str) -> Ids:
        """Encode untrusted text: the spelling of an added token is cut inside, so that it never becomes that token."""
        cuts = [0, *(match.start() + 1 for match in self._markup.finditer(text)), len(text)]
        return tuple(chain.from_iterable(self._encode(text[a:b]) for a, b in pairwise(cuts)))

    def _encode(self, text: str) -> Ids:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _check(self) -> None:
        lacks = [
            what
            for what, ids in {"tab": self.tab, "newline": self.newline, UNKNOWN: self.unknown}.items()
            if not ids or self._tokenizer.unk_token_id in ids
        ]
        one_each = len(self.values) == len(set(self.values)) == self.top + 1
        if not one_each or self._tokenizer.unk_token_id in self.values:
            lacks.append("digits as single tokens")
        if lacks:
            raise NeuronautError(
                f"the tokenizer of {self._tokenizer.name_or_path or 'this model'} has no {' and no '.join(lacks)}, "
                "so it cannot simulate in one pass; take another model, or the backend json"
            )


def _encode_after(before: str, text: str, encode: Callable[[str], Ids]) -> Ids:
    head, whole = encode(before), encode(before + text)
    return whole[len(head) :] if whole[: len(head)] == head else encode(text)


class ProbeBackend:
    """Asks any model that answers probes, chat or base; one probe per window.

    >>> LLMSimulator(ProbeBackend(subject.tokenizer)).settings["by"]
    'probe'
    """

    name = "probe"

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt | None = None) -> None:
        """`tokenizer` is that of the model which simulates, not the subject's."""
        self.prompt = prompt or Prompt.load(PROMPT)
        self._pieces = Pieces(tokenizer)
        places = {"explanation": _EXPLANATION, "top": str(self._pieces.top)}
        messages = self.prompt.render(places)
        self._frame = self._encode_frame(tokenizer, messages)
        """Ids of the prompt up to the window's first token; None where the explanation goes."""

    @property
    def top(self) -> int:
        """10, or 9 where 10 is not one token."""
        return self._pieces.top

    def request(self, explanation: str, tokens: Sequence[str]) -> Probe:
        """Write one probe whose positions are the tabs after the window's tokens."""
        pieces = self._pieces
        explanation_ids = pieces.after("\n", explanation)
        ids = [id for segment in self._frame for id in (explanation_ids if segment is None else segment)]
        positions = []
        for token in tokens:
            ids += (*pieces.after("\n", token), *pieces.tab)
            positions.append(len(ids) - 1)
            ids += (*pieces.unknown, *pieces.newline)
        return Probe(tuple(ids), tuple(positions), pieces.values, prompt=self.prompt.name)

    def read(self, reply: Reply, *, tokens: int) -> Reading:
        """Read expected values over the digits; reasons are the reply's status, "malformed" or "no digit".

        The note "digit_mass" is the probability of any digit at all: near 1 where the model has got the format.
        """
        if reply.status != "ok":
            return Reading.nothing(tokens, reply.status)
        if len(reply.probabilities) != tokens or any(len(row) != self.top + 1 for row in reply.probabilities):
            return Reading.nothing(tokens, "malformed")
        probabilities = np.array(reply.probabilities, np.float64)
        values = expected_values(probabilities).astype(np.float32)
        absent = int(np.isnan(values).sum())
        return Reading(
            values,
            {"no digit": absent} if absent else {},
            {"digit_mass": float(np.nansum(probabilities, axis=1).mean())},
        )

    def _encode_frame(self, tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[Ids | None]:
        """Encode the conversation, up to where the answer's first line would begin."""
        answers = [m.content for m in messages if m.role == "assistant" and "\t" in m.content]
        if not answers or _EXPLANATION not in messages[-1].content:
            raise NeuronautError(
                f"the prompt {self.prompt.name} has no {'place $explanation' if answers else 'worked example'}; "
                "it needs `## assistant` messages with lines of token, tab and value, and $explanation in the last one"
            )
        opening = answers[0][: answers[0].rfind("\n", 0, answers[0].index("\t")) + 1]
        parts: list[Ids | None] = [_bos_ids(tokenizer)]
        for i, piece in enumerate(_MARKED.split(_format_conversation(tokenizer, messages))):
            if i % 2 == 0:
                parts.append(self._pieces.template(piece, first=i == 0))
            else:
                parts.append(self._pieces.lines(messages[int(piece)].content) if piece.isdigit() else None)
        return [*parts, self._pieces.lines(opening)]


def _format_conversation(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """Write the messages in the model's own chat format, or as paragraphs for a base model.

    A mark stands for each worked answer.
    """
    turns = [Message(m.role, _MARK.format(i)) if m.role == "assistant" else m for i, m in enumerate(messages)]
    if not tokenizer.chat_template:
        return "".join(f"{turn.content}\n\n" for turn in turns)
    text = _apply_template(tokenizer, turns)
    if turns[0].role == "system" and (text is None or turns[0].content not in text):
        # Some chat formats know no system turn, others drop it.
        first = Message("user", f"{turns[0].content}\n\n{turns[1].content}")
        text = _apply_template(tokenizer, [first, *turns[2:]])
    if text is None:
        raise NeuronautError(
            f"the chat format of {tokenizer.name_or_path or 'this model'} takes no conversation of "
            f"{', '.join(m.role for m in messages)}; take another model, or mend the prompt"
        )
    return text


def _apply_template(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Message]) -> str | None:
    from jinja2 import TemplateError

    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
    except TemplateError:
        return None


def _bos_ids(tokenizer: "PreTrainedTokenizerBase") -> Ids:
    """The beginning-of-text id where the tokenizer puts one by itself; a chat format has its own."""
    ids = tuple(tokenizer.encode("a"))
    return ids[:1] if not tokenizer.chat_template and ids and ids[0] == tokenizer.bos_token_id else ()
