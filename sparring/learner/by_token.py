"""Estimators that credit each token, or each turn, with what came after it. Letters: `N` trajectories, `T` action tokens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import fsum

import numpy as np
from jaxtyping import Float32, Float64

from sparring.arrays import F32, F64
from sparring.errors import SettingError
from sparring.learner.advantages import Comparable, State


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardToGo:
    """A_t = the reward from token t on: REINFORCE without a baseline, for what brings one of its own (`Algorithm.whiten`;
    arXiv 2501.03262). Without turn rewards and penalties it is the return, at every token."""

    @property
    def name(self) -> str:
        return "reward to go"

    @property
    def minimum(self) -> int:
        return 1

    def __call__(self, group: Comparable, state: State) -> tuple[list[F32], State]:
        return [to_go(group, index).astype(np.float32) for index in range(len(group))], state


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalty:
    """A_t = the penalty of token t alone, whatever came of it: with `KL(into="reward")` and a teacher as the reference, how
    much likelier the teacher finds the token than who sampled it (`distillation`)."""

    @property
    def name(self) -> str:
        return "penalty of each token"

    @property
    def minimum(self) -> int:
        return 1

    def __call__(self, group: Comparable, state: State) -> tuple[list[F32], State]:
        assert len(group.penalties) == len(group), "an algorithm without penalties is refused before"
        return list(group.penalties), state


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnMean:
    """A_t = G_k - the mean G_k of the set, for token t of turn k and G_k the reward from the beginning of turn k on, over
    N >= 2 (turn-level credit, arXiv 2505.11821). 0 where no other trajectory of the set has a turn k.

    Differs from the paper: all that comes later counts, where it adds an advantage of the turn's own reward and one of the
    outcome; no deviation divides. Turns of one number are compared although what was said before them differs.
    """

    @property
    def name(self) -> str:
        return "mean by turn"

    @property
    def minimum(self) -> int:
        return 2

    def __call__(self, group: Comparable, state: State) -> tuple[list[F32], State]:
        rows = [np.zeros(len(turns), np.float64) for turns in group.turns]
        for turn in np.unique(np.concatenate(group.turns)).tolist():
            places = [np.flatnonzero(turns == turn) for turns in group.turns]
            later = {index: float(to_go(group, index)[at[0]]) for index, at in enumerate(places) if len(at)}
            mean = fsum(later.values()) / len(later)
            for index, reward in later.items():
                rows[index][places[index]] = reward - mean
        return [row.astype(np.float32) for row in rows], state


@dataclass(frozen=True, slots=True, kw_only=True)
class GAE:
    """A_t = sum over l >= 0 of (discount decay)^l delta_(t+l), delta_t = r_t + discount V_(t+1) - V_t, with V a critic's values
    and 0 after the last token (generalized advantage estimation, arXiv 1506.02438, eq. 16).

    decay     lambda: 1 is the return minus the value, 0 one step alone
    discount  gamma, by token

    Tokens that the trajectory did not sample are no steps: after the last token of a turn comes the first of the next turn.
    A reply that was cut off ends with 0 too, as its episode does.
    """

    decay: float = 0.95
    discount: float = 1.0

    def __post_init__(self) -> None:
        for name in ("decay", "discount"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (isinstance(value, int | float) and 0 <= value <= 1):
                raise SettingError(f"GAE({name}={value!r}): must be between 0 and 1")

    @property
    def name(self) -> str:
        return f"GAE, lambda {self.decay}"

    @property
    def minimum(self) -> int:
        return 1

    def __call__(self, group: Comparable, state: State) -> tuple[list[F32], State]:
        assert len(group.values) == len(group), "an algorithm without a critic is refused before"
        rows = [self.of(token_rewards(group, index), values) for index, values in enumerate(group.values)]
        return [row.astype(np.float32) for row in rows], state

    def of(self, rewards: Float64[F64, " T"], values: Float32[F32, " T"]) -> Float64[F64, " T"]:
        """The advantages of one trajectory from the reward and the value at each of its tokens."""
        assert rewards.shape == values.shape, (rewards.shape, values.shape)
        now = values.astype(np.float64)
        later = np.append(now[1:], 0.0)
        deltas = (rewards + self.discount * later - now).tolist()
        shrink = self.discount * self.decay
        found = accumulate(reversed(deltas), lambda after, delta: delta + shrink * after)
        return np.array(list(found)[::-1], np.float64)


def token_rewards(group: Comparable, index: int) -> Float64[F64, " T"]:
    """What a trajectory's return consists of, token by token: penalties where they are, a turn's reward at the turn's last
    token, the rest at the last of all."""
    turns, given = group.turns[index], group.turn_rewards[index]
    found = group.penalties[index].astype(np.float64) if group.penalties else np.zeros(len(turns))
    for turn in np.unique(turns).tolist():
        if turn < len(given):
            found[np.flatnonzero(turns == turn)[-1]] += float(given[turn])
    if len(found):
        found[-1] += float(group.rewards[index]) - fsum(found)
    return found


def to_go(group: Comparable, index: int) -> Float64[F64, " T"]:
    """The rewards of each token and all after it."""
    return np.cumsum(token_rewards(group, index)[::-1])[::-1]
