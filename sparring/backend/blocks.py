"""Names for the blocks of tokens that contexts begin with: two contexts share what they share the names of."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from sparring.arrays import I32


def names_of(tokens: I32, weights: bytes, size: int) -> Iterator[bytes]:
    """The name of each whole block of `size` tokens: the SHA-256 of the name before it and its own tokens, so that it stands
    for all tokens up to its end, whose keys and values it has. The first follows `weights`: what they are made with."""
    name = weights
    for start in range(0, len(tokens) - size + 1, size):
        name = sha256(name + tokens[start : start + size].tobytes()).digest()
        yield name
