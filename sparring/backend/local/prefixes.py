"""Keys and values of what contexts begin with, kept for later ones that begin alike: the next turn of a conversation, another
sequence of the same prompt, the same sequence with what was drawn before it.

They are kept in blocks of `BLOCK` tokens, named by the weights, the block's own tokens and all tokens before it. Those not used
for longest go first, of one context the last ones.

Letters: `T` tokens, `N` layers, `H` key-value heads, `D` head width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from sparring.arrays import I32
from sparring.backend.blocks import names_of
from sparring.backend.local.cache import KeyValueCache
from sparring.backend.local.lora import Weights

BLOCK = 64
"""Tokens that are kept or let go together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Keys and values [N, 2, H, BLOCK, D]; the weights they were made with, whose `id` is in the block's name and so must not
    be given to others."""

    weights: Weights | None
    kept: Tensor


class Prefixes:
    """At most `max_bytes` of keys and values that were copied out of a cache. Engine thread only."""

    def __init__(self, cache: KeyValueCache, max_bytes: int) -> None:
        self._cache = cache
        self._block_bytes = BLOCK * cache.bytes_per_token
        self._most = max_bytes // self._block_bytes
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()

    @property
    def kept_bytes(self) -> int:
        """How much is kept now."""
        return len(self._blocks) * self._block_bytes

    def find(self, weights: Weights | None, tokens: I32) -> list[bytes]:
        """The names of the blocks that `tokens` i32[T] begins with and that are kept."""
        found: list[bytes] = []
        for name in _names(weights, tokens):
            if name not in self._blocks:
                break
            found.append(name)
        return found

    def load(self, names: list[bytes], slot: int) -> int:
        """Copy blocks that `find` named to the beginning of a slot; returns how many tokens that are."""
        for place, name in enumerate(names):
            self._cache.write(slot, place * BLOCK, self._blocks[name].kept)
        self._use(names)
        return len(names) * BLOCK

    def keep(self, weights: Weights | None, tokens: I32, slot: int) -> None:
        """Keep what `slot` holds of `tokens` i32[T], in whole blocks."""
        names = list(_names(weights, tokens[: self._most * BLOCK]))
        self._use([name for name in names if name in self._blocks])
        for place, name in enumerate(names):
            if name not in self._blocks:
                if len(self._blocks) == self._most:
                    self._blocks.popitem(last=False)
                kept = self._cache.read(slot, place * BLOCK, (place + 1) * BLOCK)
                self._blocks[name] = _Block(weights=weights, kept=kept)
        self._use(names)

    def forget(self, weights: Weights) -> None:
        """Let go of all that was made with these weights, and of the weights."""
        for name in [name for name, block in self._blocks.items() if block.weights is weights]:
            del self._blocks[name]

    def _use(self, names: list[bytes]) -> None:
        """These go last, and the first of them last of all: without it the others are of no use."""
        for name in reversed(names):
            self._blocks.move_to_end(name)


def _names(weights: Weights | None, tokens: I32) -> Iterator[bytes]:
    """The name of each whole block, in order."""
    return names_of(tokens, id(weights).to_bytes(8, "little"), BLOCK)
