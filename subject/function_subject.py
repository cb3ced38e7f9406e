"""A subject without a model: functions of text with a tokenizer, so that they are harvested like neurons.

Its one site is `function`; the coordinates there are what the functions give. All that needs only activations on
windows works as on a model; whatever needs a model's inside is refused. Like a causal model, a function's number may
depend on the token and on what stands before it, and on nothing else: the first texts that are read prove it,
or the function is refused.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .convention import Convention
from .errors import NeuronautError
from .functions import Functions, open_functions
from .loading import load_tokenizer
from .model import ModellessSubject
from .vocabulary import token_strings
from .words import word_tokenizer

SITE = "function"
CONTEXT = 4096
"""Tokens of a text at most."""
_CONVENTION = Convention(None, "a function reads the text alone")


class FunctionSubject(ModellessSubject):
    """Functions of text, with a tokenizer.

    >>> functions = PythonFunctions({"length": lambda tokens: [len(token) for token in tokens]}, digest="1")
    >>> lengths = FunctionSubject(functions, word_tokenizer([" cat"]), name="lengths")
    >>> lengths.read(Batch.of(lengths, ["a cat"]).tokens, ["function"])["function"].tolist()
    [[[1.0], [4.0]]]
    """

    unit_kind = "function"

    def __init__(self, functions: Functions, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
        """Nothing is called yet."""
        vocabulary = token_strings(tokenizer, count=len(tokenizer))
        # Names belong to it: their order says which feature is which.
        digest = hashlib.sha256(repr((functions.digest, functions.names, vocabulary)).encode())
        super().__init__(name, vocabulary, revision=digest.hexdigest()[:16], convention=_CONVENTION)
        self.functions, self.tokenizer = functions, tokenizer
        self.device, self.context, self.sites = torch.device("cpu"), CONTEXT, (SITE,)
        self._token_count = len(vocabulary)
        self._strings = np.array(vocabulary, object)
        # Shared by copies with another convention.
        self._proven: list[bool] = []

    @classmethod
    def open(
        cls, location: str, *, name: str | None = None, tokenizer: str | None = None, words: Iterable[str] = ()
    ) -> Self:
        """Open FILE.py:NAME[,NAME...] or a URL, with the tokenizer of a model (folder or id), else one of `words`.

        `name` is what stands in addresses, by default the function's, or the file's of several.
        """
        made = word_tokenizer(words) if tokenizer is None else load_tokenizer(tokenizer)
        functions = open_functions(location)
        return cls(functions, made, name=name or _name(functions))

    def width(self, site: str) -> int:
        """How many functions there are."""
        if site != SITE:
            raise NeuronautError(f"{self.name} has no site {site!r}; it has {SITE}, one coordinate a function")
        return len(self.functions.names)

    def read(self, tokens: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """What the functions give. tokens: (row, position) ids -> site: (row, position, function)."""
        for site in sites:
            self.width(site)
        tokens = self._check_tokens(tokens)
        self.tell_watchers(tokens)
        rows = list(map(tuple, self._strings[tokens.numpy()].tolist()))
        distinct = list(dict.fromkeys(rows))
        if not self._proven:
            self._prove(distinct)
            self._proven.append(True)
        numbers = dict(zip(distinct, self.functions.call(distinct), strict=True))
        vectors = torch.from_numpy(np.stack([numbers[row] for row in rows]))
        return dict.fromkeys(sites, vectors)

    def read_endings(
        self, beginnings: Tensor, endings: Tensor, sites: Sequence[str], *, of: Tensor
    ) -> dict[str, Tensor]:
        """As `read` of rows that begin alike, at the positions of their endings."""
        whole = self.read(torch.cat([beginnings[of], endings], dim=1), sites)
        return {site: vectors[:, beginnings.shape[1] :] for site, vectors in whole.items()}

    def refuse(self) -> NoReturn:
        """Say what a function has not."""
        raise NeuronautError(
            f"{self.name} is a function of text, and this looks into a model; with functions go harvest, label, score, "
            "show, try, search and investigate"
        )

    def _prove(self, rows: Sequence[tuple[str, ...]]) -> None:
        """Refuse functions whose number at a token changes when the text is cut behind it, or by chance."""
        short = [row[: 1 + number % len(row)] for number, row in enumerate(rows)]
        for cut, whole, start in zip(short, self.functions.call(rows), self.functions.call(short), strict=True):
            self._compare(cut, whole[: len(cut)], start)

    def _compare(self, tokens: Sequence[str], whole: NDArray[np.float32], cut: NDArray[np.float32]) -> None:
        apart = ~np.isclose(whole, cut, rtol=1e-3, atol=1e-4)
        if apart.any():
            place, function = (int(where) for where in np.argwhere(apart)[0])
            raise NeuronautError(
                f"the function {self.functions.names[function]} gives {whole[place, function]:g} at the token "
                f"{tokens[place]!r} with the rest of the text behind it, and {cut[place, function]:g} without; wanted "
                "a number that depends on the token and on what stands before it, and on nothing else, such as chance"
            )


def _name(functions: Functions) -> str:
    """The function's name, or the file's of several, as an address can hold it."""
    alone = len(functions.names) == 1
    return re.sub(r"[^\w.-]+", "-", functions.names[0] if alone else Path(functions.location.rpartition(":")[0]).stem)
