"""Comparable sets, trajectories and batches made by hand, for the tests of what is computed from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparring.arrays import F32
from sparring.backend import Datum
from sparring.learner import Algorithm, Comparable
from sparring.learner.measured import NOTHING, Measured
from sparring.learner.step import Decided, Priority, decide
from sparring.learner.updates import Laid, updates
from sparring.rollout import Batch, Context, Trajectory, Unit
from sparring.rollout.events import Ended, Planned


def comparable(
    rewards: Sequence[float],
    lengths: Sequence[int] | None = None,
    *,
    environment: str = "game",
    seat: str = "solver",
    label: str = "",
) -> Comparable:
    """One turn each, of the given lengths (3 tokens without)."""
    counts = list(lengths if lengths is not None else [3] * len(rewards))
    return Comparable(
        environment=environment,
        seat=seat,
        label=label,
        rewards=np.array(rewards, np.float32),
        lengths=np.array(counts, np.int32),
        turn_rewards=tuple(np.array([reward], np.float32) for reward in rewards),
        turns=tuple(np.zeros(count, np.int32) for count in counts),
        episodes=np.arange(len(rewards), dtype=np.int32),
    )


def context(turns: Sequence[int], *, version: int = 0, prompt: int = 2, tokens: int = 0, gap: int = 1) -> Context:
    """For each number in `turns` a turn of so many sampled tokens, after `prompt` tokens and with `gap` between
    turns."""
    mask: list[bool] = []
    places: list[int] = []
    for number, sampled in enumerate(turns):
        before = gap if number else prompt
        mask += [False] * before + [True] * sampled
        places += [-1] * before + [number] * sampled
    length = len(mask)
    action = np.array(mask, np.bool_)
    return Context(
        tokens=np.arange(tokens, tokens + length, dtype=np.int32),
        action_mask=action,
        logprobs=np.where(action, np.float32(-1), np.float32(0)).astype(np.float32),
        versions=np.where(action, version, -1).astype(np.int32),
        turn=np.array(places, np.int16),
        temperature=1.0,
    )


def trajectory(
    reward: float,
    *contexts: Context,
    seat: str = "solver",
    label: str = "",
    fork: str = "",
    group: int = 0,
    episode: int = 0,
    turn_rewards: Sequence[float] = (),
    truncated: bool = False,
) -> Trajectory:
    return Trajectory(
        contexts=contexts or (context([3]),),
        reward=reward,
        turn_rewards=np.array(turn_rewards, np.float32),
        policy="policy",
        seat=seat,
        fork=fork,
        label=label,
        group=group,
        episode=episode,
        truncated=truncated,
    )


def batch(*made: Trajectory, step: int = 0, source: int = 0, episodes: Sequence[Ended] = ()) -> Batch:
    """A planned step of the groups that the trajectories name; `episodes` are how those of their groups ended."""
    groups = list(dict.fromkeys(one.group for one in made))
    units = tuple(
        Unit(
            policy="policy",
            group=group,
            source=source,
            trajectories=tuple(one for one in made if one.group == group),
            episodes=tuple(ended for ended in episodes if ended.group == group),
        )
        for group in groups
    )
    return Batch(planned=Planned(policy="policy", step=step, groups=groups), units=units)


def f32(*values: float) -> F32:
    return np.array(values, np.float32)


@dataclass(frozen=True)
class Prepared:
    """What is decided of a batch, and its examples, those of all updates in a row."""

    decided: Decided
    data: tuple[Datum, ...]
    again: tuple[Datum, ...]

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.decided.metrics

    @property
    def state(self) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self.decided.durable["advantages"]
        return state

    @property
    def digest(self) -> str:
        return self.decided.digest

    @property
    def weights(self) -> Mapping[int, float]:
        return self.decided.weights


def prepare(
    of: Batch,
    algorithm: Algorithm,
    state: Mapping[str, Any],
    environments: Sequence[str],
    priority: Priority | None = None,
    measured: Measured = NOTHING,
) -> Prepared:
    """What a learner would train on, where `state` is the estimator's."""
    durable = {"advantages": state}
    decided = decide(of, algorithm.credit, durable, environments, priority=priority, measured=measured)
    laid = [Laid(advantages=row) for row in decided.values]
    made = updates(of, laid, algorithm.normalization, minibatches=algorithm.minibatches)
    return Prepared(
        decided=decided,
        data=tuple(datum for update in made for datum in update.data),
        again=tuple(datum for update in made for datum in update.again),
    )
