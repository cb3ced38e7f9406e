"""Words that mean nothing, and the tokenizer that makes each a token.

Words are joined syllables, so no prior about English helps to guess which words belong together. The one sign with a
meaning is the quotation mark. Words are separate tokens that begin with a space; decoding only joins, so
a window's tokens are its text.
"""

import random
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS, UNKNOWN, QUOTE = "<bos>", "<unk>", '"'
_ONSETS, _VOWELS, _CODAS = "bdfgklmnprstvz", "aeiou", ("", "", "", "l", "n", "r", "s")


def nonsense(count: int, rng: random.Random) -> list[str]:
    """So many different words of two or three syllables."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3))))
        words["".join(syllables) + rng.choice(_CODAS)] = None
    return list(words)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, its id the word's place; the first word is the one that opens a row, `<unk>` is one of them."""
    vocabulary = {word if word.startswith("<") else f" {word}": number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Prepend(" ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" [^ ]+"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=words[0],
        eos_token=words[0],
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
