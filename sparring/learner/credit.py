"""From the trajectories of a step to their advantages: who is compared with whom, and what each token is credited with.

Pure: a replay computes the same from the journal. Estimators see comparable sets only. Letters: `N` trajectories that are
compared, `A` action tokens of a trajectory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, sqrt
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int32
from numpy.typing import NDArray

from sparring.arrays import F32, I32
from sparring.learner.advantages import Advantages, Comparable, estimate
from sparring.learner.by_token import GAE, token_rewards
from sparring.learner.kl import KL
from sparring.learner.overlong import Overlong
from sparring.rollout import Trajectory
from sparring.rollout.comparable import Scope, comparable_sets

Role = tuple[str, str, str]
"""(environment, seat, label)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What of an algorithm decides the advantages; see `Algorithm`, which has these fields. `returns` are the critic's."""

    advantages: Advantages
    compare: Mapping[str, Scope] = field(default_factory=dict[str, Scope])
    whiten: bool = False
    overlong: Overlong | None = None
    kl: KL | None = None
    returns: GAE | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a group was played: the environment's name, and {seat: who plays it}."""

    environment: str
    players: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A trajectory as it is credited: what its reward is raised by before it is compared, in all and, of this, token by token
    (f32[A]), and a critic's values f32[A]; the last two None where the algorithm has none."""

    trajectory: Trajectory
    added: float = 0.0
    penalties: F32 | None = None
    values: F32 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """Advantages, and what a critic's values are to become, of drawn trajectories: rows of f32[A]; no `returns` without a
    critic. The estimator's next `state`, and for each set of more than one whether its rewards differ; `uncompared` sets were
    too small."""

    values: tuple[F32, ...]
    returns: tuple[F32, ...]
    state: Mapping[str, Any]
    spreads: tuple[bool, ...]
    uncompared: int


def credited(
    drawn: Sequence[Played], credit: Credit, state: Mapping[str, Any], sources: Mapping[int, Origin]
) -> Credited:
    """`sources` are where each group was played. Raises `SettingError` for an estimator that returns what it should not."""
    values = [np.zeros(one.trajectory.action_tokens, np.float32) for one in drawn]
    returns: dict[int, F32] = {}
    compared: dict[Role, list[int]] = {}
    spreads: list[bool] = []
    uncompared = 0
    for members in comparable_sets([one.trajectory for one in drawn], credit.compare):
        group = _comparable([drawn[index] for index in members], sources)
        if credit.returns is not None:
            returns |= dict(zip(members, _returns(group, credit.returns), strict=True))
        if len(members) < credit.advantages.minimum:
            uncompared += 1
            continue
        checked = estimate(credit.advantages, group, state)
        state = checked.state
        for index, row in zip(members, checked.values, strict=True):
            values[index] = row
        compared.setdefault((group.environment, group.seat, group.label), []).extend(members)
        if len(members) > 1:
            spreads.append(bool(group.rewards.min() < group.rewards.max()))
    if credit.whiten:
        for members in compared.values():
            for index, row in zip(members, whitened([values[index] for index in members]), strict=True):
                values[index] = row
    return Credited(
        values=tuple(values),
        returns=tuple(returns[index] for index in sorted(returns)),
        state=state,
        spreads=tuple(spreads),
        uncompared=uncompared,
    )


def _returns(group: Comparable, by: GAE) -> list[F32]:
    """A_t + V_t of each trajectory."""
    return [
        (by.of(token_rewards(group, index), values) + values).astype(np.float32)
        for index, values in enumerate(group.values)
    ]


def whitened(rows: Sequence[F32]) -> list[F32]:
    """(A - mean) / deviation over all tokens of these trajectories, with the deviation of the values themselves; 0 where they
    are all equal (arXiv 2501.03262, REINFORCE++). The sums are correctly rounded, so that no order changes them."""
    every = np.concatenate([*rows, np.zeros(0, np.float32)]).astype(np.float64)
    if not len(every):
        return list(rows)
    mean = fsum(every) / len(every)
    deviation = sqrt(fsum(np.square(every - mean)) / len(every))
    if deviation == 0:
        return [np.zeros_like(row) for row in rows]
    return [((row.astype(np.float64) - mean) / deviation).astype(np.float32) for row in rows]


def longest_reply(trajectory: Trajectory) -> int:
    """The action tokens of the longest turn."""
    return max(int(np.bincount(one.turn[one.action_mask]).max(initial=0)) for one in trajectory.contexts)


def action_turns(trajectory: Trajectory) -> Int32[I32, " A"]:
    """The turn of each action token."""
    turns = [context.turn[context.action_mask] for context in trajectory.contexts]
    return np.concatenate(turns).astype(np.int32)


def _comparable(chosen: Sequence[Played], sources: Mapping[int, Origin]) -> Comparable:
    made = [one.trajectory for one in chosen]
    source = sources[made[0].group]
    rewards = [one.trajectory.reward + one.added for one in chosen]
    return Comparable(
        environment=source.environment,
        seat=made[0].seat,
        label=made[0].label,
        rewards=_read_only(np.array(rewards, np.float32)),
        lengths=_read_only(np.array([trajectory.action_tokens for trajectory in made], np.int32)),
        turn_rewards=tuple(_read_only(trajectory.turn_rewards) for trajectory in made),
        turns=tuple(_read_only(action_turns(trajectory)) for trajectory in made),
        episodes=_read_only(np.array([trajectory.episode for trajectory in made], np.int32)),
        penalties=tuple(_read_only(one.penalties) for one in chosen if one.penalties is not None),
        values=tuple(_read_only(one.values) for one in chosen if one.values is not None),
        players=MappingProxyType(source.players),
    )


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The array, for reading: an estimator that computes in place would change what is logged, and what others read."""
    view = array.view()
    view.flags.writeable = False
    return view
