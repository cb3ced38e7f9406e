r"""One string per token id, such that joining them gives the text.

Byte-level BPE spells each byte as one printable character; its tokens are turned back into bytes and those into text.
SentencePiece writes a space as U+2581 and a lone byte as `<0x0A>`. WordPiece keeps no spaces and marks what goes on
with a word (`##ing`): every other piece with a letter or digit gets a space before it. Bytes that are no valid UTF-8
alone (a piece of an emoji) are shown as `\xf0\x9f`. An added token is its own text.
"""

import re
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_strings(tokenizer: PreTrainedTokenizerBase, *, count: int) -> tuple[str, ...]:
    """The string of every id below `count`; ids that the tokenizer does not know are `<unused-ID>`."""
    added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
    size = len(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(count, size))))
    read_piece = _choose_reader(tokenizer)
    strings = [
        added[id] if id in added else f"<unused-{id}>" if piece is None else read_piece(piece)
        for id, piece in enumerate(pieces)
    ]
    return tuple(strings + [f"<unused-{id}>" for id in range(size, count)])


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for.

    Bytes that print stand for themselves, the others are counted up from U+0100 (GPT-2's encoder.py).
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(0x100)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(0x100 + rank): byte for rank, byte in enumerate(hidden)}


_ALPHABET = byte_alphabet()


def _choose_reader(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = "" if backend is None else repr(backend.decoder)
    if "ByteLevel" in decoder:
        return _read_byte_level
    return _read_wordpiece if "WordPiece" in decoder else _read_sentencepiece


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")


def _read_byte_level(piece: str) -> str:
    return _text(bytes(_ALPHABET[character] for character in piece)) if set(piece) <= _ALPHABET.keys() else piece


def _read_sentencepiece(piece: str) -> str:
    if byte := _BYTE.fullmatch(piece):
        return _text(bytes.fromhex(byte[1]))
    return piece.replace("\u2581", " ")


def _read_wordpiece(piece: str) -> str:
    if piece.startswith("##"):
        return piece[2:]
    return f" {piece}" if any(map(str.isalnum, piece)) else piece
