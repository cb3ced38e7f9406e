"""A tokenizer of words for subjects that bring none: words, numbers and punctuation, with the space before them.

The vocabulary is the 256 bytes and a corpus's most frequent words. A word that is not in it is cut into the longest
pieces that are (WordPiece without a mark of continuation), in the end into bytes: so every text has tokens, and their
strings joined are the text. It is known by its vocabulary alone, which the store keeps.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as InTurn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .errors import NeuronautError
from .vocabulary import byte_alphabet

WORDS = 8000
"""Words of a vocabulary at most."""
LEAST = 2
"""Times that a word stands in the corpus at least."""
_LONGEST = 40
"""Letters of a word, and spaces in a row, after which the next token begins."""
_CHARACTERS = 32_000_000
"""Of a corpus, in which words are counted."""
_PATTERN = (
    rf" ?[^\W\d_]{{1,{_LONGEST}}}| ?\d{{1,3}}| ?[^\w\s]|_|\n|[^\S\n]{{1,{_LONGEST}}}(?=\s)|[^\S\n]{{1,{_LONGEST}}}$|\s"
)
# Padding has the id 0 and must be harmless, so that the bytes begin with the newline.
_BYTES = sorted(byte_alphabet(), key=lambda character: (byte_alphabet()[character] != 10, byte_alphabet()[character]))
_SPELLING = {byte: character for character, byte in byte_alphabet().items()}


def frequent_words(texts: Iterable[str], *, most: int = WORDS) -> tuple[str, ...]:
    """The words of some texts that stand there at least twice, with the space before them, the most frequent first.

    >>> frequent_words(["a cat and a cat", "one dog and a cat"])
    (' cat', ' and', ' a')
    """
    counts: Counter[str] = Counter()
    left, find = _CHARACTERS, re.compile(_PATTERN).findall
    for text in texts:
        counts.update(find(text[:left]))
        left -= len(text)
        if left <= 0:
            break
    words = (word for word, count in counts.most_common() if count >= LEAST and len(word.encode()) > 1)
    return tuple(islice(words, most))


def words_of(vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The words of a tokenizer's vocabulary, to make it again."""
    if len(vocabulary) < len(_BYTES):
        raise NeuronautError(f"{len(vocabulary)} tokens are no vocabulary of words; wanted the 256 bytes, then words")
    return tuple(vocabulary[len(_BYTES) :])


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of these words.

    >>> word_tokenizer([" cat", " a"]).tokenize("a cat")
    ['a', 'Ġcat']
    """
    spelled = ("".join(_SPELLING[byte] for byte in word.encode()) for word in words)
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*_BYTES, *spelled]))}
    # The bytes are all there, so that nothing is ever unknown.
    model = WordPiece(vocabulary, unk_token="", max_input_chars_per_word=8 * _LONGEST, continuing_subword_prefix="")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = InTurn(
        [Split(Regex(_PATTERN), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
