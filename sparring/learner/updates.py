"""From what a step decides to training examples: one `Update` for each optimizer step, its tokens weighed.

Letters: `T` tokens of a context, `A` action tokens of a trajectory or context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32

from sparring.arrays import F32
from sparring.backend import Datum, ValueDatum
from sparring.learner.normalization import Normalization
from sparring.rollout import Batch, Context, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The examples of one optimizer step, each token's terms multiplied by its weight: those of fresh units, and those of the
    units that are used `again`. `critic` are the same for a critic, all of them; () without."""

    data: tuple[Datum, ...]
    again: tuple[Datum, ...]
    critic: tuple[ValueDatum, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """What is laid over the action tokens of one trajectory, f32[A]; `returns` and `old_values` are a critic's. Where a row is
    None, the examples have no such field."""

    advantages: F32
    proximal: F32 | None = None
    reference: F32 | None = None
    returns: F32 | None = None
    old_values: F32 | None = None


def updates(batch: Batch, laid: Sequence[Laid], normalization: Normalization, *, minibatches: int = 1) -> list[Update]:
    """The examples of a step, with what is laid over each trajectory, those of fresh units first.

    Its units go into `minibatches` parts of whole units, as equal in number as can be, in the order of the plan. A part
    without units makes no update.
    """
    rows = iter(laid)
    fresh = [[(one, next(rows)) for one in unit.trajectories] for unit in batch.units]
    again = [[(one, next(rows)) for one in unit.trajectories] for unit in batch.again]
    made: list[Update] = []
    for first, more in zip(_parts(fresh, minibatches), _parts(again, minibatches), strict=True):
        if first or more:
            lengths = np.array([one.action_tokens for one, _ in [*first, *more]], np.int32)
            weights: list[float] = normalization.token_weights(lengths).tolist()
            made.append(
                Update(
                    data=_examples(first, weights[: len(first)]),
                    again=_examples(more, weights[len(first) :]),
                    critic=_critic_examples([*first, *more], weights),
                )
            )
    return made


_Credited = tuple[Trajectory, Laid]


def _parts(units: Sequence[Sequence[_Credited]], count: int) -> list[list[_Credited]]:
    """The trajectories of `count` runs of units, as equal in number as can be."""
    ends = [len(units) * number // count for number in range(count + 1)]
    return [[one for unit in units[start:end] for one in unit] for start, end in pairwise(ends)]


def _examples(part: Sequence[_Credited], weights: Sequence[float]) -> tuple[Datum, ...]:
    """One for each context of each trajectory, whose rows are laid over its action tokens in order."""
    return tuple(
        _datum(context, laid, places, np.float32(weight))
        for (trajectory, laid), weight in zip(part, weights, strict=True)
        for context, places in _places(trajectory)
    )


def _critic_examples(part: Sequence[_Credited], weights: Sequence[float]) -> tuple[ValueDatum, ...]:
    return tuple(
        ValueDatum(
            tokens=context.tokens,
            mask=context.action_mask,
            weights=context.action_mask.astype(np.float32) * np.float32(weight),
            returns=_over(context, laid.returns, places),
            old_values=_over(context, laid.old_values, places),
        )
        for (trajectory, laid), weight in zip(part, weights, strict=True)
        if laid.returns is not None
        for context, places in _places(trajectory)
    )


def _places(trajectory: Trajectory) -> Iterator[tuple[Context, slice]]:
    """Each context, with where its action tokens are among the trajectory's."""
    start = 0
    for context in trajectory.contexts:
        end = start + int(context.action_mask.sum())
        yield context, slice(start, end)
        start = end


def _datum(context: Context, laid: Laid, places: slice, scale: np.float32) -> Datum:
    return Datum(
        tokens=context.tokens,
        mask=context.action_mask,
        logprobs=context.logprobs,
        advantages=_spread(context, laid.advantages[places] * scale),
        weights=context.action_mask.astype(np.float32) * scale,
        temperature=context.temperature,
        proximal_logprobs=_over(context, laid.proximal, places),
        reference_logprobs=_over(context, laid.reference, places),
    )


def _over(context: Context, row: F32 | None, places: slice) -> F32 | None:
    return None if row is None else _spread(context, row[places])


def _spread(context: Context, values: Float32[F32, " A"]) -> Float32[F32, " T"]:
    """The values at the context's action tokens, 0 elsewhere."""
    spread = np.zeros(len(context.tokens), np.float32)
    spread[context.action_mask] = values
    return spread
