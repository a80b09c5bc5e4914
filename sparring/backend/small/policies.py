"""How a table and a small network see a context, and what they make of it.

Both add up rows that hashes of the context's tokens point to. Letters: `N` contexts, `R` replies, `P` numbers of the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear

from sparring.arrays import I32

_GRAMS = 4


class SmallPolicy(Protocol):
    """A function of the flat weights f32[P] and of contexts."""

    @property
    def parameters(self) -> int: ...
    def begin(self, seed: int) -> Tensor:
        """The first weights, f32[P], under which all replies are equally likely."""
        ...

    def logits(self, weights: Tensor, contexts: Sequence[I32]) -> Tensor:
        """f32[N, R]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A row of logits for each context, found by a hash of all its tokens: of n contexts, two share a row with a probability of
    about n^2 / 2 / rows."""

    replies: int
    rows: int

    @property
    def parameters(self) -> int:
        return self.rows * self.replies

    def begin(self, seed: int) -> Tensor:
        return torch.zeros(self.parameters)

    def logits(self, weights: Tensor, contexts: Sequence[I32]) -> Tensor:
        places = torch.tensor([_row(context.tobytes(), self.rows) for context in contexts])
        return weights.view(self.rows, self.replies).index_select(0, places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Two layers: relu(sum of the rows of the 1- to 4-grams of the context's tokens), then the replies' logits. Which gram has
    which row is a hash's choice; a gram that comes twice counts twice."""

    replies: int
    features: int
    hidden: int

    @property
    def parameters(self) -> int:
        return (self.features + 1) * self.hidden + (self.hidden + 1) * self.replies

    def begin(self, seed: int) -> Tensor:
        weights = torch.zeros(self.parameters)
        first = self.features * self.hidden
        weights[:first] = torch.randn(first, generator=torch.Generator().manual_seed(seed)) * 0.1
        return weights

    def logits(self, weights: Tensor, contexts: Sequence[I32]) -> Tensor:
        grams = [_grams(context.tobytes(), self.features) for context in contexts]
        lengths = torch.tensor([0, *(len(one) for one in grams[:-1])])
        sizes = (self.features * self.hidden, self.hidden, self.hidden * self.replies, self.replies)
        table, bias, last, last_bias = weights.split(sizes)
        rows = table.view(self.features, self.hidden)
        inner = embedding_bag(torch.tensor(np.concatenate(grams)), rows, lengths.cumsum(0), mode="sum")
        return linear(torch.relu(inner + bias), last.view(self.replies, self.hidden), last_bias)


@lru_cache(maxsize=2**14)
def _row(context: bytes, rows: int) -> int:
    return int.from_bytes(sha256(context).digest()[:8], "big") % rows


@lru_cache(maxsize=2**14)
def _grams(context: bytes, features: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    tokens = np.frombuffer(context, np.int32)
    found = [
        int.from_bytes(sha256(tokens[start : start + width].tobytes()).digest()[:8], "big") % features
        for width in range(1, _GRAMS + 1)
        for start in range(len(tokens) - width + 1)
    ]
    return np.array(found, np.int64)
