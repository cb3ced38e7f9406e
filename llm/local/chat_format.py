"""From messages to the token ids that a local model continues, and from the tokens that it wrote to text.

A model with a chat template is given that template's form, its thinking turned off. Any other is given plainly

    System: ...

    User: ...

    Assistant:

and its reply ends where it opens another turn. A message's text is data: where it spells a token of the model's
markup ("<|im_end|>"), the text is cut inside that spelling before it is tokenized, so that no markup comes of it. The
cut is a private-use character that travels through the template, which may trim or fold text as it likes.

Tools are given to a template that mentions them and whose own form of a call is one that `read_calls` reads in the
reply. A call is rendered once to see it. Otherwise, as without a template, the tools are described in words
(tool_calls.py), and so is the history of calls always.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..tool_calls import read_calls, spell_out_calls, spell_out_tools
from ..types import Chat, Message, Reply, ToolSpec

Turn = dict[str, Any]
"""A message as chat templates take it."""
_HEADINGS = {"system": "System:", "user": "User:", "assistant": "Assistant:"}
_NEXT_TURN = re.compile(r"\n(System|User|Assistant):")
_TAIL = 12
"""Tokens within which a heading that was just written must lie."""


class Refused(Exception):
    """The chat template does not take such a conversation."""


class ChatFormat:
    """The form of one model's chats: messages as token ids, and its tokens as a reply."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, stops: Iterable[int]) -> None:
        """`stops` are the token ids that end a reply."""
        self.tokenizer = tokenizer
        self.stops = frozenset(stops)
        self.is_chat = bool(tokenizer.chat_template)

    def chat_ids(self, chat: Chat) -> list[int]:
        """Token ids of a chat with its tools, up to where the reply begins. Raises Refused."""
        if chat.tools and self._takes_tools:
            return self.ids(spell_out_calls(chat.messages), tools=chat.tools)
        return self.ids(spell_out_tools(chat).messages)

    def ids(self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = ()) -> list[int]:
        """The same of messages without calls; `tools` are for a template that takes them. Raises Refused."""
        scissors = _absent_character(message.content for message in messages)
        cut = [Message(message.role, self._cut(message.content, scissors)) for message in messages]
        text = self._apply_template(cut, tools) if self.is_chat else plain(cut)
        pieces = [
            id
            for piece in text.split(scissors)
            for id in self.tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=False, verbose=False)
        ]
        return pieces if self.is_chat else self._prefix + pieces

    def plain_ids(self, chat: Chat) -> list[int]:
        """Token ids of the plain form, which no template can refuse."""
        return self.tokenizer.encode(plain(spell_out_tools(chat).messages), add_special_tokens=False, verbose=False)

    def is_over(self, written: Sequence[int]) -> bool:
        """Whether the reply ended with its last token."""
        if written[-1] in self.stops:
            return True
        return not self.is_chat and _NEXT_TURN.search(self._decode(written[-_TAIL:])) is not None

    def text(self, written: Sequence[int]) -> str:
        """The reply, without the tokens that ended it."""
        text = self._decode(self._without_stop(written))
        return text if self.is_chat else _NEXT_TURN.split(text)[0].removeprefix(" ")

    def count_text(self, written: Sequence[int]) -> int:
        """How many of the tokens, from the first, spell the reply's text."""
        ids = self._without_stop(written)
        if self.is_chat or not (turn := _NEXT_TURN.search(self._decode(ids))):
            return len(ids)
        return sum(len(self._decode(ids[: count + 1])) <= turn.start() for count in range(len(ids)))

    def _without_stop(self, written: Sequence[int]) -> Sequence[int]:
        return written[:-1] if written and written[-1] in self.stops else written

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text if isinstance(text, str) else "".join(text)

    @cached_property
    def _prefix(self) -> list[int]:
        """The tokens that this tokenizer puts before every text: its BOS, or nothing."""
        bos = self.tokenizer.bos_token_id
        return [bos] if isinstance(bos, int) and self.tokenizer.encode("a")[0] == bos else []

    @cached_property
    def _markup(self) -> re.Pattern[str]:
        """Spellings of special tokens, and of other added tokens that the template writes."""
        template = str(self.tokenizer.chat_template or "")
        spellings = {
            token.content
            for token in self.tokenizer.added_tokens_decoder.values()
            if len(token.content.strip()) > 1 and (token.special or token.content in template)
        }
        return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or r"(?!)")

    def _cut(self, content: str, scissors: str) -> str:
        """The content with `scissors` inside every spelling of markup."""
        pieces, start = list[str](), 0
        while match := self._markup.search(content, start):
            # The next search begins inside this spelling, so that one that overlaps it is cut too.
            pieces.append(content[start : match.start() + 1])
            start = match.start() + 1
        return scissors.join([*pieces, content[start:]])

    @cached_property
    def _takes_tools(self) -> bool:
        """Whether the template mentions a tool that is planted, and a call that it renders is read as that call."""
        if not self.is_chat:
            return False
        tool, arguments = ToolSpec("planted_tool", "", {"type": "object", "properties": {}}), {"at": [1, "é"]}
        question: Turn = {"role": "user", "content": "?"}
        function = {"name": tool.name, "arguments": arguments}
        call: Turn = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        before, rendered = (self._render(turns, [tool], opens=False) for turns in ([question], [question, call]))
        if before is None or rendered is None or tool.name not in before:
            return False
        # The text before the call may show the form with places to fill, which is no JSON.
        calls = read_calls(Reply("ok", rendered.removeprefix(before))).calls
        return [(read.name, json.loads(read.arguments)) for read in calls] == [(tool.name, arguments)]

    def _apply_template(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str:
        """The template's text; the system message joins the first user turn where the template has no place for it."""
        text = self._render(_as_turns(messages), tools)
        system = messages[0].content if messages[0].role == "system" else ""
        if text is None or system.strip() not in text:
            text = self._render(_as_turns(_fold_system(messages)), tools)
        if text is None:
            raise Refused(f"the chat template takes no conversation of {', '.join(m.role for m in messages)}")
        return text

    def _render(self, turns: list[Turn], tools: Sequence[ToolSpec], *, opens: bool = True) -> str | None:
        """The template's text, to where the reply `opens`; None where it takes no such turns."""
        functions: list[dict[str, object] | Callable[..., object]] = [tool.function() for tool in tools]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, tools=functions or None, tokenize=False, add_generation_prompt=opens, enable_thinking=False
                )
            )
        except (TemplateError, TypeError):
            # A template that joins what it was given as if it were text fails as Python does.
            return None


def _as_turns(messages: Sequence[Message]) -> list[Turn]:
    return [{"role": message.role, "content": message.content} for message in messages]


def plain(messages: Iterable[Message]) -> str:
    """The conversation under headings, which a model without a chat template continues."""
    turns = [f"{_HEADINGS[message.role]} {message.content}" for message in messages]
    return "\n\n".join([*turns, _HEADINGS["assistant"]])


def _fold_system(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with the system message at the head of the first user turn."""
    if len(messages) < 2 or (messages[0].role, messages[1].role) != ("system", "user"):
        return messages
    return [Message("user", f"{messages[0].content}\n\n{messages[1].content}"), *messages[2:]]


def _absent_character(texts: Iterable[str]) -> str:
    """A private-use character that is in none of the texts."""
    used = {character for text in texts for character in text}
    return next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
