"""A call's data, what it has come to so far, and the micro-batches that it is computed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from torch import Tensor

from sparring.arrays import F32
from sparring.backend.datum import Datum
from sparring.backend.local.packing import MicroBatch, plan
from sparring.errors import NonFinite


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked, and what it has come to so far: a number per token by datum, f32[T_i], and sums of metrics."""

    data: Sequence[Datum]
    found: list[F32]
    entropy: bool = False
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    def count(self, metrics: Mapping[str, float]) -> None:
        """Add metrics."""
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value

    def keep(self, batch: MicroBatch, numbers: Tensor, what: str) -> None:
        """Take those of a micro-batch's scored tokens, f32[N]. Raises `NonFinite` naming the data where they cannot be used."""
        values = numbers.cpu().numpy()
        if bad := not_finite(batch, values):
            raise NonFinite(f"the {what} of data {bad} are not finite: the weights have diverged")
        starts = np.flatnonzero(np.diff(batch.datum, prepend=-1)).tolist()
        for start, end in pairwise([*starts, len(values)]):
            self.found[batch.datum[start]][batch.token[start:end]] = values[start:end]


def not_finite(batch: MicroBatch, values: F32) -> list[int]:
    """The data with a number that is none, of f32[N]."""
    bad = ~np.isfinite(values)
    return sorted(set(batch.datum[bad].tolist())) if bad.any() else []


def nothing_yet(data: Sequence[Datum]) -> list[F32]:
    """A 0 for every token of the data."""
    return [np.zeros(len(datum.tokens), np.float32) for datum in data]


def planned(data: Sequence[Datum], moving: Sequence[bool], *, token_budget: int) -> list[tuple[MicroBatch, bool]]:
    """Micro-batches of the data that have a gradient, marked, and then of the rest, scored without the work of one."""
    return [
        (batch, wanted)
        for wanted in (True, False)
        for batch in chosen(data, moving, wanted=wanted, token_budget=token_budget)
    ]


def chosen(data: Sequence[Datum], moving: Sequence[bool], *, wanted: bool, token_budget: int) -> list[MicroBatch]:
    """Micro-batches of the data that have a gradient, or of the others."""
    indices = np.array([index for index, moves_it in enumerate(moving) if moves_it is wanted], np.int64)
    if not len(indices):
        return []
    batches = plan([data[index] for index in indices], token_budget=token_budget)
    return [replace(batch, datum=indices[batch.datum]) for batch in batches]
