"""What the head and a loss need of a micro-batch's scored tokens, gathered from the data as tensors.

Letters: `N` scored tokens of the micro-batch, in its order; `K` targets of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sparring.arrays import F32
from sparring.backend.datum import Datum, SoftTargets
from sparring.backend.local.objectives import Scored
from sparring.backend.local.packing import MicroBatch
from sparring.backend.losses import Loss, clip_thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The tokens whose log-probs make each scored token's value, and their weights in it. The first is the token itself."""

    tokens: Int[Tensor, "N K"]
    weights: Float[Tensor, "N K"]


class Places(NamedTuple):
    """A micro-batch's, as tensors; `source` is of the distinct tokens alone."""

    source: Int[Tensor, " U"]
    distinct: Int[Tensor, " U"]
    like: Int[Tensor, " N"]


def places_of(batch: MicroBatch, device: torch.device) -> Places:
    """Where the states are that are scored: those of equal tokens once."""
    source, distinct, like = (torch.from_numpy(one).to(device) for one in (batch.source, batch.distinct, batch.like))
    return Places(source[distinct], distinct, like)


def scored_tokens(data: Sequence[Datum], batch: MicroBatch, loss: Loss, device: torch.device) -> Scored:
    """The fields that losses read. Bounds are the loss's where a datum has none; soft targets are weighted in the value
    already, so there the weight is 1."""
    low, high = clip_thresholds(loss)
    weights = batch.weights.copy()
    for rows, _ in _soft_targets(data, batch):
        weights[rows] = 1
    proximal = any(data[index].proximal_logprobs is not None for index in _members(batch))
    fields = {
        "q": batch.q,
        "advantages": batch.advantages,
        "weights": weights,
        "low": _field(data, batch, "clip_low", low),
        "high": _field(data, batch, "clip_high", high),
    }
    tensors = {name: torch.from_numpy(values).to(device) for name, values in fields.items()}
    return Scored(
        q=tensors["q"],
        advantages=tensors["advantages"],
        weights=tensors["weights"],
        low=tensors["low"],
        high=tensors["high"],
        sequence=torch.from_numpy(np.unique(batch.datum, return_inverse=True)[1]).to(device),
        proximal=torch.from_numpy(_field(data, batch, "proximal_logprobs", np.nan)).to(device) if proximal else None,
    )


def targets_of(data: Sequence[Datum], batch: MicroBatch, device: torch.device) -> Targets:
    """The token itself, with weight 1; for a datum with soft targets, those with theirs, and the token with weight 0."""
    soft = list(_soft_targets(data, batch))
    shape = (len(batch.targets), 1 + max((one.tokens.shape[1] for _, one in soft), default=0))
    tokens, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    tokens[:, 0], weights[:, 0] = batch.targets, 1
    for rows, one in soft:
        places, columns = batch.token[rows], slice(1, 1 + one.tokens.shape[1])
        tokens[rows, columns], weights[rows, columns] = one.tokens[places], one.weights[places]
        weights[rows, 0] = 0
    return Targets(tokens=torch.from_numpy(tokens).to(device), weights=torch.from_numpy(weights).to(device))


def _members(batch: MicroBatch) -> list[int]:
    """The data of a micro-batch that have scored tokens."""
    return [int(index) for index in batch.datum[np.diff(batch.datum, prepend=-1) != 0]]


def _soft_targets(data: Sequence[Datum], batch: MicroBatch) -> Iterator[tuple[NDArray[np.bool_], SoftTargets]]:
    """The rows bool[N] of each datum that has soft targets, and these."""
    for index in _members(batch):
        soft = data[index].soft_targets
        if soft is not None:
            yield batch.datum == index, soft


def _field(data: Sequence[Datum], batch: MicroBatch, name: str, default: float) -> F32:
    """An optional field of the data at the scored tokens, f32[N]; the default where a datum has none."""
    values = np.full(len(batch.datum), default, np.float32)
    for index in _members(batch):
        field: F32 | None = getattr(data[index], name)
        if field is not None:
            rows = batch.datum == index
            values[rows] = field[batch.token[rows]]
    return values
