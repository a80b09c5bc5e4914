"""Which of several engines a request goes to: where the beginning of its prompt is cached, without one doing all the work."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from hashlib import sha256

import numpy as np

from sparring.arrays import I32
from sparring.backend.blocks import names_of

SLACK = 0.25
"""How much more than the average an engine may have to do, so that a common beginning does not draw everything to one
(consistent hashing with bounded loads, arXiv 1608.01350)."""


def blocks(tokens: Sequence[int] | I32, weights: str, size: int) -> list[bytes]:
    """A name for each whole block of a prompt, drawn from with these weights."""
    return list(names_of(np.asarray(tokens, np.int32), sha256(weights.encode()).digest(), size))


class Routing:
    """What each of `count` engines has to do, in sequences, and which blocks it was given last, `remembered` of them at most.
    The same calls give the same choices. Not for several threads at once."""

    def __init__(self, count: int, *, remembered: int) -> None:
        self._loads = [0] * count
        self._blocks = [OrderedDict[bytes, None]() for _ in range(count)]
        self._remembered = remembered

    def choose(self, chain: Sequence[bytes], work: int, among: Collection[int]) -> int:
        """The engine that has most of the prompt's beginning, of those with less to do than the average and `SLACK` allow; of
        equals the one with the least to do, then the first. It has `work` sequences more until `ended`."""
        total = sum(self._loads[index] for index in among) + work
        bound = math.ceil((1 + SLACK) * total / len(among))
        free = [index for index in sorted(among) if self._loads[index] < bound]
        chosen = min(free, key=lambda index: (-self._cached(index, chain), self._loads[index]))
        self._loads[chosen] += work
        self._remember(chosen, chain)
        return chosen

    def ended(self, index: int, work: int) -> None:
        """That much less to do."""
        self._loads[index] -= work

    def forget(self, index: int) -> None:
        """The engine was started anew: nothing is cached there."""
        self._blocks[index].clear()

    def _cached(self, index: int, chain: Sequence[bytes]) -> int:
        """How many of the first blocks it was given."""
        return next((place for place, name in enumerate(chain) if name not in self._blocks[index]), len(chain))

    def _remember(self, index: int, chain: Sequence[bytes]) -> None:
        """Later blocks are forgotten before those that they follow, as in the engine."""
        known = self._blocks[index]
        for name in reversed(chain):
            known[name] = None
            known.move_to_end(name)
        while len(known) > self._remembered:
            known.popitem(last=False)
