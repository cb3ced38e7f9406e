"""How text becomes a row of tokens: whether BOS stands before it, and what special tokens in it are.

One place for all commands. BOS stands before a row where the dictionary was trained so (`prepend_bos`); else where
the model's own tokenizer puts it; else, where that adds none, where the table below gives a reason. It stands there
once, also where a text brings its own. Special tokens that a text spells (`<bos>`, `<|im_end|>`) are text like any
other, unless they are asked for: as tokens they would carry most of a dictionary's variance.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Self

from jinja2 import TemplateError

from .errors import NeuronautError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS_CHOICES = ("auto", "always", "never")

CUSTOM: Mapping[str, str] = {
    "gpt2": "GPT-2 models are harvested with one, by the field's custom and by SAELens' configs",
    "gpt_neox": "Pythia models are harvested with one, by the field's custom and by SAELens' configs",
}
"""Families whose tokenizer adds no BOS and that are read with one all the same, and why."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A convention for reading text."""

    bos: bool
    """Whether BOS stands before each row."""
    reason: str
    """Why, in words."""
    special_tokens: bool = False
    """Whether special tokens that a text spells are read as tokens, not as text."""
    norm_limits: Mapping[str, float] = field(default_factory=dict)
    """By site: the norm of its vectors above which a position is massive, and left out of statistics."""


def choose_reading(tokenizer: "PreTrainedTokenizerBase", family: str, *, name: str, bos: str = "auto") -> Reading:
    """The convention of a model of this family; `bos` is one of BOS_CHOICES."""
    if bos not in BOS_CHOICES:
        raise NeuronautError(f"the BOS convention {bos!r} is not known; wanted one of: {', '.join(BOS_CHOICES)}")
    if tokenizer.bos_token_id is None:
        if bos == "always":
            raise NeuronautError(f"the tokenizer of {name} has no BOS to put before a text; wanted auto or never")
        return Reading(False, "its tokenizer has none")
    if bos != "auto":
        return Reading(bos == "always", "it was asked for")
    if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return Reading(True, "its tokenizer adds it")
    if tokenizer.chat_template:
        return Reading(False, "it is a chat model whose tokenizer adds none")
    if name == "demo":
        return Reading(True, "the built-in model was trained with one")
    if family in CUSTOM:
        return Reading(True, CUSTOM[family])
    return Reading(False, "its tokenizer adds none")


def spelled_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> dict[str, int]:
    """The special tokens that texts spell, with the number of texts that do."""
    counts = {token: sum(token in text for text in texts) for token in tokenizer.all_special_tokens}
    return {token: count for token, count in counts.items() if count}


class TextReader:
    """Turns text into rows of tokens, by one convention.

    Attributes: `name` (of the model, for errors), `tokenizer`, `reading`.
    """

    name: str
    tokenizer: "PreTrainedTokenizerBase"
    reading: Reading

    def reading_as(self, reading: Reading) -> Self:
        """The same subject with another convention for reading text; the model is shared."""
        other = copy.copy(self)
        other.reading = reading
        return other

    @property
    def bos(self) -> int | None:
        """The id that stands before each row; None where rows begin without."""
        bos = self.tokenizer.bos_token_id
        return bos if self.reading.bos and isinstance(bos, int) else None

    @property
    def bos_prefix(self) -> list[int]:
        """The ids that stand before a row's first token: BOS, or none."""
        return [] if self.bos is None else [self.bos]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of the tokenizer's special tokens."""
        return frozenset(self.tokenizer.all_special_ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, as `encode_all`."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without BOS: where rows begin with BOS, one that a text brings at its start is left out.

        Special tokens that a text spells are text, unless the subject's reading says otherwise.
        """
        # Not verbose: a text longer than the context is no reason for a warning here.
        return self.tokenizer(
            [self._without_bos(text) for text in texts],
            add_special_tokens=False,
            split_special_tokens=not self.reading.special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def brings_bos(self, text: str) -> bool:
        """Whether a text begins with the BOS that the row begins with anyway."""
        return self.reading.bos and text.startswith(str(self.tokenizer.bos_token))

    def _without_bos(self, text: str) -> str:
        while self.brings_bos(text):
            text = text.removeprefix(str(self.tokenizer.bos_token))
        return text

    def spells_special(self, text: str) -> bool:
        """Whether a text spells special tokens that are read as text, a BOS at its start not counted."""
        text = self._without_bos(text)
        return not self.reading.special_tokens and any(token in text for token in self.tokenizer.all_special_tokens)

    def row(self, text: str) -> list[int]:
        """The row of a text: BOS where rows begin with it, once, and its tokens."""
        return [*self.bos_prefix, *self.encode(text)]

    def chat_row(self, messages: Sequence[Mapping[str, str]], *, reply: bool = True) -> list[int]:
        """The row of a chat, by the model's own template; `reply` adds what opens the model's answer."""
        return self.tokenizer.encode(self.render_chat(messages, reply=reply), add_special_tokens=False, verbose=False)

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, reply: bool = True) -> str:
        """The text of a chat, by the model's own template."""
        if not self.tokenizer.chat_template:
            raise NeuronautError(f"{self.name} has no chat template; give text without --chat, or a chat model")
        try:
            chat = [dict(message) for message in messages]
            return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=reply))
        except TemplateError as error:
            raise NeuronautError(f"the chat template of {self.name} refuses this chat ({error})") from error

    def remarks(self, texts: Sequence[str]) -> list[str]:
        """Lines on what is easily overlooked in texts: a BOS of their own, special tokens that are read as text."""
        own = sum(map(self.brings_bos, texts))
        spelled = spelled_tokens(self.tokenizer, list(map(self._without_bos, texts)))
        lines: list[str] = []
        if own:
            lines.append(
                f"{own} of {len(texts)} texts bring a {self.tokenizer.bos_token} of their own: it stands there once"
            )
        if spelled and not self.reading.special_tokens:
            named = ", ".join(f"{token} in {count}" for token, count in spelled.items())
            lines.append(f"special tokens are read as text here ({named}); --special-tokens reads them as tokens")
        return lines
