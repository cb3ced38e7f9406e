"""How text becomes a row of tokens: whether BOS stands before it, and what special tokens in it are.

One place for all commands. BOS stands before a row where the dictionary was trained so (`prepend_bos`); else where the
model's own tokenizer puts it; else, where that adds none, where the table below gives a reason. It stands there once,
also where a text brings its own. An encoder's rows have all that its tokenizer puts around a text, as [CLS] and [SEP],
since it was trained so: they are context in each row, and no number is of them. Special tokens that a text spells
(`<bos>`, `<|im_end|>`) are text like any other, unless they are asked for: as tokens they would carry most of a
dictionary's variance.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Self

from jinja2 import TemplateError

from .address import split_random
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
class Convention:
    """How a subject reads text."""

    bos: bool | None
    """Whether BOS stands before each row; None where the tokenizer has none."""
    reason: str
    """Why, in words."""
    eos: bool = False
    """Whether what the tokenizer puts behind a text stands behind each row, as encoders have it ([SEP], EOS)."""
    special_tokens: bool = False
    """Whether special tokens that a text spells are read as tokens, not as text."""
    chat: bool = False
    """Whether a prompt is a user's message, or a list of messages as JSON, put into the model's chat template."""
    norm_limits: Mapping[str, float] = field(default_factory=dict)
    """By site: the norm of its vectors above which a position is massive, and left out of statistics."""

    def agrees(self, other: "Convention") -> bool:
        """Whether two conventions read the same text as the same rows."""
        alike = self.special_tokens == other.special_tokens and self.eos == other.eos
        return alike and (None in (self.bos, other.bos) or self.bos == other.bos)

    @property
    def sentence(self) -> str:
        """What is done and why, for a reader."""
        special = "; special tokens are read as tokens" if self.special_tokens else ""
        return f"{self._around}: {self.reason}{special}"

    def __str__(self) -> str:
        special = " and special tokens read as tokens" if self.special_tokens else ""
        return f"{self._around}{special}"

    @property
    def _around(self) -> str:
        if not self.eos:
            return f"{'BOS' if self.bos else 'no BOS'} before each row"
        return f"{'BOS before and ' if self.bos else ''}EOS behind each row"


BEFORE = Convention(True, "databases of before 0.2 always had it")
"""The convention of harvests that do not name theirs."""


def choose_convention(
    tokenizer: "PreTrainedTokenizerBase", family: str, *, name: str, bos: str = "auto", causal: bool = True
) -> Convention:
    """The convention of a model of this family; `bos` is one of BOS_CHOICES, of an encoder for all that is around."""
    if bos not in BOS_CHOICES:
        raise NeuronautError(f"the BOS convention {bos!r} is not known; wanted one of: {', '.join(BOS_CHOICES)}")
    if not causal:
        return _choose_around(tokenizer, name=name, bos=bos)
    if tokenizer.bos_token_id is None:
        if bos == "always":
            raise NeuronautError(f"the tokenizer of {name} has no BOS to put before a text; wanted auto or never")
        return Convention(None, "its tokenizer has none")
    if bos != "auto":
        return Convention(bos == "always", "it was asked for")
    if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return Convention(True, "its tokenizer adds it")
    if tokenizer.chat_template:
        return Convention(False, "it is a chat model whose tokenizer adds none")
    if split_random(name)[0] == "demo":
        return Convention(True, "the built-in model was trained with one")
    if family in CUSTOM:
        return Convention(True, CUSTOM[family])
    return Convention(False, "its tokenizer adds none")


def _choose_around(tokenizer: "PreTrainedTokenizerBase", *, name: str, bos: str) -> Convention:
    before, behind = find_around(tokenizer)
    if not before and not behind:
        if bos == "always":
            raise NeuronautError(f"the tokenizer of {name} puts nothing around a text; wanted auto or never")
        return Convention(None, "its tokenizer adds nothing")
    added = " and ".join(map(str, tokenizer.convert_ids_to_tokens([*before, *behind])))
    wanted = bos != "never"
    reason = f"its tokenizer adds {added}" if bos == "auto" else f"{added} were asked {'for' if wanted else 'away'}"
    return Convention(wanted if before else None, reason, eos=wanted and bool(behind))


def find_around(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before a text, and behind it."""
    whole, text = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next((at for at in range(len(whole)) if whole[at : at + len(text)] == text), 0)
    return whole[:start], whole[start + len(text) :]


def spelled_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> dict[str, int]:
    """The special tokens that texts spell, with the number of texts that do."""
    counts = {token: sum(token in text for text in texts) for token in tokenizer.all_special_tokens}
    return {token: count for token, count in counts.items() if count}


class TextReader:
    """Turns text into rows of tokens, by one convention.

    Attributes: `name` (of the model, for errors), `tokenizer`, `convention`, `causal` (whether a token reads only what
    stands before it; an encoder's reads both sides), `context` (the most positions of a row).
    """

    causal: bool = True
    context: int
    name: str
    tokenizer: "PreTrainedTokenizerBase"
    convention: Convention

    def with_convention(self, convention: Convention) -> Self:
        """The same subject with another convention; the model is shared."""
        other = copy.copy(self)
        other.convention = convention
        return other

    @cached_property
    def bos_id(self) -> int | None:
        """BOS, whether rows begin with it or not; None where the tokenizer has none."""
        if not self.causal:
            return next(iter(self._around[0]), None)
        bos = self.tokenizer.bos_token_id
        return bos if isinstance(bos, int) else None

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        return find_around(self.tokenizer)

    @property
    def bos(self) -> int | None:
        """The id that stands before each row; None where rows begin without."""
        return self.bos_id if self.convention.bos else None

    @property
    def bos_prefix(self) -> list[int]:
        """The ids that stand before a row's first token: BOS, or none."""
        return [] if self.bos is None else [self.bos] if self.causal else self._around[0]

    @property
    def eos_suffix(self) -> list[int]:
        """The ids that stand behind a row's last token: none, but for an encoder."""
        return self._around[1] if self.convention.eos else []

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of the tokenizer's special tokens."""
        return frozenset(self.tokenizer.all_special_ids)

    @property
    def room(self) -> int:
        """The most tokens of a text in a row: the context less what stands around them.

        An encoder's rows also have a position of padding: so that attention is masked in every forward pass, and a
        row's vectors have the same bits whatever rows are beside it.
        """
        return self.context - len(self.bos_prefix) - len(self.eos_suffix) - (not self.causal)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, as `encode_all`."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without BOS: where rows begin with BOS, one that a text brings at its start is left out.

        Special tokens that a text spells are text, unless the convention says otherwise.
        """
        # Not verbose: a text longer than the context is no reason for a warning here.
        return self.tokenizer(
            [self._without_bos(text) for text in texts],
            add_special_tokens=False,
            split_special_tokens=not self.convention.special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def brings_bos(self, text: str) -> bool:
        """Whether a text begins with the BOS that the row begins with anyway."""
        return self.bos is not None and text.startswith(self._bos_token)

    @property
    def _bos_token(self) -> str:
        return "" if self.bos_id is None else str(self.tokenizer.convert_ids_to_tokens(self.bos_id))

    def _without_bos(self, text: str) -> str:
        while self.brings_bos(text):
            text = text.removeprefix(self._bos_token)
        return text

    def spells_special(self, text: str) -> bool:
        """Whether a text spells special tokens that are read as text, a BOS at its start not counted."""
        text = self._without_bos(text)
        return not self.convention.special_tokens and any(token in text for token in self.tokenizer.all_special_tokens)

    def row(self, prompt: str) -> list[int]:
        """The row of a prompt: BOS where rows begin with it, once, its tokens, and what an encoder's rows end with."""
        return [*self.bos_prefix, *self.encode(self.as_prompt(prompt)), *self.eos_suffix]

    def as_prompt(self, text: str) -> str:
        """The text that a prompt stands for: itself, or with `chat` the chat up to the model's reply."""
        return self.render_chat(text, reply=True) if self.convention.chat else text

    def render_chat(self, text: str, *, reply: bool = False) -> str:
        """A user's message, or messages as a JSON list, in the model's own template; `reply` opens the answer."""
        if not self.tokenizer.chat_template:
            raise NeuronautError(f"{self.name} has no chat template; give text without --chat, or a chat model")
        try:
            return str(self.tokenizer.apply_chat_template(_messages(text), tokenize=False, add_generation_prompt=reply))
        except TemplateError as error:
            raise NeuronautError(f"the chat template of {self.name} refuses this chat ({error})") from error

    def remarks(self, texts: Sequence[str]) -> list[str]:
        """Lines on what is easily overlooked in texts: a BOS of their own, special tokens that are read as text."""
        own = sum(map(self.brings_bos, texts))
        spelled = spelled_tokens(self.tokenizer, list(map(self._without_bos, texts)))
        lines: list[str] = []
        if own:
            lines.append(f"{own} of {len(texts)} texts bring {self._bos_token} themselves: it stands there once")
        if spelled and not self.convention.special_tokens:
            named = ", ".join(f"{token} in {count}" for token, count in spelled.items())
            lines.append(
                f"special tokens are read as text here ({named}); --special-tokens, of a feature at its harvest, reads "
                "them as tokens"
            )
        return lines


def _messages(text: str) -> list[dict[str, str]]:
    """The messages that a text spells as JSON, or itself as a user's message."""
    with suppress(ValueError, RecursionError):
        messages = json.loads(text)
        if is_chat(messages):
            return messages
    return [{"role": "user", "content": text}]


def is_chat(value: object) -> bool:
    """Whether a JSON value is a list of messages, each an object with the texts role and content."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(part, dict) and all(isinstance(part.get(key), str) for key in ("role", "content"))
            for part in value
        )
    )
