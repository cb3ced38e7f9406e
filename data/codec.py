"""Packs arrays into the store's blobs, and names windows and results by digests.

A blob of activations holds float16 values of shape (example, position) with their shape before
them; where most bits are zero only the others are kept, with their places. Packing is exact: what
comes out has the same bits (a NaN's and a negative zero's too) as what went in. All little-endian.
"""

import hashlib
import json
import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<BII")
_DENSE, _SPARSE = 0, 1
_ENCODER = json.JSONEncoder(sort_keys=True, default=str)
GRAM = 8
"""Tokens in a gram; two windows that share more than half of their grams are near-duplicates."""


def pack_activations(activations: NDArray[np.float16]) -> bytes:
    """Pack activations of shape (example, position)."""
    examples, positions = activations.shape
    bits = np.ascontiguousarray(activations, "<f2").view("<u2").ravel()
    kept = bits != 0
    # A kept value costs six bytes with its place, two without.
    if 3 * np.count_nonzero(kept) >= bits.size:
        return _HEADER.pack(_DENSE, examples, positions) + bits.tobytes()
    places = kept.nonzero()[0]
    return _HEADER.pack(_SPARSE, examples, positions) + places.astype("<u4").tobytes() + bits[places].tobytes()


def unpack_activations(blob: bytes) -> NDArray[np.float16]:
    """Unpack what `pack_activations` packed, shape (example, position)."""
    form, examples, positions = _HEADER.unpack_from(blob)
    if form == _DENSE:
        return np.frombuffer(blob, "<f2", offset=_HEADER.size).reshape(examples, positions)
    kept = (len(blob) - _HEADER.size) // 6
    bits = np.zeros(examples * positions, "<u2")
    places = np.frombuffer(blob, "<u4", count=kept, offset=_HEADER.size)
    bits[places] = np.frombuffer(blob, "<u2", offset=_HEADER.size + 4 * kept)
    return bits.view("<f2").reshape(examples, positions)


def pack_ids(ids: NDArray[np.integer]) -> bytes:
    """Pack token or window ids of shape (n,) as int32."""
    return np.ascontiguousarray(ids, "<i4").tobytes()


def unpack_ids(blob: bytes) -> NDArray[np.int32]:
    """Unpack what `pack_ids` packed, shape (n,)."""
    return np.frombuffer(blob, "<i4")


def window_digest(ids: NDArray[np.integer]) -> str:
    """The digest by which a window is known, 20 hex characters of its token ids' hash."""
    return hashlib.blake2b(pack_ids(ids), digest_size=10).hexdigest()


def content_digest(*parts: object) -> str:
    """Digest of JSON-like values: equal content has the equal digest, whatever the order of keys."""
    text = _ENCODER.encode(parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def array_digest(arrays: Iterable[NDArray[np.generic]]) -> str:
    """Digest of arrays: their types, shapes and bytes."""
    state = ArrayDigest()
    state.add(arrays)
    return state.hexdigest()


class ArrayDigest:
    """The `array_digest` of arrays that come one after the other."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=16)

    def add(self, arrays: Iterable[NDArray[np.generic]]) -> None:
        """Add arrays behind those that were added before."""
        for array in arrays:
            self._state.update(f"{array.dtype.str}{array.shape}".encode())
            self._state.update(np.ascontiguousarray(array).data)

    def hexdigest(self) -> str:
        """The digest of all that were added."""
        return self._state.hexdigest()


def grams(windows: NDArray[np.integer]) -> list[NDArray[np.uint64]]:
    """The distinct hashed token grams of each window (window, position), each ascending.

    Windows shorter than a gram have one gram, themselves.
    """
    size = min(GRAM, windows.shape[1])
    count = windows.shape[1] - size + 1
    hashed = np.zeros((len(windows), count), np.uint64)
    for offset in range(size):
        hashed *= np.uint64(0x9E3779B97F4A7C15)
        hashed += windows[:, offset : offset + count].astype(np.uint64) + np.uint64(1)
        hashed ^= hashed >> np.uint64(29)
    hashed.sort(axis=1)
    fresh = np.ones(hashed.shape, bool)
    fresh[:, 1:] = hashed[:, 1:] != hashed[:, :-1]
    return [row[mask] for row, mask in zip(hashed, fresh, strict=True)]
