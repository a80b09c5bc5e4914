"""Advantages: how much better a trajectory did than those it may fairly be compared with.

An estimator is a pure function of a `Comparable` set and a state, and returns the advantages and the next state. The
state is JSON data and is committed with the step, so that a resumed run continues with the same baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sparring.arrays import F32, I32
from sparring.errors import SettingError

State = Mapping[str, Any]
Advantage = F32 | list[F32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparable:
    """Judged trajectories of one task, seat and label, over a group or within one episode.

    rewards       f32[N]     returns
    lengths       i32[N]     action tokens
    turn_rewards  N x f32[turns]
    turns         N x i16[T] the turn of each action token
    episodes      i32[N]     member numbers within the group
    """

    environment: str
    seat: str
    label: str
    rewards: F32
    lengths: I32
    turn_rewards: tuple[F32, ...]
    turns: tuple[I32, ...]
    episodes: I32

    def __len__(self) -> int:
        return len(self.rewards)


class Advantages(Protocol):
    """(Comparable, State) -> (f32[N], or one f32[T_i] for each trajectory; State). `minimum`: the smallest N it makes
    sense for; smaller sets get no advantage and are counted."""

    @property
    def name(self) -> str: ...
    @property
    def minimum(self) -> int: ...
    def __call__(self, group: Comparable, state: State) -> tuple[Advantage, State]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stateless:
    """An estimator lifted from a plain function by `@advantages`."""

    function: Callable[[Comparable], F32]
    minimum: int = 2

    @property
    def name(self) -> str:
        return self.function.__name__

    def __call__(self, group: Comparable, state: State) -> tuple[Advantage, State]:
        return self.function(group), state


def advantages(function: Callable[[Comparable], F32]) -> Stateless:
    """Make an estimator of a function `Comparable -> f32[N]`; the values are spread over each trajectory's action tokens."""
    return Stateless(function=function)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMean:
    """r - mean(r), over N >= 2; with `deviation`, divided by the standard deviation of r (arXiv 2402.03300, GRPO; without it
    arXiv 2503.20783, Dr. GRPO)."""

    deviation: bool = False

    @property
    def name(self) -> str:
        return "group mean and deviation" if self.deviation else "group mean"

    @property
    def minimum(self) -> int:
        return 2

    def __call__(self, group: Comparable, state: State) -> tuple[Advantage, State]:
        centred = group.rewards - group.rewards.mean(dtype=np.float64)
        if self.deviation:
            spread = group.rewards.std(dtype=np.float64)
            centred = centred / spread if spread > 0 else np.zeros_like(centred)
        return centred.astype(np.float32), state


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleBaseline:
    """r - b, with b a running mean of each environment and seat, read before it is updated (arXiv 2506.24119, SPIRAL's RAE):
    b starts at 0 and moves as b = decay * b + (1 - decay) * r."""

    decay: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise SettingError(f"rae(decay={self.decay!r}): must be in [0, 1)")

    @property
    def name(self) -> str:
        return f"role baseline, decay {self.decay}"

    @property
    def minimum(self) -> int:
        return 1

    def __call__(self, group: Comparable, state: State) -> tuple[Advantage, State]:
        key = f"{group.environment}/{group.seat}/{group.label}"
        baseline = float(state.get(key, 0.0))
        values = np.empty(len(group), np.float32)
        for index, reward in enumerate(group.rewards.tolist()):
            values[index] = reward - baseline
            baseline = self.decay * baseline + (1 - self.decay) * reward
        return values, {**state, key: baseline}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What an estimator returned, as one f32[T_i] for each trajectory."""

    values: tuple[F32, ...]
    state: State = field(default_factory=dict)


def estimate(estimator: Advantages, group: Comparable, state: State) -> Checked:
    """Run an estimator and check what it returns. Raises `SettingError` for a wrong shape or a value that is not finite."""
    returned, after = estimator(group, state)
    count = len(group)
    if isinstance(returned, list):
        values = tuple(np.asarray(row, np.float32) for row in returned)
        shapes = [row.shape for row in values]
        if shapes != [(int(length),) for length in group.lengths]:
            raise SettingError(f"{estimator.name} returned shapes {shapes} for lengths {group.lengths.tolist()}: one f32[T_i] each")
    else:
        flat = np.asarray(returned, np.float32)
        if flat.shape != (count,):
            raise SettingError(f"{estimator.name} returned shape {flat.shape} for {count} trajectories: must be ({count},)")
        values = tuple(np.full(int(length), value, np.float32) for value, length in zip(flat, group.lengths, strict=True))
    for row in values:
        if not np.isfinite(row).all():
            raise SettingError(f"{estimator.name} returned {row.tolist()} for rewards {group.rewards.tolist()}: must be finite")
    return Checked(values=values, state=after)
