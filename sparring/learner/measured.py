"""What models say of the action tokens of a step's batch before it is trained. The journal keeps it, so that a replay decides
from the same numbers without a model. Letters: `A` action tokens of a trajectory, `T` tokens of a context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from sparring.arrays import F32
from sparring.rollout import Batch, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One f32[A] for each trajectory, those of fresh units first; () for what the algorithm does not need.

    reference  log-probs under the reference, at the temperature sampled at
    values     the critic's values, under its weights of now
    """

    reference: tuple[F32, ...] = ()
    values: tuple[F32, ...] = ()

    def packed(self) -> dict[str, bytes]:
        """For the journal."""
        rows = {"reference": self.reference, "values": self.values}
        return {
            name: b"".join(row.astype("<f4").tobytes() for row in several) for name, several in rows.items() if several
        }


NOTHING = Measured()


def unpacked(packed: Mapping[str, bytes], batch: Batch) -> Measured:
    """What was packed of this batch."""
    ends = [0, *accumulate(one.action_tokens for one in all_trajectories(batch))]

    def rows(name: str) -> tuple[F32, ...]:
        if name not in packed:
            return ()
        whole = np.frombuffer(packed[name], "<f4").astype(np.float32)
        assert len(whole) == ends[-1], f"{name}: {len(whole)} numbers for {ends[-1]} action tokens"
        return tuple(whole[start:end] for start, end in pairwise(ends))

    return Measured(reference=rows("reference"), values=rows("values"))


def moved(measured: Measured, before: Batch, now: Batch) -> Measured | None:
    """What was measured of a batch, for the same replies in another: one whose episodes were scored anew. None where that has
    a trajectory of which nothing was measured."""
    places = {_key(one): place for place, one in enumerate(all_trajectories(before))}
    wanted = [places.get(_key(one)) for one in all_trajectories(now)]
    if measured == NOTHING:
        return measured
    if None in wanted:
        return None

    def rows(several: tuple[F32, ...]) -> tuple[F32, ...]:
        return tuple(several[place] for place in wanted if place is not None) if several else ()

    return Measured(reference=rows(measured.reference), values=rows(measured.values))


def _key(one: Trajectory) -> tuple[int, int, str, str, int]:
    return one.group, one.episode, one.seat, one.fork, one.action_tokens


def all_trajectories(batch: Batch) -> list[Trajectory]:
    """Those of fresh units, then those of units that are used again."""
    return [trajectory for unit in [*batch.units, *batch.again] for trajectory in unit.trajectories]


def rows_of(scored: Iterable[F32], trajectories: Sequence[Trajectory]) -> tuple[F32, ...]:
    """From numbers for every token of every context, f32[T], to those of each trajectory's action tokens."""
    contexts = iter(scored)
    return tuple(
        np.concatenate([next(contexts)[context.action_mask] for context in trajectory.contexts])
        for trajectory in trajectories
    )
