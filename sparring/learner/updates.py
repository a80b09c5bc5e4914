"""From the advantages of a step to training examples: one `Update` for each optimizer step, its tokens weighed.

Letters: `T` tokens of a context, `A` action tokens of a trajectory or context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32

from sparring.arrays import F32
from sparring.backend import Datum
from sparring.learner.normalization import Normalization
from sparring.rollout import Batch, Context, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The examples of one optimizer step, each token's terms multiplied by its weight: those of fresh units, and those of the
    units that are used `again`."""

    data: tuple[Datum, ...]
    again: tuple[Datum, ...]


def updates(batch: Batch, values: Sequence[F32], normalization: Normalization, *, minibatches: int = 1) -> list[Update]:
    """The examples of a step with these advantages, f32[A] for each trajectory, those of fresh units first.

    Its units go into `minibatches` parts of whole units, as equal in number as can be, in the order of the plan. A part
    without units makes no update.
    """
    rows = iter(values)
    fresh = [[(one, next(rows)) for one in unit.trajectories] for unit in batch.units]
    again = [[(one, next(rows)) for one in unit.trajectories] for unit in batch.again]
    made: list[Update] = []
    for first, more in zip(_parts(fresh, minibatches), _parts(again, minibatches), strict=True):
        if first or more:
            lengths = np.array([one.action_tokens for one, _ in [*first, *more]], np.int32)
            weights = normalization.token_weights(lengths)
            made.append(
                Update(data=_examples(first, weights[: len(first)]), again=_examples(more, weights[len(first) :]))
            )
    return made


_Credited = tuple[Trajectory, F32]


def _parts(units: Sequence[Sequence[_Credited]], count: int) -> list[list[_Credited]]:
    """The trajectories of `count` runs of units, as equal in number as can be."""
    ends = [len(units) * number // count for number in range(count + 1)]
    return [[one for unit in units[start:end] for one in unit] for start, end in pairwise(ends)]


def _examples(part: Sequence[_Credited], weights: Sequence[float]) -> tuple[Datum, ...]:
    return tuple(
        datum
        for (trajectory, values), weight in zip(part, weights, strict=True)
        for datum in _data(trajectory, values, float(weight))
    )


def _data(trajectory: Trajectory, values: Float32[F32, " A"], weight: float) -> list[Datum]:
    """One example for each context; the trajectory's values are laid over its action tokens in order."""
    data: list[Datum] = []
    start = 0
    for context in trajectory.contexts:
        end = start + int(context.action_mask.sum())
        data.append(_datum(context, values[start:end], weight))
        start = end
    return data


def _datum(context: Context, values: Float32[F32, " A"], weight: float) -> Datum:
    scale = np.float32(weight)
    advantages = np.zeros(len(context.tokens), np.float32)
    advantages[context.action_mask] = values * scale
    return Datum(
        tokens=context.tokens,
        mask=context.action_mask,
        logprobs=context.logprobs,
        advantages=advantages,
        weights=context.action_mask.astype(np.float32) * scale,
        temperature=context.temperature,
    )
